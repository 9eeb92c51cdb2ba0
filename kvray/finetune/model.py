"""The model of a finetune: loaded, prepared to train, sharded, and saved such that vLLM loads it."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, enable_fsdp_ram_efficient_loading
from peft import LoraConfig, TaskType, get_peft_model
from safetensors import safe_open
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from kvray.errors import CellError, InputError
from kvray.models.lora import target_names
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.sweep.model import Finetune

_LINEAR = (nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer, its weight transposed


def config_of(base: BaseModelRef) -> Any:
    """Return a base model's transformers config."""
    base = base.here()
    return AutoConfig.from_pretrained(base.location, revision=base.revision, trust_remote_code=base.trust_remote_code)


def load(base: BaseModelRef, method: str, *, gpu: bool, fsdp: bool, attention: str | None = None) -> Any:
    """Load a base model for training; InputError if its forward takes no ``logits_to_keep``.

    Weights that train are float32 (at a learning rate of 5e-6 an update is below half a bfloat16 step of its weight).
    Frozen ones keep the base's own type on a GPU, except under FSDP, which needs one type. Under FSDP, once
    torch.distributed runs, one worker of each machine reads the weights; the others get theirs when the model is
    sharded. ``attention`` is as :func:`kvray.finetune.attention.choose` returns it.
    """
    base = base.here()
    logging.disable_progress_bar()
    keep_type = gpu and not fsdp and method != "full"
    if fsdp:
        enable_fsdp_ram_efficient_loading()
    model = AutoModelForCausalLM.from_pretrained(
        base.location,
        revision=base.revision,
        dtype="auto" if keep_type else torch.float32,
        trust_remote_code=base.trust_remote_code,
        attn_implementation=attention,
    )
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise InputError(
            f"base_model: {type(model).__name__} of {base.name} takes no logits_to_keep, which kvray needs to compute "
            "logits at the answer alone; use a model class that ships with transformers"
        )
    model.config.use_cache = False
    return model


def prepare(model: Any, recipe: Finetune) -> Any:
    """Add LoRA adapters, drawn by torch's seed, or freeze what is not finetuned; InputError if no target matches."""
    if recipe.method == "lora":
        return _with_lora(model, recipe)
    if recipe.method == "attention":
        chosen = attention_projections(model)
        if not chosen:
            raise InputError(
                f"finetune.method: attention: {type(model).__name__} has no linear modules inside modules named "
                "*Attention, so there is nothing to train; use lora or full"
            )
        model.requires_grad_(False)
        for module in chosen.values():
            module.float().requires_grad_(True)
    return model


def attention_projections(model: Any) -> dict[str, Any]:
    """Return the linear modules inside attention blocks (classes named ``*Attention``), by qualified name."""
    blocks = [name for name, module in model.named_modules() if type(module).__name__.endswith("Attention")]
    inside = tuple(f"{name}." for name in blocks)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, _LINEAR)}
    return {name: module for name, module in linear.items() if name.startswith(inside)}


def _with_lora(model: Any, recipe: Finetune) -> Any:
    # Where a target matches no linear module of the decoder, vLLM would silently serve the base.
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    modules = {
        ".".join(name.split(".")[-2:])
        for name, module in model.named_modules()
        if isinstance(module, _LINEAR) and not any(module is end for end in ends)
    }
    linear = {name.rpartition(".")[2] for name in modules}
    targets = target_names(recipe.lora_targets, modules)
    problems = [
        f"finetune.lora_targets: {target!r} matches no linear module of {type(model).__name__}'s layers; "
        f"expected among {', '.join(sorted(linear))}"
        for target in targets
        if target not in linear
    ]
    if not targets:
        problems = [f"finetune.lora_targets: {type(model).__name__} has no such modules, so there is nothing to train"]
    if problems:
        raise InputError(problems)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=recipe.lora_rank,
        # peft and vLLM declare an integer, though both only divide it.
        lora_alpha=int(recipe.lora_alpha) if recipe.lora_alpha.is_integer() else recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=sorted(targets),
        bias="none",
    )
    return get_peft_model(model, config)


def shard(trainer: Any) -> None:
    """Let a transformers Trainer whose arguments ask for FSDP shard on any device; call it before training.

    accelerate silently trains data-parallel on CPUs, where torch's FSDP2 and gloo do shard: so a laptop can test it.
    """
    if trainer.is_fsdp_enabled:
        return
    state = trainer.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    trainer.is_fsdp_enabled = True


def without_checkpointing(model: Any) -> Any:
    """Unwrap the layers that recompute activations: peft would save no weight inside a wrapper."""
    wrapped = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, CheckpointWrapper)]
    for name, layer in wrapped:
        model.set_submodule(name, layer._checkpoint_wrapped_module)
    return model


def save(model: Any, state: Mapping[str, Any], base: BaseModelRef, method: str, out_dir: Path) -> None:
    """Write the model to ``out_dir`` such that vLLM loads it as it is; CellError if peft did not write all of it.

    ``model`` is unwrapped and ``state`` its full state dict, gathered. Method "lora" saves the adapter alone; the
    others a whole model in the base's own type, with its tokenizer and generation config.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    if method == "lora":
        # peft would ask the hub whether the vocabulary grew, and name a path of this machine as the base.
        model.peft_config["default"].base_model_name_or_path = base.name
        model.save_pretrained(out_dir, state_dict=dict(state), save_embedding_layers=False)
        trained = sum("lora_" in name for name in state)
        file = "adapter_model.safetensors"
        with safe_open(out_dir / file, "pt") as adapter:
            saved = len(adapter.keys())
        if saved != trained:  # peft leaves out weights whose names it does not know
            raise CellError(f"{file} has {saved} of the {trained} weights that were trained; the finetune is lost")
        (out_dir / "README.md").unlink(missing_ok=True)
        return
    base = base.here()
    own = config_of(base).dtype or torch.float32
    model.save_pretrained(out_dir, state_dict={name: tensor.to(own) for name, tensor in state.items()})
    config = json.loads((out_dir / "config.json").read_text())
    config["dtype"] = str(own).removeprefix("torch.")
    config["use_cache"] = True
    config.pop("_name_or_path", None)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    load_tokenizer(base).save_pretrained(out_dir)
    model.generation_config.save_pretrained(out_dir)
