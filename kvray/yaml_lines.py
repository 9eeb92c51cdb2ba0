"""YAML that remembers its lines: the safe loader, closed to duplicate keys, with ``${VAR}`` from the environment.

Scalars follow YAML 1.2 where PyYAML follows 1.1: ``1e-5`` is a number; ``no``, ``on``, ``1:30`` and dates are text.
Mapping keys are always text, as written.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from kvray.errors import InputError, Path, Place, Problem, dotted
from kvray.problems import show, unknown

MAX_NODES = 100_000
"""Values in one file, aliases counted as often as they are used (a file of nested aliases explodes otherwise)."""

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {"": None, "~": None}
for _word, _value in (("null", None), ("true", True), ("false", False)):
    _WORDS |= {_word: _value, _word.title(): _value, _word.upper(): _value}
_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_TAGS = ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "map", "seq")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in _TAGS}
_OVERRIDE_LINE = 10**9
_ABSENT = object()


@dataclass
class Document:
    """A YAML file as plain values, with the place of each.

    Attributes:
        file: as the user named it.
        value: the top-level mapping.
        places: where each key or list item was written.
        problems: what is wrong with the YAML itself (duplicate keys, unset variables, tags).
        broken: paths whose value is unknown because of a problem; nothing more should be said about them.
    """

    file: str
    value: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[Path] = field(default_factory=set)

    def place(self, path: Path) -> Place:
        """Return where the value at ``path`` is, or the nearest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(1, f"{self.file}:1")

    def set(self, path: Path, value: Any, place: Place) -> None:
        """Put a value at a path of mapping keys, making the mappings above it.

        Raises:
            InputError: something above the path is not a mapping.
        """
        put(self.value, path, value)
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.broken = {known for known in self.broken if known[: len(path)] != path}
        self.problems = [p for p in self.problems if p.path[: len(path)] != path]
        self.places[path] = place

    def hides(self, path: Path) -> bool:
        """Say whether the value at a path is unknown because of a problem that is reported already."""
        return any(path[: len(broken)] == broken for broken in self.broken)

    def report(self, problems: Iterable[Problem]) -> list[str]:
        """Return one line per problem, ``FILE:LINE: dotted.path: text``, in the order of the file, without repeats."""
        lines: dict[str, int] = {}
        for problem in map(self._narrowed, problems):
            place = problem.place or self.place(problem.path)
            lines.setdefault(f"{place.text}: {problem}", place.line)
        return sorted(lines, key=lambda line: lines[line])

    def _narrowed(self, problem: Problem) -> Problem:
        """Move the keys that a text starts with into the path: ``datasets.kv: source: …`` is about a line of its own.

        Tasks and sources know the name of a field, not where in which file it was written.
        """
        head, colon, text = problem.text.partition(": ")
        here = _at(self.value, problem.path)
        below = split(head, here) if colon and isinstance(here, Mapping) else ()
        if not below or _at(here, below) is _ABSENT:
            return problem
        return self._narrowed(Problem((*problem.path, *below), text, problem.place))


def put(target: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value at a path of mapping keys, in place, making the mappings above it.

    Raises:
        InputError: something above the path is not a mapping.
    """
    for depth, part in enumerate(path[:-1], start=1):
        below = target.setdefault(str(part), {})
        if below is None:
            below = target[str(part)] = {}
        if not isinstance(below, dict):
            raise InputError(f"{dotted(path)}: found {show(below)} at {dotted(path[:depth])}; expected a mapping")
        target = below
    target[str(path[-1])] = value


def merge(document: Document, path: Path, value: Any, place: Place) -> None:
    """Change a document at a path: a mapping is merged into the one there, None takes away, all else replaces.

    Raises:
        InputError: something above the path is not a mapping.
    """
    here: Any = document.value
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None
    if isinstance(value, dict) and isinstance(here, dict):
        for key, inner in value.items():
            merge(document, (*path, key), inner, place)
        return
    document.set(path, copy.deepcopy(value), place)
    if value is None:
        above: Any = document.value
        for part in path[:-1]:
            above = above[part]
        del above[path[-1]]


def _at(root: Any, path: Path) -> Any:
    """Return what is at a path of mapping keys, :data:`_ABSENT` if nothing is."""
    for part in path:
        root = root.get(part, _ABSENT) if isinstance(root, Mapping) else _ABSENT
    return root


def split(path: str, root: Mapping[str, Any]) -> Path:
    """Split a dotted path along the keys of ``root``, whose names may hold dots themselves."""
    parts = path.split(".")
    keys: list[str] = []
    here: object = root
    while parts:
        lengths = range(len(parts), 0, -1)
        known = [n for n in lengths if isinstance(here, Mapping) and ".".join(parts[:n]) in here]
        take = known[0] if known else 1
        keys.append(".".join(parts[:take]))
        here = here[keys[-1]] if known and isinstance(here, Mapping) else None
        parts = parts[take:]
    return tuple(keys)


def read(file: str) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        InputError: no such file, not UTF-8, not YAML, empty, or not a mapping.
    """
    try:
        text = FilePath(file).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{file}: found no readable file ({error.strerror}); expected a sweep in YAML") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: found bytes that are not UTF-8 at byte {error.start}; expected text") from error
    return parse(text, file)


