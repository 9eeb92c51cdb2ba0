"""The axes along which an evaluation's examples differ: one definition for comparisons, tables, figures, references."""

from dataclasses import dataclass

import polars as pl

from kvray.store.schemas import SCORES_SCHEMA

OVERALL, PAIRWISE = "against the base", "pairwise"
"""Families of comparisons over whole evaluations; :attr:`Axis.family` names the others."""


@dataclass(frozen=True)
class Axis:
    """A column by which the examples of an evaluation differ; null where an evaluation has no such axis.

    Attributes:
        title: name in headings and sentences.
        value: format string for one value, in a table's header.
        scale: label under a figure, with the unit; empty for an axis that only tables split by.
        beside: axes that comparisons along this one are split by as well.
    """

    name: str
    title: str
    value: str = "{}"
    scale: str = ""
    beside: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that comparisons along this axis are split by."""
        return (*self.beside, self.name)

    @property
    def family(self) -> str:
        """Family of the comparisons along this axis."""
        return f"{OVERALL}, by {' and '.join(self.columns)}"


POSITION = Axis("position", "gold position", "position {}", "gold position (1 = first)")
LENGTH = Axis("length", "context length", "{:,} tokens", "context length, tokens")
DEPTH = Axis("depth", "needle depth", "{:g} %", "depth of the needle, % of the context", ("length",))
SUBTASK = Axis("subtask", "subtask")
CONDITION = Axis("condition", "condition")
AXES = {axis.name: axis for axis in (POSITION, LENGTH, DEPTH, SUBTASK, CONDITION)}
"""Every axis, by its column; all are null in a row over a whole evaluation."""
CURVES = tuple(axis for axis in AXES.values() if axis.scale)
"""Axes that accuracy is drawn along."""
_SCORES = pl.DataFrame(SCORES_SCHEMA.empty_table()).schema
TYPES = {name: _SCORES[name] for name in AXES}
"""Polars type of each axis."""


def unsplit(scores: pl.DataFrame) -> pl.DataFrame:
    """Return the rows over whole evaluations, split along no axis."""
    return scores.filter(pl.all_horizontal(pl.col(axis).is_null() for axis in AXES))


def along(scores: pl.DataFrame, axis: Axis) -> pl.DataFrame:
    """Return the rows that are split by an axis, and otherwise at most by those :attr:`~Axis.beside` it."""
    others = [other for other in AXES if other not in axis.columns]
    return scores.filter(pl.col(axis.name).is_not_null() & pl.all_horizontal(pl.col(o).is_null() for o in others))
