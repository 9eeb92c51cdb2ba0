"""The command line as users meet it: quick help with examples, messages on stderr, exit status 0, 1 and 2."""

from __future__ import annotations

import contextlib
import hashlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from kvray.cli import app
from kvray.cli.frame import typed
from kvray.driver import run as running
from kvray.errors import RunInterrupted
from kvray.planning.artefacts import Plan

RUNNER = CliRunner()
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 4, dictionaries: 3}}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
finetune: {learning_rate: 2.0e-2}
"""
COMMANDS = ("run", "plan", "status", "report", "compare", "sample", "audit", "generate", "pretrain", "why", "doctor")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVRAY_STORE", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP)
    return file


def kvray(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """Run what must be refused: exit 2, a message on stderr, nothing on stdout, no file written."""
    before = sorted(Path().rglob("*"))
    result = kvray(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert sorted(Path().rglob("*")) == before
    return str(result.stderr)


def test_help_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kvray.cli", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # CPU time, which a busy machine hardly changes: half a second, and many times that with something heavy imported.
    assert after.ru_utime - before.ru_utime < 2.0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_on_a_line_of_its_own(command: str, sweep: Path) -> None:
    result = kvray(command, "--help")
    assert result.exit_code == 0
    assert [line for line in result.stdout.splitlines() if line.strip().startswith(f"kvray {command}")]


def test_a_plan_is_json_on_request_and_writes_nothing(sweep: Path) -> None:
    before = sorted(Path().rglob("*"))
    result = kvray("plan", sweep, "--json")
    assert result.exit_code == 0, result.output
    totals = json.loads(result.stdout)["totals"]
    assert (totals["to_run"], totals["cached"], totals["gpu_hours"]) == (5, 0, 0)
    assert totals["seconds"] > 0 and totals["tokens"] > 0 and totals["cpu_hours"] > 0
    assert "5 to run" in kvray("plan", sweep).stdout
    assert sorted(Path().rglob("*")) == before


def test_status_of_a_file_counts_what_is_planned(sweep: Path) -> None:
    found = json.loads(kvray("status", sweep, "--json").stdout)
    assert (found["planned"], found["committed"], found["failed"]) == (5, 0, 0)
    assert {frozenset(artefact) for artefact in found["artefacts"]} == {frozenset({"id", "kind", "state"})}
    assert {artefact["state"] for artefact in found["artefacts"]} == {"missing"}


def test_every_mistake_of_a_sweep_is_told_at_once(sweep: Path) -> None:
    sweep.write_text(SWEEP.replace("rows: 4", "rowz: 4").replace("questions: 3", "questions: some") + "nmae: x\n")
    for command in ("run", "plan", "status"):
        lines = refused(command, sweep).splitlines()
        assert len(lines) == 3
        assert all(line.startswith(f"{sweep}:") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("status", "nope"), "it has no sweeps"),
        (("report", "nope"), "it has no sweeps"),
        (("plan", "absent.yaml"), "no readable file"),
        (("plan", "small.yaml", "--set", "finetune.epochz=1"), "did you mean 'epochs'?"),
        (("plan", "small.yaml", "--base-model", "missing"), "base_model"),
        (("plan", "small.yaml", "--store", "ftp://x"), "ftp"),
        (("sample", "mdqaa"), "did you mean 'mdqa'?"),
        (("sample", "mdqa", "--set", "documnts=2"), "did you mean 'documents'?"),
        (("generate", "mdqa", "--out", "x", "--format", "csv"), "messages, prompt-completion or openai"),
        (("generate", "mdqa", "--rows", "999999999", "--out", "x.parquet"), "questions"),
        (("generate", "recall", "--out", "."), "is a directory"),
        (("pretrain", "--out", "s3://bucket/model"), "expected a directory of this machine"),
        (("why", "x", "--sweep", "small.yaml"), "no artefact"),
        (("why", "ask", "--sweep", "small.yaml"), "fits 3 artefacts"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], said: str, sweep: Path) -> None:
    if "999999999" in arguments:
        arguments = (*arguments, "--set", f"source={_questions(sweep.parent)}")
    assert said in refused(*arguments)


def _questions(folder: Path) -> Path:
    file = folder / "questions.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"q{i}", "answers": ["a"], "text": f"a {i}"}) + "\n" for i in range(30))
    )
    return file


def test_samples_are_one_json_object_per_line(sweep: Path) -> None:
    result = kvray("sample", "mdqa", "--rows", 3, "--seed", 1, "--set", "documents=2", "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3
    for row in rows:
        assert {"messages", "references", "position", "units", "example_id", "question_id"} <= set(row)


@pytest.mark.parametrize("format_", ["jsonl", "openai", "parquet"])
def test_generate_writes_exactly_the_rows_asked_for(format_: str, sweep: Path) -> None:
    out = Path(f"out/data.{format_}")
    result = kvray("generate", "mdqa", "--rows", 7, "--set", "documents=3", "--format", format_, "--out", out)
    assert result.exit_code == 0, result.output
    assert hashlib.sha256(out.read_bytes()).hexdigest() in result.stdout
    if format_ == "parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(out).num_rows == 7
        return
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    roles = ["user", "assistant"] if format_ == "jsonl" else ["system", "user", "assistant"]
    assert [[message["role"] for message in line["messages"]] for line in lines] == [roles] * 7


def test_sample_shows_what_generate_writes(sweep: Path) -> None:
    arguments = ("simple_kv", "--rows", 5, "--seed", 3, "--set", "dictionaries=4")
    shown = [json.loads(line)["messages"] for line in kvray("sample", *arguments, "--json").stdout.splitlines()]
    kvray("generate", *arguments, "--format", "jsonl", "--out", "x.jsonl")
    assert [json.loads(line)["messages"] for line in Path("x.jsonl").read_text().splitlines()] == shown


def test_why_explains_a_cell_of_a_file(sweep: Path) -> None:
    result = kvray("why", "mdqa-base", "--sweep", sweep)
    assert result.exit_code == 0, result.output
    assert "missing" in result.stdout and "it needs, and the store has not" in result.stdout


def test_version() -> None:
    assert kvray("--version").stdout.strip() == __import__("kvray").__version__


def test_ctrl_c_ends_a_run_of_several_files_at_the_first_and_names_what_to_type(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sweep.with_name("other.yaml")
    other.write_text(sweep.read_text().replace("name: ", "name: another-"))
    begun: list[str] = []

    def interrupted(planned: Plan, *rest: object) -> None:
        begun.append(planned.sweep.name)
        raise RunInterrupted("interrupted; kept in s: 1 of 2 artefacts")

    monkeypatch.setattr(running, "run", interrupted)
    monkeypatch.setattr(running, "shared_cluster", lambda runtimes: contextlib.nullcontext())
    monkeypatch.setattr(sys, "argv", [".venv/bin/kvray", "run", str(sweep), "an other.yaml"])
    result = kvray("run", sweep, other)
    assert result.exit_code == 130 and len(begun) == 1
    assert result.stderr.splitlines() == [
        f"kvray: interrupted; kept in s: 1 of 2 artefacts. To go on: .venv/bin/kvray run {sweep} 'an other.yaml'"
    ]


def test_a_command_to_type_again_is_kvray_where_the_shell_finds_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "kvray"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "run", "a b.yaml"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert typed() == f"{program} run 'a b.yaml'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typed() == "kvray run 'a b.yaml'"
    monkeypatch.setattr(sys, "argv", ["/site/kvray/cli/__main__.py", "run", "a.yaml"])
    assert typed() == f"{sys.executable} -m kvray.cli run a.yaml"
