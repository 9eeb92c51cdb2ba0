"""Every recipe of docs/extending.md, followed to the letter in a temporary folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from made_sweeps import commit_sweep
from typer.testing import CliRunner

import kvray
import kvray.results
from kvray.cli import app
from kvray.errors import InputError
from kvray.evaluate.engines import base as engines
from kvray.evaluate.engines.base import GROUP, engine_class
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.store.store import Store
from kvray.sweep.model import Runtime
from kvray.tasks.qa.recall import Recall

sys.path.insert(0, str(Path(__file__).parent / "evaluate"))
import evaluate_store as made
from local_driver import evaluate

PAGE = Path(kvray.__file__).parents[1] / "docs" / "extending.md"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"(?:#|//) (\S+\.\w+)(?:\s|$)")


def recipe(heading: str, folder: Path) -> list[list[str]]:
    """Write the files of a recipe into a folder.

    Args:
        heading: of the page's section.
        folder: where its files go; a block's first line names its file, ``# shouting.py``.

    Returns:
        The words of each command in its blocks of ``sh``, in order.
    """
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    commands = []
    for language, text in _FENCE.findall(sections[heading]):
        named = _FILE.match(text)
        if language == "sh":
            commands += [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
        elif named:
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            # JSON has no comments.
            file.write_text(text.partition("\n")[2] if language == "json" else text)
    return commands


def follow(heading: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """Follow a recipe as far as no sweep is run: type its commands in its folder and return what they print."""
    monkeypatch.chdir(folder)
    typed = [words[1:] for words in recipe(heading, folder) if words[:2] != ["kvray", "run"]]
    printed = [CliRunner().invoke(app, words) for words in typed]
    for words, result in zip(typed, printed, strict=True):
        assert result.exit_code == 0, f"{words}\n{result.output}"
    return printed


def test_a_recipe_becomes_files_and_commands(tmp_path: Path) -> None:
    for heading in re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE):
        assert all(words[0] for words in recipe(heading, tmp_path))


def test_a_task_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, planned = follow("A task from a file beside the sweep", tmp_path, monkeypatch)
    assert "Right if the answer holds the word in capitals." in sample.stdout
    assert planned.stdout.startswith(f"code: {tmp_path / 'shouting.py'}, sha256 ")
    assert len((tmp_path / "shouting.py").read_text().splitlines()) <= 40
    refused = CliRunner().invoke(app, ["run", "shouting.yaml"])
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1 and "type --allow-code" in refused.stderr


def test_a_task_from_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe("A task from a package", tmp_path)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    installed = tmp_path / "site-packages"
    info = installed / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "loud.py").rename(installed / "loud.py")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = [f"{name} = {value}" for name, value in project["entry-points"]["kvray.tasks"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[kvray.tasks]", *entries]))
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(tmp_path)
    planned = CliRunner().invoke(app, ["plan", "echo.yaml"])
    assert planned.exit_code == 0 and "datasets: 2" in planned.stdout, planned.output


def test_data_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, planned = follow("Your own data", tmp_path, monkeypatch)
    assert sample.stdout.count("== messages ") == 2 and "finetunes: 2" in planned.stdout


@pytest.mark.slow
def test_both_are_made_trained_on_asked_and_reported(tmp_path: Path) -> None:
    """The sweeps of two recipes as one: a task from a file, and 200 chats blended with a task of kvray's own."""
    merged: dict[str, dict[str, object]] = {}
    for heading, name in (("A task from a file beside the sweep", "shouting"), ("Your own data", "mine")):
        commands = recipe(heading, tmp_path)
        assert ["kvray", "run", f"{name}.yaml"] == commands[-1][:3]
        for section, values in yaml.safe_load((tmp_path / f"{name}.yaml").read_text()).items():
            merged[section] = {**merged.get(section, {}), **values} if isinstance(values, dict) else values
    merged["mixtures"] = {"blend": {"chats": 1, "kv": 1, "shout": 1}}
    merged["runtime"] = {"num_cpus": 2}
    (tmp_path / "both.yaml").write_text(json.dumps(merged))
    chats = [
        [{"role": "user", "content": f"Keep {n}."}, {"role": "assistant", "content": "Kept."}] * (1 + n % 2)
        for n in range(200)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps({'messages': chat})}\n" for chat in chats))
    command = [sys.executable, "-m", "kvray.cli", "run", "both.yaml", "--allow-code", "--store", "store"]
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600, env={**os.environ}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = (tmp_path / "store" / "reports" / "mine" / "report.md").read_text()
    assert "shouting:Shout" in report and "messages" in report and "blend" in report
    trained = [json.loads(file.read_text()) for file in (tmp_path / "store").glob("finetunes/*/manifest.json")]
    assert len(trained) == 1 and len(trained[0]["facts"]["datasets"]) == 3
    # The source went to the workers with the task: without the file the same run has nothing to do but refuse.
    (tmp_path / "shouting.py").unlink()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 2 and "found no module shouting" in again.stderr


