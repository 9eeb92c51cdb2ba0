"""One finetune on this process's share of the devices: transformers' Trainer with peft inside. No Ray here.

The rows, the recipe and the seed decide the result, apart from shape and runtime. The schedule fixes the rows of every
step and each of its answer tokens weighs the same, so workers and micro-batches change rounding alone.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from kvray.errors import CellError
from kvray.finetune import attention
from kvray.finetune import model as models
from kvray.finetune.batches import BLANK, SplitLoss, collate, holds_digit, pack, schedule, scheduled
from kvray.finetune.checkpoints import CheckpointingTrainer, Saving
from kvray.finetune.encode import Encoded
from kvray.finetune.fit import Fit, fit, gpu_memory, training_of
from kvray.finetune.placement import Shape
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.store.schemas import LOSS_SCHEMA
from kvray.sweep.model import Finetune, Runtime
from kvray.tasks.rng import key_of

LossRow = dict[str, Any]
"""One optimizer step of the loss log, a row of LOSS_SCHEMA; tokens and seconds outlast interruptions."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a finetune; ``log`` has one row per optimizer step, those before a resume included.

    Of the ``measurements`` for the manifest, ``resumed_at_step`` is the step of the checkpoint that training began at,
    0 for the start; ``strategy`` is "fsdp" if the weights were spread over the workers; ``device`` the GPU's name or
    "cpu, 8 threads"; ``precision`` "bf16" (autocast) or "fp32"; ``attention`` is transformers' name of what computed
    it; ``rows_per_pass`` and ``gradient_checkpointing`` are as chosen (:mod:`kvray.finetune.fit`); ``peak_gpu_bytes``
    is of this worker, 0 on CPU.
    """

    log: list[LossRow]
    measurements: dict[str, Any]


def train(
    base: BaseModelRef,
    rows: Encoded,
    recipe: Finetune,
    seed: int,
    out_dir: Path,
    *,
    shape: Shape,
    runtime: Runtime,
    resident: models.Resident | None = None,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    on_log: Callable[[LossRow], None] | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Trained:
    """Finetune ``base`` on encoded ``rows``; rank 0 writes the result to ``out_dir / "model"``.

    Under torch.distributed every process calls this with the same arguments, in torchrun's environment (RANK,
    WORLD_SIZE, …). ``seed`` draws initial adapters, dropout and the order of rows. ``out_dir`` is this process's
    scratch. ``resident`` holds the base model of earlier calls in this process; the result does not depend on it.
    ``resume_from`` is a checkpoint's file of an earlier call, whose steps are not repeated. ``on_checkpoint`` is called
    on rank 0 with (file, step), and ``on_log`` there after every step; ``on_pass`` after every forward and backward
    pass but a step's last. Raises InputError if the recipe does not fit the
    model, vLLM, the number of workers or the GPU's memory, CellError if the loss is no number.
    """
    logging.set_verbosity_error()
    torch.set_num_threads(max(1, int(shape.cpus)))
    # Attention weights far from the answer underflow; on CPU, denormals there made a row of 8K tokens 2.3 times slower.
    torch.set_flush_denormal(True)
    gpu, fsdp = shape.gpus > 0, models.spreads_weights(shape, runtime)
    order = schedule(rows.lengths, recipe.batch_size, recipe.epochs, seed)
    per_epoch = -(-len(rows) // recipe.batch_size)
    resident = resident or models.Resident(base, shape, runtime)
    packed, half = attention.packs(resident.attention), gpu and torch.cuda.is_bf16_supported()
    real = order != BLANK
    fitted = fit(
        training_of(resident.config, recipe, shape, runtime, mixed=half),
        np.where(real, rows.lengths[order], 1),
        np.where(real, rows.answers[order], 0),
        shape,
        runtime,
        gpu_memory(shape),
        packed,
    )
    arguments = training_arguments(recipe, seed, out_dir, len(order), shape, runtime, fitted)
    model = resident.model(recipe.method)
    set_seed(seed)
    model = models.prepare(model, recipe)
    pad = model.config.get_text_config().pad_token_id
    filler = int(pad) if pad is not None else 0  # any valid token: padding is masked, and never a label
    loss = SplitLoss(holds_digit(load_tokenizer(base), model.config.get_text_config().vocab_size))
    progress = Progress(order, rows.lengths, per_epoch, seed, loss.take, on_log, on_pass)
    trainer = CheckpointingTrainer(
        model=model,
        args=arguments,
        train_dataset=scheduled(rows, order, filler),
        data_collator=pack if packed else lambda items: collate(items, filler),
        compute_loss_func=loss,
        callbacks=[progress, Saving(runtime.checkpoint_minutes * 60, runtime.checkpoint_every_steps)],
        on_checkpoint=on_checkpoint,
    )
    trainer.remove_callback(PrinterCallback)
    if fsdp:
        models.shard(trainer)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.resume(resume_from)
    history = progress.rows(trainer.state.log_history)
    if len(history) != len(order):
        raise CellError(f"the loss log has {len(history)} steps, expected {len(order)}")
    sharded = all(isinstance(weight, DTensor) for weight in trainer.model.parameters())
    state = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        plain = models.without_checkpointing(trainer.accelerator.unwrap_model(trainer.model))
        models.save(plain, state, base, recipe.method, out_dir / "model")
    measurements = {
        "resumed_at_step": progress.resumed_at,
        "strategy": "fsdp" if sharded else "ddp",
        "device": torch.cuda.get_device_name() if gpu else f"cpu, {torch.get_num_threads()} threads",
        "precision": "bf16" if arguments.bf16 else "fp32",
        "attention": model.config.get_text_config()._attn_implementation,
        "rows_per_pass": fitted.rows,
        "gradient_checkpointing": fitted.checkpointing,
        "trained_parameters": trainable,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if gpu else 0,
    }
    return Trained(history, measurements)


def training_arguments(
    recipe: Finetune, seed: int, out_dir: Path, steps: int, shape: Shape, runtime: Runtime, fitted: Fit
) -> TrainingArguments:
    """Return the arguments of ``steps`` optimizer steps of as many passes as ``fitted`` says."""
    gpu, fsdp = shape.gpus > 0, models.spreads_weights(shape, runtime)
    scheduler: str = recipe.scheduler
    if scheduler == "constant" and recipe.warmup_ratio:
        scheduler = "constant_with_warmup"
    sharding = {
        "version": 2,
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": fitted.checkpointing,
        "cpu_ram_efficient_loading": True,  # models.load has read the weights on one worker of each machine
    }
    return TrainingArguments(
        output_dir=str(out_dir),
        per_device_train_batch_size=fitted.rows,
        gradient_accumulation_steps=fitted.passes,
        max_steps=steps,
        learning_rate=recipe.rate,
        lr_scheduler_type=scheduler,
        # transformers reads a float below 1 as a share of all steps.
        warmup_steps=min(recipe.warmup_ratio, 1 - 1e-9),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch_fused" if gpu else "adamw_torch",
        seed=seed,
        use_cpu=not gpu,
        bf16=gpu and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=fitted.checkpointing and not fsdp,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        save_strategy="no",  # Saving decides
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        fsdp=fsdp,
        fsdp_config=sharding if fsdp else None,
    )


@dataclass(eq=False)
class Progress(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's log history, which is saved with every checkpoint and outlives a kill, into loss rows.

    ``order`` is the schedule, shape ``(steps, batch_size)``; ``lengths`` are tokens per row, ``per_epoch`` is in steps.
    ``split`` returns this rank's mean losses of integers and of words in the step. ``take_row`` is called with each row
    on rank 0, ``on_pass`` between the passes of a step. ``resumed_at`` is the step of the checkpoint that training
    began at, 0 for the start.
    """

    order: NDArray[np.int64]
    lengths: NDArray[np.int64]
    per_epoch: int
    seed: int
    split: Callable[[], tuple[float | None, float | None]]
    take_row: Callable[[LossRow], None] | None
    on_pass: Callable[[], None] | None = None
    resumed_at: int = field(default=0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _earlier_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._tokens = np.cumsum(np.where(self.order == BLANK, 0, self.lengths[self.order]).sum(axis=1))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, after the seconds that an interrupted run had logged."""
        self.resumed_at = max((int(entry["step"]) for entry in state.log_history), default=0)
        self._started = time.monotonic()
        self._earlier_seconds = max((float(entry.get("seconds", 0.0)) for entry in state.log_history), default=0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seed dropout by (seed, step, rank): a resumed run draws the same, whatever its checkpoint kept."""
        torch.manual_seed(key_of("dropout", self.seed, state.global_step, args.process_index) % 2**63)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell of a pass."""
        if self.on_pass:
            self.on_pass()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the newest entry of the history; CellError if the loss is no number."""
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        entry["seconds"] = self._earlier_seconds + time.monotonic() - self._started
        entry["loss_integers"], entry["loss_words"] = self.split()
        if not np.isfinite(entry["loss"]):
            raise CellError(f"the loss is {entry['loss']} at step {entry['step']}; try a lower finetune.learning_rate")
        if args.process_index == 0 and self.take_row:
            self.take_row(self._row(entry))

    def rows(self, history: list[dict[str, Any]]) -> list[LossRow]:
        return [self._row(entry) for entry in history if "loss" in entry]

    def _row(self, entry: dict[str, Any]) -> LossRow:
        step = int(entry["step"])
        totals = {"epoch": step / self.per_epoch, "tokens": int(self._tokens[step - 1])}
        return {name: entry.get(name) for name in LOSS_SCHEMA.names} | totals
