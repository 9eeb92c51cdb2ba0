"""FSDP on any device, and a look at whether the weights really are sharded.

accelerate shards on accelerators alone: for CPU workers it drops the FSDP plugin, checkpointing of activations with it,
and trains data-parallel without a word. Everything below it (torch's FSDP2, gloo) does shard on CPUs, so that the very
path that a cluster takes can be run, and tested, on a laptop.
"""

from __future__ import annotations

from typing import Any


def shard(trainer: Any) -> None:
    """Let a transformers Trainer whose arguments ask for FSDP shard whatever its device. Call it before training."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    if trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def without_checkpointing(model: Any) -> Any:
    """Take the wrappers off that recompute activations: peft would save no weight of a layer inside one."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

    wrapped = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, CheckpointWrapper)]
    for name, layer in wrapped:
        model.set_submodule(name, layer._checkpoint_wrapped_module)
    return model


def is_sharded(model: Any) -> bool:
    """Return whether every weight of a model is spread over the workers."""
    from torch.distributed.tensor import DTensor

    return all(isinstance(weight, DTensor) for weight in model.parameters())