def parse(text: str, file: str) -> Document:
    """Parse the text of a YAML file whose top level is a mapping; ``file`` is its name in messages.

    Raises:
        InputError: not YAML, empty, or not a mapping.
    """
    node = _compose(text, file)
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        raise InputError(f"{file}:1: found an empty file; expected a mapping with name, datasets, evaluate …")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else show(node.value)
        raise InputError(f"{file}:{_line(node)}: found {kind}; expected a mapping with name, datasets, evaluate …")
    document = Document(file)
    document.value = _Reader(document, lambda line: Place(line, f"{file}:{line}")).mapping(node, ())
    return document


def typed(option: str) -> Place:
    """Return the place of what was typed on the command line; it is told after what is in the file."""
    return Place(_OVERRIDE_LINE, option)


def override(document: Document, text: str) -> Problem | None:
    """Apply one ``dotted.key=value`` of the command line, the value being YAML; return what is wrong with it."""
    name, equals, value = text.partition("=")
    name = name.strip()
    place = typed(f"--set {name}")
    if not equals or not all(name.split(".")):
        return Problem((), f"found {text!r}; expected KEY.KEY=VALUE", typed("--set"))
    path = split(name, document.value)
    if path[0] in ("grid", "zip"):
        path = (path[0], name.partition(".")[2])  # their keys are dotted paths
    blocks = document.value.get(str(path[0]))
    if len(path) > 2 and path[0] in ("datasets", "evaluate") and isinstance(blocks, dict) and path[1] not in blocks:
        return Problem(path, unknown(str(path[1]), blocks, f"one of the {path[0]}"), place)
    try:
        node = _compose(value, "")
        document.set(path, None, place)
    except InputError as error:
        return Problem(path, str(error).lstrip(":0123456789 "), place)
    if node is not None:
        put(document.value, path, _Reader(document, lambda line: place).value(node, path))
        document.places[path] = place
    return None


def _compose(text: str, file: str) -> yaml.Node | None:
    loader = yaml.CSafeLoader(text)
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        lines = text.splitlines()
        written = lines[line - 1] if line <= len(lines) else ""
        hint = ""
        if "\t" in written:
            hint = "; found a tab; expected spaces"
        elif "${" in written:
            hint = '; inside {…} and […] write "${NAME}" in quotes'
        raise InputError(f"{file}:{line}: not YAML: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{file}:1: not YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _scalar(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    return text


class _Reader:
    """Turns YAML nodes into plain values and notes where each came from."""

    def __init__(self, document: Document, place: Callable[[int], Place]) -> None:
        self.document = document
        self.place = place
        self.open: list[yaml.Node] = []
        self.nodes = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.document.places.setdefault(path, self.place(_line(node)))
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise InputError(f"{self.document.file}: found over {MAX_NODES} values (aliases included); expected fewer")
        if any(node is other for other in self.open):
            return self.problem(node, path, "found an alias inside its own anchor; expected a value")
        if node.tag not in _PLAIN_TAGS:
            return self.problem(node, path, f"found the tag {node.tag}; expected a plain value")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.pop()

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problem(key, path, "found a key that is a list or a mapping; expected a name")
            elif key.tag.endswith(":merge"):
                merged += item.value if isinstance(item, yaml.SequenceNode) else [item]
            elif key.value in result:
                first = self.document.places[(*path, key.value)].line
                self.problem(key, (*path, key.value), f"found the key twice, first in line {first}; expected it once")
            else:
                self.document.places[(*path, key.value)] = self.place(_line(key))
                result[key.value] = self.value(item, (*path, key.value))
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                self.problem(source, path, "found << of something else; expected << of a mapping")
            elif not any(source is other for other in self.open):
                own = [(key, item) for key, item in source.value if getattr(key, "value", None) not in result]
                result |= self.mapping(yaml.MappingNode(source.tag, own, source.start_mark, source.end_mark), path)
        return result

    def scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        missing: list[str] = []

        def replace(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return str(escaped)
            text = os.environ.get(name, "")
            if not text and default is None:
                missing.append(name)
            return text or default or ""

        text = _VARIABLE.sub(replace, node.value)
        if missing:
            names = " and ".join(missing)
            hint = f"${{{missing[0]}:-…}}"
            text = f"found {node.value!r} but {names} is not set; expected it in the environment, or {hint}"
            return self.problem(node, path, text)
        return text if node.style else _scalar(text)

    def problem(self, node: yaml.Node, path: Path, text: str) -> None:
        self.document.problems.append(Problem(path, text, self.place(_line(node))))
        self.document.broken.add(path)
