"""Checks a sweep's plain values: each task block, each field, the parts against each other, and knobs of no effect."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from pydantic import ValidationError

from kvray.errors import KvrayError, Path, Problem
from kvray.models.reference import API
from kvray.sweep.blocks import TASK_SECTIONS, check_task
from kvray.sweep.document import Document
from kvray.sweep.model import NAME, NAME_RULE, Budget, Finetune, Runtime, Sweep
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.problems import MAX_PROBLEMS, explain, misread_booleans, show, unknown

RESERVED = "base"  # the base model's name in results, so no mixture may have it
MAX_PAIRS = 100_000  # limit on pairs of training data (a dataset with one seed) and evaluation, which are all compared


@dataclass
class Checked:
    """Results by task block and by pair of tasks, so that variants do not repeat a check, which may read sources."""

    tasks: dict[tuple[str, str, str], tuple[Task | None, list[Problem]]] = field(default_factory=dict)
    overlaps: dict[tuple[str, str], str | None] = field(default_factory=dict)  # of Task.overlaps, by the JSON of both


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
    problems += _cross_problems(raw, tasks["datasets"], tasks["evaluate"], seeds, checked)
    sweep = None
    try:
        sweep = Sweep.model_validate(shell)
    except ValidationError as error:
        problems += explain(error, Sweep, raw)
    problems += misread_booleans(Finetune, mapping(raw, "finetune"), ("finetune",))
    problems += misread_booleans(Runtime, mapping(raw, "runtime"), ("runtime",))
    inner = ("runtime", "budget")
    problems += misread_booleans(Budget, mapping(mapping(raw, "runtime"), "budget"), inner)
    return (None if problems else sweep), problems


def unused(document: Document) -> list[Problem]:
    """Return a problem per knob of ``finetune``, in its block, grid or zip, that no variant uses.

    Such as an adapter's rank with ``method: full``, or a learning rate with an API; defaults are never reported. If
    ``--set`` or a scale changes the method or the base model, knobs written before that are no mistake: a knob is
    reported only if written as late as the choice that makes it useless.
    """
    base_model = document.value.get("base_model")
    api = isinstance(base_model, str) and base_model.startswith(API)
    choices = _written(document, "method")
    chosen = max(document.lateness(path) for path in [("base_model",), *(() if api else choices)])
    if len(choices) > 1:
        choices.pop(("finetune", "method"), None)  # grid or zip replaces it
    values = list(choices.values()) or [Finetune().method]
    methods = {str(each) for value in values for each in (value if isinstance(value, list) else [value])}
    if not methods or not methods <= {"lora", "attention", "full"}:
        return []  # the sweep's own check reports it
    if api:
        used = {*Finetune().recipe(api=True), "seeds", "reseed_data"}
        why = "which a model behind an API does not use"
    else:
        used = {"method", "seeds", "reseed_data"}.union(*(_recipe(method) for method in methods))
        why = f"which method: {' and '.join(sorted(methods))} does not use"
    found = []
    for name in (name for name in Finetune.model_fields if name not in used):
        instead = "it left out, or method: lora" if not api and name in _recipe("lora") else "it left out"
        for path, value in _written(document, name).items():
            if value is not None and document.lateness(path) >= chosen:
                found.append(Problem(path, f"found {show(value)}, {why}; expected {instead}"))
    return found


def _recipe(method: str) -> set[str]:
    return set(Finetune.model_validate({"method": method}).recipe())


def _written(document: Document, name: str) -> dict[Path, object]:
    """Return the paths at which a knob of finetune is written, with its value or its list of values."""
    found: dict[Path, object] = {}
    for section, key in (("finetune", name), ("grid", f"finetune.{name}"), ("zip", f"finetune.{name}")):
        if key in mapping(document.value, section):
            found[section, key] = document.value[section][key]
    return found


def _cross_problems(
    raw: Mapping[str, Any],
    datasets: Mapping[str, Task],
    evaluate: Mapping[str, Task],
    seeds: Sequence[int],
    checked: Checked,
) -> list[Problem]:
    """Return the problems between the parts of a sweep; ``seeds`` are what finetunes add to the seeds of datasets."""
    problems = [*_name_problems(raw), *_reference_problems(raw)]
    if not raw.get("datasets") and not raw.get("evaluate"):
        problems.append(Problem((), "found neither datasets nor evaluate; expected at least one of them"))
    names = list(mapping(raw, "datasets"))
    for mixture, weights in mapping(raw, "mixtures").items():
        if weights == {}:
            problems.append(Problem(("mixtures", mixture), "found no dataset; expected DATASET: WEIGHT"))
        for name in weights if isinstance(weights, Mapping) and len(problems) <= MAX_PROBLEMS else ():
            if name not in names:
                problems.append(Problem(("mixtures", mixture, name), unknown(name, names, "one of the datasets")))
    trainable = {name: task for name, task in datasets.items() if task.TRAINABLE}
    for name in (name for name in datasets if name not in trainable):
        able = ", ".join(sorted(other for other, cls in REGISTRY.items() if cls.TRAINABLE))
        text = f"found {datasets[name].task!r}, which only evaluates; expected one of the tasks to train on: {able}"
        problems.append(Problem(("datasets", name, "task"), text))
    pairs = len(trainable) * len(seeds) * len(evaluate)
    if pairs > MAX_PAIRS:
        text = f"found {len(trainable)} datasets, of {len(seeds)} seeds each, beside {len(evaluate)} evaluations: "
        text += f"{pairs:,} pairs of training data and questions; expected at most {MAX_PAIRS:,}"
        return [*problems, Problem(("datasets",), text)]
    return [*problems, *_overlap_problems(trainable, evaluate, seeds, checked)]


def mapping(raw: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return a section, empty if it is absent or no mapping (which is reported elsewhere)."""
    value = raw.get(section)
    return value if isinstance(value, Mapping) else {}


