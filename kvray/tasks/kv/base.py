"""What the dictionary tasks share: checks of their knobs, prompts laid out as cells, and the loop that makes examples.

Drafts hold the gold dictionary *first*, as in the paper's scripts; :meth:`Layout.prompts` moves it to its position, so
one draft serves every gold position.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import as_strided
from pydantic import model_validator

from kvray.tasks.base import Context, CountTokens, Task, examples
from kvray.tasks.kv.drafts import Draft, GoldPositions, Ints, Mask, draws_of, settle
from kvray.tasks.kv.text import Cells, cells, squeeze, strings, weave
from kvray.tasks.rng import Draws


class DictionaryTask(Task):
    """A task on numbered dictionaries, one or several of which hold what is asked for."""

    UNIT = "dictionaries"
    MEASURES = "retrieval"

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

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``; an InputError names the knobs if no draft of a row fits the token budget."""
        builder: Builder = context.material
        return builder.build(start, stop)


@dataclass(kw_only=True)
class DictionaryDraft(Draft):
    """A draft of some rows of dictionaries.

    Attributes:
        index: entries of :attr:`Layout.table`, gold dictionary first. Shape ``(rows, dictionaries, entries)``.
        query: the gold key in the order of the question. Shape ``(rows, integers)``.
        key: the gold key as its dictionary has it. Shape ``(rows, integers)``.
        value: the gold value. Shape ``(rows,)``.
        units: dictionaries in use. Shape ``(rows,)``.
    """

    index: Ints
    query: Ints
    key: Ints
    value: Ints
    units: Ints


@dataclass(frozen=True)
class Layout:
    """How drafts become text: ``head``, then the dictionaries, of which a prompt has at most ``dictionaries``.

    ``table`` has a cell for every entry that a draft can name, the last one empty. Shape ``(entries,)``.
    """

    head: str
    table: Cells
    dictionaries: int

    @cached_property
    def _labels(self) -> Cells:
        width = cells(f"Dictionary [{self.dictionaries}] {{").size
        return np.stack([cells(f"Dictionary [{i + 1}] {{", width) for i in range(self.dictionaries)])

    def prompts(self, draft: DictionaryDraft, gold: Ints, tail: Sequence[str | Cells]) -> list[bytes]:
        """Return prompts with the gold dictionary at 0-based index ``gold``, each followed by its row of ``tail``."""
        rows, dictionaries, entries = draft.index.shape
        place = np.arange(dictionaries)
        order = np.where(place < gold[:, None], place + 1, np.where(place == gold[:, None], 0, place))
        head, end = cells(self.head), weave(rows, tail)
        width = self._labels.shape[1]
        body = dictionaries * (width + entries)
        buffer = np.empty((rows, head.size + body + end.shape[1]), np.uint64)
        buffer[:, : head.size] = head
        buffer[:, head.size + body :] = end
        # A view of the middle columns line by line, which reshape() would copy.
        lines = as_strided(
            buffer[:, head.size :], (rows, dictionaries, width + entries), (buffer.strides[0], 8 * (width + entries), 8)
        )
        lines[:, :, :width] = self._labels
        lines[:, :, width:] = self.table.take(draft.index[np.arange(rows)[:, None], order])
        if int(draft.units.min(initial=dictionaries)) < dictionaries:
            lines[place >= draft.units[:, None]] = 0
        return squeeze(buffer)


class Builder(ABC):
    """Makes examples. Its tables cost up to a second, so subclasses create them at the first use and keep them.

    ``width`` is the random draws per row, ``block_rows`` the rows made together; ``unfit`` and ``remedy`` are for
    :func:`kvray.tasks.kv.drafts.settle`.
    """

    positions: GoldPositions
    width: int
    block_rows: int
    unfit: str
    remedy: str

    def __init__(self, key: int, count_tokens: CountTokens) -> None:
        self.key = key
        self.count_tokens = count_tokens

    @abstractmethod
    def _draft(self, drawn: Draws) -> DictionaryDraft:
        """Draw one draft per row of ``drawn``, shape ``(rows, width)``."""

    @abstractmethod
    def _measure(self, rows: Ints, draft: DictionaryDraft) -> Mask:
        """Fill in the tokens (and units) of a draft; mark the rows that are accepted."""

    @abstractmethod
    def _prompts(self, draft: DictionaryDraft, gold: Ints) -> list[bytes]:
        """Return the prompts with the gold dictionary at 0-based index ``gold``."""

    @abstractmethod
    def _answers(self, draft: DictionaryDraft, gold: Ints) -> list[bytes]:
        """Return the answers to train on, which are also the only ones accepted."""

    def _attempt(self, rows: Ints, number: int) -> DictionaryDraft:
        return self._draft(draws_of(self.key, rows, self.width, number))

    def _counted(self, draft: DictionaryDraft, gold: Ints) -> Ints:
        return self.count_tokens([text.decode() for text in self._prompts(draft, gold)])

    def build(self, start: int, stop: int) -> pa.Table:
        prompts: list[bytes] = []
        answers: list[bytes] = []
        numbers: dict[str, list[Ints]] = {"position": [], "units": [], "prompt_tokens": []}
        for at in range(start, stop, self.block_rows):
            rows = np.arange(at, min(at + self.block_rows, stop))
            draft = settle(rows, self._attempt, self._measure, self.unfit, self.remedy)
            gold = self.positions.of(rows, draft.units)
            prompts += self._prompts(draft, gold)
            answers += self._answers(draft, gold)
            numbers["position"].append(gold + 1)
            numbers["units"].append(draft.units)
            numbers["prompt_tokens"].append(draft.tokens)
        ids = pa.array([f"row-{row:07d}" for row in range(start, stop)], pa.string())
        answer = strings(answers)
        return examples(
            {
                "example_id": ids,
                "question_id": ids,
                **{name: pa.array(np.concatenate(parts).astype(np.int32)) for name, parts in numbers.items()},
                "prompt": strings(prompts),
                "answer": answer,
                "references": pa.ListArray.from_arrays(pa.array(np.arange(stop - start + 1, dtype=np.int32)), answer),
            }
        )
