"""The errors that kvray raises on purpose. Standard library alone, so that anything may import it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal


def install_command(extra: Literal["cpu", "gpu", "benchmarks"]) -> str:
    """Return what to type where the packages of an extra are missing: kvray is on no package index.

    The CPU set has builds that no plain ``pip install`` finds, so the Makefile installs it.
    """
    command = "make setup" if extra == "cpu" else f"pip install '.[{extra}]'"
    return f"{command} in a clone of kvray"


class KvrayError(Exception):
    """An error whose message is meant for the user: what was found, what was expected, what to type next."""

    exit_status = 1


class InputError(KvrayError):
    """The user's input cannot be used. Nothing has been written.

    Attributes:
        problems: every problem found, one line each; the message is their join.
    """

    exit_status = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class SourceUnreachableError(InputError):
    """A source on the network does not answer: it may exist, so a plan can go on without, a run cannot."""


class StoreError(KvrayError):
    """The store cannot be read or written as asked."""


class DamagedArtefactError(StoreError):
    """A committed artefact no longer matches its manifest (rows, bytes or sha256)."""


class RecipeMismatchError(StoreError):
    """An artefact is committed at this id with another recipe; it is never overwritten."""


class ResourceError(KvrayError):
    """The cluster cannot provide what was asked for; the message names the resource."""


class CellError(KvrayError):
    """One cell of a sweep failed; the others go on."""
