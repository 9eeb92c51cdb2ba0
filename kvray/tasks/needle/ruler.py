"""RULER's retrieval family (Hsieh et al. 2024, github.com/NVIDIA/RULER) in our own words: needles that grow in number.

A needle registers a value under a key. ``single``: one needle, asked about. ``multikey``: several under different keys,
one asked about. ``multivalue``: several under one key, all asked about. ``multiquery``: several under different keys,
all asked about. Keys and values are words, numbers of seven digits or UUIDs; the haystack is text, noise, or nothing
but further needles. Variants, kinds, the counts of four and the rule are RULER's; every wording is ours, and so are the
100 rows (RULER asks 500) and the lengths up to 32K.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Sequence
from importlib import resources
from itertools import product
from typing import Any, Literal

import pyarrow as pa

from kvray.errors import InputError
from kvray.tasks.base import RIGHT, WRONG, Context, CountTokens, Many, Task, examples, recipe, register, runtime
from kvray.tasks.needle import haystack
from kvray.tasks.needle.haystack import Frame, Haystack, Ints, Supply, added
from kvray.tasks.rng import below, draws, key_of, uuids
from kvray.tasks.world import TINY, source_identity

Variant = Literal["single", "multikey", "multivalue", "multiquery"]
Kind = Literal["words", "numbers", "uuid"]
VARIANTS: tuple[Variant, ...] = ("single", "multikey", "multivalue", "multiquery")
PARTIAL = "partial"

HEAD = "Somewhere in the text below, {kind}s are registered under names. You will be asked about them at its end.\n\n"
NEEDLE = " One {kind} registered under {key} is {value}."
ONE = "\n\nWhich {kind} is registered under {keys}?"
ALL_OF_ONE = "\n\nWhich {kind}s are registered under {keys}? Name all of them."
ONE_OF_EACH = "\n\nWhich {kind}s are registered under {keys}? Name one for each."
KINDS = {"words": "word", "numbers": "number", "uuid": "UUID"}
"""What a value is called in a prompt, by its kind."""
_TEXTS = tomllib.loads(resources.files("kvray.tasks.needle").joinpath("ruler.toml").read_text("utf-8"))
NOISE: list[str] = _TEXTS["noise"]
WORDS = [f"{first}-{second}" for first, second in product(_TEXTS["first"].split(), _TEXTS["second"].split())]
"""Some 35,000 names of two words."""

_STEPS = 11
_SMALLEST, _NUMBERS = 1_000_000, 9_000_000


@register("ruler")
class Ruler(Task):
    """Needles in a haystack, one or several, by length; every row is asked at every length."""

    VERSION = 1
    MEASURES = "retrieval"
    MAX_OUTPUT_TOKENS = 256
    SAME_EXAMPLES = frozenset({"rows", "variants", "lengths", "haystack", "source"})

    task: Literal["ruler"] = recipe("ruler")
    source: str = runtime(
        TINY, description="text of 'haystack: essay': 'tiny' (the bundled model's world), or any (.txt, .jsonl, …)"
    )
    haystack: Literal["essay", "noise", "needles"] = recipe(
        "essay", description="essay: the source's text; noise: five sentences over and over; needles: further needles"
    )
    variants: Many[Variant] = recipe(VARIANTS, description="which of single, multikey, multivalue, multiquery")
    rows: int = recipe(100, ge=1, description="of each variant; each at every length")
    lengths: Many[int] = recipe(
        (4096, 8192, 16384, 32768), description="tokens of a prompt at most; within one sentence of it"
    )
    key_kind: Kind = recipe("words", description="what keys are: words, numbers or uuid")
    value_kind: Kind = recipe("numbers", description="what values are: words, numbers or uuid")
    keys: int = recipe(4, ge=2, le=1000, description="multikey: needles in all, one of which is asked about")
    values: int = recipe(4, ge=2, le=100, description="multivalue: values under the one key")
    queries: int = recipe(4, ge=2, le=100, description="multiquery: keys asked about")

    def sources(self) -> dict[str, str]:
        return {"source": source_identity(self.source)} if self.haystack == "essay" else {}

    def with_rows(self, rows: int) -> Ruler:
        return self.model_copy(update={"rows": -(-rows // (len(self.variants) * len(self.lengths)))})

    def distinct_questions(self, rows: int) -> int:
        return -(-rows // len(self.lengths))

    def expected_rows(self) -> int:
        return self.rows * len(self.variants) * len(self.lengths)

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
        rows: dict[str, list[Any]] = defaultdict(list)
        frames = []
        for row in range(start, stop):
            number, cell = divmod(row, len(self.lengths) * len(self.variants))
            length, variant = self.lengths[cell // len(self.variants)], self.variants[cell % len(self.variants)]
            key = key_of("ruler", self.VERSION, self.seed, variant, number)
            records = _Records(key, (self.key_kind, self.value_kind))
            pairs, asked, question = self._quiz(variant, records)
            drawn = draws(key, 0, len(pairs), 4, 1)[:, 0]
            # The one needle's depth is an axis of its own, so it comes in few steps; several are anywhere.
            depths = below(drawn, _STEPS) * 10 if variant == "single" else below(drawn, 1001) / 10
            if variant == "multivalue":
                depths.sort()  # the answer tells one key's values as they come
            name = f"ruler-{variant}-{number:06d}"
            sentences = [NEEDLE.format(key=key, kind=kind, value=value) for key, value in pairs]
            needles = tuple(zip(depths.tolist(), sentences, strict=True))
            supply = self._supply(context, records, len(pairs))
            frames.append(Frame(supply, needles, HEAD.format(kind=kind), question, length))
            rows["example_id"].append(f"{name}-{length}")
            rows["question_id"].append(name)
            rows["units"].append(0)
            rows["length"].append(length)
            rows["depth"].append(float(depths[0]) if variant == "single" else None)
            rows["subtask"].append(variant)
            rows["answer"].append("".join(sentences[:asked]).strip())
            rows["references"].append([value for _, value in pairs[:asked]])
        rows["prompt"], rows["prompt_tokens"] = haystack.fill(frames, context.count_tokens)
        return examples(rows)

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the share of the asked values that the answer contains, in whatever case (RULER's string match)."""
        return sum(reference.lower() in answer.lower() for reference in references) / len(references)

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Return "right" if the answer contains all values asked for, "partial" if some, "wrong" if none."""
        score = self.score(answer, references)
        return RIGHT if score == 1.0 else PARTIAL if score > 0 else WRONG

    def _quiz(self, variant: Variant, records: _Records) -> tuple[list[tuple[str, str]], int, str]:
        """Return the hidden (key, value) pairs, how many of the first ones are asked about, and the question."""
        kind = KINDS[self.value_kind]
        if variant == "multivalue":
            pairs = records.take(self.values)
            key = pairs[0][0]
            return [(key, value) for _, value in pairs], self.values, ALL_OF_ONE.format(kind=kind, keys=key)
        if variant == "multiquery":
            pairs = records.take(self.queries)
            names = [key for key, _ in pairs]
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
            return pairs, self.queries, ONE_OF_EACH.format(kind=kind, keys=listed)
        pairs = records.take(1 if variant == "single" else self.keys)
        return pairs, 1, ONE.format(kind=kind, keys=pairs[0][0])

    def _supply(self, context: Context, records: _Records, used: int) -> Supply:
        """Return the haystack of one prompt: the context's, or further records after the ``used`` ones."""
        if self.haystack != "needles":
            hay: Haystack = context.material
            return hay.supply(int(below(draws(records.key, 0, 1, 1, 2), len(hay.pieces))[0, 0]))
        kind = KINDS[self.value_kind]

        def take(tokens: int) -> tuple[list[str], Ints]:
            number = 64
            while True:
                pairs = records.take(used + number)[used:]
                pieces = [NEEDLE.format(key=key, kind=kind, value=value) for key, value in pairs]
                costs = added(context.count_tokens, pieces)
                if int(costs.sum()) >= tokens:
                    return pieces, costs
                number = int(number * max(1.05 * tokens / int(costs.sum()), 1.0)) + 8

        return take


