"""Variants of a sweep: ``grid`` combines its lists in every way, ``zip`` goes through its lists side by side."""

import copy
import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError, Path, Problem
from kvray.sweep.blocks import TASK_SECTIONS, lookup, task_class
from kvray.sweep.check import Checked, check, mapping
from kvray.sweep.document import put, split
from kvray.sweep.model import Finetune, Sweep
from kvray.tasks.problems import MAX_PROBLEMS, nearest, show

MAX_VARIANTS = 1000  # limit on variants of one sweep: a larger grid is more likely a slip


@dataclass(frozen=True)
class Variant:
    """One combination of the values of ``grid`` and ``zip``."""

    sweep: Sweep  # with these values, and neither grid nor zip
    changes: tuple[tuple[Path, Any], ...]  # varied paths and their values, in plain JSON
    origins: Mapping[Path, Path] = field(default_factory=dict)  # by varied path, its value's path in grid or zip

    def written(self, path: Path) -> Path:
        """Return where a value of this variant was written: in ``grid`` or ``zip`` if it or a part of it varies."""
        return next((origin for varied, origin in self.origins.items() if varied[: len(path)] == path), path)

    def finetune_label(self, api: bool) -> str:
        """Return the method and its varied hyperparameters, without those that it does not use."""
        finetune = self.sweep.finetune
        used = finetune.recipe(api).keys() - {"method"}
        changes = [(str(key), value) for (section, key, *_), value in self.changes if section == "finetune"]
        return ("api" if api else finetune.method) + suffix([change for change in changes if change[0] in used])

    def evaluation_label(self, name: str) -> str:
        return name + suffix(self._changed("evaluate", name))

    def data_label(self, name: str, seed: int) -> str:
        """Return a dataset's name and varied values; ``seed`` is what the finetune adds to its own."""
        own = [("seed", self.sweep.datasets[name].seed + seed)] if seed else []
        return name + suffix(self._changed("datasets", name) + own)

    def mixture_label(self, mixture: str, matched: bool) -> str:
        """Return a mixture's name and varied values, with the first mixture's if ``matched`` to its tokens."""
        mixtures, first = self.sweep.mixtures, next(iter(self.sweep.mixtures))
        datasets = mixtures[mixture]
        changes = self._changed("mixtures", mixture)
        for name in datasets:
            changes += self._changed("datasets", name, "" if len(datasets) == 1 else f"{name}.")
        if matched and mixture != first:
            changes += self._changed("mixtures", first, f"{first}.")
            for name in (name for name in mixtures[first] if name not in datasets):
                changes += self._changed("datasets", name, f"{name}.")
        return mixture + suffix(changes)

    def _changed(self, section: str, name: str, prefix: str = "") -> list[tuple[str, Any]]:
        return [(f"{prefix}{path[-1]}", value) for path, value in self.changes if path[:2] == (section, name)]


def variants(sweep: Sweep) -> list[Variant]:
    """Return a sweep's variants: zip varies fastest, then the grid's last key; InputError if either is not valid."""
    with lookup(None, sections=[sweep.datasets, sweep.evaluate]):
        found, problems = expand(sweep.model_dump(mode="json"))
    if problems:
        raise InputError(problems)
    return found


def expand(
    raw: Mapping[str, Any], known: Sequence[Problem] = (), checked: Checked | None = None
) -> tuple[list[Variant], list[Problem]]:
    """Check grid, zip and every combination of their values; return the valid variants and the problems.

    ``known`` are the problems of the sweep itself, which are not repeated; ``checked`` has the results of its check.
    """
    checked = checked or Checked()
    problems, usable = _lists(raw)
    number = math.prod(len(values) for values in usable["grid"].values())
    number *= min((len(values) for values in usable["zip"].values()), default=1)
    if number > MAX_VARIANTS:
        place = "grid" if usable["grid"] else "zip"
        text = f"found {number:,} variants (grid and zip); expected at most {MAX_VARIANTS:,}"
        return [], [*problems, Problem((place,), text)]
    found: list[Variant] = []
    seen = {(problem.path, problem.text) for problem in known}
    for origins, values in _combinations({**raw, **usable}):
        if len(problems) > MAX_PROBLEMS:
            break
        sweep, wrong = check(values, checked)
        if sweep is not None:
            changes = tuple((path, _plain_value(sweep, path)) for path in origins)
            found.append(Variant(sweep, changes, origins))
        for problem in wrong if origins else ():
            at = _origin(problem.path, origins)
            moved = Problem(at, problem.text if problem.path in origins else str(problem))
            if (problem.path, problem.text) not in seen and (moved.path, moved.text) not in seen:
                seen.add((moved.path, moved.text))
                problems.append(moved)
    return found, problems


