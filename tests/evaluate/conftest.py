"""A small base model and adapters of every kind, made once."""

from __future__ import annotations

from pathlib import Path

import evaluate_store as made
import pytest

from kvray.models.reference import BaseModelRef


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModelRef:
    return made.make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def adapters(base: BaseModelRef, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters by kind: two real ones, one that is zero, one that matches no module, one whose weights are cut off."""
    home = tmp_path_factory.mktemp("adapters")
    found = {
        "real": made.make_adapter(base, home / "real"),
        "other": made.make_adapter(base, home / "other", seed=1),
        "zero": made.make_adapter(base, home / "zero", strength=0.0),
    }
    found["lost"] = made.rename_modules(found["real"], home / "lost")
    found["cut"] = made.make_adapter(base, home / "cut", seed=2)
    weights = found["cut"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return found
