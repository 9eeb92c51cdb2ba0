"""What is seen of a finetune while it runs: its loss log, and its checkpoints handed on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError
from kvray.finetune.schedule import BLANK
from kvray.tasks.rng import key_of


def callback(log: Log, seed: int, on_checkpoint: Callable[[Path, int], None] | None) -> Any:
    """Return the TrainerCallback that feeds ``log``, hands checkpoints on and seeds every step."""
    import torch
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Logs, hands checkpoints on, and seeds each step."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log.begin(state.log_history)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Dropout is a function of (seed, step, rank): a resumed run draws the same, whichever ranks' random states
            # were kept with the checkpoint.
            torch.manual_seed(key_of("dropout", seed, state.global_step, args.process_index) % 2**63)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                # The finished model follows at once; a checkpoint beside it would only cost its writing.
                control.should_save = False

        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            log.step(state.log_history, args.process_index == 0)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if on_checkpoint:
                on_checkpoint(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    return Watch()


class LossRow(TypedDict):
    """One optimizer step of the loss log; tokens and seconds are totals so far, over all workers and resumes."""

    step: int
    epoch: float
    loss: float
    loss_integers: float | None
    loss_words: float | None
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


class Log:
    """Turns the Trainer's log history into loss rows. It is saved with every checkpoint, so it outlives a kill.

    Args:
        order: the schedule, shape ``(steps, batch_size)``.
        lengths: tokens per row.
        per_epoch: steps per epoch.
        on_log: told each row as it comes, on rank 0.
        split: returns the mean losses of integers and of words of the step, on this rank.

    Attributes:
        resumed_at: the step that training began behind.
    """

    def __init__(
        self,
        order: NDArray[np.int64],
        lengths: NDArray[np.int64],
        per_epoch: int,
        on_log: Callable[[LossRow], None] | None,
        split: Callable[[], tuple[float | None, float | None]],
    ) -> None:
        self._split = split
        self._tokens = np.cumsum(np.where(order == BLANK, 0, lengths[order]).sum(axis=1))
        self._per_epoch = per_epoch
        self._on_log = on_log
        self._started = time.monotonic()
        self._before = 0.0
        self.resumed_at = 0

    def begin(self, history: list[dict[str, Any]]) -> None:
        """Start the clock, after the seconds that an interrupted run had logged."""
        self.resumed_at = max((int(entry["step"]) for entry in history), default=0)
        self._started = time.monotonic()
        self._before = max((float(entry.get("seconds", 0.0)) for entry in history), default=0.0)

    def step(self, history: list[dict[str, Any]], first: bool) -> None:
        """Complete the newest entry; ``first`` says that this is rank 0."""
        entry = history[-1]
        if "loss" not in entry:
            return
        entry["seconds"] = self._before + time.monotonic() - self._started
        entry["loss_integers"], entry["loss_words"] = self._split()
        if not np.isfinite(entry["loss"]):
            raise CellError(f"the loss is {entry['loss']} at step {entry['step']}; try a lower finetune.learning_rate")
        if first and self._on_log:
            self._on_log(self._row(entry))

    def rows(self, history: list[dict[str, Any]]) -> list[LossRow]:
        """Return one row per step."""
        return [self._row(entry) for entry in history if "loss" in entry]

    def _row(self, entry: dict[str, Any]) -> LossRow:
        step = int(entry["step"])
        return LossRow(
            step=step,
            epoch=step / self._per_epoch,
            loss=float(entry["loss"]),
            loss_integers=entry["loss_integers"],
            loss_words=entry["loss_words"],
            learning_rate=float(entry["learning_rate"]),
            grad_norm=float(entry["grad_norm"]),
            tokens=int(self._tokens[step - 1]),
            seconds=float(entry["seconds"]),
        )
