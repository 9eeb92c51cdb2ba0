"""The Arrow schemas of everything that a store holds, for its writers and its readers."""

import pyarrow as pa


def column(name: str, kind: pa.DataType, about: str, nullable: bool = False) -> pa.Field:
    """Return a field whose description travels with the data, in the field's metadata."""
    return pa.field(name, kind, nullable=nullable, metadata={"description": about})


_PLACE = [  # of a question within its prompt and task
    column("position", pa.int32(), "1-based gold position; null where the task has none", nullable=True),
    column("units", pa.int32(), "documents or dictionaries in the prompt; 0 where there are none"),
    column("length", pa.int32(), "nominal context length in tokens; null where it is no axis", nullable=True),
    column("depth", pa.float32(), "depth of the needle in percent of the context; null where it is no axis", True),
    column("subtask", pa.string(), "kind of example within the task (MonoRel, multikey, …); null if one", True),
    column("condition", pa.string(), "further conditions, 'dispersion=random padding=books'; null if none", True),
]
EXAMPLE_SCHEMA = pa.schema(  # every dataset, for training and for evaluation
    [
        column("example_id", pa.string(), "unique within the dataset"),
        column("question_id", pa.string(), "pairs examples that ask the same question (at several positions, say)"),
        *_PLACE,
        column("prompt", pa.string(), "the user message"),
        column("answer", pa.string(), "the assistant message to train on"),
        column("references", pa.list_(pa.string()), "accepted answers, for the scorer"),
        column("prompt_tokens", pa.int32(), "tokens of the user message alone, by the base model's tokenizer"),
    ]
)

CHAT_SCHEMA = EXAMPLE_SCHEMA.append(  # datasets of chats: a prompt may have messages before it
    column("history", pa.string(), "messages before the prompt, as JSON: [{role, content}, …]; null if none", True)
)

WRITING_SCHEMA = pa.schema(  # the replies to what a task asks its writer
    [
        column("index", pa.int32(), "number of the prompt, from 0"),
        column("prompt", pa.string(), "the user message"),
        column("text", pa.string(), "what the model wrote; empty where the prompt did not fit it"),
        column("finish_reason", pa.string(), "stop, length (cut off, so not used) or too_long (not asked)"),
        column("prompt_tokens", pa.int32(), "by the writer's tokenizer, chat template included"),
        column("output_tokens", pa.int32(), "tokens that it wrote"),
    ]
)

LOSS_SCHEMA = pa.schema(  # a finetune's loss.parquet: one row per optimizer step
    [
        column("step", pa.int32(), "optimizer steps so far"),
        column("epoch", pa.float64(), "passes over the mixture so far"),
        column("loss", pa.float64(), "mean cross entropy (nats) of the step's answer tokens, before its update"),
        column("loss_integers", pa.float64(), "the same over tokens that hold a digit, on the first worker", True),
        column("loss_words", pa.float64(), "the same over the other tokens (wording, end), on the first worker", True),
        column("learning_rate", pa.float64(), "of the step"),
        column("grad_norm", pa.float64(), "norm of the gradient before clipping"),
        column("tokens", pa.int64(), "tokens of prompts and answers so far, over all workers"),
        column(
            "seconds", pa.float64(), "training time so far, interrupted attempts included up to their last checkpoint"
        ),
    ]
)

PREDICTIONS_SCHEMA = pa.schema(
    [
        column("sweep", pa.string(), "the sweep read, or the one that first wrote the row; a label, never identity"),
        column("evaluation", pa.string(), "name of the evaluation in the sweep"),
        column("task", pa.string(), "task family that made the example and scores the answer"),
        column("base_model", pa.string(), "the base model as the sweep names it"),
        column("mixture", pa.string(), "data mixture trained on; null for the base model", nullable=True),
        column("finetune", pa.string(), "label of the finetune; null for the base model", nullable=True),
        column("seed", pa.int64(), "finetuning seed; null for the base model", nullable=True),
        column("adapter", pa.string(), "last part of the finetune's artefact id; null for the base model", True),
        column("example_id", pa.string(), "unique within the evaluation's dataset"),
        column("question_id", pa.string(), "pairs examples that ask one question; the cluster of all statistics"),
        *_PLACE,
        column("prompt_tokens", pa.int32(), "tokens of the whole prompt, chat template included"),
        column("cached_tokens", pa.int32(), "tokens of the prompt that the prefix cache served; null if untold", True),
        column("output_tokens", pa.int32(), "tokens written by the model; 0 where it was not run"),
        column("answer", pa.string(), "the model's raw answer; null where it was not run", nullable=True),
        column("references", pa.list_(pa.string()), "accepted answers"),
        column("score", pa.float64(), "the task's score of the answer in [0, 1]; null where not run", True),
        column(
            "outcome", pa.string(), "right | wrong, or the kind of wrong that the task tells; null where not run", True
        ),
        column("finish_reason", pa.string(), "stop | length | too_long (prompt over the model's length; not run)"),
    ]
)
"""One row per (example, model). A file may have further columns, which readers ignore."""

ARTEFACT = column("artefact", pa.string(), "id of the predictions; with example_id one row, whatever sweeps call it")
"""Added by :meth:`kvray.results.Results.predictions`, which reads a row under the names of each sweep that has it."""

SCORES_SCHEMA = pa.schema(
    [
        column("sweep", pa.string(), "name of the sweep"),
        column("evaluation", pa.string(), "name of the evaluation in the sweep"),
        column("task", pa.string(), "task family of the evaluation"),
        column("base_model", pa.string(), "the base model as the sweep names it"),
        column("mixture", pa.string(), "data mixture; null for the base model", nullable=True),
        column("finetune", pa.string(), "variant of the finetune; null for the base model or a sweep of one", True),
        column("position", pa.int32(), "1-based gold position; null for all positions together", nullable=True),
        column("length", pa.int32(), "nominal context length in tokens; null for all lengths together", nullable=True),
        column("depth", pa.float32(), "depth of the needle in percent; null for all depths together", nullable=True),
        column("subtask", pa.string(), "kind of example within the task; null for all together", nullable=True),
        column("condition", pa.string(), "one condition, 'padding=books'; null for all together", nullable=True),
        column("n", pa.int64(), "scored rows (examples times seeds)"),
        column("questions", pa.int64(), "different questions among them: the clusters of the interval"),
        column("seeds", pa.int64(), "finetuning seeds averaged over; 0 for the base model"),
        column("excluded", pa.int64(), "rows without a score (prompt too long), left out of everything"),
        column("accuracy", pa.float64(), "mean score over seeds, then over rows; null where n is 0", nullable=True),
        column("low", pa.float64(), "lower end of the 95 % interval", nullable=True),
        column("high", pa.float64(), "upper end of the 95 % interval", nullable=True),
        column("difference", pa.float64(), "accuracy minus the base's on common examples; null for the base", True),
        column("difference_low", pa.float64(), "lower end of its 95 % interval (questions resampled)", nullable=True),
        column("difference_high", pa.float64(), "upper end of its 95 % interval", nullable=True),
        column("pairs", pa.int64(), "examples compared with the base", nullable=True),
        column("p", pa.float64(), "two-sided p of the difference (exact McNemar, or sign flips by question)", True),
        column("p_holm", pa.float64(), "p after Holm's correction over the report's family of tests", nullable=True),
        column("verdict", pa.string(), "better | worse | within noise | not compared; null for the base", True),
    ]
)
"""Rows of scores.parquet: one per (evaluation, model) over all examples, then one per position, length, pair of length
and depth, subtask or condition where an evaluation has several."""
