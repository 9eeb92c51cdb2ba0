"""What an audit found: of one task, and of the datasets and evaluations of a sweep together; as text and as values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from textwrap import fill
from typing import Any

import numpy as np

from kvray.audit.laws import Check
from kvray.audit.tally import SHOWN, Tally
from kvray.console import count, table

WIDTH = 80
_LABEL = 41


@dataclass(frozen=True)
class Audited:
    """One task's audit: its name, of the task or in the sweep; ``unread`` says why no solver read it, "" if one did."""

    name: str
    tally: Tally
    checks: Sequence[Check] = ()
    unread: str = ""

    def problems(self) -> list[str]:
        """Return what is wrong, a line each."""
        tally = self.tally
        found = [f"{count(tally.wrong)} of {count(tally.rows)} rows are not confirmed"] if tally.wrong else []
        if tally.repeated:
            found.append(f"{count(len(tally.repeated))} prompts come again")
        found += [
            f"{check.what}: {check.off:.1%} stand elsewhere than by the law (p = {check.p:.1g})"
            for check in self.checks
            if not check.kept
        ]
        return found

    def guesses(self) -> dict[str, float]:
        """Return the score of each way to guess, the best constant answer first."""
        best = max(self.tally.constants.values(), default=0) / max(1, self.tally.rows)
        return {"best constant answer": best} | {
            name: hits / rows for name, (hits, rows) in self.tally.hits.items() if rows
        }

    def text(self) -> str:
        """Return the audit as text for a terminal."""
        tally = self.tally
        lines = [f"== {self.name}: {count(tally.rows)} rows"]
        lines += [
            fill(f"{label:<{_LABEL}}{value}", WIDTH, subsequent_indent=" " * _LABEL) for label, value in self._facts()
        ]
        if self.checks:
            header = ["by its law", "counted", "elsewhere", "by chance", "p", ""]
            rows = [
                [
                    check.what,
                    count(check.counted),
                    f"{check.off:.2%}",
                    f"{check.chance:.2%}",
                    f"{check.p:.2g}",
                    "" if check.kept else "broken",
                ]
                for check in self.checks
            ]
            lines += ["", table(header, rows)]
        lines += ["", table(["a guess", "score"], [[name, f"{score:.2%}"] for name, score in self.guesses().items()])]
        if tally.failures:
            shown = "" if tally.wrong <= SHOWN else f", the first {SHOWN}"
            lines += ["", f"not confirmed{shown}:"]
            lines += [f"{wrong.example_id}: {wrong.why}\n    {wrong.excerpt}" for wrong in tally.failures]
        lines += [f"{again}: the prompt of {first}" for first, again in tally.repeated[:SHOWN]]
        return "\n".join(lines) + "\n"

    def document(self) -> dict[str, Any]:
        """Return the audit in plain values."""
        tally = self.tally
        low, middle, high, mean = _spread(tally.tokens)
        return {
            "name": self.name,
            "rows": tally.rows,
            "read": tally.read,
            "found": tally.found,
            "unread": self.unread or None,
            "ambiguous": tally.ambiguous,
            "wrong": tally.wrong,
            "not_confirmed": [asdict(wrong) for wrong in tally.failures],
            "repeated_prompts": len(tally.repeated),
            "prompts_alike_of_one_question": tally.alike,
            "repeated": tally.repeated[:SHOWN],
            "repeated_questions_with_answer": tally.again,
            "words_shared": tally.shared / tally.worded if tally.worded else None,
            "prompt_tokens": {"min": low, "median": middle, "max": high, "mean": mean},
            "laws": [{**asdict(check), "kept": check.kept} for check in self.checks],
            "guesses": self.guesses(),
            "problems": self.problems(),
        }

    def _facts(self) -> Iterator[tuple[str, str]]:
        tally = self.tally
        if self.unread:
            yield "read from the prompt alone", f"none: {self.unread}"
        else:
            yield "references found in the prompt alone", f"{count(tally.found)} of {count(tally.rows)}"
            yield "prompts with other answers beside", count(tally.ambiguous)
        yield "rows that are not confirmed", count(tally.wrong)
        yield "prompts that come again", count(len(tally.repeated))
        if tally.alike:
            yield "prompts of one question that are alike", f"{count(tally.alike)} (its conditions make one text)"
        yield "questions that come again, answer too", count(tally.again)
        if tally.worded:
            yield "words of the question in its evidence", f"{tally.shared / tally.worded:.0%}"
        low, _, high, mean = _spread(tally.tokens)
        yield "tokens of a prompt", f"{count(low)} to {count(high)}, mean {count(mean)}"


@dataclass(frozen=True)
class Shared:
    """What a dataset and an evaluation share: prompts, and questions with their answers."""

    train: str
    test: str
    prompts: int
    questions: int


@dataclass(frozen=True)
class Audit:
    """The audit of one task, or of all datasets and evaluations of a sweep; ``skipped`` names those without rows."""

    audited: Sequence[Audited]
    shared: Sequence[Shared] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return what is wrong, a line each; none if the audit confirms everything that it can read."""
        found = [f"{one.name}: {problem}" for one in self.audited for problem in one.problems()]
        return found + [
            f"{pair.train} and {pair.test}: {count(pair.prompts)} of the same prompts"
            for pair in self.shared
            if pair.prompts
        ]

    def text(self) -> str:
        """Return the audit as text for a terminal."""
        parts = [one.text() for one in self.audited]
        if self.shared:
            rows = [[pair.train, pair.test, count(pair.prompts), count(pair.questions)] for pair in self.shared]
            parts.append(table(["trained on", "asked", "same prompts", "same questions and answers"], rows) + "\n")
        parts += [f"{name}: not audited: {why}\n" for name, why in self.skipped.items()]
        problems = self.problems()
        rows_read = sum(one.tally.found for one in self.audited)
        ending = "\n".join(problems) or f"nothing wrong; {count(rows_read)} rows solved from their prompts alone"
        return "\n".join([*parts, ending])

    def document(self) -> dict[str, Any]:
        """Return the audit in plain values, for ``kvray audit --json``."""
        return {
            "audited": [one.document() for one in self.audited],
            "shared": [asdict(pair) for pair in self.shared],
            "skipped": self.skipped,
            "problems": self.problems(),
        }


def shared(trained: Sequence[Audited], asked: Sequence[Audited]) -> list[Shared]:
    """Return what every dataset shares with every evaluation."""
    return [
        Shared(
            train.name,
            test.name,
            len(train.tally.prompts.keys() & test.tally.prompts.keys()),
            len(train.tally.questions.keys() & test.tally.questions.keys()),
        )
        for train, test in product(trained, asked)
    ]


def _spread(tokens: Sequence[int]) -> tuple[int, float, int, float]:
    """Return the least, the median, the most and the mean."""
    counted = np.array(tokens or [0])
    return int(counted.min()), float(np.median(counted)), int(counted.max()), float(counted.mean())
