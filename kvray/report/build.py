"""The report of a sweep: report.md, report.html, figures and scores.parquet."""

import io
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import StoreError
from kvray.report import breakdowns, changes, findings, methods, published, training
from kvray.report.blocks import Block, name_figures, to_html, to_markdown
from kvray.report.folder import FIGURES, Directory, Folder, StoreFolder, fill, holds, made_from
from kvray.results.snapshot import Snapshot, collect, look
from kvray.store.schemas import SCORES_SCHEMA
from kvray.store.store import Store

Section = Callable[[Snapshot], list[Block]]
"""A part of a report: headings, text, tables and figures, or no blocks where the sweep has nothing for it."""
SECTIONS: tuple[Section, ...] = (
    findings.opening,
    findings.gains,
    findings.mixtures,
    changes.benchmarks,
    breakdowns.by_axes,
    breakdowns.grids_by_depth,
    breakdowns.by_kind,
    changes.knowledge,
    breakdowns.answers,
    published.beside,
    findings.missing,
    training.trained,
    training.fell,
    methods.evaluated,
    methods.reading,
    methods.provenance,
)
"""Findings first, then their evidence, then how they were made."""


@dataclass(frozen=True)
class Paths:
    """Local paths, or URIs in an object store, of a report's directory and files; figures are PNG and SVG."""

    directory: str
    markdown: str
    html: str
    scores: str
    figures: tuple[str, ...]


def write(
    store: Store, sweep: str, out_dir: str | os.PathLike[str] | None = None, sections: Sequence[Section] = SECTIONS
) -> Paths:
    """Write the report of a sweep, finished or not, replacing an older one.

    ``out_dir`` is a directory or the URI of one in a bucket; None writes to ``reports/<sweep>/`` in the store.

    Raises:
        InputError: the store has no such sweep, or ``out_dir`` cannot be written.
        StoreError: the store cannot be written; the message says how to write elsewhere.
    """
    snapshot = collect(store, sweep)
    folder: Folder = _of_store(store, sweep) if out_dir is None else Directory(out_dir)
    blocks = [block for section in sections for block in section(snapshot)]
    figures: dict[str, bytes] = {}
    for figure in name_figures(blocks):
        figures |= {f"{FIGURES}{figure.name}.png": figure.png, f"{FIGURES}{figure.name}.svg": figure.svg}
    files = {"report.md": to_markdown(blocks).encode(), "scores.parquet": scores_parquet(snapshot.scores), **figures}
    files["report.html"] = to_html(f"kvray: {sweep}", blocks).encode()  # last: whoever sees it has the rest
    try:
        fill(folder, files, made_from(store, snapshot))
    except StoreError as error:
        if out_dir is not None:
            raise
        elsewhere = f"kvray report {shlex.quote(sweep)} --store {shlex.quote(store.uri)} --out DIRECTORY"
        raise StoreError(f"{error}; to write the report elsewhere: {elsewhere}") from error
    where = {name: f"{folder.place}/{name}" for name in files}
    return Paths(
        folder.place,
        where["report.md"],
        where["report.html"],
        where["scores.parquet"],
        tuple(where[name] for name in figures),
    )


def current(store: Store, sweep: str) -> bool:
    """Return whether the store's report of a sweep is up to date with its plan, its artefacts and this kvray.

    Raises:
        InputError: the store has no such sweep.
    """
    return holds(_of_store(store, sweep), made_from(store, look(store, sweep)))


def scores_parquet(scores: pl.DataFrame) -> bytes:
    """Return scores as Parquet of the scores schema; the same rows give the same bytes."""
    table = scores.select(SCORES_SCHEMA.names).to_arrow().cast(pa.schema(SCORES_SCHEMA))
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, SCORES_SCHEMA, compression="zstd") as writer:
        writer.write_table(table)
    return stream.getvalue()


def location(store: Store, folder: str) -> str:
    """Return the path of a folder of the store, or its URI with the scheme."""
    path = store.path(folder)
    scheme = re.match(r"[a-z0-9]+://", store.uri)
    return f"{scheme.group()}{path}" if scheme else path


def _of_store(store: Store, sweep: str) -> StoreFolder:
    folder = f"reports/{sweep}"
    return StoreFolder(store, folder, location(store, folder))