class _Records:
    """Keys with their values, none twice in one prompt; the first ones are the same however many are taken."""

    def __init__(self, key: int, kinds: tuple[Kind, Kind]) -> None:
        self.key = key
        self.kinds = kinds

    def take(self, number: int) -> list[tuple[str, str]]:
        drawn = number + number // 64 + 8
        while True:
            keys, values = (self._labels(kind, which, drawn) for which, kind in enumerate(self.kinds))
            taken: set[str] = set()
            records = []
            for pair in zip(keys, values, strict=True):
                if pair[0] != pair[1] and taken.isdisjoint(pair):
                    taken.update(pair)
                    records.append(pair)
            if len(records) >= number:
                return records[:number]
            if "words" in self.kinds and drawn > 2 * len(WORDS):
                raise InputError(
                    f"ruler: found a haystack of {number} needles or more, but there are {len(WORDS)} words to name "
                    f"them by; lower lengths, or give key_kind and value_kind 'numbers' or 'uuid'"
                )
            drawn *= 2

    def _labels(self, kind: Kind, which: int, number: int) -> list[str]:
        """Return labels of one kind; ``which`` is 0 for keys and 1 for values."""
        drawn = draws(self.key, 0, number, 4, 3)[:, 2 * which : 2 * which + 2]
        if kind == "uuid":
            return uuids(drawn)
        if kind == "numbers":
            return [str(n) for n in (_SMALLEST + below(drawn[:, 0], _NUMBERS)).tolist()]
        return [WORDS[n] for n in below(drawn[:, 0], len(WORDS)).tolist()]
