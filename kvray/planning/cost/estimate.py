"""What a run would do, before it does it: the very artefacts, why each, about how long, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.planning.artefacts import Artefact, FinetuneJob, Plan, PredictionsJob, WritingJob
from kvray.planning.cost import show
from kvray.planning.cost.prices import Bill, bill
from kvray.planning.cost.rates import Rates, measured_tokens
from kvray.planning.cost.stages import Item, Stage, stages, wall
from kvray.planning.cost.warnings import short_of_tokens, too_few_questions, too_large
from kvray.planning.state import Status, status
from kvray.results.stats import detectable_difference
from kvray.store.manifest import Manifest
from kvray.store.store import Store

WRITER_PROMPT_TOKENS = 300
"""Of a prompt that a model writes for, where it cannot be counted: a segment or two of 128 tokens, and what to do."""


def estimate(planned: Plan, store: Store, verify: bool = False) -> Estimate:
    """Look at what the store has of a plan. Reads manifests only; writes nothing, needs no Ray.

    Args:
        planned: the plan.
        store: where its artefacts are, or will be.
        verify: check the sha256 of what is committed, as ``run --verify`` would.

    Returns:
        The enumeration that a run would carry out.
    """
    manifests = {manifest.id: manifest for manifest in store.manifests()}
    tokens = _tokens(planned.artefacts, manifests)
    rates = Rates(manifests.values(), planned)
    items: list[Item] = []
    bases: dict[str, str] = {}
    for artefact, found in zip(planned.artefacts, status(planned.artefacts, store, verify), strict=True):
        reads, writes, rows = _amounts(artefact, tokens[artefact.id])
        seconds, basis = rates.seconds(artefact, reads, writes, rows)
        cached, on = found.state == "committed", rates.where(artefact)
        if cached:
            seconds = 0.0
        else:
            bases.setdefault(artefact.kind, basis)
        why, devices = _why(found, store, verify), rates.devices(artefact.kind, on)
        items.append(Item(artefact, reads, writes, rows, cached, why, seconds, on, devices))
    todo = [item for item in items if not item.cached]
    comparisons = _comparisons(planned)
    detectable = _detectable(planned, comparisons)
    warnings = [*planned.warnings, *short_of_tokens(todo, planned, tokens), *too_large(todo, rates)]
    warnings += too_few_questions(detectable, comparisons)
    parts = tuple(items), stages(todo, rates), bases, bill(todo, planned)
    return Estimate(planned, *parts, comparisons, detectable, tuple(dict.fromkeys(warnings)))


def _why(found: Status, store: Store, verify: bool) -> str:
    if found.state == "committed":
        return ""
    if found.state == "failed":
        return f"failed before: {' '.join((found.reason or 'no reason noted').split())}"
    if found.state == "damaged":
        problems = store.problems(found.id, verify)
        return f"damaged: {problems[0] if problems else 'its files do not match its manifest'}"
    return "new"


def _tokens(artefacts: tuple[Artefact, ...], manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Return the tokens that making each artefact reads: as planned, corrected by what its data counted."""
    found: dict[str, int] = {}
    planned = {artefact.id: artefact.tokens for artefact in artefacts}
    for artefact in artefacts:
        counted = measured_tokens(manifests[artefact.id]) if artefact.id in manifests else None
        job, data = artefact.params, [need for need in artefact.needs if need.startswith("datasets/")]
        if isinstance(job, FinetuneJob):  # the budget's data decide how many tokens it reads, where it has a budget
            data = [name for name, _ in job.budget or job.mixture]
        before = sum(planned[need] for need in data)
        share = sum(found[need] for need in data) / before if before else 1.0
        found[artefact.id] = counted or round(artefact.tokens * share)
    return found


def _amounts(artefact: Artefact, tokens: int) -> tuple[int, int, int]:
    """Return the tokens that making an artefact reads and writes, and its rows over all epochs."""
    job = artefact.params
    if isinstance(job, FinetuneJob):
        return tokens, 0, round(artefact.rows * job.finetune.epochs)
    if isinstance(job, WritingJob):
        # Of a source that cannot be reached, only the number of prompts is known.
        read = tokens or artefact.rows * WRITER_PROMPT_TOKENS
        return read, artefact.rows * job.task.WRITING_TOKENS // 2, artefact.rows
    reply = job.task.output_estimate() if isinstance(job, PredictionsJob) else 0
    return tokens, artefact.rows * reply, artefact.rows


def _comparisons(planned: Plan) -> int:
    """Return how many comparisons with the base a report corrects for: one per model and evaluation, seeds together."""
    labels = [artefact.labels for artefact in planned.artefacts if artefact.kind == "predictions"]
    models = {(of["evaluation"], of["mixture"], of["finetune"]) for of in labels if of["mixture"] is not None}
    return max(1, len(models))


def _detectable(planned: Plan, comparisons: int) -> dict[str, dict[str, Any]]:
    """Return per evaluation its questions, and the smallest detectable difference in points of accuracy."""
    found = {}
    for artefact in planned.artefacts:
        if isinstance(artefact.params, PredictionsJob) and artefact.rows:
            questions = artefact.params.task.distinct_questions(artefact.rows)
            points = round(100 * detectable_difference(questions, comparisons=comparisons), 1)
            found[str(artefact.labels["evaluation"])] = {"questions": questions, "points": points}
    return found


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        planned: the plan.
        items: every artefact in the order in which they are made.
        stages: what is to run, in all, by kind.
        bases: per kind what its seconds rest on.
        bill: what an API charges for it.
        comparisons: how many a report corrects for.
        detectable: per evaluation its questions, and the smallest detectable difference in points of accuracy.
        warnings: what is likely to fail.
    """

    planned: Plan
    items: tuple[Item, ...]
    stages: tuple[Stage, ...]
    bases: Mapping[str, str]
    bill: Bill
    comparisons: int
    detectable: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """By the clock, of the whole run; None if the size of a part of it is unknown."""
        return None if any(stage.unknown for stage in self.stages) else wall(self.stages)

    def document(self) -> dict[str, Any]:
        """Return it in plain values, for ``kvray plan --json``."""
        return show.document(self)

    def text(self) -> str:
        """Return it as tables for a terminal."""
        return show.text(self)
