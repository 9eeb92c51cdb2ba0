"""The doctor names the node and the package; on one whole machine it finds nothing."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import kvray
from kvray.cli.doctor import PACKAGES, Node, Report, check, judge
from kvray.store.store import Store

VERSIONS: dict[str, str | None] = {"python": "3.11.7", **dict.fromkeys(PACKAGES, "1.0")}


def node(name: str = "10.0.0.1 (aa)", **changes: Any) -> Node:
    values: dict[str, Any] = {
        **{"id": name, "name": name, "resources": {"CPU": 8.0}, "versions": dict(VERSIONS), "cpus": 8},
        **{"memory_bytes": 2**35, "gpus": [], "cuda": False, "store": None},
    }
    return Node(**{**values, **changes})


def test_alike_nodes_have_no_problem() -> None:
    assert judge([node("a"), node("b")]) == []


def test_a_version_that_differs_names_every_node() -> None:
    (line,) = judge([node("a"), node("b", versions={**VERSIONS, "torch": "2.0"}), node("c")])
    assert line.startswith("torch differs") and "1.0 on a, c" in line and "2.0 on b" in line


def test_a_missing_package_comes_with_its_command() -> None:
    (line,) = judge([node("a", versions={**VERSIONS, "vllm": None})])
    assert line == "a: vllm is missing: type make setup in a clone of kvray"
    (line,) = judge([node("a", versions={**VERSIONS, "vllm": None}, gpus=["A10G, 24 GiB"], cuda=True)])
    assert line == "a: vllm is missing: type pip install '.[gpu]' in a clone of kvray"


def test_a_package_of_benchmarks_is_on_all_nodes_or_on_none() -> None:
    assert judge([node("a"), node("b")]) == []
    (line,) = judge([node("a", versions={**VERSIONS, "lm_eval": "0.4"}), node("b")])
    assert line.startswith("b: lm_eval is missing, which other nodes have: type pip install '.[benchmarks]'")


def test_no_message_installs_kvray_from_an_index_that_does_not_have_it() -> None:
    package = Path(kvray.__file__).parent
    for file in [*package.rglob("*.py"), *package.parent.glob("*.*"), *package.parent.glob("*/*.*")]:
        if file.suffix in {".py", ".md", ".yaml", ".txt", ".toml"} and file != Path(__file__):
            assert not re.search(r"install[^\n]*\bkvray\[", file.read_text()), file


def test_a_gpu_that_torch_does_not_see_is_a_problem() -> None:
    (line,) = judge([node("a", gpus=["A10G, 24 GiB"])])
    assert "torch sees none" in line


def test_a_store_out_of_reach_names_the_node() -> None:
    (line,) = judge([node("a"), node("b", store="StoreError: no route")])
    assert line == "b: does not reach the store: StoreError: no route"


def test_the_text_has_a_column_per_node_and_every_problem() -> None:
    text = Report("/s", (node("one"), node("two", store="no")), ("two: does not reach the store: no",)).text()
    assert all(part in text for part in ("one", "two", "NOT REACHED", "problem: two: does not reach", "3.11.7"))


@pytest.mark.usefixtures("ray_two_cpus")
def test_every_node_of_a_running_ray_answers(tmp_path: Path) -> None:
    found = check(Store(tmp_path / "store"))
    assert found.problems == ()
    (here,) = json.loads(json.dumps(asdict(found)))["nodes"]
    assert here["versions"]["ray"] and here["versions"]["vllm"] and here["resources"]["CPU"] == 2
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("ray_two_cpus")
def test_a_store_that_cannot_be_written_is_told_for_here_and_for_the_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = check(Store(tmp_path / "file" / "store"))
    assert any("cannot be written from here" in problem for problem in found.problems)
    assert any("does not reach the store" in problem for problem in found.problems)
