"""The English words of RULER's needles and word lists: those of the package wonderwords (MIT), which RULER uses too.

RULER adds the words of an ``english_words.json`` to its lists of common words, and takes pairs of words where those are
not enough; the 8,166 of wonderwords are enough for 128K tokens.
"""

import hashlib
from functools import cache


@cache
def lists() -> dict[str, tuple[str, ...]]:
    """Return the words by their kind ("nouns", "adjectives", "verbs"), sorted."""
    from wonderwords import RandomWord  # reading its lists takes most of a second

    package, kinds = RandomWord(), ("nouns", "adjectives", "verbs")
    return {kind: tuple(sorted(set(package.filter(include_parts_of_speech=[kind])))) for kind in kinds}


@cache
def every() -> tuple[str, ...]:
    """Return all words, sorted."""
    return tuple(sorted({word for kind in lists().values() for word in kind}))


@cache
def digest() -> str:
    """Return the sha256 of the words, which identifies them whatever the package's version."""
    return hashlib.sha256("\n\n".join("\n".join(kind) for kind in lists().values()).encode()).hexdigest()
