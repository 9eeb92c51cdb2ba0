"""Blends of datasets by weight, matched by rows or by tokens: which rows one epoch of a mixture reads.

The rows are a function of (seed, sizes) through counter-based draws: the plan and every worker compute the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.planning.artefacts import Counted, FinetuneJob
from kvray.planning.lengths import Lengths
from kvray.tasks.rng import draws, key_of

SHORTFALL = 0.05
"""Share of its tokens that a dataset may lack and is then taken whole. The paper's prompt variants differ by 1 %."""
CERTAINLY_TOO_FEW = 1 - 2 * SHORTFALL
"""Share of its needed tokens below which a dataset has too few even if they are estimated from a sample."""


def permutation(seed: int, purpose: str, count: int) -> NDArray[np.int64]:
    """Return ``0 … count - 1`` in an order that depends only on (seed, purpose)."""
    drawn = draws(key_of("kvray.finetune", purpose, seed), 0, count, 1)[:, 0]
    return np.argsort(drawn, kind="stable").astype(np.int64)


def mix(job: FinetuneJob, tokens: Callable[[str], NDArray[np.integer]]) -> Mixture:
    """Choose the rows of a finetune: its mixture, cut to the tokens of the budget's mixture if it has one.

    ``tokens`` returns the tokens of each row of a dataset id, of shape ``(rows,)``.

    Raises:
        InputError: as :func:`blend`.
    """

    def taken(mixture: Sequence[tuple[str, float]], budget: int | None) -> list[Part]:
        datasets = [Dataset(name, tokens(name)) for name, _ in mixture]
        return blend(datasets, [share for _, share in mixture], job.finetune.match, job.seed, budget)

    budget = sum(part.total for part in taken(job.budget, None)) if job.budget else None
    return Mixture(tuple(taken(job.mixture, budget)), budget)


def blend(
    datasets: Sequence[Dataset],
    weights: Sequence[float],
    match: Literal["rows", "tokens"],
    seed: int,
    budget: int | None = None,
) -> list[Part]:
    """Choose which rows of each dataset make up a mixture.

    Without a budget no row repeats: the dataset that would run out first is taken whole and the others are cut to its
    share; a single dataset is taken whole. With a budget, the epoch and each share meet it to within one row.

    Args:
        datasets: name and row lengths of each.
        weights: positive, one per dataset, in any unit.
        match: whether weights are shares of rows or of tokens.
        seed: decides which rows a cut dataset keeps.
        budget: tokens of an epoch; only if ``match`` is "tokens".

    Raises:
        InputError: a weight is not positive, a dataset is empty, a share is less than one row, or a dataset has too few
            tokens for its share of the budget.
    """
    for data, weight in zip(datasets, weights, strict=True):
        if not weight > 0:
            raise InputError(f"mixture: weight {weight} of {data.name}; expected a number above 0")
        if not len(data.tokens):
            raise InputError(f"mixture: {data.name} has no rows")
    orders = [permutation(seed, f"blend/{at}", len(data.tokens)) for at, data in enumerate(datasets)]
    if budget is not None:
        counts = _within(datasets, [weight / sum(weights) for weight in weights], orders, budget)
    else:
        counts = _at_most(datasets, weights, orders, match)
    for data, weight, count in zip(datasets, weights, counts, strict=True):
        if count == 0:
            larger = "the other datasets" if budget is None else "the sweep's first mixture"
            raise InputError(
                f"mixture: {data.name} has less than one row at weight {weight:g} (matched by {match}); make {larger} "
                "larger or this weight greater"
            )
    chosen = [np.sort(order[:count]) for order, count in zip(orders, counts, strict=True)]
    return [Part(data.name, rows, data.tokens[rows]) for data, rows in zip(datasets, chosen, strict=True)]


def read_per_epoch(job: FinetuneJob, lengths: Mapping[str, Lengths]) -> Epoch:
    """Return an epoch's size from lengths by dataset id: exact if all rows are counted, else by mean lengths."""
    counted = counted_of([lengths[data] for data, _ in (*job.mixture, *job.budget)])
    if counted == "rows":
        try:
            measured = mix(job, lambda data: lengths[data].trained).facts()
            return Epoch(measured["rows_per_epoch"], measured["tokens_per_epoch"], counted)
        except InputError as error:
            return Epoch(0, 0, counted, tuple(problem.removeprefix("mixture: ") for problem in error.problems))
    parts, first = ([(lengths[data], share) for data, share in of] for of in (job.mixture, job.budget))
    if not first:
        return Epoch(*_mean_epoch(parts, job.finetune.match), counted)
    budget = _mean_epoch(first, job.finetune.match)[1]
    problems = []
    for name, share in job.mixture if counted == "sample" else ():
        data, needed = lengths[name], share * budget
        total = data.total(data.trained)
        if total < CERTAINLY_TOO_FEW * needed:
            problems.append(too_few(name, data.rows, total, needed, budget))
    return Epoch(*_mean_epoch(parts, job.finetune.match, budget), counted, tuple(problems))


