"""FLenQA: reasoning over two facts as the text around them grows (Levy et al. 2024; the paper, sections 4.2 and 5.2).

True or false questions of three kinds: monotone relations (MonoRel), people in rooms (PIR), simplified RuleTaker. Each
base instance is asked at several lengths, paddings and placements of its two key paragraphs, so all of them pair. The
questions are ours, made at any length, or the published ones; prompts and scorer are the authors' to the letter. How
the paper chose its 2,000 samples per prompting mode is unknown; the default, ours, is every instance at random
placement in both paddings: 3,000.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby, product
from typing import Any, Literal, Self, get_args

import pyarrow as pa
from pydantic import field_validator, model_validator

from kvray.tasks.base import RIGHT, WRONG, Context, CountTokens, Many, Task, added, recipe, register, runtime
from kvray.tasks.flenqa import published
from kvray.tasks.flenqa.make import Maker, instance, split
from kvray.tasks.flenqa.published import Condition, Dispersion, Padding, Subtask, prompt, verdict
from kvray.tasks.rng import key_of
from kvray.tasks.rows import Example, table
from kvray.tasks.sources import read
from kvray.tasks.world import TINY, source_identity

OTHER = "other"
_SUBTASKS = get_args(Subtask)


@register("flenqa")
class Flenqa(Task):
    """True or false questions over two key paragraphs in growing contexts."""

    MEASURES = "length"
    TRAINABLE = False
    # The authors decode as many in both prompting modes.
    MAX_OUTPUT_TOKENS = 400

    task: Literal["flenqa"] = recipe("flenqa")
    tasks: Many[Subtask] = recipe(("MonoRel", "PIR", "RuleTaker"), description="which of the three tasks")
    lengths: Many[int] = recipe(
        (250, 500, 1000, 2000, 3000),
        description="tokens of the text without question and instructions; any if generated, else the published five",
    )
    dispersions: Many[Dispersion] = recipe(
        ("random",), description="where the key paragraphs stand in the padding: first, middle, last, random"
    )
    paddings: Many[Padding] = recipe(
        ("books", "same"), description="books (prose), same (other instances of the task), identity (key paragraphs)"
    )
    cot: bool = recipe(False, description="ask for the steps first (chain of thought)")
    questions: int = recipe(100, ge=1, description="base instances per task; half of them true")
    limit: int | None = added(
        None, ge=1, description="prompts in all, the first ones, tasks in turn (the paper's 2,000 a mode); null: every"
    )
    source: str = runtime(
        TINY,
        description="'tiny' (ours, of any length), or the published rows: hf://datasets/alonj/FLenQA or a file",
    )
    padding_source: str | None = runtime(
        None,
        description="path or URL of text to cut 'books' padding from, with 'tiny' alone; null for prose of our own",
    )

    @field_validator("lengths")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if min(values) < 1:
            raise ValueError(f"expected numbers of tokens from 1; found {min(values)}")
        return values

    @model_validator(mode="after")
    def _padding_is_ours(self) -> Self:
        if self.padding_source is not None and (self.source != TINY or "books" not in self.paddings):
            raise ValueError("padding_source is used with source: tiny and 'books' among the paddings alone")
        return self

    def sources(self) -> dict[str, str]:
        identities = {"source": source_identity(self.source)}
        if self.padding_source is not None:
            identities["padding_source"] = read.digest(self.padding_source)
        return identities

    def conditions(self) -> list[Condition]:
        """Return the conditions under which each base instance is asked, lengths fastest."""
        return [Condition(*each) for each in product(self.paddings, self.dispersions, self.lengths)]

    def per_row(self) -> int:
        return len(self.tasks) * len(self.conditions())

    def distinct_questions(self, rows: int) -> int:
        return -(-rows // len(self.conditions()))

    def expected_rows(self) -> int:
        every = super().expected_rows()
        return min(every, self.limit or every)

    def tokens_estimate(self) -> int:
        return sum(self.lengths) // len(self.lengths) + (120 if self.cot else 60)

    def output_estimate(self) -> int:
        return 200 if self.cot else 5

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the published rows or the text of padding; an InputError if it fails or there are too few such rows."""
        if self.source != TINY:
            by_task = published.instances(self.source, self.tasks, self.conditions())
            chosen = {}
            for name, instances in by_task.items():
                key = key_of("flenqa", self.VERSION, self.seed, "published", name)
                chosen[name] = published.choose(instances, name, self.questions, key)
            return Context(count_tokens, published.Published(chosen))
        prose = None
        if self.padding_source is not None:
            prose = split(read.texts(self.padding_source), self.padding_source)
        return Context(count_tokens, Maker(self.VERSION, self.seed, min(self.lengths), count_tokens, prose))

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Tasks come in turn, under all conditions each; an InputError if key paragraphs are longer than a length."""
        every = self.conditions()
        material: Maker | published.Published = context.material
        made = []
        for base, rows in groupby(range(start, stop), key=lambda row: row // len(every)):
            number, index = divmod(base, len(self.tasks))
            subtask = self.tasks[index]
            asked = [every[row % len(every)] for row in rows]
            for each, (name, question, text) in zip(asked, material.asked(subtask, number, asked), strict=True):
                label = str(question.label)
                worked = "\n".join((*question.steps, f"{question.question} {label}"))
                example = Example(
                    prompt(subtask, self.cot, text=text, question=question.question, rule=question.rule),
                    worked if self.cot else label,
                    (label,),
                    name,
                    length=each.length,
                    subtask=subtask,
                    condition=f"dispersion={each.dispersion} padding={each.padding}",
                    example_id=f"{name}-{each.padding}-{each.dispersion}-{each.length}",
                )
                made.append(example)
        return table(made, context.count_tokens)

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the two key facts; of published rows where the worked answer (``cot``) has them."""
        number = row["question_id"].rpartition("-")[2]
        if self.cot:
            facts = row["answer"].split("\n")[:2]
        elif number.isdecimal() and row["subtask"] in _SUBTASKS:
            # A published row's number makes an instance of ours, whose people are not in the prompt.
            made, _ = instance(self.VERSION, self.seed, row["subtask"], int(number))
            facts = [fact.sentence for fact in made.facts]
        else:
            facts = []
        return [fact for fact in facts if fact in row["prompt"]]

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score as FLenQA's authors do: the last "true" or "false" of the answer counts, "not true" is false.

        Stripped are case, articles and further white space; punctuation stays, which their notebook means to strip but
        does not.
        """
        return float(verdict(answer) == references[0].lower())

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Tell right, wrong and "other": answers with neither "true" nor "false", which count as wrong."""
        last = verdict(answer)
        return OTHER if last == "other" else RIGHT if last == references[0].lower() else WRONG

    def reasoning(self, answer: str, worked: str) -> tuple[float, bool] | None:
        """Tell the authors' chain-of-thought measures: coverage of the two key facts, and an early response.

        The key facts are the first two lines of the worked answer, of our instances and of the published ones.
        """
        return (
            (published.coverage(answer, worked.split("\n")[:2]), published.answers_early(answer)) if self.cot else None
        )
