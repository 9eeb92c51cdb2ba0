"""--out of generate, blend and report: its format follows its name, a bucket is written to, and what fails says why."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from s3_server import BUCKET, endpoint
from small_disk import disk, read_only
from typer.testing import CliRunner

from kvray.cli import app
from kvray.errors import InputError, StoreError
from kvray.store import output
from kvray.store.output import replacing, replacing_folder

__all__ = ["disk", "endpoint"]
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 4, dictionaries: 3}}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
"""
TOO_MANY = ("--rows", 4000, "--set", "dictionaries=20")
"""Rows that do not fit the small disk."""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("KVRAY_STORE", raising=False)
    (folder / "small.yaml").write_text(SWEEP)
    return folder


def kvray(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def generate(out: object, *arguments: object) -> Result:
    return kvray("generate", "simple_kv", "--rows", 5, "--set", "dictionaries=3", "--out", out, *arguments)


def blend(out: object, *arguments: object) -> Result:
    return kvray("blend", "small.yaml", "kv", "--out", out, *arguments)


@pytest.mark.parametrize("write", [generate, blend])
def test_the_format_follows_the_name_unless_it_is_given(write: Any, directory: Path) -> None:
    assert write("rows.parquet").exit_code == 0
    assert pq.read_table("rows.parquet").num_rows > 0
    for arguments, roles in (
        (("rows.jsonl",), ["user", "assistant"]),
        (("rows.JSONL",), ["user", "assistant"]),
        (("rows.jsonl", "--format", "openai"), ["system", "user", "assistant"]),
        (("rows.txt", "--format", "jsonl"), ["user", "assistant"]),
    ):
        assert write(*arguments).exit_code == 0
        for line in Path(arguments[0]).read_text().splitlines():
            assert [message["role"] for message in json.loads(line)["messages"]] == roles
    assert write("odd.jsonl", "--format", "parquet").exit_code == 0
    assert pq.read_table("odd.jsonl").equals(pq.read_table("rows.parquet"))


@pytest.mark.parametrize("write", [generate, blend])
@pytest.mark.parametrize(
    ("out", "said"),
    [
        (
            "rows.csv",
            "--out: rows.csv ends in .csv; expected .parquet or .jsonl, or --format examples, messages,",
        ),
        (
            "rows",
            "--out: rows has no suffix; expected .parquet or .jsonl, or --format examples, messages,",
        ),
        (".", "is a directory; expected a file name like"),
        ("small.yaml/rows.jsonl", "cannot be written: "),
        ("pipe.jsonl", "is a device or a pipe; expected the name of a file"),
        ("ftp://host/rows.jsonl", "--out: found scheme ftp://"),
        ("s3://kvray-sweeps/folder/", "is a folder; expected a file name in it"),
        ("s3://kvray-sweeps", "is a folder; expected a file name in it"),
    ],
)
def test_a_place_that_is_no_file_is_refused_in_one_line_and_nothing_is_written(
    write: Any, out: str, said: str, directory: Path
) -> None:
    os.mkfifo("pipe.jsonl")
    before = sorted(directory.rglob("*"))
    given = ("--format", "jsonl") if out.startswith("s3") else ()
    result = write(out, *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("--out: ")
    assert said in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert sorted(directory.rglob("*")) == before


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(InputError, match="device"), replacing("/dev/null"):
        pass
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("write", [generate, blend])
def test_a_folder_that_is_missing_is_made(write: Any) -> None:
    assert write("a/b/rows.jsonl").exit_code == 0
    assert os.listdir("a/b") == ["rows.jsonl"]


@pytest.mark.parametrize("write", [generate, blend])
def test_a_bucket_holds_the_bytes_of_a_disk(write: Any, endpoint: str, directory: Path) -> None:
    key = f"{BUCKET}/{write.__name__}/rows.jsonl"
    result = write(f"s3://{key}?endpoint_override=http://{endpoint}")
    assert result.exit_code == 0, result.output
    assert write("rows.jsonl").exit_code == 0
    written = Path("rows.jsonl").read_bytes()
    assert f"s3://{key}: " in result.stdout and hashlib.sha256(written).hexdigest() in result.stdout
    host = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    with host.open_input_file(key) as stream:
        assert stream.read() == written
    assert not Path("s3:").exists()


@pytest.mark.parametrize("write", [generate, blend])
def test_a_bucket_that_is_missing_is_told_in_one_line(write: Any, endpoint: str) -> None:
    result = write(f"s3://no-such-bucket/rows.jsonl?endpoint_override=http://{endpoint}")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("--out: there is no bucket s3://no-such-bucket")
    assert not Path("s3:").exists()


def test_a_folder_in_a_bucket_takes_a_report(endpoint: str) -> None:
    folder = output.folder(f"s3://{BUCKET}/reports/mine?endpoint_override=http://{endpoint}")
    folder.put("figures/a.svg", b"<svg/>")
    assert folder.place == f"s3://{BUCKET}/reports/mine"
    assert (folder.read("figures/a.svg"), folder.read("b.svg")) == (b"<svg/>", None)
    host = pafs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    found = host.get_file_info(pafs.FileSelector(f"{BUCKET}/reports/mine", recursive=True))
    assert [info.path for info in found if info.type == pafs.FileType.File] == [f"{BUCKET}/reports/mine/figures/a.svg"]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_drawn(disk: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(InputError, match=r"--out: .*file is a file; expected a directory"):
        output.folder("file")
    with pytest.raises(InputError, match=r"--out: .*file is a file; expected a directory"):
        output.folder("file/below")
    place = output.folder(disk / "report")
    with pytest.raises(StoreError, match=r"--out: .*figure.png: cannot write .*No space left on device"):
        place.put("figure.png", bytes(2**21))
    assert os.listdir(disk / "report") == []
    read_only(disk)
    with pytest.raises(InputError, match=r"--out: .*Read-only file system; give a directory that can be written"):
        output.folder(disk / "report")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_a_full_disk_is_one_line_and_leaves_the_older_file(name: str, disk: Path) -> None:
    (disk / name).write_bytes(b"older")
    result = generate(disk / name, *TOO_MANY)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"kvray: --out: {disk / name}: cannot write: No space left on device"
    assert "Traceback" not in result.stderr
    assert [(path.name, path.read_bytes()) for path in disk.iterdir()] == [(name, b"older")]


@pytest.mark.parametrize("write", [generate, blend])
def test_a_read_only_disk_is_one_line(write: Any, disk: Path) -> None:
    read_only(disk)
    result = write(disk / "rows.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith("rows.jsonl cannot be written: Read-only file system")


def test_a_full_disk_is_told_of_a_folder_too_whatever_writes_into_it(disk: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    held = sorted(path.name for path in disk.iterdir())
    for write in (
        lambda folder: (folder / "x").write_bytes(bytes(2**22)),
        lambda folder: save_file({"x": np.zeros(2**20, np.float32)}, folder / "x.safetensors"),
    ):
        refused = pytest.raises(StoreError, match=r"--out: .*new: cannot write: No space left")
        with refused, replacing_folder(disk / "new", "mark") as folder:
            write(folder)
        assert sorted(path.name for path in disk.iterdir()) == held
