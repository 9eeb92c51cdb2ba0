"""The report's later sections: what was trained and evaluated, how to read it, where it comes from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from kvray.report import text as words
from kvray.report.blocks import Block, Bullets, Code, Details, Heading, Table, Text
from kvray.report.training import written
from kvray.results import stats
from kvray.results.comparisons import OVERALL
from kvray.results.snapshot import Found, cell_name

_LISTED = 7


def evaluated(found: Found) -> list[Block]:
    """What each evaluation asked, how long its prompts were, and what a comparison on it could find."""
    table = [_evaluation(found, evaluation) for evaluation in found.kinds]
    header = [
        "evaluation",
        "task",
        "asked at",
        "questions",
        "examples",
        "prompt tokens",
        "cached",
        "engine time",
        "answers cut",
        "excluded",
        "detectable",
    ]
    note = (
        "*Prompt tokens*: median and longest. *Cached*: those served from the engine's prefix cache. *Engine time*: of "
        "all models together, start excluded. *Answers cut*: stopped by the output limit. *Excluded*: rows whose "
        "prompt did not fit the model; they are in no number here. "
        "*Detectable*: the smallest true difference, in points, that would be called one four times in five, for the "
        "model whose answers differ most unevenly from the base's, after Holm's correction for all comparisons with "
        "it. `kvray plan` tells it beforehand, for models that differ on a fifth of the questions."
    )
    return [Heading("What was evaluated"), Table(header, table, left=3), Text(note, "sub")] if table else []


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
        "comparisons in a table: all models against the base on all evaluations; likewise by position, by length and "
        "so on; likewise pairs. "
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
    versions = _distinct([m.measurements.get("versions", {}) for m in found.manifests.values()])
    hardware = _distinct([m.measurements.get("hardware", {}) for m in found.manifests.values()])
    times = {one: manifest.created for one, manifest in found.manifests.items()}
    made = sorted(times.values())
    artefacts = [
        [
            f"`{a['id']}`",
            cell_name(a, found.names),
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
    blocks += written(found)
    listing = Table(["id, with the fingerprint", "cell", "state", "committed"], artefacts, left=4)
    return [*blocks, Details(f"All {len(artefacts)} artefacts of the plan", [listing])]


def _evaluation(found: Found, evaluation: str) -> list[str]:
    rows = found.predictions.filter(pl.col("evaluation") == evaluation)
    run = rows.filter(pl.col("finish_reason") != "too_long")
    lengths = run["prompt_tokens"].to_numpy()
    told = run.filter(pl.col("cached_tokens").is_not_null())
    questions = rows["question_id"].n_unique()
    family = found.comparisons.filter((pl.col("family") == OVERALL) & pl.col("p").is_not_null())
    pairs = family.filter(pl.col("evaluation") == evaluation)
    seen = [stats.detectable_from(low, high, family.height) for low, high in pairs.select("low", "high").iter_rows()]
    detectable = max(seen, default=None)
    cached = float(told["cached_tokens"].sum()) / float(told["prompt_tokens"].sum()) if told.height else None
    cells = [a["id"] for a in found.planned("predictions") if a["labels"].get("evaluation") == evaluation]
    seconds = [found.manifests[one].measurements["seconds"] for one in cells if _timed(found, one)]
    cut = float((run["finish_reason"] == "length").sum()) / run.height if run.height else None
    return [
        evaluation,
        str(rows["task"][0]),
        _places(rows),
        words.count(questions),
        words.count(rows["example_id"].n_unique()),
        f"{np.median(lengths):,.0f} / {lengths.max():,}" if lengths.size else "\u2013",
        words.percent(cached, 0),
        words.duration(sum(seconds) if seconds else None),
        words.percent(cut),
        words.count(rows["score"].null_count()),
        f"{100 * detectable:.1f}" if detectable is not None else "\u2013",
    ]


def _places(rows: pl.DataFrame) -> str:
    """Return where an evaluation asks: "positions 1, 5, 10", "lengths 250 to 3,000 (5)"."""
    said = []
    for axis in ("position", "length", "depth"):
        values = rows[axis].drop_nulls().unique().sort().to_list()
        if len(values) > 2 and values == list(range(int(values[0]), int(values[0]) + len(values))):
            said.append(f"{axis}s {values[0]:g} to {values[-1]:g}")
        elif len(values) > _LISTED:
            said.append(f"{axis}s {values[0]:,g} to {values[-1]:,g} ({len(values)})")
        elif values:
            said.append(f"{axis}{'s' if len(values) > 1 else ''} {', '.join(f'{value:,g}' for value in values)}")
    return "; ".join(said) or "\u2013"


def _timed(found: Found, artefact_id: str) -> bool:
    return artefact_id in found.manifests and "seconds" in found.manifests[artefact_id].measurements


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
