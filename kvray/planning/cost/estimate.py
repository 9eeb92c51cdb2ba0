"""What a run would do, before it does it: the very artefacts, why each, about how long, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvray.console import count, duration, table
from kvray.planning.artefacts import KINDS, Artefact, FinetuneJob, Plan, PredictionsJob, WritingJob
from kvray.planning.cost.prices import Bill, bill
from kvray.planning.cost.rates import Rates, Work, measured_tokens
from kvray.planning.cost.totals import Item, Stage, hours, hours_text, stages, wall
from kvray.planning.cost.warnings import short_of_tokens, too_few_questions, too_large
from kvray.planning.state import STAGE_NAMES, Status, status
from kvray.results.stats import detectable_difference
from kvray.store.manifest import Manifest
from kvray.store.store import Store
from kvray.tasks.base import Task

CACHED, TO_RUN = "cached", "to run"
WRITER_PROMPT_TOKENS = 300
"""Of a prompt that a model writes for, where it cannot be counted: a segment or two of 128 tokens, and what to do."""
_DETECTABLE = (
    "smallest difference from the base model that an evaluation finds (80 % power, 5 % level after Holm's correction\n"
    "for {comparisons} comparisons, if answers differ on a fifth of the questions):"
)
_MARKS = {
    "~": "~ by the mean of a sample of rows, about 1 % off",
    "?": "? a rough estimate: without the base model's tokenizer, or of rows that a model writes or a benchmark brings",
}
_WORDS = {
    "writing": "writings",
    "dataset": "datasets",
    "finetune": "finetunes",
    "predictions": "cells (predictions)",
}


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
    artefacts = planned.artefacts
    tokens = _tokens(artefacts, manifests)
    rates = Rates(manifests.values(), planned)
    items: list[Item] = []
    bases: dict[str, str] = {}
    for artefact, found in zip(artefacts, status(artefacts, store, verify), strict=True):
        work = _work(artefact, tokens[artefact.id])
        cached = found.state == "committed"
        seconds, basis = rates.seconds(work)
        on, number = rates.where(artefact), rates.devices(artefact)
        why = _why(found, store, verify)
        items.append(Item(work, CACHED if cached else TO_RUN, why, 0.0 if cached else seconds, on, number))
        if not cached:
            bases.setdefault(artefact.kind, basis)
    todo = [item for item in items if item.state == TO_RUN]
    price = bill([item.work for item in todo], planned)
    warnings = (*planned.warnings, *short_of_tokens(todo, planned, tokens), *too_large(todo, rates))
    whole = Estimate(planned, tuple(items), stages(todo, rates), bases, price, warnings)
    return replace(whole, warnings=(*warnings, *too_few_questions(whole.detectable(), _comparisons(planned))))


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
        manifest = manifests.get(artefact.id)
        counted = measured_tokens(manifest) if manifest else None
        data = _read(artefact)
        before = sum(planned[need] for need in data)
        share = sum(found[need] for need in data) / before if before else 1.0
        found[artefact.id] = counted or round(artefact.tokens * share)
    return found


def _read(artefact: Artefact) -> list[str]:
    """Return the datasets whose tokens decide how many an artefact reads: the budget's, where a finetune has one."""
    job = artefact.params
    if isinstance(job, FinetuneJob):
        return [data for data, _ in job.budget or job.mixture]
    return [need for need in artefact.needs if need.startswith("datasets/")]


