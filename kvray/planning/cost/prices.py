"""What an API charges for a plan, by the prices that the sweep gives. No price is known here: they change too often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvray.models.reference import API
from kvray.planning.artefacts import FinetuneJob, Plan
from kvray.planning.cost.rates import Work, model_of

_CHARACTERS_PER_TOKEN = 4
"""Of English, about; for a system message alone, whose tokens nobody has counted."""
_MESSAGE_TOKENS = 8
"""That an API's chat format adds to a request: about 4 per message (user and system)."""


def bill(todo: Sequence[Work], planned: Plan) -> Bill:
    """Return the tokens that a plan sends through an API, and their price.

    Prompts count with the system message, replies as long as their tasks expect them, training by tokens times epochs.

    Args:
        todo: what is to be made.
        planned: the plan whose sweep gives prices, USD per million tokens (``runtime.api_price_…``).
    """
    runtime = planned.sweep.runtime
    system = len(planned.sweep.system_message or "") // _CHARACTERS_PER_TOKEN + _MESSAGE_TOKENS
    tokens = {"input": 0, "output": 0, "training": 0}
    for work in todo:
        if work.artefact.kind == "dataset" or not model_of(work.artefact, planned).startswith(API):
            continue
        read = work.reads + system * work.rows
        if isinstance(work.artefact.params, FinetuneJob):
            tokens["training"] += read
        else:
            tokens["input"] += read
            tokens["output"] += work.writes
    prices = {
        "input": runtime.api_price_input,
        "output": runtime.api_price_output,
        "training": runtime.api_price_training,
    }
    return Bill(tokens, prices)


@dataclass(frozen=True)
class Bill:
    """What goes through an API.

    Attributes:
        tokens: "input", "output" and "training".
        prices: USD per million of each; None where the sweep gives none.
    """

    tokens: dict[str, int]
    prices: dict[str, float | None]

    @property
    def missing(self) -> list[str]:
        """The prices that are needed and not given."""
        return [name for name, number in self.tokens.items() if number and self.prices[name] is None]

    @property
    def usd(self) -> float | None:
        """The price of all of it; None if a price is missing."""
        if self.missing:
            return None
        return sum(number / 1e6 * (self.prices[name] or 0.0) for name, number in self.tokens.items())

    def text(self) -> str:
        """Return it in one line; empty where nothing goes through an API."""
        used = {name: number for name, number in self.tokens.items() if number}
        if not used:
            return ""
        what = ", ".join(f"{number:,} {name}" for name, number in used.items())
        if self.usd is None:
            absent = ", ".join(f"runtime.api_price_{name}" for name in self.missing)
            return f"{what} tokens; no prices given ({absent}: USD per million tokens)"
        each = ", ".join(f"{name} {self.prices[name]:g}" for name in used)
        return f"{what} tokens: about {self.usd:,.2f} USD ({each} per million)"

    def document(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {"tokens": self.tokens, "usd": None if self.usd is None else round(self.usd, 4)}
