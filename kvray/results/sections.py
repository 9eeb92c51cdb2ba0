"""The report's sections: what was found, trained, evaluated and left out, as blocks of :mod:`kvray.results.page`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from kvray.results import stats, words
from kvray.results.found import Found
from kvray.results.frames import BASE, BY_POSITION, OVERALL, PAIRWISE
from kvray.results.page import Block, Bullets, Code, Details, Heading, Table, Text

_ARROWS = {"better": " \u25b2", "worse": " \u25bc"}
_PAIRS_SHOWN = 12


def opening(found: Found) -> list[Block]:
    """Title, what was compared, how far the sweep is, and the findings."""
    cells = found.planned("predictions")
    done = sum(cell["id"] in found.manifests for cell in cells)
    base = found.document.get("base_model") or "the base model"
    blocks: list[Block] = [
        Heading(f"Sweep {found.sweep}", 1),
        Text(f"Base model `{base}`, {len(_mixtures(found))} mixtures, {done} of {len(cells)} cells evaluated", "sub"),
    ]
    if done < len(cells):
        lacking = f"{len(cells) - done} of {len(cells)} cells are missing or failed"
        blocks.append(Text(f"**This report is partial:** {lacking}; they are listed under *What is missing*.", "warn"))
    first, *others = words.headlines(found.predictions, found.comparisons, found.kinds)
    blocks.append(Text(first, "lead"))
    return [*blocks, Bullets(others)] if others else blocks


def mixtures(found: Found) -> list[Block]:
    """One table per evaluation: accuracy of each model and its change against the base; then the pairs."""
    blocks: list[Block] = [Heading("Mixtures compared")] if found.kinds else []
    for evaluation in found.kinds:
        rows = found.scores.filter((pl.col("evaluation") == evaluation) & pl.col("position").is_null())
        rows = rows.sort("accuracy", descending=True, nulls_last=True)
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
        blocks += [Heading(words.described(found.predictions, evaluation), 3), Table(header, table, left=2)]
    return blocks + _pairs(found)


def positions(found: Found, evaluation: str) -> list[Block]:
    """Accuracy by gold position, a row per model; arrows mark positions that differ from the base."""
    rows = found.scores.filter((pl.col("evaluation") == evaluation) & pl.col("position").is_not_null())
    places = rows["position"].unique().sort().to_list()
    cells = {(row["model"], row["position"]): row for row in rows.iter_rows(named=True)}
    table = []
    for model in [BASE, *found.models]:
        line = [cells.get((model, place)) for place in places]
        if any(line):
            shown = [
                words.percent(c["accuracy"], 0) + _ARROWS.get(c["verdict"] or "", "") if c else "\u2013" for c in line
            ]
            table.append([f"**{model}**" if model != BASE else BASE, *shown])
    header = ["model", *(f"position {place}" for place in places)]
    note = (
        "Accuracy with the answer at each position. \u25b2 and \u25bc: differs from the base at that position "
        f"after Holm's correction over all {_count(found, BY_POSITION)} comparisons by position."
    )
    return [Table(header, table), Text(note, "sub")]


def trained(found: Found) -> list[Block]:
    """What each finetune was trained on and how it went, from its manifest."""
    table = []
    for artefact in found.planned("finetune"):
        manifest = found.manifests.get(artefact["id"])
        if manifest is None:
            continue
        labels, facts = artefact["labels"], manifest.facts
        recipe = manifest.recipe.get("finetune", {})
        table.append(
            [
                str(labels.get("mixture")),
                str(labels.get("finetune")),
                str(labels.get("seed")),
                words.count(facts.get("rows", artefact.get("rows"))),
                words.count(facts.get("tokens")),
                words.count(facts.get("steps")),
                f"{recipe['epochs']:g}" if "epochs" in recipe else "\u2013",
                f"{recipe['learning_rate']:g}" if "learning_rate" in recipe else "\u2013",
                _loss(facts),
                words.duration(facts.get("seconds")),
            ]
        )
    header = ["mixture", "finetune", "seed", "rows", "tokens", "steps", "epochs", "rate", "final loss", "time"]
    return [Heading("What was trained"), Table(header, table, left=2)] if table else []


def evaluated(found: Found) -> list[Block]:
    """What each evaluation asked, how long its prompts were, and what a comparison on it could find."""
    table = [_evaluation(found, evaluation) for evaluation in found.kinds]
    header = [
        "evaluation",
        "task",
        "questions",
        "positions",
        "examples",
        "prompt tokens",
        "cached",
        "answers cut",
        "excluded",
        "detectable, points",
    ]
    note = (
        "*Prompt tokens*: median and longest. *Cached*: those served from the engine's prefix cache. *Answers cut*: "
        "stopped by the output limit. *Excluded*: rows whose prompt did not fit the model; they are in no number here. "
        "*Detectable*: the smallest true difference that one pair per question would show four times in five, at the "
        "share of discordant pairs seen here; several positions per question show smaller ones."
    )
    return [Heading("What was evaluated"), Table(header, table, left=2), Text(note, "sub")] if table else []


def _evaluation(found: Found, evaluation: str) -> list[str]:
    rows = found.predictions.filter(pl.col("evaluation") == evaluation)
    run = rows.filter(pl.col("finish_reason") != "too_long")
    lengths = run["prompt_tokens"].to_numpy()
    told = run.filter(pl.col("cached_tokens").is_not_null())
    questions = rows["question_id"].n_unique()
    pairs = found.comparisons.filter((pl.col("family") == OVERALL) & (pl.col("evaluation") == evaluation))
    n, differ = int(pairs["n"].sum()), int(pairs["better"].sum()) + int(pairs["worse"].sum())
    detectable = stats.detectable_difference(questions, min(1.0, max(0.01, differ / n))) if n else None
    cached = float(told["cached_tokens"].sum()) / float(told["prompt_tokens"].sum()) if told.height else None
    cut = float((run["finish_reason"] == "length").sum()) / run.height if run.height else None
    return [
        evaluation,
        str(rows["task"][0]),
        words.count(questions),
        ", ".join(map(str, rows["position"].drop_nulls().unique().sort())) or "\u2013",
        words.count(rows["example_id"].n_unique()),
        f"{np.median(lengths):,.0f} / {lengths.max():,}" if lengths.size else "\u2013",
        words.percent(cached, 0),
        words.percent(cut),
        words.count(rows["score"].null_count()),
        f"{100 * detectable:.1f}" if detectable is not None else "\u2013",
    ]


def missing(found: Found) -> list[Block]:
    """Every artefact of the plan that is not there, with its state and reason, and rows that could not be scored."""
    absent = [artefact for artefact in found.document["artefacts"] if artefact["id"] not in found.manifests]
    blocks: list[Block] = [Heading("What is missing")]
    if absent:
        table = [
            [
                _cell_name(artefact),
                artefact["kind"],
                found.states[artefact["id"]],
                found.failures.get(artefact["id"]) or _waits(found, artefact),
            ]
            for artefact in absent
        ]
        blocks.append(Table(["cell", "kind", "state", "why"], table, left=4))
    excluded = found.scores.filter(pl.col("position").is_null() & (pl.col("excluded") > 0))
    if excluded.height:
        lines = [
            f"{row['model']} on {row['evaluation']}: {row['excluded']} rows (prompt longer than the model takes)"
            for row in excluded.iter_rows(named=True)
        ]
        blocks += [Text("Rows that could not be run are excluded from every number:"), Bullets(lines)]
    if len(blocks) == 1:
        blocks.append(Text("Nothing: every planned cell was evaluated, and every row has a score."))
    return blocks


def reading(found: Found) -> list[Block]:
    """How the numbers were made and how to read them."""
    seeds = found.predictions["seed"].drop_nulls().n_unique()
    luck = (
        f"Here {seeds} seeds were trained; they are averaged question by question, and the tables show their spread."
        if seeds > 1
        else "Here one seed was trained: what another seed would give is not known from this sweep."
    )
    lines = [
        "A **change** is a paired difference: both models answered the same examples, and only common ones count. "
        "Its interval resamples *questions* 10,000 times, so the rows of one question at several gold positions count "
        "as one draw. An interval of +8.1 to +16.5 means: true changes in that range fit what was seen.",
        "**Within noise** is not *no effect*: it says that the data fit zero. The interval tells how large an effect "
        "they also fit.",
        "**p** is McNemar's exact test where a question gives one pair of 0/1 scores; otherwise its generalisation by "
        "question (all sign flips of the questions' summed differences). **Holm's p** corrects for the number of "
        "comparisons in a table: all models against the base on all evaluations; likewise by position; likewise pairs. "
        "A verdict needs Holm's p of at most 0.05 and an interval that leaves zero out.",
        "**Accuracy** intervals are Wilson's where each question occurs once with a 0/1 score, otherwise the same "
        "bootstrap over questions.",
        f"Intervals cover the choice of questions, not the luck of a training run. {luck}",
    ]
    return [Heading("How to read the numbers"), Bullets(lines)]


def provenance(found: Found) -> list[Block]:
    """Versions, hardware, fingerprints, and the commands that make this report again."""
    uri, sweep = shlex.quote(found.store.uri), shlex.quote(found.sweep)
    cell = next((a["id"] for a in found.planned("predictions")), None)
    commands = [f"kvray report {sweep} --store {uri}"]
    commands += [f"kvray why {shlex.quote(cell)} --store {uri}"] if cell else []
    versions = _distinct([m.facts.get("versions", {}) for m in found.manifests.values()])
    hardware = _distinct([m.facts.get("hardware", {}) for m in found.manifests.values()])
    times = {one: manifest.created for one, manifest in found.manifests.items()}
    made = sorted(times.values())
    artefacts = [
        [
            f"`{a['id']}`",
            _cell_name(a),
            found.states[a["id"]],
            m.created if (m := found.manifests.get(a["id"])) else "\u2013",
        ]
        for a in found.document["artefacts"]
    ]
    blocks: list[Block] = [Heading("Provenance"), Code("\n".join(commands))]
    if made:
        blocks.append(Text(f"Artefacts were committed from {made[0]} to {made[-1]}.", "sub"))
        facts = [["versions", _pairs_of(versions)], ["hardware", _pairs_of(hardware)]]
        blocks.append(Table(["what", "found in the manifests"], [line for line in facts if line[1]], left=2))
    listing = Table(["id, with the fingerprint", "cell", "state", "committed"], artefacts, left=4)
    return [*blocks, Details(f"All {len(artefacts)} artefacts of the plan", [listing])]


def _mixtures(found: Found) -> set[str]:
    return {artefact["labels"]["mixture"] for artefact in found.planned("finetune")}


def _count(found: Found, family: str) -> int:
    return found.comparisons.filter((pl.col("family") == family) & pl.col("p").is_not_null()).height


def _pairs(found: Found) -> list[Block]:
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
    blocks: list[Block] = [Heading("Mixtures against each other", 3)]
    blocks += [Table(header, table, left=3)] if table else []
    noise = f"{hidden} of {pairs.height} comparisons are within noise and not shown."
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


def _loss(facts: Mapping[str, Any]) -> str:
    loss = facts.get("final_loss", facts.get("loss"))
    return f"{loss:.3f}" if isinstance(loss, float) else "\u2013" if loss is None else str(loss)


def _cell_name(artefact: Mapping[str, Any]) -> str:
    labels = artefact["labels"]
    if artefact["kind"] == "dataset":
        return f"{labels.get('dataset')} ({labels.get('role', 'dataset')})"
    model = BASE if labels.get("mixture") is None else f"{labels['mixture']}, seed {labels.get('seed')}"
    return model if artefact["kind"] == "finetune" else f"{model} on {labels.get('evaluation')}"


def _waits(found: Found, artefact: Mapping[str, Any]) -> str:
    failed = [need for need in artefact["needs"] if found.states.get(need) == "failed"]
    if failed:
        return f"needs {', '.join(failed)}, which failed"
    return "damaged; kvray run makes it again" if found.states[artefact["id"]] == "damaged" else "not run yet"


def _distinct(facts: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    seen: dict[str, list[str]] = {}
    for one in facts:
        for name, value in one.items():
            shown = _shown(name, value)
            if shown and shown not in seen.setdefault(name, []):
                seen[name].append(shown)
    return {name: values for name, values in seen.items() if values}


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.0f} GiB"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pairs_of(values: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name.removesuffix('_bytes')} {' | '.join(sorted(seen))}" for name, seen in values.items())
