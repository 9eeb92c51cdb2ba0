"""The doctor names the node and what is wrong with it; each kind of problem is real here, or told by a stand-in."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fake_cluster import GPU_NODE, autoscaling
from small_disk import disk, fill  # noqa: F401  # a fixture

import kvray
from kvray.cli.doctor import probe
from kvray.cli.doctor.check import Report, check
from kvray.cli.doctor.judge import DRIVERS, PACKAGES, Node, Problem, judge
from kvray.store.store import Store
from kvray.sweep.model import Runtime

VERSIONS: dict[str, str | None] = {"python": "3.11.7", **dict.fromkeys(PACKAGES, "1.0")}
GPU = {"name": "NVIDIA A10G", "memory_mib": "23028", "driver": "580.95.05"}
CUDA = {"build": "13.0", "error": None}


def told(what: str, **changes: Any) -> dict[str, Any]:
    return {"what": what, "path": f"/{what}", "device": 1, "free": 2**40, "error": None, **changes}


def node(name: str = "10.0.0.1 (aa)", **changes: Any) -> Node:
    values: dict[str, Any] = {
        **{"id": name, "name": name, "resources": {"CPU": 8.0}, "versions": dict(VERSIONS), "cpus": 8},
        **{"memory_bytes": 2**35, "gpus": [], "cuda": None, "disks": [None, told("scratch"), told("model cache")]},
        **{"shared_memory": 2**33, "store": None, "base": None},
    }
    return Node(**{**values, **changes})


def one(nodes: list[Node], weights: int = 0) -> Problem:
    (problem,) = judge(nodes, weights)
    return problem


def test_alike_nodes_have_no_problem() -> None:
    assert judge([node("a"), node("b", gpus=[GPU], cuda=CUDA, resources={"GPU": 1.0})]) == []


@pytest.mark.parametrize("name", ["python", "kvray", "ray", "torch", "vllm"])
def test_a_version_that_differs_names_every_node(name: str) -> None:
    problem = one(
        [node("a"), node("b", versions={**VERSIONS, name: "2.0"}), node("c", versions={**VERSIONS, name: "1.9"})]
    )
    assert problem.found.startswith(f"{name} ") and all(
        each in problem.found for each in ("1.9 on c", "2.0 on b", " on a")
    )
    assert problem.stops


def test_a_missing_package_comes_with_its_command() -> None:
    lacking = {**VERSIONS, "vllm": None}
    assert str(one([node("a", versions=lacking)])).endswith(
        "found no vllm; expected the package; type make setup in a clone of kvray"
    )
    assert (
        one([node("a", versions=lacking, gpus=[GPU], cuda=CUDA)]).todo
        == "type pip install '.[gpu]' in a clone of kvray"
    )


def test_a_package_of_benchmarks_is_on_all_nodes_or_on_none() -> None:
    assert judge([node("a"), node("b")]) == []
    problem = one([node("a", versions={**VERSIONS, "lm_eval": "0.4"}), node("b")])
    assert (problem.where, problem.found) == ("b", "no lm_eval") and "'.[benchmarks]'" in problem.todo


def test_no_message_installs_kvray_from_an_index_that_does_not_have_it() -> None:
    package = Path(kvray.__file__).parent
    for file in [*package.rglob("*.py"), *package.parent.glob("*.*"), *package.parent.glob("*/*.*")]:
        if file.suffix in {".py", ".md", ".yaml", ".txt", ".toml"} and file != Path(__file__):
            assert not re.search(r"install[^\n]*\bkvray\[", file.read_text()), file


@pytest.mark.parametrize(
    ("build", "driver", "stops"),
    [("13.0", "570.86.15", True), ("12.8", "570.86.15", False), ("13.2", "580.65.06", False)],
)
def test_a_driver_too_old_for_the_installed_cuda_is_a_problem(build: str, driver: str, stops: bool) -> None:
    problems = judge([node("a", gpus=[{**GPU, "driver": driver}], cuda={"build": build, "error": None})])
    assert [problem.stops for problem in problems] == [True] * stops
    for problem in problems:
        assert driver in problem.found and "580" in problem.expected and "nvidia-driver-580" in problem.todo


def test_the_least_driver_is_known_for_the_cuda_of_the_pinned_wheels() -> None:
    pinned = (Path(kvray.__file__).parent.parent / "requirements/gpu.txt").read_text()
    cuda = re.search(r"^nvidia-cuda-runtime==(\d+)", pinned, re.MULTILINE)
    assert cuda and int(cuda[1]) in DRIVERS


def test_a_gpu_that_torch_does_not_see_or_the_container_not_has_is_a_problem() -> None:
    problem = one([node("a", gpus=[GPU], cuda={"build": None, "error": "Torch not compiled with CUDA enabled"})])
    assert "torch cannot use" in problem.found and "'.[gpu]'" in problem.todo
    problem = one([node("a", resources={"CPU": 8.0, "GPU": 2.0})])
    assert problem.found == "no GPU by nvidia-smi" and "--gpus all" in problem.todo


def test_a_container_with_docker_s_own_shared_memory_stops_gpus_alone() -> None:
    assert not one([node("a", shared_memory=64 * 2**20)]).stops
    problem = one([node("a", shared_memory=64 * 2**20, gpus=[GPU], cuda=CUDA)])
    assert problem.stops and "64 MiB" in problem.found and "--shm-size" in problem.todo


def test_a_clock_that_is_off_names_the_node() -> None:
    problem = one([node("a"), node("b", skew=3600.0)])
    assert problem.where == "b" and "3600 s off" in problem.found


def test_a_store_or_weights_out_of_reach_name_the_node() -> None:
    problem = one([node("a"), node("b", store="StoreError: no route")])
    assert problem.where == "b" and problem.found == "no use of the store: StoreError: no route"
    assert "HF_TOKEN" in one([node("a", base="m is gated, and this node has no token")]).todo
    assert "hf download" in one([node("a", base="the hub does not give it")]).todo


def test_a_disk_must_hold_the_model_once_for_each_place_on_it() -> None:
    model = 14 * 2**30
    small = [None, told("scratch", free=20 * 2**30), told("model cache", free=20 * 2**30, device=2)]
    assert judge([node("a", disks=small)], model) == []
    shared = [{**each, "device": 1} if each else None for each in small]
    found = judge([node("a", disks=shared)], model)
    assert ["29.0 GiB or more" in problem.expected for problem in found] == [True, True]
    assert "runtime.scratch" in found[0].todo and "runtime.model_cache" in found[1].todo


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_seen(disk: Path) -> None:  # noqa: F811
    fill(disk, left=8)
    full = probe.disk("scratch", str(disk / "not" / "there" / "yet"))
    assert full["free"] == 8 * 4096 and full["error"] is None
    fill_rest = disk / "more"
    fill_rest.write_bytes(bytes(8 * 4096))
    assert "No space left" in probe.disk("scratch", str(disk))["error"]
    (problem,) = judge([node("a", disks=[None, {**full, "path": str(disk)}, told("model cache")])])
    assert "0 MiB free for the scratch" in problem.found


def test_a_store_that_forgets_its_conditions_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvray.store.places.local import LocalFiles

    Store(tmp_path).write_document("doctor/x-driver", b"x")
    assert probe.store(str(tmp_path), "doctor/x", "node") is None
    assert "another place" in str(probe.store(str(tmp_path / "elsewhere"), "doctor/x", "node"))
    monkeypatch.setattr(LocalFiles, "put_new", lambda self, path, data: self.put(path, data) or True)
    assert "who was first" in str(probe.store(str(tmp_path), "doctor/x", "node"))
    assert not [path for path in tmp_path.rglob("*once*")]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A hub of this machine: ``open/model`` answers, ``gated/model`` wants a log-in; the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/gated/"):
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
            elif self.path.startswith("/open/"):
                self.send_response(200)
                self.send_header("ETag", '"abc"')
                self.send_header("X-Repo-Commit", "c" * 40)
                self.send_header("Content-Length", "7")
            else:
                self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    yield asked
    server.shutdown()


def weights(location: str, revision: str | None = "c" * 40) -> Mapping[str, Any]:
    return {"location": location, "revision": revision, "file": "model.safetensors"}


def test_gated_weights_are_told_from_a_hub_that_has_none_and_one_that_is_away(hub: list[str], tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert probe.base(weights("open/model"), cache) is None
    assert "is gated" in str(probe.base(weights("gated/model"), cache))
    assert "does not give model.safetensors of no/model" in str(probe.base(weights("no/model"), cache))
    assert hub[0] == f"/open/model/resolve/{'c' * 40}/model.safetensors"


def test_weights_in_the_node_s_cache_need_no_hub(hub: list[str], tmp_path: Path) -> None:
    held = tmp_path / "hub" / "models--gated--model" / "snapshots" / ("c" * 40)
    held.mkdir(parents=True)
    (held / "model.safetensors").write_bytes(b"weights")
    assert probe.base(weights("gated/model"), str(tmp_path)) is None and hub == []


def test_a_hub_that_is_away_and_a_directory_that_is_missing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    away = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", away)
    assert "does not give" in str(probe.base(weights("open/model"), str(tmp_path)))
    assert probe.base(weights(str(tmp_path), None), "") is None
    assert "is not on this node" in str(probe.base(weights(str(tmp_path / "gone"), None), ""))


def test_the_driver_and_the_gpus_are_read_off_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L40S, 46068, 580.95.05'\necho 'NVIDIA L40S, 46068, 580.95.05'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = probe._gpus()
    assert found == [{"name": "NVIDIA L40S", "memory_mib": "46068", "driver": "580.95.05"}] * 2
    text = Report("/s", (node("a", gpus=found, cuda=CUDA),), ()).text()
    assert "2 x NVIDIA L40S 45 GiB" in text and "580.95.05" in text and text.endswith("no problems")


def test_the_probe_needs_nothing_but_python_to_be_loaded() -> None:
    """A node may lack kvray: what is sent there must not import it."""
    source = Path(probe.__file__).read_text().split("def look")[0]
    imported = set(re.findall(r"^(?:import|from) (\w+)", source, re.MULTILINE))
    assert imported <= sys.stdlib_module_names


def test_the_text_has_a_column_per_node_and_every_problem() -> None:
    problem = Problem("two", "no use of the store: no", "read, write", "give it credentials")
    report = Report("/s", (node("one"), node("two", store="no")), (problem,))
    assert all(part in report.text() for part in ("one", "two", "expected", "NOT REACHED", "3.11.7"))
    assert "problem: two: found no use of the store: no; expected read, write; give it credentials" in report.text()
    assert report.stops and not Report("/s", (), (Problem("a", "b", "c", "d", stops=False),)).stops


@pytest.mark.usefixtures("ray_two_cpus")
def test_every_node_of_a_running_ray_answers(tmp_path: Path) -> None:
    found = check(Store(tmp_path / "store"), Runtime(scratch=str(tmp_path)), "kvray-tiny")
    assert found.problems == ()
    (here,) = json.loads(json.dumps(asdict(found)))["nodes"]
    assert here["versions"]["ray"] and here["versions"]["vllm"] and here["resources"]["CPU"] == 2
    assert [each["what"] for each in here["disks"]] == ["store", "scratch", "model cache"] and here["skew"] == 0
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("ray_two_cpus")
def test_a_store_that_cannot_be_written_is_told_for_here_and_for_the_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = check(Store(tmp_path / "file" / "store"), base_model="no-such-model")
    told = [str(problem) for problem in found.problems]
    assert any("driver: found store" in problem and "cannot be written from here" in problem for problem in told)
    assert any("no use of the store" in problem for problem in told)
    assert any("no-such-model" in problem for problem in told) and found.stops


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_gpu_node_is_started_before_anything_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with autoscaling({"gpu": (GPU_NODE, 1)}) as cluster:
        for name, value in cluster.environment().items():
            monkeypatch.setenv(name, value)
        waited = check(Store(tmp_path), wait_minutes=0)
        assert [node.resources.get("GPU", 0) for node in waited.nodes] == [0]
        found = check(Store(tmp_path), wait_minutes=2)
    assert sorted(node.resources.get("GPU", 0) for node in found.nodes) == [0, 1]
    # The node is a process of this machine, whose GPU Ray made up.
    assert [problem.found for problem in found.problems] == ["no GPU by nvidia-smi"]
