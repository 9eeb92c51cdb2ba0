"""What one epoch of a finetune reads, from the lengths of its datasets' rows: the very rows, where all are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvray.errors import InputError
from kvray.planning.artefacts import Counted, FinetuneJob
from kvray.planning.lengths import Lengths
from kvray.planning.mixture import SHORTFALL, mix, too_few

CERTAINLY_TOO_FEW = 1 - 2 * SHORTFALL
"""Share of the tokens that it needs below which a dataset has too few, by the mean of a sample too."""


def read_of(job: FinetuneJob, lengths: Mapping[str, Lengths]) -> Read:
    """Return what one epoch of a finetune reads.

    Args:
        job: the finetune.
        lengths: of its datasets, by id.
    """
    used = [lengths[data] for data, _ in (*job.mixture, *job.budget)]
    counted = counted_of(used)
    if counted == "rows":
        try:
            facts = mix(job, lambda data: lengths[data].trained).facts()
            return Read(facts["rows_per_epoch"], facts["tokens_per_epoch"], counted)
        except InputError as error:
            texts = tuple(problem.removeprefix("mixture: ") for problem in error.problems)
            return Read(0, 0, counted, texts)
    parts, budget = ([(lengths[data], share) for data, share in of] for of in (job.mixture, job.budget))
    match = job.finetune.match
    tokens = _mean(budget, match)[1] if budget else None
    problems = _too_few(job, lengths, tokens) if tokens is not None and counted == "sample" else ()
    return Read(*_mean(parts, match, tokens), counted, problems)


def counted_of(lengths: Sequence[Lengths]) -> Counted:
    """Return what numbers rest on that come of several datasets."""
    if all(each.whole for each in lengths):
        return "rows"
    return "sample" if all(each.real for each in lengths) else "estimate"


def _mean(parts: Sequence[tuple[Lengths, float]], match: str, budget: float | None = None) -> tuple[int, float]:
    """Return about how many rows and tokens one epoch of a mixture has: the dataset that runs out first is whole.

    :func:`kvray.planning.mixture.mix` by mean lengths, for datasets that are too large to count every row for a plan.
    """
    totals = [data.total(data.trained) for data, _ in parts]
    amounts = [data.rows if match == "rows" else total for total, (data, _) in zip(totals, parts, strict=True)]
    scale = min(amount / share for amount, (_, share) in zip(amounts, parts, strict=True))
    if budget is not None:
        scale = min(scale, budget)
    taken = [scale * share / max(amount, 1) for amount, (_, share) in zip(amounts, parts, strict=True)]
    rows = sum(math.floor(part * data.rows + 1e-9) for part, (data, _) in zip(taken, parts, strict=True))
    return rows, sum(part * total for part, total in zip(taken, totals, strict=True))


def _too_few(job: FinetuneJob, lengths: Mapping[str, Lengths], budget: float) -> tuple[str, ...]:
    found = []
    for data, share in job.mixture:
        known = lengths[data]
        total = known.total(known.trained)
        if total < CERTAINLY_TOO_FEW * share * budget:
            found.append(too_few(data, known.rows, total, share * budget, budget))
    return tuple(found)


@dataclass(frozen=True)
class Read:
    """What one epoch of a finetune reads.

    Attributes:
        rows: rows.
        tokens: tokens of prompts and answers.
        counted: what both rest on.
        problems: why there is no such epoch, datasets by id; then rows and tokens mean nothing.
    """

    rows: int
    tokens: float
    counted: Counted
    problems: tuple[str, ...] = ()
