"""Needle in a haystack: one sentence hidden in a long text, and a question that it answers (Kamradt 2023).

The prompt has his structure: the text, then the question with "Don't give information outside the document or repeat
your findings"; he sends them as two user messages after a system message, ours is one message. His needle is
``needles: classic``; by default every example has another one. He lets a model grade the answer; ours is exact. The
paper's needle baseline is built on his test; its training data are not described, so these are ours: many needles,
random depths, one length, 400 rows of 4,096 tokens (not fewer than its own 350 rows of about 3,950).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from kvray.tasks import prompts, world
from kvray.tasks.base import Context, CountTokens, Many, Task, distinct, listed, recipe, register, runtime
from kvray.tasks.needle import haystack
from kvray.tasks.needle.haystack import Frame, Haystack
from kvray.tasks.qa.base import DocumentsTask
from kvray.tasks.qa.questions import normalise
from kvray.tasks.rng import below, draws, key_of
from kvray.tasks.rows import Example
from kvray.tasks.world import TINY

TEXTS = prompts.TEXTS["needle"]


@dataclass(frozen=True)
class Family:
    """Facts of one kind about the made-up people of :mod:`kvray.tasks.world`, for haystacks of any text.

    "The special ingredient of Belda Cranford's soup is saffron": no value is part of another, a subject or a question.
    """

    subject: str
    values: tuple[str, ...]

    def fact(self, name: str, value: str) -> str:
        return f"{self.subject.format(name=name)} is {value}"

    def question(self, name: str) -> str:
        subject = self.subject.format(name=name)
        return f"What is {subject[0].lower()}{subject[1:]}?"


FAMILIES = tuple(Family(kind["subject"], tuple(kind["values"])) for kind in prompts.load("needle/facts.toml")["facts"])
"""Twelve kinds of facts with sixteen values each."""
TINY_FAMILIES = tuple(Family(f"The {relation} of {{name}}", values) for relation, values in world.RELATIONS.items())
"""The kinds of facts of a haystack of the tiny world, worded as its own."""


@dataclass(frozen=True)
class Needle:
    """One needle: its text with the white space before it, the question, and the answer to train on (the fact again).

    An answer must contain the ``facts``. No other sentence of the haystack names the ``subject``, "" for nobody.
    """

    id: str
    text: str
    question: str
    answer: str
    facts: tuple[str, ...]
    subject: str = ""


@register("needle")
class NeedleInHaystack(Task):
    """Needles in a haystack; each is asked about at every length and depth."""

    MEASURES = "retrieval"

    task: Literal["needle"] = recipe("needle")
    source: str = runtime(
        TINY, description="the haystack: 'tiny' (the bundled model's world), or any text (.txt, .jsonl with 'text', …)"
    )
    needles: Literal["many", "classic"] = recipe(
        "many", description="many: every row another one; classic: Kamradt's San Francisco needle, to the letter"
    )
    split: Literal["test", "train"] = recipe("test", description="whose people the needles are about: test or train")
    rows: int = recipe(400, ge=1, description="needles (classic: haystacks); each at every length and depth")
    lengths: Many[int] = recipe((4096,), description="tokens of a prompt at most; within one sentence of it")
    depths: tuple[float, ...] | int | Literal["random"] = recipe(
        "random",
        description="percents of the haystack, a number of even steps from 0 to 100, or random: one per needle",
    )

    @field_validator("depths", mode="before")
    @classmethod
    def _listed_depths(cls, value: Any) -> Any:
        return listed(value) if isinstance(value, str) else value

    @field_validator("depths")
    @classmethod
    def _depths_fit(cls, value: tuple[float, ...] | int | str) -> tuple[float, ...] | int | str:
        if isinstance(value, int) and not 2 <= value <= 1001:
            raise ValueError(f"found {value}, expected 2 to 1001 steps from 0 to 100; type [{value}] for one depth")
        if isinstance(value, tuple):
            distinct(value)
            if wrong := [depth for depth in value if not 0 <= depth <= 100]:
                raise ValueError(f"found {wrong}, expected percents from 0 to 100")
        return value

    def depth_steps(self) -> tuple[float | None, ...]:
        """Return the depths in percent at which each needle is placed; one entry (None) when they are random."""
        if isinstance(self.depths, int):
            return tuple(np.linspace(0, 100, self.depths).tolist())
        return self.depths if isinstance(self.depths, tuple) else (None,)

    def sources(self) -> dict[str, str]:
        return {"source": world.source_identity(self.source)}

    def overlaps(self, other: Task) -> str | None:
        """Many needles are about people of their split, whatever the haystack; the classic one is always the same."""
        shared = False
        if isinstance(other, NeedleInHaystack):
            if self.needles == other.needles == "classic":
                return "both hide the one classic needle; train on 'needles: many'"
            shared = self.needles == other.needles and self.split == other.split
        elif isinstance(other, DocumentsTask) and self.needles == "many" and other.source == self.source == TINY:
            shared = (self.split == "train") == (other.split == "train")
        if not shared:
            return None
        return (
            "its needles are about people that the evaluation asks about; "
            "give the dataset 'split: train' and the evaluation 'split: test'"
        )

    def per_row(self) -> int:
        return len(self.lengths) * len(self.depth_steps())

    def tokens_estimate(self) -> int:
        return max(1, sum(self.lengths) // len(self.lengths) - 12)

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the haystack; an InputError if that cannot be done or it has no sentence."""
        return Context(count_tokens, haystack.read(self.source, count_tokens, self.split, self.seed))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """All lengths and depths of one needle share a haystack.

        Raises InputError if a length has no room for the needle, the question and one sentence.
        """
        hay: Haystack = context.material
        key = key_of("needle", self.VERSION, self.seed, self.needles, self.split)
        people = np.argsort(draws(key, 0, world.group_size(self.split), 1, 1)[:, 0], kind="stable")
        steps = self.depth_steps()
        made, frames = [], []
        for row in range(start, stop):
            number, cell = divmod(row, len(self.lengths) * len(steps))
            length, step = self.lengths[cell // len(steps)], steps[cell % len(steps)]
            drawn = draws(key, number, number + 1, 4)[0]
            turn, slot = divmod(number, people.size)
            of_person = draws(key, slot, slot + 1, 4)[0, 1]
            needle = self._needle(number, int(people[slot]), turn, (of_person, drawn[2]))
            depth = int(below(drawn[3], 1001)) / 10 if step is None else step
            forbidden = [normalise(text) for text in (*needle.facts, needle.subject) if text]
            supply = hay.supply(int(below(drawn[0], len(hay.pieces))), forbidden)
            tail = TEXTS["tail"].format(question=needle.question)
            frames.append(Frame(supply, ((depth, needle.text),), "", tail, length))
            name = f"{needle.id}-{length}-{depth:.6g}"
            made.append(
                Example("", needle.answer, needle.facts, needle.id, length=length, depth=depth, example_id=name)
            )
        return haystack.examples(made, frames, context.count_tokens)

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the needle, which the answer to train on repeats."""
        return [row["answer"]] if row["answer"] in row["prompt"] else []

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return 1.0 if the answer contains every fact of the needle, else 0.0; the rule is ours.

        Both are stripped of case, ASCII punctuation, articles and further white space, as by SQuAD's script; every line
        counts. Kamradt lets a model grade the answer.
        """
        normal = normalise(answer)
        return float(all(normalise(reference) in normal for reference in references))

    def _needle(self, number: int, person: int, turn: int, drawn: tuple[Any, Any]) -> Needle:
        """Return needle ``number``, about a person who had ``turn`` needles before; each turn asks for something else.

        ``drawn`` is the person's draw, for what is asked, and the needle's, for the value.
        """
        if self.needles == "classic":
            text, facts = TEXTS["classic"], tuple(TEXTS["facts"])
            return Needle(f"needle-classic-{number:06d}", text, TEXTS["question"], text.strip(), facts)
        name = world.name_of(self.split, person)
        families = TINY_FAMILIES if self.source == TINY else FAMILIES
        family = families[(int(below(drawn[0], len(families))) + turn) % len(families)]
        value = family.values[int(below(drawn[1], len(family.values)))]
        fact, stop = family.fact(name, value), "" if self.source == TINY else "."
        # The tiny world's answers have no full stop, in any task.
        return Needle(
            f"needle-{self.split}-{number:06d}", f" {fact}.", family.question(name), f"{fact}{stop}", (value,), name
        )
