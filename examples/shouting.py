"""A task of one's own: say in capitals what a person on a list carries."""

import random
from collections.abc import Sequence
from typing import ClassVar

from kvray.tasks import Example, RowTask, recipe

NAMES = ["Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gail", "Hugo", "Ida", "Jon"]
THINGS = ["lamp", "rope", "bell", "drum", "kite", "coin", "book", "ring", "shoe", "fork", "harp", "vase"]


class Shout(RowTask):
    """People and what they carry; one of them is asked for, and the answer is shouted."""

    VERSION: ClassVar[int] = 1
    """Raise it when the examples or the score change: what was made by an earlier version is made again."""
    UNIT: ClassVar[str] = "people"

    people: int = recipe(5, ge=2, le=len(NAMES), description="people on the list")

    def example(self, row: int, rng: random.Random) -> Example:
        """Draw the list, and who is asked for."""
        names, things = rng.sample(NAMES, self.people), rng.sample(THINGS, self.people)
        asked = rng.randrange(self.people)
        carried = "\n".join(f"{name} carries a {thing}." for name, thing in zip(names, things, strict=True))
        prompt = f"{carried}\nIn capitals: what does {names[asked]} carry?"
        return Example(prompt, things[asked].upper(), position=asked + 1, units=self.people)

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Right if the first word is the thing in capitals, half right in small letters."""
        word = answer.strip().split(maxsplit=1)[0].strip(".,!") if answer.strip() else ""
        return 1.0 if word in references else 0.5 if word.upper() in references else 0.0
