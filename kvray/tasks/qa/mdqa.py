"""Multi-document question answering (MDQA, "Lost in the Middle", Liu et al. 2023).

The paper's main result uses random distractors that hold none of the answers (section 4); with retrieved ones, those of
the published files, finetuning does not help (its stated limit). Prompt and scorer are lost-in-the-middle's to the
letter. ``documents: 0`` asks closed book and ``documents: 1`` shows the gold passage alone: lower and upper bound, on
the same questions as any other number of documents with the same seed.

``passage_words: 100`` gives 20 documents their published length (3,422 tokens by Mistral's tokenizer, 3,465 in Liu et
al. by LLaMA's); 120 documents reach the paper's 24K at 118 words. ``order: random`` is Liu et al.'s appendix C.
"""

import string
from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import field_validator, model_validator

from kvray.errors import InputError
from kvray.tasks import prompts, writing
from kvray.tasks.base import Context, CountTokens, Measure, added, recipe, register, runtime
from kvray.tasks.qa import passages, questions, sentences
from kvray.tasks.qa.base import NQ_OPEN, Asks, DocumentsTask, Material, listed, target
from kvray.tasks.qa.distractors import RandomDistractors, RetrievedDistractors, TinyQuestions
from kvray.tasks.qa.questions import SHARES, Question
from kvray.tasks.qa.recall import closed_book_outcome
from kvray.tasks.rows import Example, table
from kvray.tasks.sources import read
from kvray.tasks.world import TINY

_TEXTS = prompts.load("qa/texts.toml")["mdqa"]
WRITER_PROMPT: str = _TEXTS["writer"]
WORDS = 60
"""A reply of so many words is no sentence that answers."""
_QUERY_AWARE = prompts.MDQA.replace("{documents}", "Question: {question}\n\n{documents}")
_ORDERED_RANDOMLY = prompts.MDQA.replace("\n\n{documents}", f" {_TEXTS['ordered_randomly']}\n\n{{documents}}")


@register("mdqa")
class Mdqa(DocumentsTask):
    """N documents, one of which answers the question, at chosen gold positions."""

    task: Literal["mdqa"] = recipe("mdqa")
    documents: int = recipe(
        20, ge=0, le=10_000, description="documents in a prompt, the gold one included; 0: closed book, 1: the gold one"
    )
    questions: int | None = recipe(200, ge=1, description="questions; null takes all that the source has")
    distractors: Literal["random", "retrieved"] = recipe(
        "random", description="random: gold passages of other questions; retrieved: the other passages of the row"
    )
    passage_words: int | None = added(
        None, ge=10, le=10_000, description="random distractors as pieces of so many words (short articles "
        "joined), as lost-in-the-middle's are of 100; null: whole passages (78 words on average)",
    )  # fmt: skip
    corpus: str | None = runtime(
        None, description="random distractors from a file, directory, address or hub dataset of your own, whose rows "
        "have 'text' and perhaps 'title'; null: from the source's gold passages",
    )  # fmt: skip
    order: Literal["given", "random"] = added(
        "given", description="random: distractors in random order, and the prompt says so; given: in the source's"
    )
    query_aware: bool = recipe(False, description="the question also before the documents")
    answers: Literal["short", "sentence"] | None = recipe(
        None,
        description="what is trained on: the first accepted answer, or a sentence; default short, but in the tiny "
        "world the fact restated",
    )
    answer_writer: str | None = recipe(
        None,
        description="a model that words the sentences (a name as for base_model); null: rules by the kind of question",
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
        for name, value in (("passage_words", self.passage_words), ("corpus", self.corpus)):
            if value is not None and (self.source == TINY or self.distractors == "retrieved"):
                raise ValueError(
                    f"{name} is about the random distractors of a file's questions; found source: {self.source}, "
                    f"distractors: {self.distractors}; leave {name} out"
                )
        if self.order == "random" and self.query_aware:
            raise ValueError("order: random has a prompt of its own (lost-in-the-middle's), without query_aware")
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

    def recipe(self) -> dict[str, Any]:
        """As ever, with the version of the rules where they word the answers."""
        by_rules = self.answers == "sentence" and self.answer_writer is None and self.source != TINY
        return {**super().recipe(), **({"sentences": sentences.VERSION} if by_rules else {})}

    def sources(self) -> dict[str, str]:
        return {**super().sources(), **({} if self.corpus is None else {"corpus": read.digest(self.corpus)})}

    @classmethod
    def measures(cls, units: Collection[int]) -> Measure:
        return "knowledge" if set(units) == {0} else "ceiling" if set(units) == {1} else cls.MEASURES

    def per_row(self) -> int:
        return len(self.gold_positions())

    def expected_rows(self) -> int:
        return (self.questions or NQ_OPEN * SHARES[self.split] // 5) * self.per_row()

    def tokens_estimate(self) -> int:
        """As for gold passages; 173 a retrieved one (3,465 for 20: Liu et al., appendix E); of pieces, 1.6 a word."""
        if self.distractors == "retrieved":
            return 30 + 173 * self.documents
        if self.passage_words is None:
            return super().tokens_estimate()
        # With 14 for a title, by Mistral's tokenizer.
        return 30 + self.documents * round(14 + 1.6 * self.passage_words)

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

        def sentence(number: int, reply: str) -> tuple[int, str] | None:
            return (number, reply.strip()) if usable(reply, asks.gold(number).answers) else None

        chosen = writing.choose(
            written, self.questions, sentence, writer=self.answer_writer, what="answer_writer: sentences",
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
        template = self._template()
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

    def _template(self) -> str:
        if not self.documents:
            return prompts.CLOSED_BOOK
        return _QUERY_AWARE if self.query_aware else _ORDERED_RANDOMLY if self.order == "random" else prompts.MDQA

    def _answer(self, question: Question) -> str:
        if self.answers == "short":
            return question.answers[0]
        if self.answers == "sentence" and self.source != TINY:
            return sentences.worded(question.text, question.answers[0])
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
            return RetrievedDistractors(self, chosen, self.order == "random"), len(chosen)
        if self.documents < 2:
            return RandomDistractors(self, (), chosen), len(chosen)
        if self.corpus is not None:
            drawn_from = passages.of_corpus(self.corpus, self.passage_words)
        else:
            drawn_from = passages.of_questions(pool, self.passage_words)
        apart = self.corpus is not None or self.passage_words is not None
        return RandomDistractors(self, drawn_from, chosen, apart), len(chosen)


def usable(reply: str, answers: Sequence[str]) -> bool:
    """Tell whether a reply is one line of fewer than :data:`WORDS` words with an accepted answer in it."""
    text = reply.strip()
    return "\n" not in text and len(text.split()) < WORDS and questions.best_subspan_em(text, answers) == 1.0
