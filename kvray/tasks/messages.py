"""Data of your own: chats in the format of OpenAI's fine-tuning files, or pairs of prompt and answer.

A row has ``messages``, a list of ``{"role": "system" | "user" | "assistant", "content": "…"}`` that ends in an answer
of the assistant, or a prompt and an answer in two fields. What is trained on, and asked for, is the last answer, after
all messages before it (``turns: all`` makes an example of every answer). The parts ``split: train`` and ``split: test``
of one file share no prompt, so one file serves for both. Scorers normalise text as SQuAD does (Rajpurkar et al. 2016).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import AfterValidator

from kvray.errors import InputError
from kvray.models.chat import Message, conversation, plain_text
from kvray.store.schemas import CHAT_SCHEMA
from kvray.tasks import scorers
from kvray.tasks.base import Context, CountTokens, Task, recipe, register, runtime
from kvray.tasks.rng import key_of, shuffled
from kvray.tasks.rows import Example, table
from kvray.tasks.sources import read

ROLES = ("system", "user", "assistant")
_SCORERS = {"exact": scorers.exact, "contains": scorers.contains, "f1": scorers.f1}


@dataclass(frozen=True)
class Chat:
    """One example of a source: messages that end in the user's, and the assistant's answer.

    ``id`` is the first 12 digits of the sha256 of prompt and answer, with a number where these come again; ``first``,
    the sha256 of the messages before its row's last answer, identifies the row.
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str
    references: tuple[str, ...]
    first: str


def _place(source: str) -> str:
    return source if "://" in source else os.path.abspath(os.path.expanduser(source))


