"""A comparison of two sweeps as lines for a terminal, and as plain values for programs."""

from typing import Any

import polars as pl

from kvray.console import table
from kvray.report.across.sections import judged, title
from kvray.report.text import DASH, change, percent
from kvray.results.across.compare import SAME, Comparison
from kvray.results.across.pairing import Pair
from kvray.results.across.side import Side
from kvray.results.frames import FINETUNES
from kvray.results.profile import AXES

NOTE = "change: {second} minus {first} on the same examples, in points with its 95 % interval"
ONE_SEED = "this finetune: of one seed, which says nothing about other finetunes of its mixture"
_SETTINGS = 20  # most settings that are listed


def lines(compared: Comparison) -> list[str]:
    """Return what differs, a row per evaluation and pair of models, and what is not compared."""
    found = [_progress(name, side) for name, side in zip(compared.names, _sides(compared), strict=True)]
    found += ["", *_settings(compared), "", *table(*rows(compared)).splitlines(), *under(compared)]
    if compared.apart:
        found += ["", "not compared:", *(f"  {each.what}: {each.why}" for each in compared.apart)]
    return found


def rows(compared: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table over whole evaluations."""
    found = []
    for row in compared.overall.iter_rows(named=True):
        shift = DASH if row["verdict"] == SAME else change(row["difference"], row["low"], row["high"])
        shares = percent(row["a_accuracy"]), percent(row["b_accuracy"])
        found.append([title(compared, row["evaluation"]), Pair(row["a"], row["b"]).name, *shares, shift, judged(row)])
    return ["evaluation", "model", *compared.names, "change", "verdict"], found


def under(compared: Comparison) -> list[str]:
    """Return what the table's numbers mean, and which pairs need a word."""
    first, second = compared.names
    found = [NOTE.format(first=first, second=second)]
    if tested := compared.tested.height:
        found.append(f"verdict: of {second}, after Holm's correction for all {tested}")
    if FINETUNES in compared.tested["about"]:
        found.append(ONE_SEED)
    found += [f"{each.first}: {each.note}" for each in compared.evaluations if each.note]
    return found + [f"{one.name}: {one.why}" for one in compared.pairs if one.why]


def document(compared: Comparison) -> dict[str, Any]:
    """Return the comparison in plain values, for ``kvray compare --json``."""
    columns = [pl.exclude("family", *AXES)]
    split = compared.table.filter(pl.col("family") != "overall")
    return {
        **{key: _about(side) for key, side in zip("ab", _sides(compared), strict=True)},
        "settings": [{"name": each.name, "a": each.first, "b": each.second} for each in compared.settings],
        "models": [{"a": one.first, "b": one.second, "why": one.why or "name"} for one in compared.pairs],
        "evaluations": [{"a": each.first, "b": each.second, "note": each.note} for each in compared.evaluations],
        "pairs": compared.overall.select(columns).to_dicts(),
        "split": [{key: value for key, value in row.items() if value is not None} for row in split.to_dicts()],
        "not_compared": [{"what": each.what, "why": each.why} for each in compared.apart],
    }


def _sides(compared: Comparison) -> tuple[Side, Side]:
    return compared.first, compared.second


def _about(side: Side) -> dict[str, Any]:
    done, planned = side.answered()
    about = {"sweep": side.sweep, "store": side.store.uri, "base_model": side.base_model}
    return {**about, "planned": planned, "evaluated": done}


def _progress(name: str, side: Side) -> str:
    done, planned = side.answered()
    return f"{name}: {done} of {planned} cells evaluated, base model {side.base_model}, {side.store.uri}"


def _settings(compared: Comparison) -> list[str]:
    if not compared.settings:
        return ["the two sweeps have the same settings"]
    rows = [list(each) for each in compared.settings[:_SETTINGS]]
    more = len(compared.settings) - len(rows)
    listed = table(["what differs", *compared.names], rows).splitlines()
    return [*listed, *([f"and {more} more, in the page"] if more else [])]
