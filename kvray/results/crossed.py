"""Means over seeds and questions that are both drawn at random, crossed: every finetune answers the same questions.

A score is ``mean + seed + question + rest``, all random: another finetune of the mixture (data, order, first adapter)
and other questions would have given another mean (Clark 1973; Westfall, Kenny and Judd 2014). The variance of the mean
is estimated by the method of moments, V = V_seeds + V_questions - V_rest, each from the deviations of that margin
(Searle, Casella and McCulloch 1992, ch. 4; with unequal weights: Cameron, Gelbach and Miller 2011, two-way clusters).

Of few seeds V_seeds is known badly, and Student's t with Satterthwaite's (1946) degrees of freedom covers 87 % instead
of 95 % with two seeds. The interval's degrees of freedom are therefore solved numerically so that it covers 95 %
whatever the ratio of the two variances: Welch's (1947) equation, as Trickett and Welch (1954) do it. The test is
Banerjee's (1961), whose level holds at every ratio and every size, as a correction for many comparisons needs it.
``benchmarks/coverage.py`` checks both.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kvray.results.stats import LEVEL, Floats, wilson

_TAIL = (1 - LEVEL) / 2
_RATIOS = np.concatenate([[0.0], np.logspace(-1, 1.5, 20)])
"""Ratios of the standard error from seeds to the one from questions at which the coverage is solved for."""
_QUANTILES = (np.arange(200) + 0.5) / 200
_MOST_DF = 1e6


@dataclass(frozen=True)
class Crossed:
    """A mean over ``seeds`` x ``questions`` with its squared standard errors from either; both at least 2.

    ``from_seeds`` is what other finetunes on the same questions would add, ``from_questions`` what other questions
    would, asked of the same finetunes, less the share of noise that ``from_seeds`` has already. Not both are 0.
    """

    mean: float
    from_seeds: float
    from_questions: float
    seeds: int
    questions: int

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.from_seeds + self.from_questions)

    @property
    def df(self) -> float:
        """Degrees of freedom of Student's t for the 95 % interval."""
        if self.from_seeds <= 0:
            return self.questions - 1.0
        scale, power = _solved(self.seeds - 1)
        ratio = self.from_questions / self.from_seeds
        # In logarithms: the power of a large ratio overflows.
        grown = math.exp(min(30.0, power * math.log(ratio / scale))) if ratio > 0 else 0.0
        return float(min((self.seeds - 1) * (1 + grown), self.questions - 1))

    @property
    def half(self) -> float:
        """Half the width of the 95 % interval.

        It is right on average over draws of the seeds: where they happen to agree it can be narrower than an interval
        over the questions alone, as it is far wider where they do not.
        """
        return _student(self.df, _TAIL) * self.error

    def p(self) -> float:
        """Return the two-sided p of a true mean of zero (Banerjee 1961).

        It is the level at which ``mean**2 = t_questions**2 from_questions + t_seeds**2 from_seeds``, where t are
        Student's quantiles with questions - 1 and seeds - 1 degrees of freedom.
        """
        low, high = -700.0, 0.0  # logarithm of the level
        for _ in range(40):
            middle = (low + high) / 2
            level = math.exp(middle) / 2
            bound = _student(self.questions - 1, level) ** 2 * self.from_questions
            bound += _student(self.seeds - 1, level) ** 2 * self.from_seeds
            low, high = (low, middle) if self.mean**2 > bound else (middle, high)
        return min(1.0, math.exp(high))

    def accuracy(self) -> tuple[float, float]:
        """Return the ends of a share's 95 % interval, inside [0, 1]: Wilson's, with Student's quantile.

        The sample size is the one at which independent answers would have this standard error (the effective sample
        size of Korn and Graubard 1998). Raises ValueError unless the mean is a share.
        """
        if not 0 < self.mean < 1:
            raise ValueError(f"expected a share between 0 and 1 whose answers differ, found {self.mean}")
        return wilson(self.mean, self.mean * (1 - self.mean) / self.error**2, _student(self.df, _TAIL))


