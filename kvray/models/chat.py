"""Examples as chat messages, and as JSON lines for fine-tuning APIs and other trainers."""

import json
from collections.abc import Sequence

import pyarrow as pa


def messages(prompt: str, answer: str, system: str | None = None) -> list[dict[str, str]]:
    """Return an example as chat messages: an optional system message, the prompt, the answer."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def json_lines(examples: pa.Table, system: str | None = None, further: Sequence[str] = ()) -> bytes:
    """Return examples (columns ``prompt``, ``answer``) as JSON lines, ``{"messages": [user, assistant]}``.

    ``system`` is a first message of each line, if any; ``further`` names columns to add beside the messages.
    """
    lines = []
    for row in examples.select(["prompt", "answer", *further]).to_pylist():
        chat = messages(row.pop("prompt"), row.pop("answer"), system)
        lines.append(json.dumps({"messages": chat, **row}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()
