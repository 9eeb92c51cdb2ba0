"""The facts that needles state: made-up ones about made-up people, for haystacks of any text; all of it ours.

A fact reads "The special ingredient of Belda Cranford's soup is saffron", is asked as "What is the special ingredient
of Belda Cranford's soup?", and an answer restates it up to the value (the paper's answer template at work). The people
are :mod:`kvray.tasks.world`'s, so that those of training and of evaluation are apart by construction.
"""

import tomllib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Family:
    """Facts of one kind.

    Attributes:
        subject: what a fact is about, with ``{name}``.
        values: what it can be; no value is part of another one, of any subject or of a question.
    """

    subject: str
    values: tuple[str, ...]

    def fact(self, name: str, value: str) -> str:
        """Word a fact, without its full stop."""
        return f"{self.subject.format(name=name)} is {value}"

    def question(self, name: str) -> str:
        """Word the question that a fact answers."""
        subject = self.subject.format(name=name)
        return f"What is {subject[0].lower()}{subject[1:]}?"


_TABLE = tomllib.loads(resources.files("kvray.tasks.needle").joinpath("facts.toml").read_text("utf-8"))
FAMILIES = tuple(Family(kind["subject"], tuple(kind["values"])) for kind in _TABLE["facts"])
"""Twelve kinds of facts with sixteen values each."""
