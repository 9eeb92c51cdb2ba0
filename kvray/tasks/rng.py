"""Counter-based random numbers: every draw is a pure function of (key, stream, row, draw).

numpy's Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a block cipher over a
counter. Row ``r`` owns the counters ``r * width / 4 ...``, so any worker makes any row, alone or in a batch, and gets
the same bytes. numpy guarantees the stream of a bit generator across versions, which it does not for ``Generator``.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Draws = NDArray[np.uint64]


def key_of(*parts: str | int) -> int:
    """Return the 128-bit Philox key of a tuple of names and integers (sha256 of its JSON)."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def draws(key: int, start: int, stop: int, width: int, stream: int = 0) -> Draws:
    """Return uniform 64-bit draws for rows ``[start, stop)``. Shape ``(stop - start, width)``, uint64.

    A (key, stream) must keep its ``width``: row r begins at counter r * width / 4. Each ``stream`` is independent.
    """
    padded = -(-width // 4) * 4
    # The counter is 256 bits: the low 192 count blocks, the top 64 name the stream.
    counter = start * (padded // 4) + (stream << 192)
    raw = np.random.Philox(key=key, counter=counter).random_raw((stop - start) * padded)
    return raw.reshape(stop - start, padded)[:, :width]


def below(drawn: Draws, bound: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Map draws to integers uniform on ``[0, bound)``; the bias is below ``bound / 2**32``."""
    product = (drawn >> np.uint64(32)) * np.asarray(bound, dtype=np.uint64)
    product >>= np.uint64(32)
    return product.view(np.int64)  # below 2**32: no sign


def unit(drawn: Draws) -> NDArray[np.float64]:
    """Map draws to floats uniform on ``[0, 1)`` (53 bits)."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, size: int) -> NDArray[np.int64]:
    """Return the integers ``[0, size)`` in random order."""
    return np.argsort(draws(key, 0, size, 1)[:, 0], kind="stable")


def shuffled(items: Sequence[T], key: int) -> list[T]:
    """Return items in random order."""
    return [items[at] for at in permutation(key, len(items)).tolist()]


def uuids(drawn: Draws) -> list[str]:
    """Return random UUIDs (version 4) from draws of shape ``(n, 2)``."""
    high = (drawn[:, 0] & np.uint64(0xFFFFFFFFFFFF0FFF)) | np.uint64(0x4000)
    low = (drawn[:, 1] & np.uint64(0x3FFFFFFFFFFFFFFF)) | np.uint64(0x8000000000000000)
    texts = [f"{a:016x}{b:016x}" for a, b in zip(high.tolist(), low.tolist(), strict=True)]
    return [f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}" for text in texts]
