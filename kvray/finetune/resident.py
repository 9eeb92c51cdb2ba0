"""The base model of a process, loaded once for the finetunes that follow one another in it. No Ray here."""

import copy
import gc
from typing import Any

import torch

from kvray.finetune import model as models
from kvray.finetune.placement import Shape
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Runtime


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

    def load(self) -> None:
        """Load the base model unless it is loaded, or cannot be shared; raises as :func:`kvray.finetune.model.load`."""
        if self._held is None and not self._fsdp:
            self._held = models.load(self._base, "lora", gpu=self._gpu, fsdp=False).requires_grad_(False)

    def model(self, method: str) -> Any:
        """Return a model to finetune by ``method``; its tensors that train have ``requires_grad``, apart from adapters.

        Only one such model may be in use at a time. Raises as :func:`kvray.finetune.model.load`.
        """
        _tidy()
        if self._fsdp or method == "full":
            self._held = None
            return models.load(self._base, method, gpu=self._gpu, fsdp=self._fsdp)
        self.load()
        trains = models.attention_projections(self._held).values() if method == "attention" else ()
        own = {id(tensor): tensor for module in trains for tensor in module.parameters()}
        for tensor in own.values():
            tensor.data = tensor.data.cpu()  # an adapter's finetune takes the whole base to the GPU
        shared = {id(tensor): tensor for tensor in self._held.parameters() if id(tensor) not in own}
        model = copy.deepcopy(self._held, dict[int, Any](shared))
        for tensor in model.parameters():
            tensor.requires_grad_(id(tensor) not in shared)
        return model


def spreads_weights(shape: Shape, runtime: Runtime) -> bool:
    """Return whether workers of this shape share the weights among them."""
    return runtime.strategy == "fsdp" and shape.workers > 1


def _tidy() -> None:
    """Free what an earlier finetune held: its model, optimizer and Trainer refer to each other in circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
