"""Short answers as full sentences, to train on: by a template, or as another model words them.

The paper's MDQA baseline trained on sentences that GPT-3.5-Turbo made of the one- or two-word gold answers (section
3.4 of the notes; its prompt is unknown). Template and prompt are ours.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from kvray.errors import InputError
from kvray.tasks.qa.questions import Question, best_subspan_em

TEMPLATE = 'The answer to the question "{question}" is {answer}.'
WRITER_PROMPT = (
    "Below are a passage, a question about it, and the correct answer.\n\n"
    "Title: {title}\nPassage: {text}\n\nQuestion: {question}\nCorrect answer: {answer}\n\n"
    "Write one full sentence that answers the question and contains the correct answer word for word. "
    "Reply with that sentence alone."
)
PLACEHOLDERS = ("question", "answer", "title", "text")
WORDS = 60
"""A reply of so many words is no sentence that answers."""


def of_template(question: Question) -> str:
    """Return a sentence that restates the question and gives its first accepted answer."""
    return TEMPLATE.format(question=question.text, answer=question.answers[0])


def prompt(template: str, question: Question) -> str:
    """Return the message that asks a writer for a sentence."""
    return template.format(
        question=question.text, answer=question.answers[0], title=question.title, text=question.passage
    )


def check_prompt(template: str) -> None:
    """Raise a ValueError if a writer's prompt has other placeholders, or leaves out the question or the answer."""
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"writer_prompt: {error}; write {{{{ and }}}} for braces") from error
    if not {"question", "answer"} <= names <= set(PLACEHOLDERS):
        raise ValueError(
            f"writer_prompt: found the placeholders {sorted(names)}; expected {{question}} and {{answer}}, and "
            "{title} and {text} if they are wanted"
        )


def usable(reply: str, answers: Sequence[str]) -> bool:
    """Tell whether a reply is one line of fewer than :data:`WORDS` words with an accepted answer in it."""
    text = reply.strip()
    return "\n" not in text and len(text.split()) < WORDS and best_subspan_em(text, answers) == 1.0


def choose(asked: Sequence[Question], replies: Sequence[str], wanted: int, writer: str) -> tuple[list[int], list[str]]:
    """Return the first ``wanted`` questions' numbers with usable replies, and the sentences; InputError if too few."""
    pairs = zip(asked, replies, strict=True)
    good = [(at, reply.strip()) for at, (question, reply) in enumerate(pairs) if usable(reply, question.answers)]
    if len(good) < wanted:
        raise InputError(
            f"answer_writer: {len(good)} of {len(replies)} replies of {writer} can be used (one line, fewer than "
            f"{WORDS} words, an accepted answer in it), and questions: {wanted} are asked for; type questions: "
            f"{len(good)}, or name another answer_writer"
        )
    return [at for at, _ in good[:wanted]], [sentence for _, sentence in good[:wanted]]
