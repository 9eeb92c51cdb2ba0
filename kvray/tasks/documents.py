"""Multi-document question answering (MDQA, "Lost in the Middle", Liu et al. 2023) with random distractors.

The distractors of one question are the same at every gold position, in the same order, and hold none of its answers: so
examples of one question pair across positions and models, and their prompts share a prefix up to the gold document. The
paper's main result uses random distractors (section 4); prompt and scorer are lost-in-the-middle's to the letter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import field_validator, model_validator

from kvray.errors import InputError
from kvray.tasks import questions, sources, wording, world
from kvray.tasks.base import Context, CountTokens, Task, examples, recipe, register, runtime
from kvray.tasks.counter import below, draws, key_of
from kvray.tasks.questions import Question, Split

TINY = "tiny"
_STREAM_POSITION = 2**32
_LISTED = re.compile(r"\s*\d+\s*(,\s*\d+\s*)*")


class QuestionTask(Task):
    """What tasks over questions share: where the questions come from, which of them, and the scorer."""

    MAX_OUTPUT_TOKENS: ClassVar[int] = 100

    source: str = runtime(
        TINY, description="'tiny' (the bundled model's world), or a .jsonl, .jsonl.gz or .parquet by path or URL"
    )
    split: Split = recipe("test", description="test, train (a fifth of a file's questions, by hash) or all")

    def sources(self) -> dict[str, str]:
        """Return the sha256 of the questions' file, or the version of the tiny world."""
        return {"source": "tiny-world-1" if self.source == TINY else sources.digest(self.source)}

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Score as lost-in-the-middle does: any accepted answer contained in the answer's first line."""
        return questions.best_subspan_em(answer, references)

    def pick(self, pool: Sequence[Question], wanted: int | None) -> list[Question]:
        """Choose ``wanted`` questions of the split, by the seed; all of them when None.

        Raises:
            InputError: the split has fewer.
        """
        split = [question for question in pool if questions.in_split(question, self.split)]
        if wanted is not None and wanted > len(split):
            raise InputError(
                f"questions: {wanted} asked for, but {self.source} has {len(split)} in split {self.split!r}; "
                f"type questions: {len(split)}" + ("" if self.split == "all" else " or split: all")
            )
        order = np.argsort(
            draws(key_of("questions", self.LAW, self.seed), 0, max(len(split), 1), 1)[:, 0], kind="stable"
        )
        return [split[index] for index in order.tolist()[: len(split) if wanted is None else wanted]]


