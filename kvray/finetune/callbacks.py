"""The Trainer's callback: it keeps the loss log, hands checkpoints on and seeds every step."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TrainerCallback

from kvray.errors import CellError
from kvray.finetune.batches import BLANK
from kvray.store.schemas import LOSS_SCHEMA
from kvray.tasks.rng import key_of

LossRow = dict[str, Any]
"""One optimizer step of the loss log, a row of LOSS_SCHEMA; tokens and seconds outlast interruptions."""


class Progress(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's log history, which is saved with every checkpoint and outlives a kill, into loss rows.

    ``order`` is the schedule, shape ``(steps, batch_size)``; ``lengths`` are tokens per row, ``per_epoch`` is in steps.
    ``split`` returns this rank's mean losses of integers and of words in the step. ``on_log`` is called with each row
    on rank 0, ``on_checkpoint`` with (directory, step) on every rank. ``resumed_at`` is the step of the checkpoint that
    training began at, 0 for the start.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        lengths: NDArray[np.int64],
        per_epoch: int,
        seed: int,
        split: Callable[[], tuple[float | None, float | None]],
        on_log: Callable[[LossRow], None] | None,
        on_checkpoint: Callable[[Path, int], None] | None,
    ) -> None:
        self._tokens = np.cumsum(np.where(order == BLANK, 0, lengths[order]).sum(axis=1))
        self._per_epoch = per_epoch
        self._seed = seed
        self._split = split
        self._on_log = on_log
        self._on_checkpoint = on_checkpoint
        self._started = time.monotonic()
        self._earlier_seconds = 0.0
        self.resumed_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, after the seconds that an interrupted run had logged."""
        self.resumed_at = max((int(entry["step"]) for entry in state.log_history), default=0)
        self._started = time.monotonic()
        self._earlier_seconds = max((float(entry.get("seconds", 0.0)) for entry in state.log_history), default=0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seed dropout by (seed, step, rank): a resumed run draws the same, whatever its checkpoint kept."""
        torch.manual_seed(key_of("dropout", self._seed, state.global_step, args.process_index) % 2**63)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Skip the checkpoint of the last step: the finished model follows at once."""
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Complete the newest entry of the history; CellError if the loss is no number."""
        entry = state.log_history[-1]
        if "loss" not in entry:
            return
        entry["seconds"] = self._earlier_seconds + time.monotonic() - self._started
        entry["loss_integers"], entry["loss_words"] = self._split()
        if not np.isfinite(entry["loss"]):
            raise CellError(f"the loss is {entry['loss']} at step {entry['step']}; try a lower finetune.learning_rate")
        if args.process_index == 0 and self._on_log:
            self._on_log(self._row(entry))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand a checkpoint on."""
        if self._on_checkpoint:
            self._on_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    def rows(self, history: list[dict[str, Any]]) -> list[LossRow]:
        """Return one row per step."""
        return [self._row(entry) for entry in history if "loss" in entry]

    def _row(self, entry: dict[str, Any]) -> LossRow:
        step = int(entry["step"])
        totals = {"epoch": step / self._per_epoch, "tokens": int(self._tokens[step - 1])}
        return {name: entry.get(name) for name in LOSS_SCHEMA.names} | totals
