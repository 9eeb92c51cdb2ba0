"""A sweep's plain values with the place of each, in a YAML file or on the command line."""

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvray.errors import InputError, Path, Place, Problem, dotted
from kvray.tasks.base import Strict
from kvray.tasks.problems import MAX_PROBLEMS, one_line, show

_TYPED_LINE = 10**9
_ABSENT = object()


@dataclass
class Document:
    """A YAML file as plain values, with the place of each key and list item."""

    file: str  # as the user named it; empty for values given in Python
    value: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)  # of the YAML itself (duplicate keys, unset variables, tags)
    broken: set[Path] = field(default_factory=set)  # paths of values that a problem hides; no further one is reported

    def place(self, path: Path) -> Place:
        """Return the place of the value at ``path``, else of the nearest one that contains it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(1, f"{self.file}:1" if self.file else "")

    def set(self, path: Path, value: Any, place: Place) -> None:
        """Put a value at a path as :func:`put` does; problems below the path are dropped."""
        put(self.value, path, value)
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.broken = {known for known in self.broken if known[: len(path)] != path}
        self.problems = [p for p in self.problems if p.path[: len(path)] != path]
        self.places[path] = place

    def lateness(self, path: Path) -> int:
        """Return what wrote the value at a path: 0 the file, 1 a scale of it, 2 the command line."""
        place = self.place(path)
        if place.line == _TYPED_LINE:
            return 2
        return int(any(known[0] == "scales" and other == place for known, other in self.places.items() if known))

    def hides(self, path: Path) -> bool:
        """Return whether a value (at the empty path: any section) is unknown because of a reported problem."""
        if not path:
            return any(len(broken) == 1 for broken in self.broken)
        return any(path[: len(broken)] == broken[: len(path)] for broken in self.broken)

    def report(self, problems: Iterable[Problem]) -> list[str]:
        """Return a line per problem, ``FILE:LINE: dotted.path: text``, in file order: the first few, none twice."""
        lines: dict[str, int] = {}
        reported: set[tuple[Place, str]] = set()
        for problem in map(self._narrowed, problems):
            place = problem.place or self.place(problem.path)
            if place.column and (place, problem.text) in reported:
                continue
            reported.add((place, problem.text))
            lines.setdefault(one_line(f"{place.text}: {problem}" if place.text else str(problem)), place.line)
        ordered = sorted(lines, key=lambda line: lines[line])
        more = [f"{self.file}: more problems than these {MAX_PROBLEMS}"] if len(ordered) > MAX_PROBLEMS else []
        return [*ordered[:MAX_PROBLEMS], *more]

    def _narrowed(self, problem: Problem) -> Problem:
        """Move field names, with which tasks start a problem's text, into its path: a field has a line of its own."""
        head, colon, text = problem.text.partition(": ")
        here = _at(self.value, problem.path)
        below = split(head, here) if colon and isinstance(here, Mapping) else ()
        if not below or _at(here, below) is _ABSENT:
            return problem
        return self._narrowed(Problem((*problem.path, *below), text, problem.place))


def from_values(values: Mapping[str, Any]) -> Document:
    """Return values given in Python as a document without a file, whose problems have an order but no lines.

    Objects (tasks, ``Finetune``, ``Runtime``) become mappings as in a file, tuples and ranges lists, paths text.
    """
    document = Document("")

    def plain(value: Any, path: Path) -> Any:
        document.places[path] = Place(len(document.places) + 1, "")
        if isinstance(value, Strict):
            value = value.written()
        if isinstance(value, Mapping):
            return {str(key): plain(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, list | tuple | range):
            return [plain(item, (*path, index)) for index, item in enumerate(value)]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    document.value = plain(values, ())
    return document


def typed(option: str) -> Place:
    """Return the place of a command-line option, whose problems are reported after those of the file."""
    return Place(_TYPED_LINE, option)


def put(target: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value at a path of keys, in place, creating mappings above it; InputError if one of them is no mapping."""
    for depth, part in enumerate(path[:-1], start=1):
        if target.get(str(part)) is None:
            target[str(part)] = {}
        below = target[str(part)]
        if not isinstance(below, dict):
            raise InputError(Problem(path, f"found {show(below)} at {dotted(path[:depth])}; expected a mapping"))
        target = below
    target[str(path[-1])] = value


def merge(document: Document, path: Path, value: Any, written: Path) -> None:
    """Change a document at a path: a mapping is merged into the existing one, None deletes, all else replaces.

    ``written`` is the path at which the value stands in the document, for the lines of messages. Raises InputError as
    :func:`put`.
    """
    if isinstance(value, dict) and isinstance(_at(document.value, path), dict):
        for key, inner in value.items():
            merge(document, (*path, key), inner, (*written, key))
        return
    below = [known for known in document.places if known[: len(written)] == written]
    inner = {(*path, *known[len(written) :]): document.places[known] for known in below}
    unknown = {(*path, *known[len(written) :]) for known in document.broken if known[: len(written)] == written}
    document.set(path, copy.deepcopy(value), document.place(written))
    document.places |= inner
    document.broken |= unknown
    if value is None and path not in unknown:
        above: Any = document.value
        for part in path[:-1]:
            above = above[part]
        del above[path[-1]]


def split(path: str, root: Mapping[str, Any]) -> Path:
    """Split a dotted path along the keys of ``root``, which may contain dots themselves."""
    parts = path.split(".")
    keys: list[str] = []
    here: object = root
    while parts:
        lengths = range(len(parts), 0, -1) if isinstance(here, Mapping) else ()
        take = next((n for n in lengths if ".".join(parts[:n]) in here), 0)  # type: ignore[operator]
        keys.append(".".join(parts[: take or 1]))
        here = here[keys[-1]] if take and isinstance(here, Mapping) else None
        parts = parts[take or 1 :]
    return tuple(keys)


def _at(root: Any, path: Path) -> Any:
    for part in path:
        root = root.get(part, _ABSENT) if isinstance(root, Mapping) else _ABSENT
    return root
