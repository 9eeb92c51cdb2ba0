"""FLenQA: reasoning over two facts as the text around them grows (Levy et al. 2024; the paper, sections 4.2 and 5.2).

True or false questions of three kinds: monotone relations (MonoRel), people in rooms (PIR), simplified RuleTaker. Each
base instance is asked at several lengths, paddings and placements of its two key paragraphs, so all of them pair. The
questions are ours, made at any length, or the published ones; prompts and scorer are the authors' to the letter. How
the paper chose its 2,000 samples per prompting mode is unknown; the default, ours, is every instance at random
placement in both paddings: 3,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import pyarrow as pa
from pydantic import field_validator, model_validator

from kvray.tasks.base import RIGHT, WRONG, Context, CountTokens, Task, examples, recipe, register, runtime
from kvray.tasks.flenqa import published
from kvray.tasks.flenqa.make import Condition, Dispersion, Maker, conditions
from kvray.tasks.flenqa.padding import Padding, split
from kvray.tasks.flenqa.prompts import Subtask, prompt, verdict
from kvray.tasks.flenqa.published import Rows
from kvray.tasks.sources import read

TINY = "tiny"
OTHER = "other"


@register("flenqa")
class Flenqa(Task):
    """True or false questions over two key paragraphs in growing contexts."""

    VERSION = 1
    MEASURES = "length"
    TRAINABLE = False
    # The authors decode as many in both prompting modes.
    MAX_OUTPUT_TOKENS = 400

    task: Literal["flenqa"] = recipe("flenqa")
    tasks: tuple[Subtask, ...] = recipe(("MonoRel", "PIR", "RuleTaker"), description="which of the three tasks")
    lengths: tuple[int, ...] = recipe(
        (250, 500, 1000, 2000, 3000),
        description="tokens of the text without question and instructions; any if generated, else the published five",
    )
    dispersions: tuple[Dispersion, ...] = recipe(
        ("random",), description="where the key paragraphs stand in the padding: first, middle, last, random"
    )
    paddings: tuple[Padding, ...] = recipe(
        ("books", "same"), description="books (prose), same (other instances of the task), identity (key paragraphs)"
    )
    cot: bool = recipe(False, description="ask for the steps first (chain of thought)")
    questions: int = recipe(100, ge=1, description="base instances per task; half of them true")
    source: str = runtime(
        TINY,
        description="'tiny' (ours, made at any length), or the published rows: hf://datasets/alonj/FLenQA or a file",
    )
    padding_source: str | None = runtime(
        None, description="text to cut 'books' padding from, by path or URL; default prose of our own; 'tiny' alone"
    )

    @field_validator("tasks", "lengths", "dispersions", "paddings", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | int) else value

    @field_validator("tasks", "lengths", "dispersions", "paddings")
    @classmethod
    def _different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values or len(set(values)) != len(values):
            raise ValueError(f"expected at least one value, and each once; found {list(values)}")
        return values

    @field_validator("lengths")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError(f"expected numbers of tokens from 1; found {min(values)}")
        return values

    @model_validator(mode="after")
    def _padding_is_ours(self) -> Flenqa:
        if self.padding_source is not None and (self.source != TINY or "books" not in self.paddings):
            raise ValueError("padding_source is used with source: tiny and 'books' among the paddings alone")
        return self

    def sources(self) -> dict[str, str]:
        """Return what identifies the published rows, or the version of the tiny world, and the padding's text."""
        found = {"source": "tiny-world-1" if self.source == TINY else read.digest(self.source)}
        if self.padding_source is not None:
            found["padding_source"] = read.digest(self.padding_source)
        return found

    def conditions(self) -> tuple[Condition, ...]:
        """Return the conditions that each base instance is asked under."""
        return tuple(conditions(self.paddings, self.dispersions, self.lengths))

    def count(self, context: Context) -> int:
        """Return the number of examples: every base instance under every condition."""
        return self.expected_rows()

    def expected_rows(self) -> int:
        """Return the number of examples."""
        return self.questions * len(self.tasks) * len(self.conditions())

    def with_rows(self, rows: int) -> Flenqa:
        """Return the task with just enough base instances for ``rows`` examples."""
        return self.model_copy(update={"questions": -(-rows // (len(self.tasks) * len(self.conditions())))})

    def distinct_questions(self, rows: int) -> int:
        """Return the base instances of ``rows`` examples: each is asked under every condition."""
        return -(-rows // len(self.conditions()))

    def tokens_estimate(self) -> int:
        """Prompt tokens of one example, roughly: the mean length, the question and the instructions."""
        return sum(self.lengths) // len(self.lengths) + (120 if self.cot else 60)

    def output_estimate(self) -> int:
        """Tokens of a reply, roughly: the steps, or one word."""
        return 200 if self.cot else 5

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the published rows and choose among them, or the text that padding is cut from.

        Raises:
            InputError: a source cannot be read; or there are no such rows, or too few.
        """
        if self.source != TINY:
            return Context(count_tokens, _Published.of(self))
        prose = None
        if self.padding_source is not None:
            prose = split(read.texts(self.padding_source), self.padding_source)
        return Context(count_tokens, Maker(self.VERSION, self.seed, min(self.lengths), count_tokens, prose))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``: base instances by turns of the tasks, each under all its conditions.

        Raises:
            InputError: the base model's tokenizer needs more tokens for the key paragraphs than a length has.
        """
        asked = self.conditions()
        made = [
            one
            for base, rows in groupby(range(start, stop), key=lambda row: row // len(asked))
            for one in self._asked(base, [asked[row % len(asked)] for row in rows], context)
        ]
        prompts = [prompt(one.subtask, self.cot, text=one.text, question=one.question, rule=one.rule) for one in made]
        labels = [str(one.label) for one in made]
        return examples(
            {
                "example_id": [
                    f"{one.id}-{one.condition.padding}-{one.condition.dispersion}-{one.condition.length}"
                    for one in made
                ],
                "question_id": [one.id for one in made],
                "units": [0] * len(made),
                "length": [one.condition.length for one in made],
                "subtask": [one.subtask for one in made],
                "condition": [f"dispersion={one.condition.dispersion} padding={one.condition.padding}" for one in made],
                "prompt": prompts,
                "answer": [one.worked() if self.cot else label for one, label in zip(made, labels, strict=True)],
                "references": [[label] for label in labels],
                "prompt_tokens": context.count_tokens(prompts).tolist(),
            }
        )

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score as FLenQA's authors do: the last "true" or "false" of the answer counts, "not true" is false."""
        return float(verdict(answer) == references[0].lower())

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Tell right, wrong and "other": answers with neither "true" nor "false", which count as wrong."""
        said = verdict(answer)
        return OTHER if said == "other" else RIGHT if said == references[0].lower() else WRONG

    def _asked(self, base: int, asked: Sequence[Condition], context: Context) -> Iterator[_Asked]:
        """Yield a base instance under some of its conditions."""
        number, index = divmod(base, len(self.tasks))
        subtask = self.tasks[index]
        if isinstance(context.material, _Published):
            instance = context.material.chosen[subtask][number]
            rows = context.material.rows[subtask, instance]
            for condition in asked:
                row = rows[condition]
                name = f"{subtask}-{instance}"
                yield _Asked(name, subtask, condition, row.text, row.question, row.rule, row.steps, row.label)
        else:
            made, texts = context.material.texts(subtask, number, asked)
            name = f"{subtask}-{number:05d}"
            for condition, text in zip(asked, texts, strict=True):
                yield _Asked(name, subtask, condition, text, made.question, made.rule, made.steps, made.label)


@dataclass(frozen=True)
class _Asked:
    """A question under one condition."""

    id: str
    subtask: Subtask
    condition: Condition
    text: str
    question: str
    rule: str
    steps: tuple[str, ...]
    label: bool

    def worked(self) -> str:
        """Return a worked answer: what leads to it, the question, the answer."""
        return "\n".join((*self.steps, f"{self.question} {self.label}"))


@dataclass(frozen=True)
class _Published:
    """Published rows, and the base instances of each task that were chosen."""

    rows: Rows
    chosen: Mapping[Subtask, Sequence[str]]

    @classmethod
    def of(cls, task: Flenqa) -> _Published:
        rows = published.read(task.source, task.tasks, task.conditions())
        key = ("flenqa", task.VERSION, task.seed, "published")
        return cls(rows, {name: published.choose(rows, name, task.questions, key) for name in task.tasks})
