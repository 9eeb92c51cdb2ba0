"""Directories for what a process needs while it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvray.store.places import scratch
from kvray.store.places.scratch import HELD, remove_abandoned, scratch_directory

HOLDS = (
    "import sys, time\n"
    "from kvray.store.places.scratch import scratch_directory\n"
    "with scratch_directory(sys.argv[1], 'evaluate') as place:\n"
    "    open(place + '/adapter', 'wb').write(bytes(1000))\n"
    "    print(place, flush=True)\n"
    "    time.sleep(600)\n"
)


def holder(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a directory, and return it with that."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(place)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_it_goes_when_its_context_ends_however_that_ends(tmp_path: Path) -> None:
    with scratch_directory(str(tmp_path / "deep/er"), "finetune") as place:
        Path(place, "model").mkdir()
        assert Path(place).parent == tmp_path / "deep/er" and Path(place).name.startswith("kvray-finetune-")
    with pytest.raises(KeyError), scratch_directory(str(tmp_path / "deep/er"), "finetune"):
        raise KeyError
    assert list((tmp_path / "deep/er").iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_the_next_and_that_of_a_live_one_stays(tmp_path: Path) -> None:
    (killed, left), (lives, held) = holder(tmp_path), holder(tmp_path)
    try:
        killed.kill()
        killed.wait()
        assert (left / "adapter").is_file()
        with scratch_directory(str(tmp_path), "evaluate") as place:
            assert sorted(tmp_path.iterdir()) == sorted([held, Path(place)])
            remove_abandoned(str(tmp_path))
            assert (held / "adapter").is_file() and Path(place).is_dir()
    finally:
        lives.kill()
        lives.wait()


def test_what_nobody_marked_and_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    for folder in (place / "kvray-just-made", place / "someone", elsewhere):
        folder.mkdir(parents=True)
        (folder / "thesis.txt").write_text("years of work")
    for folder in (place / "someone", elsewhere):
        (folder / HELD).touch()
    (place / "kvray-link").symlink_to(elsewhere)
    (place / "kvray-trap").mkdir()
    (place / "kvray-trap" / HELD).symlink_to(elsewhere / "thesis.txt")
    remove_abandoned(str(place))
    assert sorted(path.name for path in place.iterdir()) == ["kvray-just-made", "kvray-link", "kvray-trap", "someone"]
    assert (elsewhere / "thesis.txt").read_text() == "years of work"


def test_of_another_user_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvray-theirs").mkdir()
    (tmp_path / "kvray-theirs" / HELD).touch()
    monkeypatch.setattr(scratch, "_is_own", lambda entry: False)
    remove_abandoned(str(tmp_path))
    assert (tmp_path / "kvray-theirs").is_dir()
    monkeypatch.undo()
    remove_abandoned(str(tmp_path))
    assert not (tmp_path / "kvray-theirs").exists()


def test_a_file_system_without_locks_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    with scratch_directory(str(tmp_path), "evaluate") as place, scratch_directory(str(tmp_path), "evaluate") as other:
        assert list(Path(place).iterdir()) == list(Path(other).iterdir()) == []
    assert list(tmp_path.iterdir()) == []
