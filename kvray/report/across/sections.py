"""The parts of the page on two sweeps: findings, what differs, the pairs, along each axis, what is not compared."""

import shlex
from collections import Counter
from typing import Any

import polars as pl

from kvray.report import text
from kvray.report.blocks import Block, Bullets, Code, Details, Figure, Heading, Table, Text
from kvray.report.charts import differences
from kvray.report.charts.style import Palette
from kvray.report.text import ARROWS, DASH, bold, change, count, listed, notes, percent, plural
from kvray.results.across.compare import SAME, SAME_RECIPE, Comparison
from kvray.results.across.pairing import Pair
from kvray.results.frames import FINETUNES, MIXTURES
from kvray.results.profile import AXES, CONDITION, Axis

VERDICTS = ("better", "worse", "within noise")
_TOLD = 15
"""Most differences that the findings name."""
_WIDE = 12
"""Most places on an axis whose table is open."""


def blocks(compared: Comparison) -> list[Block]:
    """Return the whole page."""
    parts = (opening, settings, changes, by_axes, apart, reading, provenance)
    return [block for part in parts for block in part(compared)]


def opening(compared: Comparison) -> list[Block]:
    """Title, what was compared with what, and the findings."""
    first, second = compared.names
    bases = list(dict.fromkeys(f"`{side.base_model}`" for side in (compared.first, compared.second)))
    done = [side.answered() for side in (compared.first, compared.second)]
    progress = "; ".join(
        f"{name}: {n} of {of} cells evaluated" for name, (n, of) in zip(compared.names, done, strict=True)
    )
    found: list[Block] = [
        Heading(f"{first} and {second}", 1),
        Text(f"Base {plural(len(bases), 'model')} {listed(bases)}. {progress}", "sub"),
    ]
    if any(n < of for n, of in done):
        found.append(Text("**A sweep is not complete:** what it lacks is listed under *What is not compared*.", "warn"))
    lead, *others = findings(compared)
    return [*found, Text(lead, "lead"), *([Bullets(others)] if others else [])]


def findings(compared: Comparison) -> list[str]:
    """Return a sentence on all comparisons, then a line for each that is not within noise, and cautions."""
    first, second = compared.names
    tested, together = compared.tested, compared.overall.filter(pl.col("p").is_null()).height
    verdicts = Counter(tested["verdict"])
    number = tested.height
    shown = [
        f"{'all' if verdicts[each] == number > 1 else verdicts[each]} {'is' if verdicts[each] == 1 else 'are'} {each}"
        for each in VERDICTS
        if verdicts[each]
    ]
    lead = f"Of {number} {plural(number, 'comparison')} of **{second}** with **{first}**, {listed(shown)}."
    if not number:
        lead = "There is nothing to test: all answers that the two sweeps share are the same artefacts."
    lines = [lead]
    differ = tested.filter(pl.col("verdict") != "within noise")
    for row in differ.head(_TOLD).iter_rows(named=True):
        points = f"{change(row['difference'], row['low'], row['high'])} points"
        lines.append(f"**{_pair(row).name}** on {title(compared, row['evaluation'])}: {points}, {row['verdict']}")
    if differ.height > _TOLD:
        lines.append(f"{differ.height - _TOLD} more are in the tables below.")
    if number and together:
        lines.append(f"{together} of {together + number} cells are the same in both, and were not tested.")
    if FINETUNES in tested["about"]:
        lines.append(notes()["across_one_seed"])
    if compared.settings and all(each.name == "finetune.seeds" for each in compared.settings):
        lines.append(notes()["across_seeds_alone"])
    return lines


def settings(compared: Comparison) -> list[Block]:
    """What differs between the recipes."""
    head: list[Block] = [Heading("What differs")]
    if not compared.settings:
        return [*head, Text("Both sweeps have the same settings, runtime and names aside.")]
    rows = [[f"`{each.name}`", *(f"`{value}`" for value in each[1:])] for each in compared.settings]
    return [*head, Table(["setting", *compared.names], rows, left=3)]


