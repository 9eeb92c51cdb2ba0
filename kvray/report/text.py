"""Numbers and findings in words, careful ones: what was shown, by how much, and what remains possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.results.comparisons import OVERALL
from kvray.results.frames import BASE
from kvray.results.profile import Kind

_UNITS = {
    "simple_kv": "dictionaries",
    "multi_subkey_kv": "dictionaries",
    "several_keys": "dictionaries",
    "mdqa": "documents",
    "multidoc_qa": "documents",
    "kv_retrieval": "keys",
    "in2": "segments",
}
_ORDER = ("retrieval", "length", "other", "ceiling", "knowledge", "benchmark")
_VERBS = {
    ("retrieval", "better"): "retrieves better than",
    ("retrieval", "worse"): "retrieves worse than",
    ("knowledge", "better"): "knows more than",
    ("knowledge", "worse"): "knows less than",
    ("length", "better"): "holds up better than",
    ("length", "worse"): "holds up worse than",
}


def signed(share: float) -> str:
    """Return a difference of shares as points with its sign: "+12.3", "0.0"; the minus is a real one."""
    points = round(100 * share, 1)
    return f"{points:+.1f}".replace("-", "\u2212") if points else "0.0"


def change(row: Mapping[str, Any]) -> str:
    """Return a difference with its interval: "+12.3 (+8.1 to +16.5)"; a dash where there is none."""
    if row["difference"] is None:
        return "\u2013"
    return f"{signed(row['difference'])} ({signed(row['low'])} to {signed(row['high'])})"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as "57.1 %"; a dash for None."""
    return "\u2013" if share is None else f"{100 * share:.{digits}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval of shares as "50.2 to 63.7"; a dash for None."""
    return "\u2013" if low is None or high is None else f"{100 * low:.1f} to {100 * high:.1f}"


def p_value(p: float | None) -> str:
    """Return p as "0.031", "< 0.001" or a dash."""
    if p is None:
        return "\u2013"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(number: float | None) -> str:
    """Return a whole number with thin groups: "2,655"; a dash for None."""
    return "\u2013" if number is None else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """Return seconds as "41 s", "6 min 40 s" or "3 h 05 min"; a dash for None."""
    if seconds is None:
        return "\u2013"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def described(predictions: pl.DataFrame, evaluation: str) -> str:
    """Return an evaluation's name with its size: "mdqa (20 documents)"."""
    rows = predictions.filter(pl.col("evaluation") == evaluation)
    units = [u for u in rows["units"].unique().sort().to_list() if u]
    if not units:
        return evaluation
    noun = _UNITS.get(rows["task"][0], "units")
    size = f"{units[0]}" if len(units) == 1 else f"{units[0]} to {units[-1]}"
    noun = noun.removesuffix("s") if units == [1] else noun
    return f"{evaluation} ({size} {noun})"


def headlines(predictions: pl.DataFrame, comparisons: pl.DataFrame, kinds: Mapping[str, Kind]) -> list[str]:
    """Say what the sweep found: one sentence on all mixtures, then one line per model against the base.

    Args:
        predictions: rows with a ``model`` column.
        comparisons: rows of :func:`kvray.results.comparisons.family`.
        kinds: of the evaluations, by name.
    """
    against = comparisons.filter((pl.col("family") == OVERALL) & pl.col("difference").is_not_null())
    if BASE not in predictions["model"]:
        return ["The base model has no predictions yet, so nothing can be compared with it."]
    if not against.height:
        return ["No finetune has predictions yet, so nothing can be compared with the base model."]
    there = against["evaluation"].unique(maintain_order=True)
    plan = list(kinds)
    evaluations = sorted(there, key=lambda e: (_ORDER.index(kinds[e].measures), plan.index(e)))
    names = {evaluation: described(predictions, evaluation) for evaluation in evaluations}
    tuned = predictions.filter(pl.col("model") != BASE)
    noun = "mixture" if tuned["model"].n_unique() == tuned["mixture"].n_unique() else "finetuned model"
    lines = [_overall(against, kinds, evaluations, names, noun)]
    best = (
        against.filter(pl.col("evaluation") == evaluations[0])
        .sort("difference", descending=True, maintain_order=True)["b"]
        .to_list()
    )
    for model in [*best, *(m for m in against["b"].unique(maintain_order=True) if m not in best)]:
        rows = {row["evaluation"]: row for row in against.filter(pl.col("b") == model).iter_rows(named=True)}
        asked = [e for e in evaluations if e in rows]
        single = [e for e in asked if kinds[e].measures != "benchmark"]
        parts = [_finding(rows[e], kinds[e].measures, names[e], first=e == single[0]) for e in single]
        general = [rows[e] for e in asked if kinds[e].measures == "benchmark"]
        parts += [_general(general, first=not parts)] if general else []
        lines.append(f"**{model}** {'; '.join(parts)}.")
    return lines


