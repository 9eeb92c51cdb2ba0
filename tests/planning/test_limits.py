"""What a model or its workers would refuse is refused by the plan, at the value that is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_tasks import Toy

from kvray.driver import run
from kvray.errors import InputError
from kvray.models import lora
from kvray.models.memory import decoder_of
from kvray.models.reference import BaseModelRef
from kvray.planning import limits
from kvray.planning.lengths import Lengths, estimated
from kvray.planning.limits import Limits
from kvray.sweep.model import Finetune, Sweep
from kvray.tasks.base import REGISTRY, Task

BASE = BaseModelRef("acme/m", "acme/m", "1", "hub:acme/m@1")
KNOWN = Limits(BASE, trained=1000, served=2000, modules=frozenset({"attn.q_proj", "attn.v_proj", "mlp.up_proj"}))


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)


def sweep_of(**changes: Any) -> Sweep:
    blocks: dict[str, Any] = {
        "name": "s",
        "base_model": "acme/m",
        "datasets": {"ours": {"task": "toy", "rows": 20}},
        "finetune": {"lora_targets": ["q_proj", "v_proj"]},
        "evaluate": {"ask": {"task": "toy", "rows": 5, "seed": 9}},
    }
    return Sweep.model_validate({**blocks, **changes})


def rows(*tokens: int, real: bool = True) -> Lengths:
    counts = np.array(tokens, np.int64)
    return Lengths(len(tokens), counts, counts, counts, real)


def told(found: Lengths | None = None, known: Limits = KNOWN, **changes: Any) -> list[str]:
    lengths = rows(500, 600) if found is None else found
    return [str(problem) for problem in limits.problems(sweep_of(**changes), known, lambda task: lengths)]


def test_what_fits_is_not_refused() -> None:
    assert told() == []
    assert told(finetune={"max_length": 600, "lora_targets": ["q_proj"]}, runtime={"max_model_len": 700}) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finetune": {"lora_targets": ["qproj"]}}, "finetune.lora_targets: found 'qproj'; .*did you mean 'q_proj'"),
        ({"finetune": {"max_length": 1001, "lora_targets": ["q_proj"]}}, "finetune.max_length: .* at most 1,000"),
        ({"runtime": {"max_model_len": 2001}}, "runtime.max_model_len: found 2,001; expected at most 2,000"),
        ({"runtime": {"workers_per_finetune": 3}}, "runtime.workers_per_finetune: found 3.*one of 1, 2, 4, 8, 16"),
        ({"runtime": {"workers_per_finetune": 2, "gpus_per_finetune": 0.5}}, "runtime.gpus_per_finetune: found 0.5"),
        ({"runtime": {"tensor_parallel": 2, "gpus_per_engine": 1}}, "runtime.gpus_per_engine: found 1 with"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(changes: dict[str, Any], message: str) -> None:
    found = told(**{"finetune": sweep_of().finetune.model_dump(), **changes})
    assert len(found) == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(found[0])


def adapted(targets: object, engine: str = "vllm", **known: Any) -> list[str]:
    return told(known=replace(KNOWN, **known), finetune={"lora_targets": targets}, runtime={"engine": engine})


def test_what_gets_an_adapter_must_be_there_and_be_served() -> None:
    for targets in ("attention", "all-linear", ["up_proj"]):
        assert adapted(targets) == []
    mamba = frozenset({"mixer.in_proj"})
    (problem,) = adapted("attention", modules=mamba)
    assert problem.startswith("finetune.lora_targets: found 'attention', but acme/m has no projections of its own in")
    assert (
        problem.endswith("expected all-linear, or a list among in_proj") and adapted("all-linear", modules=mamba) == []
    )
    unknown: dict[str, Any] = {"modules": frozenset(), "architecture": "MixtralForCausalLM"}
    assert adapted("attention", **unknown) == adapted(["w1"], **unknown) == []
    (problem,) = adapted("all-linear", **unknown)
    assert "the files of acme/m do not tell its modules" in problem and "a list of names" in problem
    (problem,) = adapted("attention", architecture="GPT2LMHeadModel")
    assert problem.startswith("finetune.method: found lora; vLLM serves no adapters of GPT2LMHeadModel")
    assert adapted("attention", "own:Engine", architecture="GPT2LMHeadModel") == []


def test_modules_are_known_by_the_names_of_weights_alone() -> None:
    phi = [f"model.layers.0.self_attn.{name}.weight" for name in ("qkv_proj", "o_proj")]
    assert limits.resolved(Finetune(), limits.limits_of(BASE, None, phi)).lora_targets == ("o_proj", "qkv_proj")


def test_targets_are_resolved_by_the_model_and_without_it_as_they_always_were() -> None:
    def names(known: Limits, **knobs: Any) -> Any:
        return limits.resolved(Finetune(**knobs), known).lora_targets

    assert names(Limits(BASE)) == lora.ATTENTION and names(Limits(BASE), lora_targets="all-linear") == ("all-linear",)
    assert names(KNOWN) == ("q_proj", "v_proj")
    assert names(KNOWN, lora_targets="all-linear") == ("q_proj", "v_proj", "up_proj")
    assert names(KNOWN, lora_targets=("v_proj", "q_proj")) == ("v_proj", "q_proj")
    assert names(KNOWN, method="full") == "attention"


def test_an_api_takes_whole_epochs_and_nothing_of_ours_limits_it() -> None:
    api = Limits(BaseModelRef("openai:m", "m", None, "openai:m"))
    (problem,) = told(rows(10**6), api, finetune={"epochs": 1.5, "max_length": 8})
    assert problem == "finetune.epochs: found 1.5; expected a whole number for openai:m"


def test_rows_that_are_longer_than_may_be_trained_are_refused() -> None:
    (problem,) = told(rows(10, 1001, 1200), evaluate={}, finetune={"lora_targets": ["q_proj"]})
    assert problem.startswith("datasets.ours: found rows of up to 1,200 tokens, prompt and answer (too long: 2 of 3)")
    assert "expected at most 1,000, the context of acme/m" in problem
    own = {"max_length": 999, "lora_targets": ["q_proj"]}
    (problem,) = told(rows(10, 1000), evaluate={}, finetune=own)
    assert "at most 999, finetune.max_length" in problem and "(the model takes 1,000)" in problem
    assert told(rows(10**6), evaluate={}, mixtures={}) == []


def test_prompts_that_leave_no_room_for_the_answer_are_refused() -> None:
    most = 2000 - Toy.MAX_OUTPUT_TOKENS
    assert told(rows(*[most] * 20), mixtures={}) == []
    (problem,) = told(rows(*[most + 1] * 20), mixtures={})
    assert problem.startswith(f"evaluate.ask: found prompts of up to {most + 1:,} tokens, and 100 for the answer")
    (problem,) = told(rows(700), mixtures={}, runtime={"max_model_len": 512})
    assert "at most 512 together, runtime.max_model_len" in problem


def test_a_row_needs_room_for_the_longest_answer_of_its_own_kind() -> None:
    def asked(first: int) -> list[str]:
        return told(replace(rows(1900, 1980), written=np.array([first, 20])), mixtures={})

    assert asked(100) == []
    (problem,) = asked(101)
    assert "found prompts of up to 1,900 tokens, and 101 for the answer (too long: 1 of 2)" in problem


def test_a_few_long_prompts_are_a_warning() -> None:
    few = rows(*[10] * 99, 5000)
    assert told(few, mixtures={}) == []
    (warning,) = limits.warnings(sweep_of(mixtures={}), KNOWN, lambda task: few)
    assert "(too long: 1 of 100)" in warning.text and "left unanswered" in warning.text


SIZES = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 32000, "dtype": "bfloat16",
}  # fmt: skip
OF_7B = replace(KNOWN, trained=8000, decoder=decoder_of(SIZES))


@pytest.mark.parametrize(
    ("finetune", "runtime", "gigabytes"),
    [
        ({"method": "attention"}, {}, 38),
        ({"method": "full"}, {}, 133),
        ({"method": "full"}, {"strategy": "fsdp", "workers_per_finetune": 8}, 21),
        ({"method": "lora"}, {}, 17),
        ({"method": "lora"}, {"gradient_checkpointing": False}, 35),
    ],
)
def test_a_finetune_that_needs_a_large_gpu_is_a_warning(
    finetune: dict[str, Any], runtime: dict[str, Any], gigabytes: int
) -> None:
    def said(known: Limits, **more: Any) -> list[str]:
        sweep = sweep_of(finetune=finetune, runtime=runtime | more)
        return [str(problem) for problem in limits.warnings(sweep, known, lambda task: rows(3000, 3900))]

    sweep = sweep_of(finetune=finetune, runtime=runtime)
    assert limits.least_memory(sweep.finetune, sweep.runtime, OF_7B, 3900) == pytest.approx(gigabytes * 1e9, rel=0.05)
    expected = f"finetune.method: found {finetune['method']}, which takes at least "
    assert [text.startswith(expected) for text in said(OF_7B)] == ([True] if gigabytes > 24 else [])
    assert said(KNOWN) == said(OF_7B, gpus_per_finetune=0) == []


def test_a_rough_size_refuses_nothing() -> None:
    assert told(estimated(100, 10**6)) == []


def test_a_benchmark_s_answers_must_leave_room_for_a_prompt() -> None:
    def asked(**knobs: int) -> list[str]:
        return told(mixtures={}, evaluate={"b": {"task": "lm_eval", "benchmark": "gsm8k", **knobs}})

    assert asked(max_tokens=1999) == []
    assert asked(max_tokens=2000)[0].startswith("evaluate.b: found max_tokens 2,000; expected less than 2,000, the")
    assert asked(max_tokens=100, length=64)[0].startswith("evaluate.b: found max_tokens 100; expected less than length")


FILE = """\
name: s
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 20, dictionaries: 5}
  few: {task: multidoc_qa, rows: 2, documents: 3}
evaluate:
  mdqa: {task: mdqa, documents: 4, questions: 3, positions: [1]}
"""


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        (["runtime.max_model_len=128", "mixtures={kv: {kv: 1}}"], 7, "evaluate.mdqa: found prompts of up to"),
        (["finetune.max_length=100", "mixtures={kv: {kv: 1}}"], 4, "datasets.kv: found rows of up to"),
        ([], 5, "few has 354 tokens in 2 rows, but its share of an epoch is"),
    ],
)
def test_the_plan_of_a_file_names_the_line(tmp_path: Path, settings: list[str], line: int, message: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(FILE)
    with pytest.raises(InputError) as caught:
        run.prepare(str(file), settings)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}:{line}: ") and message in problem


def test_what_is_right_is_planned(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(FILE)
    planned, _ = run.prepare(str(tmp_path / "s.yaml"), ["datasets.few.rows=60"])
    assert {artefact.counted for artefact in planned.artefacts} == {"rows"}
    assert all(isinstance(a.params, Task) for a in planned.artefacts if a.kind == "dataset")
