"""What a run would do, before it does it: the very artefacts, why each, about how long, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvray.models.reference import API
from kvray.planning.artefacts import KINDS, Artefact, FinetuneJob, Plan, PredictionsJob, WritingJob
from kvray.planning.cost import show
from kvray.planning.cost.rates import STARTS, Rates, Where, measured_tokens, model_of
from kvray.planning.cost.warnings import short_of_tokens, too_few_questions, too_large
from kvray.planning.state import STAGE_NAMES, Status, status
from kvray.results.stats import detectable_difference
from kvray.store.manifest import Manifest
from kvray.store.store import Store

WRITER_PROMPT_TOKENS = 300
"""Of a prompt that a model writes for, where it cannot be counted: a segment or two of 128 tokens, and what to do."""
START_OF_RAY = 8.0
_CHARACTERS_PER_TOKEN = 4
"""Of English, about; for a system message alone, whose tokens nobody has counted."""
_MESSAGE_TOKENS = 8
"""That an API's chat format adds to a request: about 4 per message (user and system)."""


@dataclass(frozen=True)
class Item:
    """One artefact of the plan."""

    artefact: Artefact
    state: Literal["cached", "to run"]  # cached: committed in the store
    why: str  # new, damaged (which problem) or failed before (the reason); empty when cached
    reads: int  # tokens of prompts, or of training over all epochs, about; 0 if unknown
    writes: int  # tokens of replies
    rows: int  # prompts or rows, over all epochs
    seconds: float | None  # of making it alone; 0 when cached, None if unknown
    on: Where


@dataclass(frozen=True)
class Estimate:
    """What a run would do: the plan, and its artefacts in the order in which they are made."""

    planned: Plan
    items: tuple[Item, ...]
    document: dict[str, Any]  # in plain values, as ``kvray plan --json`` prints it
    comparisons: int  # with the base model, that a report corrects for
    known_seconds: float  # by the clock, what is of unknown size left out: stages come one after another

    def text(self) -> str:
        """Return it as tables for a terminal."""
        return show.text(self)


def estimate(planned: Plan, store: Store, verify: bool = False) -> Estimate:
    """Look at what the store has of a plan. Reads manifests only; writes nothing, needs no Ray.

    Args:
        planned: the plan.
        store: where its artefacts are, or will be.
        verify: check the sha256 of what is committed, as ``run --verify`` would.
    """
    manifests = {manifest.id: manifest for manifest in store.manifests()}
    tokens, rates = _tokens(planned.artefacts, manifests), Rates(manifests.values(), planned)
    items: list[Item] = []
    bases: dict[str, str] = {}
    for artefact, each in zip(planned.artefacts, status(planned.artefacts, store, verify), strict=True):
        amounts, on = _amounts(artefact, tokens[artefact.id]), rates.where(artefact)
        seconds, basis = rates.seconds(artefact, *amounts)
        if each.state == "committed":
            items.append(Item(artefact, "cached", "", *amounts, 0.0, on))
        else:
            items.append(Item(artefact, "to run", _why(each, store, verify), *amounts, seconds, on))
            bases.setdefault(artefact.kind, basis)
    todo = [item for item in items if item.state == "to run"]
    comparisons, detectable = _detectable(planned)
    stages = _stages(todo, rates)
    warnings = [*planned.warnings, *short_of_tokens(todo, planned, tokens), *too_large(todo, rates)]
    warnings += too_few_questions(detectable, comparisons)
    clock = sum(stage["seconds"] for stage in stages) + START_OF_RAY * any(stage["on"] != "api" for stage in stages)
    document = {
        "sweep": planned.sweep.name,
        "base_model": planned.base_model,
        "cells": [_cell(item) for item in items if item.artefact.kind == "predictions"],
        "artefacts": [_plain(item) for item in items],
        "detectable_difference": detectable,
        "totals": {
            "to_run": len(todo),
            "cached": len(items) - len(todo),
            "tokens": sum(item.reads for item in todo),
            "seconds": None if any(stage["unknown"] for stage in stages) else round(clock, 1),
            "seconds_basis": bases,
            "gpu_hours": round(sum(stage["hours"] for stage in stages if stage["on"] == "gpu"), 3),
            "cpu_hours": round(sum(stage["hours"] for stage in stages if stage["on"] == "cpu"), 3),
            "api": _api(todo, planned),
        },
        "stages": stages,
        "notes": list(planned.notes),
        "warnings": list(dict.fromkeys(warnings)),
    }
    return Estimate(planned, tuple(items), document, comparisons, clock)


def _plain(item: Item) -> dict[str, Any]:
    seconds = None if item.seconds is None else round(item.seconds, 1)
    values = {"state": item.state, "why": item.why, "tokens": item.reads, "seconds": seconds}
    return {name: getattr(item.artefact, name) for name in ("id", "kind", "rows", "counted")} | values


def _cell(item: Item) -> dict[str, Any]:
    values = item.artefact.labels | _plain(item)
    names = ("evaluation", "mixture", "finetune", "seed", "state", "id", "why", "tokens", "rows")
    return {name: values[name] for name in names}


