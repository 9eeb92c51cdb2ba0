"""An engine without a model: its answers say which model gave them, and its log-probabilities follow from that."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvray.errors import CellError
from kvray.evaluate.engines.base import Adapter, Engine, Key, Reply, Request

BASE = "base"
WINDOW = 6


class FakeEngine(Engine):
    """Answers in random order out of a window of requests.

    A model whose name begins with ``zero`` gives the base's log-probabilities, one with ``cut`` cannot be loaded.

    Attributes:
        starts: lengths that engines of a test were started with.
        loads: what was loaded or exchanged, in order.
        lives: answers until the process dies; None: for ever.
        asked: requests to write answered by all engines of a test.
        drained: models of the request before which a window was empty.
        limit: tokens that the model takes.
        forgets: whether the base's weights do not come back.
    """

    starts: ClassVar[list[int]] = []
    loads: ClassVar[list[str]] = []
    lives: ClassVar[int | None] = None
    asked: ClassVar[int] = 0
    drained: ClassVar[list[str]] = []
    limit: ClassVar[int] = 2048  # type: ignore[misc]
    forgets: ClassVar[bool] = False

    @classmethod
    def reset(cls) -> None:
        """Forget what engines did."""
        cls.starts, cls.loads, cls.drained = [], [], []
        cls.lives, cls.asked, cls.limit, cls.forgets = None, 0, 2048, False

    def start(self, length: int) -> None:
        """Note the length; serve the base model."""
        FakeEngine.starts.append(length)
        self.length, self.place, self.adapters = length, BASE, set[str]()
        self.number = len(FakeEngine.starts)
        self.random = random.Random(0)

    def load(self, adapter: Adapter) -> None:
        """Load an adapter unless it is cut off."""
        if adapter.name.startswith("cut"):
            raise CellError(f"adapter {adapter.name} is cut off")
        FakeEngine.loads.append(adapter.name)
        self.adapters.add(adapter.name)

    def exchange(self, weights: Path | None) -> None:
        """Serve other weights, without any adapter."""
        if weights and weights.name.startswith("cut"):
            raise CellError(f"{weights.name} are cut off")
        FakeEngine.loads.append(weights.name if weights else BASE)
        self.place = weights.name if weights else "zebra" if FakeEngine.forgets else BASE
        self.adapters.clear()

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Return which engine it is."""
        return {"id": self.number}

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Answer in random order; the window is filled before each answer."""
        waiting = iter(requests)
        window: list[tuple[Key, Request]] = []
        while True:
            while len(window) < WINDOW and (item := next(waiting, None)) is not None:
                if not window and item[1].kind == "generate":
                    FakeEngine.drained.append(self._model(item[1]))
                window.append(item)
            if not window:
                return
            key, request = window.pop(self.random.randrange(len(window)))
            if request.kind == "generate":
                if FakeEngine.lives is not None and FakeEngine.asked >= FakeEngine.lives:
                    raise RuntimeError("the engine died")
                FakeEngine.asked += 1
            yield key, self._reply(request)

    def _model(self, request: Request) -> str:
        if request.adapter is None:
            return self.place
        assert self.place == BASE and request.adapter.name in self.adapters
        return request.adapter.name

    def _reply(self, request: Request) -> Reply:
        length, model = len(request.tokens), self._model(request)
        assert length + request.max_tokens <= self.length
        if request.kind == "score":
            changed = 0.0 if model.startswith((BASE, "zero")) else float(np.float32(0.1 + len(model) % 7))
            return Reply(length, 0, 0, None, "stop", tuple((-1.0 - changed, True) for _ in range(length - 1)))
        return Reply(length, 0, 3, f"{model} says {request.tokens.sum()}", "stop")
