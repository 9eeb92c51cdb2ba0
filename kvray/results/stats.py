"""Intervals and tests for paired, clustered scores. Pure numpy.

The rows of one question at several gold positions are correlated, so intervals resample questions and tests flip the
signs of questions, never of rows (Miller 2024, arXiv 2411.00640: ignoring this can understate the standard error
threefold). The intervals cover the choice of questions, not the luck of one finetuning run.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

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
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
_LATTICE_WORK = 2_000_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A paired mean difference, b minus a, with its 95 % interval and two-sided p.

    ``test`` is "McNemar" (0/1 scores, one pair per question), "sign flip" (exact, by question) or "sign flip, sampled".
    Of ``n`` pairs b scores above a in ``better`` and below a in ``worse``; ``questions`` counts the different ones.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    n: int
    questions: int
    better: int
    worse: int


def wilson(mean: float, n: float, quantile: float = _Z) -> tuple[float, float]:
    """Return Wilson's interval for a share ``mean`` of ``n`` independent 0/1 outcomes; ValueError if n is not above 0.

    ``quantile`` is the normal one of the level, or Student's where the standard error is estimated.
    """
    if n <= 0:
        raise ValueError(f"an interval needs at least one outcome, found n={n}")
    shrink = 1 + quantile**2 / n
    centre = (mean + quantile**2 / (2 * n)) / shrink
    half = quantile / shrink * math.sqrt(mean * (1 - mean) / n + quantile**2 / (4 * n**2))
    return (max(0.0, centre - half) if mean > 0 else 0.0), (min(1.0, centre + half) if mean < 1 else 1.0)


def accuracy(scores: Floats, questions: NDArray[np.int64]) -> Interval:
    """Return the mean score with its 95 % interval: the percentile bootstrap over questions, or Wilson's.

    Wilson's over the number of questions serves where each occurs once with a score of 0 or 1, and where all scores are
    alike, so that a bootstrap would claim certainty. Scores are in [0, 1], one per example (seeds averaged), and
    questions are codes 0..k-1; both have shape ``(rows,)``. Raises ValueError without rows.
    """
    if scores.size == 0:
        raise ValueError("no scored rows")
    sums, counts = _by_question(scores, questions)
    mean = float(scores.mean())
    alone = counts.size == scores.size
    if counts.size == 1 or bool(np.all(scores == scores[0])) or (alone and bool(np.isin(scores, (0.0, 1.0)).all())):
        return Interval(mean, *wilson(mean, counts.size))
    return Interval(mean, *percentiles(means(sums, counts)))


def paired(a: Floats, b: Floats, questions: NDArray[np.int64]) -> Difference:
    """Compare scores b with scores a of the same examples, seeds averaged; shapes ``(pairs,)``, question codes 0..k-1.

    The test is McNemar's exact one for 0/1 scores with one pair per question, otherwise its generalisation by question
    (:func:`sign_flip`). Where all pairs differ alike a bootstrap would claim certainty: there the interval is the mean
    plus or minus Wilson's upper bound for a share of zero among that many questions. Raises ValueError without pairs.
    """
    if a.size == 0:
        raise ValueError("no common examples")
    gap = b - a
    sums, counts = _by_question(gap, questions)
    if bool(np.all(gap == gap[0])) or counts.size == 1:
        bound = wilson(0.0, counts.size)[1] if counts.size > 1 else 2.0
        low, high = max(-1.0, float(gap.mean()) - bound), min(1.0, float(gap.mean()) + bound)
    else:
        low, high = percentiles(means(sums, counts))
    better, worse = int((gap > 0).sum()), int((gap < 0).sum())
    if counts.size == gap.size and bool(np.isin(gap, (-1.0, 0.0, 1.0)).all()):
        p, test = mcnemar(better, worse), "McNemar"
    else:
        p, exact = sign_flip(sums)
        test = "sign flip" if exact else "sign flip, sampled"
    return Difference(float(gap.mean()), low, high, p, test, gap.size, counts.size, better, worse)


def ratio(part: Floats, whole: Floats, questions: NDArray[np.int64]) -> Interval | None:
    """Return ``part.sum() / whole.sum()`` with its 95 % interval, questions resampled; None where the whole is 0.

    Shapes are ``(rows,)``, with 0 <= part <= whole <= 1 and question codes 0..k-1. Where every question has the same
    ratio a bootstrap would claim certainty: there it is Wilson's interval over the questions with a whole.
    """
    if whole.sum() <= 0:
        return None
    parts, wholes = (np.bincount(questions, weights=values).astype(np.float64) for values in (part, whole))
    mean = float(parts.sum() / wholes.sum())
    counted = wholes > 0
    if bool(np.allclose(parts[counted], mean * wholes[counted])):
        return Interval(mean, *wilson(min(1.0, mean), int(counted.sum())))
    return Interval(mean, *percentiles(means(parts, wholes)))


def ratio_difference(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], questions: NDArray[np.int64]
) -> Interval | None:
    """Return ratio(b) - ratio(a) on the same rows with its 95 % interval, the same questions resampled for both.

    ``a`` and ``b`` are (part, whole), as in :func:`ratio`; None where a whole is 0. Where all resamples agree, the
    interval adds to either side Wilson's upper bound for a share of zero among the questions of the smaller whole.
    """
    if min(a[1].sum(), b[1].sum()) <= 0:
        return None
    sums = [np.bincount(questions, weights=values) for values in (*a, *b)]
    difference = float(sums[2].sum() / sums[3].sum() - sums[0].sum() / sums[1].sum())
    total = totals(np.stack(sums))
    drawn = quotients(total[2], total[3]) - quotients(total[0], total[1])
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size == 0 or float(np.ptp(drawn)) < 1e-12:
        bound = wilson(0.0, int(min((sums[1] > 0).sum(), (sums[3] > 0).sum())))[1]
        return Interval(difference, max(-1.0, difference - bound), min(1.0, difference + bound))
    return Interval(difference, *percentiles(drawn))


def gap_ratio(part: Floats, whole: Floats, questions: NDArray[np.int64]) -> Interval:
    """Return ``part.sum() / whole.sum()`` of signed differences with its 95 % interval, questions resampled for both.

    The percentile bootstrap of a ratio (Efron and Tibshirani 1993, sections 10.3 and 13.3). It is asked for where the
    whole is clearly above 0; elsewhere Fieller's interval would be unbounded (Fieller 1954), and there is no ratio to
    tell. Shapes are ``(rows,)``, questions are codes 0..k-1. Where all resamples agree, the interval adds to either
    side Wilson's upper bound for a share of zero among the questions. Raises ValueError if the whole is not above 0.
    """
    if whole.sum() <= 0:
        raise ValueError(f"a ratio needs a whole above 0, found {float(whole.sum()):g}")
    parts, wholes = (np.bincount(questions, weights=values) for values in (part, whole))
    mean = float(parts.sum() / wholes.sum())
    drawn = quotients(*totals(np.stack([parts, wholes])))
    if float(np.nanmax(drawn) - np.nanmin(drawn)) < 1e-12:
        bound = wilson(0.0, parts.size)[1]
        return Interval(mean, mean - bound, mean + bound)
    return Interval(mean, *percentiles(drawn))


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


def mcnemar(better: int, worse: int) -> float:
    """Return McNemar's exact two-sided p for the numbers of discordant pairs; 1 where there are none."""
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse, 0.5).pvalue) if better + worse else 1.0