@cache
def reference_sets() -> tuple[str, ...]:
    """Return the names of kvray's sets of published numbers."""
    file = resources.files("kvray") / "results" / "reference.csv"  # as data: kvray.results brings polars in
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(dict.fromkeys(row["set"] for row in rows))


def _name_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    for section in ("datasets", "mixtures", "evaluate"):
        first: dict[str, str] = {}
        # A dataset is a mixture of its own where the file has no mixtures.
        in_results = section != "datasets" or raw.get("mixtures") is None
        for name in mapping(raw, section):
            text = None
            if not NAME.fullmatch(name):
                yield Problem((section, name), f"found the name {show(name)}; expected {NAME_RULE}")
            if in_results and name.lower() == RESERVED:
                text = f"found the name {name!r}, which means the base model in all results; expected another one"
                text += " (renaming makes nothing anew)"
            elif (other := first.setdefault(name.lower(), name)) != name:
                text = f"found {name!r} beside {other!r}; expected names that differ by more than upper and lower case"
            if text:
                yield Problem((section, name), text)


def _reference_problems(raw: Mapping[str, Any]) -> Iterator[Problem]:
    named = raw.get("reference")
    places: list[tuple[Path, Any]] = [(("reference",), named)]
    if isinstance(named, list | tuple):
        places = [(("reference", at), name) for at, name in enumerate(named)]
    for path, name in places:
        if isinstance(name, str) and name not in reference_sets():
            yield Problem(path, unknown(name, reference_sets(), "one of the sets of published numbers"))


def _overlap_problems(
    datasets: Mapping[str, Task], evaluate: Mapping[str, Task], seeds: Sequence[int], checked: Checked
) -> Iterator[Problem]:
    asked = [(name, task, task.model_dump_json()) for name, task in evaluate.items()]
    for name, task in datasets.items() if asked else ():
        drawn = [(each, each.model_dump_json()) for each in map(task.reseeded, seeds)]
        for evaluation, other, questions in asked:
            for each, text in drawn:
                if (text, questions) not in checked.overlaps:
                    checked.overlaps[text, questions] = _overlap(each, other)
            shared = next((why for _, text in drawn if (why := checked.overlaps[text, questions]) is not None), None)
            if shared:
                found = f"found training data that evaluate.{evaluation} asks about ({shared}); expected them apart"
                yield Problem(("datasets", name), found)


def _overlap(task: Task, other: Task) -> str | None:
    try:
        return task.overlaps(other)
    except (OSError, KvrayError):
        return None  # planning reads every source, and reports those that cannot be read
