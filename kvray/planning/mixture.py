"""Blends of datasets by weight, matched by rows or by tokens: which rows one epoch of a mixture reads.

The rows are a function of (seed, sizes) through counter-based draws: the plan and every worker compute the same ones.
"""

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
_DOUBTFUL = (1 - 2.5 * SHORTFALL, 1.0)
"""Shares of its needed tokens between which a sample of its rows cannot tell whether a dataset has enough of them."""


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

    def measurements(self) -> dict[str, Any]:
        """Return rows and tokens of an epoch, in all and by dataset, for a manifest."""
        return {
            "rows_per_epoch": sum(len(part.rows) for part in self.parts),
            "tokens_per_epoch": sum(part.total for part in self.parts),
            "budget_tokens": self.budget,
            "datasets": {part.name: {"rows": len(part.rows), "tokens": part.total} for part in self.parts},
        }


@dataclass(frozen=True)
class Short:
    """A dataset of ``rows`` with too few tokens for its share of a budget, as a problem's text."""

    name: str
    rows: int
    total: int  # tokens of all rows
    needed: float
    budget: float

    @property
    def enough(self) -> int:
        """How many rows suffice."""
        # New rows have other lengths, hence two percent more than the mean requires.
        return math.ceil(1.02 * self.needed / self.total * self.rows) + 1

    def __str__(self) -> str:
        return (
            f"{self.name} has {self.total:,} tokens in {self.rows:,} rows, but its share of an epoch is "
            f"{self.needed:,.0f} of {self.budget:,.0f} tokens, as many as the sweep's first mixture reads; give that "
            f"dataset rows: {self.enough} (questions, where its task counts these), make the first mixture smaller, or "
            "set finetune.match: rows"
        )


class ShortError(InputError):
    """Datasets have too few tokens for their shares of a mixture's budget."""

    def __init__(self, short: Sequence[Short]) -> None:
        super().__init__([f"mixture: {each}" for each in short])
        self.short = tuple(short)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by its argument, not by its message, as Ray does on the way from a worker."""
        return type(self), (self.short,)


@dataclass(frozen=True)
class Epoch:
    """Planned size of one epoch of a finetune; meaningless if there are ``problems``, which name datasets by id."""

    rows: int
    tokens: float
    counted: Counted
    problems: tuple[str, ...] = ()
    short: tuple[Short, ...] = ()  # of these problems, the datasets with too few tokens


def permutation(seed: int, purpose: str, count: int) -> NDArray[np.int64]:
    """Return ``0 … count - 1`` in an order that depends only on (seed, purpose)."""
    drawn = draws(key_of("kvray.finetune", purpose, seed), 0, count, 1)[:, 0]
    return np.argsort(drawn, kind="stable").astype(np.int64)


def mix(job: FinetuneJob, tokens: Callable[[str], NDArray[np.integer]]) -> Mixture:
    """Choose the rows of a finetune: its mixture, cut to the tokens of the budget's mixture if it has one.

    ``tokens`` returns the tokens of each row of a dataset id, of shape ``(rows,)``. Raises InputError as :func:`blend`.
    """

    def parts(mixture: Sequence[tuple[str, float]], budget: int | None) -> list[Part]:
        datasets = {name: tokens(name) for name, _ in mixture}
        return blend(datasets, [share for _, share in mixture], job.finetune.match, job.seed, budget)

    budget = sum(part.total for part in parts(job.budget, None)) if job.budget else None
    return Mixture(tuple(parts(job.mixture, budget)), budget)


def blend(
    datasets: Mapping[str, NDArray[np.integer]],
    weights: Sequence[float],
    match: Literal["rows", "tokens"],
    seed: int,
    budget: int | None = None,
) -> list[Part]:
    """Choose which rows of each dataset make up a mixture.

    Without a budget no row repeats: the dataset that would run out first is taken whole and the others are cut to its
    share; a single dataset is taken whole. With a budget, the epoch and each share meet it to within one row.

    Args:
        datasets: by name, the tokens of each row (prompt and answer as trained on), shape ``(rows,)``.
        weights: positive, one per dataset, in any unit.
        match: whether weights are shares of rows or of tokens.
        seed: decides which rows a cut dataset keeps.
        budget: tokens of an epoch; only if ``match`` is "tokens".

    Raises:
        InputError: a weight is not positive, a dataset is empty, a share is less than one row, or a dataset has too few
            tokens for its share of the budget.
    """
    for name, weight in zip(datasets, weights, strict=True):
        if not weight > 0:
            raise InputError(f"mixture: weight {weight} of {name}; expected a number above 0")
        if not len(datasets[name]):
            raise InputError(f"mixture: {name} has no rows")
    orders = {name: permutation(seed, f"blend/{at}", len(datasets[name])) for at, name in enumerate(datasets)}
    sums = {name: np.concatenate(([0], np.cumsum(datasets[name][order]))) for name, order in orders.items()}
    if budget is None:
        counts = _at_most(list(sums.values()), weights, match)
    else:
        counts = _within(sums, [weight / sum(weights) for weight in weights], budget)
    parts = []
    for (name, order), weight, number in zip(orders.items(), weights, counts, strict=True):
        if number == 0:
            larger = "the other datasets" if budget is None else "the sweep's first mixture"
            raise InputError(
                f"mixture: {name} has less than one row at weight {weight:g} (matched by {match}); make {larger} "
                "larger or this weight greater"
            )
        rows = np.sort(order[:number])
        parts.append(Part(name, rows, datasets[name][rows]))
    return parts


def read_per_epoch(job: FinetuneJob, lengths: Mapping[str, Lengths]) -> Epoch:
    """Return an epoch's size from lengths by dataset id: exact if all rows are counted, else by mean lengths."""
    counted = counted_of([lengths[data] for data, _ in (*job.mixture, *job.budget)])
    if counted == "rows":
        try:
            measured = mix(job, lambda data: lengths[data].trained).measurements()
            return Epoch(measured["rows_per_epoch"], measured["tokens_per_epoch"], counted)
        except InputError as error:
            short = error.short if isinstance(error, ShortError) else ()
            return Epoch(0, 0, counted, tuple(problem.removeprefix("mixture: ") for problem in error.problems), short)
    budget = _mean_epoch(job.budget, lengths, job.finetune.match)[1] if job.budget else math.inf
    short = ()
    if counted == "sample" and job.budget:
        parts = [(name, lengths[name], share * budget) for name, share in job.mixture]
        has = [Short(name, data.rows, data.total(data.trained), needed, budget) for name, data, needed in parts]
        short = tuple(each for each in has if each.total < (1 - SHORTFALL) * each.needed)
    return Epoch(*_mean_epoch(job.mixture, lengths, job.finetune.match, budget), counted, tuple(map(str, short)), short)


