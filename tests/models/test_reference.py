"""A name is found where it lies, without a hub too; a name that stands for nothing says what was meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvray.errors import InputError, SourceUnreachableError
from kvray.models import reference
from kvray.models.reference import BUNDLED, BaseModelRef, files_of, resolve, tensor_names

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "acme/tiny-instruct"


def cached_model(home: Path, commit: str = COMMIT, branch: str | None = "main") -> Path:
    """Make what ``hf download`` leaves behind: files under their hashes, a commit that links to them, a branch."""
    folder = home / "hub" / "models--acme--tiny-instruct"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in BUNDLED["kvray-tiny"].iterdir():
        shutil.copy(file, folder / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    if branch:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
    return snapshot


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize("branch", ["main", None])
def test_a_model_in_the_hub_s_cache_is_the_one_that_the_hub_gives(home: Path, branch: str | None) -> None:
    snapshot = cached_model(home, branch=branch)
    found = resolve(NAME)
    assert (found.identity, found.revision, found.location) == (f"hub:{NAME}@{COMMIT}", COMMIT, NAME)
    here = found.here()
    assert (here.location, here.revision, here.identity) == (str(snapshot), None, found.identity)
    files = files_of(found)
    assert files is not None and files.served_length == 32768


def test_a_machine_whose_cache_lacks_the_model_asks_the_hub_for_the_same_commit(home: Path) -> None:
    cached_model(home)
    found = resolve(NAME)
    shutil.rmtree(home / "hub")
    assert found.here() == found and found.revision == COMMIT


def test_without_hub_and_cache_two_ways_are_named(home: Path) -> None:
    with pytest.raises(SourceUnreachableError, match=rf"Two ways need no hub: .*hf download {NAME} .*set HF_HOME"):
        resolve(NAME)
    cached_model(home, branch=None)
    cached_model(home, commit=COMMIT[::-1], branch=None)
    # Which of two commits is meant is not for us to guess.
    with pytest.raises(SourceUnreachableError):
        resolve(NAME)


def test_a_download_that_was_cut_off_is_told_by_what_is_missing(home: Path) -> None:
    snapshot = cached_model(home)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(InputError, match=rf"{NAME}, in the hub's cache at .*, has no weights"):
        resolve(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kvray-tinny", "did you mean 'kvray-tiny'?"),
        ("KVRay-Tiny", "did you mean 'kvray-tiny'?"),
        ("gpt2", "is no bundled model"),
        ("a/b/c", "'a/b/c' is neither a directory nor a hub id, which is org/name"),
        ("or g/x", "is neither a directory nor a hub id"),
        ("org/a--b", "is neither a directory nor a hub id"),
        ("org/" + "x" * 97, "is neither a directory nor a hub id"),
        ("./nope", "is no directory; expected one with config.json, a tokenizer and weights"),
    ],
)
def test_names_of_nothing_are_refused_without_asking_anybody(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_in_cache", lambda *_: pytest.fail("asked"))
    with pytest.raises(InputError) as caught:
        resolve(name)
    assert not isinstance(caught.value, SourceUnreachableError)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_cached_model_is_loaded_in_a_process_that_reaches_no_hub(tmp_path: Path) -> None:
    cached_model(tmp_path)
    code = (
        "from kvray.models.reference import resolve, load_tokenizer\n"
        "from kvray.evaluate.engines.base import Serving\n"
        "from kvray.evaluate.engines.vllm import model_options\n"
        "from kvray.sweep.model import Runtime\n"
        "from kvray.finetune.model import load\n"
        f"base = resolve({NAME!r})\n"
        "print(len(load_tokenizer(base)), load(base, 'lora', gpu=False, fsdp=False).config.hidden_size)\n"
        "chosen = model_options(Serving(base, Runtime()))\n"
        "print(chosen['model'] == chosen['tokenizer'], chosen['revision'])\n"
    )
    # Without HF_HUB_OFFLINE: the hub's name resolves nowhere, as behind a firewall.
    without = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    env = {**without, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["1330", "128", "True", "None"]


ON_HUB = BaseModelRef(NAME, NAME, COMMIT, f"hub:{NAME}@{COMMIT}")


def hub_that(monkeypatch: pytest.MonkeyPatch, answer: object) -> list[tuple[str, str]]:
    """Let the hub answer for the headers of weights; return what it is asked."""
    from huggingface_hub import HfApi

    asked: list[tuple[str, str]] = []

    def headers(self: HfApi, repo: str, *, revision: str) -> object:
        asked.append((repo, revision))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", headers)
    monkeypatch.setattr(reference, "files_of", lambda ref: None)
    return asked


def test_the_names_of_weights_are_the_same_in_the_cache_and_by_the_hub_s_headers(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_model(home)
    names = tensor_names(resolve(NAME))
    assert "model.layers.0.self_attn.q_proj.weight" in names
    asked = hub_that(monkeypatch, SimpleNamespace(weight_map=dict.fromkeys(names, "model.safetensors")))
    assert tensor_names(ON_HUB) == names and asked == [(NAME, COMMIT)]
    assert tensor_names(BaseModelRef("openai:m", "m", None, "openai:m")) == frozenset() and len(asked) == 1


def test_pickled_weights_have_no_names_and_a_silent_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import NotASafetensorsRepoError

    hub_that(monkeypatch, NotASafetensorsRepoError("none"))
    assert tensor_names(ON_HUB) == frozenset()
    hub_that(monkeypatch, ConnectionError("no route"))
    with pytest.raises(SourceUnreachableError, match=r"the hub does not answer for the weights of acme/.*no route"):
        tensor_names(ON_HUB)
