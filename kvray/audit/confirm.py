"""Whether a row says what a solver reads in its prompt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvray.audit.reading import Reading, Solver, normal

Row = Mapping[str, Any]
"""A row of a dataset: the columns of kvray/store/schemas.toml's [example]."""

_DEPTH_POINTS = 10
"""A needle stands at the last sentence break before its depth in tokens; in characters it may differ by so much."""


@dataclass(frozen=True)
class Verdict:
    """What is wrong with a row, "" if nothing; whether its prompt supports other answers too; its gold position."""

    why: str = ""
    ambiguous: bool = False
    position: int | None = None


def confirm(reading: Reading, row: Row, solver: Solver) -> Verdict:
    """Compare a row with what a solver reads in its prompt."""
    several, why = _holders(reading, row, solver)
    found = tuple(row["references"])
    supported = [sorted(one) for one in reading.references or ()]
    if reading.references is not None:
        several = several or len(reading.references) > 1
        if sorted(found) not in supported or (several and not solver.ambiguous):
            why = why or f"the prompt says {_listed(reading.references)}, the row {_listed([found])}"
    if several and not why:
        return Verdict("", True, row["position"])
    position = reading.position or (row["position"] if reading.documents else None)
    said = [
        ("answer", reading.answer, row["answer"]),
        ("gold position", position, row["position"]),
        ("units", reading.units, row["units"]),
        ("kind", reading.subtask, row["subtask"]),
    ]
    for what, shown, told in said:
        if shown is not None and told not in (None, 0) and shown != told:
            why = why or f"{what}: the prompt shows {shown!r}, the row says {told!r}"
    return Verdict(why or _misplaced(reading, row), False, position)


def too_long(row: Row, solver: Solver) -> str:
    """Return what is wrong with the tokens of a row's prompt, "" if nothing."""
    most = row["length"] if solver.length else solver.most_tokens
    tokens = row["prompt_tokens"]
    return f"{tokens} tokens are more than the {most} of its length" if most is not None and tokens > most else ""


def _holders(reading: Reading, row: Row, solver: Solver) -> tuple[bool, str]:
    """Return whether other documents than the gold one hold an accepted answer, and what is wrong with that."""
    if reading.documents is None:
        return False, ""
    wanted = [text for one in row["references"] if (text := normal(one))]
    texts = enumerate(map(normal, reading.documents), start=1)
    holding = [at for at, text in texts if any(one in text for one in wanted)]
    gold = reading.position or row["position"]
    if gold is None and holding and (len(holding) == 1 or solver.ambiguous):
        return len(holding) > 1, ""
    if gold in holding and (holding == [gold] or solver.ambiguous):
        return holding != [gold], ""
    return False, f"documents {holding} hold an accepted answer, expected {gold or 'one'} alone"


def _misplaced(reading: Reading, row: Row) -> str:
    condition, depth = row["condition"] or "", row["depth"]
    dispersion = re.search(r"dispersion=(\w+)", condition)
    # Copies of the key paragraphs as padding say the same everywhere.
    if reading.layouts and dispersion and "padding=identity" not in condition and dispersion[1] not in reading.layouts:
        return f"its key paragraphs do not stand {dispersion[1]}"
    low, high = reading.depths or (0, 100)
    if depth is not None and not low - _DEPTH_POINTS <= depth <= high + _DEPTH_POINTS:
        return f"the needle stands at {low:.0f} %, the row says {depth:.0f} %"
    return ""


def _listed(sets: Sequence[tuple[str, ...]]) -> str:
    return " or ".join(", ".join(map(repr, one)) for one in sets)[:200]