def test_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = recipe("Another engine", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    name = command[-1].removeprefix("runtime.engine=")
    store, base = Store(tmp_path / "store"), resolve("kvray-tiny")
    task = Recall(questions=6)
    data = made.dataset(store, task.build(0, 6, task.context(token_counter(base))))
    adapters = {
        kind: made.finetune(store, kind, made.make_adapter(base, tmp_path / kind, strength=strength))
        for kind, strength in (("real", 0.3), ("zero", 0.0))
    }
    cells = [made.predictions(store, data, finetune) for finetune in (None, *adapters.values())]
    changed = made.finetune(store, "part", made.make_changed(base, tmp_path / "part"))
    cells.append(made.predictions(store, data, changed))
    good, *others = evaluate(store, base, *cells, engine=name)
    known, real, zero, part = cells
    assert good is others[0] is others[2] is None and "changes nothing" in str(others[1])
    manifest = store.manifest(known.id)
    assert manifest is not None and manifest.measurements["accuracy"] == 1.0  # known by heart
    assert list(manifest.measurements["engines"][0]) == ["transformers"]
    assert store.read_table(real.id)["answer"] != store.read_table(known.id)["answer"]
    assert store.manifest(zero.id) is None
    assert store.read_table(part.id)["answer"] != store.read_table(known.id)["answer"]
    plain = engine_class(base, Runtime(engine=name))
    point = EntryPoint("plain", name, GROUP)
    monkeypatch.setattr(engines, "entry_points", lambda group: [point] if group == GROUP else [])
    assert engine_class(base, Runtime(engine="plain")) is plain
    with pytest.raises(InputError, match=r"runtime\.engine: found 'plian'; expected vllm, plain or module:Class"):
        engine_class(base, Runtime(engine="plian"))
    with pytest.raises(InputError, match="nowhere:Engine cannot be imported: No module named 'nowhere'"):
        engine_class(base, Runtime(engine="nowhere:Engine"))
    with pytest.raises(InputError, match=r"pathlib:Path is no subclass of kvray\.evaluate\.engines\.base\.Engine"):
        engine_class(base, Runtime(engine="pathlib:Path"))


def python(*words: str, folder: Path, package: Path = PAGE.parents[1]) -> str:
    """Run a Python program in a folder, with the kvray of another; return what it prints."""
    path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


COLUMN = """
import kvray.results
from kvray.evaluate.engines.base import Reply
from kvray.evaluate.questions import DatasetQuestions
from kvray.tasks import Recall
from kvray.tasks.base import examples

names = ["a", "b"]
columns = {name: names for name in ("example_id", "question_id", "prompt", "answer")}
asked = examples({**columns, "references": [["x"]] * 2, "units": [0, 0], "prompt_tokens": [1, 1]})
replies = [[Reply(1, 0, 3, "Ada Quill, I think", "stop")], [Reply(9, None, 0, None, "too_long")]]
labels = dict.fromkeys(("evaluation", "task", "base_model"), "")
print(DatasetQuestions(asked, Recall()).table(range(2), replies, labels, {})["answer_words"].to_pylist())
results = kvray.results.open("store")
print(results.predictions().collect()["answer_words"].unique().to_list())
print(results.accuracy(["answer_words"]).height, len(results.compare()))
"""


def test_a_column_of_the_predictions(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    commit_sweep(store, mixtures=["ours"], seeds=(0,), questions=6)
    compared = len(kvray.results.open(store).compare())
    shutil.copytree(PAGE.parents[1] / "kvray", tmp_path / "kvray", ignore=shutil.ignore_patterns("__pycache__"))
    text = PAGE.read_text().split("## A column of the predictions")[1].split("\n## ")[0]
    column, computed = (block for language, block in _FENCE.findall(text) if language in ("toml", "python"))
    schemas, questions = (tmp_path / name for name in re.findall(r"`(kvray/\S+\.(?:toml|py))`", text))
    before, after = schemas.read_text().split("[predictions]\n", 1)
    schemas.write_text(before + "[predictions]\n" + after.replace("\n\n", f"\n{column}\n", 1))
    lines = questions.read_text().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if line == "        return columns, {}\n")
    questions.write_text("".join([*lines[:at], computed, *lines[at:]]))
    printed = python("-c", COLUMN, folder=tmp_path, package=tmp_path)
    assert printed == f"[4, None]\n[None]\n1 {compared}\n"


def test_a_section_of_the_report(tmp_path: Path) -> None:
    ((program, *words),) = recipe("A section of the report", tmp_path)
    commit_sweep(Store(str(tmp_path / "store")), "quickstart", mixtures=["ours"], seeds=(0,), questions=6)
    assert program == "python"
    assert python(*words, folder=tmp_path) == "report/report.html\n"
    text = (tmp_path / "report" / "report.md").read_text()
    section = text[text.index("## How long the answers are") :]
    assert "![Mean tokens per answer, per model](figures/answer-lengths.png)" in section
    assert "| ours | 7.0 |" in section and text.index("## Provenance") < text.index("## How long the answers are")
    assert (tmp_path / "report" / "figures" / "answer-lengths.svg").is_file()
    assert 'id="answer-lengths"' in (tmp_path / "report" / "report.html").read_text()
