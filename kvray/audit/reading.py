"""What a solver reads in one prompt, and what every solver is made with.

Nothing of this room imports the tasks (tests/test_layers.py): a solver knows the published wording of a prompt, and
nothing of the code that made it.
"""

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Knobs = Mapping[str, Any]
"""A task's parameters, as in a sweep file, defaults included."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


class Unsolved(ValueError):
    """A prompt does not have the published layout, or does not say what is asked; the message tells what was found."""


@dataclass(frozen=True)
class Reading:
    """What one prompt says.

    Attributes:
        question, evidence: what is asked, and the parts of the prompt that answer it; for the words that both have.
        references: every set of accepted answers that the prompt supports: one, or several where it is ambiguous; None
            where a prompt alone does not tell, and ``documents`` are searched for the row's own.
        answer: what a row trains on, word for word; None where the wording is free.
        documents: the texts of a prompt of which one alone may hold an accepted answer.
        position, units: the 1-based place of the answer among its kind, and how many of these there are; None: untold.
        depths: the percents of the text (by characters) at which the answer stands and the sentence behind it ends;
            None where depth is no axis.
        place: 0-based places of what answers, each among so many.
        subtask: the kind of example, None where there is one kind alone.
        layouts: of the named layouts of a task (FLenQA's dispersions) those that the prompt can be; None: not told.
        hits: of each way to guess, the share of the guesses that would be right.
        sizes: numbers counted in the prompt, by what they are.
    """

    question: str
    evidence: str
    references: tuple[tuple[str, ...], ...] | None = None
    answer: str | None = None
    documents: tuple[str, ...] | None = None
    position: int | None = None
    units: int | None = None
    depths: tuple[float, float] | None = None
    place: tuple[tuple[int, int], ...] = ()
    subtask: str | None = None
    layouts: frozenset[str] | None = None
    hits: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, list[int]] = field(default_factory=dict)


class Unread(Exception):
    """A prompt is none of those that a solver is for, which is no fault of it."""


Solve = Callable[[str], Reading]
"""Reads a prompt; raises :class:`Unsolved` or :class:`Unread`."""


@dataclass(frozen=True)
class Solver:
    """A solver of one task's prompts.

    Attributes:
        solve: reads a prompt.
        any_of: whether one of a row's references is enough for a right answer; False: all of them are needed.
        ambiguous: whether the task's law allows prompts with several answers, which are then counted and not wrong.
        length: whether a row's ``length`` bounds the tokens of its whole prompt.
        most_tokens: the tokens that no prompt has more of; None: any number.
    """

    solve: Solve
    any_of: bool = False
    ambiguous: bool = False
    length: bool = False
    most_tokens: int | None = None


def only(pattern: re.Pattern[str], prompt: str, what: str) -> re.Match[str]:
    """Return the one match of a pattern in a prompt; Unsolved names ``what`` is missing or comes again."""
    found = list(pattern.finditer(prompt))
    if len(found) != 1:
        raise Unsolved(f"found {len(found)} times {what}, expected it once")
    return found[0]


def normal(text: str) -> str:
    """Return a text in lower case without punctuation, articles and further spaces, as SQuAD's evaluation has it."""
    return " ".join(_ARTICLES.sub(" ", _PUNCTUATION.sub("", text.lower())).split())


def entries(size: int, gold: int | None) -> dict[str, float]:
    """Return the hits of naming the first, the last or a random one of ``size`` entries, ``gold`` (0-based) right."""
    right = gold is not None
    return {"first entry": float(gold == 0), "last entry": float(gold == size - 1), "random entry": right / size}
