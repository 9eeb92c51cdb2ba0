"""``kvray init`` and ``kvray schema``: a sweep that plans, whatever is asked for, and a schema that fits it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pexpect
import pytest
import yaml
from typer.testing import CliRunner

from kvray.cli import app
from kvray.sweep import template
from kvray.sweep.model import Sweep

RUNNER = CliRunner()
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.1"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KVRAY_STORE", raising=False)
    return tmp_path


def kvray(*arguments: str) -> str:
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("task", template.trainable())
def test_the_file_plans_with_any_task_and_its_plan_warns_of_nothing(task: str) -> None:
    kvray("init", "new.yaml", "--task", task, "--yes")
    document = json.loads(kvray("plan", "new.yaml", "--json"))
    assert document["warnings"] == []
    assert document["totals"]["to_run"] > 3  # a dataset, a finetune, and what it and the base model answer
    assert Sweep.from_yaml("new.yaml").name == "new"


@pytest.mark.parametrize(
    ("flags", "runtime"),
    [
        (["--base-model", MISTRAL, "--gpus", "2", "--task", "in2", "--task", "simple_kv"], {"max_gpus": 2}),
        (["--base-model", MISTRAL, "--gpus", "0"], {"gpus_per_finetune": 0, "gpus_per_engine": 0}),
        (["--base-model", "openai:gpt-x"], {"api_concurrency": 8}),
        (["--gpus", "1"], {"max_gpus": 1}),
    ],
)
def test_models_and_gpus_are_written_as_asked_and_the_schema_fits(flags: list[str], runtime: dict[str, int]) -> None:
    kvray("init", "new.yaml", *flags, "--yes")
    assert runtime.items() <= Sweep.from_yaml("new.yaml").runtime.written().items()
    kvray("schema", "--out", "sweep.schema.json")
    jsonschema.validate(yaml.safe_load(Path("new.yaml").read_text()), json.loads(Path("sweep.schema.json").read_text()))


def test_what_is_commented_out_works_once_it_is_no_comment() -> None:
    kvray("init", "new.yaml", "--yes")
    text = Path("new.yaml").read_text()
    for line in ("  # in2: ", "# mixtures:", "#   simple_kv: ", "#   both: ", "# grid: "):
        assert f"\n{line}" in text
        text = text.replace(f"\n{line}", "\n" + line.replace("# ", "", 1))
    text = text.replace("\n  simple_kv: {", "\n  simple_kv: {").replace("seeds: [0] ", "seeds: [0, 1, 2] ")
    changed = Sweep.from_yaml(text)
    assert set(changed.datasets) == {"simple_kv", "in2"}
    assert set(changed.mixtures) == {"simple_kv", "both"}
    assert changed.grid == {"finetune.epochs": [1, 2, 4]}


def test_rows_of_ones_own_are_trained_on() -> None:
    rows = [{"prompt": f"What is {i} plus 1?", "answer": str(i + 1)} for i in range(200)]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("sweeps").mkdir()
    kvray("init", "sweeps/own.yaml", "--data", "mine.jsonl", "--yes")
    assert set(Sweep.from_yaml("sweeps/own.yaml").datasets) == {"mine"}
    assert json.loads(kvray("plan", "sweeps/own.yaml", "--json"))["totals"]["to_run"] > 3


def test_a_file_that_is_there_stays_unless_forced() -> None:
    Path("new.yaml").write_text("mine")
    result = RUNNER.invoke(app, ["init", "new.yaml", "--yes"])
    assert result.exit_code == 2
    assert "--force" in result.stderr and Path("new.yaml").read_text() == "mine"
    kvray("init", "new.yaml", "--yes", "--force")
    assert Sweep.from_yaml("new.yaml").name == "new"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task", "simple_kvv"], "did you mean 'simple_kv'?"),
        (["--task", "recall"], "expected one of the tasks to train on"),
        (["--task", "messages"], "--data FILE"),
        (["--data", "none.jsonl"], "found no file none.jsonl"),
        (["--base-model", "openai:x", "--gpus", "1"], "a model behind an API takes none"),
    ],
)
def test_a_wrong_wish_is_one_message_and_no_file(flags: list[str], said: str) -> None:
    result = RUNNER.invoke(app, ["init", "new.yaml", *flags, "--yes"])
    assert result.exit_code == 2
    assert said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not Path("new.yaml").exists()
    missing = RUNNER.invoke(app, ["init", "nowhere/new.yaml", "--yes"])
    assert missing.exit_code == 2 and "found no folder nowhere" in missing.stderr


@pytest.mark.parametrize(
    ("file", "name"), [("a b!.yaml", "a-b"), ("ünï.yml", "n"), ("...yaml", "sweep"), ("x" * 99 + ".yaml", "x" * 80)]
)
def test_a_sweep_is_named_after_its_file(file: str, name: str) -> None:
    assert template.name_of(file) == name


def test_in_a_terminal_it_asks_for_what_no_option_says() -> None:
    child = pexpect.spawn(sys.executable, ["-m", "kvray.cli", "init", "asked.yaml"], timeout=120, encoding="utf-8")
    child.expect("Model to finetune.*: ")
    child.sendline("")
    child.expect("What to train on.*: ")
    child.sendline("needle, in2")
    child.expect("GPUs at a time.*: ")
    child.sendline("no")
    child.expect("valid integer")
    child.expect("GPUs at a time.*: ")
    child.sendline("1")
    child.expect("asked.yaml: written")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    made = Sweep.from_yaml("asked.yaml")
    assert (made.base_model, list(made.datasets), made.runtime.max_gpus) == ("kvray-tiny", ["needle", "in2"], 1)


def test_ctrl_c_at_a_question_writes_nothing() -> None:
    child = pexpect.spawn(sys.executable, ["-m", "kvray.cli", "init", "asked.yaml"], timeout=120, encoding="utf-8")
    child.expect("Model to finetune.*: ")
    child.sendintr()
    child.expect("kvray: interrupted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert not Path("asked.yaml").exists()


def test_the_schema_is_printed_alone_and_the_line_for_editors_beside_it() -> None:
    result = RUNNER.invoke(app, ["schema"])
    assert json.loads(result.stdout)["title"] == "kvray sweep"
    assert "# yaml-language-server: $schema=" in result.stderr
    assert RUNNER.invoke(app, ["schema", "--out", "nowhere/x.json"]).exit_code == 2
