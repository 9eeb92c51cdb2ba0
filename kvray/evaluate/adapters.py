"""The adapters of one engine. One without effect is refused: vLLM silently serves the base when no module matches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError
from kvray.evaluate.engines.base import ADAPTER_CONFIG, MODEL_CONFIG, Adapter, Engine, Reply, Request
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store.store import Store

TOLERANCE = 1e-6
"""Largest difference of log-probabilities, in nats, that counts as none."""
PROMPTS = 4
TOKENS = 128
"""Tokens of each probe prompt: its end, where the question is."""


class Adapters:
    """Adapters of one engine by finetune; files that are not on a local disk are copied to ``scratch``."""

    def __init__(self, store: Store, engine: Engine, scratch: Path) -> None:
        self._store = store
        self._engine = engine
        self._scratch = scratch
        self._adapters: dict[str, Adapter | CellError] = {}

    def of(self, cell: Artefact) -> Adapter | None:
        """Return a cell's adapter, None for the base model; CellError if it cannot be loaded or changes nothing."""
        adapter = self._adapters.get(finetune_of(cell) or "")
        if isinstance(adapter, CellError):
            raise CellError(str(adapter))
        return adapter

    def fetch(self, cell: Artefact) -> None:
        """Copy a cell's adapter to a local disk and add it to the engine, once; KvrayError if it cannot be used."""
        name = finetune_of(cell)
        if name is None or name in self._adapters:
            return
        last = name.rpartition("/")[2]
        path = self._store.fetch(name, self._scratch / last)
        adapter = Adapter(last, len(self._adapters) + 1, path if self._engine.READS_TEXT else model_directory(path))
        self._engine.add(adapter)
        self._adapters[name] = adapter

    def load(self, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Load all adapters, and check them on ``prompts`` (token ids) if there are any; :meth:`of` raises errors."""
        picked = pick(prompts)
        probe = Probe(self._engine, picked) if self._adapters and picked else None
        for name, adapter in self._adapters.items():
            assert isinstance(adapter, Adapter)
            try:
                self._engine.load(adapter)
                if probe:
                    probe.check(adapter)
            except CellError as error:
                self._adapters[name] = error


class Probe:
    """Compares adapters with the base model; ``tolerance`` is twice the base's own noise, or :data:`TOLERANCE`."""

    def __init__(self, engine: Engine, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Ask the base model twice; the engine has no request under way."""
        self._engine = engine
        self._prompts = prompts
        self._base = self._log_probabilities(None)
        self.tolerance = max(TOLERANCE, 2 * _difference(self._base, self._log_probabilities(None)))

    def check(self, adapter: Adapter) -> float:
        """Return the largest log-probability difference to the base model, in nats; CellError if none or no number."""
        difference = _difference(self._base, self._log_probabilities(adapter))
        if not np.isfinite(difference):
            raise CellError(f"adapter {adapter.name} gives log-probabilities that are no numbers; was it trained well?")
        if difference <= self.tolerance:
            raise CellError(
                f"adapter {adapter.name} changes nothing: on {len(self._prompts)} prompts its log-probabilities equal "
                f"the base model's (largest difference {difference:.1e}, tolerance {self.tolerance:.1e}). Either it "
                "names no module of this model, or training left it at zero."
            )
        return difference

    def _log_probabilities(self, adapter: Adapter | None) -> NDArray[np.float64]:
        """Return the log-probability of every prompt token but the first, given those before it."""
        values: list[float] = []
        for tokens in self._prompts:
            # One at a time: the same batch shape for every adapter leaves the arithmetic of the batch out of it.
            ((_, reply),) = self._engine.answer([(0, Request(tokens, kind="score", adapter=adapter))])
            if not isinstance(reply, Reply):
                raise reply
            values += [value for value, _ in reply.scored]
        return np.array(values)


def pick(prompts: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Return a few probe prompts, spread evenly over ``prompts``."""
    usable = [prompt for prompt in prompts if len(prompt) > 1]
    step = max(1, len(usable) // PROMPTS)
    return [prompt[-TOKENS:] for prompt in usable[::step][:PROMPTS]]


def finetune_of(cell: Artefact) -> str | None:
    """Return the id of the finetune that answers a cell; None for the base model and for writings."""
    return cell.params.finetune_id if isinstance(cell.params, PredictionsJob) else None


def model_directory(root: Path) -> Path:
    """Return the directory below ``root`` with a finetune's configuration and weights; CellError if there is none."""
    for name in (ADAPTER_CONFIG, MODEL_CONFIG):
        configs = sorted(root.rglob(name))
        if configs:
            return configs[0].parent
    raise CellError(f"{root.name} holds neither {ADAPTER_CONFIG} nor {MODEL_CONFIG}, so no weights that can be served")


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore"):  # inf - inf
        return float(np.max(np.abs(a - b), initial=0.0))
