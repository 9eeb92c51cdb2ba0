"""What an engine's process is told through its environment."""

from __future__ import annotations

import os

import pytest

from kvray.evaluate.settings import prepare_environment


@pytest.mark.parametrize("gpu", [False, True])
def test_every_vllm_variable_is_one_that_vllm_reads(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    # A misspelt one is ignored without a word.
    import vllm.envs

    monkeypatch.setattr(os, "environ", {})
    prepare_environment(gpu, 2)
    set_ = {name for name in os.environ if name.startswith("VLLM")}
    assert set_ and set_ <= set(vllm.envs.environment_variables)


def test_a_users_own_log_level_stays_and_engines_are_not_bound_to_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "INFO"})
    prepare_environment(False, 1.5)
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind" and os.environ["OMP_NUM_THREADS"] == "1"
