"""What can be named, what is refused before anything is written, and that a folder is whole or as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvray.cli import app
from kvray.driver.export.find import find
from kvray.errors import InputError
from kvray.store.output import replacing_folder
from kvray.store.store import Store


def kvray(store: Store, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments), "--store", store.uri])


@pytest.mark.parametrize(
    ("name", "data", "what", "starts"),
    [
        ("small/kv/1", False, "finetune", "finetunes/simple_kv-lora-s1"),
        ("small/kv/s1", False, "finetune", "finetunes/simple_kv-lora-s1"),
        ("attention/kv", False, "finetune", "finetunes/simple_kv-attention-s0"),
        ("small/kv", True, "dataset", "datasets/simple_kv"),
        ("small/several", False, "dataset", "datasets/several_kv"),
        ("small/mdqa", False, "dataset", "datasets/mdqa"),
        ("small/datasets/kv", False, "dataset", "datasets/simple_kv"),
        ("small/mixtures/blend/1", False, "mixture", "finetunes/"),
        ("small/blend/0", True, "mixture", "finetunes/"),
        ("finetunes/simple_kv-lora-s1", False, "finetune", "finetunes/simple_kv-lora-s1"),
        ("datasets/several_kv", False, "dataset", "datasets/several_kv"),
    ],
)
def test_a_name_stands_for(name: str, data: bool, what: str, starts: str, store: Store) -> None:
    if name.startswith("finetunes/"):
        ids = [a["id"] for a in store.plan_document("small")["artefacts"] if a["id"].startswith(name)]
        name = ids[0]
    found = find(store, name, data)
    assert (found.what, found.planned.id.startswith(starts)) == (what, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal/kv", "found 'smal'; expected one of the sweeps .*did you mean 'small'.*SWEEP/MIXTURE"),
        ("small", "expected SWEEP/MIXTURE"),
        ("small/bland", "found 'bland'; expected a finetune or dataset of the sweep: .*did you mean 'blend'"),
        ("small/kv", r"fits 2 finetunes; expected one: give a seed(?s:.*)seed 0(?s:.*)seed 1"),
        ("small/kv/7", "found 'kv/7'"),
        ("small/datasets/blend", "found 'blend'; expected a dataset of the sweep: kv, several, mdqa"),
        ("finetunes/nothing", "is no artefact of the plan"),
        ("mixtures/blend", "expected SWEEP/mixtures/blend"),
        ("../small/kv", "expected one of the sweeps"),
        ("small/../kv", "found '../kv'"),
        ("predictions/mdqa", "expected one of the sweeps"),
    ],
)
def test_a_name_of_nothing_says_what_there_is(name: str, message: str, store: Store, out: Path) -> None:
    with pytest.raises(InputError, match=message):
        find(store, name)
    result = kvray(store, name, "--out", out)
    assert result.exit_code == 2 and result.stdout == "" and not out.exists()


def test_what_is_planned_alone_is_not_exported(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    other.write_document("sweeps/small.json", store.read_document("sweeps/small.json") or b"")
    with pytest.raises(InputError, match=r"is not in .* yet; kvray run makes it"):
        find(other, "small/kv/1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("small/kv/1", "--license", "mit"), "--license: found mit; the finetune has that of its base model"),
        (("small/datasets/kv", "--merged"), "--merged: found it with the dataset"),
        (("small/datasets/kv", "--format", "message"), "--format: found 'message'; expected examples, messages,"),
        (("small/datasets/kv", "--file-type", "csv"), "--file-type: found 'csv'; expected parquet, jsonl"),
        (("small/datasets/kv", "--format", "openai", "--file-type", "parquet"), "expected jsonl"),
        (("small/kv/1", "--public"), "--public: found it without --push"),
        (("small/kv/1", "--push", "me"), "--push: found 'me'; expected ORG/NAME"),
        (("small/kv/1", "--push", "../me"), "expected ORG/NAME"),
        (("small/kv/1", "--push", "me/model"), "--push: found HF_HUB_OFFLINE=1"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(
    arguments: tuple[Any, ...], message: str, store: Store, out: Path
) -> None:
    result = kvray(store, *arguments, "--out", out)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("small/kv/1",), "kvray export of a finetune needs transformers, which is not installed: type pip install"),
        (("small/kv/1", "--merged"), "needs torch, transformers and peft, which are not installed: type make setup"),
        (("attention/kv",), "kvray export of changed tensors needs torch and transformers, which are not installed"),
        (("small/mixtures/blend/1",), "kvray export of a mixture needs transformers"),
    ],
)
def test_packages_that_are_missing_are_named(
    arguments: tuple[Any, ...], message: str, store: Store, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvray.errors.installed", lambda package: False)
    result = kvray(store, *arguments, "--out", out)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and not out.exists()


def test_a_folder_that_holds_something_is_kept_and_an_earlier_export_is_replaced_when_asked(
    store: Store, out: Path, tmp_path: Path
) -> None:
    out.mkdir()
    assert kvray(store, "small/datasets/kv", "--out", out).exit_code == 0  # an empty one is fine
    (out / "mine.txt").write_text("kept")
    again = kvray(store, "small/datasets/kv", "--out", out)
    assert again.exit_code == 2 and "--force replaces it" in again.stderr and (out / "mine.txt").is_file()
    assert kvray(store, "small/datasets/several", "--out", out, "--force").exit_code == 0
    assert not (out / "mine.txt").exists() and "several" in (out / "README.md").read_text()
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    refused = kvray(store, "small/datasets/kv", "--out", home, "--force")
    assert refused.exit_code == 2 and "nothing that this command wrote" in refused.stderr
    assert (home / "thesis.txt").read_text() == "years of work"
    for wrong, message in ((home / "thesis.txt", "is a file"), ("s3://bucket/x", "a directory of this machine")):
        refused = kvray(store, "small/datasets/kv", "--out", wrong)
        assert refused.exit_code == 2 and message in refused.stderr
    inside = kvray(store, "small/datasets/kv", "--out", Path(store.root) / "datasets" / "mine")
    assert inside.exit_code == 2 and "inside the store" in inside.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_early_leaves_the_folder_as_it_was(error: type[BaseException], out: Path) -> None:
    with replacing_folder(out, "mark") as folder:
        (folder / "mark").write_text("first")
    with pytest.raises(error), replacing_folder(out, "mark", force=True) as folder:
        (folder / "mark").write_text("second")
        raise error
    assert (out / "mark").read_text() == "first"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_removed_by_the_next(out: Path) -> None:
    code = (
        "import sys, time\nfrom kvray.store.output import replacing_folder\n"
        "with replacing_folder(sys.argv[1], 'mark') as folder:\n"
        "    (folder / 'half').write_text('half')\n    print(flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(0.1)
    assert not out.exists() and [path.name for path in out.parent.iterdir()] != []
    with replacing_folder(out, "mark") as folder:
        (folder / "mark").write_text("whole")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["mark"]
