"""The model of a finetune: loaded, prepared to train, sharded, saved such that vLLM loads it, and its base kept."""

import copy
import gc
import inspect
import json
from collections.abc import Mapping
from functools import cached_property
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
from kvray.finetune import attention
from kvray.finetune.placement import Shape
from kvray.models import changed, hub
from kvray.models.lora import target_names
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.sweep.model import Finetune, Runtime

_ONE_FILE = "1000TB"
_LINEAR = (nn.Linear, Conv1D)  # Conv1D is GPT-2's linear layer, its weight transposed


def config_of(base: BaseModelRef) -> Any:
    """Return a base model's transformers config."""
    base = base.here()
    trust = base.trust_remote_code
    return hub.download(
        lambda: AutoConfig.from_pretrained(base.location, revision=base.revision, trust_remote_code=trust)
    )


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
    model = hub.download(
        lambda: AutoModelForCausalLM.from_pretrained(
            base.location,
            revision=base.revision,
            dtype="auto" if keep_type else torch.float32,
            trust_remote_code=base.trust_remote_code,
            attn_implementation=attention,
        )
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

    ``model`` is unwrapped and ``state`` its full state dict, gathered. Method "lora" saves the adapter alone;
    "attention" the tensors that trained (see :mod:`kvray.models.changed`), unless the base's files have them under
    other names; all else a whole model with its tokenizer and generation config. Whole or not, weights are in the
    base's own type.
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
        described = json.loads((out_dir / "adapter_config.json").read_text())
        described["target_modules"].sort()  # a set in peft, whose order differs from process to process
        (out_dir / "adapter_config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
        return
    base = base.here()
    own = config_of(base).dtype or torch.float32
    if method == "attention":
        trains = [name for name, weight in model.named_parameters() if weight.requires_grad]
        # transformers names them as its files do, which may differ from the modules' names.
        model.save_pretrained(
            out_dir, state_dict={name: state[name].to(own) for name in trains}, max_shard_size=_ONE_FILE
        )
        if changed.describe(out_dir, base, method):
            return
    model.save_pretrained(out_dir, state_dict={name: tensor.to(own) for name, tensor in state.items()})
    config = json.loads((out_dir / "config.json").read_text())
    config["dtype"] = str(own).removeprefix("torch.")
    config["use_cache"] = True
    config.pop("_name_or_path", None)
    (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    load_tokenizer(base).save_pretrained(out_dir)
    model.generation_config.save_pretrained(out_dir)


def spreads_weights(shape: Shape, runtime: Runtime) -> bool:
    """Return whether workers of this shape share the weights among them."""
    return runtime.strategy == "fsdp" and shape.workers > 1


def _tidy() -> None:
    """Free what an earlier finetune held: its model, optimizer and Trainer refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Resident:
    """Gives each finetune a model of its own, whose frozen tensors are those of one base model that stays loaded.

    A finetune's model is a copy of the base's modules that shares the tensors which it leaves alone, so whatever
    training does to modules (adapters, hooks, a wrapped forward) ends with it, and the result is that of a fresh load,
    to the byte. Tensors that train are copied too; the base's own wait on the CPU for the next finetune.

    A method that trains all tensors leaves nothing to share, and FSDP takes the tensors themselves apart: both load the
    base afresh every time.
    """

    def __init__(self, base: BaseModelRef, shape: Shape, runtime: Runtime) -> None:
        self._base = base
        self._gpu = shape.gpus > 0
        self._fsdp = spreads_weights(shape, runtime)
        self._held: Any = None

    @cached_property
    def config(self) -> Any:
        """The base model's transformers config."""
        return config_of(self._base)

    @cached_property
    def attention(self) -> str | None:
        """How attention is computed here; see :func:`kvray.finetune.attention.choose`."""
        half = self._gpu and torch.cuda.is_bf16_supported()
        return attention.choose(self.config, torch.cuda.get_device_capability() if half else None)

    def load(self) -> None:
        """Load the base model unless it is loaded, or cannot be shared; raises as :func:`load`."""
        if self._held is None and not self._fsdp:
            self._held = self._load("lora").requires_grad_(False)

    def model(self, method: str) -> Any:
        """Return a model to finetune by ``method``; its tensors that train have ``requires_grad``, apart from adapters.

        Only one such model may be in use at a time. Raises as :func:`load`.
        """
        _tidy()
        if self._fsdp or method == "full":
            self._held = None
            return self._load(method)
        self.load()
        trains = attention_projections(self._held).values() if method == "attention" else ()
        own = {id(tensor): tensor for module in trains for tensor in module.parameters()}
        for tensor in own.values():
            tensor.data = tensor.data.cpu()  # an adapter's finetune takes the whole base to the GPU
        shared = {id(tensor): tensor for tensor in self._held.parameters() if id(tensor) not in own}
        model = copy.deepcopy(self._held, dict[int, Any](shared))
        for tensor in model.parameters():
            tensor.requires_grad_(id(tensor) not in shared)
        return model

    def _load(self, method: str) -> Any:
        return load(self._base, method, gpu=self._gpu, fsdp=self._fsdp, attention=self.attention)
