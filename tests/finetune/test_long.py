"""Rows of 24K tokens: gradient checkpointing and FSDP change no loss, and memory grows with the length alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvray.models.reference import BaseModelRef, resolve

SHORT, LONG = 4096, 24576
VOCABULARY = 32_000


@pytest.fixture(scope="module")
def wide(mini: BaseModelRef, tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    """The mini model with one head, which is quick, and 32,000 tokens: logits of all of 24K positions would be 3 GB."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    home = tmp_path_factory.mktemp("wide")
    shutil.copytree(mini.location, home, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    config = json.loads((home / "config.json").read_text()) | {"vocab_size": VOCABULARY} | one_head
    (home / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(home)).save_pretrained(home)
    return resolve(str(home))


def started(base: BaseModelRef, out: Path, runtime: dict[str, object], workers: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    asked = {"base": base.location, "out": str(out), "lengths": [SHORT, LONG], "runtime": runtime}
    script = [sys.executable, str(Path(__file__).with_name("long_process.py")), json.dumps(asked)]
    group = {"WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if workers > 1 else {}
    home = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if workers > 1 else {} for rank in range(workers)]
    return [subprocess.Popen(script, env={**os.environ, **home, **group, **rank}) for rank in ranks]


def found(out: Path) -> dict[str, dict[str, float]]:
    return json.loads((out / "0/found.json").read_text())


@pytest.mark.slow
def test_24k_tokens_train_the_same_sharded_and_checkpointed_and_memory_grows_with_the_length_alone(wide, tmp_path):
    plain, sharded = tmp_path / "plain", tmp_path / "sharded"
    workers = started(wide, plain, {}, 1)
    workers += started(
        wide, sharded, {"workers_per_finetune": 2, "strategy": "fsdp", "gradient_checkpointing": True}, 2
    )
    assert [worker.wait(240) for worker in workers] == [0, 0, 0]
    alone, together = found(plain), found(sharded)
    assert (together[str(LONG)]["strategy"], alone[str(LONG)]["strategy"]) == ("fsdp", "ddp")
    for value in ("loss", "norm"):
        assert together[str(LONG)][value] == pytest.approx(alone[str(LONG)][value], rel=1e-4)
    for run in (alone, together):
        # One byte for every pair of tokens would be 576 MiB, float32 logits of every position 3,000 MiB.
        assert run[str(LONG)]["peak"] - run[str(SHORT)]["peak"] < 400
