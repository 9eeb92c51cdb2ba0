"""The weights of a live vLLM engine, exchanged for those of a finetune and back.

vLLM copies new weights into the memory of the old ones, where captured CUDA graphs read them
(vllm/model_executor/model_loader/reload, 0.32). It makes each of its modules anew as soon as tensors for it come, and
one of them (``qkv_proj``) may be made of several of a checkpoint's (``q_proj``, ``k_proj``, ``v_proj``); what does not
come stays without a value. So tensors come by blocks, a layer's attention or its MLP, with all of a block's tensors.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvray.errors import CellError
from kvray.evaluate.engines.base import ADAPTER_CONFIG
from kvray.models.changed import CHANGED
from kvray.planning.process import expose_stacks

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # peft's, before every name of a module
_MATRICES = (".lora_A.weight", ".lora_B.weight")

Change = Callable[["Tensor"], "Tensor"]
"""Takes a tensor of the base model, returns the one in its place, on the same device."""


def block(name: str) -> str:
    """Return a tensor's block: ``model.layers.3.mlp`` of ``model.layers.3.mlp.experts.0.w1.weight``.

    That is a layer and the first module in it; a tensor outside the layers is a block of its own.
    """
    parts = name.split(".")
    layer = next((at for at, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[: layer + 2])


def changes(directory: Path) -> dict[str, Change]:
    """Return what a finetune's directory makes of tensors of the base model, by their names in its files.

    Of an adapter that is ``W + scale * B @ A`` (Hu et al. 2021, arXiv 2106.09685), computed in float32 and rounded to
    the type of ``W``, as peft's ``merge_and_unload`` does. Raises CellError if a file cannot be read, or the adapter is
    more than plain LoRA.
    """
    from safetensors import SafetensorError, safe_open

    adapted = (directory / ADAPTER_CONFIG).is_file()
    file = directory / (ADAPTER if adapted else CHANGED)
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise CellError(f"{file.name} cannot be read: {error}") from error
    if adapted:
        return _merged(directory / ADAPTER_CONFIG, tensors)
    return {name: _instead(tensor) for name, tensor in tensors.items()}


def _instead(new: "Tensor") -> Change:
    return lambda old: new.to(old.device, old.dtype)


def _merged(config: Path, tensors: Mapping[str, "Tensor"]) -> dict[str, Change]:
    try:
        values = json.loads(config.read_text())
        alpha, rooted, turned = float(values["lora_alpha"]), values.get("use_rslora"), values.get("fan_in_fan_out")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CellError(f"{config.name} is no readable adapter configuration ({error!r})") from error
    names = {name.removesuffix(end) for name in tensors for end in _MATRICES if name.endswith(end)}
    if len(tensors) != len(_MATRICES) * len(names) or values.get("alpha_pattern"):
        raise CellError("more than plain LoRA, which alone can be merged; set adapters: batched")

    def change(name: str) -> Change:
        down, up = (tensors[name + end] for end in _MATRICES)
        scale = alpha / (math.sqrt(len(down)) if rooted else len(down))

        def merge(old: "Tensor") -> "Tensor":
            added = scale * (up.to(old.device).float() @ down.to(old.device).float())
            return (old.float() + (added.T if turned else added)).to(old.dtype)

        return merge

    return {f"{name.removeprefix(_PREFIX)}.weight": change(name) for name in names}


class WeightExchange:
    """What a vLLM worker can do beside its own methods: an option of the engine adds this class to the worker's bases.

    Every worker of an engine takes its own part of the tensors.
    """

    vllm_config: Any
    model_runner: Any
    device: Any
    reload_weights: Callable[..., None]
    _exchanged: frozenset[str] | None = frozenset()  # blocks that are not the base model's; None: all may be others

    def exchange_weights(self, directory: str | None) -> str | None:
        """Load a finetune's weights, or the base model's again.

        Returns why they cannot be loaded, in which case nothing is changed; None if they are.
        """
        try:
            given = Path(directory) if directory else None
            if given and not any((given / name).is_file() for name in (ADAPTER_CONFIG, CHANGED)):
                blocks, tensors = None, self._tensors(str(given))
            else:
                blocks, tensors = self._changed(changes(given) if given else {})
        except CellError as error:
            return str(error)
        self._exchanged = None  # until all are loaded, they are nobody's
        self.reload_weights(weights_iterator=tensors)
        self._exchanged = blocks
        return None

    def expose_stacks(self) -> None:
        """Let this worker, maybe a process of its own, write its stack traces if the engine hangs."""
        expose_stacks()

    def _changed(self, made: Mapping[str, Change]) -> tuple[frozenset[str], Iterator[tuple[str, "Tensor"]]]:
        """Return the blocks that a finetune changes, and all tensors of these and of those changed before."""
        blocks = frozenset(map(block, made))
        old = self._exchanged
        # Tensors of safetensors files are mapped into memory: those that are not used are not read.
        base = {name: tensor for name, tensor in self._tensors() if old is None or block(name) in blocks | old}
        if unknown := sorted(made.keys() - base.keys()):
            raise CellError(f"{unknown[0]}: the base model has no such tensor ({len(unknown)} of {len(made)})")
        return blocks, (
            (name, made[name](tensor.to(self.device)) if name in made else tensor) for name, tensor in base.items()
        )

    def _tensors(self, directory: str | None = None) -> Iterator[tuple[str, "Tensor"]]:
        """Yield the tensors of a whole model's directory, by default of the base model, through vLLM's own loader."""
        from copy import copy

        from vllm.model_executor.model_loader import get_model_loader

        config = copy(self.vllm_config.model_config)
        if directory:
            config.model, config.model_weights, config.revision = directory, "", None
        loader = get_model_loader(self.vllm_config.load_config)
        yield from loader.get_all_weights(config, self.model_runner.get_model())
