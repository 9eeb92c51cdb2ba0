"""The report of a sweep: report.md, report.html, figures and scores.parquet; and its summary for a terminal."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from kvray.errors import InputError
from kvray.results import background, plots, sections, words
from kvray.results.found import Found, collect
from kvray.results.frames import BASE, OVERALL
from kvray.results.page import Block, Figure, Heading, Text, to_html, to_markdown
from kvray.results.schema import SCORES_SCHEMA
from kvray.store import Store


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
    """Write the report of a sweep, finished or not, over an older one.

    Args:
        store: where the sweep is.
        sweep: its name.
        out_dir: a local directory; None writes to ``reports/<sweep>/`` in the store.

    Raises:
        InputError: the store knows no such sweep, or ``out_dir`` cannot be written.
    """
    found = collect(store, sweep)
    figures = draw(found)
    blocks = compose(found, figures)
    files = {"report.md": to_markdown(blocks).encode(), "scores.parquet": scores_parquet(found.scores)}
    for figure, png in figures:
        files |= {f"figures/{figure.name}.png": png, f"figures/{figure.name}.svg": figure.svg.encode()}
    files["report.html"] = to_html(f"kvray: {sweep}", blocks).encode()  # last: whoever sees it has the rest
    put, directory = _into_store(store, f"reports/{sweep}") if out_dir is None else _into_directory(Path(out_dir))
    where = {name: put(name, data) for name, data in files.items()}
    drawn = tuple(path for name, path in where.items() if name.startswith("figures/"))
    return Paths(directory, where["report.md"], where["report.html"], where["scores.parquet"], drawn)


def summary(store: Store, sweep: str) -> list[str]:
    """Return the results in lines for a terminal: a row per model, a column per evaluation.

    Raises:
        InputError: the store knows no such sweep.
    """
    found = collect(store, sweep)
    cells = found.planned("predictions")
    done = sum(cell["id"] in found.manifests for cell in cells)
    head = f"{sweep}: {done} of {len(cells)} cells evaluated"
    if not found.kinds:
        return [head, "no predictions yet"]
    table = [["", *(words.described(found.predictions, evaluation) for evaluation in found.kinds)]]
    for model in [BASE, *found.models]:
        line = [model]
        for evaluation in found.kinds:
            of = (pl.col("evaluation") == evaluation) & (pl.col("model") == model) & pl.col("position").is_null()
            rows = found.scores.filter(of).to_dicts()
            if not rows:
                line.append("missing")
                continue
            row = rows[0]
            shown = words.percent(row["accuracy"])
            if row["difference"] is not None:
                low, high = words.signed(row["difference_low"]), words.signed(row["difference_high"])
                shown += f"  {words.signed(row['difference'])} ({low} to {high}) {row['verdict']}"
            line.append(shown)
        table.append(line)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    note = "accuracy, change against the base in points with its 95 % interval, verdict after Holm's correction"
    return [head, *lines, note]


def draw(found: Found) -> list[tuple[Figure, bytes]]:
    """Draw every figure that the predictions allow; returns (figure with its SVG, PNG bytes)."""
    palette = plots.Palette(found.models)
    drawn: list[tuple[Figure, bytes]] = []

    def add(name: str, about: str, figure: object) -> None:
        svg = plots.render(figure, "svg").decode()
        drawn.append((Figure(_slug(name), about, svg), plots.render(figure, "png")))

    against = found.comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())
    compared = set(against["evaluation"].to_list())
    for evaluation in found.of_kind("retrieval"):
        rows = found.predictions.filter(pl.col("evaluation") == evaluation)
        count = (
            f"{words.described(found.predictions, evaluation)}, {rows['question_id'].n_unique():,} questions at each"
        )
        subtitle = f"{count} position{_seeds(found)}; bands: 95 % intervals of each accuracy"
        figure = plots.accuracy_by_position(found.scores, evaluation, palette, subtitle)
        add(f"accuracy-by-position-{evaluation}", f"Accuracy by gold position on {evaluation}, per mixture", figure)
    knowledge = [evaluation for evaluation in found.of_kind("knowledge") if evaluation in compared]
    if knowledge:
        rows = found.predictions.filter(pl.col("evaluation").is_in(knowledge))
        asked = f"{rows['question_id'].n_unique():,} closed-book questions{_seeds(found)}"
        subtitle = f"{asked}; bars: 95 % intervals of the paired difference; verdicts after Holm's correction"
        figure = plots.knowledge_change(found.comparisons, knowledge, palette, subtitle)
        add("knowledge-change", "Change in closed-book accuracy against the base, per mixture", figure)
    for retrieval in (evaluation for evaluation in found.of_kind("retrieval") if evaluation in compared):
        for closed in knowledge:
            subtitle = "bars: 95 % intervals of the paired differences to the base, questions resampled"
            figure = plots.gain_against_loss(found.comparisons, retrieval, closed, palette, subtitle)
            name = f"gain-against-loss-{retrieval}-{closed}"
            add(name, f"Change on {retrieval} against change on {closed}, per mixture", figure)
    return drawn


def compose(found: Found, figures: list[tuple[Figure, bytes]]) -> list[Block]:
    """Put the report together: findings first, then their evidence, then how it was made."""
    by_name = {figure.name: figure for figure, _ in figures}
    gains = [figure for name, figure in by_name.items() if name.startswith("gain-against-loss-")]
    blocks = sections.opening(found)
    if gains:
        blocks += [Heading("Gain against loss"), *gains]
    blocks += sections.mixtures(found)
    retrieval = found.of_kind("retrieval")
    if retrieval:
        blocks.append(Heading("By gold position"))
    for evaluation in retrieval:
        if len(retrieval) > 1:
            blocks.append(Heading(words.described(found.predictions, evaluation), 3))
        figure = by_name.get(_slug(f"accuracy-by-position-{evaluation}"))
        blocks += [figure] if figure else []
        blocks += sections.positions(found, evaluation)
    if "knowledge-change" in by_name:
        blocks += [Heading("What it cost in knowledge"), by_name["knowledge-change"]]
        blocks.append(
            Text("Closed-book questions: no document is given, so the model answers from its weights.", "sub")
        )
    blocks += sections.missing(found)
    for section in (background.trained, background.evaluated, background.reading, background.provenance):
        blocks += section(found)
    return blocks


def scores_parquet(scores: pl.DataFrame) -> bytes:
    """Return scores as Parquet of the scores schema, descriptions included; the same rows give the same bytes."""
    table = scores.select(SCORES_SCHEMA.names).to_arrow().cast(pa.schema(SCORES_SCHEMA))
    stream = io.BytesIO()
    with pq.ParquetWriter(stream, SCORES_SCHEMA, compression="zstd") as writer:
        writer.write_table(table)
    return stream.getvalue()


def _seeds(found: Found) -> str:
    cells = found.predictions.filter(pl.col("seed").is_not_null()).group_by("evaluation", "model")
    counts = cells.agg(pl.col("seed").n_unique())["seed"].unique().sort().to_list()
    if not counts or counts == [1]:
        return ""
    return f", mean of {counts[0]} seeds" if len(counts) == 1 else f", mean of {counts[0]} to {counts[-1]} seeds"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def location(store: Store, folder: str) -> str:
    """Return where a folder of the store is, as a user would open it: a path, or a URI with its scheme."""
    path = store.path(folder)
    scheme = re.match(r"[a-z0-9]+://", store.uri)
    return f"{scheme.group()}{path}" if scheme else path


def _into_store(store: Store, folder: str) -> tuple[Callable[[str, bytes], str], str]:
    place = location(store, folder)

    def put(name: str, data: bytes) -> str:
        store.write_document(f"{folder}/{name}", data)
        return f"{place}/{name}"

    return put, place


def _into_directory(directory: Path) -> tuple[Callable[[str, bytes], str], str]:
    def put(name: str, data: bytes) -> str:
        path = directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise InputError(f"--out {directory}: cannot write {path}: {error.strerror}") from error
        return str(path)

    return put, str(directory)