@register("messages")
class Messages(Task):
    """Chats or pairs of prompt and answer of your own, from a JSONL or Parquet file."""

    MAX_OUTPUT_TOKENS: ClassVar[int] = 256
    EXAMPLES: ClassVar[pa.Schema] = CHAT_SCHEMA

    task: Literal["messages"] = recipe("messages")
    source: Annotated[str, AfterValidator(_place)] = runtime(
        description="rows in .jsonl, .json, .parquet (compressed too): a path, a URL, s3://…, hf://datasets/ORG/NAME"
    )
    messages: str = recipe(
        "messages", description="field of a row that holds a chat: a list of {role: system, user or assistant, content}"
    )
    prompt: str = recipe("prompt", description="field that holds the prompt, in rows without a chat")
    answer: str = recipe("answer", description="field that holds the answer, in rows without a chat")
    references: str | None = recipe(
        None, description="field that holds the accepted answers, a text or a list; null for the answer alone"
    )
    turns: Literal["last", "all"] = recipe(
        "last", description="last: an example per chat, its last answer; all: one per answer, with all before it"
    )
    split: Literal["all", "train", "test"] = recipe("all", description="train and test share no row and no prompt")
    test_share: float = recipe(0.1, gt=0, lt=1, description="share of the different prompts that are of split test")
    rows: int | None = recipe(None, ge=1, description="examples, drawn by the seed; null for all, in the file's order")
    scorer: Literal["exact", "contains", "f1"] = recipe(
        "exact", description="exact: the answer is an accepted one; contains: it has one in it; f1: of words in common"
    )

    def sources(self) -> dict[str, str]:
        return {"source": read.digest(self.source)}

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Choose rows; an InputError if the file is unreadable, has too few, or one (named) that is no chat."""
        return Context(count_tokens, self.chosen())

    def with_rows(self, rows: int) -> Self:
        """Return the task as it is: its first examples are those of the file, not others that a draw would give."""
        return self

    def count(self, context: Context) -> int:
        return len(context.material)

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        chats: Sequence[Chat] = context.material[start:stop]
        counts = context.count_tokens(plain_text([list(chat.prompt) for chat in chats])).tolist()
        made = [
            Example(chat.prompt[-1]["content"], chat.answer, chat.references, example_id=chat.id, prompt_tokens=counted)
            for chat, counted in zip(chats, counts, strict=True)
        ]
        history = [json.dumps(chat.prompt[:-1], ensure_ascii=False) if chat.prompt[1:] else None for chat in chats]
        return table(made, context.count_tokens).append_column(
            CHAT_SCHEMA.field("history"), pa.array(history, pa.string())
        )

    def score(self, answer: str, references: Sequence[str]) -> float:
        """By the knob scorer: equal to an accepted answer, containing one, or F1 of their words, as SQuAD counts.

        Both sides are stripped of case, ASCII punctuation, articles and further white space, as its script does; every
        line counts. An accepted answer of punctuation alone is compared as it is, apart from its ends; that is ours.
        """
        return _SCORERS[self.scorer](answer, references)

    def overlaps(self, other: Task) -> str | None:
        if not isinstance(other, Messages):
            return None
        shared = {chat.first for chat in self.chosen()} & {chat.first for chat in other.chosen()}
        if not shared:
            return None
        return f"{len(shared)} of the same prompts; give one split: train and the other split: test"

    def chosen(self) -> list[Chat]:
        """Return the examples of the split, in order; an InputError as in :meth:`context`."""
        fields = (self.messages, self.prompt, self.answer, self.references)
        pool = list(_read(self.source, read.digest(self.source), fields, self.turns))
        if self.split != "all":
            # By content, not by number: rows with one prompt fall on one side, whatever their order in the file.
            prompts = sorted({chat.first for chat in pool})
            test = set(prompts[: max(1, round(self.test_share * len(prompts)))])
            pool = [chat for chat in pool if (chat.first in test) == (self.split == "test")]
        if self.rows is None:
            return pool
        if self.rows > len(pool):
            raise InputError(
                f"rows: found {self.rows}; expected at most {len(pool)}: {self.source} has no more of them"
            )
        return shuffled(pool, key_of("messages", self.VERSION, self.seed))[: self.rows]


@lru_cache(maxsize=8)
def _read(source: str, digest: str, fields: tuple[str, str, str, str | None], turns: str) -> tuple[Chat, ...]:
    """Read every example of a source, once per process for one content (``digest``)."""
    found: list[Chat] = []
    seen: dict[str, int] = {}
    for where, row in read.rows(source):
        chat, accepted = _chat(row, where, fields)
        ends = [at for at, message in enumerate(chat) if message["role"] == "assistant"]
        first = _digest(chat[:-1])
        for at in ends if turns == "all" else ends[-1:]:
            answer = chat[at]["content"]
            digest_ = _digest(chat[: at + 1])[:12]
            seen[digest_] = seen.get(digest_, 0) + 1
            name = digest_ if seen[digest_] == 1 else f"{digest_}-{seen[digest_]}"
            references = accepted if at == ends[-1] and accepted else (answer,)
            found.append(Chat(name, tuple(chat[:at]), answer, references, first))
    if not found:
        raise InputError(f"source: {source} has no row")
    return tuple(found)


def _digest(chat: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps(chat, ensure_ascii=False).encode()).hexdigest()


def _chat(
    row: Mapping[str, Any], where: str, fields: tuple[str, str, str, str | None]
) -> tuple[list[Message], tuple[str, ...]]:
    messages, prompt, answer, references = fields
    if messages in row:
        chat = list(_turns(row[messages], f"{where}: {messages}"))
    elif prompt in row and answer in row:
        chat = conversation(_text(row[prompt], f"{where}: {prompt}"))
        chat.append({"role": "assistant", "content": _text(row[answer], f"{where}: {answer}")})
    else:
        known = ", ".join(row) or "none"
        raise InputError(f"{where}: found the fields {known}; expected {messages}, or {prompt} and {answer}")
    accepted: Any = row.get(references) if references else ()
    accepted = (accepted,) if isinstance(accepted, str) else accepted
    if references and (not isinstance(accepted, list | tuple) or not accepted):
        raise InputError(f"{where}: {references}: found {accepted!r:.60}; expected a text or a list of texts")
    return chat, tuple(_text(each, f"{where}: {references}") for each in accepted)


def _turns(found: Any, where: str) -> Iterator[Message]:
    if not isinstance(found, list) or not all(isinstance(message, dict) for message in found):
        raise InputError(f"{where}: found {found!r:.60}; expected a list of messages with role and content")
    if not found:
        raise InputError(f"{where}: found no message; expected the user's and the assistant's")
    asked = False
    for number, message in enumerate(found, start=1):
        role = message.get("role")
        if role not in ROLES:
            raise InputError(f"{where}: message {number}: found the role {role!r}; expected {', '.join(ROLES)}")
        if role == "system" and number > 1:
            raise InputError(f"{where}: message {number}: found the role system; expected it in the first alone")
        if role == "assistant" and not asked:
            raise InputError(f"{where}: message {number}: found an answer; expected a message of the user before it")
        asked = role == "user"
        yield {"role": role, "content": _text(message.get("content"), f"{where}: message {number}: content")}
    if found[-1]["role"] != "assistant":
        raise InputError(f"{where}: found a last message of the {found[-1]['role']}; expected the assistant's answer")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: found {value!r:.60}; expected text that is not blank")
    return value
