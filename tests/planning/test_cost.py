"""What a plan says of its cost: device-hours by stage, rates by the model's size, an API's bill, likely failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from planned_toys import BASE
from toy_tasks import Toy

from kvray.errors import InputError
from kvray.models.reference import BaseModelRef
from kvray.planning import inputs
from kvray.planning.cost import rates
from kvray.planning.cost.estimate import Estimate, estimate
from kvray.planning.cost.rates import TRAINING, Size, default_speed, size_of
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.store.store import Store
from kvray.sweep.model import Sweep
from kvray.tasks.base import REGISTRY, recipe

SEVEN = "acme/Model-7B-Instruct"


class Writes(Toy):
    """A task for which a model writes."""

    task: Literal["writes"] = recipe("writes")  # type: ignore[assignment]

    def writer(self) -> str | None:
        return "acme/Writer-7B"

    def to_write(self, count_tokens: Any) -> list[str]:
        return ["word " * 9] * 25


class Long(Toy):
    """A task whose answers are long."""

    MAX_OUTPUT_TOKENS: ClassVar[int] = 1000

    task: Literal["long"] = recipe("long")  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in (("toy", Toy), ("writes", Writes), ("long", Long)):
        monkeypatch.setitem(REGISTRY, name, cls)
    monkeypatch.setattr(
        inputs, "resolve", lambda name, *_: BaseModelRef(name, name, "1", f"hub:{name}", tokenizer=None)
    )
    monkeypatch.setattr(inputs, "tensor_names", lambda base: frozenset())
    monkeypatch.setattr(inputs, "token_counter", lambda base: lambda texts: inputs.np.full(len(texts), 10))
    monkeypatch.setattr(rates, "hardware", lambda: {"gpus": []})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def made(folder: Path, base: str = SEVEN, **changes: Any) -> Estimate:
    blocks: dict[str, Any] = {
        "name": "s",
        "base_model": base,
        "datasets": {"ours": {"task": "toy", "rows": 20}, "other": {"task": "toy", "rows": 30, "seed": 1}},
        "evaluate": {"ask": {"task": "toy", "rows": 5, "seed": 9}},
    }
    sweep = Sweep.model_validate({**blocks, **changes})
    return estimate(plan(sweep, gather(sweep)), Store(folder))


def about_size(found: Estimate) -> list[str]:
    """Return the warnings but those of the toys' few questions and few updates."""
    few = ("questions find", "updates at learning rate")
    return [warning for warning in found.document["warnings"] if not any(text in warning for text in few)]


def stage(found: Estimate, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(json.dumps(found.document))
    (one,) = [each for each in document["stages"] if each["stage"] == name]
    return one


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.1", 7e9, 7e9),
        ("meta-llama/Llama-2-70b-chat-hf", 70e9, 70e9),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46.5e9, 12.95e9),
        ("Qwen/Qwen3-30B-A3B", 30e9, 3e9),
        ("Qwen/Qwen2.5-0.5B", 0.5e9, 0.5e9),
        ("EleutherAI/pythia-410m", 410e6, 410e6),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.1e9, 1.1e9),
        ("7B-club/other_13b_v2", 13e9, 13e9),
    ],
)
def test_a_model_s_name_tells_its_size(name: str, total: float, active: float) -> None:
    found = size_of(name)
    assert found is not None
    assert (found.total, found.active) == (pytest.approx(total, rel=1e-2), pytest.approx(active))


def test_a_directory_tells_its_size_and_other_names_do_not() -> None:
    found = size_of("kvray-tiny")
    assert found is not None and found.total == pytest.approx(1.02e6, rel=0.01)
    assert str(found) == "1.02M"
    assert [size_of(name) for name in ("gpt2", "acme/v0.1-beta", "microsoft/phi-3-mini", "tiny")] == [None] * 4


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", b"" + bytes(7) + b"{]", b"" + bytes(7) + b"[]"])
def test_damaged_weights_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors: found no readable safetensors header .*again"):
        size_of(str(tmp_path))


def test_a_7b_model_s_default_rates_are_of_the_known_order() -> None:
    def speed(what: str, length: float, size: float = 7e9, devices: float = 1, method: str = "") -> float:
        return default_speed(Size(size, size), "gpu", what, length, devices, TRAINING.get(method, 2.0))

    assert speed("train", 4000, method="lora") == pytest.approx(3_800, rel=0.05)
    assert speed("train", 4000, method="full") == pytest.approx(2_600, rel=0.05)
    assert speed("read", 4000) == pytest.approx(9_900, rel=0.05)
    assert speed("write", 4000) == pytest.approx(2_000, rel=0.05)
    # A token of 24K costs half as much again to read, and many times as much to write; weights that train cost more.
    assert speed("read", 500) / speed("read", 24_000) == pytest.approx(1.47, abs=0.02)
    assert speed("write", 500) / speed("write", 24_000) > 5
    assert speed("read", 4000, devices=4) == pytest.approx(4 * speed("read", 4000))
    assert speed("read", 100, size=70e9) == pytest.approx(speed("read", 100) / 10, rel=0.01)


