"""The plan says when rate, method and number of updates cannot move a model, and what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.planning.movement import ENOUGH, movement, sufficient_rate, too_gentle, updates
from kvray.sweep.model import Finetune

MISTRAL, TINY = 4096, 128


@pytest.mark.parametrize(
    ("knobs", "steps", "width", "expected"),
    [
        ({"method": "attention"}, 44, MISTRAL, 0.45),  # the paper's
        ({}, 44, MISTRAL, 0.675),  # our default for LoRA
        ({"learning_rate": 5e-6}, 44, MISTRAL, 0.0036),  # LoRA at the paper's rate for whole weights
        ({"learning_rate": 3e-4}, 44, TINY, 0.30),  # docs/LOG.md: no change beyond noise
        ({"learning_rate": 1e-3}, 44, TINY, 2.39),  # docs/LOG.md: 20 points
        ({"method": "attention", "learning_rate": 1e-3}, 44, TINY, 2.82),  # docs/LOG.md: 30 points
        ({"learning_rate": 2e-4, "lora_alpha": 16.0, "scheduler": "constant"}, 1875, 4096, 9200),  # QLoRA, section 5
        ({"method": "full", "learning_rate": 1e-5}, 470, 8192, 19.3),  # LIMA
    ],
)
def test_what_learned_moved_far_enough(knobs: dict[str, Any], steps: int, width: int, expected: float) -> None:
    assert movement(Finetune(**knobs), steps, width) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("knobs", "share"),
    [
        ({"scheduler": "linear"}, 0.5),
        ({"scheduler": "cosine"}, 0.5),
        ({"scheduler": "constant"}, 1.0),
        ({"scheduler": "linear", "warmup_ratio": 0.1}, 0.5),
        ({"scheduler": "constant", "warmup_ratio": 0.1}, 0.95),
    ],
)
def test_a_schedule_spends_its_share_of_the_rate(knobs: dict[str, Any], share: float) -> None:
    recipe = Finetune(method="full", learning_rate=1e-5, **knobs)
    assert movement(recipe, 1000, 100) == pytest.approx(share * 1e-5 * 1000 * 100)


@pytest.mark.parametrize("width", [TINY, 896, MISTRAL])
@pytest.mark.parametrize("method", ["lora", "attention", "full"])
@pytest.mark.parametrize("steps", [1, 44, 3000])
def test_the_rate_that_is_named_suffices_and_is_no_more_than_that(method: str, width: int, steps: int) -> None:
    recipe = Finetune(method=method)
    rate = sufficient_rate(recipe, steps, width)
    assert movement(recipe.model_copy(update={"learning_rate": rate}), steps, width) > ENOUGH
    assert movement(recipe.model_copy(update={"learning_rate": rate / 4}), steps, width) < ENOUGH
    assert float(f"{rate:.0e}") == pytest.approx(rate)


def test_updates_are_whole_batches_of_every_epoch() -> None:
    assert [updates(Finetune(epochs=epochs), 350) for epochs in (2, 1, 0.5, 0.01)] == [44, 22, 11, 1]


def artefact(mixture: str, rows: int, label: str = "lora", **knobs: Any) -> Artefact:
    job = FinetuneJob(Finetune(**knobs), 0, (("datasets/a-1", 1.0),))
    labels = {"mixture": mixture, "finetune": label, "seed": 0}
    return Artefact(f"finetunes/{mixture}", "finetune", mixture, "f", (), rows, 0, labels, {}, job)


def test_one_warning_per_kind_of_finetune_names_what_to_type() -> None:
    slow: dict[str, Any] = {"learning_rate": 5e-6}
    found = [artefact("ours", 350, **slow), artefact("few", 100, **slow), artefact("own", 350, "attention")]
    found[2] = replace(found[2], params=FinetuneJob(Finetune(method="attention"), 0, ()))
    (warning,) = too_gentle(found, MISTRAL)
    assert warning.startswith("finetune lora: 14 updates at learning rate 5e-06 (mixture few) move ")
    assert "4,096 features" in warning and "Set finetune.learning_rate: 4.0e-04 or higher" in warning
    (warning,) = too_gentle([artefact("ours", 1, epochs=1)], None)
    assert "1 update at" in warning and "the width of a 7B model" in warning
    assert list(too_gentle([artefact("ours", 350)], MISTRAL)) == []
