"""The report of a sweep: report.md, report.html, figures and scores.parquet."""

from __future__ import annotations

import io
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import StoreError
from kvray.report import benchmarks, breakdowns, findings, methods, published, training
from kvray.report import text as words
from kvray.report.blocks import Block, Details, Figure, Heading, Text, to_html, to_markdown
from kvray.report.figures import Key, draw
from kvray.report.folder import FIGURES, Directory, Folder, StoreFolder, fill, holds, made_from
from kvray.report.terminal import document, summary
from kvray.results.profile import Axis
from kvray.results.snapshot import Found, collect, look
from kvray.store.schemas import SCORES_SCHEMA
from kvray.store.store import Store

__all__ = ["Paths", "compose", "current", "document", "draw", "location", "scores_parquet", "summary", "write"]
_AXES: Mapping[Axis, str] = {
    "position": "By gold position",
    "length": "By context length",
    "depth": "By needle depth",
}
_GAINS = 2
"""Figures of gain against loss that are shown; further ones are folded away."""


@dataclass(frozen=True)
class Paths:
    """Where a report lies: local paths, or URIs in an object store.

    Attributes:
        directory: of all of it.
        markdown: report.md.
        html: report.html, the one to open.
        scores: scores.parquet, of the scores schema.
        figures: every figure, PNG and SVG.
    """

    directory: str
    markdown: str
    html: str
    scores: str
    figures: tuple[str, ...]


def write(store: Store, sweep: str, out_dir: str | os.PathLike[str] | None = None) -> Paths:
    """Write the report of a sweep, finished or not, over an older one; figures that only the older one had are removed.

    Args:
        store: where the sweep is.
        sweep: its name.
        out_dir: a directory, or the URI of one in a bucket; None writes to ``reports/<sweep>/`` in the store.

    Raises:
        InputError: the store knows no such sweep, or ``out_dir`` cannot be written.
        StoreError: the store cannot be written; the message says how to write elsewhere.
    """
    found = collect(store, sweep)
    folder: Folder = _of_store(store, sweep) if out_dir is None else Directory(out_dir)
    figures = draw(found)
    blocks = compose(found, {key: figure for key, (figure, _) in figures.items()})
    files = {"report.md": to_markdown(blocks).encode(), "scores.parquet": scores_parquet(found.scores)}
    for figure, png in figures.values():
        files |= {f"{FIGURES}{figure.name}.png": png, f"{FIGURES}{figure.name}.svg": figure.svg.encode()}
    files["report.html"] = to_html(f"kvray: {sweep}", blocks).encode()  # last: whoever sees it has the rest
    try:
        fill(folder, files, made_from(store, found))
    except StoreError as error:
        if out_dir is not None:
            raise
        elsewhere = f"kvray report {shlex.quote(sweep)} --store {shlex.quote(store.uri)} --out DIRECTORY"
        raise StoreError(f"{error}; to write the report elsewhere: {elsewhere}") from error
    return _paths(folder.place, list(files))


def current(store: Store, sweep: str) -> bool:
    """Return whether the store's report of a sweep shows it as it is now: its plan, what is committed, this kvray.

    Raises:
        InputError: the store knows no such sweep.
    """
    return holds(_of_store(store, sweep), made_from(store, look(store, sweep)))


def compose(found: Found, drawn: Mapping[Key, Figure]) -> list[Block]:
    """Put the report together: findings first, then their evidence, then how it was made.

    Args:
        found: what there is of the sweep.
        drawn: of :func:`kvray.report.figures.draw`.
    """
    gains = [figure for key, figure in drawn.items() if key[0] == "gain-against-loss"]
    blocks = findings.opening(found)
    if gains:
        blocks += [Heading("Gain against loss"), *gains[:_GAINS]]
        blocks += [Details("Gain against loss on the other evaluations", gains[_GAINS:])] if gains[_GAINS:] else []
    blocks += findings.mixtures(found)
    blocks += benchmarks.section(found, drawn.get(("benchmark-change",)))
    for axis, title in _AXES.items():
        asked = [evaluation for evaluation, kind in found.kinds.items() if axis in kind.axes]
        blocks += [Heading(title)] if asked else []
        for evaluation in asked:
            blocks += _titled(found, evaluation, asked)
            blocks.append(drawn[f"accuracy-by-{axis}", evaluation])
            blocks += breakdowns.by_axis(found, evaluation, axis)
    blocks += _grids(found, drawn)
    blocks += _split(found)
    if ("knowledge-change",) in drawn:
        blocks += [Heading("What it cost in knowledge"), drawn["knowledge-change",]]
        blocks.append(
            Text("Closed-book questions: no document is given, so the model answers from its weights.", "sub")
        )
    told = [evaluation for evaluation, kind in found.kinds.items() if kind.outcomes]
    blocks += [Heading("What the answers are")] if told else []
    for evaluation in told:
        blocks += _titled(found, evaluation, told)
        blocks += [drawn[key] for key in [("answers", evaluation)] if key in drawn]
        blocks += breakdowns.answers(found, evaluation)
    for section in (published.beside, findings.missing, training.trained):
        blocks += section(found)
    blocks += training.fell(found, drawn)
    for section in (methods.evaluated, methods.reading, methods.provenance):
        blocks += section(found)
    return blocks


def _titled(found: Found, evaluation: str, among: Sequence[str]) -> list[Block]:
    return [Heading(words.described(found.predictions, evaluation), 3)] if len(among) > 1 else []


def _grids(found: Found, drawn: Mapping[Key, Figure]) -> list[Block]:
    asked = [evaluation for evaluation, kind in found.kinds.items() if kind.grid]
    blocks: list[Block] = [Heading("By context length and needle depth")] if asked else []
    for evaluation in asked:
        keys = [("heatmap", evaluation), ("heatmap-change", evaluation)]
        blocks += _titled(found, evaluation, asked)
        blocks += [*(drawn[key] for key in keys if key in drawn), *breakdowns.grid(found, evaluation)]
    return blocks


def _split(found: Found) -> list[Block]:
    """The tables by subtask and by condition, an evaluation at a time."""
    blocks: list[Block] = []
    for evaluation, kind in found.kinds.items():
        tables = breakdowns.by_subtask(found, evaluation) if kind.by_subtask else []
        tables += breakdowns.by_condition(found, evaluation)
        blocks += [Heading(words.described(found.predictions, evaluation), 3), *tables] if tables else []
    return [Heading("By kind of example"), *blocks] if blocks else []


def scores_parquet(scores: pl.DataFrame) -> bytes:
    """Return scores as Parquet of the scores schema, descriptions included; the same rows give the same bytes."""
    table = scores.select(SCORES_SCHEMA.names).to_arrow().cast(pa.schema(SCORES_SCHEMA))
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, SCORES_SCHEMA, compression="zstd") as writer:
        writer.write_table(table)
    return stream.getvalue()


def location(store: Store, folder: str) -> str:
    """Return where a folder of the store is, as a user would open it: a path, or a URI with its scheme."""
    path = store.path(folder)
    scheme = re.match(r"[a-z0-9]+://", store.uri)
    return f"{scheme.group()}{path}" if scheme else path


def _of_store(store: Store, sweep: str) -> StoreFolder:
    folder = f"reports/{sweep}"
    return StoreFolder(store, folder, location(store, folder))


def _paths(place: str, names: Sequence[str]) -> Paths:
    where = {name: f"{place}/{name}" for name in names}
    drawn = tuple(path for name, path in where.items() if name.startswith(FIGURES))
    return Paths(place, where["report.md"], where["report.html"], where["scores.parquet"], drawn)
