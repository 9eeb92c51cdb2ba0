"""Prompts and answers to token ids, by the tokenizer's own chat template, with the answer marked.

The prompt's ids are exactly what evaluation sends, so a finetune is trained on the very prefix it is later asked with.
The answer is what the template adds for the assistant, up to its end token: nothing behind that is ever generated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.models.chat import Prompt, answered, conversation
from kvray.models.tokenizer import chat_tokens

_SHOWN = 5


@dataclass(frozen=True)
class Encoded:
    """Token ids of rows, int32; ``answers``, ``(rows,)``, count the last ones: the answer and its end token."""

    ids: Sequence[NDArray[np.int32]]
    answers: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per row, prompt and answer; shape ``(rows,)``."""
        return np.fromiter(map(len, self.ids), np.int64, len(self))

    def take(self, indices: NDArray[np.int64]) -> Encoded:
        return Encoded([self.ids[index] for index in indices], self.answers[indices])


def join(parts: Sequence[Encoded]) -> Encoded:
    """Return the rows of all parts, in order."""
    return Encoded([ids for part in parts for ids in part.ids], np.concatenate([part.answers for part in parts]))


def encode(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    max_length: int | None = None,
    end_ids: Collection[int] = (),
) -> Encoded:
    """Encode prompts and answers for answer-only training.

    ``names`` name the rows in errors (None: by number); ``max_length`` limits the tokens of prompt and answer together;
    ``end_ids`` end an answer beside the tokenizer's own end token (a generation config may have more). Raises
    InputError if there is no chat template, it breaks the prefix property or never ends an answer, or rows are over
    ``max_length`` (they are named, never cut).
    """
    ends = {tokenizer.eos_token_id, *end_ids} - {None}
    names = names if names is not None else [f"row {i}" for i in range(len(prompts))]
    ids: list[NDArray[np.int32]] = []
    counts: list[int] = []
    prefixes = chat_tokens(tokenizer, list(map(conversation, prompts)), prompt=True)
    for name, prefix, chat in zip(names, prefixes, _whole(tokenizer, prompts, answers), strict=True):
        _check_prefix(prefix, chat, name, tokenizer)
        end = _end(chat, len(prefix), ends, name, tokenizer)
        ids.append(np.array(chat[:end], np.int32))
        counts.append(end - len(prefix))
    encoded = Encoded(ids, np.array(counts, np.int32))
    if max_length is not None:
        _check_lengths(encoded.lengths, names, max_length)
    return encoded


def count(
    tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str], *, end_ids: Collection[int] = ()
) -> NDArray[np.int64]:
    """Return tokens per row as :func:`encode` makes them, at half its cost; InputError without a usable template."""
    ends = {tokenizer.eos_token_id, *end_ids} - {None}
    chats = enumerate(_whole(tokenizer, prompts, answers))
    return np.array([_end(chat, 0, ends, f"row {row}", tokenizer) for row, chat in chats], np.int64)


def _whole(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> Iterator[list[int]]:
    chats = [answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return chat_tokens(tokenizer, chats, prompt=False)


def _check_prefix(prefix: list[int], full: list[int], name: str, tokenizer: Any) -> None:
    if full[: len(prefix)] == prefix:
        return
    pairs = zip(prefix, full, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(full), len(prefix)))
    raise InputError(
        f"{name}: the chat template of {tokenizer.name_or_path} breaks the prefix property: the prompt with its "
        f"generation prompt ({len(prefix)} tokens) is no prefix of prompt and answer ({len(full)} tokens); they "
        f"part at token {same}: {tokenizer.decode(prefix[same : same + 8])!r} against "
        f"{tokenizer.decode(full[same : same + 8])!r}. Training would not match evaluation; use a template whose "
        "assistant turn begins with its generation prompt."
    )


def _end(full: list[int], start: int, ends: set[int], name: str, tokenizer: Any) -> int:
    """Return where the answer's own end token ends: the last one, since what follows it is never trained on."""
    for at in range(len(full) - 1, start - 1, -1):
        if full[at] in ends:
            return at + 1
    raise InputError(
        f"{name}: the chat template of {tokenizer.name_or_path} does not end the assistant's message with an end "
        f"token ({tokenizer.convert_ids_to_tokens(sorted(ends))}), so a finetune would never learn to stop"
    )


def _check_lengths(lengths: NDArray[np.int64], names: Sequence[str], max_length: int) -> None:
    over = np.flatnonzero(lengths > max_length)
    if not len(over):
        return
    shown = ", ".join(f"{names[i]} ({lengths[i]} tokens)" for i in over[:_SHOWN])
    more = f" and {len(over) - _SHOWN} more" if len(over) > _SHOWN else ""
    raise InputError(
        f"{len(over)} of {len(lengths)} rows are longer than {max_length} tokens: {shown}{more}. Rows are never cut: "
        "make the task's prompts shorter, or raise finetune.max_length if the model's context allows it."
    )
