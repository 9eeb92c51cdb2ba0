"""A base model small enough to finetune in a second, and rows for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from kvray.finetune.encode import Encoded, encode
from kvray.models.reference import BUNDLED, BaseModelRef, load_tokenizer, resolve


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    """kvray-tiny's tokenizer on a random Mistral of two layers, width 32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    home = tmp_path_factory.mktemp("mini")
    shutil.copytree(BUNDLED["kvray-tiny"], home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = json.loads((home / "config.json").read_text()) | small | heads
    (home / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(home)).save_pretrained(home)
    return resolve(str(home))


def _texts(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    prompts, answers = [], []
    for _ in range(count):
        numbers = rng.integers(100, 9999, rng.integers(4, 24))
        prompts.append(f"Which comes first: {', '.join(map(str, numbers))}?")
        answers.append(f"The first is {numbers[0]}." if numbers[0] % 2 else str(numbers[0]))
    return prompts, answers


@pytest.fixture(scope="session")
def texts() -> Callable[..., tuple[list[str], list[str]]]:
    """Makes prompts of uneven length that hold a number, and answers that repeat it."""
    return _texts


@pytest.fixture(scope="session")
def rows(mini: BaseModelRef) -> Encoded:
    """22 rows: one full batch of 16 and one of 6."""
    return encode(load_tokenizer(mini), *_texts(22))