def test_a_hub_model_is_planned_on_gpus_wherever_the_plan_is_made(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert "7B weights, assuming one 80 GB GPU each" in found.document["totals"]["seconds_basis"]["finetune"]
    finetunes, cells = stage(found, "finetune"), stage(found, "evaluate")
    assert (finetunes["on"], cells["on"], stage(found, "generate")["on"]) == ("gpu", "gpu", "cpu")
    seconds = 45 + 2 * 2 * 20 * 8 / default_speed(Size(7e9, 7e9), "gpu", "train", 8, 1, TRAINING["lora"])
    assert finetunes["hours"] == pytest.approx(seconds / 3600, abs=1e-3)
    assert "GPU-hours" in found.text() and "CPU-hours" in found.text()
    assert stage(made(tmp_path, "kvray-tiny"), "finetune")["on"] == "cpu"
    assert stage(made(tmp_path, runtime={"gpus_per_finetune": 0}), "finetune")["on"] == "cpu"
    assert stage(made(tmp_path, "kvray-tiny", runtime={"gpus_per_finetune": 1}), "finetune")["on"] == "gpu"
    assert "taken as 7B weights" in made(tmp_path, "acme/nameless").document["totals"]["seconds_basis"]["finetune"]


def test_device_hours_are_seconds_times_what_is_held(tmp_path: Path) -> None:
    big = {"datasets": {"ours": {"task": "toy", "rows": 20_000_000}}}
    one = stage(made(tmp_path, **big), "finetune")
    four = stage(made(tmp_path, **big, runtime={"workers_per_finetune": 2, "gpus_per_finetune": 2}), "finetune")
    assert four["seconds"] < one["seconds"] / 3.9
    assert four["hours"] == pytest.approx(one["hours"], rel=0.01)
    again = stage(made(tmp_path, **big, runtime={"gradient_checkpointing": True}), "finetune")
    assert again["seconds"] > 1.4 * one["seconds"]
    # Four finetunes side by side take less time in as many GPU-hours, but for a start each.
    seeds = {**big, "finetune": {"seeds": [0, 1, 2, 3]}}
    alone = stage(made(tmp_path, **seeds), "finetune")
    together = stage(made(tmp_path, **seeds, runtime={"concurrent_finetunes": 4}), "finetune")
    assert together["hours"] == pytest.approx(alone["hours"] + 3 * 45 / 3600, abs=2e-3)
    assert together["seconds"] == pytest.approx(alone["seconds"] / 4, rel=0.01)
    asked = {"evaluate": {"ask": {"task": "toy", "rows": 40_000_000, "seed": 9}}}
    wide = stage(made(tmp_path, **asked, runtime={"tensor_parallel": 2}), "evaluate")
    narrow = stage(made(tmp_path, **asked), "evaluate")
    assert wide["seconds"] < narrow["seconds"] / 1.9
    assert wide["hours"] == pytest.approx(narrow["hours"], rel=0.01)


def test_totals_are_the_sums_of_the_stages(tmp_path: Path) -> None:
    found = made(tmp_path, datasets={"ours": {"task": "writes", "rows": 20}})
    document = found.document
    assert [each["stage"] for each in document["stages"]] == ["write", "generate", "finetune", "evaluate"]
    for on in ("gpu", "cpu"):
        hours = sum(each["hours"] for each in document["stages"] if each["on"] == on)
        assert document["totals"][f"{on}_hours"] == pytest.approx(hours, abs=2e-3)
    assert document["totals"]["seconds"] == pytest.approx(
        8 + sum(each["seconds"] for each in document["stages"]), abs=1
    )


def test_writings_are_counted_on_the_model_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(tmp_path, "kvray-tiny", datasets={"ours": {"task": "writes", "rows": 20}})
    written = stage(found, "write")
    assert (written["artefacts"], written["tokens"], written["on"]) == (1, 250, "gpu")
    assert written["tokens_written"] == 25 * Toy.WRITING_TOKENS // 2
    assert stage(found, "finetune")["on"] == "cpu"
    assert "writings: 1" in found.text()
    # Prompts of a source that does not answer are not counted; their number is known.
    monkeypatch.setattr(inputs, "tensor_names", lambda base: frozenset())
    monkeypatch.setattr(inputs, "token_counter", lambda base: lambda texts: inputs.np.zeros(len(texts)))
    unseen = stage(made(tmp_path, "kvray-tiny", datasets={"ours": {"task": "writes", "rows": 20}}), "write")
    assert (unseen["tokens"], unseen["unknown"]) == (25 * 300, 0)


def test_long_answers_are_bound_by_writing(tmp_path: Path) -> None:
    short = made(tmp_path, datasets={}, evaluate={"ask": {"task": "toy", "rows": 4000, "seed": 9}})
    long = made(tmp_path, datasets={}, evaluate={"ask": {"task": "long", "rows": 4000, "seed": 9}})
    assert stage(short, "evaluate")["tokens"] == stage(long, "evaluate")["tokens"]
    assert stage(long, "evaluate")["tokens_written"] == 4000 * 500
    assert stage(long, "evaluate")["seconds"] > 400 > 5 * 60 > stage(short, "evaluate")["seconds"]


def test_a_benchmark_without_a_dataset_has_rows_tokens_and_time(tmp_path: Path) -> None:
    asked = {name: {"task": "lm_eval", "benchmark": name} for name in ("mmlu", "gsm8k")}
    found = made(tmp_path, datasets={}, evaluate=asked)
    rows = {item.artefact.labels["evaluation"]: item for item in found.items}
    assert rows["mmlu"].artefact.rows == 14_042 and rows["gsm8k"].artefact.rows == 1_319
    assert rows["mmlu"].writes == 0 and rows["gsm8k"].writes == 1_319 * 150
    assert rows["gsm8k"].reads == 1_319 * (70 + 5 * 190)
    assert all(item.seconds for item in found.items)
    assert found.document["detectable_difference"]["mmlu"]["questions"] == 14_042


def test_what_has_no_size_is_said_to_be_left_out(tmp_path: Path) -> None:
    asked = {"odd": {"task": "lm_eval", "benchmark": "nobody_knows"}, "ask": {"task": "toy", "rows": 5, "seed": 9}}
    found = made(tmp_path, datasets={}, evaluate=asked)
    assert found.document["totals"]["seconds"] is None
    assert "without 1 of unknown size" in found.text()
    assert "1 unknown" in found.text()


def test_an_api_bills_prompts_replies_and_training_with_the_system_message(tmp_path: Path) -> None:
    prices = {"api_price_input": 1.0, "api_price_output": 2.0, "api_price_training": 8.0}
    api = {"base": "openai:gpt", "tokenizer": "acme/t", "system_message": "x" * 40, "finetune": {"epochs": 3}}
    found = made(tmp_path, **api, runtime=prices)
    extra = 10 + 8
    tokens = {"input": 3 * 5 * (8 + extra), "output": 3 * 5 * 50, "training": 2 * 3 * 20 * (8 + extra)}
    assert found.document["totals"]["api"]["tokens"] == tokens
    usd = (tokens["input"] + 2 * tokens["output"] + 8 * tokens["training"]) / 1e6
    assert found.document["totals"]["api"]["usd"] == pytest.approx(usd, abs=1e-4)
    assert f"about {usd:,.2f} USD" in found.text()
    assert found.document["totals"]["api"]["usd"] == pytest.approx(usd, abs=1e-4)
    assert found.document["totals"]["gpu_hours"] == 0
    assert stage(found, "evaluate")["on"] == "api"
    silent = made(tmp_path, **api, runtime={**prices, "api_price_output": None})
    assert silent.document["totals"]["api"]["usd"] is None
    assert "no prices given (runtime.api_price_output: USD per million tokens)" in silent.text()
    assert "USD" not in made(tmp_path).text()


def test_notes_stand_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(tmp_path)
    noted = type(found.planned)(found.planned.sweep, found.planned.base_model, found.planned.artefacts, ("no hub",))
    text = estimate(noted, Store(tmp_path)).text()
    assert text.splitlines()[1] == "not known here: no hub"
    assert estimate(noted, Store(tmp_path)).document["notes"] == ["no hub"]


def test_a_mixture_short_of_tokens_is_told_before_anything_runs(tmp_path: Path) -> None:
    few = {"ours": {"task": "toy", "rows": 100}, "other": {"task": "toy", "rows": 30, "seed": 1}}
    (warning,) = about_size(made(tmp_path, datasets=few))
    assert warning.startswith("mixture other: other has about 240 tokens and needs 800")
    assert "about 105 rows instead of 30" in warning
    assert f"warning: {warning}" in made(tmp_path, datasets=few).text()
    assert about_size(made(tmp_path, datasets=few, finetune={"match": "rows"})) == []
    assert about_size(made(tmp_path)) == []


@pytest.mark.parametrize(
    ("base", "runtime", "method", "expected"),
    [
        (SEVEN, {}, "lora", []),
        (SEVEN, {}, "full", ["raise runtime.workers_per_finetune (strategy: fsdp) to 2"]),
        (SEVEN, {"workers_per_finetune": 2, "strategy": "fsdp"}, "full", []),
        ("acme/m-70b", {}, "lora", ["workers_per_finetune (strategy: fsdp) to 3", "tensor_parallel to 3"]),
    ],
)
def test_weights_that_fit_no_gpu_are_told(
    base: str, runtime: dict[str, Any], method: str, expected: list[str], tmp_path: Path
) -> None:
    found = about_size(made(tmp_path, base, runtime=runtime, finetune={"method": method}))
    assert len(found) == len(expected)
    for text in expected:
        assert any(text in warning for warning in found)


def test_the_toy_of_other_tests_has_no_size() -> None:
    assert size_of(BASE.name) is None
