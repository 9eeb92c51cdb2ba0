"""Tasks made row by row: the short way to a task of one's own, where a million rows a minute are not needed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from kvray.tasks import scorers
from kvray.tasks.base import Context, CountTokens, Task, examples, recipe
from kvray.tasks.rng import key_of


@dataclass(frozen=True)
class Example:
    """One example; the columns of :data:`~kvray.tasks.base.EXAMPLE_SCHEMA` that need no counting.

    Attributes:
        prompt, answer: the user message, and the assistant message to train on.
        references: accepted answers, for the scorer; the answer itself where empty.
        question_id: pairs examples that ask the same question; one of its own where empty.
        position: 1-based place of the answer among ``units`` (documents, keys).
        length, depth: nominal context length in tokens, place of the answer in percent of it; where they are varied.
        subtask, condition: kind of example within the task; further conditions, ``"padding=books"``.
        example_id: names the example; its row where empty.
        prompt_tokens: tokens of the prompt; counted where 0.
    """

    prompt: str
    answer: str
    references: tuple[str, ...] = ()
    question_id: str = ""
    position: int | None = None
    units: int = 0
    length: int | None = None
    depth: float | None = None
    subtask: str | None = None
    condition: str | None = None
    example_id: str = ""
    prompt_tokens: int = 0


class RowTask(Task):
    """A task that makes each example alone. Subclasses add knobs and :meth:`example`, and a scorer if they like."""

    rows: int = recipe(100, ge=1, le=10_000_000, description="examples")

    def example(self, row: int, rng: random.Random) -> Example:
        """Make one example: a pure function of the knobs, the row (from 0), and what ``rng``, the row's own, draws."""
        raise NotImplementedError

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Right if the answer is an accepted one, apart from case, punctuation, articles and white space."""
        return scorers.exact(answer, references)

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        key = (self.task, self.VERSION, self.seed)
        made = [self.example(row, random.Random(key_of(*key, row))) for row in range(start, stop)]
        return table(made, context.count_tokens, start)


def table(made: Sequence[Example], count_tokens: CountTokens, first: int = 0) -> pa.Table:
    """Return examples, of the rows from ``first`` on, as a table of :data:`~kvray.tasks.base.EXAMPLE_SCHEMA`."""
    names = [each.example_id or str(row) for row, each in enumerate(made, start=first)]
    counted = [each.prompt_tokens for each in made]
    alike = ("units", "prompt", "answer", "position", "length", "depth", "subtask", "condition")
    return examples(
        {
            "example_id": names,
            "question_id": [each.question_id or name for each, name in zip(made, names, strict=True)],
            **{column: [getattr(each, column) for each in made] for column in alike},
            "references": [list(each.references or (each.answer,)) for each in made],
            "prompt_tokens": count_tokens([each.prompt for each in made]) if 0 in counted else counted,
        }
    )
