"""Loss curves of the finetunes: mean cross entropy of each optimizer step, before its update, in nats per token."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import polars as pl

from kvray.results.frames import with_models
from kvray.store.manifest import Manifest
from kvray.store.store import Store

Part = Literal["all", "integers", "words"]
PARTS: tuple[Part, ...] = get_args(Part)
"""All answer tokens, those that hold a digit, and the others."""
FILE = "loss.parquet"
"""A finetune's loss log; finetunes trained by an API have none."""
BINS = 20
"""Points of a curve: the steps of each twentieth of the training are averaged."""
_LOGGED: Mapping[str, Part] = {"loss": "all", "loss_integers": "integers", "loss_words": "words"}
_LOSSES: dict[str, Any] = {
    "model": pl.String,
    "seed": pl.Int64,
    "step": pl.Int64,
    "share": pl.Float64,
    **dict.fromkeys(PARTS, pl.Float64),
}


def read(
    store: Store,
    planned: Sequence[Mapping[str, Any]],
    manifests: Mapping[str, Manifest],
    predictions: pl.DataFrame,
) -> pl.DataFrame:
    """Return the loss logs of the planned finetunes that are committed and separate integers from words.

    ``manifests`` are by artefact id; unreadable logs are left out. A row per optimizer step, in the plan's order:
    model, seed, step, share (of the training, from 0 to 1), all, integers, words (null where a step has no such token).
    """
    model = names(planned, predictions)
    parts = [pl.DataFrame(schema=_LOSSES)]
    for finetune in planned:
        manifest = manifests.get(finetune["id"])
        if manifest is None or all(file.name != FILE for file in manifest.files):
            continue
        table = store.read_file_table(finetune["id"], FILE)
        if table is None or not {"step", *_LOGGED} <= set(table.column_names) or not table.num_rows:
            continue
        frame = pl.from_arrow(table.select(["step", *_LOGGED]))
        assert isinstance(frame, pl.DataFrame)
        steps = pl.col("step").cast(pl.Int64)
        first, labels = steps.min(), finetune["labels"]
        frame = frame.rename(_LOGGED).with_columns(
            model=pl.lit(model[labels.get("mixture"), labels.get("finetune")]),
            seed=pl.lit(labels.get("seed"), dtype=pl.Int64),
            share=(steps - first) / pl.max_horizontal(steps.max() - first, 1),
        )
        parts.append(frame.select(pl.col(name).cast(kind) for name, kind in _LOSSES.items()))
    return pl.concat(parts)


def curves(losses: pl.DataFrame) -> pl.DataFrame:
    """Return loss by share of the training, averaged within each of :data:`BINS` bins, then over seeds.

    Sorted columns: model, part (with tokens), share (mean over the steps), loss, low, high (range over seeds), seeds.
    """
    each = _long(losses).with_columns((pl.col("share") * BINS).floor().clip(upper_bound=BINS - 1).alias("bin"))
    keys = ["model", "part", "bin"]
    seeds = each.sort("model", "part", "bin", "seed", "step").group_by([*keys, "seed"], maintain_order=True)
    binned = seeds.agg(pl.col("share").mean(), pl.col("loss").mean()).group_by(keys, maintain_order=True)
    loss = pl.col("loss")
    seeds_of = pl.len().cast(pl.Int64)
    curve = binned.agg(pl.col("share").mean(), loss.mean(), low=loss.min(), high=loss.max(), seeds=seeds_of)
    return curve.drop("bin").sort("model", "part", "share")


def tenths(losses: pl.DataFrame) -> pl.DataFrame:
    """Return mean losses over the first and last tenth of each training (at least one step), averaged over seeds.

    Columns: model, part, first (close to the base model's loss), last; sorted by model and part; null without tokens.
    """
    ordinal = pl.col("step").rank("dense").over("model", "seed")
    count = pl.col("step").n_unique().over("model", "seed")
    tenth = (count + 9) // 10
    placed = losses.with_columns(early=ordinal <= tenth, late=ordinal > count - tenth)
    steps = _long(placed).sort("model", "part", "seed", "step").group_by("model", "part", "seed", maintain_order=True)
    first, last = (pl.col("loss").filter(pl.col(end)).mean() for end in ("early", "late"))
    means = steps.agg(first=first, last=last).group_by("model", "part", maintain_order=True)
    return means.agg(pl.col("first", "last").mean()).sort("model", "part")


def split(losses: pl.DataFrame) -> list[str]:
    """Return the models whose answers hold both integers and words, in the plan's order."""
    both = losses.group_by("model", maintain_order=True).agg(pl.col("integers", "words").count())
    return [str(row["model"]) for row in both.iter_rows(named=True) if row["integers"] and row["words"]]


def _long(losses: pl.DataFrame) -> pl.DataFrame:
    """Return a row per step and part that has tokens in it, in the columns ``part`` and ``loss``."""
    index = [name for name in losses.columns if name not in PARTS]
    return losses.unpivot(PARTS, index=index, variable_name="part", value_name="loss").drop_nulls("loss")


def names(planned: Sequence[Mapping[str, Any]], predictions: pl.DataFrame) -> dict[tuple[Any, Any], str]:
    """Return each model's name by (mixture, finetune), from the predictions where they hold it, else from the plan."""
    labels = [{name: a["labels"].get(name) for name in ("mixture", "finetune")} for a in planned]
    every = with_models(pl.DataFrame(labels, schema={"mixture": pl.String, "finetune": pl.String}))
    known = predictions.select("mixture", "finetune", "model").unique(maintain_order=True)
    return {(mixture, finetune): model for mixture, finetune, model in [*every.rows(), *known.rows()]}
