"""The models of one engine: the base, its adapters, and whole weights in the base's place.

Each is fetched, loaded and probed when it is first asked: vLLM silently serves the base where an adapter matches none
of its modules.
"""

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
MERGED = "+merged"
TOKENS = 128
"""Tokens of each probe prompt: its end, where the question is."""


class Models:
    """What a started engine has loaded; files that are not on a local disk are copied to ``scratch``.

    Adapters are asked beside the base model. Whole weights and merged adapters take its place, so that nothing else is
    asked until they are exchanged again.
    """

    def __init__(self, store: Store, engine: Engine, scratch: Path) -> None:
        self._store = store
        self._engine = engine
        self._scratch = scratch
        self._exchanged: str | None = None  # the model in the base's place
        self._known: dict[str, Adapter | CellError] = {}  # fetched, by model
        self._loaded: list[str] = []  # adapters, the last one asked at the end
        self._probed: set[str] = set()
        self._probe: Probe | None = None

    def holding(self) -> list[str | None]:
        """Return the models (:func:`model_of`) that can be asked without loading anything, the last asked first."""
        return [self._exchanged] if self._exchanged else [*reversed(self._loaded), None]

    def ready(self, cell: Artefact) -> bool:
        """Return whether a cell's model can be asked beside what is being asked now."""
        return model_of(cell) in self.holding()

    def adapter(self, cell: Artefact) -> Adapter | None:
        """Return the adapter that answers a cell whose model is ready; None: the base, or what is in its place."""
        model = model_of(cell)
        if model is None or model not in self._loaded:
            return None
        self._loaded.append(self._loaded.pop(self._loaded.index(model)))
        return self._fetch(model)

    def use(self, cell: Artefact, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Make a cell's model ready, and probe it on ``prompts`` (token ids) at its first use.

        The engine has no request under way. Raises KvrayError if the model cannot be used, in which case another is
        still served; RuntimeError if the base model's own weights did not come back.
        """
        if self.ready(cell):
            return
        model = model_of(cell)
        if model is None:
            self._exchange(None)
            return
        if self._probe is None and (picked := pick(prompts)):
            self._probe = Probe(self._engine, picked)
        adapter = self._fetch(model)
        beside = self._engine.READS_TEXT or (adapter.path / ADAPTER_CONFIG).is_file()
        if beside and not model.endswith(MERGED):
            self._exchange(None)
            self._engine.load(adapter)
            self._loaded.append(model)
        else:
            self._exchange(model)
        if self._probe and model not in self._probed:
            self._check(self._probe, model, adapter)
            self._probed.add(model)

    def _check(self, probe: "Probe", model: str, adapter: Adapter) -> None:
        try:
            probe.check(adapter.name, None if self._exchanged else adapter)
        except CellError as error:
            self._known[model] = error
            self._loaded = [each for each in self._loaded if each != model]
            self._exchange(None)
            raise

    def _fetch(self, model: str) -> Adapter:
        """Return a model with its files on a local disk; KvrayError if they cannot be had or were found useless."""
        known = self._known.get(model)
        if isinstance(known, CellError):
            raise CellError(str(known))
        if known is None:
            finetune = model.removesuffix(MERGED)
            name = finetune.rpartition("/")[2]
            path = self._store.fetch(finetune, self._scratch / name)
            known = Adapter(name, len(self._known) + 1, path if self._engine.READS_TEXT else model_directory(path))
            self._known[model] = known
        return known

    def _exchange(self, model: str | None) -> None:
        if model == self._exchanged:
            return
        self._engine.exchange(self._fetch(model).path if model else None)
        self._exchanged, self._loaded = model, []
        if model is None and self._probe:
            self._probe.check_base()


class Probe:
    """Compares models with the base model; ``tolerance`` is twice the base's own noise, or :data:`TOLERANCE`."""

    def __init__(self, engine: Engine, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Ask the base model twice; the engine has no request under way."""
        self._engine = engine
        self._prompts = prompts
        self._base = self._log_probabilities(None)
        self.tolerance = max(TOLERANCE, 2 * _difference(self._base, self._log_probabilities(None)))

    def check(self, name: str, adapter: Adapter | None) -> float:
        """Return the largest log-probability difference to the base model, in nats; CellError if none or no number.

        Without an ``adapter``, whatever is in the base model's place is asked.
        """
        difference = _difference(self._base, self._log_probabilities(adapter))
        if not np.isfinite(difference):
            raise CellError(f"{name} gives log-probabilities that are no numbers; was it trained well?")
        if difference <= self.tolerance:
            raise CellError(
                f"{name} changes nothing: on {len(self._prompts)} prompts its log-probabilities equal "
                f"the base model's (largest difference {difference:.1e}, tolerance {self.tolerance:.1e}). Either it "
                "names no module of this model, or training left it as it was."
            )
        return difference

    def check_base(self) -> None:
        """Raise RuntimeError if the base model no longer gives its own log-probabilities."""
        difference = _difference(self._base, self._log_probabilities(None))
        if not difference <= self.tolerance:
            raise RuntimeError(
                f"the base model's weights did not come back: its log-probabilities differ by {difference:.1e}, "
                f"expected at most {self.tolerance:.1e}"
            )

    def _log_probabilities(self, adapter: Adapter | None) -> NDArray[np.float64]:
        """Return the log-probability of every prompt token but the first, given those before it."""
        values: list[float] = []
        for tokens in self._prompts:
            # One at a time: the same batch shape for every model leaves the arithmetic of the batch out of it.
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


def model_of(cell: Artefact) -> str | None:
    """Return what answers a cell: None for the base model and for writings, else a finetune's id.

    One whose adapter is to be merged into the base model's weights ends in :data:`MERGED`.
    """
    if not isinstance(cell.params, PredictionsJob) or cell.params.finetune_id is None:
        return None
    return cell.params.finetune_id + (MERGED if cell.recipe.get("adapters") == "merged" else "")


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
