"""--push against a stand-in for the hub: what it gets, what stays private, and what its refusals are in words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import READER, TOKEN, Hub, hub

from kvray.store.store import Store


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as state:
        yield state


def push(
    server: Hub, store: Store, out: Path, *arguments: str, token: str | None = TOKEN, what: str = "small/datasets/kv"
) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own: the hub's client reads its settings as it is imported."""
    secret = {"HF_TOKEN": token} if token else {}
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    here = {"HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(out.parent / "hf")}
    words = ["export", what, "--out", str(out), "--push", "me/it", "--store", store.uri, *arguments]
    return subprocess.run(
        [sys.executable, "-m", "kvray.cli", *words],
        env={**known, **here, **secret},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(("what", "key"), [("small/datasets/kv", "datasets/me/it"), ("small/kv/1", "models/me/it")])
def test_the_hub_has_the_very_files_in_a_private_repository(
    what: str, key: str, server: Hub, store: Store, out: Path
) -> None:
    done = push(server, store, out, what=what)
    assert done.returncode == 0, done.stderr
    assert f"pushed: {server.address}" in done.stdout and "(private)" in done.stdout
    assert server.private == {key: True}
    files = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert server.files[key] == files
    assert len(server.messages) == 1 and "by kvray" in server.messages[0]
    assert 'snapshot_download("me/it")' in (out / "README.md").read_text() or 'load_dataset("me/it"' in str(files)
    assert TOKEN not in done.stdout + done.stderr + str(files)


def test_a_repository_is_public_only_if_that_is_said(server: Hub, store: Store, out: Path) -> None:
    server.private["datasets/me/it"] = False
    refused = push(server, store, out)
    assert refused.returncode == 2 and "me/it is public already; --public says that this is meant" in refused.stderr
    assert server.files == {} and (out / "README.md").is_file()
    done = push(server, store, out, "--public", "--force")
    assert done.returncode == 0 and "(public)" in done.stdout
    assert "README.md" in server.files["datasets/me/it"]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "--push: found no token of the hub; set HF_TOKEN"),
        ("hf_wrong", "the hub refuses me/it (401): the token is not valid"),
        (READER, "the hub refuses me/it (403): the token may not write to me/it"),
    ],
)
def test_a_refusal_is_one_line(token: str | None, message: str, server: Hub, store: Store, out: Path) -> None:
    refused = push(server, store, out, token=token)
    assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
    assert out.exists() == (token is not None)
    assert server.files == {}


def test_a_hub_that_does_not_answer_is_one_line_and_the_folder_stays(store: Store, out: Path) -> None:
    refused = push(Hub("http://127.0.0.1:9"), store, out)
    assert refused.returncode == 1 and "the hub does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr and (out / "README.md").is_file()
