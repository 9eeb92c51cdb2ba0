"""Closed-book questions: what a model knows by heart, and so what finetuning makes it forget.

The prompt is lost-in-the-middle's closed-book one and the scorer its own; questions come from the same sources as
MDQA's. The tiny world asks about the people whose facts the bundled model was pretrained on. A wrong answer is either
a refusal (forgotten) or an invention (hallucinated): :mod:`kvray.tasks.qa.refusals`.
"""

from collections.abc import Sequence
from itertools import product
from typing import Literal, Self

import pyarrow as pa

from kvray.tasks import prompts, world
from kvray.tasks.base import Context, CountTokens, recipe, register
from kvray.tasks.qa import questions, refusals
from kvray.tasks.qa.base import NQ_OPEN, QuestionTask, target
from kvray.tasks.qa.questions import SHARES, Question
from kvray.tasks.rows import Example, table
from kvray.tasks.world import TINY


@register("recall")
class Recall(QuestionTask):
    """Questions without any document."""

    VERSION = 1
    MEASURES = "knowledge"
    TRAINABLE = False

    task: Literal["recall"] = recipe("recall")
    questions: int | None = recipe(None, ge=1, description="questions; null takes all that the source has")

    def with_rows(self, rows: int) -> Self:
        return self.model_copy(update={"questions": rows})

    def tokens_estimate(self) -> int:
        return 16

    def expected_rows(self) -> int:
        """Return about how many questions there are; a file that cannot be reached is assumed to be NQ-Open's."""
        return self.questions or NQ_OPEN * SHARES[self.split] // 5

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Tell right from wrong; a wrong answer is a refusal or an invention."""
        return refusals.outcome(answer, self.score(answer, references))

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the questions and choose them; an InputError if there are too few."""
        if self.source != TINY:
            return Context(count_tokens, self.pick(questions.read(self.source), self.questions))
        # Every known fact is asked, whatever the split: knowing by heart is what is measured.
        everything = self.model_copy(update={"split": "all"})
        return Context(count_tokens, everything.pick(_known(), self.questions))

    def count(self, context: Context) -> int:
        return len(context.material)

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        made = []
        for each in context.material[start:stop]:
            prompt = prompts.CLOSED_BOOK.format(question=each.text)
            made.append(Example(prompt, target(each), each.answers, example_id=each.id))
        return table(made, context.count_tokens)


def _known() -> list[Question]:
    found = []
    for person, relation in product(range(world.KNOWN_PEOPLE), world.RELATION_NAMES):
        name, answer = world.name_of("known", person), (world.known_value(person, relation),)
        found.append(Question(f"{TINY}-known-{person:06d}-{relation}", world.question(name, relation), answer, name))
    return found
