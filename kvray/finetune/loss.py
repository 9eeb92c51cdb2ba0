"""Answer-only loss over left-padded batches, with logits at the answers alone.

A row of the paper is some 3,900 tokens of which 30 carry loss. Padding on the left puts all answers at the right edge,
so that ``logits_to_keep`` of transformers' causal models cuts the head's work (and its logit matrix: 0.5 GB a row at a
vocabulary of 32K) to those few positions. The value is the same as with all logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvray.finetune.encode import Encoded
from kvray.finetune.schedule import BLANK

IGNORED = -100
"""Label of a position without loss."""


class ScheduledRows:
    """Rows in the order of a schedule: a map-style dataset for a torch DataLoader.

    Args:
        rows: the encoded rows.
        order: row indices, shape ``(n,)``; BLANK stands for a row of one token without loss.
        filler: the token of a blank row.
    """

    def __init__(self, rows: Encoded, order: NDArray[np.int64], filler: int) -> None:
        self._rows = rows
        self._order = order
        self._filler = np.array([filler], np.int32)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, at: int) -> tuple[NDArray[np.int32], int]:
        """Return (ids, answer tokens) of the row at place ``at`` of the order."""
        index = int(self._order[at])
        if index == BLANK:
            return self._filler, 0
        return self._rows.row(index), int(self._rows.answers[index])


def collate(items: list[tuple[NDArray[np.int32], int]], pad_id: int) -> dict[str, Any]:
    """Pad rows on the left into one batch.

    Returns:
        ``input_ids``, ``attention_mask``, ``position_ids`` (int64, shape ``(rows, longest)``), ``logits_to_keep`` =
        longest answer + 1, and ``labels`` of shape ``(rows, logits_to_keep)``, aligned with the kept positions, not
        shifted (the first column is always ignored).
    """
    import torch

    width = max(len(ids) for ids, _ in items)
    keep = min(width, max(answer for _, answer in items) + 1)
    input_ids = np.full((len(items), width), pad_id, np.int64)
    mask = np.zeros((len(items), width), np.int64)
    labels = np.full((len(items), keep), IGNORED, np.int64)
    for row, (ids, answer) in enumerate(items):
        input_ids[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
        if answer:
            labels[row, keep - answer :] = ids[-answer:]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(mask),
        # A row's own positions start at 0 whatever its padding, as they do when it is asked alone.
        "position_ids": torch.from_numpy(np.maximum(mask.cumsum(axis=1) - 1, 0)),
        "logits_to_keep": keep,
        "labels": torch.from_numpy(labels),
    }


def answer_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """Return the cross entropy summed over answer tokens, divided by ``num_items_in_batch``.

    Args:
        outputs: of a causal model run on :func:`collate`'s batch; logits of shape ``(rows, kept, vocabulary)``.
        labels: shape ``(rows, kept)``.
        num_items_in_batch: answer tokens of the whole optimizer step, over all micro-batches and workers (transformers'
            Trainer counts them), so that every token weighs the same however a step is cut; this batch's own if None.
    """
    return _weighed(*_token_losses(outputs, labels), num_items_in_batch)


class SplitLoss:
    """:func:`answer_loss` that also sums, apart, the losses of integers and of the words around them (paper, fig. 4).

    Args:
        integers: which tokens of the vocabulary hold a digit, shape ``(vocabulary,)``.
    """

    def __init__(self, integers: NDArray[np.bool_]) -> None:
        self._integers = integers
        self._sums = np.zeros((2, 2))

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Return the loss, as :func:`answer_loss` does."""
        losses, targets = _token_losses(outputs, labels)
        said = targets != IGNORED
        digits = self._integers[targets[said].cpu().numpy()]
        values = losses.detach()[said].cpu().numpy()
        for kind, mask in enumerate((digits, ~digits)):
            self._sums[kind] += (values[mask].sum(), mask.sum())
        return _weighed(losses, targets, num_items_in_batch)

    def take(self) -> tuple[float | None, float | None]:
        """Return the mean losses (of integers, of words) since the last call; None where there was no such token."""
        integers, words = (float(total / count) if count else None for total, count in self._sums)
        self._sums = np.zeros((2, 2))
        return integers, words


def holds_digit(tokenizer: Any, vocabulary: int) -> NDArray[np.bool_]:
    """Return which tokens hold a digit, shape ``(vocabulary,)``; ids that the tokenizer lacks hold none."""
    ids = range(min(vocabulary, len(tokenizer)))
    found = np.zeros(vocabulary, np.bool_)
    for token, text in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        # Byte tokens are written <0x0A>: their digits are no text.
        found[token] = any(c.isdigit() for c in text or "") and not (text or "").startswith("<")
    return found


def _token_losses(outputs: Any, labels: Any) -> tuple[Any, Any]:
    """Return the cross entropy of every kept position and its target, both of shape ``(rows * kept,)``."""
    import torch

    logits = outputs["logits"][:, :-1].float()
    targets = labels[:, 1:].reshape(-1)
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses, targets


def _weighed(losses: Any, targets: Any, num_items_in_batch: Any) -> Any:
    count = num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum()
    return losses.sum() / count
