"""Checkpoints of a finetune: one file with the tensors that train, their optimizer, and where training stands.

transformers' own hold the whole model where no adapter trains, in several files. This is its Trainer with its three
steps of saving and loading replaced, by PyTorch's state dicts, which are alike for one worker, DDP and FSDP. Random
draws need no state: dropout is seeded anew at every step.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

FILE = "checkpoint.safetensors"
SHARE = 10
"""Seconds of training, at least, per second of writing checkpoints."""
_WEIGHTS, _OPTIMIZER = "weights.", "optimizer."
_OPTIONS = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, cpu_offload=True, strict=False)


class CheckpointingTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that takes its rows in their order, and whose checkpoints are one file.

    ``on_checkpoint`` is called on rank 0 with (file, step); the file is replaced by the next checkpoint.
    """

    def __init__(self, *, on_checkpoint: Callable[[Path, int], None] | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._on_checkpoint = on_checkpoint
        self._resumed: Path | None = None

    def resume(self, file: Path | None) -> None:
        """Train from the state in ``file``, or from the start if it is None."""
        if file is None:
            self.train()
            return
        directory = Path(self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self._resumed = file
        (directory / TRAINER_STATE_NAME).write_text(_facts(file)["trainer"])
        self.train(resume_from_checkpoint=str(directory))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # The schedule is the order; a sampler of the Trainer's own would shuffle it again.
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write :data:`FILE` into the output directory; collective, and rank 0 has the tensors."""
        weights, optimizer = get_state_dict(model, self.optimizer.optimizer, options=_OPTIONS)
        if not self.is_world_process_zero():
            return
        directory = Path(self.args.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self.state.save_to_json(str(directory / TRAINER_STATE_NAME))
        states: Any = optimizer["state"]
        # A frozen embedding that is tied to the output is among the weights, under its second name.
        tensors: dict[str, Any] = {_WEIGHTS + name: weights[name] for name in states}
        for name, state in states.items():
            tensors |= {f"{_OPTIMIZER}{key}.{name}": value for key, value in state.items()}
        facts = {
            "groups": json.dumps(optimizer["param_groups"]),
            "scheduler": json.dumps(self.lr_scheduler.state_dict()),
            "trainer": (directory / TRAINER_STATE_NAME).read_text(),
        }
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / FILE, facts)
        if self._on_checkpoint:
            self._on_checkpoint(directory / FILE, self.state.global_step)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load weights, optimizer and scheduler of a resumed run, once all are wrapped and on their devices."""
        if self._resumed is None:
            return
        weights: dict[str, Any] = {}
        states: dict[str, dict[str, Any]] = {}
        with safe_open(self._resumed, "pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a mapping
                if name.startswith(_WEIGHTS):
                    weights[name.removeprefix(_WEIGHTS)] = file.get_tensor(name)
                else:
                    key, _, of = name.removeprefix(_OPTIMIZER).partition(".")
                    # A copy: the file is mapped, and goes when the next checkpoint comes.
                    states.setdefault(of, {})[key] = file.get_tensor(name).clone()
        facts = _facts(self._resumed)
        optimizer: Any = {"state": states, "param_groups": json.loads(facts["groups"])}
        set_state_dict(
            self.model_wrapped,
            self.optimizer.optimizer,
            model_state_dict=weights,
            optim_state_dict=optimizer,
            options=_OPTIONS,
        )
        self.lr_scheduler.load_state_dict(json.loads(facts["scheduler"]))
        self._resumed = None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Do nothing: weights are loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Do nothing: there is none."""


class Saving(TrainerCallback):  # type: ignore[misc]
    """Decides after which steps a checkpoint is written: by time, and after every ``steps`` steps if given.

    ``seconds`` pass between two checkpoints, and at least :data:`SHARE` times as many as writing one took, so that a
    slow store costs a bounded share of the time. The clock of rank 0 decides for all, as saving is collective. The last
    step has none: the finished model follows at once.
    """

    def __init__(self, seconds: float, steps: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._steps = seconds, steps
        self._clock = clock
        self._since = clock()  # training goes on; or begins
        self._wrote_s, self._began = 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._since = self._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint if one is due."""
        if state.global_step >= state.max_steps:
            return
        counted = self._steps is not None and state.global_step % self._steps == 0
        if counted or self._due(args.device):
            control.should_save = True
            self._began = self._clock()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note how long the checkpoint took."""
        self._since = self._clock()
        self._wrote_s = self._since - self._began

    def _due(self, device: torch.device) -> bool:
        due = self._clock() - self._since >= max(self._seconds, SHARE * self._wrote_s)
        if not (torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1):
            return due
        decided = torch.tensor(due, dtype=torch.uint8, device=device)
        torch.distributed.broadcast(decided, src=0)
        return bool(decided)


def _facts(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata() or {}
