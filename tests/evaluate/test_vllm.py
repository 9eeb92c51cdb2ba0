"""One real vLLM engine: answers, adapters, the probe. The engine starts once for all tests of this file."""

from __future__ import annotations

from pathlib import Path

import evaluate_store as made
import numpy as np
import pytest

from kvray.errors import CellError
from kvray.evaluate.engines import vllm
from kvray.evaluate.engines.base import Adapter, Request, Serving
from kvray.evaluate.engines.vllm import VllmEngine
from kvray.evaluate.served import Probe, pick
from kvray.models.chat import conversation
from kvray.models.reference import BaseModelRef, load_tokenizer
from kvray.models.tokenizer import chat_tokens
from kvray.sweep.model import Runtime

pytestmark = pytest.mark.slow
MOST = 8


@pytest.fixture(scope="module")
def engine(base: BaseModelRef, adapters: dict[str, Path]) -> VllmEngine:
    VllmEngine.prepare(gpus=0, cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        # Half of the longest request: prompts are read in chunks, as those of 24K tokens are with 4,096 at a time.
        patch.setattr(vllm, "CPU_BATCH_TOKENS", made.MODEL_LENGTH // 2)
        # Two places for three adapters, so that they take turns.
        engine = VllmEngine(Serving(base, Runtime(max_loras=2), ranks=(4, 4, 4)))
        assert engine.limit == made.MODEL_LENGTH
        engine.start(made.MODEL_LENGTH)
        return engine


@pytest.fixture(scope="module")
def prompts(base: BaseModelRef) -> list[np.ndarray]:
    chats = [conversation(prompt) for prompt in made.example_table(40)["prompt"].to_pylist()]
    return [np.array(tokens, np.int32) for tokens in chat_tokens(load_tokenizer(base), chats, prompt=True)]


@pytest.fixture(scope="module")
def loaded(engine: VllmEngine, adapters: dict[str, Path]) -> dict[str, Adapter]:
    kinds = ["real", "other", "zero", "lost", "cut"]
    return {kind: Adapter(f"{kind}-{number}", number, adapters[kind]) for number, kind in enumerate(kinds, 1)}


def ask(prompt: np.ndarray, adapter: Adapter | None = None) -> Request:
    return Request(prompt, max_tokens=MOST, adapter=adapter)


def test_every_question_is_answered_once_within_its_length(engine: VllmEngine, prompts: list[np.ndarray]) -> None:
    asked = [(i, ask(prompts[i % 40])) for i in range(600)]
    got = dict(engine.answer(asked))
    assert sorted(got) == list(range(600))
    for number, reply in got.items():
        assert reply.prompt_tokens == len(prompts[number % 40])
        assert reply.answer is not None and reply.finish_reason in ("stop", "length")
        assert reply.output_tokens == 8 or reply.finish_reason == "stop"


def test_a_prompt_that_is_read_in_chunks_is_answered_as_transformers_does(
    engine: VllmEngine, base: BaseModelRef, loaded: dict[str, Adapter]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    length = made.MODEL_LENGTH - MOST
    prompts = np.random.default_rng(0).integers(3, 1000, (6, length)).astype(np.int32)
    engine.load(loaded["real"])
    plain = AutoModelForCausalLM.from_pretrained(base.location)
    tokenizer, ends = load_tokenizer(base), set(plain.generation_config.eos_token_id)
    for adapter in (None, loaded["real"]):
        got = dict(
            engine.answer((i, Request(prompt, max_tokens=MOST, adapter=adapter)) for i, prompt in enumerate(prompts))
        )
        model = PeftModel.from_pretrained(plain, str(adapter.path)) if adapter else plain
        ids = torch.from_numpy(prompts.astype(np.int64))
        said = [model.generate(row[None], do_sample=False, max_new_tokens=8, pad_token_id=0)[0] for row in ids]
        expected = [tokenizer.decode([token for token in row[length:].tolist() if token not in ends]) for row in said]
        # Rounding may turn a near tie, so not every answer need be the same.
        assert np.mean([got[i].answer == text for i, text in enumerate(expected)]) > 0.8, (got, expected)


def test_prompts_asked_again_come_from_the_prefix_cache(engine: VllmEngine) -> None:
    prompt = np.arange(100, 200, dtype=np.int32)
    (_, first), (_, again) = (next(engine.answer([(0, ask(prompt))])) for _ in range(2))
    assert first.cached_tokens == 0
    assert again.cached_tokens is not None and again.cached_tokens >= 64


def test_adapters_and_base_in_one_batch_say_what_each_says_alone(
    engine: VllmEngine, prompts: list[np.ndarray], loaded: dict[str, Adapter]
) -> None:
    # vLLM's own CPU kernels give the base rows of a mixed batch the last adapter.
    models = [None, loaded["real"], loaded["other"]]
    for adapter in models[1:]:
        engine.load(adapter)
    apart = [
        reply.answer
        for model in models
        for _, reply in sorted(
            engine.answer((i, ask(prompts[i], model)) for i in range(40)),
            key=lambda item: item[0],
        )
    ]
    asked = [(i + 40 * m, ask(prompts[i], model)) for i in range(40) for m, model in enumerate(models)]
    mixed = [reply.answer for _, reply in sorted(engine.answer(asked), key=lambda item: item[0])]
    # Rounding may turn a near tie, so not every answer need be the same.
    assert np.mean([a == b for a, b in zip(apart, mixed, strict=True)]) > 0.9
    assert np.mean([a == b for a, b in zip(apart[:40], apart[40:80], strict=True)]) < 0.5


def test_a_real_adapter_passes_its_probe(
    engine: VllmEngine, prompts: list[np.ndarray], loaded: dict[str, Adapter]
) -> None:
    probe = Probe(engine, pick(prompts))
    assert probe.tolerance < 1e-4
    for kind in ("real", "other"):
        engine.load(loaded[kind])
        assert probe.check(kind, loaded[kind]) > 1e-2


@pytest.mark.parametrize("kind", ["zero", "lost"])
def test_an_adapter_that_touches_nothing_fails_its_probe(
    engine: VllmEngine, prompts: list[np.ndarray], loaded: dict[str, Adapter], kind: str
) -> None:
    # After the others, so that a slot is reused that held a real adapter.
    for other in ("real", "other"):
        engine.load(loaded[other])
        Probe(engine, pick(prompts[:1])).check(other, loaded[other])
    with pytest.raises(CellError, match=f"{kind}-.*(changes nothing|cannot load it)"):
        engine.load(loaded[kind])
        Probe(engine, pick(prompts)).check(loaded[kind].name, loaded[kind])


def test_a_damaged_adapter_is_refused_and_the_engine_goes_on(
    engine: VllmEngine, prompts: list[np.ndarray], loaded: dict[str, Adapter]
) -> None:
    with pytest.raises(CellError, match="adapter cut-5: vLLM cannot load it"):
        engine.load(loaded["cut"])
    assert len(dict(engine.answer([(0, ask(prompts[0], loaded["real"]))]))) == 1


def log_probabilities(engine: VllmEngine, prompt: np.ndarray, adapter: Adapter | None = None) -> np.ndarray:
    ((_, reply),) = engine.answer([(0, Request(prompt, kind="score", adapter=adapter))])
    return np.array([value for value, _ in reply.scored])


def test_weights_are_exchanged_in_the_live_engine_and_the_base_comes_back(
    engine: VllmEngine, base: BaseModelRef, loaded: dict[str, Adapter], prompts: list[np.ndarray], tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    prompt = np.concatenate(prompts[:3])
    real = loaded["real"]
    engine.load(real)
    own, adapted = log_probabilities(engine, prompt), log_probabilities(engine, prompt, real)
    _, (_, again) = (next(engine.answer([(0, ask(prompt))])) for _ in range(2))
    assert again.cached_tokens > 0
    made_of = {
        "queries": made.make_changed(base, tmp_path / "queries"),
        "whole": made.make_full(base, tmp_path / "whole"),
        "mlp": made.make_changed(base, tmp_path / "mlp", "mlp", seed=1),
        "merged": real.path,
    }
    for kind, directory in made_of.items():
        engine.exchange(directory)
        ((_, reply),) = engine.answer([(0, ask(prompt))])
        assert reply.cached_tokens == 0  # nothing of the weights before is used again
        model = AutoModelForCausalLM.from_pretrained(base.location)
        if kind == "merged":
            model = PeftModel.from_pretrained(model, str(directory))
        else:
            for file in directory.glob("*.safetensors"):
                model.load_state_dict(load_file(file), strict=False)
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        with torch.inference_mode():
            likely = model(ids).logits[0, :-1].log_softmax(-1)
        expected = likely.gather(1, ids[0, 1:, None])[:, 0].numpy()
        assert log_probabilities(engine, prompt) == pytest.approx(expected, abs=1e-3)
        assert np.abs(expected - own).max() > 0.1
    engine.exchange(None)
    assert np.array_equal(log_probabilities(engine, prompt), own)
    engine.load(real)
    assert np.array_equal(log_probabilities(engine, prompt, real), adapted)
    with pytest.raises(CellError, match=r"lost: .* the base model has no such tensor"):
        engine.exchange(loaded["lost"].path)
    assert np.array_equal(log_probabilities(engine, prompt), own)


def test_the_record_tells_version_and_flags_but_no_path(engine: VllmEngine, base: BaseModelRef) -> None:
    info = engine.info(None)
    assert info["vllm"] and info["dtype"] == "float32"
    assert info["flags"]["max_lora_rank"] == 8
    assert str(Path(base.location).parent) not in str(info)
