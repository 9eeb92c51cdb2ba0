"""Scorers of answers in words, with the normalisation of SQuAD (Rajpurkar et al. 2016, its ``evaluate-v1.1.py``)."""

from collections import Counter
from collections.abc import Iterator, Sequence

from kvray.tasks.qa.questions import normalise


def exact(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if the answer is one of the references, both normalised."""
    return float(any(said == wanted for said, wanted in _pairs(answer, references)))


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1.0 if the answer contains one of the references, both normalised."""
    return float(any(wanted in said for said, wanted in _pairs(answer, references)))


def f1(answer: str, references: Sequence[str]) -> float:
    """Return the best F1 of the words of an answer and of a reference, both normalised."""
    return max((_f1(said.split(), wanted.split()) for said, wanted in _pairs(answer, references)), default=0.0)


def _pairs(answer: str, references: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the answer beside each reference, normalised unless the reference is punctuation alone."""
    for reference in references:
        wanted = normalise(reference)
        yield (normalise(answer), wanted) if wanted else (answer.strip(), reference.strip())


def _f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(said) & Counter(wanted)).total()
    return 2 * common / max(1, len(said) + len(wanted))
