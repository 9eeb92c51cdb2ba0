"""Text as numpy: rows of padded 8-byte words, squeezed into an Arrow string column without a Python string per word.

A prompt of several hundred integers costs a table look-up per integer instead of a format call; the padding is dropped
in one pass over the bytes. About fifty times faster than joining Python strings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

WORD_BYTES = 8

Words = NDArray[np.uint64]


def words(text: str, width: int | None = None) -> Words:
    """Return ASCII text as words, padded with zero bytes to ``width`` words (default: as many as it needs)."""
    data = text.encode("ascii")
    size = -(-len(data) // WORD_BYTES) if width is None else width
    if len(data) > size * WORD_BYTES:
        raise ValueError(f"{text!r} needs more than {size} words")
    return np.frombuffer(data.ljust(size * WORD_BYTES, b"\0"), np.uint64)


def integers(limit: int, left: str = "", right: str = "") -> Words:
    """Return one word per integer below ``limit``: its decimal digits between ``left`` and ``right``.

    Raises:
        ValueError: the longest needs more than 8 bytes.
    """
    if len(f"{left}{limit - 1}{right}") > WORD_BYTES:
        raise ValueError(f"{left}{limit - 1}{right} does not fit a word of {WORD_BYTES} bytes")
    return np.array([f"{left}{n}{right}" for n in range(limit)], f"S{WORD_BYTES}").view(np.uint64)


def weave(rows: int, parts: Sequence[str | Words]) -> Words:
    """Lay parts side by side: a text for every row, or words of shape ``(rows,)`` or ``(rows, width)``."""
    columns = []
    for part in parts:
        if isinstance(part, str):
            columns.append(np.broadcast_to(words(part), (rows, words(part).size)))
        else:
            columns.append(part.reshape(rows, -1))
    return np.concatenate(columns, axis=1)


def squeeze(canvas: Words) -> list[bytes]:
    """Return the text of each row of a ``(rows, width)`` canvas as UTF-8 bytes, padding dropped."""
    return [row.tobytes().translate(None, b"\0") for row in canvas]


def strings(texts: Sequence[bytes]) -> pa.Array:
    """Return an Arrow string array over the concatenation of ``texts``.

    Raises:
        OverflowError: they hold 2 GiB or more in all.
    """
    lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    if offsets[-1] >= 2**31:
        raise OverflowError(f"{offsets[-1]} bytes of text in one column of one shard; Arrow strings end at 2 GiB")
    return pa.StringArray.from_buffers(
        len(texts), pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(b"".join(texts))
    )
