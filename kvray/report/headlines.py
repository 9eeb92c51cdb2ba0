"""The findings in careful sentences: what was shown, by how much, and what remains possible."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvray.report.text import change, counts, listed, plural, signed, subject
from kvray.results.frames import BASE
from kvray.results.profile import Profile
from kvray.tasks.base import Measure

_ORDER: tuple[Measure, ...] = ("retrieval", "length", "other", "ceiling", "knowledge", "benchmark")
_VERBS = {
    ("retrieval", "better"): "retrieves better than",
    ("retrieval", "worse"): "retrieves worse than",
    ("knowledge", "better"): "knows more than",
    ("knowledge", "worse"): "knows less than",
    ("length", "better"): "holds up better than",
    ("length", "worse"): "holds up worse than",
}
_VERDICTS = ("better", "worse", "within noise")


def headlines(predictions: pl.DataFrame, against: pl.DataFrame, profiles: Mapping[str, Profile]) -> list[str]:
    """Return a paragraph with a sentence per evaluation on all mixtures, then a line per model against the base.

    ``against`` holds the comparisons with the base over whole evaluations.
    """
    if BASE not in predictions["model"]:
        return ["The base model has no predictions yet, so nothing can be compared with it."]
    if not against.height:
        return ["No finetune has predictions yet, so nothing can be compared with the base model."]
    compared = [profile for name, profile in profiles.items() if name in against["evaluation"]]
    compared.sort(key=lambda profile: _ORDER.index(profile.measures))
    tuned = predictions.filter(pl.col("model") != BASE)
    noun = subject(against["about"].to_list())
    if noun == "mixture" and tuned["model"].n_unique() != tuned["mixture"].n_unique():
        noun = "finetuned model"
    lines = [f"{_overall(against, compared, noun)} {_over(against)}"]
    first = against.filter(pl.col("evaluation") == compared[0].name)
    best = first.sort("difference", descending=True, maintain_order=True)["b"]
    for model in dict.fromkeys([*best, *against["b"]]):
        rows = {row["evaluation"]: row for row in against.filter(pl.col("b") == model).iter_rows(named=True)}
        asked = [profile for profile in compared if profile.name in rows]
        single = [profile for profile in asked if profile.measures != "benchmark"]
        parts = [_finding(rows[each.name], each, first=each is single[0]) for each in single]
        benchmarks = [rows[each.name] for each in asked if each.measures == "benchmark"]
        parts += [benchmark_line(benchmarks, first=not parts)] if benchmarks else []
        alone = next((row["seeds_b"] for row in rows.values()), 0) == 1
        lines.append(f"**{model}**{_one_finetune(tuned, model) if alone else ''} {'; '.join(parts)}.")
    return lines


def _over(against: pl.DataFrame) -> str:
    """Return a sentence on what the verdicts hold for: mixtures, over so many seeds, or these finetunes alone."""
    numbers = against["seeds_b"].unique().sort().to_list()
    if numbers == [1]:
        return (
            "One seed was trained of each mixture, so all of this is about these finetunes: another seed of the same "
            "mixture can score otherwise, and no mixture is shown to be better or worse."
        )
    several = counts([number for number in numbers if number > 1])
    said = f"Verdicts on mixtures are over {several} seeds each, seeds and questions both taken as drawn at random."
    return said + (" Those of one seed are about that finetune alone." if 1 in numbers else "")


def _one_finetune(tuned: pl.DataFrame, model: str) -> str:
    """Return ", this finetune (seed 0)," to stand behind the name of a model with one seed."""
    seeds = tuned.filter(pl.col("model") == model)["seed"].drop_nulls().unique().to_list()
    return f", this finetune (seed {seeds[0]})," if seeds else ", this finetune,"


def benchmark_line(rows: Sequence[Mapping[str, Any]], first: bool) -> str:
    """Return a clause on one model's benchmarks: those that changed with their change, the others by name."""
    parts = []
    for verdict in ("better", "worse"):
        changed = [f"{row['evaluation']} ({signed(row['difference'])})" for row in rows if row["verdict"] == verdict]
        parts += [f"{verdict} on {listed(changed)}"] if changed else []
    noise = [row["evaluation"] for row in rows if row["verdict"] == "within noise"]
    if len(noise) == len(rows) > 1:
        return f"{'is ' if first else ''}within noise on all {len(rows)} general benchmarks"
    parts += [f"within noise on {listed(noise)}"] if noise else []
    return f"{'on ' if first else ''}general benchmarks: {', '.join(parts)}"


def _overall(against: pl.DataFrame, compared: Sequence[Profile], noun: str) -> str:
    benchmarks = [profile.name for profile in compared if profile.measures == "benchmark"]
    summed = len(benchmarks) > 1
    sentences = []
    for profile in (each for each in compared if not (summed and each.name in benchmarks)):
        verdicts = Counter(against.filter(pl.col("evaluation") == profile.name)["verdict"])
        shown = [each for each in _VERDICTS if verdicts[each]]
        of_all = f" of {verdicts.total()} {plural(verdicts.total(), noun)}"
        numbers = [f"{verdicts[each]}{of_all if each == shown[0] else ''}" for each in shown]
        parts = [f"{n} {_verb(profile, each, verdicts[each])}" for n, each in zip(numbers, shown, strict=True)]
        sentences.append(f"On {profile.title}, {listed(parts)}.")
    if summed:
        verdicts = Counter(against.filter(pl.col("evaluation").is_in(benchmarks))["verdict"])
        n = verdicts.total()
        parts = [
            f"{'all' if verdicts[each] == n > 1 else verdicts[each]} {'is' if verdicts[each] == 1 else 'are'} {each}"
            for each in _VERDICTS
            if verdicts[each]
        ]
        of = f"Of {n} comparisons with the base model on {len(benchmarks)} general benchmarks"
        sentences.append(f"{of}, {listed(parts)}.")
    return " ".join(sentences)


def _verb(profile: Profile, verdict: str, models: int = 1) -> str:
    """Return the predicate for a verdict: "knows more than the base model", "are within noise"."""
    if verdict == "within noise":
        return f"{'is' if models == 1 else 'are'} within noise"
    verb, rest = _VERBS.get((profile.measures, verdict), f"scores {verdict} than").split(" ", 1)
    return f"{verb if models == 1 else verb.removesuffix('s')} {rest} the base model"


def _finding(row: Mapping[str, Any], profile: Profile, first: bool) -> str:
    difference, low, high = row["difference"], row["low"], row["high"]
    points = f"{signed(difference)} points (95 % interval {signed(low)} to {signed(high)})"
    if not first:
        return f"{profile.title}: {change(difference, low, high)}, {row['verdict']}"
    if row["verdict"] == "within noise":
        return f"is not shown to differ from the base model on {profile.title}: {points}, within noise"
    return f"{_verb(profile, row['verdict'])} on {profile.title}: {points}"
