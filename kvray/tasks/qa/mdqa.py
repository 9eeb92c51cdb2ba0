"""Multi-document question answering (MDQA, "Lost in the Middle", Liu et al. 2023).

The paper's main result uses random distractors that hold none of the answers (section 4); with retrieved ones, those of
the published files, finetuning does not help (its stated limit). Prompt and scorer are lost-in-the-middle's to the
letter. ``documents: 0`` asks closed book and ``documents: 1`` shows the gold passage alone: lower and upper bound, on
the same questions as any other number of documents with the same seed.
"""

import string
from collections.abc import Collection, Sequence
from typing import Literal, Self

import pyarrow as pa
from pydantic import field_validator, model_validator

from kvray.errors import InputError
from kvray.tasks import prompts, writing
from kvray.tasks.base import Context, CountTokens, Measure, recipe, register
from kvray.tasks.qa import questions
from kvray.tasks.qa.base import NQ_OPEN, Asks, DocumentsTask, Material, listed, target
from kvray.tasks.qa.distractors import RandomDistractors, RetrievedDistractors, TinyQuestions
from kvray.tasks.qa.questions import SHARES, Question
from kvray.tasks.qa.recall import closed_book_outcome
from kvray.tasks.rows import Example, table
from kvray.tasks.world import TINY

SENTENCE: str
WRITER_PROMPT: str
SENTENCE, WRITER_PROMPT = (prompts.load("qa/texts.toml")["mdqa"][name] for name in ("sentence", "writer"))
WORDS = 60
"""A reply of so many words is no sentence that answers."""
_QUERY_AWARE = prompts.MDQA.replace("{documents}", "Question: {question}\n\n{documents}")


