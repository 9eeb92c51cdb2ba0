"""RULER's aggregation: common words (``common_words_extraction.py``), frequent words (``freq_words_extraction.py``).

cwe: a numbered list in which ten words come 30 times each and all others three times; a worked example comes first.
fwe: coded words of six letters whose numbers fall with the square of their rank (a zeta distribution, alpha 2); the
most frequent is noise, "...", and the next three are asked for.
"""

import math
from collections.abc import Sequence

from kvray.tasks import prompts
from kvray.tasks.rng import below, draws, key_of, permutation, shuffled
from kvray.tasks.ruler import words
from kvray.tasks.ruler.subtasks import Draft

COMMON = 10
_TEXTS = prompts.load("ruler/ruler.toml")
_SHORT = 4096  # tokens below which words of cwe come fewer times
_TIMES = {True: (6, 1), False: (30, 3)}  # common words, others; by whether the length is short
_EXAMPLE = {True: (20, 3, 1), False: (40, 10, 3)}  # words, and the same of the worked example
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_CODED = 6
_TOKENS_PER_WORD = 50  # of the length, per word of fwe's vocabulary
_ZETA_2 = math.pi**2 / 6
_LEAST = math.ceil(32 * _ZETA_2)
"""Words from which on rank 4, asked for, comes more often than rank 5: 32 / 16 and 32 / 25 differ when rounded down."""


def common(key: int, length: int) -> Draft:
    """Return an example of cwe, a pure function of its random key and the length in tokens."""
    short = length < _SHORT
    size, *times = _EXAMPLE[short]
    shown = shuffled(words.every(), key_of("ruler", "example", key))[:size]
    answer = _numbered(shown[:COMMON])
    example = f"{_list(shown, times, key_of('ruler', 'shown', key))} {_TEXTS['common']['prefix']} {answer}"
    drawn = shuffled(words.every(), key_of("ruler", "words", key))

    def worded(size: int) -> str:
        return f"{example}\n{_list(drawn[:size], _TIMES[short], key)}"

    said = tuple(drawn[:COMMON])
    return Draft(worded, COMMON + 1, len(drawn), _TEXTS["common"]["prefix"], _numbered(said), said)


def frequent(key: int, length: int) -> Draft:
    """Return an example of fwe, a pure function of its random key and the length in tokens."""
    size = max(5, length // _TOKENS_PER_WORD)
    letters = below(draws(key, 0, 2 * size, 8)[:, :_CODED], len(_ALPHABET)).tolist()
    coded = list(dict.fromkeys("".join(_ALPHABET[letter] for letter in word) for word in letters))
    vocabulary = ["...", *coded[: size - 1]]

    def worded(total: int) -> str:
        times = [int(total / _ZETA_2 / rank**2) for rank in range(1, len(vocabulary) + 1)]
        shown = [word for word, number in zip(vocabulary, times, strict=True) for _ in range(number)]
        context = " ".join(shuffled(shown, key_of("ruler", "order", key)))
        return str(_TEXTS["frequent"]["prompt"].format(context=context))

    said = tuple(vocabulary[1:4])
    return Draft(worded, _LEAST, None, _TEXTS["frequent"]["prefix"], ", ".join(said), said)


def _list(chosen: Sequence[str], times: Sequence[int], key: int) -> str:
    """Word the question about a list of which the first ten words are the common ones."""
    frequent, rare = times
    listed = frequent * list(chosen[:COMMON]) + rare * list(chosen[COMMON:])
    order = permutation(key_of("ruler", "list", key), len(listed)).tolist()
    return str(_TEXTS["common"]["prompt"].format(context=_numbered([listed[at] for at in order])))


def _numbered(listed: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(listed, start=1))