def sign_flip(sums: Floats) -> tuple[float, bool]:
    """Return (p, whether it is exact): two-sided, of ``|sums.sum()|`` if each question's sum had a random sign.

    Exact where the sums lie on a lattice (0/1 scores, averaged over up to 64 seeds), by the distribution of subset
    sums; otherwise from 10,000 seeded flips, p = (1 + hits) / (1 + flips).
    """
    size = np.abs(sums[np.abs(sums) > 1e-12])
    if size.size == 0:
        return 1.0, True
    total_seen = abs(float(sums.sum()))
    scale = next((m for m in range(1, 65) if np.abs(size * m - np.round(size * m)).max() < 1e-6), None)
    if scale is not None:
        steps = np.round(size * scale).astype(np.int64)
        total = int(steps.sum())
        if total * steps.size <= _LATTICE_WORK:
            # Signed total = 2 * (subset sum) - total; all subsets are equally likely.
            chance = np.ones(1)
            for step in np.sort(steps).tolist():
                absent, added = np.append(chance, np.zeros(step)), np.append(np.zeros(step), chance)
                chance = (absent + added) / 2
            signed = np.abs(2 * np.arange(total + 1) - total)
            return min(1.0, float(chance[signed >= round(total_seen * scale)].sum())), True
    rng = np.random.default_rng(SEED)
    hits = 0
    for rows in _chunks(RESAMPLES, size.size):
        signs = rng.integers(0, 2, (rows, size.size), dtype=np.int8) * 2.0 - 1.0
        hits += int((np.abs(signs @ size) >= total_seen - 1e-9).sum())
    return (1 + hits) / (1 + RESAMPLES), False


