"""The count of an audit: rows in, what is wrong with them and what they are like out. Tallies of parts add up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from kvray.audit.confirm import Row, confirm, too_long
from kvray.audit.reading import Reading, Solver, Unread, Unsolved, entries, normal

SHOWN = 20
"""Wrong rows that are kept in full; all of them are counted."""
_EXCERPT = 160
_WORD = re.compile(r"\w+")
_PLAIN = frozenset(
    "a an and are by did do does for from has how in is it its key not of on or than that the their they this to value "
    "was were what when where which who whose with report answer conclude".split()
)
"""Words that questions have for grammar's sake or for the task's, and no evidence is found by."""

Score = Callable[[str, Sequence[str]], float]


@dataclass(frozen=True)
class Wrong:
    """A row that an audit does not confirm, with the end of its prompt, where questions stand."""

    example_id: str
    why: str
    excerpt: str


@dataclass
class Tally:
    """What was counted over ``rows`` examples.

    Attributes:
        read: rows whose prompts a solver read; ``found``: of these, rows that it confirms.
        ambiguous: of these, rows whose prompts support other answers beside their own, where the law allows that.
        wrong, failures: how many rows are not confirmed, and the first of them.
        tokens: tokens of each prompt.
        prompts: the digests of the prompts, with the (question id, example id) that each came first with; ``repeated``
            has the examples of the others, and ``alike`` counts those that ask one question under several conditions.
        questions: the digests of questions with their answers, with their question id; ``again`` counts those that come
            under another id.
        constants: how many rows accept an answer.
        hits: sums over the rows of how often a guess is right, by the way to guess.
        shared: sum over the rows of the share of the question's words that the evidence has.
        cells: counts by what is counted: sizes, positions, places, kinds of rows.
    """

    rows: int = 0
    read: int = 0
    found: int = 0
    ambiguous: int = 0
    wrong: int = 0
    failures: list[Wrong] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompts: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    alike: int = 0
    questions: dict[bytes, str] = field(default_factory=dict)
    again: int = 0
    constants: Counter[tuple[str, ...]] = field(default_factory=Counter)
    hits: dict[str, list[float]] = field(default_factory=dict)
    shared: float = 0.0
    worded: int = 0
    cells: dict[str, Counter[Any]] = field(default_factory=dict)

    def take(self, row: Row, solver: Solver | None, score: Score) -> None:
        """Count one row; ``score`` is the task's own scorer, by which a row's answer must be right."""
        prompt, references = row["prompt"], tuple(row["references"])
        self.rows += 1
        self.tokens.append(row["prompt_tokens"])
        reading, why = None, ""
        if solver is not None:
            self.read += 1
            try:
                reading = solver.solve(prompt)
            except Unread:
                self.read -= 1
            except Unsolved as error:
                why = str(error)
            if reading is not None:
                verdict = confirm(reading, row, solver)
                why = verdict.why or too_long(row, solver)
                self.ambiguous += verdict.ambiguous
                self._described(reading, row, verdict.position)
        if not why and (points := score(row["answer"], references)) != 1:
            why = f"its own answer {row['answer'][:60]!r} scores {points:g}"
        self.found += reading is not None and not why
        if why:
            self.refuse(row, why)
        asked = reading.question if reading is not None else prompt
        self._met(row, asked, references)
        accepted = [(normal(one),) for one in references] if solver is None or solver.any_of else [references]
        self.constants.update(set(accepted))

    def refuse(self, row: Row, why: str) -> None:
        """Count a row as not confirmed."""
        if self.wrong < SHOWN:
            self.failures.append(Wrong(row["example_id"], why, excerpt(row["prompt"])))
        self.wrong += 1

    def _described(self, reading: Reading, row: Row, position: int | None) -> None:
        for name, numbers in reading.sizes.items():
            self._cell(name).update(numbers)
        if position is not None:
            self._cell("gold position").update([(reading.units, position)])
        if reading.place:
            self._cell("place of what answers").update((of, at) for at, of in reading.place)
        if reading.depths is not None and row["depth"] is not None:
            self._cell("depth").update([round(row["depth"], 1)])
        for name in ("subtask", "condition", "length"):
            if row[name] is not None:
                self._cell(name).update([row[name]])
        hits, evidence = reading.hits, reading.evidence
        if reading.documents is not None and not evidence and position is not None:
            hits, evidence = entries(len(reading.documents), position - 1), reading.documents[position - 1]
        for name, share in hits.items():
            sums = self.hits.setdefault(name, [0.0, 0])
            sums[0] += share
            sums[1] += 1
        words = set(_WORD.findall(reading.question.lower())) - _PLAIN
        if words and evidence:
            self.shared += len(words.intersection(_WORD.findall(evidence.lower()))) / len(words)
            self.worded += 1

    def _met(self, row: Row, asked: str, references: tuple[str, ...]) -> None:
        whole = _digest(str(row.get("history") or ""), row["prompt"])
        self._prompt(whole, (row["question_id"], row["example_id"]))
        question = _digest(asked, *sorted(references))
        if self.questions.setdefault(question, row["question_id"]) != row["question_id"]:
            self.again += 1

    def _prompt(self, digest: bytes, names: tuple[str, str]) -> None:
        first = self.prompts.get(digest)
        if first is None:
            self.prompts[digest] = names
        elif first[0] == names[0] and first[1] != names[1]:
            self.alike += 1
        else:
            self.repeated.append((first[1], names[1]))

    def _cell(self, name: str) -> Counter[Any]:
        return self.cells.setdefault(name, Counter())

    def add(self, other: Tally) -> None:
        """Add the tally of further rows of the same task."""
        for name in ("rows", "read", "found", "ambiguous", "wrong", "alike", "again", "shared", "worded"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failures = [*self.failures, *other.failures][:SHOWN]
        self.tokens += other.tokens
        self.repeated += other.repeated
        for digest, names in other.prompts.items():
            self._prompt(digest, names)
        self.again += sum(self.questions.setdefault(digest, name) != name for digest, name in other.questions.items())
        self.constants.update(other.constants)
        for name, (hits, rows) in other.hits.items():
            sums = self.hits.setdefault(name, [0.0, 0])
            sums[0] += hits
            sums[1] += rows
        for name, cells in other.cells.items():
            self._cell(name).update(cells)


def excerpt(prompt: str) -> str:
    """Return the end of a prompt in one line."""
    line = " ".join(prompt.split())
    return line if len(line) <= _EXCERPT else "…" + line[1 - _EXCERPT :]


def _digest(*texts: str) -> bytes:
    return blake2b("\0".join(texts).encode(), digest_size=12).digest()
