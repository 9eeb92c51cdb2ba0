"""What a run would do, before it does it: the very artefacts, why each, and about how long. Starts nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvray.artefact import Artefact, FinetuneJob, PredictionsJob
from kvray.manifest import Manifest
from kvray.plan import KINDS, Plan
from kvray.rates import START_OF_RAY, Rates, at_once, measured_tokens
from kvray.results.stats import detectable_difference
from kvray.run import Status, status
from kvray.store import Store
from kvray.tables import count, duration, table
from kvray.tasks.base import Task

CACHED, TO_RUN = "cached", "to run"
_WORDS = {"dataset": "datasets", "finetune": "finetunes", "predictions": "cells (predictions)"}


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
    runtime = planned.sweep.runtime
    base = next((str(a.recipe.get("base") or a.recipe.get("tokenizer")) for a in artefacts), "")
    rates = Rates(manifests.values(), base, runtime)
    items: list[Item] = []
    bases: dict[str, str] = {}
    for artefact, found in zip(artefacts, status(artefacts, store, verify), strict=True):
        rate = rates.of(artefact)
        cached = found.state == "committed"
        # A finetune's own time includes starting its workers; an engine is started once for all its cells.
        own = rates.start("finetune") if artefact.kind == "finetune" else 0.0
        size = tokens[artefact.id]
        seconds = 0.0 if cached else (own + size / rate.tokens_per_second if size else None)
        items.append(Item(artefact, CACHED if cached else TO_RUN, _why(found, store, verify), size, seconds))
        if not cached:
            bases.setdefault(artefact.kind, rate.basis)
    return Estimate(planned, tuple(items), _seconds(items, rates, planned), bases)


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
        data = [need for need in artefact.needs if need.startswith("datasets/")]
        before = sum(planned[need] for need in data)
        share = sum(found[need] for need in data) / before if before else 1.0
        found[artefact.id] = counted or round(artefact.tokens * share)
    return found


def _seconds(items: list[Item], rates: Rates, planned: Plan) -> float | None:
    """Return the seconds of the whole run, None if a part of it is unknown."""
    runtime = planned.sweep.runtime
    todo = [item for item in items if item.state == TO_RUN]
    total = START_OF_RAY if todo else 0.0
    for kind in KINDS:
        each = [item.seconds for item in todo if item.artefact.kind == kind]
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each):
            return None
        slots = max(1, min(at_once(kind, runtime), len(known) if kind != "dataset" else 10**6))
        total += max(sum(known) / slots, max(known) if kind == "finetune" and known else 0.0)
    engines = {_engine(item.artefact) for item in todo if item.artefact.kind == "predictions"}
    return total + rates.start("predictions") * -(-len(engines) // runtime.engines)


def _engine(artefact: Artefact) -> str | None:
    """Return which engine answers a cell: full finetunes have one each, the base and all adapters share one."""
    job = artefact.params
    full = isinstance(job, PredictionsJob) and job.finetune is not None and job.finetune.method != "lora"
    return job.finetune_id if isinstance(job, PredictionsJob) and full else None


@dataclass(frozen=True)
class Item:
    """One artefact of the enumeration.

    Attributes:
        artefact: what.
        state: "cached" or "to run".
        why: new, damaged (which problem) or failed before (the reason); empty when cached.
        tokens: that making it reads, about; 0 if unknown.
        seconds: of making it alone; 0 when cached, None if unknown.
    """

    artefact: Artefact
    state: str
    why: str
    tokens: int
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a run would do.

    Attributes:
        planned: the plan.
        items: every artefact in the order in which they are made.
        seconds: of the whole run, what fits side by side; None if unknown.
        bases: per kind what its seconds rest on.
    """

    planned: Plan
    items: tuple[Item, ...]
    seconds: float | None
    bases: Mapping[str, str]

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
                for item in self.items
            ],
            "detectable_difference": self._detectable(),
            "totals": {
                "to_run": len(todo),
                "cached": len(self.items) - len(todo),
                "tokens": sum(item.tokens for item in todo),
                "seconds": _rounded(self.seconds),
                "seconds_basis": dict(self.bases),
            },
        }

    def text(self) -> str:
        """Return it as tables for a terminal."""
        lines = [f"sweep {self.planned.sweep.name}, base model {self.planned.base_model}"]
        for kind in KINDS:
            items = self._of(kind)
            if items:
                lines += ["", f"{_WORDS[kind]}: {len(items)}", self._table(kind, items)]
        found = self._detectable()
        if found:
            lines += ["", "smallest difference between two models that an evaluation finds (80 % power, 5 % level):"]
            cells = [(name, each["questions"], each["points"]) for name, each in found.items()]
            lines.append(table(["evaluation", "questions", "points"], cells))
        todo = [item for item in self.items if item.state == TO_RUN]
        lines.append("")
        if not todo:
            return "\n".join([*lines, f"nothing to do: all {len(self.items)} artefacts are committed"])
        tokens = f"{count(sum(item.tokens for item in todo))} tokens"
        time = f"about {duration(self.seconds)}" if self.seconds is not None else "time unknown"
        lines.append(f"{len(todo)} to run, {len(self.items) - len(todo)} cached; {tokens}, {time}")
        lines += [f"  {kind}: {basis}" for kind, basis in self.bases.items()]
        return "\n".join(lines)

    def _of(self, kind: str) -> list[Item]:
        return [item for item in self.items if item.artefact.kind == kind]

    def _table(self, kind: str, items: list[Item]) -> str:
        names = [key for key in items[0].artefact.labels if key != "role"]
        if kind == "dataset":
            names = ["dataset", "role"]
        header = [*names, "state", "rows", "tokens", "time", "why"]
        return table(
            header,
            [
                [
                    *(item.artefact.labels[name] for name in names),
                    item.state,
                    item.artefact.rows,
                    count(item.tokens) if item.tokens else None,
                    None if item.seconds is None or item.state == CACHED else duration(item.seconds),
                    _short(item),
                ]
                for item in items
            ],
        )

    def _detectable(self) -> dict[str, dict[str, Any]]:
        """Return per evaluation its questions, and the smallest detectable difference in points of accuracy."""
        found = {}
        for item in self._of("predictions"):
            job = item.artefact.params
            task: Task | None = job.task if isinstance(job, PredictionsJob) else None
            if task is not None:
                questions = task.distinct_questions(item.artefact.rows)
                points = round(100 * detectable_difference(questions), 1)
                found[str(item.artefact.labels["evaluation"])] = {"questions": questions, "points": points}
        return found


def _short(item: Item) -> str:
    epochs = item.artefact.params.finetune.epochs if isinstance(item.artefact.params, FinetuneJob) else None
    why = item.why if len(item.why) <= 90 else item.why[:89] + "…"
    return f"{why} ({epochs:g} epochs)" if epochs is not None and why == "new" else why


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