def changes(compared: Comparison) -> list[Block]:
    """The figure of all changes, and a table per evaluation."""
    first, second = compared.names
    found: list[Block] = [Heading("Models compared")]
    if compared.tested.height:
        named = [_pair(row).name for row in compared.overall.iter_rows(named=True)]
        drawn = compared.overall.with_columns(b=pl.Series(named, dtype=pl.String))
        names = {name: title(compared, name) for name in dict.fromkeys(compared.tested["evaluation"])}
        head = (f"Change from {first} to {second}", f"{_bars(compared.tested)}; verdicts after Holm's correction")
        palette = Palette([one.name for one in compared.pairs])
        chart = differences.between_sweeps(drawn, names, palette, head, f"accuracy of {second} minus {first}, points")
        found.append(
            Figure(chart, f"Change of each model from {first} to {second}, per evaluation", "change-between-sweeps")
        )
    remarks = {each.first: each.note for each in compared.evaluations if each.note}
    tables: list[Block] = []
    evaluations = compared.overall["evaluation"].unique(maintain_order=True).to_list()
    for name in evaluations:
        rows = compared.overall.filter(pl.col("evaluation") == name)
        tables += [Heading(title(compared, name), 3), _table(compared, rows)]
        tables += [Text(f"{remarks[name][0].upper()}{remarks[name][1:]}.", "sub")] if name in remarks else []
    if len(evaluations) > differences.TOLD:
        found += [*_overview(compared, evaluations), Details("Intervals and p on each evaluation", tables)]
    else:
        found += tables
    paired = [f"{one.name} ({one.why})" for one in compared.pairs if one.why]
    return [*found, Text(f"Paired under different names: {listed(paired)}.", "sub")] if paired else found


def by_axes(compared: Comparison) -> list[Block]:
    """A table of changes along each axis that a shared evaluation is split by."""
    found: list[Block] = []
    for axis in AXES.values():
        family = f"by {' and '.join(axis.columns)}"
        rows = compared.table.filter(pl.col("family") == family)
        tables: list[Block] = []
        for evaluation in compared.profiles:
            own = rows.filter(pl.col("evaluation") == evaluation)
            tables += [Heading(title(compared, evaluation), 3), *_along(compared, own, axis)] if own.height else []
        if tables:
            marked = rows["verdict"].is_in(list(ARROWS)).any()
            said = "\u25b2 and \u25bc: better or worse" if marked else "none is beyond noise"
            corrected = f"after Holm's correction over all {rows.height:,} comparisons {family}."
            found += [Heading(f"By {axis.title}"), Text(f"Change in points; {said} {corrected}", "sub"), *tables]
    return found


def apart(compared: Comparison) -> list[Block]:
    """What has no partner, and why."""
    if not compared.apart:
        return [Heading("What is not compared"), Text("Nothing: every model and evaluation has its partner.")]
    rows = [[each.what, each.why] for each in compared.apart]
    found: list[Block] = [Heading("What is not compared"), Table(["what", "why"], rows, left=2)]
    alone = [each for each in compared.apart if each.why.startswith("a model of")]
    return [*found, Text(notes()["across_pair"], "sub")] if alone else found


def reading(compared: Comparison) -> list[Block]:
    """How to read the numbers."""
    return [Heading("How to read the numbers"), Bullets(notes()["across_reading"])]


def provenance(compared: Comparison) -> list[Block]:
    """The command that writes this page again, and where the sweeps lie."""
    sides = zip(compared.names, (compared.first, compared.second), strict=True)
    rows = [[name, side.sweep, f"`{side.store.uri}`"] for name, side in sides]
    return [Heading("Provenance"), Code(command(compared)), Table(["here called", "sweep", "store"], rows, left=3)]


def command(compared: Comparison) -> str:
    """Return the command that makes this comparison again."""
    first, second = compared.first, compared.second
    words = ["kvray", "compare", first.sweep, second.sweep, "--store", first.store.uri]
    words += ["--store-b", second.store.uri] if second.store.uri != first.store.uri else []
    for one in compared.pairs:
        words += ["--pair", f"{one.first}={one.second}"] if one.by_hand else []
    return shlex.join(words)


