"""What an engine is made of, and what its process is told through its environment."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvray.errors import ResourceError
from kvray.evaluate.engines import vllm
from kvray.evaluate.engines.base import Serving
from kvray.evaluate.engines.vllm import VllmEngine
from kvray.models.files import ModelFiles
from kvray.models.reference import BUNDLED, resolve
from kvray.sweep.model import Runtime


@pytest.mark.parametrize("gpu", [False, True])
def test_every_vllm_variable_is_one_that_vllm_reads(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    # A misspelt one is ignored without a word.
    import vllm.envs as read

    monkeypatch.setattr(os, "environ", {})
    VllmEngine.prepare(float(gpu), 2)
    set_ = {name for name in os.environ if name.startswith("VLLM")}
    assert set_ and set_ <= set(read.environment_variables)


def test_a_users_own_log_level_stays_and_engines_are_not_bound_to_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "INFO"})
    VllmEngine.prepare(0, 1.5)
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    "changes",
    [
        {"max_position_embeddings": 2048},
        {"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        {"max_position_embeddings": 65536},
    ],
)
def test_a_plan_takes_a_model_s_context_to_be_what_vllm_derives(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = tmp_path / "model"
    shutil.copytree(BUNDLED["kvray-tiny"], model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))
    serving = Serving(resolve(str(model)), Runtime())
    assert ModelFiles(model).served_length == vllm.model_config(serving).max_model_len


def test_an_engine_makes_room_for_its_adapters_alone() -> None:
    def options(*ranks: int) -> dict[str, Any]:
        serving = Serving(resolve("kvray-tiny"), Runtime(max_loras=4, kv_cache_gib=1), ranks=ranks)
        return vllm.engine_options(serving, 64)

    chosen = options(4, 17)
    assert (chosen["max_loras"], chosen["max_lora_rank"], chosen["trust_remote_code"]) == (2, 32, False)
    assert "max_loras" not in options() and "enable_lora" not in options()
    assert (options(*[8] * 9)["max_loras"], options(*[8] * 9)["max_cpu_loras"]) == (4, 9)
    assert options(*[8] * 900)["max_cpu_loras"] == vllm.CPU_LORAS


def test_half_a_gpu_takes_half_of_its_memory() -> None:
    serving = Serving(resolve("kvray-tiny"), Runtime(gpu_memory_utilization=0.8), gpus=0.5)
    chosen = vllm.engine_options(serving, 64)
    assert chosen["dtype"] == "auto" and chosen["gpu_memory_utilization"] == pytest.approx(0.4)
    assert "kv_cache_memory_bytes" not in chosen and "max_num_seqs" not in chosen  # vLLM's own choice


def test_a_model_in_two_formats_is_read_as_its_finetune_will_be(tmp_path: Path) -> None:
    # Mistral's own repositories have both; a finetune has the files of transformers alone.
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    plain, both = BUNDLED["kvray-tiny"], tmp_path / "both"
    shutil.copytree(plain, both)
    shutil.copy(plain / "model.safetensors", both / "consolidated.safetensors")
    names = dict.fromkeys(ModelFiles(plain).tensor_names(), "model.safetensors")
    (both / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (both / "params.json").write_text(json.dumps({"dim": 8, "n_layers": 1, "n_heads": 1, "vocab_size": 9}))
    serving = Serving(resolve(str(both)), Runtime())
    found, expected = (vllm.model_config(each) for each in (serving, Serving(resolve(str(plain)), Runtime())))
    assert found.config_format == "hf"
    assert found.tokenizer_mode == "hf"
    assert found.hf_config.hidden_size == expected.hf_config.hidden_size
    loader = DefaultModelLoader(EngineArgs(**vllm.model_options(serving)).create_load_config())
    _, files, *_ = loader._prepare_weights(str(both), None, None, fall_back_to_pt=False, allow_patterns_overrides=None)
    assert [Path(file).name for file in files] == ["model.safetensors"]


def test_what_vllm_says_of_memory_names_the_knob_and_ends_what_would_end_alike() -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory
    from vllm.v1.worker.utils import request_memory

    full = {"device_": "cuda:0", "free_memory": 2**30, "total_memory": 80 * 2**30}
    said: list[Exception] = []
    for available in (0, 2**30):
        with pytest.raises(ValueError, match="memory") as failure:
            _check_enough_kv_cache_memory(available, lambda: 16 * 2**30, 131072, lambda _: 8192)
        said.append(failure.value)
    with pytest.raises(ValueError, match="Free memory") as failure:
        request_memory(SimpleNamespace(**full), SimpleNamespace(gpu_memory_utilization=0.9))
    said.append(failure.value)
    cache, length, others = (vllm.explained(each, ResourceError) for each in said)
    for error in (cache, length):
        assert isinstance(error, ResourceError) and "runtime.gpu_memory_utilization" in str(error)
    assert "131072" in str(length), "vLLM's own words, with the numbers, are there, too"
    assert not isinstance(others, ResourceError) and "other processes hold memory of this GPU" in str(others)
    strange = ValueError("unknown architecture")
    assert vllm.explained(strange, ResourceError) is strange