@register("mdqa")
class Mdqa(QuestionTask):
    """N documents, one of which answers the question, at chosen gold positions."""

    LAW: ClassVar[int] = 1

    task: Literal["mdqa"] = recipe("mdqa")
    documents: int = recipe(20, ge=1, le=1000, description="documents in a prompt, the gold one included")
    positions: tuple[int, ...] | Literal["random"] | None = recipe(
        None,
        description="1-based gold positions, each question at each; 'random': one per question; default five, spread",
    )
    questions: int | None = recipe(200, ge=1, description="questions; null takes all that the source has")

    @model_validator(mode="before")
    @classmethod
    def _one_position(cls, values: Any) -> Any:
        """Accept ``position: 5`` for ``positions: [5]``."""
        if isinstance(values, dict) and "position" in values:
            if "positions" in values:
                raise ValueError("give position or positions, not both")
            values = {**values, "positions": values["position"]}
            del values["position"]
        return values

    @field_validator("positions", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if isinstance(value, str) and _LISTED.fullmatch(value):
            return tuple(int(position) for position in value.split(","))
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _positions_fit(self) -> Mdqa:
        if isinstance(self.positions, tuple):
            wrong = [position for position in self.positions if not 1 <= position <= self.documents]
            if wrong or not self.positions or len(set(self.positions)) != len(self.positions):
                raise ValueError(
                    f"positions must be different and lie in 1 to documents ({self.documents}); "
                    f"found {list(self.positions)}"
                )
        return self

    def gold_positions(self) -> tuple[int, ...]:
        """Return the gold positions that each question is asked at; one entry (0) when they are random."""
        if self.positions == "random":
            return (0,)
        if self.positions is None:
            return tuple(sorted({1, *(max(1, round(self.documents * part / 4)) for part in (1, 2, 3, 4))}))
        return self.positions

    def overlaps(self, other: Task) -> str | None:
        """Say why this training data must not be evaluated by ``other``: the same source and a shared split.

        With a file that holds for closed-book questions too; the tiny world's are about people of their own.
        """
        if not isinstance(other, QuestionTask) or self.sources() != other.sources():
            return None
        if (isinstance(other, Mdqa) or self.source != TINY) and (
            self.split == other.split or "all" in (self.split, other.split)
        ):
            return (
                "it trains on questions that it is evaluated on; "
                "give the dataset 'split: train' and the evaluation 'split: test'"
            )
        return None

    def with_rows(self, rows: int) -> Mdqa:
        """Return the task with just enough questions for ``rows`` examples."""
        return self.model_copy(update={"questions": -(-rows // len(self.gold_positions()))})

    def distinct_questions(self, rows: int) -> int:
        """Return the questions of ``rows`` examples: each is asked at every position."""
        return -(-rows // len(self.gold_positions()))

    def tokens_estimate(self) -> int:
        """Prompt tokens of one example, roughly: 27 a document in the tiny world, 165 elsewhere (paper, 4.1)."""
        return 30 + self.documents * (27 if self.source == TINY else 165)

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the questions and choose them.

        Raises:
            InputError: too few questions or passages.
        """
        if self.source == TINY:
            return Context(count_tokens, _Tiny(self))
        pool = questions.read(self.source)
        chosen = self.pick(pool, self.questions)
        missing = next((question for question in chosen if not question.passage), None)
        if missing is not None:
            raise InputError(f"{self.source}: {missing.text!r} has no gold passage ('ctxs' with isgold, or 'text')")
        return Context(count_tokens, _Files(self, pool, chosen))

    def count(self, context: Context) -> int:
        """Return questions times positions."""
        return int(context.material.size) * len(self.gold_positions())

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Make examples ``[start, stop)``; the positions of one question follow one another."""
        at = self.gold_positions()
        rows: dict[str, list[Any]] = defaultdict(list)
        asked: tuple[Question, list[str], list[str]] | None = None
        for row in range(start, stop):
            number, slot = divmod(row, len(at))
            if asked is None or slot == 0:
                asked = context.material.question(number)
            question, titles, texts = asked
            position = at[slot] or self._random_position(number)
            order = [*range(1, position), 0, *range(position, self.documents)]
            listed = "\n".join(
                wording.DOCUMENT.format(index=index + 1, title=titles[which], text=texts[which])
                for index, which in enumerate(order)
            )
            rows["example_id"].append(f"{question.id}-{position}")
            rows["question_id"].append(question.id)
            rows["position"].append(position)
            rows["units"].append(self.documents)
            rows["prompt"].append(wording.MDQA.format(documents=listed, question=question.text))
            rows["answer"].append(target(question))
            rows["references"].append(list(question.answers))
        rows["prompt_tokens"] = context.count_tokens(rows["prompt"]).tolist()
        return examples(rows)

    def _random_position(self, number: int) -> int:
        words = draws(key_of("mdqa", self.LAW, self.seed), number, number + 1, 1, _STREAM_POSITION)
        return int(below(words, self.documents)[0, 0]) + 1


def target(question: Question) -> str:
    """Return what a model is trained to answer: the tiny world restates the fact, files give their first answer."""
    if question.id.startswith(TINY):
        name, relation = question.title, question.id.rsplit("-", 1)[1]
        return world.fact(name, relation, question.answers[0])
    return question.answers[0]


class _Tiny:
    """Questions and documents from the made-up world; facts drawn anew for each question."""

    def __init__(self, task: Mdqa) -> None:
        self.documents = task.documents
        self.group: world.Group = "train" if task.split == "train" else "test"
        people = world.group_size(self.group)
        if task.documents > people // 2:
            raise InputError(f"documents: {task.documents} are more than the tiny world can tell apart ({people // 2})")
        self.size = people if task.questions is None else task.questions
        self.key = key_of("mdqa", task.LAW, task.seed, "tiny", self.group)
        # The first ``people`` questions ask about different people; more start over with other facts.
        self.order = np.argsort(
            draws(key_of("mdqa", task.LAW, task.seed, self.group), 0, people, 1)[:, 0], kind="stable"
        )

    def question(self, number: int) -> tuple[Question, list[str], list[str]]:
        gold = int(self.order[number % len(self.order)])
        names, told = [world.name_of(self.group, gold)], [_facts(draws(self.key, number, number + 1, 4)[0])]
        relation, value = told[0][0]
        taken = {gold}
        for person, facts in _candidates(self.key, number, len(self.order), self.documents):
            if len(names) == self.documents:
                break
            if person in taken or any(said == value for _, said in facts):
                continue
            taken.add(person)
            names.append(world.name_of(self.group, person))
            told.append(facts)
        # The asked fact comes first or second by the draw, so that its place in the document tells nothing.
        if draws(self.key, number, number + 1, 4)[0, 3] & np.uint64(1):
            told[0] = told[0][::-1]
        asked = Question(
            f"{TINY}-{self.group}-{number:06d}-{relation}", world.question(names[0], relation), (value,), names[0]
        )
        return asked, names, [world.passage(name, facts) for name, facts in zip(names, told, strict=True)]


def _facts(words: Any) -> list[tuple[str, str]]:
    """Two facts of different relations from three words; the first is the one that a question asks."""
    first = int(below(words[0], 3))
    second = (first + 1 + int(words[0] & np.uint64(1))) % 3
    made = []
    for relation, word in ((world.RELATION_NAMES[first], words[1]), (world.RELATION_NAMES[second], words[2])):
        made.append((relation, world.RELATIONS[relation][int(below(word, len(world.RELATIONS[relation])))]))
    return made


def _candidates(key: int, number: int, people: int, documents: int) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """Yield (person, facts) to fill the documents with; more rounds follow when one is used up."""
    for stream in range(1, 1000):
        for words in draws(key, number * documents, (number + 1) * documents, 4, stream):
            yield int(below(words[3], people)), _facts(words[:3])
    raise InputError(f"documents: no {documents} documents without the answer could be drawn")


class _Files:
    """Questions of a file; the other questions' gold passages serve as random distractors."""

    def __init__(self, task: Mdqa, pool: Sequence[Question], chosen: Sequence[Question]) -> None:
        self.documents = task.documents
        self.chosen = chosen
        self.size = len(chosen)
        self.key = key_of("mdqa", task.LAW, task.seed, "files")
        unique: dict[str, Question] = {}
        for question in pool:
            if question.passage:
                unique.setdefault(question.passage, question)
        self.pool = list(unique.values())
        self.normal = [questions.normalise(f"{question.title} {question.passage}") for question in self.pool]

    def question(self, number: int) -> tuple[Question, list[str], list[str]]:
        asked = self.chosen[number]
        forbidden = [questions.normalise(answer) for answer in asked.answers]
        titles, texts, taken = [asked.title], [asked.passage], {asked.passage}
        # The draws belong to the question, not to its place in the list: more questions change no prompt.
        row = int(asked.id[:8], 16)
        for stream in range(1, 50):
            if len(texts) == self.documents:
                break
            for pick in below(draws(self.key, row, row + 1, 4 * self.documents, stream)[0], len(self.pool)).tolist():
                passage = self.pool[pick].passage
                if len(texts) < self.documents and passage not in taken and not _holds(self.normal[pick], forbidden):
                    taken.add(passage)
                    titles.append(self.pool[pick].title)
                    texts.append(passage)
        if len(texts) < self.documents:
            raise InputError(
                f"documents: {self.documents} asked for, but only {len(texts) - 1} passages of the source "
                f"hold no answer to {asked.text!r}"
            )
        return asked, titles, texts


def _holds(passage: str, answers: Sequence[str]) -> bool:
    return any(answer and answer in passage for answer in answers)
