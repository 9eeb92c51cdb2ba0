"""Closed-book questions: what a model knows by heart, and so what finetuning makes it forget.

The prompt is lost-in-the-middle's closed-book one and the scorer its own; questions come from the same sources as
MDQA's. The tiny world asks about the people whose facts the bundled model was pretrained on. A wrong answer is either
a refusal (forgotten) or an invention (hallucinated).

The paper infers hallucination from lost points on TriviaQA and NQ-Open; this measures it. The rule is ours. An answer
is judged by its first line, as the scorer does: it is a refusal if it is empty, is one of the lines or holds one of the
phrases of ``texts.toml``; every other wrong answer is an invention. A guess behind a doubt ("I'm not sure, but I think
…") is a refusal: it is not confident. Titles that hold such words ("I Don't Know How to Love Him") count as refusals
too; they are rare.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import Literal

import pyarrow as pa

from kvray.tasks import prompts, world
from kvray.tasks.base import RIGHT, Context, CountTokens, recipe, register
from kvray.tasks.qa import questions
from kvray.tasks.qa.base import NQ_OPEN, QuestionTask, target
from kvray.tasks.qa.questions import SHARES, Question
from kvray.tasks.rows import Example, table
from kvray.tasks.world import TINY

REFUSAL, INVENTION = "refusal", "invention"
_TEXTS = prompts.load("qa/texts.toml")["refusals"]
LINES = frozenset(_TEXTS["lines"])
"""First lines that refuse on their own; compared in lower case, without punctuation, articles and outer spaces."""
PHRASES = [re.compile("".join(pieces)) for pieces in _TEXTS["phrases"]]
"""Patterns of a first line that refuses, in lower case."""
_LEADING = re.compile(r"\b(a|an|the|it is|its)\b")


@register("recall")
class Recall(QuestionTask):
    """Questions without any document."""

    MEASURES = "knowledge"
    TRAINABLE = False

    task: Literal["recall"] = recipe("recall")
    questions: int | None = recipe(None, ge=1, description="questions; null takes all that the source has")

    def tokens_estimate(self) -> int:
        return 16

    def expected_rows(self) -> int:
        """Return about how many questions there are; a file that cannot be reached is assumed to be NQ-Open's."""
        return self.questions or NQ_OPEN * SHARES[self.split] // 5

    def outcome(self, answer: str, references: Sequence[str]) -> str:
        """Tell right from wrong; a wrong answer is a refusal or an invention."""
        return closed_book_outcome(answer, self.score(answer, references))

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


def closed_book_outcome(answer: str, score: float) -> str:
    """Return "right" for a score of 1, else "refusal" or "invention"."""
    if score == 1.0:
        return RIGHT
    return REFUSAL if refuses(answer) else INVENTION


def refuses(answer: str) -> bool:
    """Tell whether an answer declines to answer."""
    line = answer.strip().partition("\n")[0].lower().replace("\u2019", "'").replace("\u02bc", "'")
    line = " ".join(line.split())
    bare = " ".join(_LEADING.sub(" ", re.sub(r"[^\w\s]", "", line)).split())
    return not bare or bare in LINES or any(phrase.search(line) for phrase in PHRASES)
