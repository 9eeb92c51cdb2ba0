"""Rows to batches and to the loss: the order in which a finetune sees rows, their padding, the answers' cross entropy.

The order follows from (seed, sizes) by counter-based draws, so all workers compute the same one, after any restart too.
Logits are computed for the answers alone (``logits_to_keep`` of transformers' causal models, for which padding is on
the left): a row of the paper has some 3,900 tokens, 30 of them with loss; all its logits would take 0.5 GB at a
vocabulary of 32K.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kvray.finetune.encode import Encoded
from kvray.planning.mixture import permutation

BLANK = -1
"""Stands for no row: fills the last batch of an epoch and carries no loss."""
IGNORED = -100
"""Label of a position without loss."""


def schedule(lengths: NDArray[np.integer], batch_size: int, epochs: float, seed: int) -> NDArray[np.int64]:
    """Return the rows of each optimizer step: indices, shape ``(steps, batch_size)``; ``lengths`` are tokens per row.

    Each epoch is a fresh shuffle drawn by ``seed``; a fraction of ``epochs`` stops within one. The last batch of an
    epoch is filled with :data:`BLANK`, so that the rows of a step never depend on the number of workers. Rows go from
    long to short within a step, so that its micro-batches need less padding; the sum of gradients is the same.
    """
    count = len(lengths)
    per_epoch = -(-count // batch_size)
    steps = max(1, round(epochs * per_epoch))
    batches = []
    for epoch in range(-(-steps // per_epoch)):
        order = np.full(per_epoch * batch_size, BLANK, np.int64)
        order[:count] = permutation(seed, f"epoch/{epoch}", count)
        batches.append(order.reshape(per_epoch, batch_size))
    table = np.concatenate(batches)[:steps]
    size = np.where(table == BLANK, 0, lengths[table])
    return np.take_along_axis(table, np.argsort(-size, axis=1, kind="stable"), axis=1)


def scheduled(rows: Encoded, order: NDArray[np.int64], filler: int) -> list[tuple[NDArray[np.int32], int]]:
    """Return (ids, answer tokens) of the rows at the indices ``order``; BLANK is the one token ``filler``, no loss."""
    blank = np.array([filler], np.int32), 0
    answers = rows.answers.tolist()
    return [blank if index == BLANK else (rows.ids[index], answers[index]) for index in order.ravel().tolist()]


def collate(items: list[tuple[NDArray[np.int32], int]], pad_id: int) -> dict[str, Any]:
    """Pad rows on the left into one batch.

    Returns ``input_ids``, ``attention_mask``, ``position_ids`` (int64, shape ``(rows, longest)``), ``logits_to_keep`` =
    longest answer + 1, and ``labels``, shape ``(rows, logits_to_keep)``, aligned with the kept positions, not shifted.
    """
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


def pack(items: list[tuple[NDArray[np.int32], int]]) -> dict[str, Any]:
    """Join rows one behind the other into a batch of one, without padding, for attention that knows where rows begin.

    Returns ``input_ids``, ``position_ids`` (int64, ``(1, tokens)``; a row's own start at 0), ``cu_seq_lens_q`` and
    ``cu_seq_lens_k`` (int32, ``(rows + 1,)``: where rows begin and end), ``max_length_q`` and ``max_length_k`` (tokens
    of the longest), ``logits_to_keep`` (int64, ``(kept,)``: of each row its answer and the token before it), and
    ``labels``, ``(1, kept)``, aligned with these. The first of each row has none, so :class:`SplitLoss` compares
    nothing across rows.
    """
    lengths = np.array([len(ids) for ids, _ in items])
    ends = lengths.cumsum()
    kept, labels = [], []
    for (ids, answer), end in zip(items, ends.tolist(), strict=True):
        keep = min(len(ids), answer + 1)
        kept.append(np.arange(end - keep, end))
        labels.append(np.concatenate([np.full(keep - answer, IGNORED, np.int64), ids[len(ids) - answer :]]))
    starts = torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32))
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(np.concatenate([ids for ids, _ in items]).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
        "logits_to_keep": torch.from_numpy(np.concatenate(kept)),
        "labels": torch.from_numpy(np.concatenate(labels).astype(np.int64))[None],
    }


def holds_digit(tokenizer: Any, vocabulary: int) -> NDArray[np.bool_]:
    """Return which tokens hold a digit, shape ``(vocabulary,)``; ids that the tokenizer lacks hold none."""
    ids = range(min(vocabulary, len(tokenizer)))
    digits = np.zeros(vocabulary, np.bool_)
    for token, text in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        # Byte tokens are written <0x0A>: their digits are no text.
        digits[token] = any(c.isdigit() for c in text or "") and not (text or "").startswith("<")
    return digits


class SplitLoss:
    """The loss; also sums those of integers (tokens in ``integers``, ``(vocabulary,)``) and words (paper, fig. 4)."""

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
