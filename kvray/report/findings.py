"""The report's findings: headlines, models compared, positions, and what is missing, as blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvray.report import text as words
from kvray.report.blocks import Block, Bullets, Details, Heading, Table, Text
from kvray.results.comparisons import PAIRWISE, whole
from kvray.results.frames import BASE
from kvray.results.snapshot import Found, cell_name

_PAIRS_SHOWN = 12
_PAIRS_OPEN = 24


def opening(found: Found) -> list[Block]:
    """Title, what was compared, how far the sweep is, and the findings."""
    cells = found.planned("predictions")
    done = sum(cell["id"] in found.manifests for cell in cells)
    base = found.document.get("base_model") or "the base model"
    blocks: list[Block] = [
        Heading(f"Sweep {found.sweep}", 1),
        Text(f"Base model `{base}`, {_trained(found)}, {done} of {len(cells)} cells evaluated", "sub"),
    ]
    if done < len(cells):
        lacking = f"{len(cells) - done} of {len(cells)} cells are missing or failed"
        blocks.append(Text(f"**This report is partial:** {lacking}; they are listed under *What is missing*.", "warn"))
    first, *others = words.headlines(found.predictions, found.comparisons, found.kinds)
    blocks.append(Text(first, "lead"))
    return [*blocks, Bullets(others)] if others else blocks


def mixtures(found: Found) -> list[Block]:
    """One table per evaluation: accuracy of each model and its change against the base; then the pairs.

    Benchmarks have a table of their own (:mod:`kvray.report.benchmarks`).
    """
    evaluations = [evaluation for evaluation, kind in found.kinds.items() if kind.measures != "benchmark"]
    blocks: list[Block] = [Heading("Mixtures compared")] if evaluations else []
    for evaluation in evaluations:
        blocks += evaluation_table(found, evaluation)
    return blocks + _pairs(found, 3 if evaluations else 2)


def evaluation_table(found: Found, evaluation: str) -> list[Block]:
    """Accuracy of each model on an evaluation, the best first, with its change against the base."""
    rows = whole(found.scores).filter(pl.col("evaluation") == evaluation)
    place = {model: at for at, model in enumerate([BASE, *found.models])}
    rows = rows.with_columns(pl.col("model").replace_strict(place, return_dtype=pl.Int64).alias("place"))
    rows = rows.sort("accuracy", "place", descending=[True, False], nulls_last=True)
    header = ["model", "verdict", "accuracy", "95 % interval", "change, points", "Holm's p", "n", "seeds"]
    seeds = any(row["seeds"] > 1 for row in rows.iter_rows(named=True))
    table = [
        [
            f"**{row['model']}**" if row["model"] != BASE else BASE,
            row["verdict"] or ("\u2013" if row["model"] == BASE else "not compared"),
            words.percent(row["accuracy"]),
            words.interval(row["low"], row["high"]),
            words.change(
                {"difference": row["difference"], "low": row["difference_low"], "high": row["difference_high"]}
            ),
            words.p_value(row["p_holm"]),
            words.count(row["n"]),
            _seed_spread(found, evaluation, row["model"]) if seeds else "",
        ]
        for row in rows.iter_rows(named=True)
    ]
    if not seeds:
        header, table = header[:-1], [line[:-1] for line in table]
    return [Heading(words.described(found.predictions, evaluation), 3), Table(header, table, left=2)]


def missing(found: Found) -> list[Block]:
    """Every artefact of the plan that is not there, with its state and reason, and rows that could not be scored."""
    blocks: list[Block] = [Heading("What is missing")]
    table = [[cell_name(artefact, found.names), artefact["kind"], state, why] for artefact, state, why in absent(found)]
    if table:
        blocks.append(Table(["cell", "kind", "state", "why"], table, left=4))
    excluded = whole(found.scores).filter(pl.col("excluded") > 0)
    if excluded.height:
        lines = [
            f"{row['model']} on {row['evaluation']}: {row['excluded']} rows (prompt longer than the model takes)"
            for row in excluded.iter_rows(named=True)
        ]
        blocks += [Text("Rows that could not be run are excluded from every number:"), Bullets(lines)]
    if len(blocks) == 1:
        blocks.append(Text("Nothing: every planned cell was evaluated, and every row has a score."))
    return blocks


def absent(found: Found) -> list[tuple[Mapping[str, Any], str, str]]:
    """Return (artefact, state, why) of everything planned that is not there."""
    lacking = [artefact for artefact in found.document["artefacts"] if artefact["id"] not in found.manifests]
    return [(a, found.states[a["id"]], found.failures.get(a["id"]) or _waits(found, a)) for a in lacking]


def _trained(found: Found) -> str:
    """Return "4 mixtures", and how many models they make where they are finetuned in several ways."""
    labels = [artefact["labels"] for artefact in found.planned("finetune")]
    mixtures = len({one["mixture"] for one in labels})
    models = len({(one["mixture"], one["finetune"]) for one in labels})
    said = f"{mixtures} mixture{'' if mixtures == 1 else 's'}"
    return said if models == mixtures else f"{said} finetuned in several ways ({models} models)"


def _pairs(found: Found, level: int) -> list[Block]:
    pairs = found.comparisons.filter((pl.col("family") == PAIRWISE) & pl.col("difference").is_not_null())
    if not pairs.height:
        return []
    shown = pairs if pairs.height <= _PAIRS_SHOWN else pairs.filter(pl.col("verdict") != "within noise")
    hidden = pairs.height - shown.height
    table = [
        [
            row["evaluation"],
            f"{row['b']} over {row['a']}",
            row["verdict"],
            words.change(row),
            words.p_value(row["p_holm"]),
            f"{words.count(row['better'])} : {words.count(row['worse'])}",
        ]
        for row in map(_leader_first, shown.iter_rows(named=True))
    ]
    header = ["evaluation", "pair", "the first is", "difference, points", "Holm's p", "pairs won : lost"]
    blocks: list[Block] = [Heading("Mixtures against each other", level)]
    whole_table = Table(header, table, left=3)
    if len(table) > _PAIRS_OPEN:
        blocks.append(Details(f"{len(table)} pairs of mixtures that differ", [whole_table]))
    elif table:
        blocks.append(whole_table)
    noise = f"{hidden} of {pairs.height} comparisons are within noise and not shown."
    noise = noise if table else f"All {pairs.height} comparisons are within noise."
    return [*blocks, Text(noise, "sub")] if hidden else blocks


def _leader_first(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a comparison round where its difference is negative, so that every row of the table reads the same way."""
    if row["difference"] >= 0:
        return dict(row)
    verdict = "better" if row["verdict"] == "worse" else row["verdict"]
    ends = {"low": -row["high"], "high": -row["low"], "difference": -row["difference"], "verdict": verdict}
    return {**row, **ends, "a": row["b"], "b": row["a"], "better": row["worse"], "worse": row["better"]}


def _seed_spread(found: Found, evaluation: str, model: str) -> str:
    rows = found.predictions.filter((pl.col("evaluation") == evaluation) & (pl.col("model") == model))
    means = rows.group_by("seed").agg(pl.col("score").mean())["score"].drop_nulls().sort().to_list()
    if rows["seed"].is_null().all() or not means:
        return "\u2013"
    return f"{len(means)} ({100 * means[0]:.1f} to {100 * means[-1]:.1f} %)" if len(means) > 1 else "1"


def _waits(found: Found, artefact: Mapping[str, Any]) -> str:
    failed = [need for need in artefact["needs"] if found.states.get(need) == "failed"]
    if failed:
        return f"needs {', '.join(failed)}, which failed"
    return "damaged; kvray run makes it again" if found.states[artefact["id"]] == "damaged" else "not run yet"
