"""Reads a sweep file into a frozen :class:`Sweep`, with all its problems at once."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from kvray.errors import InputError, Place, Problem
from kvray.sweep import yaml
from kvray.sweep.blocks import TASK_SECTIONS, code_file, lookup, refuse_code
from kvray.sweep.check import Checked, check, mapping, unused
from kvray.sweep.document import Document, merge, split, typed
from kvray.sweep.grid import Variant, expand
from kvray.sweep.model import Sweep
from kvray.tasks import load_all
from kvray.tasks.lm_eval import LmEval
from kvray.tasks.problems import show


class Loaded(NamedTuple):
    """A sweep that was read and checked, with the place of each value and its variants (grid and zip expanded)."""

    sweep: Sweep
    document: Document
    variants: list[Variant]


def load(path: str, overrides: Sequence[str] = (), scale: str | None = None, allow_code: bool = False) -> Sweep:
    """Read and check a sweep file; see :func:`read`."""
    return read(path, overrides, scale, allow_code=allow_code).sweep


def read(
    path: str,
    overrides: Sequence[str] = (),
    scale: str | None = None,
    base_model: str | None = None,
    allow_code: bool = False,
) -> Loaded:
    """Read and check a sweep file.

    Args:
        path: a YAML file, or the text of one (recognised by its line ends); ``${NAME}`` and ``${NAME:-default}`` in it
            are taken from the environment.
        overrides: ``dotted.key=value`` each, the value in YAML; applied in order, after the scale.
        scale: one of the file's ``scales``; it is appended to the sweep's name.
        base_model: replaces the file's.
        allow_code: load the files beside this one that its tasks name (``task: shouting:Shout``), and let the base
            model's own code (``trust_remote_code``) and that of task files of one's own (``include_path``) run.

    Raises:
        InputError: with every problem, in the order of the file, as
            ``FILE:LINE: dotted.path: found …; expected …; did you mean …?``.
    """
    load_all()
    document = yaml.parse(path, "sweep") if "\n" in path else yaml.read(path)
    wrong = _take_scale(document, scale) if scale else []
    wrong += [problem for text in overrides if (problem := yaml.override(document, text))]
    if base_model is not None:
        document.set(("base_model",), base_model, typed("--base-model"))
    with lookup("." if "\n" in path else os.path.dirname(path), allow_code):
        refused = _code_problem(document)
        if refused:
            raise InputError(document.report([refused]))
        sweep, variants, problems = check_document(document)
    wrong += [problem for problem in problems if not document.hides(problem.path)]
    wrong += [] if allow_code else _untrusted(variants)
    if wrong or document.problems or sweep is None:
        raise InputError(document.report([*document.problems, *wrong]))
    return Loaded(sweep, document, variants)


def check_document(document: Document) -> tuple[Sweep | None, list[Variant], list[Problem]]:
    """Check a document; return the sweep (None if it has problems), its variants, and the problems of all of them."""
    checked = Checked()
    sweep, problems = check(document.value, checked)
    variants, varied = expand(document.value, problems, checked)
    return sweep, variants, [*problems, *varied, *unused(document)]


def _code_problem(document: Document) -> Problem | None:
    """Return the problem of code beside the sweep that is not allowed; it is reported alone, before any check."""
    tasks = {
        (section, name, "task"): block.get("task")
        for section in TASK_SECTIONS
        for name, block in mapping(document.value, section).items()
        if isinstance(block, dict)
    }
    refused = refuse_code(tasks.values())
    return Problem(next(path for path, task in tasks.items() if code_file(task)), refused) if refused else None


def _untrusted(variants: Sequence[Variant]) -> list[Problem]:
    """Return a problem for everything that would run Python which neither kvray nor an installed package brought."""
    found: dict[Problem, None] = {}
    for variant in variants:
        if variant.sweep.trust_remote_code:
            text = "found true, which runs the base model's own Python code; type --allow-code to let it run"
            found[Problem(variant.written(("trust_remote_code",)), text)] = None
        for name, task in variant.sweep.evaluate.items():
            if isinstance(task, LmEval) and (files := task.code()):
                path = variant.written(("evaluate", name, "include_path"))
                text = f"found task files with Python code ({', '.join(files)}); type --allow-code to let it run"
                found[Problem(path, text)] = None
    return list(found)


def _take_scale(document: Document, scale: str) -> list[Problem]:
    """Apply a scale's changes to the document and its name; return the problems."""
    scales = mapping(document.value, "scales")
    changes = scales.get(scale)
    if not isinstance(changes, dict):
        names = f"one of the file's scales: {', '.join(sorted(scales))}" if scales else "none: the file has no scales"
        return [Problem((), f"found the scale {show(scale)}; expected {names}", Place(-1, "--scale"))]
    name = document.value.get("name")
    wrong: list[Problem] = []
    for key, value in changes.items():
        written = ("scales", scale, key)
        try:
            merge(document, split(key, document.value), value, written)
        except InputError as error:
            wrong += [Problem(written, problem.text) for problem in error.found]
    if isinstance(name, str) and "name" not in changes:
        document.value["name"] = f"{name}-{scale}"
    return wrong