def _combinations(raw: Mapping[str, Any]) -> Iterator[tuple[dict[Path, Path], dict[str, Any]]]:
    """Yield every combination as ({varied path: its value's path in grid or zip}, plain values of the sweep)."""
    axes = [[[(name, i, "grid")] for i in range(len(values))] for name, values in raw["grid"].items()]
    if raw["zip"]:
        length = min(len(values) for values in raw["zip"].values())
        axes.append([[(name, i, "zip") for name in raw["zip"]] for i in range(length)])
    plain = {key: value for key, value in raw.items() if key not in ("grid", "zip")}
    paths = {name: split(name, plain) for name in (*raw["grid"], *raw["zip"])}
    sections = {path[0] for path in paths.values()}
    for choice in itertools.product(*axes):
        values = {key: copy.deepcopy(value) if key in sections else value for key, value in plain.items()}
        origins: dict[Path, Path] = {}
        for name, index, kind in itertools.chain(*choice):
            put(values, paths[name], raw[kind][name][index])
            origins[paths[name]] = (kind, name, index)
        yield origins, values


def _plain_value(sweep: Sweep, path: Path) -> Any:
    """Return the validated value at ``finetune.KNOB`` or ``SECTION.NAME.KNOB`` as plain JSON."""
    section, *names, knob = path
    holder = getattr(sweep, str(section))
    for name in names:
        holder = holder[name]
    return holder[knob] if isinstance(holder, Mapping) else holder.model_dump(mode="json", include={knob})[str(knob)]


def _lists(raw: Mapping[str, Any]) -> tuple[list[Problem], dict[str, dict[str, list[Any]]]]:
    """Return the problems of grid and zip, and the parts of both that can be expanded."""
    problems: list[Problem] = []
    known = _paths(raw)
    usable: dict[str, dict[str, list[Any]]] = {"grid": {}, "zip": {}}
    blocks = {kind: mapping(raw, kind) for kind in ("grid", "zip")}
    for kind, name, values in ((kind, name, block[name]) for kind, block in blocks.items() for name in block):
        if name not in known:
            problems.append(Problem((kind, name), _unknown(name, known)))
        elif not isinstance(values, list) or not isinstance(raw.get(name.split(".")[0]) or {}, Mapping):
            continue  # the sweep's own check reports it
        elif not values:
            problems.append(Problem((kind, name), "found an empty list; expected at least one value"))
        elif kind == "zip" and name in blocks["grid"]:
            problems.append(Problem((kind, name), "found the same key in grid; expected it in one of the two"))
        else:
            usable[kind][name] = values
    for name, values in usable["grid"].items():
        for i, value in enumerate(values):
            if value in values[:i]:
                problems.append(Problem(("grid", name, i), f"found {show(value)} twice; expected each value once"))
    lengths = {name: len(values) for name, values in usable["zip"].items()}
    if len(set(lengths.values())) > 1:
        text = " and ".join(f"{length} ({name})" for name, length in lengths.items())
        problems.append(Problem(("zip",), f"found lists of {text} values; expected one length"))
    return problems, usable


def _paths(raw: Mapping[str, Any]) -> list[str]:
    paths = [f"finetune.{name}" for name in Finetune.model_fields if name != "seeds"]
    for section in (*TASK_SECTIONS, "mixtures"):
        for name, block in mapping(raw, section).items():
            if isinstance(block, Mapping):
                knobs = block if section == "mixtures" else _knobs(block.get("task"))
                paths += [f"{section}.{name}.{knob}" for knob in knobs if knob != "task"]
    return paths


def _knobs(task: object) -> Iterable[str]:
    try:
        return task_class(task).model_fields
    except InputError:
        return ()  # the sweep's own check reports it


def _unknown(name: str, known: Sequence[str]) -> str:
    if name == "finetune.seeds":
        return "found 'finetune.seeds'; expected the list of seeds in finetune itself, seeds: [0, 1, 2]"
    if name == "base_model":
        return "found 'base_model'; expected one base model per sweep: run the file again with --set base_model=…"
    near = nearest(name, known)
    ending = f"; did you mean {near!r}?" if near else ""
    return f"found {name!r}; expected a path like finetune.epochs, datasets.NAME.KNOB or evaluate.NAME.KNOB{ending}"


def _origin(path: Path, origins: Mapping[Path, Path]) -> Path:
    """Return the place in grid or zip of the varied value that shares most of a problem's path."""

    def common(varied: Path) -> int:
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, varied, strict=False))))

    return origins[max(origins, key=common)]


def suffix(changes: Sequence[tuple[str, Any]]) -> str:
    """Format varied values for a label: ``[epochs=2,learning_rate=1e-05]``."""
    compact = functools.partial(json.dumps, separators=(",", ":"))
    shown = [f"{key}={value if isinstance(value, str) else compact(value)}" for key, value in changes]
    return f"[{','.join(shown)}]" if changes else ""
