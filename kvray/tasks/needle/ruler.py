"""RULER's retrieval family (Hsieh et al. 2024, github.com/NVIDIA/RULER) in our own words: needles that grow in number.

A needle registers a value under a key. ``single``: one needle, asked about. ``multikey``: several under different keys,
one asked about. ``multivalue``: several under one key, all asked about. ``multiquery``: several under different keys,
all asked about. Keys and values are words, numbers of seven digits or UUIDs; the haystack is text, noise, or nothing
but further needles. Variants, kinds, the counts of four and the rule are RULER's; every wording is ours, and so are the
100 rows (RULER asks 500) and the lengths up to 32K.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice, product
from typing import Literal

import pyarrow as pa

from kvray.errors import InputError
from kvray.tasks import prompts
from kvray.tasks.base import RIGHT, WRONG, Context, CountTokens, Many, Task, recipe, register, runtime
from kvray.tasks.needle import haystack
from kvray.tasks.needle.haystack import Frame, Haystack, Supply, added
from kvray.tasks.rng import Draws, below, draws, key_of, uuids
from kvray.tasks.rows import Example
from kvray.tasks.world import TINY, source_identity

Variant = Literal["single", "multikey", "multivalue", "multiquery"]
Kind = Literal["words", "numbers", "uuid"]
Record = tuple[str, str]
PARTIAL = "partial"

VARIANTS: tuple[Variant, ...] = ("single", "multikey", "multivalue", "multiquery")
KINDS = {"words": "word", "numbers": "number", "uuid": "UUID"}
"""What a value is called in a prompt, by its kind."""
_TEXTS = prompts.TEXTS["ruler"] | prompts.load("needle/ruler.toml")
NOISE: list[str] = _TEXTS["noise"]
WORDS = [f"{first}-{second}" for first, second in product(_TEXTS["first"].split(), _TEXTS["second"].split())]
"""Some 35,000 names of two words."""

_STEPS = 11
_DRAWN = 64  # records drawn at a time
_SMALLEST, _NUMBERS = 1_000_000, 9_000_000


@register("ruler")
class Ruler(Task):
    """Needles in a haystack, one or several, by length; every row is asked at every length."""

    MEASURES = "retrieval"
    MAX_OUTPUT_TOKENS = 256
    SAME_EXAMPLES = frozenset({"rows", "variants", "lengths", "haystack", "source"})

    task: Literal["ruler"] = recipe("ruler")
    source: str = runtime(
        TINY, description="essay's text: 'tiny' (the bundled model's world), or any (.txt, .jsonl, …)"
    )
    haystack: Literal["essay", "noise", "needles"] = recipe(
        "essay", description="essay: the source's text; noise: five sentences over and over; needles: further needles"
    )
    variants: Many[Variant] = recipe(VARIANTS, description="which of single, multikey, multivalue, multiquery")
    rows: int = recipe(100, ge=1, description="of each variant; each at every length")
    lengths: Many[int] = recipe(
        (4096, 8192, 16384, 32768), description="most tokens of a prompt; within one sentence of it"
    )
    key_kind: Kind = recipe("words", description="what keys are: words, numbers or uuid")
    value_kind: Kind = recipe("numbers", description="what values are: words, numbers or uuid")
    keys: int = recipe(4, ge=2, le=1000, description="multikey: needles in all, one of which is asked about")
    values: int = recipe(4, ge=2, le=100, description="multivalue: values under the one key")
    queries: int = recipe(4, ge=2, le=100, description="multiquery: keys asked about")

    def sources(self) -> dict[str, str]:
        return {"source": source_identity(self.source)} if self.haystack == "essay" else {}

    def per_row(self) -> int:
        return len(self.variants) * len(self.lengths)

    def distinct_questions(self, rows: int) -> int:
        return -(-rows // len(self.lengths))

    def tokens_estimate(self) -> int:
        return max(1, sum(self.lengths) // len(self.lengths) - 12)

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the haystack; an InputError if that cannot be done or it has no sentence."""
        if self.haystack == "essay":
            # Its people are those of training: no ruler question is about a person.
            return Context(count_tokens, haystack.read(self.source, count_tokens, "train", self.seed))
        return Context(count_tokens, Haystack(NOISE, count_tokens))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``: of one row all lengths, of one length all variants.

        Needles, question and the beginning of the haystack are the same at every length.

        Raises:
            InputError: a length has no room for the needles, the question and one sentence, or needs more needles than
                there are words for keys.
        """
        kind = KINDS[self.value_kind]
        made, frames = [], []
        for row in range(start, stop):
            number, cell = divmod(row, len(self.lengths) * len(self.variants))
            length, variant = self.lengths[cell // len(self.variants)], self.variants[cell % len(self.variants)]
            key = key_of("ruler", self.VERSION, self.seed, variant, number)
            records = _records(key, (self.key_kind, self.value_kind))
            pairs, asked, question = self._quiz(variant, records)
            drawn = draws(key, 0, len(pairs), 4, 1)[:, 0]
            # The one needle's depth is an axis of its own, so it comes in few steps; several are anywhere.
            depths = below(drawn, _STEPS) * 10 if variant == "single" else below(drawn, 1001) / 10
            if variant == "multivalue":
                depths.sort()  # the answer tells one key's values as they come
            name = f"ruler-{variant}-{number:06d}"
            sentences = self._sentences(pairs)
            needles = tuple(zip(depths.tolist(), sentences, strict=True))
            if self.haystack == "needles":
                supply = self._further(records, context.count_tokens)
            else:
                supply = context.material.supply(int(below(draws(key, 0, 1, 1, 2), len(context.material.pieces))[0, 0]))
            frames.append(Frame(supply, needles, _TEXTS["head"].format(kind=kind), question, length))
            made.append(
                Example(
                    "",
                    answer="".join(sentences[:asked]).strip(),
                    references=tuple(value for _, value in pairs[:asked]),
                    question_id=name,
                    length=length,
                    depth=float(depths[0]) if variant == "single" else None,
                    subtask=variant,
                    example_id=f"{name}-{length}",
                )
            )
        return haystack.examples(made, frames, context.count_tokens)

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the asked values that the answer contains, in whatever case (RULER's string match)."""
        return sum(reference.lower() in answer.lower() for reference in references) / len(references)

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Return "right" if the answer contains all values asked for, "partial" if some, "wrong" if none."""
        score = self.score(answer, references)
        return RIGHT if score == 1.0 else PARTIAL if score > 0 else WRONG

    def _quiz(self, variant: Variant, records: Iterator[Record]) -> tuple[list[Record], int, str]:
        """Return the hidden (key, value) pairs, how many of the first ones are asked about, and the question."""
        number = {"single": 1, "multikey": self.keys, "multivalue": self.values, "multiquery": self.queries}[variant]
        pairs = list(islice(records, number))
        names = [key for key, _ in pairs]
        kind, keys = KINDS[self.value_kind], names[0]
        if variant == "multiquery":
            keys = f"{', '.join(names[:-1])} and {names[-1]}"
        if variant == "multivalue":
            pairs = [(names[0], value) for _, value in pairs]
        asked = number if variant in ("multivalue", "multiquery") else 1
        return pairs, asked, _TEXTS["questions"][variant].format(kind=kind, keys=keys)

    def _sentences(self, pairs: Iterable[Record]) -> list[str]:
        return [_TEXTS["needle"].format(key=key, kind=KINDS[self.value_kind], value=value) for key, value in pairs]

    def _further(self, records: Iterator[Record], count_tokens: CountTokens) -> Supply:
        """Yield further needles, a haystack of their own."""
        while pieces := self._sentences(islice(records, _DRAWN)):
            yield from zip(pieces, added(count_tokens, pieces).tolist(), strict=True)


def _records(key: int, kinds: tuple[Kind, Kind]) -> Iterator[Record]:
    """Yield keys with their values without end, of these kinds; no text is in two of them.

    Raises:
        InputError: there are no more words.
    """
    taken: set[str] = set()
    for start in count(0, _DRAWN):
        if "words" in kinds and start > 4 * len(WORDS):
            raise InputError(
                f"ruler: found a haystack of more than {len(taken) // 2} needles, but there are {len(WORDS)} words to "
                "name them by; lower lengths, or give key_kind and value_kind 'numbers' or 'uuid'"
            )
        drawn = draws(key, start, start + _DRAWN, 4, 3)
        for pair in zip(_labels(kinds[0], drawn[:, :2]), _labels(kinds[1], drawn[:, 2:]), strict=True):
            if pair[0] != pair[1] and taken.isdisjoint(pair):
                taken.update(pair)
                yield pair


def _labels(kind: Kind, drawn: Draws) -> list[str]:
    """Return labels of one kind from draws of shape ``(labels, 2)``."""
    if kind == "uuid":
        return uuids(drawn)
    if kind == "numbers":
        return [str(n) for n in (_SMALLEST + below(drawn[:, 0], _NUMBERS)).tolist()]
    return [WORDS[n] for n in below(drawn[:, 0], len(WORDS)).tolist()]
