"""RULER's 13 tasks as data: what is hidden in what, how many tokens an answer has, and how it is scored.

The numbers are those of NVIDIA/RULER: ``scripts/synthetic.yaml``, ``tokens_to_generate`` of
``scripts/data/synthetic/constants.py`` and the metrics of ``scripts/eval/synthetic/constants.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Name = Literal[
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
]
Category = Literal["retrieval", "tracing", "aggregation", "qa"]
Haystack = Literal["noise", "essays", "needles", "words", "squad", "hotpot"]
Kind = Literal["word", "number", "uuid"]
Source = Literal["source", "squad", "hotpot", "words"]


@dataclass(frozen=True)
class Subtask:
    """One of RULER's tasks.

    Attributes:
        category: the paper's (section 3).
        haystack: noise (five sentences over and over), essays, needles (further ones), words, or a set of questions.
        answer_tokens: most tokens of an answer, which the length of an example includes.
        match: whether an answer must contain "all" references (its score is the share of them) or "any".
        key, value: retrieval: what needles are registered under, and what they register.
        keys, values, queries: retrieval: different keys hidden besides those of the haystack, values of each, and how
            many keys are asked about.
        sources: the fields of :class:`~kvray.tasks.ruler.ruler.Ruler` that it reads, and "words" for wonderwords.
    """

    category: Category
    haystack: Haystack
    answer_tokens: int
    match: Literal["all", "any"] = "all"
    key: Kind = "word"
    value: Kind = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1
    sources: tuple[Source, ...] = ()


def _niah(
    haystack: Haystack,
    key: Kind = "word",
    value: Kind = "number",
    *,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> Subtask:
    sources: tuple[Source, ...] = ("source",) if haystack == "essays" else ()
    sources += ("words",) if "word" in (key, value) else ()
    return Subtask("retrieval", haystack, 128, "all", key, value, keys, values, queries, sources)


SUBTASKS: dict[Name, Subtask] = {
    "niah_single_1": _niah("noise"),
    "niah_single_2": _niah("essays"),
    "niah_single_3": _niah("essays", value="uuid"),
    "niah_multikey_1": _niah("essays", keys=4),
    "niah_multikey_2": _niah("needles"),
    "niah_multikey_3": _niah("needles", key="uuid", value="uuid"),
    "niah_multivalue": _niah("essays", values=4),
    "niah_multiquery": _niah("essays", keys=4, queries=4),
    "vt": Subtask("tracing", "noise", 30),
    "cwe": Subtask("aggregation", "words", 120, sources=("words",)),
    "fwe": Subtask("aggregation", "words", 50),
    "qa_1": Subtask("qa", "squad", 32, "any", sources=("squad",)),
    "qa_2": Subtask("qa", "hotpot", 32, "any", sources=("hotpot",)),
}
"""All of them, in the order of the paper."""
NAMES: tuple[Name, ...] = tuple(SUBTASKS)


@dataclass(frozen=True)
class Draft:
    """An example whose haystack has yet to be filled.

    Attributes:
        worded: the prompt with so many units of haystack (words, lines, documents); more units, more tokens.
        least, most: bounds of that number; ``most`` None for a haystack without end.
        prefix: the beginning of the assistant's turn that the model goes on from.
        said: how the right answer goes on, for training.
        references: what an answer must contain, see :attr:`Subtask.match`.
        depth: of the only needle of essays, in percent of their sentences; None elsewhere.
    """

    worded: Callable[[int], str]
    least: int
    most: int | None
    prefix: str
    said: str
    references: tuple[str, ...]
    depth: float | None = None
