"""The columns of predictions and of scores: one definition, imported by whoever writes and whoever reads."""

from __future__ import annotations

import pyarrow as pa


def _field(name: str, kind: pa.DataType, about: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": about})


PREDICTIONS_SCHEMA = pa.schema(
    [
        _field("sweep", pa.string(), "the sweep read, or the one that first wrote the row; a label, never identity"),
        _field("evaluation", pa.string(), "name of the evaluation in the sweep"),
        _field("task", pa.string(), "task family that made the example and scores the answer"),
        _field("base_model", pa.string(), "the base model as the sweep names it"),
        _field("mixture", pa.string(), "data mixture trained on; null for the base model", nullable=True),
        _field("finetune", pa.string(), "label of the finetune; null for the base model", nullable=True),
        _field("seed", pa.int64(), "finetuning seed; null for the base model", nullable=True),
        _field("adapter", pa.string(), "last part of the finetune's artefact id; null for the base model", True),
        _field("example_id", pa.string(), "unique within the evaluation's dataset"),
        _field("question_id", pa.string(), "pairs examples that ask one question; the cluster of all statistics"),
        _field("position", pa.int32(), "1-based gold position; null where the task has none", nullable=True),
        _field("units", pa.int32(), "documents or dictionaries in the prompt; 0 where there are none"),
        _field("length", pa.int32(), "nominal context length in tokens; null where it is no axis", nullable=True),
        _field("prompt_tokens", pa.int32(), "tokens of the whole prompt, chat template included"),
        _field("cached_tokens", pa.int32(), "tokens of the prompt that the prefix cache served; null if untold", True),
        _field("output_tokens", pa.int32(), "tokens written by the model; 0 where it was not run"),
        _field("answer", pa.string(), "the model's raw answer; null where it was not run", nullable=True),
        _field("references", pa.list_(pa.string()), "accepted answers"),
        _field("score", pa.float64(), "the task's score of the answer in [0, 1]; null where not run", True),
        _field("finish_reason", pa.string(), "stop | length | too_long (prompt over the model's length; not run)"),
    ]
)
"""One row per (example, model). Further columns may follow these in a file; readers ignore what they do not know."""

SCORES_SCHEMA = pa.schema(
    [
        _field("sweep", pa.string(), "name of the sweep"),
        _field("evaluation", pa.string(), "name of the evaluation in the sweep"),
        _field("task", pa.string(), "task family of the evaluation"),
        _field("base_model", pa.string(), "the base model as the sweep names it"),
        _field("mixture", pa.string(), "data mixture; null for the base model", nullable=True),
        _field("finetune", pa.string(), "variant of the finetune; null for the base model or a sweep of one", True),
        _field("position", pa.int32(), "1-based gold position; null for all positions together", nullable=True),
        _field("n", pa.int64(), "scored rows (examples times seeds)"),
        _field("questions", pa.int64(), "different questions among them: the clusters of the interval"),
        _field("seeds", pa.int64(), "finetuning seeds averaged over; 0 for the base model"),
        _field("excluded", pa.int64(), "rows without a score (prompt too long), left out of everything"),
        _field("accuracy", pa.float64(), "mean score over seeds, then over rows; null where n is 0", nullable=True),
        _field("low", pa.float64(), "lower end of the 95 % interval", nullable=True),
        _field("high", pa.float64(), "upper end of the 95 % interval", nullable=True),
        _field("difference", pa.float64(), "accuracy minus the base's on common examples; null for the base", True),
        _field("difference_low", pa.float64(), "lower end of its 95 % interval (questions resampled)", nullable=True),
        _field("difference_high", pa.float64(), "upper end of its 95 % interval", nullable=True),
        _field("pairs", pa.int64(), "examples compared with the base", nullable=True),
        _field("p", pa.float64(), "two-sided p of the difference (exact McNemar, or sign flips by question)", True),
        _field("p_holm", pa.float64(), "p after Holm's correction over the report's family of tests", nullable=True),
        _field("verdict", pa.string(), "better | worse | within noise | not compared; null for the base", True),
    ]
)
"""Rows of scores.parquet: one per (evaluation, model, position), and one per (evaluation, model) over all positions."""