@register("mdqa")
class Mdqa(DocumentsTask):
    """N documents, one of which answers the question, at chosen gold positions."""

    task: Literal["mdqa"] = recipe("mdqa")
    documents: int = recipe(
        20, ge=0, le=10_000, description="documents per prompt; 0: closed book, 1: the gold one alone"
    )
    questions: int | None = recipe(200, ge=1, description="questions; null takes all that the source has")
    distractors: Literal["random", "retrieved"] = recipe(
        "random", description="random: gold passages of other questions; retrieved: the other passages of the row"
    )
    query_aware: bool = recipe(False, description="the question also before the documents")
    answers: Literal["short", "sentence"] | None = recipe(
        None,
        description="what is trained on: the first accepted answer, or a sentence; default short, but in the tiny "
        "world the fact restated",
    )
    answer_writer: str | None = recipe(
        None, description="model that words the sentences, as for base_model; null: a template"
    )
    writer_prompt: str = recipe(WRITER_PROMPT, description="what it is asked, with {question} {answer} {title} {text}")

    @field_validator("writer_prompt")
    @classmethod
    def _placeholders_fit(cls, template: str) -> str:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        except ValueError as error:
            raise ValueError(f"found braces that do not fit ({error}); write {{{{ and }}}} for braces") from error
        if not {"question", "answer"} <= names <= {"question", "answer", "title", "text"}:
            raise ValueError(
                f"found the placeholders {sorted(names)}; expected {{question}} and {{answer}}, and {{title}} and "
                "{text} if they are wanted"
            )
        return template

    @model_validator(mode="after")
    def _knobs_fit(self) -> Self:
        if self.query_aware and self.documents == 0:
            raise ValueError("query_aware: true puts the question before the documents; documents: 0 shows none")
        if self.distractors == "retrieved" and self.source == TINY:
            raise ValueError(
                "distractors: retrieved needs a source whose rows have them: a file of lost-in-the-middle's qa_data"
            )
        if self.answer_writer is not None:
            if self.answers != "sentence":
                raise ValueError(
                    f"answer_writer words sentences; found answers: {self.answers}, type answers: sentence"
                )
            if self.questions is None:
                raise ValueError(
                    "answer_writer: say how many questions; null takes all, and some replies are of no use"
                )
        return self

    @classmethod
    def measures(cls, units: Collection[int]) -> Measure:
        return "knowledge" if set(units) == {0} else "ceiling" if set(units) == {1} else cls.MEASURES

    def per_row(self) -> int:
        return len(self.gold_positions())

    def expected_rows(self) -> int:
        """Return about how many examples there are; a file that cannot be reached is assumed to have NQ-Open's size."""
        return (self.questions or NQ_OPEN * SHARES[self.split] // 5) * self.per_row()

    def writer(self) -> str | None:
        return self.answer_writer

    def to_write(self, count_tokens: CountTokens) -> list[str]:
        """Return one message per question, for half as many questions again (20 at least) as are asked for."""
        asks, size = self._asks()
        return [
            self.writer_prompt.format(question=gold.text, answer=gold.answers[0], title=gold.title, text=gold.passage)
            for gold in map(asks.gold, range(size))
        ]

    def context(self, count_tokens: CountTokens, written: Sequence[str] | None = None) -> Context:
        """Read the questions and choose them; an InputError if questions, passages or usable sentences are too few."""
        asks, size = self._asks()
        if self.answer_writer is None or self.questions is None or written is None:
            return Context(count_tokens, Material(asks, range(size)[: self.questions]))

        def read(number: int, reply: str) -> tuple[int, str] | None:
            return (number, reply.strip()) if usable(reply, asks.gold(number).answers) else None

        chosen = writing.choose(
            written, self.questions, read, writer=self.answer_writer, what="answer_writer: sentences",
            advice=f"Usable is one line of fewer than {WORDS} words with an accepted answer in it: type "
            "questions: {usable}, or name another answer_writer",
        )  # fmt: skip
        numbers, sentences = zip(*chosen, strict=True)
        return Context(count_tokens, Material(asks, numbers, sentences))

    def count(self, context: Context) -> int:
        return len(context.material.numbers) * len(self.gold_positions())

    def build(self, start: int, stop: int, context: Context) -> pa.Table:
        """Keep the positions of one question together; an InputError if ``answer_writer`` has not written yet."""
        material: Material = context.material
        if self.answer_writer is not None and material.answers is None:
            raise InputError(
                f"answer_writer: {self.answer_writer} has not written the answers yet; a run of the sweep lets it"
            )
        template = _QUERY_AWARE if self.query_aware else prompts.MDQA if self.documents else prompts.CLOSED_BOOK
        made = []
        for index, (question, documents), position in self.placed(start, stop, material):
            shown = "" if position is None else listed(documents, position)
            prompt = template.format(documents=shown, question=question.text)
            answer = material.answers[index] if material.answers else self._answer(question)
            name = question.id if position is None else f"{question.id}-{position}"
            made.append(
                Example(prompt, answer, question.answers, question.id, position, self.documents, example_id=name)
            )
        return table(made, context.count_tokens)

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Tell right from wrong; without documents, a wrong answer is a refusal or an invention."""
        if self.documents:
            return super().outcome(answer, references)
        return closed_book_outcome(answer, self.score(answer, references))

    def _answer(self, question: Question) -> str:
        if self.answers == "short":
            return question.answers[0]
        if self.answers == "sentence" and self.source != TINY:
            return SENTENCE.format(question=question.text, answer=question.answers[0])
        return target(question)

    def _asks(self) -> tuple[Asks, int]:
        """Return the source of questions, and how many to take: with a writer, more than are wanted."""
        spare = 0 if self.answer_writer is None else max(20, (self.questions or 0) // 2)
        if self.source == TINY:
            asks = TinyQuestions(self)
            return asks, (asks.people if self.questions is None else self.questions) + spare
        pool = questions.read(self.source)
        chosen = self.pick(pool, self.questions, spare)
        if self.distractors == "retrieved":
            return RetrievedDistractors(self, chosen), len(chosen)
        return RandomDistractors(self, pool, chosen), len(chosen)


def usable(reply: str, answers: Sequence[str]) -> bool:
    """Tell whether a reply is one line of fewer than :data:`WORDS` words with an accepted answer in it."""
    text = reply.strip()
    return "\n" not in text and len(text.split()) < WORDS and questions.best_subspan_em(text, answers) == 1.0
