"""What the dictionary tasks share: their common knobs, prompts laid out as pieces, and the loop that makes examples.

A gold dictionary is drawn *first*, as in the paper's scripts, and then moved: one draft serves every gold position.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import model_validator

from kvray.errors import InputError
from kvray.models.tokenizer import TokenCounter
from kvray.tasks.base import Context, CountTokens, Task, added, examples, recipe
from kvray.tasks.kv.draws import Ints, Mask, draws_of
from kvray.tasks.kv.text import Numbers, Parts, Pieces, integer_pieces
from kvray.tasks.prompts import KV_HEAD
from kvray.tasks.rng import Draws, below, draws, key_of

REDRAWS = 1000
"""Drafts tried after the first before a row is given up (paper.md 1.1)."""
EARLY_BOUND = 0.05
"""Early positions are the first 5 % of the samples (``law: paper``) or of the dictionaries (``law: strict``)."""

_PROBE_AFTER = 8
_POSITIONS, _FORCED = 1 << 20, 2 << 20
_FIRST, _EARLY = 1, 2
_NAMED = re.compile(r"Dictionary \[\d+\]")


class DictionaryTask(Task):
    """A task on numbered dictionaries, one or several of which hold what is asked for."""

    UNIT = "dictionaries"
    MEASURES = "retrieval"

    rows: int = recipe(350, ge=1, description="examples")
    dictionaries: int | Literal["fit"] = recipe(85, description="per prompt")
    max_tokens: int = recipe(4096, ge=1, description="token budget of the prompt")
    count_bos: bool = added(
        False, description="max_tokens counts the first token (BOS) too, where the tokenizer adds one"
    )

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        knobs = dict(self)
        for name in [name for name in knobs if name.endswith("_min")]:
            highest = name.removesuffix("min") + "max"
            if knobs[name] > knobs[highest]:
                raise ValueError(f"{name}: found {knobs[name]}, expected at most {highest} = {knobs[highest]}")
        if knobs.get("forced_first", 0) + knobs.get("early", 0) > 1:
            raise ValueError("forced_first + early: found more than 1, expected shares of the samples")
        return self

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the dictionaries that the answer names, a line each."""
        lines = {line.partition(" {")[0]: line for line in row["prompt"].split("\n") if line.startswith("Dictionary [")}
        return [lines[name] for name in dict.fromkeys(_NAMED.findall(row["answer"])) if name in lines]

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``; an InputError names the knobs if no draft of a row fits the token budget."""
        builder: Builder = context.material
        return builder.build(start, stop)


@dataclass(kw_only=True)
class Draft:
    """A draft of some rows of dictionaries; every field has an entry per row.

    Attributes:
        index: entries of :attr:`Builder.sections`, gold dictionary first. Shape ``(rows, dictionaries, entries)``.
        query: the integers asked for, in the order of the question. Shape ``(rows, integers)``.
        key: the gold key as its dictionary has it. Shape ``(rows, integers)``.
        value: the gold values. Shape ``(rows, values)``.
        units: dictionaries in use, at first all. Shape ``(rows,)``.
        tokens: of the prompts, once they are counted. Shape ``(rows,)``.
    """

    index: Numbers
    query: Ints
    key: Ints
    value: Ints
    units: Ints = field(init=False)
    tokens: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.units = np.full(len(self.index), self.index.shape[1])
        self.tokens = np.zeros(len(self.index), np.int64)

    def __len__(self) -> int:
        return len(self.index)

    def put(self, at: Ints, other: Self, chosen: Mask) -> None:
        """Overwrite the rows ``at[chosen]`` with the ``chosen`` rows of another draft."""
        for each in fields(self):
            getattr(self, each.name)[at[chosen]] = getattr(other, each.name)[chosen]


class Builder(ABC):
    """Makes examples. Its tables cost up to a second, so they are created at the first use and kept.

    Attributes:
        dictionaries, width: the most dictionaries of a prompt; random draws per row.
        sections: what entries of a draft stand for, (limit, left, right): integers below a limit between two texts. The
            sections' integers are numbered one section after the other; the number after the last is no text.
        remedy, budget: which knobs to change if no draft of a row is accepted, and what one keeps, for the error.
        forced: the shares of samples whose gold dictionary is first or early; None where gold ones are not moved.
        early_by_samples: early indices end at 5 % of the ``rows`` of the dataset (a quirk of the paper's scripts) and
            not of the dictionaries.
        most_tokens: ``max_tokens``, less the first token that it counts (``count_bos``).
        block_rows: rows made together.
    """

    dictionaries: int
    width: int
    sections: Sequence[tuple[int, str, str]]
    remedy: str
    budget = "stayed within max_tokens"
    forced: tuple[float, float] | None = None
    early_by_samples = False
    block_rows = 64

    def __init__(self, task: DictionaryTask, count_tokens: CountTokens) -> None:
        self.task = task
        self.count_tokens = count_tokens
        self.key = key_of(task.task, task.VERSION, task.seed)
        bos = count_tokens.first_tokens if task.count_bos and isinstance(count_tokens, TokenCounter) else 0
        self.most_tokens = task.max_tokens - bos

    @abstractmethod
    def _draft(self, drawn: Draws) -> Draft:
        """Draw one draft per row of ``drawn``, shape ``(rows, width)``."""

    @abstractmethod
    def _question(self, draft: Draft) -> Parts:
        """Return what follows the dictionaries."""

    @abstractmethod
    def _answer(self, draft: Draft, gold: Ints) -> Parts:
        """Return the answers to train on, which are also the only ones accepted."""

    @property
    def empty(self) -> int:
        """The entry that is no text."""
        return sum(limit for limit, _, _ in self.sections)

    @cached_property
    def pieces(self) -> Pieces:
        """The sections, the empty text, the labels of dictionaries from 0, and bare integers."""
        most = max(self.dictionaries + 1, *(limit for limit, _, _ in self.sections))
        return Pieces(
            [
                *(integer_pieces(*section) for section in self.sections),
                pa.array([""]),
                integer_pieces(self.dictionaries + 1, "Dictionary [", "] {"),
                integer_pieces(most),
            ]
        )

    def numbers(self, integers: Ints) -> Numbers:
        """Return the numbers of the pieces that are bare integers."""
        numbers: Numbers = (integers + self.pieces.starts[-1]).astype(np.int32)
        return numbers

    @cached_property
    def forced_rows(self) -> NDArray[np.int8]:
        """1 for rows forced first, 2 for early ones; nothing else about a row depends on the number of rows."""
        rows = self.task.rows
        first, early = (int(rows * share) for share in self.forced or (0, 0))
        drawn = draws(self.key, 0, -(-rows // 4), 4, _FORCED).reshape(-1)[:rows]
        order = np.argsort(drawn, kind="stable")
        forced = np.zeros(rows, np.int8)
        forced[order[:first]] = _FIRST
        forced[order[first : first + early]] = _EARLY
        return forced

    def gold(self, rows: Ints, units: Ints) -> Ints:
        """Return the 0-based gold index per row, uniform but for rows forced first or early. Shape ``(len(rows),)``."""
        if self.forced is None:
            return np.zeros(len(rows), np.int64)
        drawn = draws_of(self.key, rows, 4, _POSITIONS)
        # Multiplied by the share, then cut: int(350 * 0.05) = 17, as in the paper's scripts.
        bound = (np.full(len(rows), self.task.rows) if self.early_by_samples else units) * EARLY_BOUND
        early = below(drawn[:, 1], np.clip(bound.astype(np.int64), 1, units))
        forced = self.forced_rows[rows]
        return np.where(forced == _FIRST, 0, np.where(forced == _EARLY, early, below(drawn[:, 0], units)))

    def attempt(self, rows: Ints, number: int) -> Draft:
        """Return the drafts of attempt ``number`` of ascending ``rows``; none depends on the other rows."""
        return self._draft(draws_of(self.key, rows, self.width, number))

    def count(self, rows: Ints, draft: Draft, gold: Ints | None = None) -> Ints:
        """Count the tokens of prompts, by default with the gold dictionary where it belongs."""
        gold = self.gold(rows, draft.units) if gold is None else gold
        return self.count_tokens(self._prompts(draft, gold).to_pylist())

    def build(self, start: int, stop: int) -> pa.Table:
        rows = np.arange(start, stop)
        position, units, tokens = (np.empty(len(rows), np.int64) for _ in range(3))
        prompts, answers = [pa.array([], pa.string())], [pa.array([], pa.string())]
        for at in range(0, len(rows), self.block_rows):
            block = slice(at, at + self.block_rows)
            draft = self._settled(rows[block])
            gold = self.gold(rows[block], draft.units)
            position[block], units[block], tokens[block] = gold + 1, draft.units, draft.tokens
            prompts.append(self._prompts(draft, gold))
            answers.append(self.pieces.spell(len(draft), self._answer(draft, gold)))
        ids = pa.array([f"row-{row:07d}" for row in rows.tolist()], pa.string())
        answer = pa.concat_arrays(answers)
        return examples(
            {
                "example_id": ids,
                "question_id": ids,
                "position": pa.nulls(len(rows)) if self.forced is None else position,
                "units": units,
                "prompt": pa.concat_arrays(prompts),
                "answer": answer,
                "references": pa.ListArray.from_arrays(np.arange(len(rows) + 1, dtype=np.int32), answer),
                "prompt_tokens": tokens,
            }
        )

    def _settled(self, rows: Ints) -> Draft:
        """Draft every row until it is accepted; an InputError if one is not in 1 + :data:`REDRAWS` attempts."""
        settled = self.attempt(rows, 0)
        pending = np.flatnonzero(~self._measure(rows, settled))
        last = settled.tokens[pending]
        for number in range(1, REDRAWS + 1):
            if not pending.size:
                return settled
            if number == _PROBE_AFTER and pending.size > 1:
                # Knobs that cannot work show on one row, sooner than on a thousand.
                self._settled(rows[pending[:1]])
            draft = self.attempt(rows[pending], number)
            accepted = self._measure(rows[pending], draft)
            settled.put(pending, draft, accepted)
            pending, last = pending[~accepted], draft.tokens[~accepted]
        if pending.size:
            raise InputError(
                f"{self.task.task}: row {rows[pending[0]]}: no draft of {self.dictionaries} dictionaries {self.budget} "
                f"(max_tokens: {self.task.max_tokens}) in {REDRAWS} redraws; the last had {last[0]} tokens; "
                f"{self.remedy}, or raise max_tokens"
            )
        return settled

    def _measure(self, rows: Ints, draft: Draft) -> Mask:
        """Fill in the tokens (and units) of a draft; mark the rows that are accepted."""
        draft.tokens = self.count(rows, draft)
        return draft.tokens <= self.most_tokens

    def _prompts(self, draft: Draft, gold: Ints) -> pa.StringArray:
        """Return the prompts with the dictionary drawn first at 0-based index ``gold``."""
        rows, dictionaries, entries = draft.index.shape
        place, first = np.arange(dictionaries), gold[:, None]
        # Those before the gold dictionary move up by one place.
        order = np.where(place == first, 0, place + (place < first)) + np.arange(rows)[:, None] * dictionaries
        lines = np.empty((rows, dictionaries, 1 + entries), np.int32)
        lines[:, :, 0] = self.pieces.starts[-2] + 1 + place
        lines[:, :, 1:] = draft.index.reshape(-1, entries).take(order, axis=0)
        if draft.units.min(initial=dictionaries) < dictionaries:
            lines[place >= draft.units[:, None]] = self.empty
        return self.pieces.spell(rows, [KV_HEAD, lines, *self._question(draft)])
