"""Ratios of two sums, such as inventions to wrong answers, with intervals clustered by question. Pure numpy."""

import numpy as np
from numpy.typing import NDArray

from kvray.results.resampling import Floats, percentiles, totals
from kvray.results.stats import Interval, wilson


def ratio(part: Floats, whole: Floats, questions: NDArray[np.int64]) -> Interval | None:
    """Return ``part.sum() / whole.sum()`` with its 95 % interval, questions resampled; None where the whole is 0.

    Shapes are ``(rows,)``, with 0 <= part <= whole <= 1 and question codes 0..k-1. Where every question has the same
    ratio a bootstrap would claim certainty: there it is Wilson's interval over the questions with a whole.
    """
    if whole.sum() <= 0:
        return None
    parts, wholes = (np.bincount(questions, weights=values) for values in (part, whole))
    mean = float(parts.sum() / wholes.sum())
    counted = wholes > 0
    if bool(np.allclose(parts[counted], mean * wholes[counted])):
        return Interval(mean, *wilson(min(1.0, mean), int(counted.sum())))
    return Interval(mean, *percentiles(_quotients(*totals(np.stack([parts, wholes])))))


def ratio_difference(
    a: tuple[Floats, Floats], b: tuple[Floats, Floats], questions: NDArray[np.int64]
) -> Interval | None:
    """Return ratio(b) - ratio(a) on the same rows with its 95 % interval, the same questions resampled for both.

    ``a`` and ``b`` are (part, whole), as in :func:`ratio`; None where a whole is 0. Where all resamples agree, the
    interval is the difference plus or minus Wilson's upper bound for a share of zero among the questions of the smaller
    whole.
    """
    if min(a[1].sum(), b[1].sum()) <= 0:
        return None
    sums = [np.bincount(questions, weights=values) for values in (*a, *b)]
    difference = float(sums[2].sum() / sums[3].sum() - sums[0].sum() / sums[1].sum())
    total = totals(np.stack(sums))
    drawn = _quotients(total[2], total[3]) - _quotients(total[0], total[1])
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size == 0 or float(np.ptp(drawn)) < 1e-12:
        bound = wilson(0.0, int(min((sums[1] > 0).sum(), (sums[3] > 0).sum())))[1]
        return Interval(difference, max(-1.0, difference - bound), min(1.0, difference + bound))
    return Interval(difference, *percentiles(drawn))


def _quotients(part: Floats, whole: Floats) -> Floats:
    quotients: Floats = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=quotients, where=whole > 1e-6)
    return quotients
