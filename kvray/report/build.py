"""The report of a sweep: report.md, report.html, figures, scores.parquet, and the note of them, completed last."""

import hashlib
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

import kvray
from kvray.errors import StoreError
from kvray.report import breakdowns, findings, methods, published, recovery, training
from kvray.report.blocks import Block, name_figures, to_markdown
from kvray.report.page.answers import answer_by_answer
from kvray.report.page.html import to_html
from kvray.report.terminal import lines
from kvray.results.snapshot import Snapshot, Standing, collect, look
from kvray.store import output
from kvray.store.content import encode
from kvray.store.fingerprint import encoded
from kvray.store.manifest import Presence
from kvray.store.places.files import Folder
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
    recovery.recovered,
    breakdowns.grids_by_depth,
    breakdowns.by_kind,
    findings.knowledge,
    breakdowns.answers,
    breakdowns.reasoning,
    answer_by_answer,
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
    """Local paths, or URIs in a bucket, of a report's directory and files; ``page`` is the content of ``html``.

    ``summary`` are the lines of :mod:`kvray.report.terminal`.
    """

    directory: str
    markdown: str
    html: str
    scores: str
    figures: tuple[str, ...]
    page: str
    summary: tuple[str, ...]


def write(
    store: Store, sweep: str, out_dir: str | os.PathLike[str] | None = None, sections: Sequence[Section] = SECTIONS
) -> Paths:
    """Write the report of a sweep, finished or not, replacing an older one.

    ``out_dir`` is a directory or the URI of one in a bucket; None writes to ``reports/<sweep>/`` in the store. Raises
    InputError if the store has no such sweep or ``out_dir`` cannot be written, and StoreError, which says how to write
    elsewhere, if the store cannot be.
    """
    snapshot = collect(store, sweep)
    folder = store.folder(f"reports/{sweep}") if out_dir is None else output.folder(out_dir)
    blocks = [block for section in sections for block in section(snapshot)]
    figures: dict[str, bytes] = {}
    for figure in name_figures(blocks):
        figures |= {f"{FIGURES}{figure.name}.png": figure.png, f"{FIGURES}{figure.name}.svg": figure.svg}
    scored = snapshot.scores.select(SCORES_SCHEMA.names).to_arrow().cast(pa.schema(SCORES_SCHEMA))
    files = {"report.md": to_markdown(blocks).encode(), "scores.parquet": bytes(encode(scored)), **figures}
    summary = lines(snapshot)
    page = to_html(f"kvray: {sweep}", blocks)
    files["report.html"] = page.encode()  # last: whoever sees it has the rest
    try:
        old = [name for name in earlier_figures(folder) if name not in files]
        # Not yet complete; but if the writing fails, the next one knows which figures there are.
        folder.put(NOTE, json.dumps({"files": [*files, *old]}).encode())
        for name, data in files.items():
            folder.put(name, data)
        for name in old:
            folder.delete(name)
        note = made_from(store, snapshot) | {"files": list(files), "summary": summary}
        folder.put(NOTE, (json.dumps(note, indent=1) + "\n").encode())
    except StoreError as error:
        if out_dir is not None:
            raise
        elsewhere = f"kvray report {shlex.quote(sweep)} --store {shlex.quote(store.uri)} --out DIRECTORY"
        raise StoreError(f"{error}; to write the report elsewhere: {elsewhere}") from error
    markdown, html, scores, *drawn = (
        f"{folder.place}/{name}" for name in ("report.md", "report.html", "scores.parquet", *figures)
    )
    return Paths(folder.place, markdown, html, scores, tuple(drawn), page, tuple(summary))


def current(
    store: Store, sweep: str, found: tuple[Mapping[str, Any], Mapping[str, Presence]] | None = None
) -> list[str]:
    """Return the summary of the report in the store if it is up to date with plan, artefacts and kvray, else [].

    Reads neither manifests nor predictions; ``found`` is the plan's document and the store's listing of its artefacts,
    if known. Raises InputError if there is no such sweep.
    """
    source = made_from(store, look(store, sweep, found))
    folder = store.folder(f"reports/{sweep}")
    note, listed = _note(folder)
    summary = note.get("summary")
    whole = source.items() <= note.items() and folder.names().issuperset(listed)
    return [str(line) for line in summary] if whole and isinstance(summary, list) else []


def made_from(store: Store, standing: Standing) -> dict[str, str]:
    """Return digests of everything that a report depends on, which its note holds."""
    times = dict(standing.times)
    parts = {"plan": standing.document, "committed": times, "states": standing.states, "failures": standing.failures}
    digests = {name: hashlib.sha256(encoded(part)).hexdigest() for name, part in parts.items()}
    return {"kvray": kvray.__version__, "store": store.uri, **digests}


def earlier_figures(folder: Folder) -> list[str]:
    """Return the figures of an earlier report, which the note lists; other files are never touched."""
    return [name for name in _note(folder)[1] if PurePosixPath(name).parent == PurePosixPath(FIGURES)]


def _note(folder: Folder) -> tuple[dict[str, object], list[str]]:
    """Return a report's note and the files that it lists; both are empty where it is missing or damaged."""
    try:
        note = json.loads(folder.read(NOTE) or b"{}")
        return note, [name for name in note["files"] if isinstance(name, str)]
    except (ValueError, KeyError, TypeError):
        return {}, []
