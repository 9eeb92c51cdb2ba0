"""FLenQA's prompts, conditions and scorer, to the letter of its authors' notebook (Levy et al. 2024; Apache-2.0)."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from kvray.tasks import prompts

Subtask = Literal["MonoRel", "PIR", "RuleTaker"]
Padding = Literal["same", "books", "identity"]
Dispersion = Literal["first", "middle", "last", "random"]
Verdict = Literal["true", "false", "other"]

TEXTS: dict[str, Any] = prompts.load("flenqa/texts.toml")
"""The authors' prompts, and the words of our own instances."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Condition:
    """One text of an instance: its padding, where the key paragraphs stand, and its nominal length in tokens."""

    padding: Padding
    dispersion: Dispersion
    length: int


@dataclass(frozen=True)
class Question:
    """A true or false question, or a statement to derive; ``label`` is the answer, ``rule`` is RuleTaker's, else "".

    ``steps`` is the reasoning of a worked answer, a sentence each.
    """

    question: str
    label: bool
    steps: tuple[str, ...]
    rule: str


def prompt(subtask: Subtask, cot: bool, *, text: str, question: str, rule: str = "") -> str:
    """Word a prompt; ``cot`` asks for the steps first (chain of thought).

    In the published rows ``text`` (key paragraphs and padding) is ``mixin`` and ``question`` is ``assertion/question``.
    """
    template: str = TEXTS["prompts"]["cot" if cot else "direct"][subtask]
    return template.format(text=text, question=question, rule=rule)


def verdict(answer: str) -> Verdict:
    """Return an answer's last "true" or "false", as the authors' notebook reads it; "other" if it has neither.

    The answer is lower-cased, articles and runs of white space become single spaces, "not true" counts as "false"; then
    the last "true" or "false" counts, as a word or within one.
    """
    normal = " ".join(_ARTICLES.sub(" ", answer.lower()).split()).replace("not true", "false")
    true, false = normal.rfind("true"), normal.rfind("false")
    if true == false:
        return "other"
    return "true" if true > false else "false"
