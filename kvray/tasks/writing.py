"""What a language model writes for a task: how many replies are requested, how they are read, and which are used.

A task with a writer (:meth:`kvray.tasks.base.Task.writer`) requests more replies than it needs and skips, in order,
those that it cannot use, so that its examples are a function of the replies alone.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import pyarrow as pa

from kvray.errors import InputError

_T = TypeVar("_T")
_MARKS = "*_#>` \t"
"""Markup that chat models put around the name and the text of a field."""


def asked(needed: int, surplus: float) -> int:
    """Return how many prompts to send for ``needed`` usable replies; ``surplus`` 0.5 sends half as many again."""
    return math.ceil(needed * (1 + surplus))


def texts(writing: pa.Table) -> list[str]:
    """Return the replies in the order of the prompts; empty, so unusable, where one was cut off or not requested."""
    ordered = writing.sort_by("index")
    pairs = zip(ordered["text"].to_pylist(), ordered["finish_reason"].to_pylist(), strict=True)
    return [text if reason == "stop" else "" for text, reason in pairs]


def fields(reply: str, names: Sequence[str]) -> list[str] | None:
    """Return the texts of a reply's fields (``Question: …``, ``Answer: …``), each as one line.

    A field begins at a line with its name and a colon, in bold or not, and ends at the next field. What stands before
    or after them is skipped. None if a field is missing, empty, or not in its order.
    """
    header = re.compile(rf"^[{_MARKS}-]*({'|'.join(map(re.escape, names))})[{_MARKS}]*:", re.IGNORECASE | re.MULTILINE)
    found = list(header.finditer(reply))[: len(names) + 1]
    if [match[1].lower() for match in found[: len(names)]] != [name.lower() for name in names]:
        return None
    ends = [*(match.start() for match in found[1:]), len(reply)]
    texts = [
        " ".join(reply[match.end() : end].split()).strip(_MARKS)
        for match, end in zip(found[: len(names)], ends, strict=False)
    ]
    return texts if all(texts) else None


def choose(
    replies: Sequence[str],
    needed: int,
    read: Callable[[int, str], _T | None],
    *,
    writer: str | None,
    what: str,
    advice: str = "Ask for more (writer_surplus) or name a model that keeps to the form asked for",
) -> list[_T]:
    """Return the content of the first ``needed`` usable replies; an InputError with both numbers if fewer are usable.

    ``read`` takes a reply's number and text and returns its content, None if it cannot be used. The error names
    ``writer``, the model, and ``what``, the content ("fine-grained questions"); in its ``advice``, ``{usable}`` stands
    for how many there are.
    """
    contents = (read(number, reply) for number, reply in enumerate(replies))
    usable = list(islice((content for content in contents if content is not None), needed))
    if len(usable) < needed:
        raise InputError(
            f"{what}: {writer} wrote {len(usable)} that can be used, in {len(replies)} replies; {needed} are needed. "
            + advice.format(usable=len(usable))
        )
    return usable
