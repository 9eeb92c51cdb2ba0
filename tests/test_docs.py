"""Every command and snippet of the pages and of --help runs, or its page says beside it why it is not run here.

What is not run is still checked: options against the program that takes them, targets of make, extras of the package.
"""

from __future__ import annotations

import gzip
import inspect
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import typer
from click.testing import Result
from documents import Command, Snippet, commands, examples, snippets
from made_finetunes import finetuned
from typer.testing import CliRunner

import kvray
from kvray.cli import app
from kvray.driver import run as running
from kvray.errors import SourceUnreachableError
from kvray.generate.job import build
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning import inputs
from kvray.planning.artefacts import Artefact, PredictionsJob
from kvray.store.manifest import DATA
from kvray.store.schemas import ANSWERS_SCHEMA
from kvray.store.store import Store
from kvray.tasks.base import Task

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMANDS = [command for page in PAGES for command in commands(page)]
SNIPPETS = [snippet for page in PAGES for snippet in snippets(page)]
HELP = [example for command in app.registered_commands for example in examples(inspect.getdoc(command.callback) or "")]
KVRAY = typer.main.get_command(app)
ELSEWHERE = {
    ("aws", "cloudformation", "deploy"): {"--stack-name", "--template-file", "--capabilities"},
    ("aws", "secretsmanager", "create-secret"): {"--name", "--secret-string"},
    ("docker", "build"): {"--target", "--tag"},
    ("docker", "push"): set(),
    ("docker", "run"): {"--rm", "--shm-size"},
    ("kubectl", "apply"): {"-f"},
}
"""Options of programs that a machine for tests need not have, as their manuals have them."""
PLANNED_ONLY = ("sweeps/nq-open.yaml", "sweeps/paper/mdqa-mistral.yaml")
"""Sweeps of --help that take minutes: they are planned with the same options."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory as a reader of the README has it after the quickstart, with a stand-in for the real questions."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("KVRAY_STORE", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(inputs, "resolve", no_hub)
        rows = [{"question": f"q{i}?", "answers": [f"a{i}"], "text": f"It is a{i}."} for i in range(3000)]
        Path("nq-open-oracle.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
        patch.setenv("NQ_OPEN", str(folder / "nq-open-oracle.jsonl.gz"))
        quickstart(Store("store"))
        shutil.copytree("store", "other-store")
        quickstart(Store("other-store"), "name=quickstart-rerun", "finetune.seeds=[1]")
        yield folder


def no_hub(name: str, tokenizer: str | None = None) -> BaseModelRef:
    """Resolve what is on this machine; the hub does not answer, whatever this machine reaches."""
    if "/" in name or "/" in (tokenizer or ""):
        raise SourceUnreachableError(f"base_model: the hub does not answer for {name}")
    return resolve(name, tokenizer)


def quickstart(store: Store, *changes: str) -> None:
    """Commit what the quickstart leaves: its plan and datasets, one adapter for all finetunes, answers drawn by lot."""
    planned, base = running.prepare("sweeps/quickstart.yaml", changes)
    store.write_document(f"sweeps/{planned.sweep.name}.json", planned.to_json())
    tables: dict[str, pa.Table] = {}
    adapter = finetuned(base, planned.sweep.finetune, Path("adapter"))
    for artefact in planned.artefacts:
        weights: list[Path] = []
        if isinstance(artefact.params, Task):
            table = tables[artefact.id] = build(artefact.params, base, range(artefact.rows))
        elif isinstance(artefact.params, PredictionsJob):
            table = answers(artefact, artefact.params, tables)
        else:
            table = pa.table({"row": [0]})
            weights = sorted(adapter.iterdir())
        entries = [store.write(artefact.id, path.name, path) for path in weights]
        entries.append(store.write(artefact.id, f"{DATA}/chunk-00000.parquet", table))
        facts = {"seconds": 1.0, "steps": 44, "trained_tokens": 1, "loss_last_epoch": 0.1, "rows_per_epoch": 350}
        store.commit(**artefact.identity(), files=entries, measurements=facts)


def answers(artefact: Artefact, job: PredictionsJob, tables: dict[str, pa.Table]) -> pa.Table:
    assert job.dataset_id is not None
    examples_ = tables[job.dataset_id].to_pylist()
    right = np.random.default_rng(len(artefact.id)).random(len(examples_)) < (0.8 if job.finetune_id else 0.4)
    labels = {name: artefact.labels.get(name) for name in ("evaluation", "mixture", "finetune", "seed")}
    rows = [
        {**{name: example.get(name) for name in ANSWERS_SCHEMA.names}, **labels}
        | {"dataset": job.dataset_id, "task": job.task.task, "base_model": "kvray-tiny", "finish_reason": "stop"}
        | {"prompt_tokens": 600, "cached_tokens": 0, "output_tokens": 5, "answer": "an answer", "score": float(good)}
        for example, good in zip(examples_, right, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA)


def typed(command: Command, here: Path) -> Result:
    """Type a kvray command; what it would write to /tmp goes beside the store, what takes minutes is planned."""
    words = [word.replace("/tmp/", f"{here}/") for word in command.words[1:]]
    words = [name for word in words for name in (sorted(glob(word)) or [word])]  # as a shell does
    if words[0] == "run" and words[1] in PLANNED_ONLY:
        words[0] = "plan"
    return CliRunner().invoke(app, words, env=dict(command.environment))


def parse(command: click.Command, words: list[str]) -> None:
    """Read words as a program does before it starts: every option and argument must be one that it has."""
    if words == ["--install-completion"]:  # done as it is read: into the home directory
        assert any("--install-completion" in each.opts for each in command.params)
        return
    while isinstance(command, click.Group):
        assert words and words[0] in command.commands, f"{words[:1]} is no command of {command.name}"
        command = command.commands[words[0]]
        words = words[1:]
    command.make_context(command.name, words)


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.words[0] == "kvray"], ids=str)
def test_a_command_has_these_options(command: Command, here: Path) -> None:
    parse(KVRAY, [word.removesuffix("…") for word in command.words[1:]])


def runnable(command: Command) -> bool:
    return command.concrete and command.reason is None and command.words[1:] != ("--install-completion",)


@pytest.mark.parametrize("command", [each for each in COMMANDS if runnable(each)], ids=str)
def test_a_command_runs_unless_its_page_says_why_not(command: Command, here: Path) -> None:
    if command.words[0] == "kvray":
        result = typed(command, here)
        assert result.exit_code == 0, result.output
        assert result.stdout
    elif command.words[:2] == ("python", "docs/make_tasks.py"):
        # What it would write is there already, letter by letter.
        done = subprocess.run(
            [sys.executable, *command.words[1:], "--check"], cwd=ROOT, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    else:
        pytest.fail(f"{command}: say how it is run here, or why not: <!-- not run: reason -->")


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.words[0] != "kvray"], ids=str)
def test_what_is_not_run_names_what_there_is(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *words = command.words
    if program == "make":
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        subprocess.run(["make", "--dry-run", *words], check=True, capture_output=True, env=kept)
    elif program == "pip":
        extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert words[0] == "install"
        if "-r" in words:
            assert Path(words[words.index("-r") + 1]).is_file() and "--no-deps" in words
            return
        if words[1] == ".":
            return
        assert words[1].startswith(".[")
        assert set(words[1].removeprefix(".[").removesuffix("]").split(",")) <= set(extras)
    elif program == "python":
        written = [each.text for each in SNIPPETS if each.text.startswith(f"# {words[0]}\n")]  # by the page itself
        compile(written[0] if written else Path(words[0]).read_text(), words[0], "exec")
    elif program == "ray" and "…" not in words:
        from ray.scripts.scripts import cli

        inner = words[words.index("--") + 1 :] if "--" in words else []
        parse(cli, words)
        if inner:
            assert inner[0] == "kvray"
            parse(KVRAY, inner[1:])
    elif program in ("aws", "docker", "kubectl"):
        known = next(key for key in ELSEWHERE if command.words[: len(key)] == key)
        inner = words[words.index("kvray") + 1 :] if known == ("docker", "run") else []
        own = words[: len(words) - len(inner)]
        assert {word for word in own if word.startswith("-")} <= ELSEWHERE[known]
        files = [word for word in own if word.endswith(".yaml")]
        assert all(Path(file).is_file() for file in files)
        if "--target" in own:
            assert f" AS {own[own.index('--target') + 1]}\n" in Path("Dockerfile").read_text()
        if inner:
            parse(KVRAY, inner)
    else:
        assert program == "git" or "…" in words


@pytest.mark.parametrize("example", HELP, ids=str)
def test_an_example_of_help_has_these_options_and_runs_where_it_takes_seconds(example: Command, here: Path) -> None:
    parse(KVRAY, list(example.words[1:]))
    if example.words[1] not in ("pretrain", "doctor"):  # hours of training; a cluster
        result = typed(example, here)
        assert result.exit_code == 0, result.output
        assert result.stdout


def test_every_command_has_an_example() -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == {
        example.words[1] for example in HELP
    }


@pytest.mark.parametrize(
    "snippet", [each for each in SNIPPETS if each.reason is None], ids=lambda each: f"{each.page} {each.language}"
)
def test_a_snippet_runs(snippet: Snippet, here: Path) -> None:
    if snippet.language == "python":
        shown: list[Any] = []
        code = compile(snippet.text, snippet.page, "single" if snippet.text.count("\n") == 1 else "exec")
        names: dict[str, Any] = {}
        exec(code, names)
        # A line that is an expression is there for its value: none is empty.
        for line in snippet.text.splitlines():
            if line.startswith(("results.", "result.")):
                shown.append(eval(line, names))
        assert all(Path(each).is_file() for each in shown if isinstance(each, kvray.Report))
        frames = [each.lazy().collect() for each in shown if isinstance(each, pl.LazyFrame | pl.DataFrame)]
        assert frames and all(frame.height > 0 for frame in frames)
    elif snippet.language == "yaml":
        file = here / "mine.yaml"
        file.write_text(snippet.text)
        result = CliRunner().invoke(app, ["plan", "mine.yaml"])
        assert result.exit_code == 0, result.output
    else:
        assert snippet.language == "text" and snippet.page == "tasks.md"  # compared by make_tasks.py --check


def test_the_readme_shows_the_sweep_to_start_from_letter_by_letter() -> None:
    (shown,) = [each.text for each in SNIPPETS if each.page == "README.md" and each.language == "yaml"]
    assert (ROOT / "sweeps" / "your-own.yaml").read_text().endswith(f"\n# The README shows what follows.\n{shown}")


def test_settings_of_the_readme_are_ones_that_a_sweep_takes(here: Path) -> None:
    spans = [span for span in (ROOT / "README.md").read_text().split("`")[1::2] if span.startswith("--set ")]
    assert spans
    for span in spans:
        result = CliRunner().invoke(app, ["plan", "sweeps/paper/mdqa-mistral.yaml", *span.split()])
        assert result.exit_code == 0, result.output
