"""What an API charges for a plan, by the prices that the sweep gives. No price is known here: they change too often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvray.models.reference import API
from kvray.planning.artefacts import Plan
from kvray.planning.cost.rates import model_of
from kvray.planning.cost.stages import Item

_CHARACTERS_PER_TOKEN = 4
"""Of English, about; for a system message alone, whose tokens nobody has counted."""
_MESSAGE_TOKENS = 8
"""That an API's chat format adds to a request: about 4 per message (user and system)."""


def bill(todo: Sequence[Item], planned: Plan) -> Bill:
    """Return the tokens that a plan sends through an API, and their price by the sweep's ``runtime.api_price_…``.

    Prompts count with the system message, replies as long as their tasks expect them, training by tokens times epochs.
    """
    runtime = planned.sweep.runtime
    system = len(planned.sweep.system_message or "") // _CHARACTERS_PER_TOKEN + _MESSAGE_TOKENS
    tokens = {"input": 0, "output": 0, "training": 0}
    for item in todo:
        if item.artefact.kind != "dataset" and model_of(item.artefact, planned).startswith(API):
            tokens["training" if item.artefact.kind == "finetune" else "input"] += item.reads + system * item.rows
            tokens["output"] += item.writes
    return Bill(tokens, {name: getattr(runtime, f"api_price_{name}") for name in tokens})


@dataclass(frozen=True)
class Bill:
    """What goes through an API: tokens, and prices in USD per million, of "input", "output" and "training"."""

    tokens: dict[str, int]
    prices: dict[str, float | None]

    @property
    def usd(self) -> float | None:
        """The price of all of it; None if a price is missing."""
        used = {name: number for name, number in self.tokens.items() if number}
        prices = {name: self.prices[name] for name in used}
        if None in prices.values():
            return None
        return sum((number / 1e6 * (prices[name] or 0.0) for name, number in used.items()), 0.0)

    def text(self) -> str:
        """Return it in one line; empty where nothing goes through an API."""
        used = {name: number for name, number in self.tokens.items() if number}
        if not used:
            return ""
        what = ", ".join(f"{number:,} {name}" for name, number in used.items())
        if self.usd is None:
            absent = ", ".join(f"runtime.api_price_{name}" for name in used if self.prices[name] is None)
            return f"{what} tokens; no prices given ({absent}: USD per million tokens)"
        each = ", ".join(f"{name} {self.prices[name]:g}" for name in used)
        return f"{what} tokens: about {self.usd:,.2f} USD ({each} per million)"
