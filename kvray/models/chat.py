"""Examples as chat messages: one user message each, or a chat whose earlier messages are the example's history."""

import json
from collections.abc import Sequence

import pyarrow as pa

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}
Prompt = str | list[Message]  # one user message, or a chat that ends in one


def conversation(prompt: Prompt, system: str | None = None) -> list[Message]:
    """Return a prompt as messages; ``system`` is the first one, unless the chat has a system message of its own."""
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    first = [{"role": "system", "content": system}] if system and chat[0]["role"] != "system" else []
    return [*first, *chat]


def answered(prompt: Prompt, answer: str, system: str | None = None) -> list[Message]:
    """Return a prompt with its answer as messages; see :func:`conversation`."""
    return [*conversation(prompt, system), {"role": "assistant", "content": answer}]


def prompts_of(examples: pa.Table) -> list[Prompt]:
    """Return the prompts of a table of examples, each with its history if it has one."""
    prompts: list[Prompt] = examples["prompt"].to_pylist()
    if "history" not in examples.column_names:
        return prompts
    earlier = examples["history"].to_pylist()
    return [
        [*json.loads(before), *conversation(prompt)] if before else prompt
        for before, prompt in zip(earlier, prompts, strict=True)
    ]


def plain_text(prompts: Sequence[Prompt]) -> list[str]:
    """Return the text of each prompt, its messages joined, for counting without a chat template."""
    return ["\n".join(message["content"] for message in conversation(prompt)) for prompt in prompts]


def json_lines(examples: pa.Table, system: str | None = None, further: Sequence[str] = ()) -> bytes:
    """Return examples (columns ``prompt``, ``answer``) as JSON lines, ``{"messages": [user, assistant]}``.

    Chats also have a column ``history``. ``system`` starts each line that has no system message of its own;
    ``further`` names columns to add beside the messages.
    """
    lines = []
    for prompt, row in zip(prompts_of(examples), examples.select(["answer", *further]).to_pylist(), strict=True):
        chat = answered(prompt, row.pop("answer"), system)
        lines.append(json.dumps({"messages": chat, **row}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()
