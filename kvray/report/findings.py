"""Findings of a report: headlines, models compared, changes in knowledge and on benchmarks, what is missing."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from kvray.report import published, text
from kvray.report.blocks import Block, Bullets, Details, Figure, Heading, Table, Text
from kvray.report.charts import differences
from kvray.report.charts.style import Palette
from kvray.report.headlines import headlines
from kvray.report.text import DASH, Row, bold, change, count, percent, plural, seeds_averaged
from kvray.results.frames import BASE, seed_changes
from kvray.results.profile import PAIRWISE, unsplit
from kvray.results.snapshot import Snapshot

_PAIRS_SHOWN = 12
_PAIRS_OPEN = 24
_GAINS_DRAWN = 6
"""Most pairs (retrieval, knowledge) that all have a figure; of more, only those of the first closed-book evaluation."""
_GAINS_OPEN = 2


def opening(snapshot: Snapshot) -> list[Block]:
    """Title, what was compared, the sweep's progress, and the findings."""
    done, cells = snapshot.evaluated()
    base = snapshot.document.get("base_model") or "the base model"
    labels = [artefact["labels"] for artefact in snapshot.planned("finetune")]
    mixtures = len({one["mixture"] for one in labels})
    models = len({(one["mixture"], one["finetune"]) for one in labels})
    trained = f"{mixtures} {plural(mixtures, 'mixture')}"
    trained += f" finetuned in several ways ({models} models)" if models != mixtures else ""
    blocks: list[Block] = [
        Heading(f"Sweep {snapshot.sweep}", 1),
        Text(f"Base model `{base}`, {trained}, {done} of {cells} cells evaluated", "sub"),
    ]
    if done < cells:
        lacking = f"{cells - done} of {cells} cells are missing or failed"
        blocks.append(Text(f"**This report is partial:** {lacking}; they are listed under *What is missing*.", "warn"))
    first, *others = headlines(snapshot.predictions, snapshot.against_base(), snapshot.profiles)
    return [*blocks, Text(first, "lead"), *([Bullets(others)] if others else [])]


def gains(snapshot: Snapshot) -> list[Block]:
    """Figures of retrieval gained against knowledge lost, all but the first few folded away."""
    against = snapshot.against_base()
    retrieval, knowledge = snapshot.compared("retrieval"), snapshot.compared("knowledge")
    palette = Palette(snapshot.models)
    changes = seed_changes(snapshot.predictions, [*retrieval, *knowledge])
    figures: list[Block] = [
        Figure(
            differences.gain_against_loss(
                against, gained, lost, palette, text.bars(snapshot, [gained, lost]), seeds=changes
            ),
            f"Change on {gained} against change on {lost}, per mixture",
            *("gain-against-loss", gained, lost),
        )
        for lost in (knowledge if len(knowledge) * len(retrieval) <= _GAINS_DRAWN else knowledge[:1])
        for gained in retrieval
    ]
    if not figures:
        return []
    folded = [Details("Gain against loss on the other evaluations", figures[_GAINS_OPEN:])]
    return [Heading("Gain against loss"), *figures[:_GAINS_OPEN], *(folded if len(figures) > _GAINS_OPEN else [])]


def mixtures(snapshot: Snapshot) -> list[Block]:
    """One table per evaluation that is no benchmark, then the finetuned models compared in pairs."""
    evaluations = [name for name, profile in snapshot.profiles.items() if profile.measures != "benchmark"]
    subject = text.subject(snapshot.comparisons["about"].to_list())
    blocks: list[Block] = [Heading(f"{subject.capitalize()}s compared")] if evaluations else []
    for evaluation in evaluations:
        blocks += evaluation_table(snapshot, evaluation)
    return blocks + _pairs(snapshot, 3 if evaluations else 2)


