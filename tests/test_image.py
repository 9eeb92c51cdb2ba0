"""The Dockerfile, what it copies, and the pinned sets that it installs. What builds it is not on every machine."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETS = {"cpu": ("cpu.txt", "benchmarks.txt"), "gpu": ("gpu.txt",)}
EXTRAS = {"cpu": ("cpu", "benchmarks"), "gpu": ("gpu", "benchmarks")}


def instructions() -> list[tuple[str, str, str]]:
    """Return (stage, instruction, its arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found, stage = [], ""
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stage = rest.split()[-1]
        found.append((stage, word, rest))
    return found


def pins(name: str) -> dict[str, Version]:
    """Return the versions of a requirements file by package; every line must pin one."""
    lines = [line for line in (ROOT / "requirements" / name).read_text().splitlines() if not line.startswith("#")]
    pairs = [line.partition(";")[0].split("==") for line in lines]
    assert [pair for pair in pairs if len(pair) != 2] == []
    return {canonicalize_name(package): Version(version.strip()) for package, version in pairs}


def pinned(kind: str) -> dict[str, Version]:
    return {package: version for name in SETS[kind] for package, version in pins(name).items()}


def asked(extra: str) -> list[Requirement]:
    """Return what an extra asks for, the extras of the package's own that it includes among it."""
    needs = [Requirement(need) for need in PROJECT["optional-dependencies"][extra]]
    own = [need for need in needs if need.name == PROJECT["name"]]
    return [need for need in needs if need not in own] + [
        each for need in own for part in need.extras for each in asked(part)
    ]


@pytest.mark.parametrize("kind", SETS)
def test_the_pinned_set_is_what_the_package_asks_for(kind: str) -> None:
    needs = [Requirement(need) for need in PROJECT["dependencies"]]
    for extra in EXTRAS[kind]:
        needs += asked(extra)
    have = pinned(kind)
    for need in needs:
        name = canonicalize_name(need.name)
        assert need.specifier.contains(have[name], prereleases=True), f"{name}: {have[name]}, expected {need.specifier}"


def test_the_set_of_the_tests_is_what_the_development_extra_asks_for() -> None:
    have = pinned("cpu") | pins("dev.txt")
    lacking = [str(need) for need in asked("dev") if canonicalize_name(need.name) not in have]
    assert lacking == []
    assert [str(need) for need in asked("dev") if not need.specifier.contains(have[canonicalize_name(need.name)])] == []


def test_the_gpu_set_has_cuda_13_and_no_cpu_build() -> None:
    have = pins("gpu.txt")
    assert {"vllm", "torch", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} <= set(have)
    assert have["nvidia-cuda-runtime"].major == 13
    assert not [f"{name}=={version}" for name, version in have.items() if version.local or name.endswith("-cpu")]


def test_what_both_sets_have_is_of_one_version() -> None:
    """What is tested on CPUs is what runs on GPUs, except where vLLM's two builds ask for different ones."""
    cpu, gpu = pinned("cpu"), pinned("gpu")
    differing = {name for name in cpu.keys() & gpu.keys() if cpu[name].public != gpu[name].public}
    assert differing == {"triton", "apache-tvm-ffi"}


@pytest.mark.parametrize("kind", SETS)
def test_a_target_installs_its_pinned_set_as_it_is_and_runs_as_nobody_in_particular(kind: str) -> None:
    own = [(word, rest) for stage, word, rest in instructions() if stage == kind]
    installs = " ".join(rest for word, rest in own if word == "RUN" and "pip install" in rest)
    assert set(re.findall(r"-r (\S+)", installs)) == set(SETS[kind])
    assert installs.count("pip install") == installs.count("pip install --no-deps")
    assert [rest for word, rest in own if word == "USER"] == ["1000:100"]
    assert not any(word == "ENTRYPOINT" for word, _ in own), "the cluster launcher runs a shell of its own"


def test_the_image_has_no_secret_and_takes_only_what_exists() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert ignored[0] == "*", "all is left out but what is named"
    for _, word, rest in instructions():
        assert not (word in ("ENV", "ARG") and re.search(r"TOKEN|SECRET|PASSWORD|_KEY", rest)), rest
        assert word != "ADD"
        if word == "COPY":
            for source in [part for part in rest.split() if not part.startswith("--")][:-1]:
                assert (ROOT / source).exists()
                assert any(fnmatch.fnmatch(source, each) or source.startswith(f"{each}/") for each in allowed), source


def test_the_image_is_of_a_python_that_the_package_and_the_pinned_set_take() -> None:
    (version,) = [rest.split("=")[1] for _, word, rest in instructions() if word == "ARG" and rest.startswith("PYTHON")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(version)
    assert f"Python {version}" in (ROOT / "requirements/gpu.txt").read_text()
