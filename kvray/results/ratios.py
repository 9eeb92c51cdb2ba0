"""Shares of a share, with clustered intervals: of the wrong answers, how many are inventions. Pure numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvray.results.resampling import totals
from kvray.results.stats import LEVEL, Interval, wilson

Floats = NDArray[np.float64]


def ratio(part: Floats, whole: Floats, questions: NDArray[np.int64]) -> Interval | None:
    """Return the sum of ``part`` over the sum of ``whole`` with its 95 % interval, questions resampled.

    Where every question has the same ratio a bootstrap would claim certainty: there Wilson's interval over the number
    of questions with a whole is given. None where there is no whole.

    Args:
        part: shape ``(rows,)``, at most ``whole``.
        whole: shape ``(rows,)``, in [0, 1].
        questions: shape ``(rows,)``, codes 0..k-1.
    """
    if whole.sum() <= 0:
        return None
    parts, wholes = _sums(part, questions), _sums(whole, questions)
    mean = float(parts.sum() / wholes.sum())
    counted = wholes > 0
    if bool(np.allclose(parts[counted], mean * wholes[counted])):
        return Interval(mean, *wilson(min(1.0, mean), int(counted.sum())))
    return Interval(mean, *_percentiles(_quotients(parts, wholes)))


def ratio_difference(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], questions: NDArray[np.int64]
) -> Interval | None:
    """Return ratio(b) - ratio(a) on the same rows with its 95 % interval, the same questions resampled for both.

    None where one of the two has no whole. Where no resample differs from another, the interval is the difference plus
    or minus Wilson's upper bound for a share of zero among the questions of the smaller whole.

    Args:
        a: (part, whole) of the reference, shape ``(rows,)`` each.
        b: (part, whole) of what is compared with it, of the same rows.
        questions: shape ``(rows,)``, codes 0..k-1.
    """
    if min(a[1].sum(), b[1].sum()) <= 0:
        return None
    sums = [_sums(values, questions) for values in (*a, *b)]
    seen = float(sums[2].sum() / sums[3].sum() - sums[0].sum() / sums[1].sum())
    total = totals(np.stack(sums))
    drawn = _over(total[2], total[3]) - _over(total[0], total[1])
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size == 0 or float(np.ptp(drawn)) < 1e-12:
        bound = wilson(0.0, int(min((sums[1] > 0).sum(), (sums[3] > 0).sum())))[1]
        return Interval(seen, max(-1.0, seen - bound), min(1.0, seen + bound))
    return Interval(seen, *_percentiles(drawn))


def _sums(values: Floats, questions: NDArray[np.int64]) -> Floats:
    sums: Floats = np.bincount(questions, weights=values).astype(np.float64)
    return sums


def _quotients(parts: Floats, wholes: Floats) -> Floats:
    """Return the ratio of each resample, NaN where it has no whole."""
    part, whole = totals(np.stack([parts, wholes]))
    return _over(part, whole)


def _over(part: Floats, whole: Floats) -> Floats:
    quotients: Floats = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=quotients, where=whole > 1e-6)
    return quotients


def _percentiles(drawn: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
