"""Tokenizers of the kinds that matter for counting: made by hand, so that their counts never change."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

WORDS = ("Dictionary", "dictionaries", "integer", "template", "value", "key", "the", "is", "and", "of", "in")
PAIRS = tuple((a, b) for a in string.digits for b in string.digits)
TRIPLES = tuple((a + b, c) for a, b in PAIRS for c in string.digits)


def digits() -> Tokenizer:
    """Like Llama-2 and Mistral: no pre-tokenizer at all, each digit a token of its own, byte fallback."""
    return _bpe([(":", " "), (",", " "), ("}", "\n"), ("\n", "\n")])


def threes() -> Tokenizer:
    """Like Llama-3 and GPT-4: integers in groups of three digits from the left."""
    return _bpe([*PAIRS, *TRIPLES, (":", " "), (",", " "), ("}", "\n")], r"\d{1,3}|[A-Za-z]+|[^\sA-Za-z\d]+|\s+")


def spaced() -> Tokenizer:
    """Like GPT-2: an integer swallows the space before it, so its count hangs on where it stands."""
    merges = [*PAIRS[:60], *((" ", d) for d in "13579"), (" 1", "2"), ("{", "4")]
    return _bpe(merges, r" ?\d+|\{\d+| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+")


def bridging() -> Tokenizer:
    """Merges across the edge of integers, so that one token can hold parts of two."""
    return _bpe([*PAIRS[:40], (":", " "), ("3", ": "), ("3: ", "7"), ("5", ","), (",", " ")])


def _bpe(merges: Sequence[tuple[str, str]], pattern: str | None = None) -> Tokenizer:
    steps = list(merges)
    for word in WORDS:
        steps += [(word[:end], word[end]) for end in range(1, len(word)) if (word[:end], word[end]) not in steps]
    tokens = ["<0x0A>", "<0x31>", *(chr(code) for code in range(32, 127)), "\n", *(a + b for a, b in steps)]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocabulary, steps, byte_fallback=True))
    if pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return tokenizer
