"""Predictions of benchmarks still to be made, and an engine that answers them without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import benchmark_files

from kvray.errors import CellError
from kvray.evaluate.engines.base import Adapter, Engine, Key, Reply, Request
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store.fingerprint import fingerprint
from kvray.store.store import artefact_id
from kvray.sweep.model import Finetune
from kvray.tasks.lm_eval import LmEval


def benchmark(name: str, **knobs: Any) -> LmEval:
    """Return the task of one of our own benchmarks."""
    return LmEval(benchmark=name, include_path=str(benchmark_files.HOME), **knobs)


def cell(task: LmEval, finetune_id: str | None = None) -> Artefact:
    """Return the artefact of predictions still to be made."""
    model = finetune_id.rpartition("/")[2].split("-")[0] if finetune_id else None
    recipe = {"task": task.recipe(), "sources": task.sources(), "model": model}
    digest = fingerprint(recipe, [])
    name = f"lm_eval-{task.benchmark}-{model or 'base'}"
    return Artefact(
        id=artefact_id("predictions", name, digest),
        kind="predictions",
        name=name,
        fingerprint=digest,
        recipe=recipe,
        needs=(finetune_id,) if finetune_id else (),
        rows=task.expected_rows(),
        tokens=0,
        labels={"evaluation": task.benchmark, "mixture": model, "finetune": model, "seed": 0 if model else None},
        params=PredictionsJob(task, None, finetune_id, Finetune(lora_rank=4) if finetune_id else None),
    )


class StubEngine(Engine):
    """Answers requests by a rule; dies when told.

    Attributes:
        asked: requests answered so far by all engines of a test.
    """

    asked: ClassVar[int] = 0
    lives: ClassVar[int | None] = None
    rule: ClassVar[Callable[[Request], Reply]]
    limit = 2048

    def start(self, length: int) -> None:
        """Note the length."""
        self.length = length

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return the length."""
        return {"stub": self.length}

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Yield what the rule makes of each request."""
        for key, request in requests:
            if StubEngine.lives is not None and StubEngine.asked >= StubEngine.lives:
                raise RuntimeError("the engine died")
            StubEngine.asked += 1
            yield key, type(self).rule(request)


def likelihoods(values: dict[int, float], likeliest: int) -> Any:
    """Return a vLLM output of a "choose" reading."""
    written = SimpleNamespace(
        finish_reason="length",
        token_ids=[likeliest],
        text="",
        logprobs=[{token: SimpleNamespace(logprob=value, rank=1) for token, value in values.items()}],
    )
    return SimpleNamespace(outputs=[written], num_cached_tokens=0, prompt_logprobs=None)
