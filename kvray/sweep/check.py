"""Checks a sweep's plain values: each task block, each field, and the parts against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from kvray.errors import Problem
from kvray.sweep.blocks import TASK_SECTIONS, check_task
from kvray.sweep.consistency import Overlaps, cross_problems, mapping
from kvray.sweep.model import Finetune, Runtime, Sweep
from kvray.tasks.base import Task
from kvray.tasks.problems import explain, misread_booleans


@dataclass
class Checked:
    """Results by task block and by pair of tasks, so that variants of one sweep do not repeat a check."""

    tasks: dict[tuple[str, str, str], tuple[Task | None, list[Problem]]] = field(default_factory=dict)
    overlaps: Overlaps = field(default_factory=dict)


def check(raw: Mapping[str, Any], checked: Checked | None = None) -> tuple[Sweep | None, list[Problem]]:
    """Check a sweep's plain values, grid and zip aside; return the sweep (None if there is a problem) and the problems.

    Tasks may be blocks or :class:`Task` objects. Results are read from ``checked`` and added to it.
    """
    checked = checked or Checked()
    problems: list[Problem] = []
    shell = dict(raw)
    tasks: dict[str, dict[str, Task]] = {}
    for section in TASK_SECTIONS:
        blocks, tasks[section] = mapping(raw, section), {}
        for name, block in blocks.items():
            key = section, name, repr(block)
            if key not in checked.tasks:
                checked.tasks[key] = check_task(block, (section, name))
            task, found = checked.tasks[key]
            problems += found
            if task is not None:
                tasks[section][name] = task
        if blocks:
            shell[section] = tasks[section]
    try:
        seeds = Finetune.model_validate(mapping(raw, "finetune")).data_seeds()
    except ValidationError:
        seeds = (0,)  # what is wrong is reported below
    problems += cross_problems(raw, tasks["datasets"], tasks["evaluate"], seeds, checked.overlaps)
    sweep = None
    try:
        sweep = Sweep.model_validate(shell, context={"cross_checked": True})
    except ValidationError as error:
        problems += explain(error, Sweep, raw)
    problems += misread_booleans(Finetune, mapping(raw, "finetune"), ("finetune",))
    problems += misread_booleans(Runtime, mapping(raw, "runtime"), ("runtime",))
    return (None if problems else sweep), problems