def _why(found: Status, store: Store, verify: bool) -> str:
    if found.state == "failed":
        return f"failed before: {' '.join((found.reason or 'no reason noted').split())}"
    if found.state == "damaged":
        problems = store.problems(found.id, verify)
        return f"damaged: {problems[0] if problems else 'its files do not match its manifest'}"
    return "new"


def _tokens(artefacts: Sequence[Artefact], manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Return the tokens that making each artefact reads: as planned, corrected by what its data counted."""
    corrected: dict[str, int] = {}
    planned = {artefact.id: artefact.tokens for artefact in artefacts}
    for artefact in artefacts:
        counted = measured_tokens(manifests[artefact.id]) if artefact.id in manifests else None
        job, data = artefact.params, [need for need in artefact.needs if need.startswith("datasets/")]
        if isinstance(job, FinetuneJob):  # the budget's data decide how many tokens it reads, where it has a budget
            data = [name for name, _ in job.budget or job.mixture]
        before = sum(planned[need] for need in data)
        share = sum(corrected[need] for need in data) / before if before else 1.0
        corrected[artefact.id] = counted or round(artefact.tokens * share)
    return corrected


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


def _stages(todo: Sequence[Item], rates: Rates) -> list[dict[str, Any]]:
    """Return what is to be made by kind and by what it runs on, in the order of the kinds.

    Its "seconds" are by the clock, its "hours" those of the GPUs or CPUs that are held; what has no known size, of
    which "unknown" is the number, is in neither.
    """
    groups: dict[tuple[int, Where], list[Item]] = {}
    for item in todo:
        groups.setdefault((KINDS.index(item.artefact.kind), item.on), []).append(item)
    stages = []
    for (number, on), items in sorted(groups.items(), key=lambda group: group[0]):
        kind, known = KINDS[number], [item.seconds for item in items if item.seconds is not None]
        (devices, slots), busy = rates.room(kind, on), sum(known)
        clock = busy / max(1, slots if kind == "dataset" else min(slots, len(known)))
        if kind == "finetune":
            clock = max([clock, *known])
        elif kind != "dataset" and on != "api":
            engines, start = len({_engine(item.artefact) for item in items}), STARTS[on]["engine"]
            clock += start * -(-engines // rates.runtime.engines)
            busy += start * engines
        tokens, written = (sum(getattr(item, name) for item in items) for name in ("reads", "writes"))
        stage = {"stage": STAGE_NAMES[kind], "artefacts": len(items), "tokens": tokens, "tokens_written": written}
        took = {"seconds": round(clock, 1), "on": on, "hours": round(busy * devices / 3600, 3)}
        stages.append(stage | took | {"unknown": len(items) - len(known)})
    return stages


def _engine(artefact: Artefact) -> str:
    """Return which engine answers: full finetunes have one each, the base and all adapters share one."""
    job = artefact.params
    if isinstance(job, WritingJob):
        return job.writer
    assert isinstance(job, PredictionsJob)
    alone = job.finetune is not None and job.finetune.method != "lora"
    return f"{job.finetune_id if alone else 'shared'} {job.task.BRINGS_EXAMPLES}"


def _api(todo: Sequence[Item], planned: Plan) -> dict[str, Any]:
    """Return the tokens that go through an API and their price in USD, None where the sweep does not give one.

    Prompts count with the system message, replies as long as their tasks expect them, training by tokens times epochs.
    No price is known here: they change too often.
    """
    system = len(planned.sweep.system_message or "") // _CHARACTERS_PER_TOKEN + _MESSAGE_TOKENS
    tokens = {"input": 0, "output": 0, "training": 0}
    for item in todo:
        if item.artefact.kind != "dataset" and model_of(item.artefact, planned).startswith(API):
            tokens["training" if item.artefact.kind == "finetune" else "input"] += item.reads + system * item.rows
            tokens["output"] += item.writes
    prices = {name: getattr(planned.sweep.runtime, f"api_price_{name}") for name in tokens if tokens[name]}
    usd = None if None in prices.values() else sum(tokens[name] / 1e6 * price for name, price in prices.items())
    return {"tokens": tokens, "usd": None if usd is None else round(float(usd), 4)}


def _detectable(planned: Plan) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return how many comparisons a report corrects for, and per evaluation its questions and detectable points."""
    questions: dict[str, int] = {}
    compared = set()  # each model with the base, per evaluation; seeds are averaged
    for artefact in planned.artefacts:
        job, labels = artefact.params, artefact.labels
        if isinstance(job, PredictionsJob) and artefact.rows:
            questions[str(labels["evaluation"])] = job.task.distinct_questions(artefact.rows)
        if isinstance(job, PredictionsJob) and labels["mixture"] is not None:
            compared.add((labels["evaluation"], labels["mixture"], labels["finetune"]))
    comparisons = max(1, len(compared))
    points = {name: detectable_difference(number, comparisons=comparisons) for name, number in questions.items()}
    return comparisons, {
        name: {"questions": questions[name], "points": round(100 * points[name], 1)} for name in questions
    }
