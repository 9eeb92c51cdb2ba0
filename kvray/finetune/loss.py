"""The loss of a finetune: cross entropy over answer tokens alone, split into integers and words for the log."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvray.finetune.batches import IGNORED


class SplitLoss:
    """The loss; also sums the losses of integers and of the words around them (paper, fig. 4) for the log.

    ``integers`` marks the tokens of the vocabulary that hold a digit, shape ``(vocabulary,)``.
    """

    def __init__(self, integers: NDArray[np.bool_]) -> None:
        self._integers = integers
        self._sums = np.zeros((2, 2))

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the cross entropy summed over answer tokens, divided by ``num_items_in_batch``.

        ``outputs`` has logits of shape ``(rows, kept, vocabulary)``, ``labels`` is ``(rows, kept)``. transformers'
        Trainer counts ``num_items_in_batch`` over all micro-batches and workers of the optimizer step, so that every
        token weighs the same however a step is cut; None counts this batch alone.
        """
        logits = outputs["logits"][:, :-1].float()
        targets = labels[:, 1:].reshape(-1)
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="none"
        )
        counted = targets != IGNORED
        digits = self._integers[targets[counted].cpu().numpy()]
        values = losses.detach()[counted].cpu().numpy()
        for kind, mask in enumerate((digits, ~digits)):
            self._sums[kind] += (values[mask].sum(), mask.sum())
        return losses.sum() / (counted.sum() if num_items_in_batch is None else num_items_in_batch)

    def take(self) -> tuple[float | None, float | None]:
        """Return the mean losses of integers and of words since the last call; None for no such token."""
        integers, words = (float(total / count) if count else None for total, count in self._sums)
        self._sums = np.zeros((2, 2))
        return integers, words


def holds_digit(tokenizer: Any, vocabulary: int) -> NDArray[np.bool_]:
    """Return which tokens hold a digit, shape ``(vocabulary,)``; ids that the tokenizer lacks hold none."""
    ids = range(min(vocabulary, len(tokenizer)))
    digits = np.zeros(vocabulary, np.bool_)
    for token, text in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        # Byte tokens are written <0x0A>: their digits are no text.
        digits[token] = any(c.isdigit() for c in text or "") and not (text or "").startswith("<")
    return digits
