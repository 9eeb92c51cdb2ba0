"""``kvray audit``: makes the rows of a task, or of all tasks of a sweep, and has them read by independent solvers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

from kvray.audit.laws import checks
from kvray.audit.result import Audit, Audited, shared
from kvray.audit.solvers import solver_of
from kvray.audit.tally import Tally
from kvray.console import track
from kvray.errors import InputError
from kvray.generate.job import build, context_of, rows_of
from kvray.models.reference import BaseModelRef
from kvray.sweep.grid import Variant
from kvray.tasks.base import Task

ROWS = 10_000
"""Rows of a task that are audited unless told otherwise."""
_BLOCK = 256  # rows made and read together


@dataclass(frozen=True)
class Subject:
    """What is audited: a task with its name, and whether it is trained on (None: alone, of no sweep)."""

    name: str
    task: Task
    trained: bool | None = None


def is_file(target: str) -> bool:
    """Tell whether the argument of the command is a sweep file and not the name of a task."""
    return target.lower().endswith((".yaml", ".yml")) or os.path.isfile(target)


def subjects(variants: Sequence[Variant]) -> list[Subject]:
    """Return every distinct dataset, with each seed that it is drawn by, and every distinct evaluation of a sweep."""
    found: dict[tuple[bool, str], Subject] = {}
    for variant in variants:
        named = [(name, task.reseeded(by), True, by) for name, task, by in variant.sweep.trained_on()]
        named += [(name, task, False, 0) for name, task in variant.sweep.evaluate.items()]
        for name, task, trained, by in named:
            label = f"{'datasets' if trained else 'evaluate'}.{name}"
            number = sum(one.name.partition(" ")[0] == label for one in found.values())
            more = f" (seed +{by})" if by else f" ({number + 1})" if number else ""
            found.setdefault((trained, task.model_dump_json()), Subject(label + more, task, trained))
    return list(found.values())


def audit(found: Sequence[Subject], base: BaseModelRef, most: int | None = None, workers: int = 1) -> Audit:
    """Audit tasks, each in full or its first ``most`` rows, in so many processes.

    A task whose examples another library brings, or whose texts a model writes first, is skipped; an InputError if that
    leaves none.
    """
    skipped: dict[str, str] = {}
    audited: list[tuple[Subject, Audited]] = []
    for subject in found:
        if not subject.task.BRINGS_EXAMPLES:
            skipped[subject.name] = "another library brings its questions"
        elif subject.task.writer() is not None:
            skipped[subject.name] = f"{subject.task.writer()} writes a part of it"
        else:
            audited.append((subject, _audited(subject, base, most, workers)))
    if not audited:
        raise InputError([f"{name}: found nothing to audit: {why}" for name, why in skipped.items()])
    trained, asked = ([one for subject, one in audited if subject.trained is kind] for kind in (True, False))
    return Audit([one for _, one in audited], shared(trained, asked), skipped)


def _audited(subject: Subject, base: BaseModelRef, most: int | None, workers: int) -> Audited:
    task = subject.task
    rows = rows_of(task, base) if most is None else min(most, rows_of(task, base))
    tally = Tally()
    with track(f"audit {subject.name}", rows) as advance:
        for part in _parts(task, base, rows, workers):
            tally.add(part)
            advance(tally.rows, f"{tally.wrong} wrong" if tally.wrong else "")
    knobs = task.model_dump()
    return Audited(subject.name, tally, checks(task.task, knobs, tally), solver_of(task.task, knobs)[1])


def _parts(task: Task, base: BaseModelRef, rows: int, workers: int) -> Iterator[Tally]:
    """Yield the tallies of the rows, block by block in order."""
    blocks = [range(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
    work = partial(_tallied, task, base)
    # Not forked: tokenizers and arrow have threads.
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers > 1 else nullcontext()
    with pool as processes:
        yield from processes.map(work, blocks) if processes else map(work, blocks)


def _tallied(task: Task, base: BaseModelRef, rows: range) -> Tally:
    """Make some rows and count what a solver reads in them; the tokens of the first are counted again."""
    solver, _ = solver_of(task.task, task.model_dump())
    made = build(task, base, rows).to_pylist()
    tally = Tally()
    for row in made:
        tally.take(row, solver, task.narrowed(row["subtask"]).score)
    first = made[0]
    if not first.get("history"):
        counted = int(context_of(task, base).count_tokens([first["prompt"]])[0])
        if counted != first["prompt_tokens"]:
            tally.refuse(first, f"its prompt has {counted} tokens, the row says {first['prompt_tokens']}")
    return tally
