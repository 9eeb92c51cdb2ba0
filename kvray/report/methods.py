"""The report's methods: what was evaluated, how to read the numbers, where they come from."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from kvray.report.blocks import Block, Bullets, Code, Details, Heading, Table, Text
from kvray.report.text import DASH, count, duration, listed, notes, percent
from kvray.report.training import written
from kvray.results import stats
from kvray.results.crossed import detectable
from kvray.results.profile import CURVES
from kvray.results.snapshot import Snapshot

_LISTED = 7  # most places on an axis that are listed one by one


def evaluated(snapshot: Snapshot) -> list[Block]:
    """What each evaluation asked, how long its prompts were, and which difference it could detect."""
    table = [_evaluation(snapshot, evaluation) for evaluation in snapshot.profiles]
    header = ["evaluation", "task", "asked at", "questions", "examples", "prompt tokens", "cached", "engine time"]
    header += ["answers cut", "excluded", "detectable"]
    note = Text(notes()["evaluations"], "sub")
    return [Heading("What was evaluated"), Table(header, table, left=3), *cut_prompts(snapshot), note] if table else []


def cut_prompts(snapshot: Snapshot) -> list[Block]:
    """Warn of benchmarks whose prompts lost their beginning, being longer than what was asked of the model."""
    most: dict[str, int] = {}
    for cell, manifest in snapshot.committed("predictions"):
        if cut := (manifest.measurements.get("harness") or {}).get("cut"):
            name = cell["labels"]["evaluation"]
            most[name] = max(cut, most.get(name, 0))
    told = listed([f"{number:,} of {name}" for name, number in most.items()])
    return [Text(notes()["cut_prompts"].format(prompts=told), "warn")] if most else []


def reading(snapshot: Snapshot) -> list[Block]:
    """How the numbers were made and how to read them."""
    seeds = snapshot.predictions["seed"].drop_nulls().n_unique()
    luck = notes()["seeds_several"].format(number=seeds) if seeds > 1 else notes()["seeds_one"]
    return [Heading("How to read the numbers"), Bullets([*notes()["reading"], luck])]


def provenance(snapshot: Snapshot) -> list[Block]:
    """Versions, hardware, fingerprints, and the commands to reproduce this report."""
    uri, sweep = shlex.quote(snapshot.store.uri), shlex.quote(snapshot.sweep)
    commands = [f"kvray report {sweep} --store {uri}"]
    commands += [f"kvray why {shlex.quote(cell['id'])} --store {uri}" for cell in snapshot.planned("predictions")[:1]]
    blocks: list[Block] = [Heading("Provenance"), Code("\n".join(commands))]
    manifests = snapshot.manifests
    if manifests:
        times = sorted(manifest.created for manifest in manifests.values())
        blocks.append(Text(f"Artefacts were committed from {times[0]} to {times[-1]}.", "sub"))
        measured = [manifest.measurements for manifest in manifests.values()]
        environment = {name: _distinct([each.get(name, {}) for each in measured]) for name in ("versions", "hardware")}
        table = [[name, values] for name, values in environment.items() if values]
        blocks.append(Table(["what", "found in the manifests"], table, left=2))
    blocks += written(snapshot)
    artefacts = []
    for a in snapshot.document["artefacts"]:
        committed = manifests[a["id"]].created if a["id"] in manifests else DASH
        artefacts.append([f"`{a['id']}`", snapshot.cell(a), snapshot.states[a["id"]], committed])
    listing = Table(["id, with the fingerprint", "cell", "state", "committed"], artefacts, left=4)
    return [*blocks, Details(f"All {len(artefacts)} artefacts of the plan", [listing])]


def places(rows: pl.DataFrame) -> str:
    """Return the places on each axis: "positions 1, 5, 10", "lengths 250 to 3,000 (5)"."""
    lists = []
    for axis in (curve.name for curve in CURVES):
        values = rows[axis].drop_nulls().unique().sort().to_list()
        if len(values) > 2 and values == list(range(int(values[0]), int(values[0]) + len(values))):
            lists.append(f"{axis}s {values[0]:g} to {values[-1]:g}")
        elif len(values) > _LISTED:
            lists.append(f"{axis}s {values[0]:,g} to {values[-1]:,g} ({len(values)})")
        elif values:
            lists.append(f"{axis}{'s' if len(values) > 1 else ''} {', '.join(f'{value:,g}' for value in values)}")
    return "; ".join(lists) or DASH


def _evaluation(snapshot: Snapshot, evaluation: str) -> list[str]:
    rows = snapshot.of(evaluation)
    run = rows.filter(pl.col("finish_reason") != "too_long")
    lengths = run["prompt_tokens"].to_numpy()
    counted = run.filter(pl.col("cached_tokens").is_not_null())
    against = snapshot.against_base()
    pairs = against.filter(pl.col("evaluation") == evaluation).iter_rows(named=True)
    smallest = max((_detectable(row, against.height) for row in pairs), default=None)
    cached = float(counted["cached_tokens"].sum()) / float(counted["prompt_tokens"].sum()) if counted.height else None
    answered = [each for cell, each in snapshot.committed("predictions") if cell["labels"]["evaluation"] == evaluation]
    seconds = [each.measurements["seconds"] for each in answered if "seconds" in each.measurements]
    cut = float((run["finish_reason"] == "length").sum()) / run.height if run.height else None
    return [
        evaluation,
        str(rows["task"][0]),
        places(rows),
        count(rows["question_id"].n_unique()),
        count(rows["example_id"].n_unique()),
        f"{np.median(lengths):,.0f} / {lengths.max():,}" if lengths.size else DASH,
        percent(cached, 0),
        duration(sum(seconds) if seconds else None),
        percent(cut),
        count(rows["score"].null_count()),
        f"{100 * smallest:.1f}" if smallest is not None else DASH,
    ]


def _detectable(row: Mapping[str, Any], comparisons: int) -> float:
    """Return the smallest true difference that a comparison like this one would call one, four times in five."""
    if row["seed_error"] is None:
        return stats.detectable_from(row["low"], row["high"], comparisons)
    seeds = min(number for number in (row["seeds_a"], row["seeds_b"]) if number > 1)
    return detectable(row["question_error"], row["seed_error"], seeds, comparisons)


def _distinct(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the different values of each name: "kvray 0.3.0, ray 2.51.0 | 2.52.0"."""
    seen: dict[str, set[str]] = {}
    for name, value in (item for record in records for item in record.items()):
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name.endswith("_bytes") and isinstance(value, int):
            shown = f"{value / 2**30:.0f} GiB"
        if shown:
            seen.setdefault(name, set()).add(shown)
    return ", ".join(f"{name.removesuffix('_bytes')} {' | '.join(sorted(values))}" for name, values in seen.items())
