"""Counts the tokens of a task's rows, with the base model's tokenizer and chat template.

Plans need them to tell which rows a mixture matched in tokens reads, and whether prompts fit the model. Large datasets
are sampled; the sample depends on the task alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jinja2 import TemplateSyntaxError
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.models.chat import ChatTemplate, Prompt, answered, conversation, prompts_of
from kvray.models.files import ModelFiles
from kvray.models.reference import BaseModelRef, files_of
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.tasks.base import Context, CountTokens, Task

Counts = NDArray[np.int64]

WHOLE_ROWS = 64  # a dataset of no more rows, nor more tokens than MOST_TOKENS, is counted whole
MOST_ROWS = 320  # largest sample
MOST_TOKENS = 160_000  # a sample ends after these, so that a plan takes seconds; several of the longest prompts fit
PRECISION = 0.01  # relative standard error of the mean length at which a sample is large enough
_BATCH = 8  # rows counted at once, at least
_WHOLE_BATCH = 64  # consecutive rows made at once, where all are counted


def counting(base: BaseModelRef) -> Counting | None:
    """Return the counter of a base model, None if its tokenizer is not available.

    Raises InputError if the tokenizer cannot be read or has no chat template.
    """
    if files_of(base.tokenizer or base) is None:
        return None
    if base.api:
        # An API does not publish its template, so the plain texts are counted.
        return Counting(token_counter(base))
    files = files_of(base)
    if files is None:
        return None
    template = files.chat_template
    if template is None:
        raise InputError(
            f"the tokenizer of {base.name} has no chat template, by which kvray trains and asks; expected "
            "chat_template.jinja, or chat_template in tokenizer_config.json: that of a chat or instruct model, say"
        )
    return Counting(token_counter(base), _Chat(token_counter(replace(base, tokenizer=None)), files, template))


def measure(task: Task, context: Context, rows: int, counted: Counting, whole: bool = False) -> Lengths:
    """Count the tokens of a task's ``rows``: of all if they are few or ``whole``, else of enough for a precise mean.

    Raises InputError if the rows cannot be made or the template refuses them.
    """
    made: dict[int, tuple[int, ...]] = {}
    every: pa.Table | None = None
    for batch in _consecutive(rows) if whole else _spread(rows, task.per_row()):
        if not whole and every is None and made and _all_needed([each for *_, each, _ in made.values()], rows):
            every = task.build(0, rows, context)  # at once, far faster than row by row
        if every is not None:
            table = every.take(batch)
        else:
            runs = [(batch[0], batch[-1] + 1)] if whole else [(row, row + 1) for row in batch]
            table = pa.concat_tables([task.build(*run, context) for run in runs])
        plain = np.asarray(table["prompt_tokens"].to_numpy(), np.int64)
        asked, trained = counted.count(plain, prompts_of(table), table["answer"].to_pylist(), check=not made)
        if "answer_prefix" in table.column_names:  # the beginning of the answer is asked with
            asked = asked + counted.texts(
                [f" {begun}" if begun else "" for begun in table["answer_prefix"].to_pylist()]
            )
        written = [task.narrowed(subtask).max_output_tokens for subtask in table["subtask"].to_pylist()]
        made |= dict(zip(batch, zip(plain, asked, trained, written, strict=True), strict=True))
        if not whole and _enough(np.array([each for *_, each, _ in made.values()]), rows):
            break
    # In the order of the rows: which ones a mixture keeps depends on it.
    plain, asked, trained, most = np.array([made[row] for row in sorted(made)], np.int64).reshape(-1, 4).T
    return Lengths(rows, plain, asked, trained, written=most)


def estimated(rows: int, tokens: int) -> Lengths:
    """Return lengths for rows of about ``tokens`` each (0: unknown) that cannot be counted."""
    each = np.full(min(rows, 1), tokens, np.int64)
    return Lengths(rows, each, each, each, real=False)


def _enough(lengths: Counts, rows: int) -> bool:
    number, total = len(lengths), int(lengths.sum())
    if total >= MOST_TOKENS or number >= MOST_ROWS:
        return True
    if rows <= WHOLE_ROWS or number < min(rows, WHOLE_ROWS // 2):
        return False
    return bool(lengths.std() <= PRECISION * lengths.mean() * number**0.5)


def _all_needed(lengths: Sequence[int], rows: int) -> bool:
    """Return whether :func:`_enough` will ask for every row, judged by the first ones."""
    return rows <= WHOLE_ROWS and sum(lengths) / len(lengths) * rows < MOST_TOKENS / 2


def _consecutive(rows: int) -> Iterator[Sequence[int]]:
    """Yield ``0 … rows - 1`` in batches."""
    return (range(start, min(start + _WHOLE_BATCH, rows)) for start in range(0, rows, _WHOLE_BATCH))


def _spread(rows: int, per_question: int) -> Iterator[Sequence[int]]:
    """Yield batches of rows in an order of which every prefix is spread over questions and over their conditions.

    The ``per_question`` consecutive rows of a question share its texts, so one row each of several questions tells more
    than all rows of one. A batch has each condition (position, length, depth) equally often, unless these are many.
    """
    each = per_question if rows % per_question == 0 else 1
    questions, conditions = _evenly(rows // each), _evenly(each)
    again = math.lcm(len(questions), each)
    size = -(-_BATCH // each) * each if each <= MOST_ROWS else _BATCH
    for start in range(0, rows, size):
        # Both lists in turn, side by side; shifted by one where that would begin again, until every pair has come.
        turns = range(start, min(start + size, rows))
        yield [questions[n % len(questions)] * each + conditions[(n + n // again) % each] for n in turns]


def _evenly(count: int) -> list[int]:
    """Return ``0 … count - 1`` in an order of which every prefix is spread over the whole range."""
    golden = (5**0.5 - 1) / 2
    return [int(place) for place in np.argsort(np.argsort(np.arange(count) * golden % 1.0, kind="stable"))]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of a dataset; arrays have shape ``(counted rows,)``."""

    rows: int  # of the whole dataset
    prompts: Counts  # of the user message alone, as its ``prompt_tokens``
    asked: Counts  # as evaluation sends it, with the chat template
    trained: Counts  # as training reads it, with the template and the answer
    real: bool = True  # False for a rough estimate instead of counted rows
    written: Counts | None = None  # most tokens of each row's answer; None: of every row the task's own most

    @property
    def whole(self) -> bool:
        """Whether every row was counted."""
        return self.real and len(self.prompts) == self.rows

    def total(self, counts: Counts) -> int:
        """Return the tokens of all rows, exact if every row was counted."""
        return round(float(counts.mean()) * self.rows) if len(counts) else 0


