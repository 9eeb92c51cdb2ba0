"""As many rows pass through a model at a time as the memory holds; what cannot fit is refused before it is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvray.errors import InputError
from kvray.finetune.fit import FILLED, Fit, fit, largest, training_of
from kvray.finetune.placement import Shape
from kvray.models.memory import Batch, Training, decoder_of
from kvray.sweep.model import Finetune, Runtime

GB = 10**9
MISTRAL_7B = decoder_of(
    {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 32000, "dtype": "bfloat16",
    }
)  # fmt: skip
ONE = Shape(1, 1, 1)
LENGTHS = np.full((3, 16), 3900)
ANSWERS = np.full((3, 16), 30)


def of(method: str, workers: int = 1) -> Training:
    assert MISTRAL_7B is not None
    return Training(MISTRAL_7B, method, ("q_proj", "k_proj", "v_proj", "o_proj"), 16, True, workers)


def fitted(method: str, memory: int | None, shape: Shape = ONE, packed: bool = True, **runtime: Any) -> Fit:
    return fit(of(method), LENGTHS, ANSWERS, shape, Runtime(**runtime), memory, packed)


@pytest.mark.parametrize(
    ("method", "memory", "runtime", "expected"),
    [
        ("lora", 80 * GB, {}, Fit(2, 8, False)),
        ("lora", 141 * GB, {}, Fit(4, 4, False)),
        ("lora", 24 * GB, {}, Fit(2, 8, True)),
        ("attention", 80 * GB, {}, Fit(1, 16, False)),
        ("attention", 40 * GB, {}, Fit(1, 16, True)),
        ("lora", 80 * GB, {"gradient_checkpointing": True}, Fit(16, 1, True)),
        ("lora", 80 * GB, {"per_device_batch_size": 8}, Fit(8, 2, True)),
        ("lora", 80 * GB, {"per_device_batch_size": 8, "gradient_checkpointing": False}, Fit(8, 2, False)),
        ("lora", None, {}, Fit(4, 4, False)),
        ("lora", None, {"per_device_batch_size": 7, "gradient_checkpointing": True}, Fit(4, 4, True)),
    ],
)
def test_the_most_rows_that_fit_and_recomputing_only_where_it_must_be(method, memory, runtime, expected):
    assert fitted(method, memory, **runtime) == expected


def test_what_is_chosen_fits_and_twice_as_much_would_not():
    for memory in range(30 * GB, 200 * GB, 17 * GB):
        chosen = fitted("lora", memory)
        at = [of("lora").peak(largest(LENGTHS, ANSWERS, rows, True), chosen.checkpointing) for rows in (1, 2, 4, 8, 16)]
        rows = [1, 2, 4, 8, 16].index(chosen.rows)
        assert at[rows] <= FILLED * memory
        assert chosen.rows == 16 or at[rows + 1] > FILLED * memory


def test_workers_share_a_batch_and_unknown_models_take_a_row_at_a_time():
    assert fitted("lora", 80 * GB, Shape(4, 1, 1)) == Fit(2, 2, False)
    assert fit(None, LENGTHS, ANSWERS, ONE, Runtime(), 80 * GB, False) == Fit(1, 16, False)
    with pytest.raises(InputError, match="batch_size 16 cannot be shared evenly"):
        fitted("lora", 80 * GB, Shape(3, 1, 1))


def test_a_method_that_cannot_fit_is_an_error_that_says_what_would():
    with pytest.raises(InputError) as error:
        fitted("attention", 24 * GB)
    assert str(error.value) == (
        "finetune.method: attention of a 7.2B model on rows of 3,900 tokens needs about 38 GB on one GPU (36 GB of it "
        "weights, gradients and optimizer), this GPU has 24 GB: use lora, more runtime.workers_per_finetune with "
        "runtime.strategy: fsdp or shorter rows"
    )
    with pytest.raises(InputError, match=r"use runtime.gradient_checkpointing: true, more"):
        fitted("lora", 24 * GB, gradient_checkpointing=False)
    fit(of("full", 8), LENGTHS, ANSWERS, Shape(8, 1, 1), Runtime(strategy="fsdp"), 80 * GB, True)


def test_the_largest_micro_batch_is_of_the_longest_rows_with_their_padding():
    lengths, answers = np.array([[9, 8, 5, 1], [7, 7, 7, 2]]), np.array([[2, 3, 1, 0], [1, 1, 1, 1]])
    assert largest(lengths, answers, 2, packed=True) == Batch(17, 2, 9, 7)
    assert largest(lengths, answers, 2, packed=False) == Batch(18, 2, 9, 8, masked=True)
    assert largest(lengths, answers, 1, packed=False) == Batch(9, 1, 9, 4, masked=False)


def test_what_trains_is_read_from_the_config_and_the_recipe():
    from transformers import MistralConfig

    config, shape = MistralConfig(dtype="bfloat16"), Shape(2, 1, 1)
    alone = training_of(config, Finetune(), shape, Runtime(), mixed=True)
    assert alone == Training(alone.decoder, "lora", ("q_proj", "k_proj", "v_proj", "o_proj"), 16, True, 1)
    assert alone.decoder.weights == pytest.approx(7.242e9, rel=1e-3)
    everything = training_of(config, Finetune(lora_targets="all-linear"), shape, Runtime(strategy="fsdp"), mixed=True)
    assert len(everything.targets) == 7
    assert everything.workers == 2
