"""vLLM opens what was exported: merged weights as a model, the adapter on the base that lies beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvray.driver.export.export import Options, export
from kvray.store.store import Store

pytestmark = pytest.mark.slow
PROMPTS = np.random.default_rng(0).integers(300, 1000, (24, 40)).tolist()


def by_vllm(*folders: Path) -> list[list[list[int]]]:
    script = Path(__file__).with_name("vllm_process.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders)],
        input=json.dumps(PROMPTS),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[list[list[int]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_transformers(model: Any) -> list[list[int]]:
    import torch

    ids = torch.tensor(PROMPTS)
    options = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "eos_token_id": [0], "pad_token_id": 1}
    mask = torch.ones_like(ids)
    written: list[list[int]] = model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()
    return written


def alike(a: list[list[int]], b: list[list[int]]) -> float:
    """Return the share of answers that are the same; rounding may turn a near tie."""
    return float(np.mean([one == other for one, other in zip(a, b, strict=True)]))


def test_vllm_serves_the_exported_adapter_and_the_merged_model_as_peft_and_transformers_do(
    store: Store, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    export(store, "small/kv/1", adapter)
    export(store, "small/kv/1", merged, Options(merged=True))
    base = AutoModelForCausalLM.from_pretrained(adapter / "base")
    plain = by_transformers(base)
    tuned = by_transformers(PeftModel.from_pretrained(base, adapter))
    assert alike(plain, tuned) < 0.5
    without, with_adapter = by_vllm(adapter / "base", adapter)
    (whole,) = by_vllm(merged)
    assert alike(without, plain) > 0.8
    assert alike(with_adapter, tuned) > 0.8
    assert alike(whole, tuned) > 0.8
