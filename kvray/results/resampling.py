"""Seeded resampling of questions, drawn once per number of questions. Pure numpy."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95 % interval then move by about 1 % of its width between seeds."""
SEED = 20240627
"""Fixed, so that the same results give the same report."""
LEVEL = 0.95
"""Coverage of every interval."""

Floats = NDArray[np.float64]
_CHUNK_ENTRIES = 4_000_000
_CACHED_ENTRIES = 32_000_000
_FEW_VALUES = 512


def means(sums: Floats, counts: Floats) -> Floats:
    """Return the quotient of both sums over each resample, shape ``(RESAMPLES,)``, from those of each question."""
    if bool(np.all(counts == counts[0])):
        return np.asarray(totals(sums[None])[0] / (counts[0] * sums.size))
    return quotients(*totals(np.stack([sums, counts])))


def quotients(part: Floats, whole: Floats) -> Floats:
    """Divide two arrays; NaN where the whole is 0."""
    divided: Floats = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 1e-6)
    return divided


def percentiles(resampled: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of resampled values, NaN left out."""
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def totals(values: Floats) -> Floats:
    """Return the sums over each resample, shape ``(k, RESAMPLES)``, of values of shape ``(k, questions)``.

    For many questions with few different values (a benchmark of 18,000 has a handful) how often each value occurs is
    drawn instead, which is multinomial: the same distribution at a thousandth of the cost.
    """
    size = values.shape[1]
    cached = RESAMPLES * size <= _CACHED_ENTRIES
    if not cached:
        different, times = np.unique(np.round(values, 9), axis=1, return_counts=True)
        if times.size <= _FEW_VALUES:
            drawn = np.random.default_rng([SEED, size]).multinomial(size, times / size, RESAMPLES)
            return np.asarray(np.einsum("rv,kv->kr", drawn.astype(np.float64), different))
    resamples = _kept_resamples(size) if cached else _draw(size)
    # einsum, not ``@``: threaded BLAS is 20 times slower on a busy machine.
    parts = [np.einsum("rq,kq->kr", weights, values.astype(np.float32)) for weights in resamples]
    return np.asarray(np.concatenate(parts, axis=1), dtype=np.float64)


def chunks(total: int, width: int) -> Iterator[int]:
    """Yield the sizes of chunks of ``total`` lines of ``width`` entries that fit into memory."""
    step = max(1, _CHUNK_ENTRIES // width)
    for start in range(0, total, step):
        yield min(step, total - start)


@lru_cache(maxsize=2)
def _kept_resamples(size: int) -> tuple[NDArray[np.float32], ...]:
    return tuple(_draw(size))


def _draw(size: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each of ``size`` questions is drawn, in chunks of shape ``(resamples, size)``.

    Draws depend on ``size`` alone and are cached: a report has hundreds of intervals over the same questions.
    """
    rng = np.random.default_rng([SEED, size])
    for rows in chunks(RESAMPLES, size):
        cells = rng.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
        yield np.bincount(cells.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float32)
