"""Task blocks of a sweep: ``{task: NAME, …}`` -> the task, or the block's problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from kvray.errors import InputError, Path, Problem
from kvray.sweep import external
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.problems import explain, misread_booleans, show

TASK_SECTIONS = ("datasets", "evaluate")
"""Sections of a sweep that hold task blocks by name."""


def check_task(block: Any, path: Path = ()) -> tuple[Task | None, list[Problem]]:
    """Check one task block; return the task (None if there is a problem) and the problems."""
    load_all()
    if isinstance(block, Task):
        refused = external.refusal(type(block)) if ":" in block.task else None
        return (None, [Problem(path, refused)]) if refused else (block, [])
    if not isinstance(block, Mapping):
        return None, [Problem(path, f"found {show(block)}; expected a mapping like {{task: NAME, …}}")]
    name = block.get("task")
    if name is None:
        return None, [Problem(path, f"found no task; expected task: one of {', '.join(sorted(REGISTRY))}")]
    try:
        cls = external.task_class(name)
    except InputError as error:
        return None, [Problem((*path, "task"), str(error))]
    problems = misread_booleans(cls, block, path)
    try:
        task = cls.model_validate(dict(block))
    except ValidationError as error:
        return None, problems + explain(error, cls, block, path)
    return (None if problems else task), problems


def parse_task(block: Any) -> Task:
    """Return the task of a block ``{task: name, …}``, or the task itself if it is one already.

    Raises:
        ValueError: with all problems of the block.
    """
    task, problems = check_task(block)
    if task is None:
        raise ValueError("; ".join(str(problem) for problem in problems))
    return task