def title(compared: Comparison, evaluation: str) -> str:
    """Return an evaluation's name with its size: "mdqa (20 documents)"."""
    return compared.profiles[evaluation].title if evaluation in compared.profiles else evaluation


def judged(row: dict[str, Any]) -> str:
    """Return a verdict as tables show it."""
    return str(row["verdict"]) if row["verdict"] in (SAME, SAME_RECIPE) else text.judged(row)


def _bars(tested: pl.DataFrame) -> str:
    """Return what the bars of the figure are."""
    about = set(tested["about"].drop_nulls())
    over = "over questions" if MIXTURES not in about else "over seeds and questions"
    alone = (
        ""
        if FINETUNES not in about
        else ", of one seed over questions"
        if MIXTURES in about
        else ", of these finetunes alone"
    )
    return f"the same examples, paired; bars: 95 % intervals {over}{alone}"


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(row["a"], row["b"])


def _table(compared: Comparison, rows: pl.DataFrame) -> Table:
    several = any(seeds > 1 for seeds in (*rows["seeds_a"], *rows["seeds_b"]))
    header = ["model", "verdict", *compared.names, "change, points", "Holm's p", "n", "won : lost"]
    lines = []
    for row in rows.iter_rows(named=True):
        same = row["verdict"] == SAME
        line = [bold(_pair(row).name), judged(row), percent(row["a_accuracy"]), percent(row["b_accuracy"])]
        line.append(DASH if same else change(row["difference"], row["low"], row["high"]))
        line += [text.p_value(row["p_holm"]), count(row["n"])]
        line.append(DASH if same else f"{count(row['better'])} : {count(row['worse'])}")
        lines.append([*line, f"{row['seeds_a']} and {row['seeds_b']}"] if several else line)
    return Table([*header, "seeds"] if several else header, lines, left=2)


def _overview(compared: Comparison, evaluations: list[str]) -> list[Block]:
    """Return one table of all changes: a pair per line, an evaluation per column."""
    cells: dict[str, dict[str, str]] = {}
    for row in compared.overall.iter_rows(named=True):
        points = "same" if row["p"] is None else text.signed(row["difference"]) + ARROWS.get(row["verdict"], "")
        cells.setdefault(_pair(row).name, {})[row["evaluation"]] = points
    lines = [[bold(name), *(of.get(each, DASH) for each in evaluations)] for name, of in cells.items()]
    number = compared.tested.height
    note = f"Change in points; \u25b2 and \u25bc: better or worse after Holm's correction over all {number}; "
    return [Table(["model", *evaluations], lines), Text(note + "*same*: both have the same artefact or recipe.", "sub")]


def _along(compared: Comparison, rows: pl.DataFrame, axis: Axis) -> list[Block]:
    """Return a table of a pair per line and a place per column; of a grid one table per value of the axis beside it."""
    places = rows[axis.name].unique().sort().to_list()
    found: list[Block] = []
    groups = rows.partition_by(axis.beside, maintain_order=True, as_dict=True) if axis.beside else {(): rows}
    for beside, group in groups.items():
        at: dict[str, dict[Any, str]] = {}
        for row in group.iter_rows(named=True):
            mark = ARROWS.get(row["verdict"], "")
            at.setdefault(_pair(row).name, {})[row[axis.name]] = text.signed(row["difference"]) + mark
        names = [AXES[name].value.format(value) for name, value in zip(axis.beside, beside, strict=True)]
        heads = [value if axis == CONDITION else axis.value.format(value) for value in places]
        header = [", ".join(["model", *names]), *heads]
        lines = [[bold(name), *(cells.get(place, DASH) for place in places)] for name, cells in at.items()]
        found.append(Table(header, lines))
    if len(places) > _WIDE or len(found) > 2:
        return [Details(f"Change at all {len(places)} {axis.name}s", found)]
    return found
