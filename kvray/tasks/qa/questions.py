"""Questions with their answers and gold passages, read from a file.

Accepted: lost-in-the-middle files (oracle or N documents, ``.jsonl`` or ``.jsonl.gz``; Liu et al. 2023), or a
``.parquet`` or ``.jsonl`` of your own with ``question``, ``answers`` (a list or one string) and, for multi-document
questions, ``text`` and optionally ``title`` of the passage that holds an answer.
"""

import hashlib
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvray.errors import InputError
from kvray.tasks.sources.read import rows
from kvray.tasks.sources.records import lacking

Split = Literal["test", "train", "all"]
SHARES = {"all": 5, "test": 4, "train": 1}
"""Fifths of a file's questions in each split."""
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Question:
    """One question; its ``id`` is the first 12 digits of the sha256 of its text, its first answer the one to train on.

    ``title`` and ``passage`` are of its gold passage, "" where the source has none; ``distractors`` are (title, text)
    of the other passages of its row that hold no answer, in the row's order.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    title: str = ""
    passage: str = ""
    distractors: tuple[tuple[str, str], ...] = ()


def normalise(text: str) -> str:
    """Normalise as SQuAD does, in its order: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def best_subspan_em(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if the answer's first line contains any accepted answer, both normalised (Liu et al. 2023).

    The answer is stripped before its first line is taken, as lost-in-the-middle's ``get_qa_responses_from_llama_2.py``
    does when it asks. Its ``evaluate_qa_responses.py`` alone takes the line first: an answer that opens with a line
    feed, which its other scripts keep, has an empty line there. Only a line feed ends the line.
    """
    line = normalise(answer.strip().partition("\n")[0])
    return float(any(normalise(reference) in line for reference in references))


def read(source: str) -> list[Question]:
    """Read every question of a source, sorted by id, whatever its line order; an InputError names a bad file or row."""
    found: dict[str, Question] = {}
    for where, row in rows(source):
        question = _question(row, where)
        found.setdefault(question.id, question)
    if not found:
        raise InputError(f"{source}: no questions in it")
    return sorted(found.values(), key=lambda question: question.id)


def in_split(id: str, split: Split) -> bool:
    """Tell whether the question of an id belongs to a split: a fifth is for training, by the hash in the id."""
    return split == "all" or (int(id[-8:], 16) % 5 == 0) == (split == "train")


def _question(row: dict[str, Any], where: str) -> Question:
    text = row.get("question")
    answers = row.get("answers", row.get("answer"))
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(text, str) or not text.strip():
        raise lacking(row, "'question'", where)
    if (
        not isinstance(answers, (list, tuple))
        or not answers
        or not all(isinstance(answer, str) and answer.strip() for answer in answers)
    ):
        raise InputError(f"{where}: 'answers' must be a text or a list of texts; found {answers!r}")
    passages = row.get("ctxs") or []
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise InputError(f"{where}: 'ctxs' must be a list of passages with 'title', 'text' and 'isgold'")
    gold: dict[str, Any] = next((passage for passage in passages if passage.get("isgold")), row)
    passage = str(gold.get("text") or "")
    others = (other for other in passages if not other.get("isgold") and not other.get("hasanswer"))
    distractors = ((str(other.get("title") or ""), str(other.get("text") or "")) for other in others)
    return Question(
        hashlib.sha256(text.encode()).hexdigest()[:12],
        text,
        tuple(answers),
        str(gold.get("title") or ""),
        passage,
        tuple((title, other) for title, other in distractors if other and other != passage),
    )