def crossed(
    values: Floats, seeds: NDArray[np.int64], questions: NDArray[np.int64], weights: Floats | None = None
) -> Crossed | None:
    """Return the weighted mean of values in [-1, 1] and its standard errors from seeds and from questions.

    All have shape ``(rows,)``: a row per seed and example, codes 0..S-1 and 0..Q-1 without gaps, several rows per
    question where it is asked several times; cells may be missing. None with fewer than two seeds or questions, or
    where all cells are alike, so that a variance of 0 would claim certainty.
    """
    of_seeds, of_questions = int(seeds.max()) + 1, int(questions.max()) + 1
    if min(of_seeds, of_questions) < 2:
        return None
    shape, size = (of_seeds, of_questions), of_seeds * of_questions
    weights = np.ones(values.size) if weights is None else weights
    cell = seeds * of_questions + questions
    weight = np.bincount(cell, weights, size).reshape(shape) / weights.sum()
    summed = np.bincount(cell, weights * values, size).reshape(shape) / weights.sum()
    mean = float(summed.sum())
    by_seed, by_question = weight.sum(axis=1), weight.sum(axis=0)
    off_seed, off_question = summed.sum(axis=1) - by_seed * mean, summed.sum(axis=0) - by_question * mean
    additive = mean + (off_seed / by_seed)[:, None] + (off_question / by_question)[None, :]
    rest = summed - weight * additive
    from_seeds = float((off_seed**2).sum()) * of_seeds / (of_seeds - 1)
    of_question_means = float((off_question**2).sum()) * of_questions / (of_questions - 1)
    of_rest = float((rest**2).sum()) * size / ((of_seeds - 1) * (of_questions - 1))
    from_questions = max(0.0, of_question_means - of_rest)
    if from_seeds + from_questions < 1e-15:
        return None
    return Crossed(mean, from_seeds, from_questions, of_seeds, of_questions)


def detectable(question_error: float, seed_error: float, seeds: int, comparisons: int = 1, power: float = 0.8) -> float:
    """Return the smallest true difference that the test of :meth:`Crossed.p` finds with this power; at most 1.

    ``question_error`` and ``seed_error`` are true standard errors of the mean over questions and over the ``seeds``,
    at least 2 (else ValueError); ``comparisons`` are corrected together, Holm's first step asking for 5 % divided by
    their number. Averages the normal power over the chi-squared distribution of the variance that seeds will show.
    """
    from scipy.special import ndtr

    if seeds < 2:
        raise ValueError(f"a verdict about mixtures needs at least 2 seeds, found {seeds}")
    level = _TAIL / max(1, comparisons)
    seen = seed_error**2 * _chi_squared(seeds - 1)
    critical = np.sqrt((_student(_MOST_DF, level) * question_error) ** 2 + _student(seeds - 1, level) ** 2 * seen)
    error = math.hypot(question_error, seed_error)
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        enough = float(ndtr((middle - critical) / max(error, 1e-12)).mean()) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


@lru_cache(maxsize=64)
def _solved(df: int) -> tuple[float, float]:
    """Return (scale, power) of the interval's degrees of freedom, ``df (1 + (ratio / scale)**power)``.

    The ratio is that of the squared standard errors, questions to seeds: at 0 the interval is Student's with the df of
    the seeds, at infinity the normal one. Solved by least squares for a coverage of 95 % at every true ratio; the
    coverage is then within 0.5 points of it, with 2 seeds within 1.2. (Satterthwaite's are ``df (1 + ratio)**2``.)
    """
    from scipy.optimize import least_squares
    from scipy.special import ndtr, stdtrit

    seen = np.outer(_RATIOS**2, _chi_squared(df))
    questions_to_seeds = 1 / np.maximum(seen, 1e-9)
    true_error = np.sqrt(1 + _RATIOS**2)[:, None]

    def missed(logarithms: Floats) -> Floats:
        scale, power = np.exp(logarithms)
        freedom = np.minimum(df * (1 + (questions_to_seeds / scale) ** power), _MOST_DF)
        half = -stdtrit(freedom, _TAIL) * np.sqrt(1 + seen)
        return np.asarray(100 * ((2 * ndtr(half / true_error) - 1).mean(axis=1) - LEVEL))

    start = np.log([4.6, 4.9] if df == 1 else [0.8, 1.6])
    scale, power = np.exp(least_squares(missed, start).x)
    return float(scale), float(power)


@lru_cache(maxsize=64)
def _chi_squared(df: int) -> Floats:
    """Return equally likely values of an estimated variance of 1 with these degrees of freedom."""
    from scipy.special import gammaincinv

    return np.asarray(2 * gammaincinv(df / 2, _QUANTILES) / df)


def _student(df: float, tail: float) -> float:
    """Return the quantile of Student's t above which this share lies."""
    from scipy.special import stdtrit

    return float(-stdtrit(df, tail))
