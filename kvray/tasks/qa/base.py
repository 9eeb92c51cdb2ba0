"""What tasks over questions share: where the questions come from, which ones, the documents in a prompt, the scorer.

Distractors keep their order at every gold position, so examples pair, and prompts share a prefix up to the gold one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from pydantic import model_validator

from kvray.errors import InputError
from kvray.tasks import base, prompts, world
from kvray.tasks.base import Many, Task, recipe, runtime
from kvray.tasks.qa import questions
from kvray.tasks.qa.questions import Question, Split
from kvray.tasks.rng import below, draws, key_of, shuffled
from kvray.tasks.world import TINY

NQ_OPEN = 2655
"""Questions of lost-in-the-middle's files: the size a plan assumes for a file that it cannot reach."""
_STREAM_POSITION = 2**32
_BEFORE_TITLE = prompts.DOCUMENT.partition("{title}")[0]


Asked = tuple[Question, Sequence[tuple[str, str]]]
"""A question with its documents as (title, text), the gold one first."""


class Asks(Protocol):
    """Gives questions by number; each depends on its number and the recipe alone."""

    def gold(self, number: int) -> Question:
        """Return a question with its gold passage."""

    def ask(self, number: int) -> Asked:
        """Return a question with its documents."""


@dataclass(frozen=True)
class Material:
    """The ``numbers`` of the questions asked, in order, and ``answers`` to train on (None: the task words them)."""

    asks: Asks
    numbers: Sequence[int]
    answers: Sequence[str] | None = None


def listed(documents: Sequence[tuple[str, str]], position: int) -> str:
    """Return documents, the gold one first, as lost-in-the-middle lists them, that one at ``position`` (1-based)."""
    ordered = [*documents[1:position], documents[0], *documents[position:]]
    return "\n".join(
        prompts.DOCUMENT.format(index=index, title=title, text=text)
        for index, (title, text) in enumerate(ordered, start=1)
    )


def target(question: Question) -> str:
    """Return the answer to train on: the fact restated in the tiny world, else the first accepted answer."""
    if question.id.startswith(TINY):
        return world.fact(question.title, question.id.rsplit("-", 1)[1], question.answers[0])
    return question.answers[0]


class QuestionTask(Task):
    """Questions of a file or of the tiny world."""

    source: str = runtime(
        TINY,
        description="'tiny' (the bundled model's world), or questions in .jsonl, .jsonl.gz or .parquet: a path, a URL, "
        "hf://datasets/ORG/NAME",
    )
    split: Split = recipe("test", description="test, train (a fifth of a file's questions, by hash) or all")

    def sources(self) -> dict[str, str]:
        return {"source": world.source_identity(self.source)}

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score as lost-in-the-middle does: any accepted answer contained in the answer's first line.

        The answer's ends are stripped before the line is taken, as their script for Llama 2 does when it asks; their
        other scripts and their evaluation do not, so that an answer which opens with a line feed is wrong there. Line
        and accepted answers are then stripped of case, ASCII punctuation, articles and further white space, as SQuAD's
        script does.
        """
        return questions.best_subspan_em(answer, references)

    def pick(self, pool: Sequence[Question], wanted: int | None, spare: int = 0) -> list[Question]:
        """Choose ``wanted`` (None: all) and up to ``spare`` more of the split by the seed; an InputError if too few."""
        split = [question for question in pool if questions.in_split(question.id, self.split)]
        if wanted is not None and wanted > len(split):
            raise InputError(
                f"questions: {wanted} asked for, but {self.source} has {len(split)} in split {self.split!r}; "
                f"type questions: {len(split)}" + ("" if self.split == "all" else " or split: all")
            )
        order = shuffled(split, key_of("questions", self.VERSION, self.seed))
        return order[: None if wanted is None else wanted + spare]


class DocumentsTask(QuestionTask):
    """Questions over several documents, one of which answers, at chosen gold positions."""

    UNIT = "documents"
    MEASURES = "retrieval"

    documents: int = recipe(20, ge=1, le=10_000, description="documents in a prompt, the gold one included")
    positions: Many[int] | Literal["random"] | None = recipe(
        None,
        description="1-based gold positions, each question at each; 'random': one per question; default five, spread",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_position(cls, values: Any) -> Any:
        """Accept ``position: 5`` for ``positions: [5]``."""
        if not isinstance(values, dict) or "position" not in values:
            return values
        if "positions" in values:
            raise ValueError("give position or positions, not both")
        return {"positions" if name == "position" else name: value for name, value in values.items()}

    @model_validator(mode="after")
    def _positions_fit(self) -> Self:
        if isinstance(self.positions, tuple) and not all(1 <= each <= self.documents for each in self.positions):
            raise ValueError(f"positions must lie in 1 to documents ({self.documents}); found {list(self.positions)}")
        return self

    def gold_positions(self) -> tuple[int, ...]:
        """Return the gold positions at which each question is asked; one entry (0) when random or without documents."""
        if self.positions == "random" or self.documents == 0:
            return (0,)
        return base.spread(self.documents) if self.positions is None else self.positions

    def placed(self, start: int, stop: int, material: Material) -> Iterator[tuple[int, Asked, int | None]]:
        """Yield (index among the asked questions, question, gold position) of examples ``[start, stop)``.

        The positions of one question follow one another; the position is None where there are no documents.
        """
        at = self.gold_positions()
        asked: Asked | None = None
        for row in range(start, stop):
            index, slot = divmod(row, len(at))
            number = material.numbers[index]
            if asked is None or slot == 0:
                asked = material.asks.ask(number)
            yield index, asked, (at[slot] or self._random_position(number)) if self.documents else None

    def overlaps(self, other: Task) -> str | None:
        """With a file, closed-book questions overlap too; the tiny world's are about people of their own."""
        if not isinstance(other, QuestionTask) or self.sources()["source"] != other.sources()["source"]:
            return None
        if (isinstance(other, DocumentsTask) or self.source != TINY) and (
            self.split == other.split or "all" in (self.split, other.split)
        ):
            return (
                "it trains on questions that it is evaluated on; "
                "give the dataset 'split: train' and the evaluation 'split: test'"
            )
        return None

    def gold(self, row: Mapping[str, Any]) -> list[str]:
        """Return the gold document with its number and title, as it is listed."""
        prompt, position = row["prompt"], row["position"]
        start = -1 if position is None else prompt.find(_BEFORE_TITLE.format(index=position))
        if start < 0:
            return []
        end = prompt.find("\n" + _BEFORE_TITLE.format(index=position + 1), start)
        # Behind the last document comes the question, after an empty line.
        return [prompt[start : end if end >= 0 else prompt.rfind("\n\n")]]

    def distinct_questions(self, rows: int) -> int:
        return -(-rows // len(self.gold_positions()))

    def tokens_estimate(self) -> int:
        """About 27 tokens a document in the tiny world; 136 for gold passages of NQ-Open by Mistral's tokenizer."""
        return 30 + self.documents * (27 if self.source == TINY else 136)

    def _random_position(self, number: int) -> int:
        drawn = draws(key_of(self.task, self.VERSION, self.seed), number, number + 1, 1, _STREAM_POSITION)
        return int(below(drawn, self.documents)[0, 0]) + 1
