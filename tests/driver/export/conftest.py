"""One store for all tests of exports; none of them writes to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import shipped_store as shipped

from kvray.models.reference import BUNDLED, BaseModelRef, resolve
from kvray.store.store import Store


@pytest.fixture(scope="session")
def base() -> BaseModelRef:
    return resolve("kvray-tiny")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, base: BaseModelRef) -> Store:
    """The sweep ``small`` (LoRA, two mixtures, two seeds), and one each of attention, whole weights and a directory."""
    home = tmp_path_factory.mktemp("shipped")
    store = Store(home / "store")
    shipped.fill(store, shipped.planned(), base)
    one = {"datasets": {"kv": shipped.SWEEP["datasets"]["kv"]}, "mixtures": {"kv": {"kv": 1}}, "evaluate": {}}
    for method in ("attention", "full"):
        made = shipped.planned(**one, name=method, finetune={"method": method, "learning_rate": 1e-3})
        shipped.fill(store, made, base)
    folder = home / "my-base"
    shutil.copytree(BUNDLED["kvray-tiny"], folder)
    (folder / "README.md").write_text("A model without a licence.\n")
    own = shipped.planned(**one, name="own", base_model=str(folder), finetune={"learning_rate": 1e-3, "lora_rank": 4})
    shipped.fill(store, own, resolve(str(folder)))
    return store


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
