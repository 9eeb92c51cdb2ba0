"""Whether an adapter is really applied: vLLM serves the base model without a word when no module matches.

The adapter's log-probabilities on a few of the sweep's own prompts are compared with the base model's. An adapter that
changes none of them by more than the engine's own noise is refused: its predictions would be the base model's under
another name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kvray.errors import CellError
from kvray.evaluate.engines.vllm import Adapter, Engine

TOLERANCE = 1e-6
"""Largest difference of log-probabilities, in nats, that still counts as none."""
PROMPTS = 4
TOKENS = 128
"""Tokens of each probe prompt: its end, where the question is."""


def pick(prompts: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    """Return a few probe prompts, spread evenly over ``prompts``."""
    usable = [prompt for prompt in prompts if len(prompt) > 1]
    step = max(1, len(usable) // PROMPTS)
    return [prompt[-TOKENS:] for prompt in usable[::step][:PROMPTS]]


class Probe:
    """Compares adapters with the base model of one engine.

    Attributes:
        tolerance: :data:`TOLERANCE`, or twice what two runs of the base model differ by, if that is more.
    """

    def __init__(self, engine: Engine, prompts: Sequence[NDArray[np.int32]]) -> None:
        """Ask the base model twice.

        Args:
            engine: with no request under way.
            prompts: from :func:`pick`.
        """
        self._engine = engine
        self._prompts = prompts
        self._base = engine.log_probabilities(prompts, None)
        again = engine.log_probabilities(prompts, None)
        self.tolerance = max(TOLERANCE, 2 * _difference(self._base, again))

    def check(self, adapter: Adapter) -> float:
        """Return the largest difference of a log-probability between an adapter and the base model, in nats.

        Raises:
            CellError: there is none, or it is no number.
        """
        difference = _difference(self._base, self._engine.log_probabilities(self._prompts, adapter))
        if not np.isfinite(difference):
            raise CellError(f"adapter {adapter.name} gives log-probabilities that are no numbers; was it trained well?")
        if difference <= self.tolerance:
            raise CellError(
                f"adapter {adapter.name} changes nothing: on {len(self._prompts)} prompts its log-probabilities equal "
                f"the base model's (largest difference {difference:.1e}, tolerance {self.tolerance:.1e}). Either it "
                "names no module of this model, or training left it at zero."
            )
        return difference


def _difference(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore"):  # inf - inf
        return float(np.max(np.abs(a - b), initial=0.0))