class Counting:
    """Counts rows as asked and as trained on; ``chat`` is None for a model behind an API, whose template is unknown."""

    def __init__(self, texts: CountTokens, chat: _Chat | None = None) -> None:
        self.texts = texts
        self._chat = chat
        # Tokens that the template adds to each prompt and to each row; None if unknown or not constant.
        self._added: tuple[int, int] | None = None

    def count(
        self, plain: Counts, prompts: Sequence[Prompt], answers: Sequence[str], check: bool
    ) -> tuple[Counts, Counts]:
        """Return the tokens of rows as they are asked, and as they are trained on, from those of the prompts alone.

        Most templates add a constant number of special tokens, with which no text can merge: then that number is added
        to the counts of the texts. ``check`` tests this on a dataset's first rows; if it fails, every row is rendered.
        """
        replies = self.texts(answers)
        if self._chat is None:
            return plain, plain + replies
        # What the template adds to a chat depends on its number of messages.
        single = all(isinstance(prompt, str) for prompt in prompts)
        if self._added is not None and not check and single:
            return plain + self._added[0], plain + replies + self._added[1]
        asked, trained = self._chat.asked(prompts), self._chat.trained(prompts, answers)
        if check:
            more, most = np.unique(asked - plain), np.unique(trained - plain - replies)
            # Counts can be added only if the data are counted by the template's own tokenizer.
            alike = self.texts is self._chat.counter and single and more.size == most.size == 1
            self._added = (int(more[0]), int(most[0])) if alike else None
        return asked, trained


class _Chat:
    """A tokenizer with its chat template, equal to :mod:`kvray.finetune.encode` but without importing transformers."""

    def __init__(self, counter: TokenCounter, files: ModelFiles, template: str) -> None:
        special = files.special_tokens
        self.counter = counter
        try:
            self._render = ChatTemplate(template, special)
        except TemplateSyntaxError as error:
            raise InputError(f"the base model's chat template cannot be read: {error}") from error
        own = counter.tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
        self._ends = {*files.end_ids, own} - {None}

    def asked(self, prompts: Sequence[Prompt]) -> Counts:
        return self.counter(self._worded([conversation(prompt) for prompt in prompts], True))

    def trained(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Counts:
        """Return the tokens of conversations up to the last end token; later ones are not trained on."""
        chats = [answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        counts = np.empty(len(chats), np.int64)
        encoded = self.counter.tokenizer.encode_batch_fast(self._worded(chats, False), add_special_tokens=False)
        for at, encoding in enumerate(encoded):
            ids = encoding.ids
            counts[at] = next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in self._ends), len(ids))
        return counts

    def _worded(self, chats: Sequence[Sequence[dict[str, str]]], prompt: bool) -> list[str]:
        try:
            return self._render(chats, prompt)
        except Exception as error:
            # A template is a program of the model's: it may raise anything, here as in training.
            raise InputError(f"the base model's chat template refuses a conversation: {error}") from error
