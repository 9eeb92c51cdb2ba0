"""How long the rows of a task are: real rows, made and counted by the base model's own tokenizer and chat template.

A plan needs it for two questions: which rows a mixture matched in tokens reads, and whether prompts fit the
model. A sample is enough for datasets whose rows are many, and it is a function of the task alone, as its rows are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.models.chat import Prompt, answered, conversation, prompts_of
from kvray.models.chat_template import ChatTemplate
from kvray.models.files import ModelFiles
from kvray.models.reference import BaseModelRef, files_of
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.tasks.base import Context, CountTokens, Task

Counts = NDArray[np.int64]

WHOLE_ROWS = 64
"""Rows up to which a dataset is counted whole, if it is no more than :data:`MOST_TOKENS`."""
MOST_ROWS = 320
"""Rows of a sample at most."""
MOST_TOKENS = 60_000
"""Tokens after which a sample ends: enough of the longest prompts, and a plan stays a matter of seconds."""
PRECISION = 0.01
"""Standard error of the mean length at which a sample is large enough, as a share of the mean."""
_BLOCK = 8
"""Neighbouring rows that are made at once; blocks are spread over the dataset, whose order may follow its lengths."""


def counting(base: BaseModelRef) -> Counting | None:
    """Return what counts for a base model, None where its tokenizer is not at hand.

    Raises:
        InputError: the tokenizer cannot be read, or has no chat template.
    """
    files = files_of(base.tokenizer or base)
    if files is None:
        return None
    if base.api:
        # It keeps its template to itself: what is counted is the plain texts.
        return Counting(token_counter(base))
    files = files if base.tokenizer is None else files_of(base)
    if files is None:
        return None
    template = files.chat_template
    if template is None:
        raise InputError(
            f"the tokenizer of {base.name} has no chat template, by which kvray trains and asks; expected "
            "chat_template.jinja, or chat_template in tokenizer_config.json: that of a chat or instruct model, say"
        )
    return Counting(token_counter(base), _Chat(token_counter(replace(base, tokenizer=None)), files, template))


def measure(task: Task, context: Context, rows: int, counted: Counting) -> Lengths:
    """Count rows of a task: all of a small dataset, else as many as tell the mean length well enough.

    Args:
        task: whose rows.
        context: of the task.
        rows: how many it makes.
        counted: what counts.

    Raises:
        InputError: the rows cannot be made, or the template does not take them.
    """
    counts: dict[int, tuple[Counts, Counts, Counts]] = {}
    for block in _spread(-(-rows // _BLOCK)):
        table = task.build(block * _BLOCK, min((block + 1) * _BLOCK, rows), context)
        plain = np.asarray(table["prompt_tokens"].to_numpy(), np.int64)
        texts = prompts_of(table), table["answer"].to_pylist()
        counts[block] = plain, *counted.count(plain, *texts, check=not counts)
        if _enough(np.concatenate([trained for *_, trained in counts.values()]), rows):
            break
    # In the order of the rows: which of them a mixture keeps depends on it.
    return Lengths(
        rows, *(np.concatenate(each) for each in zip(*(counts[block] for block in sorted(counts)), strict=True))
    )


def estimated(rows: int, tokens: int) -> Lengths:
    """Return the lengths of rows of which only a rough size is known, 0 for not even that."""
    each = np.full(min(rows, 1), tokens, np.int64)
    return Lengths(rows, each, each, each, real=False)


def _enough(lengths: Counts, rows: int) -> bool:
    number, total = len(lengths), int(lengths.sum())
    if total >= MOST_TOKENS or number >= MOST_ROWS:
        return True
    if rows <= WHOLE_ROWS or number < min(rows, WHOLE_ROWS // 2):
        return False
    return bool(lengths.std() <= PRECISION * lengths.mean() * number**0.5)


def _spread(blocks: int) -> list[int]:
    """Return ``0 … blocks - 1`` such that whatever number of them is taken first, they are spread over all."""
    golden = (5**0.5 - 1) / 2
    order = np.argsort(np.arange(blocks) * golden % 1.0, kind="stable")
    places = np.empty(blocks, np.int64)
    places[order] = np.arange(blocks)
    return [int(place) for place in places]


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows of a dataset.

    Attributes:
        rows: how many rows the dataset has.
        prompts: of the counted rows: tokens of the user message alone, as its ``prompt_tokens``.
        asked: the same as evaluation sends them, with the chat template.
        trained: the same as training reads them, with the template and the answer.
        real: False for a rough size that stands in for counted rows.
    """

    rows: int
    prompts: Counts
    asked: Counts
    trained: Counts
    real: bool = True

    @property
    def whole(self) -> bool:
        """Whether every row was counted."""
        return self.real and len(self.prompts) == self.rows

    def total(self, counts: Counts) -> int:
        """Return the tokens of all rows: exact where every row was counted."""
        return round(float(counts.mean()) * self.rows) if len(counts) else 0


