"""What a cell asks, row by row, and how the replies become rows of its table.

Examples are asked by (question, position): a question has the same distractors at every gold position, so its prompts
share a prefix that the engine finds in its cache (27 % of the prefill of MDQA at five positions).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kvray.evaluate.engines.base import TOO_LONG, Reply, Request, too_long
from kvray.models.chat import asked_of, closed, conversation
from kvray.models.tokenizer import chat_tokens
from kvray.store.schemas import ANSWERS_SCHEMA, WRITING_SCHEMA
from kvray.tasks.base import CountTokens, Task

ROUNDING = 64
"""An engine's length is a multiple of this, so that almost equal sweeps give equal engines."""
NO_TOKENS = np.empty(0, np.int32)
_COPIED = ("example_id", "question_id", "position", "units", "length", "depth", "subtask", "condition", "references")
_REPLY = ("prompt_tokens", "cached_tokens", "output_tokens", "answer", "finish_reason")
_MEASURED = ("finish_reason", "prompt_tokens", "output_tokens", "cached_tokens", "score")
_INFO = b"kvray"
_LONGEST = 16
"""Rows that are encoded to find the longest of a question set, of those with the most tokens and characters each."""

Replies = Sequence[Sequence[Reply]]
"""Per row, a reply to each of its requests."""


class Questions(ABC):
    """What one cell or several cells ask.

    ``keys`` are what a stored chunk must hold in its column :attr:`KEY`, per row in asking order; ``requests`` are
    those of prepared rows to the base model, none where a row does not fit the model.
    """

    SCHEMA: ClassVar[pa.Schema] = ANSWERS_SCHEMA
    KEY: ClassVar[str] = "example_id"

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.requests: dict[int, Sequence[Any]] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def prepare(self, rows: Iterable[int], tokenizer: Any | None, limit: int) -> None:
        """Make the requests of rows that have none yet; KvrayError if the model cannot be asked this.

        ``limit`` is the tokens of prompt and answer that the model takes; without a tokenizer requests are texts.
        """
        absent = [row for row in rows if row not in self.requests]
        self.requests |= zip(absent, self._make(absent, tokenizer, limit), strict=True)

    def needed(self, rows: Iterable[int]) -> int:
        """Return the tokens, prompt and answer, of the longest request of prepared rows; 0 if there is none."""
        return max(
            (len(request.tokens) + request.max_tokens for row in rows for request in self.requests[row]), default=0
        )

    def longest(self, tokenizer: Any, limit: int) -> int:
        """Return about how many tokens the longest request will have, at most ``limit``; 0 if that is unknown."""
        return 0

    def name(self, row: int) -> str:
        return f"example {self.keys[row]}"

    def table(self, rows: range, replies: Replies, labels: Mapping[str, Any], info: Mapping[str, Any]) -> pa.Table:
        """Return the table of one chunk; CellError if the replies cannot be scored.

        ``labels`` are columns equal in all rows, ``info`` (seconds, engine) goes to the file; other columns are null.
        """
        columns, measured = self.columns(rows, replies)

        def array(field: pa.Field) -> pa.Array:
            column = columns.get(field.name, [labels.get(field.name)] * len(rows))
            return column.cast(field.type) if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)

        table = pa.table([array(field) for field in self.SCHEMA], schema=self.SCHEMA)
        # lm_eval measures in numpy's types.
        text = json.dumps({**info, **measured}, sort_keys=True, default=lambda value: value.tolist())
        return table.replace_schema_metadata({_INFO: text})

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Return an artefact's measurements for its manifest: tokens of prompts run, seconds without starts."""
        infos = [info_of(table) for table in tables]
        names = [name for name in _MEASURED if name in self.SCHEMA.names]
        answers = pa.concat_tables([table.select(names).replace_schema_metadata(None) for table in tables])
        run = answers.filter(pc.not_equal(answers["finish_reason"], TOO_LONG))
        engines = {json.dumps(info["engine"], sort_keys=True): info["engine"] for info in infos if "engine" in info}
        measured = {
            "rows": answers.num_rows,
            "too_long": answers.num_rows - run.num_rows,
            "prompt_tokens": pc.sum(run["prompt_tokens"]).as_py() or 0,
            "output_tokens": pc.sum(run["output_tokens"]).as_py() or 0,
            "seconds": round(sum(info.get("seconds", 0.0) for info in infos), 3),
            "engines": list(engines.values()),
        }
        if "score" in names:  # the accuracy is None if no row was run
            cached_tokens = pc.sum(answers["cached_tokens"]).as_py() or 0
            measured |= {"accuracy": pc.mean(answers["score"]).as_py(), "cached_tokens": cached_tokens}
        return measured

    @abstractmethod
    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[Sequence[Request]]:
        """Yield the requests of each row."""

    @abstractmethod
    def columns(self, rows: range, replies: Replies) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a chunk's columns (those that the schema lacks are left out) and what else goes into its file."""


