"""Counter-based random numbers: every draw is a pure function of (key, stream, row, draw).

numpy's Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a block cipher over a
counter. Row ``r`` owns the counters ``r * width / 4 ...``, so any worker makes any row, alone or in a batch, and gets
the same bytes. numpy guarantees the stream of a bit generator across versions, which it does not for ``Generator``.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def key_of(*parts: str | int) -> int:
    """Return the 128-bit Philox key of a tuple of names and integers (sha256 of its JSON)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def draws(key: int, start: int, stop: int, width: int, stream: int = 0) -> Words:
    """Return random words for rows ``[start, stop)``.

    Args:
        key: from :func:`key_of`.
        start: first row, >= 0.
        stop: one past the last row.
        width: words per row; must be constant for one (key, stream), since a row's counters start at row * width / 4.
        stream: an independent sequence for the same rows (a redraw, another purpose).

    Returns:
        uint64 array of shape ``(stop - start, width)``.
    """
    padded = -(-width // 4) * 4
    # The counter is 256 bits: the low 192 count blocks, the top 64 name the stream.
    counter = start * (padded // 4) + (stream << 192)
    words = np.random.Philox(key=key, counter=counter).random_raw((stop - start) * padded)
    return words.reshape(stop - start, padded)[:, :width]


def below(words: Words, bound: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Map words to integers uniform on ``[0, bound)``; the bias is below ``bound / 2**32``."""
    high = words >> np.uint64(32)
    return ((high * np.asarray(bound, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def unit(words: Words) -> NDArray[np.float64]:
    """Map words to floats uniform on ``[0, 1)`` (53 bits)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