def _overall(
    against: pl.DataFrame, kinds: Mapping[str, Kind], evaluations: Sequence[str], names: Mapping[str, str], noun: str
) -> str:
    general = [evaluation for evaluation in evaluations if kinds[evaluation].measures == "benchmark"]
    sentences = []
    for evaluation in evaluations:
        if evaluation in general and len(general) > 1:
            continue
        verdicts = against.filter(pl.col("evaluation") == evaluation)["verdict"].to_list()
        found: list[str] = []
        for verdict in ("better", "worse", "within noise"):
            n = verdicts.count(verdict)
            if n:
                verb = _verb(kinds[evaluation].measures, verdict)
                said = (verb if n == 1 else _plural(verb)) if verb else ("is" if n == 1 else "are")
                what = f"{n} of {len(verdicts)} {noun}{'' if len(verdicts) == 1 else 's'}" if not found else f"{n}"
                found.append(f"{what} {said} the base model" if verb else f"{what} {said} within noise")
        sentences.append(f"On {names[evaluation]}, {listed(found)}.")
    if len(general) > 1:
        verdicts = against.filter(pl.col("evaluation").is_in(general))["verdict"].to_list()
        counts = {verdict: verdicts.count(verdict) for verdict in ("better", "worse", "within noise")}
        found = [
            f"{'all' if n == len(verdicts) > 1 else n} {'is' if n == 1 else 'are'} {verdict}"
            for verdict, n in counts.items()
            if n
        ]
        of = f"Of {len(verdicts)} comparisons with the base model on {len(general)} general benchmarks"
        sentences.append(f"{of}, {listed(found)}.")
    return " ".join(sentences)


def _verb(measures: str, verdict: str) -> str | None:
    return _VERBS.get((measures, verdict)) or {"better": "scores better than", "worse": "scores worse than"}.get(
        verdict
    )


def _plural(verb: str) -> str:
    first, rest = verb.split(" ", 1)
    return f"{first.removesuffix('s')} {rest}"


def _finding(row: Mapping[str, Any], measures: str, name: str, first: bool) -> str:
    points = f"{signed(row['difference'])} points (95 % interval {signed(row['low'])} to {signed(row['high'])})"
    if not first:
        return f"{name}: {change(row)}, {row['verdict']}"
    if row["verdict"] == "within noise":
        return f"is not shown to differ from the base model on {name}: {points}, within noise"
    return f"{_verb(measures, row['verdict'])} the base model on {name}: {points}"


def _general(rows: Sequence[Mapping[str, Any]], first: bool) -> str:
    """Say the benchmarks of one model in one breath: those that changed with their change, the others by name."""
    said = []
    for verdict in ("better", "worse"):
        there = [f"{row['evaluation']} ({signed(row['difference'])})" for row in rows if row["verdict"] == verdict]
        said += [f"{verdict} on {listed(there)}"] if there else []
    noise = [row["evaluation"] for row in rows if row["verdict"] == "within noise"]
    if len(noise) == len(rows) > 1:
        return f"{'is ' if first else ''}within noise on all {len(rows)} general benchmarks"
    said += [f"within noise on {listed(noise)}"] if noise else []
    return f"{'on ' if first else ''}general benchmarks: {', '.join(said)}"
