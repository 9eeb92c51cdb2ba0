"""From examples to token ids: the order in which they are asked, the chat template, the length check.

The order is (question, position): the distractors of one question are the same at every gold position, so its prompts
share a prefix up to the smaller gold position, and neighbours find that prefix in the engine's cache (27 % of the
prefill of MDQA at five positions).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.models.chat import Prompt, conversation
from kvray.tasks.base import Task

ROUNDING = 64
"""An engine's length is a multiple of this, so that almost equal sweeps give equal engines."""
_BATCH = 256


@dataclass(frozen=True)
class Decoding:
    """How answers are written: greedily, until ``max_tokens`` or one of ``stop``."""

    max_tokens: int
    stop: tuple[str, ...]


def decoding(task: Task) -> Decoding:
    """Return how a task wants its answers written."""
    return Decoding(task.MAX_OUTPUT_TOKENS, task.STOP)


def ask_order(examples: pa.Table) -> pa.Table:
    """Return examples in the order in which they are asked and stored: by question, gold position, id."""
    keys = [("question_id", "ascending"), ("position", "ascending"), ("example_id", "ascending")]
    return examples.take(pc.sort_indices(examples, sort_keys=keys)).combine_chunks()


def encode(tokenizer: Any, prompts: Sequence[Prompt]) -> list[NDArray[np.int32]]:
    """Return the token ids of user messages, by the tokenizer's own chat template with its generation prompt.

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


def fits(prompt: NDArray[np.int32], max_tokens: int, limit: int) -> bool:
    """Return whether a prompt and the longest answer fit into ``limit`` tokens.

    vLLM would refuse the whole call for one prompt that does not, so this is asked first.
    """
    return len(prompt) + max_tokens <= limit


def engine_length(needed: Iterable[int], limit: int) -> int:
    """Return the length an engine is made for: the longest request (prompt and answer), rounded up, at most ``limit``.

    An engine made for the model's own length would reserve, and on a GPU profile, far more than is asked.
    """
    longest = max(needed, default=ROUNDING)
    return min(-(-longest // ROUNDING) * ROUNDING, limit)