class Prompts(Questions):
    """Questions of one prompt each, encoded by the chat template."""

    def __init__(self, keys: Sequence[str], prompts: pa.Table, like: Request) -> None:
        """Take a key per row, prompts (columns as :func:`asked_of` reads them), and what requests have in common."""
        super().__init__(keys)
        self._prompts = prompts
        self._like = like
        self._too_long: dict[int, int] = {}

    def _make(self, rows: Sequence[int], tokenizer: Any | None, limit: int) -> Iterator[list[Request]]:
        prompts = asked_of(self._prompts.take(pa.array(rows, pa.int64())))
        if tokenizer is None:
            yield from (
                [replace(self._like_of(row), text=closed(prompt))] for row, prompt in zip(rows, prompts, strict=True)
            )
            return
        encoded = chat_tokens(tokenizer, list(map(conversation, prompts)), prompt=True)
        for row, tokens in zip(rows, encoded, strict=True):
            # vLLM would refuse the whole call for one prompt that does not fit with its longest answer.
            like = self._like_of(row)
            fits = len(tokens) + like.max_tokens <= limit
            if not fits:
                self._too_long[row] = len(tokens)
            yield [replace(like, tokens=np.asarray(tokens, np.int32))] if fits else []

    def longest(self, tokenizer: Any, limit: int) -> int:
        """Return the tokens of the longest among the rows that look longest, ``limit`` if one of these does not fit.

        Looks are the characters of prompts, and the tokens of their user messages where they are counted already;
        what the template adds is seen on these rows.
        """
        looks = [pc.utf8_length(self._prompts["prompt"]).to_numpy()]
        for name, size in (("history", pc.utf8_length), ("prompt_tokens", lambda column: column)):
            if name in self._prompts.column_names:
                looks.append(pc.fill_null(size(self._prompts[name]), 0).to_numpy())
        rows = np.unique(np.concatenate([np.argsort(look, kind="stable")[-_LONGEST:] for look in looks])).tolist()
        self.prepare(rows, tokenizer, limit)
        return self.needed(rows) if all(self.requests[row] for row in rows) else limit

    def _like_of(self, row: int) -> Request:
        """Return a request with all that a row's has but the prompt."""
        return self._like

    def _replies(self, rows: range, replies: Replies) -> list[Reply]:
        return [given[0] if given else too_long(self._too_long[row]) for row, given in zip(rows, replies, strict=True)]


