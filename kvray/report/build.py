"""The report of a sweep (report.md, report.html, figures, scores.parquet), in its store, a directory or a bucket.

A note lists the files; what they were made from is added last, so a report whose note has that is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import polars as pl
import pyarrow as pa

import kvray
from kvray.errors import StoreError
from kvray.report import breakdowns, findings, methods, published, training
from kvray.report.blocks import Block, name_figures, to_html, to_markdown
from kvray.results.snapshot import Progress, Snapshot, collect, look
from kvray.store.fingerprint import canonical_json
from kvray.store.output import Place
from kvray.store.parquet import encode
from kvray.store.schemas import SCORES_SCHEMA
from kvray.store.store import Store

NOTE = "made-from.json"
FIGURES = "figures/"
Section = Callable[[Snapshot], list[Block]]
"""A part of a report: headings, text, tables and figures, or no blocks where the sweep has nothing for it."""
SECTIONS: tuple[Section, ...] = (
    findings.opening,
    findings.gains,
    findings.mixtures,
    findings.benchmarks,
    breakdowns.by_axes,
    breakdowns.grids_by_depth,
    breakdowns.by_kind,
    findings.knowledge,
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
    folder = StoreFolder(store, sweep) if out_dir is None else Place(out_dir)
    blocks = [block for section in sections for block in section(snapshot)]
    figures: dict[str, bytes] = {}
    for figure in name_figures(blocks):
        figures |= {f"{FIGURES}{figure.name}.png": figure.png, f"{FIGURES}{figure.name}.svg": figure.svg}
    files = {"report.md": to_markdown(blocks).encode(), "scores.parquet": scores_parquet(snapshot.scores), **figures}
    files["report.html"] = to_html(f"kvray: {sweep}", blocks).encode()  # last: whoever sees it has the rest
    try:
        old = [name for name in earlier_figures(folder) if name not in files]
        # Not yet complete; but if the writing fails, the next one knows which figures there are.
        folder.put(NOTE, json.dumps({"files": [*files, *old]}).encode())
        for name, data in files.items():
            folder.put(name, data)
        for name in old:
            folder.delete(name)
        note = made_from(store, snapshot) | {"files": list(files)}
        folder.put(NOTE, (json.dumps(note, indent=1) + "\n").encode())
    except StoreError as error:
        if out_dir is not None:
            raise
        elsewhere = f"kvray report {shlex.quote(sweep)} --store {shlex.quote(store.uri)} --out DIRECTORY"
        raise StoreError(f"{error}; to write the report elsewhere: {elsewhere}") from error
    markdown, html, scores, *drawn = (
        f"{folder.place}/{name}" for name in ("report.md", "report.html", "scores.parquet", *figures)
    )
    return Paths(folder.place, markdown, html, scores, tuple(drawn))


def current(store: Store, sweep: str) -> bool:
    """Return whether the store's report of a sweep is up to date with its plan, its artefacts and this kvray.

    Raises:
        InputError: the store has no such sweep.
    """
    source = made_from(store, look(store, sweep))
    folder = StoreFolder(store, sweep)
    note = _note(folder)
    listed = note.get("files")
    complete = isinstance(listed, list) and folder.documents() >= {f"{folder.name}/{name}" for name in listed}
    return complete and source.items() <= note.items()


def scores_parquet(scores: pl.DataFrame) -> bytes:
    """Return scores as Parquet of the scores schema; the same rows give the same bytes."""
    table = scores.select(SCORES_SCHEMA.names).to_arrow().cast(pa.schema(SCORES_SCHEMA))
    return bytes(encode(table))


def location(store: Store, folder: str) -> str:
    """Return the path of a folder of the store, or its URI with the scheme."""
    path = store.path(folder)
    scheme = re.match(r"[a-z0-9]+://", store.uri)
    return f"{scheme.group()}{path}" if scheme else path


def made_from(store: Store, progress: Progress) -> dict[str, str]:
    """Return digests of everything that a report depends on."""
    times = {one: manifest.created for one, manifest in progress.manifests.items()}
    parts = {"plan": progress.document, "committed": times, "states": progress.states, "failures": progress.failures}
    digests = {name: hashlib.sha256(canonical_json(part)).hexdigest() for name, part in parts.items()}
    return {"kvray": kvray.__version__, "store": store.uri, **digests}


def earlier_figures(folder: StoreFolder | Place) -> list[str]:
    """Return the figures of an earlier report, which the note lists; other files are never touched."""
    listed = _note(folder).get("files")
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    return [name for name in names if PurePosixPath(name).parent == PurePosixPath(FIGURES)]


def _note(folder: StoreFolder | Place) -> dict[str, object]:
    try:
        note = json.loads(folder.read(NOTE) or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}


class StoreFolder:
    """The folder of a sweep's report in its store; ``place`` is its path or URI."""

    def __init__(self, store: Store, sweep: str) -> None:
        self.name = f"reports/{sweep}"
        self.place = location(store, self.name)
        self._store = store

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        self._store.write_document(f"{self.name}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """Return a file; None where it does not exist."""
        return self._store.read_document(f"{self.name}/{name}")

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""
        self._store.delete_document(f"{self.name}/{name}")

    def documents(self) -> set[str]:
        """Return the names of all files, with the folder's name before each."""
        return set(self._store.documents(f"{self.name}/"))