def _work(artefact: Artefact, tokens: int) -> Work:
    """Return what making an artefact reads and writes."""
    job = artefact.params
    if isinstance(job, FinetuneJob):
        return Work(artefact, tokens, 0, round(artefact.rows * job.finetune.epochs))
    if isinstance(job, WritingJob):
        # Of a source that cannot be reached, only the number of prompts is known.
        read = tokens or artefact.rows * WRITER_PROMPT_TOKENS
        return Work(artefact, read, artefact.rows * job.task.WRITING_TOKENS // 2, artefact.rows)
    reply = job.task.output_estimate() if isinstance(job, PredictionsJob) else 0
    return Work(artefact, tokens, artefact.rows * reply, artefact.rows)


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        planned: the plan.
        items: every artefact in the order in which they are made.
        stages: what is to run, in all, by kind.
        bases: per kind what its seconds rest on.
        bill: what an API charges for it.
        warnings: what is likely to fail.
    """

    planned: Plan
    items: tuple[Item, ...]
    stages: tuple[Stage, ...]
    bases: Mapping[str, str]
    bill: Bill
    warnings: tuple[str, ...]

    @property
    def seconds(self) -> float | None:
        """By the clock, of the whole run; None if the size of a part of it is unknown."""
        return None if any(stage.unknown for stage in self.stages) else wall(self.stages)

    def document(self) -> dict[str, Any]:
        """Return it in plain values, for ``kvray plan --json``."""
        todo = [item for item in self.items if item.state == TO_RUN]
        return {
            "sweep": self.planned.sweep.name,
            "base_model": self.planned.base_model,
            "cells": [
                {key: item.artefact.labels[key] for key in ("evaluation", "mixture", "finetune", "seed")}
                | {"state": item.state, "id": item.artefact.id, "why": item.why}
                | {"tokens": item.tokens, "rows": item.artefact.rows}
                for item in self._of("predictions")
            ],
            "artefacts": [
                {"id": item.artefact.id, "kind": item.artefact.kind, "state": item.state, "why": item.why}
                | {"rows": item.artefact.rows, "tokens": item.tokens, "seconds": _rounded(item.seconds)}
                | {"counted": item.artefact.counted}
                for item in self.items
            ],
            "detectable_difference": self.detectable(),
            "totals": {
                "to_run": len(todo),
                "cached": len(self.items) - len(todo),
                "tokens": sum(item.tokens for item in todo),
                "seconds": _rounded(self.seconds),
                "seconds_basis": dict(self.bases),
                "gpu_hours": round(hours(self.stages, "gpu"), 3),
                "cpu_hours": round(hours(self.stages, "cpu"), 3),
                "api": self.bill.document(),
            },
            "stages": [
                {"stage": STAGE_NAMES[stage.kind], "artefacts": stage.artefacts, "tokens": stage.reads}
                | {"tokens_written": stage.writes, "seconds": round(stage.seconds, 1), "on": stage.on}
                | {"hours": round(stage.hours, 3), "unknown": stage.unknown}
                for stage in self.stages
            ],
            "notes": list(self.planned.notes),
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """Return it as tables for a terminal."""
        lines = [f"sweep {self.planned.sweep.name}, base model {self.planned.base_model}"]
        lines += [f"not known here: {note}" for note in self.planned.notes]
        for kind in KINDS:
            items = self._of(kind)
            if items:
                lines += ["", f"{_WORDS[kind]}: {len(items)}", self._table(kind, items)]
        found = self.detectable()
        if found:
            lines += ["", _DETECTABLE.format(comparisons=_comparisons(self.planned))]
            cells = [(name, each["questions"], each["points"]) for name, each in found.items()]
            lines.append(table(["evaluation", "questions", "points"], cells))
        todo = [item for item in self.items if item.state == TO_RUN]
        lines += ["", *self._marks()]
        if not todo:
            return "\n".join([*lines, f"nothing to do: all {len(self.items)} artefacts are committed"])
        lines += [f"{len(todo)} to run, {len(self.items) - len(todo)} cached", self._totals()]
        lines += [f"  {kind}: {basis}" for kind, basis in self.bases.items()]
        lines += [f"  API: {self.bill.text()}"] if self.bill.text() else []
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _marks(self) -> list[str]:
        """Say what the marks before numbers mean, of those that there are."""
        seen = {_about(item) for item in self.items if item.tokens}
        return [text for mark, text in _MARKS.items() if mark in seen]

    def _totals(self) -> str:
        """Return the table of stages, with a line for all of them."""
        header = ["stage", "to run", "tokens", "written", "device time", "time"]
        rows = [
            [
                STAGE_NAMES[stage.kind],
                stage.artefacts,
                count(stage.reads),
                count(stage.writes) if stage.writes else None,
                None if stage.on == "api" else hours_text(stage.hours, stage.on),
                f"{duration(stage.seconds)}{f' and {stage.unknown} unknown' if stage.unknown else ''}",
            ]
            for stage in self.stages
        ]
        every = [hours_text(spent, on) for on in ("gpu", "cpu") if (spent := hours(self.stages, on))]
        unknown = sum(stage.unknown for stage in self.stages)
        time = f"about {duration(wall(self.stages))}" + (f", without {unknown} of unknown size" if unknown else "")
        reads, writes = (sum(getattr(stage, name) for stage in self.stages) for name in ("reads", "writes"))
        total = [sum(stage.artefacts for stage in self.stages), count(reads), count(writes) if writes else None]
        return table(header, [*rows, ["all", *total, ", ".join(every) or None, time]])

    def _of(self, kind: str) -> list[Item]:
        return [item for item in self.items if item.artefact.kind == kind]

    def _table(self, kind: str, items: list[Item]) -> str:
        names = [key for key in items[0].artefact.labels if key != "role"]
        if kind in ("dataset", "writing"):
            names = ["dataset", "role"]
        header = [*names, "state", "rows", "tokens", "time", "why"]
        return table(
            header,
            [
                [
                    *(item.artefact.labels[name] for name in names),
                    item.state,
                    f"{_about(item) if _cut(item) else ''}{item.artefact.rows}",
                    f"{_about(item)}{count(item.tokens)}" if item.tokens else None,
                    None if item.seconds is None or item.state == CACHED else duration(item.seconds),
                    _short(item),
                ]
                for item in items
            ],
        )

    def detectable(self) -> dict[str, dict[str, Any]]:
        """Return per evaluation its questions, and the smallest detectable difference in points of accuracy."""
        found = {}
        comparisons = _comparisons(self.planned)
        for item in self._of("predictions"):
            job = item.artefact.params
            task: Task | None = job.task if isinstance(job, PredictionsJob) else None
            if task is not None and item.artefact.rows:
                questions = task.distinct_questions(item.artefact.rows)
                points = round(100 * detectable_difference(questions, comparisons=comparisons), 1)
                found[str(item.artefact.labels["evaluation"])] = {"questions": questions, "points": points}
        return found


def _cut(item: Item) -> bool:
    """Return whether how many rows an artefact reads depends on their lengths."""
    job = item.artefact.params
    return isinstance(job, FinetuneJob) and (bool(job.budget) or len(job.mixture) > 1)


def _comparisons(planned: Plan) -> int:
    """Return how many comparisons with the base a report corrects for: one per model and evaluation, seeds together."""
    labels = [artefact.labels for artefact in planned.artefacts if artefact.kind == "predictions"]
    models = {(of["evaluation"], of["mixture"], of["finetune"]) for of in labels if of["mixture"] is not None}
    return max(1, len(models))


def _about(item: Item) -> str:
    """Return the mark of a number that is not counted: the rows of what is made are known once it is."""
    return "" if item.state == CACHED else {"rows": "", "sample": "~", "estimate": "?"}[item.artefact.counted]


def _short(item: Item) -> str:
    epochs = item.artefact.params.finetune.epochs if isinstance(item.artefact.params, FinetuneJob) else None
    why = item.why if len(item.why) <= 90 else item.why[:89] + "…"
    return f"{why} ({epochs:g} epochs)" if epochs is not None and why == "new" else why


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
