"""The loss with logits at the answers alone equals the loss over all positions of unpadded rows."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.finetune.batches import BLANK, IGNORED, SplitLoss, collate, holds_digit, scheduled


@pytest.fixture(scope="module")
def model(mini):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(mini.location, dtype=torch.float32)


def items(rows, indices):
    return scheduled(rows, np.array(indices), 0)


def answer_loss(outputs, labels, **step):
    return SplitLoss(np.zeros(outputs["logits"].shape[-1], np.bool_))(outputs, labels, **step)


def full_loss(model, rows, indices):
    """Sum over rows, one by one, unpadded, all logits, answer positions picked afterwards; and the tokens counted."""
    import torch

    total, count = 0.0, 0
    for i in indices:
        ids = torch.from_numpy(rows.ids[i].astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + losses[-int(rows.answers[i]) :].sum()
        count += int(rows.answers[i])
    return total, count


def test_it_equals_the_full_logit_loss_and_so_do_its_gradients(model, rows):
    import torch

    indices = [0, 5, 9, 21]
    assert len({int(n) for n in rows.lengths[indices]}) > 1
    assert len({int(n) for n in rows.answers[indices]}) > 1
    batch = collate(items(rows, indices), pad_id=0)
    labels = batch.pop("labels")
    ours = answer_loss(model(**batch), labels)
    mine = torch.autograd.grad(ours, list(model.parameters()))
    total, count = full_loss(model, rows, indices)
    theirs = torch.autograd.grad(total / count, list(model.parameters()))
    assert ours.item() == pytest.approx((total / count).item(), abs=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_logits_are_made_at_answer_positions_only(model, rows):
    indices = [0, 5, 9, 21]
    batch = collate(items(rows, indices), pad_id=0)
    assert batch["logits_to_keep"] == int(rows.answers[indices].max()) + 1
    labels = batch.pop("labels")
    assert model(**batch).logits.shape[:2] == labels.shape
    assert int((labels != IGNORED).sum()) == int(rows.answers[indices].sum())


def test_micro_batches_of_a_step_add_up_to_the_whole_step(model, rows):
    indices = [3, 4, 7, 11, 12, 20]
    count = int(rows.answers[indices].sum())

    def loss(part):
        batch = collate(items(rows, part), pad_id=0)
        labels = batch.pop("labels")
        return answer_loss(model(**batch), labels, num_items_in_batch=count).item()

    whole = loss(indices)
    assert loss(indices[:2]) + loss(indices[2:]) == pytest.approx(whole, abs=1e-5)
    assert sum(loss([i]) for i in indices) == pytest.approx(whole, abs=1e-5)


def test_a_blank_row_adds_nothing(model, rows):
    def loss(part):
        batch = collate(items(rows, part), pad_id=0)
        labels = batch.pop("labels")
        return answer_loss(model(**batch), labels, num_items_in_batch=7).item()

    assert loss([2, BLANK]) == pytest.approx(loss([2]), abs=1e-6)
    assert loss([BLANK, BLANK]) == 0.0


def test_losses_of_integers_and_of_words_add_up_to_the_loss(model, rows, mini):
    from kvray.models.reference import load_tokenizer

    digits = holds_digit(load_tokenizer(mini), model.config.vocab_size)
    assert digits.any() and not digits.all()
    split = SplitLoss(digits)
    indices = [0, 5, 9, 21]
    batch = collate(items(rows, indices), pad_id=0)
    labels = batch.pop("labels")
    assert split(model(**batch), labels).item() == pytest.approx(answer_loss(model(**batch), labels).item(), abs=1e-6)
    ids = np.concatenate([rows.ids[i][-int(rows.answers[i]) :] for i in indices])
    share = digits[ids].mean()
    assert 0 < share < 1
    integers, words = split.take()
    total = answer_loss(model(**batch), labels).item()
    assert share * integers + (1 - share) * words == pytest.approx(total, abs=1e-5)
    assert split.take() == (None, None)
