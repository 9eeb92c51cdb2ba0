"""What a cell asks, row by row, and how the replies become rows of its table.

Examples are asked by (question, position): a question has the same distractors at every gold position, so its prompts
share a prefix that the engine finds in its cache (27 % of the prefill of MDQA at five positions).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.evaluate import chunks
from kvray.evaluate.engines.base import Reply, Request, too_long
from kvray.models.chat import Prompt, conversation, prompts_of
from kvray.store.schemas import PREDICTIONS_SCHEMA
from kvray.tasks.base import Task

ROUNDING = 64
"""An engine's length is a multiple of this, so that almost equal sweeps give equal engines."""
NO_TOKENS = np.empty(0, np.int32)
_COPIED = ("example_id", "question_id", "position", "units", "length", "depth", "subtask", "condition", "references")
_BATCH = 256


class Questions(ABC):
    """What one cell or several cells ask.

    ``keys`` are what a stored chunk must hold in its column :attr:`KEY`, per row in asking order.
    """

    SCHEMA: ClassVar[pa.Schema] = PREDICTIONS_SCHEMA
    KEY: ClassVar[str] = "example_id"

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self._requests: dict[int, list[Request]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def prepare(self, rows: Iterable[int], tokenizer: Any | None, limit: int) -> None:
        """Make the requests of rows that have none yet; KvrayError if the model cannot be asked this.

        ``limit`` is the tokens of prompt and answer that the model takes; without a tokenizer requests are texts.
        """
        absent = [row for row in rows if row not in self._requests]
        self._requests |= zip(absent, self._make(absent, tokenizer, limit), strict=True)

    def requests(self, row: int) -> list[Request]:
        """Return a prepared row's requests to the base model; none where it does not fit the model."""
        return self._requests[row]

    def name(self, row: int) -> str:
        """Return the name of a row for messages."""
        return f"example {self.keys[row]}"

    @abstractmethod
    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[list[Request]]:
        """Yield the requests of each row."""

    @abstractmethod
    def table(
        self, rows: range, replies: Sequence[Sequence[Reply]], labels: Mapping[str, Any], info: Mapping[str, Any]
    ) -> pa.Table:
        """Return the table of one chunk; CellError if the replies cannot be scored.

        ``replies`` has one reply per request for each row, ``labels`` are columns that are the same in all rows, and
        ``info`` (seconds, engine) is kept in the chunk's file.
        """

    @abstractmethod
    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Return the measurements of a whole artefact, for its manifest, from the tables of its chunks."""


class Prompts(Questions):
    """Questions of one prompt each, encoded by the chat template."""

    def __init__(self, keys: Sequence[str], prompts: pa.Table, like: Request) -> None:
        """Take a key per row, prompts (with the ``history`` of chats), and a request with what all have in common."""
        super().__init__(keys)
        self._prompts = prompts
        self._like = like
        self._too_long: dict[int, int] = {}

    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[list[Request]]:
        prompts = prompts_of(self._prompts.take(pa.array(rows, pa.int64())))
        if tokenizer is None:
            yield from ([replace(self._like, text=prompt)] for prompt in prompts)
            return
        for row, tokens in zip(rows, encode(tokenizer, prompts), strict=True):
            # vLLM would refuse the whole call for one prompt that does not fit with its longest answer.
            fits = len(tokens) + self._like.max_tokens <= limit
            if not fits:
                self._too_long[row] = len(tokens)
            yield [replace(self._like, tokens=tokens)] if fits else []

    def _replies(self, rows: range, replies: Sequence[Sequence[Reply]]) -> list[Reply]:
        return [given[0] if given else too_long(self._too_long[row]) for row, given in zip(rows, replies, strict=True)]


class DatasetQuestions(Prompts):
    """The examples of a dataset in the store, scored by their task."""

    def __init__(self, examples: pa.Table, task: Task, system: str | None = None) -> None:
        """Take a whole dataset, in any order; ``system`` precedes each prompt, for an engine that reads text."""
        self._examples = examples = ask_order(examples)
        like = Request(NO_TOKENS, system=system, max_tokens=task.MAX_OUTPUT_TOKENS, stop=task.STOP)
        super().__init__(examples["example_id"].to_pylist(), examples, like)
        self._task = task

    def _replies(self, rows: range, replies: Sequence[Sequence[Reply]]) -> list[Reply]:
        counts = self._examples["prompt_tokens"]
        # A server does not count a prompt that it did not run.
        return [
            replace(reply, prompt_tokens=reply.prompt_tokens or counts[row].as_py())
            for row, reply in zip(rows, super()._replies(rows, replies), strict=True)
        ]

    def table(
        self, rows: range, replies: Sequence[Sequence[Reply]], labels: Mapping[str, Any], info: Mapping[str, Any]
    ) -> pa.Table:
        """Return the scored rows of a chunk."""
        examples, given = self._examples.slice(rows.start, len(rows)), self._replies(rows, replies)
        answered = list(zip([reply.answer for reply in given], examples["references"].to_pylist(), strict=True))
        score, outcome = self._task.score, self._task.outcome
        columns = {name: examples[name] for name in _COPIED} | chunks.reply_columns(given)
        columns["score"] = [None if answer is None else float(score(answer, accepted)) for answer, accepted in answered]
        columns["outcome"] = [None if answer is None else outcome(answer, accepted) for answer, accepted in answered]
        return chunks.with_info(self.SCHEMA, columns, labels, info)

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Return the totals and accuracy, with what the task measures and its units' name.

        Readers of the predictions then need not know the task (:mod:`kvray.results.profile`).
        """
        units = pc.unique(self._examples["units"]).to_pylist()
        return {**chunks.summarize(tables), "measures": self._task.measures(units), "unit": self._task.UNIT}


def ask_order(examples: pa.Table) -> pa.Table:
    """Return examples in the order in which they are asked and stored: by question, gold position, id."""
    keys = [("question_id", "ascending"), ("position", "ascending"), ("example_id", "ascending")]
    return examples.take(pc.sort_indices(examples, sort_keys=keys)).combine_chunks()


def encode(tokenizer: Any, prompts: Sequence[Prompt]) -> list[NDArray[np.int32]]:
    """Return the token ids of user messages, by the tokenizer's chat template with its generation prompt.

    Raises:
        InputError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {tokenizer.name_or_path} has no chat template; kvray trains and asks by it")
    encoded: list[NDArray[np.int32]] = []
    for start in range(0, len(prompts), _BATCH):
        users = [conversation(prompt) for prompt in prompts[start : start + _BATCH]]
        ids = tokenizer.apply_chat_template(users, add_generation_prompt=True, return_dict=True)["input_ids"]
        encoded += [np.asarray(row, np.int32) for row in ids]
    return encoded


def engine_length(needed: Iterable[int], limit: int) -> int:
    """Return an engine's length: the longest request (prompt and answer), rounded up, at most ``limit``.

    An engine made for the model's own length would reserve, and on a GPU profile, far more than is asked.
    """
    longest = max(needed, default=ROUNDING)
    return min(-(-longest // ROUNDING) * ROUNDING, limit)