class DatasetQuestions(Prompts):
    """The examples of a dataset in the store, scored by their task."""

    def __init__(self, examples: pa.Table, task: Task, system: str | None = None) -> None:
        """Take a whole dataset, in any order; ``system`` precedes each prompt, for an engine that reads text."""
        self._examples = examples = ask_order(examples)
        like = Request(NO_TOKENS, system=system, max_tokens=task.MAX_OUTPUT_TOKENS, stop=task.STOP)
        super().__init__(examples["example_id"].to_pylist(), examples, like)
        self._subtasks: list[str | None] = examples["subtask"].to_pylist()
        # Of one subtask: how an answer is scored, and how long it may be.
        self._tasks = {subtask: task.narrowed(subtask) for subtask in set(self._subtasks)}
        self._task = task

    def _like_of(self, row: int) -> Request:
        return replace(self._like, max_tokens=self._tasks[self._subtasks[row]].max_output_tokens)

    def columns(self, rows: range, replies: Replies) -> tuple[dict[str, Any], dict[str, Any]]:
        examples, given = self._examples.slice(rows.start, len(rows)), self._replies(rows, replies)
        tasks = [self._tasks[subtask] for subtask in examples["subtask"].to_pylist()]
        answered = list(zip(tasks, [reply.answer for reply in given], examples["references"].to_pylist(), strict=True))
        columns = {name: examples[name] for name in _COPIED} | reply_columns(given)
        # A server does not count a prompt that it did not run.
        counts = examples["prompt_tokens"].to_pylist()
        columns["prompt_tokens"] = [reply.prompt_tokens or count for reply, count in zip(given, counts, strict=True)]
        columns["score"] = [
            None if answer is None else float(task.score(answer, accepted)) for task, answer, accepted in answered
        ]
        columns["outcome"] = [
            None if answer is None else task.outcome(answer, accepted) for task, answer, accepted in answered
        ]
        worked = zip(columns["answer"], examples["answer"].to_pylist(), strict=True)
        told = [None if answer is None else self._task.reasoning(answer, example) for answer, example in worked]
        columns["coverage"], columns["early"] = ([one and one[at] for one in told] for at in (0, 1))
        return columns, {}

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        """Add what the task measures, and its unit, for readers that do not know it (:mod:`kvray.results.profile`)."""
        units = pc.unique(self._examples["units"]).to_pylist()
        return {**super().summary(tables), "measures": self._task.measures(units), "unit": self._task.UNIT}


class WritingPrompts(Prompts):
    """What a task asks its writer (:class:`~kvray.planning.artefacts.WritingJob`), which writes a part of a dataset."""

    SCHEMA = WRITING_SCHEMA
    KEY = "prompt"

    def __init__(self, task: Task, count_tokens: CountTokens) -> None:
        """Read the task's sources; KvrayError if they do not hold what is to be asked."""
        prompts = task.to_write(count_tokens)
        like = Request(NO_TOKENS, max_tokens=task.WRITING_TOKENS)
        super().__init__(prompts, pa.table({"prompt": pa.array(prompts, pa.string())}), like)

    def name(self, row: int) -> str:
        return f"prompt {row}"

    def columns(self, rows: range, replies: Replies) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the texts of a chunk; empty where a prompt did not fit."""
        columns = reply_columns(self._replies(rows, replies))
        columns |= {"index": list(rows), "prompt": self.keys[rows.start : rows.stop]}
        columns["text"] = [answer or "" for answer in columns["answer"]]
        return columns, {}

    def summary(self, tables: Sequence[pa.Table]) -> dict[str, Any]:
        cut_off = sum(pc.sum(pc.equal(table["finish_reason"], "length")).as_py() or 0 for table in tables)
        return super().summary(tables) | {"cut_off": cut_off}


def reply_columns(replies: Sequence[Reply]) -> dict[str, Any]:
    """Return the columns of replies: tokens, answer and how it ended."""
    return {name: [getattr(reply, name) for reply in replies] for name in _REPLY}


def info_of(table: pa.Table) -> dict[str, Any]:
    """Return the measurements kept in a chunk's file."""
    return dict(json.loads((table.schema.metadata or {}).get(_INFO, b"{}")))


def ask_order(examples: pa.Table) -> pa.Table:
    """Return examples in the order in which they are asked and stored: by question, gold position, id."""
    keys = [("question_id", "ascending"), ("position", "ascending"), ("example_id", "ascending")]
    return examples.take(pc.sort_indices(examples, sort_keys=keys)).combine_chunks()


def engine_length(needed: Iterable[int], limit: int) -> int:
    """Return an engine's length: the longest request, rounded up, at most ``limit``. More would waste memory."""
    longest = max(needed, default=ROUNDING)
    return min(-(-longest // ROUNDING) * ROUNDING, limit)