def counted_of(lengths: Sequence[Lengths]) -> Counted:
    """Return the basis of numbers that combine several datasets."""
    if all(each.whole for each in lengths):
        return "rows"
    return "sample" if all(each.real for each in lengths) else "estimate"


def _mean_epoch(
    parts: Sequence[tuple[Lengths, float]], match: Literal["rows", "tokens"], budget: float | None = None
) -> tuple[int, float]:
    """Return about how many rows and tokens an epoch has: :func:`blend` by mean lengths."""
    totals = [data.total(data.trained) for data, _ in parts]
    amounts = [data.rows if match == "rows" else total for total, (data, _) in zip(totals, parts, strict=True)]
    scale = min(amount / share for amount, (_, share) in zip(amounts, parts, strict=True))
    if budget is not None:
        scale = min(scale, budget)
    taken = [scale * share / max(amount, 1) for amount, (_, share) in zip(amounts, parts, strict=True)]
    rows = sum(math.floor(part * data.rows + 1e-9) for part, (data, _) in zip(taken, parts, strict=True))
    return rows, sum(part * total for part, total in zip(taken, totals, strict=True))


def _at_most(
    datasets: Sequence[Dataset],
    weights: Sequence[float],
    orders: Sequence[NDArray[np.int64]],
    match: Literal["rows", "tokens"],
) -> list[int]:
    """Return how many rows of each order to take, if the dataset that runs out first is taken whole."""
    amounts = [float(len(data.tokens) if match == "rows" else data.tokens.sum()) for data in datasets]
    scale = min(amount / weight for amount, weight in zip(amounts, weights, strict=True))
    if match == "rows":
        # The tolerance keeps a share that is an integer but for a rounding error.
        return [int(np.floor(scale * weight + 1e-9)) for weight in weights]
    return [
        int(np.searchsorted(np.cumsum(data.tokens[order]), scale * weight * (1 + 1e-12), side="right"))
        for data, weight, order in zip(datasets, weights, orders, strict=True)
    ]


def _within(
    datasets: Sequence[Dataset], shares: Sequence[float], orders: Sequence[NDArray[np.int64]], budget: int
) -> list[int]:
    """Return how many rows of each order come nearest to its share of the budget.

    Each dataset's error (up to half a row) carries over to the next, so the sum is within half a row too.
    """
    counts: list[int] = []
    problems: list[str] = []
    left = 0.0
    for data, share, order in zip(datasets, shares, orders, strict=True):
        sums = np.concatenate(([0], np.cumsum(data.tokens[order])))
        target = share * budget + left
        counts.append(int(np.abs(sums - target).argmin()))
        left = target - float(sums[counts[-1]])
        if left > max(data.tokens.max(), SHORTFALL * share * budget):
            text = too_few(data.name, len(data.tokens), int(data.tokens.sum()), share * budget, budget)
            problems.append(f"mixture: {text}")
            left = 0.0
    if problems:
        raise InputError(problems)
    return counts


def too_few(name: str, rows: int, total: int, needed: float, budget: float) -> str:
    """Return the message for a dataset with too few tokens for its share of the budget, with the rows that suffice."""
    # New rows have other lengths, hence two percent more than the mean requires.
    enough = math.ceil(1.02 * needed / total * rows) + 1
    return (
        f"{name} has {total:,} tokens in {rows:,} rows, but its share of an epoch is {needed:,.0f} of "
        f"{budget:,.0f} tokens, as many as the sweep's first mixture reads; give that dataset rows: {enough} "
        "(questions, where its task counts these), make the first mixture smaller, or set finetune.match: rows"
    )


@dataclass(frozen=True)
class Dataset:
    """A dataset's name, for errors, and the tokens of each row (prompt and answer as trained on), shape ``(rows,)``."""

    name: str
    tokens: NDArray[np.integer]


@dataclass(frozen=True)
class Part:
    """What a mixture takes of a dataset: row numbers, ascending, and the tokens of each, of the same shape."""

    name: str
    rows: NDArray[np.int64]
    tokens: NDArray[np.integer]

    @property
    def total(self) -> int:
        """Tokens of all rows."""
        return int(self.tokens.sum())


@dataclass(frozen=True)
class Mixture:
    """The rows of one epoch of a finetune, and the tokens it was cut to (``budget``, None if not cut)."""

    parts: tuple[Part, ...]
    budget: int | None

    def facts(self) -> dict[str, Any]:
        """Return rows and tokens of an epoch, in all and by dataset, for a manifest."""
        return {
            "rows_per_epoch": sum(len(part.rows) for part in self.parts),
            "tokens_per_epoch": sum(part.total for part in self.parts),
            "budget_tokens": self.budget,
            "datasets": {part.name: {"rows": len(part.rows), "tokens": part.total} for part in self.parts},
        }


@dataclass(frozen=True)
class Epoch:
    """Planned size of one epoch of a finetune; meaningless if there are ``problems``, which name datasets by id."""

    rows: int
    tokens: float
    counted: Counted
    problems: tuple[str, ...] = ()
