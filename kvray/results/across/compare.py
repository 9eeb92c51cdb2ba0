"""Two sweeps compared: each model with its partner on the examples that both sweeps asked, with the usual statistics.

The scores are paired by example, seeds averaged or crossed, and questions are the clusters, as within one sweep
(:mod:`kvray.results.frames`); Holm's correction runs over all pairs of models on all shared evaluations, and likewise
over those by position, by length and so on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvray.errors import InputError
from kvray.results import comparisons, profile
from kvray.results.across import shared as sharing
from kvray.results.across import side as sides
from kvray.results.across.pairing import Pair, pair
from kvray.results.across.settings import Setting, differing
from kvray.results.across.shared import Apart, Shared
from kvray.results.across.side import Side
from kvray.results.profile import OVERALL, Profile
from kvray.store.store import Store

SAME, SAME_RECIPE = "the same artefact", "the same recipe"
"""Verdicts where there is nothing to test: both sweeps have all, or some, of their answers in common."""
WHOLE = "overall"
"""The family of the comparisons over whole evaluations; others are called by their axes, "by position"."""
_CELL = ("evaluation", "model")
_PAIR = ("evaluation", "a", "b")
_OF_TESTS = ("low", "high", "seed_error", "question_error", "test", "p", "p_holm", "about")
_ON_WHOLE = pl.col("family") == WHOLE


def compare(
    first: tuple[Store, str], second: tuple[Store, str], by_hand: Sequence[tuple[str, str] | str] = ()
) -> Comparison:
    """Compare a sweep, given by its store and its name, with another one; :func:`~.pairing.pair` pairs their models.

    Raises InputError if a store has no such sweep, both are the very same one, a pair ``by_hand`` is none, or if the
    two have nothing in common that was evaluated; the message says what stands in the way.
    """
    if first[0].uri == second[0].uri and first[1] == second[1]:
        raise InputError(
            f"found the sweep {first[1]!r} of {first[0].uri} twice; expected another sweep or another store"
        )
    one, two = sides.read(*first), sides.read(*second)
    pairs, apart = pair(one, two, by_hand)
    evaluations, others = sharing.match(one, two)
    rows = _rows(one, two, evaluations)
    declared = {each.first: _measurements(one, each.first) for each in evaluations}
    profiles = profile.profiles(rows, declared)
    table, missing = _table(rows, pairs, evaluations, profiles)
    if not table.height:
        why = "".join(f"\n  {each.what}: {each.why}" for each in [*others, *apart, *missing])
        raise InputError(f"nothing of {one.sweep} and {two.sweep} can be compared:{why or ' no predictions yet'}")
    return Comparison(
        first=one,
        second=two,
        settings=differing(one, two),
        pairs=pairs,
        evaluations=evaluations,
        profiles=profiles,
        table=table,
        apart=[*others, *apart, *missing],
    )


@dataclass(frozen=True)
class Comparison:
    """Two sweeps side by side.

    Attributes:
        first: the sweep that is the reference; ``second``: the one compared with it.
        settings: what differs between their recipes.
        pairs: models of either, and ``evaluations``, those shared, in the first sweep's order.
        profiles: what each shared evaluation measures, by its name in the first sweep.
        table: a row per comparison. Columns: family ("overall", "by position", …), evaluation, the axes (null where
            all values are together), a and b (models of the first and of the second sweep), then those of
            :func:`kvray.results.frames.judge`: n, questions, a_accuracy, b_accuracy, difference (b - a), low, high, p,
            p_holm, verdict, about. Where both have the same predictions there is no test: the verdict is
            :data:`SAME`, or :data:`SAME_RECIPE` if that is so for some seeds alone. ``about`` is null of base models.
        apart: what cannot be compared, and why.
    """

    first: Side
    second: Side
    settings: list[Setting]
    pairs: list[Pair]
    evaluations: list[Shared]
    profiles: Mapping[str, Profile]
    table: pl.DataFrame
    apart: list[Apart]

    @property
    def overall(self) -> pl.DataFrame:
        """The rows over whole evaluations."""
        return self.table.filter(_ON_WHOLE)

    @property
    def tested(self) -> pl.DataFrame:
        """Those of :attr:`overall` that were tested, and corrected together."""
        return self.overall.filter(pl.col("p").is_not_null())

    @property
    def names(self) -> tuple[str, str]:
        """What tables call the two: by their sweeps, or where these have one name by sweep and store as well."""
        names = self.first.sweep, self.second.sweep
        if names[0] != names[1]:
            return names
        places = [_last(side.store.uri) for side in (self.first, self.second)]
        places = places if places[0] != places[1] and all(places) else ["store 1", "store 2"]
        return f"{names[0]} ({places[0]})", f"{names[1]} ({places[1]})"


def _last(uri: str) -> str:
    """Return the last part of a store's path."""
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


