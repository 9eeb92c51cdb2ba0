"""One finetune on this process's share of the devices: transformers' Trainer with peft inside. No Ray here.

What decides the result (rows, recipe, seed) is kept apart from :class:`Execution`. The schedule fixes the rows of every
step and each of its answer tokens weighs the same, so workers and micro-batches change rounding alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from kvray.errors import CellError
from kvray.finetune import model as models
from kvray.finetune.batches import ScheduledRows, collate, schedule
from kvray.finetune.callbacks import LossRow, Progress
from kvray.finetune.encode import Encoded
from kvray.finetune.loss import SplitLoss, holds_digit
from kvray.finetune.placement import batch_shape
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.sweep.model import Finetune


@dataclass(frozen=True)
class Execution:
    """How a finetune runs; never part of its identity.

    Attributes:
        per_device_batch_size: most rows in one micro-batch; the largest divisor of a worker's share up to it is used.
        gradient_checkpointing: recompute activations in the backward pass: less memory, about a third slower.
        strategy: "ddp" copies the model to every worker, "fsdp" shards it over them.
        threads: torch threads; torch's own choice where None.
    """

    workers: int = 1
    gpu: bool = False
    per_device_batch_size: int = 4
    gradient_checkpointing: bool = False
    checkpoint_every_steps: int = 50
    strategy: Literal["ddp", "fsdp"] = "ddp"
    threads: int | None = None


@dataclass(frozen=True)
class Trained:
    """The outcome of a finetune.

    Attributes:
        log: one row per optimizer step, those before a resume included.
        resumed_at: the step of the checkpoint that this call began at; 0 for the start.
        device: the GPU's name, or "cpu, 8 threads".
        precision: "bf16" (autocast) or "fp32".
        peak_gpu_bytes: most memory that was allocated on this worker's GPU; 0 on CPU.
        sharded: whether the weights were spread over the workers (strategy "fsdp").
    """

    log: list[LossRow]
    resumed_at: int
    device: str
    precision: str
    trained_parameters: int
    peak_gpu_bytes: int
    sharded: bool


def train(
    base: BaseModelRef,
    rows: Encoded,
    recipe: Finetune,
    seed: int,
    out_dir: Path,
    *,
    execution: Execution,
    resume_from: Path | None = None,
    on_checkpoint: Callable[[Path, int], None] | None = None,
    on_log: Callable[[LossRow], None] | None = None,
) -> Trained:
    """Finetune ``base`` on encoded ``rows``; rank 0 writes the result to ``out_dir / "model"``.

    Under torch.distributed every process calls this with the same arguments, in torchrun's environment (RANK,
    WORLD_SIZE, …). ``seed`` draws initial adapters, dropout and the order of rows. ``out_dir`` is this process's
    scratch and holds its checkpoints; ``resume_from`` is such a checkpoint of an earlier call, whose steps are not
    repeated. ``on_checkpoint`` is called on every process with (directory, step), where only rank 0's directory has
    files; ``on_log`` on rank 0 after every step.

    Raises:
        InputError: the recipe does not fit the model, vLLM or the number of workers.
        CellError: the loss is no number.
    """
    logging.set_verbosity_error()
    if execution.threads:
        torch.set_num_threads(execution.threads)
    # Attention weights far from the answer underflow; on CPU, denormals there made a row of 8K tokens 2.3 times slower.
    torch.set_flush_denormal(True)
    fsdp = execution.strategy == "fsdp" and execution.workers > 1
    order = schedule(rows.lengths, recipe.batch_size, recipe.epochs, seed)
    per_epoch = -(-len(rows) // recipe.batch_size)
    arguments = training_arguments(recipe, seed, out_dir, execution, len(order))
    model = models.load(base, recipe.method, gpu=execution.gpu, fsdp=fsdp)
    set_seed(seed)
    model = models.prepare(model, recipe)
    pad = model.config.get_text_config().pad_token_id
    filler = int(pad) if pad is not None else 0  # any valid token: padding is masked, and never a label
    loss = SplitLoss(holds_digit(load_tokenizer(base), model.config.get_text_config().vocab_size))
    progress = Progress(order, rows.lengths, per_epoch, seed, loss.take, on_log, on_checkpoint)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=ScheduledRows(rows, order.reshape(-1), filler),
        data_collator=lambda items: collate(items, filler),
        compute_loss_func=loss,
        callbacks=[progress],
    )
    trainer.remove_callback(PrinterCallback)
    # The schedule is the order; a sampler of the Trainer's own would shuffle it again.
    trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(dataset)
    if fsdp:
        models.shard(trainer)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if execution.gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    history = progress.rows(trainer.state.log_history)
    if len(history) != len(order):
        raise CellError(f"the loss log has {len(history)} steps, expected {len(order)}")
    sharded = models.is_sharded(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if trainer.is_world_process_zero():
        plain = models.without_checkpointing(trainer.accelerator.unwrap_model(trainer.model))
        models.save(plain, state, base, recipe.method, out_dir / "model")
    return Trained(
        log=history,
        resumed_at=progress.resumed_at,
        device=torch.cuda.get_device_name() if execution.gpu else f"cpu, {torch.get_num_threads()} threads",
        precision="bf16" if arguments.bf16 else "fp32",
        trained_parameters=trainable,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if execution.gpu else 0,
        sharded=sharded,
    )


def training_arguments(
    recipe: Finetune, seed: int, out_dir: Path, execution: Execution, steps: int
) -> TrainingArguments:
    """Return the arguments of a finetune of ``steps`` optimizer steps.

    Raises:
        InputError: the batch cannot be shared evenly by the workers.
    """
    micro, accumulation = batch_shape(recipe.batch_size, execution.workers, execution.per_device_batch_size)
    fsdp = execution.strategy == "fsdp" and execution.workers > 1
    scheduler: str = recipe.scheduler
    if scheduler == "constant" and recipe.warmup_ratio:
        scheduler = "constant_with_warmup"
    sharding: dict[str, Any] = {}
    if fsdp:
        sharding = {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": True,
                "state_dict_type": "FULL_STATE_DICT",
                "activation_checkpointing": execution.gradient_checkpointing,
            },
        }
    return TrainingArguments(
        output_dir=str(out_dir),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=scheduler,
        # transformers reads a float below 1 as a share of all steps.
        warmup_steps=min(recipe.warmup_ratio, 1 - 1e-9),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim="adamw_torch",
        seed=seed,
        use_cpu=not execution.gpu,
        bf16=execution.gpu and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=execution.gradient_checkpointing and not fsdp,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=False,
        save_strategy="steps",
        save_steps=execution.checkpoint_every_steps,
        save_total_limit=1,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=execution.gpu,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        **sharding,
    )