def doubtful(job: FinetuneJob, lengths: Mapping[str, Lengths], below: bool = False) -> bool:
    """Return whether samples cannot tell if each dataset has enough tokens for its share of the budget.

    With ``below``, a dataset that has certainly too few counts as well: then the number that suffices is in doubt.
    """
    if not job.budget or counted_of([lengths[data] for data, _ in (*job.mixture, *job.budget)]) != "sample":
        return False
    budget = _mean_epoch(job.budget, lengths, job.finetune.match)[1]
    shares = [lengths[name].total(lengths[name].trained) / (share * budget) for name, share in job.mixture]
    return any((below or share > _DOUBTFUL[0]) and share < _DOUBTFUL[1] for share in shares)


def counted_of(lengths: Sequence[Lengths]) -> Counted:
    """Return the basis of numbers that combine several datasets."""
    if all(each.whole for each in lengths):
        return "rows"
    return "sample" if all(each.real for each in lengths) else "estimate"


def _mean_epoch(
    mixture: Sequence[tuple[str, float]],
    lengths: Mapping[str, Lengths],
    match: Literal["rows", "tokens"],
    budget: float = math.inf,
) -> tuple[int, float]:
    """Return about how many rows and tokens an epoch has: :func:`blend` by mean lengths."""
    totals = {name: lengths[name].total(lengths[name].trained) for name, _ in mixture}
    amounts = {name: lengths[name].rows if match == "rows" else totals[name] for name in totals}
    scale = min(budget, *(amounts[name] / share for name, share in mixture))
    taken = {name: scale * share / max(amounts[name], 1) for name, share in mixture}
    rows = sum(math.floor(part * lengths[name].rows + 1e-9) for name, part in taken.items())
    return rows, sum(part * totals[name] for name, part in taken.items())


def _at_most(
    sums: Sequence[NDArray[np.int64]], weights: Sequence[float], match: Literal["rows", "tokens"]
) -> list[int]:
    """Return how many rows of each dataset to take, if the one that runs out first is taken whole.

    ``sums`` are the tokens of each dataset's first 0, 1, 2 … rows in the order in which they are taken.
    """
    amounts = [float(len(each) - 1 if match == "rows" else each[-1]) for each in sums]
    scale = min(amount / weight for amount, weight in zip(amounts, weights, strict=True))
    if match == "rows":
        # The tolerance keeps a share that is an integer but for a rounding error.
        return [int(np.floor(scale * weight + 1e-9)) for weight in weights]
    return [
        int(np.searchsorted(each, scale * weight * (1 + 1e-12), side="right")) - 1
        for each, weight in zip(sums, weights, strict=True)
    ]


def _within(sums: Mapping[str, NDArray[np.int64]], shares: Sequence[float], budget: int) -> list[int]:
    """Return how many rows of each dataset come nearest to its share of the budget; ``sums`` as in :func:`_at_most`.

    Each dataset's error (up to half a row) carries over to the next, so the sum is within half a row too.
    """
    counts: list[int] = []
    short: list[Short] = []
    left = 0.0
    for (name, each), share in zip(sums.items(), shares, strict=True):
        target = share * budget + left
        counts.append(int(np.abs(each - target).argmin()))
        left = target - float(each[counts[-1]])
        if left > max(float(np.diff(each).max(initial=0)), SHORTFALL * share * budget):
            short.append(Short(name, len(each) - 1, int(each[-1]), share * budget, budget))
            left = 0.0
    if short:
        raise ShortError(short)
    return counts