class Counting:
    """Counts rows as they are asked and as they are trained on.

    Args:
        texts: counts plain texts for the data.
        chat: counts conversations; None for a model behind an API, which keeps its template to itself.
    """

    def __init__(self, texts: CountTokens, chat: _Chat | None = None) -> None:
        self.texts = texts
        self._chat = chat
        self._added: tuple[int, int] | None = None
        """Tokens that the template adds to every prompt and to every row; None where it was not found to be so."""

    def count(
        self, plain: Counts, prompts: Sequence[Prompt], answers: Sequence[str], check: bool
    ) -> tuple[Counts, Counts]:
        """Return the tokens of rows as they are asked, and as they are trained on.

        A template mostly adds as many tokens to every row, in special tokens that no text can join. Then the counts of
        the texts and that number are enough; each dataset's first rows tell, and where it does not hold every row is
        worded and counted.

        Args:
            plain: tokens of the prompts alone.
            prompts: user messages, or chats.
            answers: what is trained on.
            check: find out what the template adds.
        """
        replies = self.texts(answers)
        if self._chat is None:
            return plain, plain + replies
        # What it adds to a chat depends on how many messages that has.
        single = all(isinstance(prompt, str) for prompt in prompts)
        if self._added is not None and not check and single:
            return plain + self._added[0], plain + replies + self._added[1]
        asked, trained = self._chat.asked(prompts), self._chat.trained(prompts, answers)
        if check:
            more, most = np.unique(asked - plain), np.unique(trained - plain - replies)
            alike = self._chat.counts_data(self.texts) and single and more.size == most.size == 1
            self._added = (int(more[0]), int(most[0])) if alike else None
        return asked, trained


class _Chat:
    """A tokenizer with its chat template, as :mod:`kvray.finetune.encode` uses it, without transformers' import."""

    def __init__(self, counter: TokenCounter, files: ModelFiles, template: str) -> None:
        special = files.special_tokens
        self._counter = counter
        self._render = ChatTemplate(template, special)
        own = counter.tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
        self._ends = {*files.end_ids, own} - {None}

    def counts_data(self, texts: CountTokens) -> bool:
        """Return whether the data are counted by this very tokenizer, so that their counts can be added to."""
        return texts is self._counter

    def asked(self, prompts: Sequence[Prompt]) -> Counts:
        """Return the tokens of user messages with what comes before an answer."""
        return self._counter(self._worded([conversation(prompt) for prompt in prompts], True))

    def trained(self, prompts: Sequence[Prompt], answers: Sequence[str]) -> Counts:
        """Return the tokens of conversations up to the last end token: what stands behind it is not trained on."""
        chats = [answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        counts = np.empty(len(chats), np.int64)
        encoded = self._counter.tokenizer.encode_batch_fast(self._worded(chats, False), add_special_tokens=False)
        for at, encoding in enumerate(encoded):
            ids = encoding.ids
            counts[at] = next((i + 1 for i in range(len(ids) - 1, -1, -1) if ids[i] in self._ends), len(ids))
        return counts

    def _worded(self, chats: Sequence[Sequence[dict[str, str]]], prompt: bool) -> list[str]:
        try:
            return self._render(chats, prompt)
        except Exception as error:
            # A template is a program of the model's: it may raise anything, and training would meet the same.
            raise InputError(f"the base model's chat template refuses a conversation: {error}") from error