def evaluation_table(snapshot: Snapshot, evaluation: str) -> list[Block]:
    """Accuracy of each model on an evaluation, best first, with its change against the base."""
    rows = unsplit(snapshot.scores).filter(pl.col("evaluation") == evaluation)
    place = pl.col("model").cast(pl.Enum(snapshot.with_base))
    rows = rows.sort("accuracy", place, descending=[True, False], nulls_last=True)
    alone = text.subject(rows["about"].to_list()) == "finetune"
    header = [
        "finetune, one seed" if alone else "model",
        "verdict",
        "accuracy",
        "95 % interval",
        "change, points",
        "Holm's p",
        "n",
        "seeds",
    ]
    table = [
        [
            bold(row["model"]),
            text.judged(row) if row["verdict"] else DASH if row["model"] == BASE else "not compared",
            text.Linked.of(percent(row["accuracy"]), row),
            text.interval(row["low"], row["high"]),
            text.flips(row),
            text.p_value(row["p_holm"]),
            count(row["n"]),
            _seed_spread(snapshot, evaluation, row["model"]),
        ]
        for row in rows.iter_rows(named=True)
    ]
    if alone:
        header, table = header[:-1], [line[:-1] for line in table]
    return [Heading(snapshot.profiles[evaluation].title, 3), Table(header, table, left=2)]


def knowledge(snapshot: Snapshot) -> list[Block]:
    """The figure of changes in closed-book accuracy."""
    evaluations = snapshot.compared("knowledge")
    if not evaluations:
        return []
    rows = snapshot.predictions.filter(pl.col("evaluation").is_in(evaluations))
    questions = f"{rows['question_id'].n_unique():,} closed-book questions{seeds_averaged(snapshot, evaluations)}"
    subtitle = f"{questions}; {text.bars(snapshot, evaluations)}; verdicts after Holm's correction"
    seeds = seed_changes(snapshot.predictions, evaluations)
    palette = Palette(snapshot.models)
    chart = differences.knowledge_change(snapshot.against_base(), evaluations, palette, subtitle, seeds)
    return [
        Heading("What it cost in knowledge"),
        Figure(chart, "Change in closed-book accuracy against the base, per mixture", "knowledge-change"),
        Text(text.notes()["closed_book"], "sub"),
    ]


def benchmarks(snapshot: Snapshot) -> list[Block]:
    """General benchmarks: a table with published rows under ours, the figure of changes, and intervals folded away."""
    evaluations = snapshot.measuring("benchmark")
    if not evaluations:
        return []
    cells = text.by_model(snapshot, unsplit(snapshot.scores), "evaluation", evaluations, _with_change)
    theirs = {model: published.benchmark_lines(snapshot, model, evaluations) for model in cells}
    table = [line for model, ours in cells.items() for line in ([bold(model), "here", *ours], *theirs[model])]
    header, left = ["model", "from", *evaluations], 2
    if not any(theirs.values()):
        header, table, left = [header[0], *header[2:]], [[line[0], *line[2:]] for line in table], 1
    pairs = snapshot.against_base()
    note = "Accuracy in %, in brackets the change against the base in points. "
    note = (note + text.arrows(table, pairs, "against the base")).rstrip()
    note += " Rows in italics: what a work prints; *?*: not confirmed." if any(theirs.values()) else ""
    figures: list[Block] = []
    if compared := snapshot.compared("benchmark"):
        published_changes = published.changes(snapshot)
        subtitle = f"{text.bars(snapshot, compared)}{seeds_averaged(snapshot, compared)}"
        if any(evaluation in compared for evaluation, _ in published_changes):
            subtitle += "; hollow: published, without interval"
        palette = Palette(snapshot.models)
        seeds = seed_changes(snapshot.predictions, compared)
        chart = differences.benchmark_changes(
            snapshot.against_base(), compared, palette, subtitle, published_changes, seeds
        )
        figures.append(Figure(chart, "Change on general benchmarks against the base, per mixture", "benchmark-change"))
    each = [block for evaluation in evaluations for block in evaluation_table(snapshot, evaluation)]
    return [
        Heading("General benchmarks"),
        Table(header, table, left=left),
        Text(note, "sub"),
        *figures,
        Details("Intervals and p on each benchmark", each),
    ]


