"""Finetunes without any training: files as the stage writes them, of what was changed by lot."""

from __future__ import annotations

from pathlib import Path

from kvray.finetune import model as models
from kvray.models.reference import BaseModelRef
from kvray.sweep.model import Finetune


def finetuned(base: BaseModelRef, recipe: Finetune, into: Path, seed: int = 0) -> Path:
    """Write a finetune of a base model to a directory and return it; what its method trains is moved a little."""
    import torch

    torch.manual_seed(seed)
    model = models.prepare(models.load(base, recipe.method, gpu=False, fsdp=False), recipe)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and (recipe.method != "lora" or "lora_B" in name):
                weight.add_(torch.randn_like(weight) * 0.05)
    models.save(model, model.state_dict(), base, recipe.method, into)
    return into
