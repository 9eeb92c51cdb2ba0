"""What a run would do, before it does it: the very artefacts, why each, about how long, and what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvray.console import count
from kvray.models.reference import API
from kvray.planning.artefacts import KINDS, STAGE_NAMES, Artefact, FinetuneJob, Plan, PredictionsJob, WritingJob, status
from kvray.planning.cost import budget, measured, power, show
from kvray.planning.cost.rates import STARTS, Rates, Where, measured_tokens, model_of
from kvray.planning.cost.space import Space, space
from kvray.store.manifest import Manifest
from kvray.store.store import Store

WRITER_PROMPT_TOKENS = 300  # of a writer's prompt that cannot be counted: one or two segments of 128, and the request
START_OF_RAY = 8.0
_CHARACTERS_PER_TOKEN = 4  # of English, about; for a system message alone, whose tokens nobody has counted
_MESSAGE_TOKENS = 8  # that an API's chat format adds to a request: about 4 per message (user and system)
GPU_BYTES = 80e9
_PLAIN = ("id", "kind", "rows", "counted", "state", "why", "tokens", "seconds")  # keys of artefacts in the document
_CELL = ("evaluation", "mixture", "finetune", "seed", "state", "id", "why", "tokens", "rows")  # of predictions


@dataclass(frozen=True)
class Item:
    """One artefact of the plan."""

    artefact: Artefact
    state: Literal["cached", "to run"]  # cached: committed in the store
    why: str  # new, damaged (which problem) or failed before (the reason); empty when cached
    reads: int  # tokens of prompts, or of training over all epochs, about; 0 if unknown
    writes: int  # tokens of replies
    rows: int  # prompts or rows, over all epochs
    seconds: float | None  # of making it, without the start of a process; 0 when cached, None if unknown
    on: Where


@dataclass(frozen=True)
class Estimate:
    """What a run would do: the plan, and its artefacts in the order in which they are made."""

    planned: Plan
    items: tuple[Item, ...]
    document: dict[str, Any]  # in plain values, as ``kvray plan --json`` prints it
    comparisons: int  # with the base model, that a report corrects for
    known_seconds: float  # by the clock, what is of unknown size left out: stages come one after another
    space: Space  # on disks, of what is to be made

    def text(self) -> str:
        return show.text(self)


def estimate(planned: Plan, store: Store, verify: bool = False) -> Estimate:
    """Look at what the store has of a plan. Reads a few manifests; writes nothing, needs no Ray.

    ``verify`` checks the sha256 of what is committed, as ``run --verify`` would.
    """
    found = status(planned.artefacts, store, verify)
    manifests = measured.manifests(planned, {each.id for each in found if each.state == "committed"}, store)
    tokens, rates = _tokens(planned.artefacts, manifests), Rates(manifests.values(), planned)
    items: list[Item] = []
    bases: dict[str, str] = {}
    for artefact, each in zip(planned.artefacts, found, strict=True):
        amounts, on = _amounts(artefact, tokens[artefact.id]), rates.where(artefact)
        if each.state == "committed":
            items.append(Item(artefact, "cached", "", *amounts, 0.0, on))
        else:
            seconds, basis = rates.seconds(artefact, *amounts)
            why = _why(artefact.id, each.state, each.reason, store, verify)
            items.append(Item(artefact, "to run", why, *amounts, seconds, on))
            bases.setdefault(artefact.kind, basis)
    todo = [item for item in items if item.state == "to run"]
    comparisons, smallest = power.smallest(planned, store)
    stages = _stages(todo, rates)
    warnings = [*planned.warnings, *_short_of_tokens(todo, planned, tokens), *_too_large(todo, rates)]
    warnings += power.too_few_questions(smallest, comparisons)
    clock = sum(stage["seconds"] for stage in stages) + START_OF_RAY * any(stage["on"] != "api" for stage in stages)
    if budget.limit(planned.sweep.runtime) is not None and any(stage["on"] == "api" for stage in stages):
        warnings.append("runtime.budget counts hours of GPUs; what an API charges is not in it")
    disk = space(todo, rates)
    runtime = planned.sweep.runtime
    # Without either nothing is to be said, and the store is not asked.
    costs = runtime.gpu_price is not None or budget.limit(runtime) is not None
    spent = budget.read(store, planned.sweep.name) if costs else budget.Spent()
    hours = {on: round(sum(stage["hours"] for stage in stages if stage["on"] == on), 3) for on in ("gpu", "cpu")}
    document = {
        "sweep": planned.sweep.name,
        "base_model": planned.base_model,
        "cells": [_plain(item, _CELL) for item in items if item.artefact.kind == "predictions"],
        "artefacts": [_plain(item, _PLAIN) for item in items],
        "detectable_difference": smallest,
        "totals": {
            "to_run": len(todo),
            "cached": len(items) - len(todo),
            "tokens": sum(item.reads for item in todo),
            "seconds": None if any(stage["unknown"] for stage in stages) else round(clock, 1),
            "seconds_basis": bases,
            "gpu_hours": hours["gpu"],
            "cpu_hours": hours["cpu"],
            "store_bytes": round(disk.store),
            "scratch_bytes": round(disk.scratch),
            "api": _api(todo, planned),
        },
        "stages": stages,
        "budget": budget.document(runtime, spent, stages) if costs else None,
        "notes": list(planned.notes),
        "warnings": list(dict.fromkeys(warnings)),
    }
    return Estimate(planned, tuple(items), document, comparisons, clock, disk)


def _plain(item: Item, names: Sequence[str]) -> dict[str, Any]:
    seconds = None if item.seconds is None else round(item.seconds, 1)
    values = vars(item.artefact) | vars(item) | item.artefact.labels | {"tokens": item.reads, "seconds": seconds}
    values["rows"] = item.artefact.rows
    return {name: values[name] for name in names}


def _why(artefact_id: str, state: str, reason: str | None, store: Store, verify: bool) -> str:
    if state == "failed":
        return f"failed before: {' '.join((reason or 'no reason noted').split())}"
    if state == "damaged":
        problems = store.problems(artefact_id, verify)
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
    """Return per kind and device the "seconds" by the clock and "hours" of devices, without items of "unknown" size."""
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
        if kind != "dataset" and on != "api":
            models = len({model_of(item.artefact, rates.planned) for item in items})
            start = STARTS[on]["finetune" if kind == "finetune" else "engine"]
            clock += start * models
            busy += start * max(models, min(slots, len(known)))
        tokens, written = (sum(getattr(item, name) for item in items) for name in ("reads", "writes"))
        stage = {"stage": STAGE_NAMES[kind], "artefacts": len(items), "tokens": tokens, "tokens_written": written}
        seats = 0.0 if kind == "dataset" or on == "api" else busy
        took = {"seconds": round(clock, 1), "on": on, "hours": round(busy * devices / 3600, 3)}
        took["seat_hours"] = round(seats / 3600, 6)
        stages.append(stage | took | {"unknown": len(items) - len(known)})
    return stages


def _api(todo: Sequence[Item], planned: Plan) -> dict[str, Any]:
    """Return the tokens that go through an API, system messages included, and their price in USD, None if not given."""
    # Prices change too often to be known here, so the sweep gives them.
    system = len(planned.sweep.system_message or "") // _CHARACTERS_PER_TOKEN + _MESSAGE_TOKENS
    tokens = {"input": 0, "output": 0, "training": 0}
    for item in todo:
        if item.artefact.kind != "dataset" and model_of(item.artefact, planned).startswith(API):
            tokens["training" if item.artefact.kind == "finetune" else "input"] += item.reads + system * item.rows
            tokens["output"] += item.writes
    prices = {name: getattr(planned.sweep.runtime, f"api_price_{name}") for name in tokens if tokens[name]}
    usd = None if None in prices.values() else sum(tokens[name] / 1e6 * price for name, price in prices.items())
    return {"tokens": tokens, "usd": None if usd is None else round(float(usd), 4)}


def _short_of_tokens(todo: Sequence[Item], planned: Plan, tokens: Mapping[str, int]) -> Iterator[str]:
    """Yield which datasets have too few tokens for a mixture that reads as many as the sweep's first one."""
    artefacts = {artefact.id: artefact for artefact in planned.artefacts}
    for item in todo:
        job = item.artefact.params
        if not isinstance(job, FinetuneJob) or not job.budget:
            continue
        budget = min(tokens[data] / share for data, share in job.budget)
        for data, share in job.mixture:
            has, rows, need = tokens[data], artefacts[data].rows, share * budget
            # A mixture may lack a twentieth (planning/mixture.py); as much again is what an estimate can be wrong by.
            # Where every row is counted the plan has refused it.
            if 0 < has < 0.9 * need:
                yield (
                    f"mixture {item.artefact.labels['mixture']}: {artefacts[data].labels['dataset']} has about "
                    f"{count(has)} tokens and needs {count(need)}, its share of what the sweep's first mixture reads "
                    f"per epoch; give it about {count(1.05 * need / has * rows)} rows instead of {count(rows)}, or set "
                    "finetune.match: rows"
                )


def _too_large(todo: Sequence[Item], rates: Rates) -> Iterator[str]:
    """Yield where weights alone are more than the GPUs of one finetune or engine can be expected to hold."""
    for item in todo:
        size, job = rates.sizes[model_of(item.artefact, rates.planned)], item.artefact.params
        full = isinstance(job, FinetuneJob) and job.finetune.method == "full"
        # Weights in bfloat16; in full finetuning in float32, with gradient and AdamW's two moments.
        needed = (16 if full else 2) * size.total if size else 0
        room = rates.room(item.artefact.kind, item.on)[0] * GPU_BYTES
        if item.on == "gpu" and needed > room:
            knob = "tensor_parallel" if item.artefact.kind != "finetune" else "workers_per_finetune (strategy: fsdp)"
            what = "full finetuning" if full else f"the weights, in {item.artefact.kind}"
            yield (
                f"{what}: about {needed / 1e9:,.0f} GB of {size} weights do not fit {room / 1e9:,.0f} GB of GPU "
                f"memory; raise runtime.{knob} to {-(-needed // (0.85 * GPU_BYTES)):.0f}"
            )
