"""The Arrow schemas of everything that a store holds, for its writers and its readers, from ``schemas.toml``."""

import tomllib
from importlib import resources

import pyarrow as pa


def _column(name: str, kind: str, about: str) -> pa.Field:
    """Return a field whose description travels with the data, in the field's metadata."""
    alias = kind.removesuffix("?")
    arrow = pa.list_(pa.string()) if alias == "list<string>" else pa.type_for_alias(alias)
    return pa.field(name, arrow, nullable=kind.endswith("?"), metadata={"description": about})


_TABLES = tomllib.loads((resources.files("kvray.store") / "schemas.toml").read_text("utf-8"))
_SCHEMAS = {
    name: pa.schema([_column(column, kind, about) for column, (kind, about) in columns.items()])
    for name, columns in _TABLES.items()
}
EXAMPLE_SCHEMA = _SCHEMAS["example"]
"""Every dataset, for training and for evaluation."""
CHAT_SCHEMA = EXAMPLE_SCHEMA.append(_SCHEMAS["added"].field("history"))
"""Datasets of chats: a prompt may have messages before it."""
PREFIX_SCHEMA = EXAMPLE_SCHEMA.append(_SCHEMAS["added"].field("answer_prefix"))
"""Datasets whose answers begin with a given text."""
DATASET = _SCHEMAS["added"].field("dataset")
"""Column of a mixture that ``kvray blend`` writes to a file."""
WRITING_SCHEMA = _SCHEMAS["writing"]
"""The replies to what a task asks its writer."""
LOSS_SCHEMA = _SCHEMAS["loss"]
"""A finetune's loss.parquet: one row per optimizer step."""
PREDICTIONS_SCHEMA = _SCHEMAS["predictions"]
"""Predictions as :meth:`kvray.results.Results.predictions` reads them: one row per (example, model)."""
ANSWERS_SCHEMA = pa.schema([field for field in PREDICTIONS_SCHEMA if field.name != "sweep"])
"""The files of predictions, which sweeps share. A file may have further columns, which readers ignore."""
ARTEFACT = _SCHEMAS["added"].field("artefact")
"""Added by :meth:`kvray.results.Results.predictions`, which reads a row under the names of each sweep that has it."""
SCORES_SCHEMA = _SCHEMAS["scores"]
"""Rows of scores.parquet: one per (evaluation, model) over all examples, then per place on each axis with several."""
REFERENCE_SCHEMA = _SCHEMAS["reference"]
"""Columns of ``results/reference.csv``, in this order; an empty cell is null."""
