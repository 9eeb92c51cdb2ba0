"""What of a plan is likely to fail, before anything has run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from kvray.console import count
from kvray.planning.artefacts import FinetuneJob, Plan
from kvray.planning.cost.rates import Rates, model_of
from kvray.results.stats import detectable_difference

if TYPE_CHECKING:
    from kvray.planning.cost.estimate import Item

GPU_BYTES = 80e9
MOST_POINTS = 30
"""Smallest detectable difference above which an evaluation is of no use: the paper's largest gains are about this."""
GOOD_POINTS = 10


def short_of_tokens(todo: Sequence[Item], planned: Plan, tokens: Mapping[str, int]) -> Iterator[str]:
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


def too_large(todo: Sequence[Item], rates: Rates) -> Iterator[str]:
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


def too_few_questions(detectable: Mapping[str, Mapping[str, float]], comparisons: int) -> Iterator[str]:
    """Yield which evaluations ask so few questions that hardly any finetune could be told apart from the base model."""
    for name, each in detectable.items():
        if each["points"] > MOST_POINTS:
            yield (
                f"evaluate.{name}: {each['questions']:g} questions find a difference of {each['points']:g} points at "
                f"least; ask {_enough_questions(comparisons):,} to find one of {GOOD_POINTS} (questions or rows, where "
                "the task counts these)"
            )


def _enough_questions(comparisons: int) -> int:
    """Return about how many questions find a difference of :data:`GOOD_POINTS`, rounded up to two digits."""
    questions = 10
    while 100 * detectable_difference(questions, comparisons=comparisons) > GOOD_POINTS:
        questions += int(10 ** (len(str(questions)) - 2))
    return questions