def missing(snapshot: Snapshot) -> list[Block]:
    """Planned artefacts that are not committed, with state and reason, and rows that could not be scored."""
    blocks: list[Block] = [Heading("What is missing")]
    table = [[snapshot.cell(artefact), artefact["kind"], state, why] for artefact, state, why in absent(snapshot)]
    blocks += [Table(["cell", "kind", "state", "why"], table, left=4)] if table else []
    excluded = unsplit(snapshot.scores).filter(pl.col("excluded") > 0)
    if excluded.height:
        lines = [
            f"{row['model']} on {row['evaluation']}: {row['excluded']} rows (prompt longer than the model takes)"
            for row in excluded.iter_rows(named=True)
        ]
        blocks += [Text("Rows that could not be run are excluded from every number:"), Bullets(lines)]
    if len(blocks) == 1:
        blocks.append(Text("Nothing: every planned cell was evaluated, and every row has a score."))
    return blocks


def absent(snapshot: Snapshot) -> list[tuple[Mapping[str, Any], str, str]]:
    """Return (artefact, state, why) for everything planned that is not committed."""
    lacking = [artefact for artefact in snapshot.document["artefacts"] if artefact["id"] not in snapshot.manifests]
    return [(a, snapshot.states[a["id"]], snapshot.failures.get(a["id"]) or _why(snapshot, a)) for a in lacking]


def _pairs(snapshot: Snapshot, level: int) -> list[Block]:
    pairs = snapshot.comparisons.filter((pl.col("family") == PAIRWISE) & pl.col("difference").is_not_null())
    if not pairs.height:
        return []
    shown = pairs if pairs.height <= _PAIRS_SHOWN else pairs.filter(pl.col("verdict") != "within noise")
    hidden = pairs.height - shown.height
    subject = text.subject(pairs["about"].to_list())
    table = [
        [
            row["evaluation"],
            f"{row['b']} over {row['a']}",
            row["verdict"] if subject == "finetune" else text.judged(row),
            change(row["difference"], row["low"], row["high"]),
            text.p_value(row["p_holm"]),
            f"{count(row['better'])} : {count(row['worse'])}",
        ]
        for row in map(_leader_first, shown.iter_rows(named=True))
    ]
    first = "the first finetune is" if subject == "finetune" else "the first is"
    header = ["evaluation", "pair", first, "difference, points", "Holm's p", "pairs won : lost"]
    blocks: list[Block] = [Heading(f"{subject.capitalize()}s against each other", level)]
    if len(table) > _PAIRS_OPEN:
        blocks.append(Details(f"{len(table)} pairs of {subject}s that differ", [Table(header, table, left=3)]))
    elif table:
        blocks.append(Table(header, table, left=3))
    noise = f"{hidden} of {pairs.height} comparisons are within noise and not shown."
    noise = noise if table else f"All {pairs.height} comparisons are within noise."
    return [*blocks, Text(noise, "sub")] if hidden else blocks


def _leader_first(row: Mapping[str, Any]) -> dict[str, Any]:
    """Swap the models of a comparison where the difference is negative."""
    if row["difference"] >= 0:
        return dict(row)
    verdict = "better" if row["verdict"] == "worse" else row["verdict"]
    ends = {"low": -row["high"], "high": -row["low"], "difference": -row["difference"], "verdict": verdict}
    return {**row, **ends, "a": row["b"], "b": row["a"], "better": row["worse"], "worse": row["better"]}


def _seed_spread(snapshot: Snapshot, evaluation: str, model: str) -> str:
    rows = snapshot.of(evaluation).filter(pl.col("model") == model)
    means = rows.group_by("seed").agg(pl.col("score").mean())["score"].drop_nulls().sort().to_list()
    if rows["seed"].is_null().all() or not means:
        return DASH
    return f"{len(means)} ({100 * means[0]:.1f} to {100 * means[-1]:.1f} %)" if len(means) > 1 else "1"


def _why(snapshot: Snapshot, artefact: Mapping[str, Any]) -> str:
    failed = [need for need in artefact["needs"] if snapshot.states.get(need) == "failed"]
    if failed:
        return f"needs {', '.join(failed)}, which failed"
    return "damaged; kvray run makes it again" if snapshot.states[artefact["id"]] == "damaged" else "not run yet"


def _with_change(row: Row | None) -> str:
    if row is None or row["accuracy"] is None:
        return DASH
    change = f" ({text.signed(row['difference'])})" if row["difference"] is not None else ""
    shown = f"{100 * row['accuracy']:.1f}{change}{text.ARROWS.get(row['verdict'] or '', '')}"
    return text.Linked.of(shown, row)