def _rows(first: Side, second: Side, evaluations: Sequence[Shared]) -> pl.DataFrame:
    """Return the shared examples of both, the first sweep's names, in a column ``side`` (0 or 1)."""
    parts = [side.predictions.clear().with_columns(side=pl.lit(at)) for at, side in enumerate((first, second))]
    for each in evaluations:
        for at, (side, name) in enumerate(((first, each.first), (second, each.second))):
            rows = side.predictions.filter(pl.col("evaluation") == name)
            if each.examples is not None:
                rows = rows.filter(pl.col("example_id").is_in(list(each.examples)))
            parts.append(rows.with_columns(evaluation=pl.lit(each.first), side=pl.lit(at)))
    return pl.concat(parts, how="vertical_relaxed")


def _table(
    rows: pl.DataFrame, pairs: Sequence[Pair], evaluations: Sequence[Shared], profiles: Mapping[str, Profile]
) -> tuple[pl.DataFrame, list[Apart]]:
    """Return :attr:`Comparison.table`, and the pairs that lack predictions on an evaluation."""
    there: dict[tuple[int, str, str], set[str]] = {}
    for side, evaluation, model, artefact in rows.select("side", *_CELL, "artefact").unique().rows():
        there.setdefault((side, evaluation, model), set()).add(artefact)
    same: dict[tuple[str, str, str], str] = {}
    missing, tested = [], []
    for evaluation in (each.first for each in evaluations):
        for one in pairs:
            ours, theirs = there.get((0, evaluation, one.first), set()), there.get((1, evaluation, one.second), set())
            if not ours or not theirs:
                lacking = "either" if ours == theirs else "the second" if ours else "the first"
                missing.append(Apart(f"{one.name} on {evaluation}", f"no predictions in {lacking} sweep"))
            elif ours & theirs:
                same[evaluation, one.first, one.second] = SAME if ours == theirs else SAME_RECIPE
            else:
                tested.append((evaluation, one.first, one.second))
    compared = _compare(rows, tested, pairs, profiles)
    for evaluation, a, b in compared.filter(_ON_WHOLE & pl.col("difference").is_null()).select(*_PAIR).rows():
        missing.append(Apart(f"{Pair(a, b).name} on {evaluation}", "no example that both answered"))
    untested = _compare(rows, same, pairs, {})
    blank = [pl.lit(None, dtype=untested.schema[name]).alias(name) for name in _OF_TESTS]
    verdicts = pl.Series("verdict", [same[key] for key in untested.select(*_PAIR).rows()], dtype=pl.String)
    table = pl.concat([compared, untested.with_columns(*blank, verdicts)]).filter(pl.col("difference").is_not_null())
    return _ordered(table, [each.first for each in evaluations], pairs), missing


def _compare(
    rows: pl.DataFrame,
    cells: Collection[tuple[str, str, str]],
    pairs: Sequence[Pair],
    profiles: Mapping[str, Profile],
) -> pl.DataFrame:
    """Compare the pairs of models in some cells (evaluation, model of the first sweep, of the second)."""
    wanted = {(side, evaluation, models[side]) for evaluation, *models in cells for side in (0, 1)}
    schema = {"side": pl.Int32, **dict.fromkeys(_CELL, pl.String)}
    kept = rows.join(pl.DataFrame(list(wanted), schema=schema, orient="row"), on=list(schema), how="semi")
    # In one frame a model of either sweep needs a name of its own.
    kept = kept.with_columns(model=pl.concat_str(pl.col("side").cast(pl.String), "model", separator=" "))
    found = comparisons.compare_pairs(kept, [(f"0 {one.first}", f"1 {one.second}") for one in pairs], profiles)
    family = pl.col("family").str.replace(OVERALL, "", literal=True).str.strip_prefix(", ").replace("", WHOLE)
    finetuned = (pl.col("seeds_a") > 0) | (pl.col("seeds_b") > 0)  # base models are neither mixtures nor finetunes
    about = pl.when(finetuned).then(pl.col("about"))
    return found.with_columns(family, pl.col("a", "b").str.slice(2), about=about)


def _ordered(table: pl.DataFrame, evaluations: Sequence[str], pairs: Sequence[Pair]) -> pl.DataFrame:
    """Sort by family, the whole evaluations first, then as evaluations and pairs are, then along the axes."""
    place = {name: at for at, name in enumerate(evaluations)}
    order = {(one.first, one.second): at for at, one in enumerate(pairs)}
    keys = [(place[evaluation], order[a, b]) for evaluation, a, b in table.select(*_PAIR).rows()]
    placed = pl.DataFrame(keys, schema=["place", "order"], orient="row")
    axes = list(profile.AXES)
    found = table.select("family", *axes, split=~_ON_WHOLE).hstack(placed).with_row_index("row")
    return table[found.sort("split", "family", "place", "order", *axes, nulls_last=False)["row"]]


def _measurements(side: Side, evaluation: str) -> Mapping[str, Any]:
    """Return what the manifests say of an evaluation: what it measures, and the unit."""
    own = (
        side.manifests[cell.id] for cell in side.cells if cell.evaluation == evaluation and cell.id in side.manifests
    )
    return next((manifest.measurements for manifest in own), {})
