"""How many rows a finetune passes through its model at a time: as many as the GPU's memory holds, by an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.errors import InputError
from kvray.finetune.placement import CPU_ROWS, Shape, batch_shape
from kvray.models.lora import target_names
from kvray.models.memory import PROJECTIONS, Batch, Training, decoder_of
from kvray.sweep.model import Finetune, Runtime

FILLED = 0.9
"""Share of a GPU that is filled: CUDA's own memory and what lies between tensors take the rest."""


@dataclass(frozen=True)
class Fit:
    """Rows per forward pass, how many such passes a worker makes per step, and whether activations are recomputed."""

    rows: int
    passes: int
    checkpointing: bool


def fit(
    training: Training | None,
    lengths: NDArray[np.int64],
    answers: NDArray[np.int64],
    shape: Shape,
    runtime: Runtime,
    memory: int | None,
    packed: bool,
) -> Fit:
    """Return how a finetune fits a device.

    Rows are those of ``runtime.per_device_batch_size``, else the most that fit; activations are recomputed as
    ``runtime.gradient_checkpointing`` says, else only if not one row fits otherwise: recomputing costs a third more
    time, and one row of a few thousand tokens already fills a GPU's arithmetic.

    Args:
        training: what trains; None if the model's config does not tell its sizes, which leaves one row.
        lengths: tokens of the rows of every step in their order, ``(steps, batch_size)``.
        answers: likewise, of the answers alone.
        shape: the workers.
        runtime: what the sweep fixes.
        memory: bytes of the GPU, None on CPU, where there are :data:`~kvray.finetune.placement.CPU_ROWS`.
        packed: whether rows are packed rather than padded.

    Raises:
        InputError: the workers cannot share the batch, or the model does not fit the GPU however it is trained.
    """
    asked, checkpointing = runtime.per_device_batch_size, runtime.gradient_checkpointing
    if memory is None or training is None:
        rows = asked or (CPU_ROWS if memory is None else 1)
        return Fit(*batch_shape(lengths.shape[1], shape.workers, rows), bool(checkpointing))
    most, _ = batch_shape(lengths.shape[1], shape.workers, asked or lengths.shape[1])
    ways = (False, True) if checkpointing is None else (checkpointing,)
    least = training.peak(largest(lengths, answers, 1, packed), ways[-1])
    if least > memory:
        raise InputError(_too_large(training, int(lengths.max()), least, memory, shape, ways[-1]))
    sizes = [most] if asked else [rows for rows in range(most, 0, -1) if most % rows == 0]
    for way in ways:
        for rows in sizes:
            if training.peak(largest(lengths, answers, rows, packed), way) <= FILLED * memory:
                return Fit(*batch_shape(lengths.shape[1], shape.workers, rows), way)
    return Fit(*batch_shape(lengths.shape[1], shape.workers, sizes[-1]), ways[-1])


def largest(lengths: NDArray[np.int64], answers: NDArray[np.int64], rows: int, packed: bool) -> Batch:
    """Return the largest micro-batch of ``rows`` consecutive rows of the steps; arguments as of :func:`fit`."""
    cut, kept = lengths.reshape(-1, rows), answers.reshape(-1, rows) + 1
    longest = cut.max(axis=1)
    tokens, logits = (cut.sum(axis=1), kept.sum(axis=1)) if packed else (rows * longest, rows * kept.max(axis=1))
    masked = not packed and bool((cut.min(axis=1) < longest).any())
    return Batch(int(tokens.max()), rows, int(longest.max()), int(logits.max()), masked)


def training_of(config: Any, recipe: Finetune, shape: Shape, runtime: Runtime, mixed: bool) -> Training | None:
    """Return what of a transformers ``config``'s model trains; None if the config does not tell its sizes."""
    decoder = decoder_of(config.get_text_config().to_dict())
    if decoder is None:
        return None
    targets = target_names(recipe.lora_targets, PROJECTIONS) if recipe.method == "lora" else ()
    workers = shape.workers if runtime.strategy == "fsdp" else 1
    return Training(decoder, recipe.method, targets, recipe.lora_rank, mixed, workers)


def gpu_memory(shape: Shape) -> int | None:
    """Return the bytes of a worker's GPU, or of its share of one; the least of all workers. None without a GPU."""
    if not shape.gpus:
        return None
    import torch

    memory = torch.cuda.mem_get_info()[1] * min(1.0, shape.gpus)
    if shape.workers > 1 and torch.distributed.is_initialized():
        least = torch.tensor(memory, dtype=torch.float64, device="cuda")
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        memory = least.item()
    return int(memory)


def _too_large(training: Training, longest: int, least: int, memory: int, shape: Shape, checkpointing: bool) -> str:
    weights, fixed = training.decoder.weights / 1e9, training.fixed / 1e9
    ways = ["lora"] if training.method != "lora" else []
    ways += [] if checkpointing else ["runtime.gradient_checkpointing: true"]
    ways += ["more runtime.workers_per_finetune with runtime.strategy: fsdp", "shorter rows"]
    held = "one GPU" if training.workers == 1 else f"each of {shape.workers} GPUs"
    return (
        f"finetune.method: {training.method} of a {weights:.1f}B model on rows of {longest:,} tokens needs about "
        f"{least / 1e9:.0f} GB on {held} ({fixed:.0f} GB of it weights, gradients and optimizer), this GPU has "
        f"{memory / 1e9:.0f} GB: use {', '.join(ways[:-1])} or {ways[-1]}"
    )
