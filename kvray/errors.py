"""The errors that kvray raises on purpose. Standard library alone, so that any module may import it."""

import os
import re
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Path = tuple[str | int, ...]  # where a value is in a document: mapping keys and 0-based list indices

_SHOWN_PART = 60
_PACKAGE = os.path.dirname(__file__)
_LIBRARY = re.compile(r"[\\/](site-packages|dist-packages|IPython)[\\/]")


def dotted(path: Iterable[str | int]) -> str:
    """Return a path on one line: ``evaluate.mdqa.positions[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_one_line(part)}"
    return text.removeprefix(".")


def _one_line(name: str) -> str:
    shown = name if name.isprintable() and name.strip() else repr(name)
    return shown if len(shown) <= _SHOWN_PART else shown[: _SHOWN_PART - 1] + "…"


class Place(NamedTuple):
    """Where a value was written. Two values at one place are the same value, under two names by an alias."""

    line: int  # orders the messages
    text: str  # FILE:LINE, or the option: --set a.b
    column: int = 0  # from 1; 0 if unknown


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document."""

    path: Path  # of the value; empty for the document itself
    text: str  # what was found and what was expected
    place: Place | None = None  # where it was written, if not at the path

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


def install_command(extra: Literal["cpu", "gpu", "benchmarks"]) -> str:
    """Return what to type where the packages of an extra are missing: kvray is on no package index."""
    # The CPU set has builds that no plain "pip install" finds, so the Makefile installs it.
    command = "make setup" if extra == "cpu" else f"pip install '.[{extra}]'"
    return f"{command} in a clone of kvray"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a final full stop, or its type if it has no message."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message (of a trace: the error itself), or its type if it has no message."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class KvrayError(Exception):
    """An error whose message is meant for the user: what was found, what was expected, what to type next."""

    exit_status = 1

    def _render_traceback_(self, *_: object) -> list[str]:
        """Show the error in a notebook, where IPython asks for this: the user's own lines, then the message."""
        frames = traceback.extract_tb(self.__traceback__)
        own = [at for at in frames if not at.filename.startswith(_PACKAGE) and not _LIBRARY.search(at.filename)]
        return [*(f"line {at.lineno}: {at.line}" for at in own), f"{type(self).__name__}: {self}"]


class InputError(KvrayError):
    """The user's input cannot be used. Nothing has been written.

    ``found`` holds every problem with its path, where known; ``problems`` the same as lines, which are the message.
    """

    exit_status = 2

    def __init__(self, problems: str | Problem | Sequence[str | Problem]) -> None:
        given = [problems] if isinstance(problems, str | Problem) else problems
        self.found = tuple(each if isinstance(each, Problem) else Problem((), each) for each in given)
        self.problems = [str(each) for each in self.found]
        super().__init__("\n".join(self.problems))


class InvalidValueError(InputError, ValueError):
    """Values given in Python do not fit the object made of them: a sweep, a task, a part of a sweep."""


class SourceUnreachableError(InputError):
    """A source on the network does not answer. It may exist, so a plan can go on without it; a run cannot."""


class StoreError(KvrayError):
    """The store cannot be read or written as asked."""


class DamagedArtefactError(StoreError):
    """A committed artefact no longer matches its manifest (rows, bytes or sha256)."""


class RecipeMismatchError(StoreError):
    """An artefact with another recipe is committed at this id; it is never overwritten."""


class ResourceError(KvrayError):
    """The cluster cannot provide what was asked for; the message names the resource."""


class MemoryExhaustedError(KvrayError):
    """Memory ran out over what a process had taken, as it would again; the message names what to change."""


class CellError(KvrayError):
    """One cell of a sweep failed; the others go on."""


class RunInterrupted(KeyboardInterrupt):  # an interruption, as its base class, and no error
    """Ctrl-C during work that can be resumed; the message says what is kept."""
