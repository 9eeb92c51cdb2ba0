"""Every sweep that ships can be read at every scale, and planned where neither a hub nor a GPU is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvray.errors import SourceUnreachableError
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning import inputs
from kvray.planning.artefacts import Plan
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.sweep.load import load

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "sweeps").rglob("*.yaml")
    if not {"tasks", "instructions"} & {*path.parts}
)
SHIPPED = [name for name in SWEEPS if name.startswith(("sweeps/paper/", "sweeps/open/", "sweeps/your-own"))]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub does not answer, whatever this machine reaches."""

    def local(name: str, tokenizer: str | None = None) -> BaseModelRef:
        if "/" in name or "/" in (tokenizer or ""):
            raise SourceUnreachableError(f"base_model: the hub does not answer for {name}")
        return resolve(name, tokenizer)

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(inputs, "resolve", local)


def planned(name: str, scale: str | None = None) -> Plan:
    sweep = load(name, scale=scale, allow_code=True)
    return plan(sweep, gather(sweep, offline=scale is None))


@pytest.mark.parametrize("name", SHIPPED)
def test_it_is_planned_without_a_hub(name: str) -> None:
    found = planned(name)
    assert found.notes
    assert {artefact.kind for artefact in found.artefacts} >= {"dataset", "finetune", "predictions"}
    assert all(artefact.rows > 0 for artefact in found.artefacts)


@pytest.mark.parametrize("name", SHIPPED)
def test_its_small_scale_needs_neither_hub_nor_gpu(name: str) -> None:
    found = planned(name, "small")
    assert not found.notes and found.base_model == "kvray-tiny"
    assert found.sweep.name.endswith("-small")
    assert sum(artefact.kind == "finetune" for artefact in found.artefacts) <= 6


@pytest.mark.parametrize("name", SHIPPED)
def test_it_opens_with_its_question_its_commands_and_its_cost(name: str) -> None:
    head = (ROOT / name).read_text().split("\nname:")[0]
    assert head.splitlines()[0].startswith("# ") and "?" in head
    assert f"kvray run {name}" in head and "--scale small" in head
    assert "GPU-hours" in head or "USD" in head
