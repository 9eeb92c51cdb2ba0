"""`make setup` on machines that are not ours: which torch it takes, from where, which Python, and what it refuses."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"
BACKEND = '''\
"""A build backend that needs nothing installed: an editable wheel without any file."""
import zipfile

def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "standin-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{directory}/{name}", "w") as wheel:
        wheel.writestr("standin-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: standin\\nVersion: 1.0\\n")
        wheel.writestr("standin-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("standin-1.0.dist-info/RECORD", "")
    return name
'''
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "standin"
version = "1.0"
"""


def wheel(folder: Path, name: str, version: str, code: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")


class Indexes(ThreadingHTTPServer):
    """Folders of this host as package indexes (a listing is all that pip needs), and every path that was asked for."""

    def __init__(self, folder: Path) -> None:
        asked: list[str] = []
        self.asked = asked

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, code: object = "-", size: object = "-") -> None:
                asked.append(self.path)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


@pytest.fixture
def indexes(tmp_path: Path) -> Iterator[Indexes]:
    """A public index, whose torch is the CUDA build, and one of CPU builds, whose other packages must stay there."""
    folder = tmp_path / "indexes"
    wheel(folder / "public/torch", "torch", "2.13.0", "raise ImportError('libcudart.so')")
    wheel(folder / "public/helper", "helper", "1.0", "origin = 'public'")
    wheel(folder / "cpu/torch", "torch", "2.13.0+cpu", "origin = 'cpu'")
    wheel(folder / "cpu/helper", "helper", "1.0", "origin = 'cpu'")
    server = Indexes(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A project in place of kvray that has the files which the recipe reads."""
    folder = tmp_path / "clone"
    (folder / "requirements").mkdir(parents=True)
    (folder / "requirements/cpu.txt").write_text("helper==1.0\ntorch==2.13.0+cpu\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    return folder


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the recipe in an environment that has no setting of pip but those given."""
    ours = ("PIP_", "PYTHON", "MAKE", "MFLAGS", "TORCH_INDEX")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["make", "--file", str(MAKEFILE), *arguments],
        cwd=clone,
        env=kept | {"HOME": str(clone), "PIP_CONFIG_FILE": os.devnull, "NO_PROXY": "127.0.0.1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def setup(clone: Path, indexes: Indexes, **environment: str) -> subprocess.CompletedProcess[str]:
    return make(
        clone, "setup", f"PYTHON={sys.executable}", f"TORCH_INDEX={indexes.url('cpu')}",
        PIP_INDEX_URL=indexes.url("public"), **environment,
    )  # fmt: skip


def installed(clone: Path) -> str:
    code = "import helper, torch; print(torch.origin, helper.origin)"
    return subprocess.run([clone / ".venv/bin/python", "-c", code], check=True, capture_output=True, text=True).stdout


def test_without_any_setting_torch_is_the_cpu_build_and_nothing_else_is_looked_up_where_it_is_from(
    clone: Path, indexes: Indexes
) -> None:
    done = setup(clone, indexes)
    assert done.returncode == 0, done.stderr
    assert "asking http://127.0.0.1" in done.stdout
    assert installed(clone) == "cpu public\n"
    assert {path for path in indexes.asked if path.startswith("/cpu/")} == {
        "/cpu/torch/",
        "/cpu/torch/torch-2.13.0%2Bcpu-py3-none-any.whl",
    }
    assert make(clone, "setup").stdout.startswith("make: Nothing to be done")


def test_a_cpu_build_where_pip_is_configured_to_look_is_taken_and_the_index_of_torch_is_not_asked(
    clone: Path, indexes: Indexes, tmp_path: Path
) -> None:
    wheel(tmp_path / "mine", "torch", "2.13.0+cpu", "origin = 'mine'")
    done = setup(clone, indexes, PIP_FIND_LINKS=str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    assert installed(clone) == "mine public\n"
    assert not [path for path in indexes.asked if path.startswith("/cpu/")]


def test_no_cpu_build_anywhere_says_what_to_set(clone: Path, indexes: Indexes, tmp_path: Path) -> None:
    (tmp_path / "indexes/cpu/torch/torch-2.13.0+cpu-py3-none-any.whl").unlink()
    done = setup(clone, indexes)
    assert done.returncode != 0
    assert "set TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with the wheel" in done.stderr
    assert not (clone / ".venv/.installed").exists()


@pytest.mark.parametrize("system", ["Darwin", "MINGW64_NT-10.0"])
def test_another_system_than_linux_is_told_in_one_sentence(clone: Path, system: str) -> None:
    done = make(clone, "setup", f"SYSTEM={system}")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert system in said[0] and "Linux container or virtual machine" in said[0]
    assert not (clone / ".venv").exists()


def scripts(folder: Path, **bodies: str) -> str:
    """Write executables; return a PATH of them and of the few programs that the recipe itself needs."""
    folder.mkdir()
    for name, body in bodies.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    for needed in ("sh", "make", "uname", "grep", "cat", "touch"):
        found = next(Path(path, needed) for path in ("/usr/bin", "/bin") if Path(path, needed).exists())
        (folder / needed).symlink_to(found)
    return str(folder)


def test_the_first_python_that_runs_and_can_make_environments_is_taken(clone: Path, tmp_path: Path) -> None:
    path = scripts(
        tmp_path / "bin",
        **{
            "python3.11": "exit 127",  # a shim of a version that is not selected
            "python3.12": 'case "$2" in *ensurepip*) exit 1;; esac; exit 0',  # Debian's without python3-venv
            "python3.13": f'exec {sys.executable} "$@"',
        },
    )
    done = make(clone, "--dry-run", "setup", PATH=path)
    assert "python3.13 -m venv .venv" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("given", [[], ["PYTHON=python2.7"], ["PYTHON=/nowhere/python"]])
def test_no_python_that_fits_is_told_in_one_sentence(clone: Path, tmp_path: Path, given: list[str]) -> None:
    path = scripts(tmp_path / "bin", **{"python2.7": "exit 1", "python3": "exit 1"})
    done = make(clone, "setup", *given, PATH=path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert "expected Python 3.11 to 3.13" in said[0] and "make PYTHON=/path/to/python" in said[0]
    assert not (clone / ".venv").exists()


def test_a_machine_without_a_compiler_is_told_in_one_sentence(clone: Path, tmp_path: Path) -> None:
    done = make(clone, "setup", f"PYTHON={sys.executable}", PATH=scripts(tmp_path / "bin"), CXX="g++")
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1
    assert said[0].startswith("g++: not found") and "apt install g++" in said[0]
    assert not (clone / ".venv").exists()
