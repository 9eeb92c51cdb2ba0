"""YAML of sweeps: a safe reader that keeps lines, refuses duplicate keys and takes ``${VAR}`` from the environment.

Scalars follow YAML 1.2 where PyYAML follows 1.1: ``1e-5`` is a number; ``no``, ``on``, ``1:30`` and dates are text.
Mapping keys are always text. Limits on size, depth and number of values let every file be read or refused quickly.
"""

import math
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import yaml

from kvray.errors import SECRET, InputError, Path, Place, Problem
from kvray.sweep.document import Document, put, split, typed
from kvray.tasks.problems import show, unknown

MAX_BYTES = 2**20  # bytes of a file
MAX_NODES = 20_000  # values in a file; each use of an alias counts: nested aliases grow exponentially
MAX_DEPTH = 32  # levels of mappings and lists; a sweep has five
MAX_DIGITS = 18  # digits of an integer, so that it fits into 64 bits

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_NO_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters, surrogates and noncharacters, which no text contains."""
_EXPECTED = "expected a mapping with name, datasets, evaluate …"


def read(file: str) -> Document:
    """Read a YAML file; InputError if it is no regular file, too long, not UTF-8, not YAML, empty, or not a mapping."""
    try:
        path = FilePath(os.path.expanduser(file))
        # A pipe may never end and can be read only once; commands read a sweep again and again.
        if not stat.S_ISREG(path.stat().st_mode):
            kind = "a directory" if path.is_dir() else "a pipe or a device"
            raise InputError(f"{file}: found {kind}; expected a file, a sweep in YAML")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file}: found no readable file ({reason}); expected a sweep in YAML") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}: found over {MAX_BYTES:,} bytes; expected a sweep in YAML, which is shorter")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{file}:{line}: found bytes that are not UTF-8 at byte {error.start}; expected text"
        ) from error
    return parse(text.replace("\r\n", "\n").replace("\r", "\n"), file)


def parse(text: str, file: str) -> Document:
    """Parse YAML text, which messages call ``file``; InputError if it is not YAML, empty, or not a mapping."""
    document = Document(file)

    def place(mark: yaml.Mark) -> Place:
        return Place(mark.line + 1, f"{file}:{mark.line + 1}", mark.column + 1)

    try:
        node, tags = _compose(text)
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
            raise _Refused(1, f"found an empty file; {_EXPECTED}")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else show(node.value)
            raise _Refused(_line(node), f"found {kind}; {_EXPECTED}")
        document.value = _Reader(document, place, tags).value(node, ())
    except _Refused as refused:
        raise InputError(f"{file}:{refused.line}: {refused.text}") from refused
    return document


def override(document: Document, text: str) -> Problem | None:
    """Apply one ``dotted.key=value`` of the command line, the value in YAML; return its problem, if any."""
    name, equals, value = text.partition("=")
    name = name.strip()
    place = typed(f"--set {name if len(name) <= 200 else name[:199] + '…'}")
    if not equals or not all(name.split(".")) or _NO_TEXT.search(name):
        return Problem((), f"found {show(text)}; expected KEY.KEY=VALUE", typed("--set"))
    path = split(name, document.value)
    if path[0] in ("grid", "zip"):
        path = (path[0], name.partition(".")[2])  # their keys are dotted paths
    blocks = document.value.get(str(path[0]))
    if len(path) > 2 and path[0] in ("datasets", "evaluate") and isinstance(blocks, dict) and path[1] not in blocks:
        return Problem(path, unknown(str(path[1]), blocks, f"one of the {path[0]}"), place)
    try:
        node, tags = _compose(value)
        document.set(path, None, place)
        if node is not None:
            put(document.value, path, _Reader(document, lambda mark: place, tags).value(node, path))
            document.places[path] = place
    except _Refused as refused:
        return Problem(path, refused.text, place)
    except InputError as error:
        return Problem(path, error.found[0].text, place)
    return None


def dump(value: Any, line: bool = False) -> str:
    """Return a value as YAML that is read back to an equal one; with ``line``, as one line for ``--set key=``."""
    text = yaml.dump(
        [_escaped(value)] if line else _escaped(value),
        Dumper=_Dumper,
        default_flow_style=line or None,
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )
    return text[1:].rstrip()[:-1] if line else text


def _escaped(value: Any) -> Any:
    """Escape texts that would be read as environment variables (keys never are)."""
    if isinstance(value, dict):
        return {name: _escaped(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Writes no anchors, and quotes texts that our reader (YAML 1.2) would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    plain = value not in _WORDS and not _INT.fullmatch(value) and not _FLOAT.fullmatch(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else "'")


_Dumper.add_representer(str, _text)


@dataclass
class _Refused(Exception):
    """Why, and in which line, a text cannot be read at all."""

    line: int
    text: str


def _compose(text: str) -> tuple[yaml.Node | None, set[int]]:
    """Return the root node, and the positions of tags in the text."""
    stray = _NO_TEXT.search(text)
    if stray:
        line = text.count("\n", 0, stray.start()) + 1
        raise _Refused(line, f"not YAML: found the character {stray.group()!a}; expected text")
    try:
        tags = _scan(text)
        return yaml.compose(text, yaml.CSafeLoader), tags
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        written = dict(enumerate(text.split("\n"), start=1)).get(line, "")
        hint = ""
        if "\t" in written:
            hint = "; found a tab; expected spaces"
        elif "${" in written:
            hint = '; inside {…} and […] write "${NAME}" in quotes'
        raise _Refused(line, f"not YAML: {error.problem or error.context}{hint}") from error
    except yaml.YAMLError as error:
        raise _Refused(1, f"not YAML: {' '.join(str(error).split())}") from error


def _scan(text: str) -> set[int]:
    """Check the limits without recursion, before anything recurses; return the positions of tags."""
    depth, tags = 0, set()
    for count, event in enumerate(yaml.parse(text, yaml.CSafeLoader)):
        mark = event.start_mark
        line = mark.line + 1 if mark else 0
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _Refused(line, f"found over {MAX_DEPTH} mappings or lists inside each other; expected fewer")
        if count > 2 * MAX_NODES:
            raise _Refused(line, f"found over {MAX_NODES:,} values; expected fewer")
        if mark and getattr(event, "tag", None) is not None:
            tags.add(mark.index)
    return tags


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Reader:
    def __init__(self, document: Document, place: Callable[[Any], Place], tags: set[int]) -> None:
        self.document = document
        self.place = place
        self.tags = tags
        self.open: list[yaml.Node] = []
        self.nodes = 0
        self.reported: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.document.places.setdefault(path, self.place(node.start_mark))
        self.count(node)
        if node.start_mark.index in self.tags:
            return self.problem(node, path, f"found the tag {node.tag}; expected a plain value")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if not self.enter(node, path):
            return None
        result: dict[str, Any] | list[Any]
        if isinstance(node, yaml.MappingNode):
            result = {}
            self.fill(result, node, path)
        else:
            result = [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        self.open.pop()
        return result

    def fill(self, result: dict[str, Any], node: yaml.MappingNode, path: Path) -> None:
        """Add a mapping's pairs, then those that ``<<`` merges into it; keys that ``result`` has keep their values."""
        merged: list[yaml.Node] = []
        nearer, own = set(result), set()
        for key, item in node.value:
            self.count(key)
            if not isinstance(key, yaml.ScalarNode) or key.start_mark.index in self.tags:
                self.problem(key, path, "found a key that is a list, a mapping or has a tag; expected a name")
            elif _NO_TEXT.search(key.value):
                self.problem(key, path, f"found the key {key.value!a}; expected a name")
            elif key.tag.endswith(":merge"):
                merged += item.value if isinstance(item, yaml.SequenceNode) else [item]
            elif key.value in own:
                first = self.document.places[(*path, key.value)].line
                self.problem(key, (*path, key.value), f"found the key twice, first in line {first}; expected it once")
            elif key.value not in nearer:
                own.add(key.value)
                self.document.places[(*path, key.value)] = self.place(key.start_mark)
                result[key.value] = self.value(item, (*path, key.value))
        for source in merged:
            self.count(source)
            if not isinstance(source, yaml.MappingNode):
                self.problem(source, path, "found << of something else; expected << of a mapping")
            elif self.enter(source, path):
                self.fill(result, source, path)
                self.open.pop()

    def enter(self, node: yaml.Node, path: Path) -> bool:
        """Open a mapping or list, unless it is open already or too deep (aliases can nest deeper than the text)."""
        if any(node is other for other in self.open):
            self.problem(node, path, "found an alias inside its own anchor; expected a value")
            return False
        if len(self.open) >= MAX_DEPTH:
            text = f"found over {MAX_DEPTH} mappings or lists inside each other (aliases included); expected fewer"
            raise _Refused(_line(node), text)
        self.open.append(node)
        return True

    def count(self, node: yaml.Node) -> None:
        self.nodes += 1
        if self.nodes > 2 * MAX_NODES:
            raise _Refused(_line(node), f"found over {MAX_NODES:,} values (aliases included); expected fewer")

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

        secret = next((match[2] for match in _VARIABLE.finditer(node.value) if SECRET.search(match[2] or "")), None)
        if secret:
            # What a sweep says is written to the store, and its sources are asked for over the network.
            found = f"found ${{{secret}}}, the name of a secret; expected none in a sweep, which is stored as it is"
            return self.problem(node, path, found)
        text = _VARIABLE.sub(replace, node.value)
        if missing:
            names = " and ".join(dict.fromkeys(missing))
            hint = f"${{{missing[0]}:-…}}"
            found = f"found {show(node.value)} but {names} is not set; expected it in the environment, or {hint}"
            return self.problem(node, path, found)
        stray = _NO_TEXT.search(text)
        if stray:
            return self.problem(node, path, f"found the character {stray.group()!a}; expected text without it")
        return text if node.style else self.plain(node, path, text)

    def plain(self, node: yaml.ScalarNode, path: Path, text: str) -> Any:
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            digits = text.lstrip("+-").replace("_", "").lstrip("0")
            if len(digits) > MAX_DIGITS:
                found = f"found a whole number of {len(digits):,} digits; expected at most {MAX_DIGITS}"
                return self.problem(node, path, found)
            return int(text.replace("_", ""))
        if _FLOAT.fullmatch(text):
            number = float(text.replace("_", ""))
            return number if math.isfinite(number) else text
        return text

    def problem(self, node: yaml.Node, path: Path, text: str) -> None:
        """Record a problem of a node, once however many aliases repeat it."""
        if id(node) not in self.reported:
            self.document.problems.append(Problem(path, text, self.place(node.start_mark)))
        self.reported.add(id(node))
        self.document.broken.add(path)