def holm(p: Floats) -> Floats:
    """Return p values after Holm's step-down correction; NaN stays NaN and does not count."""
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    weights = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * weights)) if order.size else []
    return adjusted


def verdict(difference: float, low: float, high: float, p_holm: float) -> str:
    """Return "better" or "worse" if the corrected p is at most 0.05 and zero is outside the interval; else noise."""
    if math.isnan(p_holm) or p_holm > 1 - LEVEL + 1e-12 or low <= 0 <= high:
        return "within noise"
    return "better" if difference > 0 else "worse"


def detectable_difference(n: int, discordant: float = 0.2, power: float = 0.8, comparisons: int = 1) -> float:
    """Return the smallest true paired difference, in (0, 1], that a two-sided 5 % McNemar test finds with this power.

    Connor (1987), normal approximation: ``sqrt(n) d = z_a sqrt(psi) + z_b sqrt(psi - d^2)``, psi the share of
    discordant pairs, at least d. 0.088 at n = 200, 0.024 at n = 2,655; 1.0 where not even the largest can be found.
    ``n`` counts questions, and ``discordant`` is the share of discordant pairs or, where a question is asked several
    times, the variance of its mean difference. ``comparisons`` are corrected together: Holm's first step asks for 5 %
    divided by their number. Raises ValueError for an argument outside its range.
    """
    if n < 1 or not 0 < discordant <= 1 or not 0.5 <= power < 1:
        raise ValueError(f"expected n >= 1, 0 < discordant <= 1, 0.5 <= power < 1; found {n}, {discordant}, {power}")
    z_level, z_power = _quantiles(power, comparisons)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        psi = max(discordant, middle)
        detected = math.sqrt(n) * middle >= z_level * math.sqrt(psi) + z_power * math.sqrt(psi - middle**2)
        low, high = (low, middle) if detected else (middle, high)
    return high


def detectable_from(low: float, high: float, comparisons: int = 1, power: float = 0.8) -> float:
    """Return :func:`detectable_difference` from a measured 95 % interval instead of a number of questions."""
    return min(1.0, (high - low) / (2 * _Z) * sum(_quantiles(power, comparisons)))


def _quantiles(power: float, comparisons: int) -> tuple[float, float]:
    """Return the normal quantiles for the corrected level and for the power."""
    return NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / max(1, comparisons)), NormalDist().inv_cdf(power)


def _by_question(values: Floats, questions: NDArray[np.int64]) -> tuple[Floats, Floats]:
    counts = np.bincount(questions).astype(np.float64)
    sums = np.bincount(questions, weights=values).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]


def _chunks(total: int, width: int) -> Iterator[int]:
    """Yield the sizes of chunks of ``total`` lines of ``width`` entries that fit into memory."""
    step = max(1, _CHUNK_ENTRIES // width)
    for start in range(0, total, step):
        yield min(step, total - start)


@lru_cache(maxsize=2)
def _kept_resamples(size: int) -> tuple[NDArray[np.float32], ...]:
    return tuple(_draw(size))


def _draw(size: int) -> Iterator[NDArray[np.float32]]:
    """Yield how often each of ``size`` questions is drawn, alike at every call, in chunks ``(resamples, size)``."""
    rng = np.random.default_rng([SEED, size])
    for rows in _chunks(RESAMPLES, size):
        cells = rng.integers(0, size, (rows, size)) + np.arange(rows)[:, None] * size
        yield np.bincount(cells.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float32)
