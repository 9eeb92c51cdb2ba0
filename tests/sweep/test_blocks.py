"""Tasks from outside kvray: files beside a sweep, installed packages, entry points, and classes passed in Python."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251  # as Ray does
import random
import subprocess
import sys
from pathlib import Path

import pytest

from kvray.errors import InputError
from kvray.planning.inputs import gather
from kvray.planning.plan import Plan, plan
from kvray.sweep import blocks
from kvray.sweep.blocks import check_task
from kvray.sweep.load import load
from kvray.sweep.model import Sweep
from kvray.sweep.schema import json_schema
from kvray.tasks import code
from kvray.tasks.base import Task, recipe
from kvray.tasks.rows import Example, RowTask

SHOUT = """
from kvray.tasks import Example, RowTask, recipe


class Shout(RowTask):
    '''Repeat a word in capitals.'''

    words: int = recipe(3, ge=1, le=9, description="words to choose from")

    def example(self, row, rng):
        word = f"word{rng.randrange(self.words)}"
        return Example(f"Shout {word}", word.upper())
"""
SWEEP = """name: s
base_model: kvray-tiny
datasets:
  shout: {task: shouting:Shout, rows: 40}
evaluate:
  shout: {task: shouting:Shout, rows: 8, seed: 1}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "shouting.py").write_text(SHOUT)
    (tmp_path / "s.yaml").write_text(SWEEP)
    return tmp_path / "s.yaml"


def problems(path: Path, *settings: str, allow_code: bool = True) -> list[str]:
    with pytest.raises(InputError) as raised:
        load(str(path), settings, allow_code=allow_code)
    return [line.removeprefix(f"{path.parent}{os.sep}") for line in raised.value.problems]


def planned(path: Path, *settings: str) -> Plan:
    read = load(str(path), settings, allow_code=True)
    return plan(read, gather(read))


def ids(found: Plan) -> dict[str, str]:
    return {"/".join(map(str, [a.kind, *a.labels.values()])): a.id for a in found.artefacts}


def test_code_beside_a_sweep_is_refused_in_one_sentence_and_not_run(sweep: Path) -> None:
    (sweep.parent / "shouting.py").write_text("raise SystemExit('it ran')")
    (sweep.parent / "other.py").write_text("raise SystemExit('it ran')")
    told = problems(sweep, "evaluate.shout.task=other:Other", "datasets.shout.rows=x", allow_code=False)
    expected = "found code beside the sweep (shouting.py, other.py), which is not loaded; type --allow-code to load it"
    assert told == [f"s.yaml:4: datasets.shout.task: {expected}"]


def test_without_the_flag_a_command_ends_with_status_2(sweep: Path) -> None:
    command = [sys.executable, "-m", "kvray.cli", "plan", str(sweep), "--store", str(sweep.parent / "store")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1)
    assert not (sweep.parent / "store").exists() and not (sweep.parent / "__pycache__").exists()


def test_a_file_in_the_current_folder_is_no_package(sweep: Path) -> None:
    (sweep.parent / "sweeps").mkdir()
    moved = sweep.rename(sweep.parent / "sweeps" / "s.yaml")
    command = [sys.executable, "-m", "kvray.cli", "plan", str(moved), "--allow-code"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=sweep.parent)
    assert ended.returncode == 2 and f"expected shouting.py in {moved.parent}, or a module of" in ended.stderr


def test_it_is_named_in_the_plan_and_part_of_every_recipe_that_uses_it(sweep: Path) -> None:
    found = planned(sweep)
    digest = found.code()[str(sweep.parent / "shouting.py")]
    assert len(digest) == 64
    datasets = [a.recipe for a in found.artefacts if a.kind == "dataset"]
    scorers = [a.recipe["scorer"] for a in found.artefacts if a.kind == "predictions"]
    assert {each["code"] for each in [*datasets, *scorers]} == {digest} and len(datasets) == len(scorers) == 2
    assert all(
        set(id_) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
        for id_ in ids(found).values()
    )
    assert any(id_.startswith("predictions/shouting-Shout-base-") for id_ in ids(found).values())


def test_a_changed_scorer_runs_again(sweep: Path) -> None:
    before = ids(planned(sweep))
    assert ids(planned(sweep)) == before
    scorer = "\n    def score(self, answer, references):\n        return float(references[0] in answer)\n"
    (sweep.parent / "shouting.py").write_text(SHOUT + scorer)
    after = ids(planned(sweep))
    assert before.keys() == after.keys() and not set(before.values()) & set(after.values())


def test_the_names_of_built_in_tasks_carry_no_code(sweep: Path) -> None:
    task, _ = check_task({"task": "simple_kv"})
    assert task is not None and code.digest_of(task) == {}


def test_knobs_are_checked_as_those_of_built_in_tasks(sweep: Path) -> None:
    sweep.write_text(SWEEP.replace("rows: 40", "rosw: 40, words: many") + "grid: {datasets.shout.wrds: [1]}\n")
    assert problems(sweep) == [
        "s.yaml:4: datasets.shout.words: found 'many'; expected a whole number",
        "s.yaml:4: datasets.shout.rosw: found 'rosw'; expected one of: task, seed, rows, words; did you mean 'rows'?",
        "s.yaml:7: grid.datasets.shout.wrds: found 'datasets.shout.wrds'; expected a path like finetune.epochs, "
        "datasets.NAME.KNOB or evaluate.NAME.KNOB; did you mean 'datasets.shout.words'?",
    ]


def test_a_grid_varies_its_knobs(sweep: Path) -> None:
    sweep.write_text(f"{SWEEP}grid: {{datasets.shout.words: [2, 3]}}\n")
    found = planned(sweep)
    assert sum(artefact.kind == "finetune" for artefact in found.artefacts) == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class Shout:\n    pass\n", "found shouting.py:Shout, the class Shout; expected a subclass of"),
        ("def Shout():\n    pass\n", "found shouting.py:Shout, a function; expected a subclass of"),
        ("class Shout(\n", "found shouting.py, which cannot be loaded: line 1: '(' was never closed"),
        ("\n1 / 0\n", "found shouting.py, which cannot be loaded: line 2: ZeroDivisionError: division by zero"),
        ("exit()\n", "found shouting.py, which cannot be loaded: line 1: SystemExit"),
        ("import helper\n", "No module named 'helper'; a task's file is loaded alone: put what it needs into it"),
        (
            SHOUT.replace("Shout(", "Shot("),
            "found 'Shout'; expected one of the tasks in shouting.py: Shot; did you mean",
        ),
        (
            SHOUT.replace("example(", "exmple("),
            "found the task Shout without example(); expected methods of these names",
        ),
        (
            "from kvray.tasks import Task\nclass Shout(Task):\n    pass\n",
            "found the task Shout without build() and score(); expected methods",
        ),
        (
            SHOUT.replace('recipe(3, ge=1, le=9, description="words to choose from")', "3"),
            "Shout.words must be declared",
        ),
        ("from kvray.tasks.kv.simple import SimpleKV as Shout\n", "which shouting.py imports; expected kvray.tasks.kv"),
    ],
)
def test_what_is_no_task_is_told_in_one_line(sweep: Path, text: str, expected: str) -> None:
    (sweep.parent / "helper.py").write_text("")
    (sweep.parent / "shouting.py").write_text(text)
    first, *others = problems(sweep)
    assert first.startswith("s.yaml:4: datasets.shout.task: ") and expected in first
    assert all(line.startswith("s.yaml:6: evaluate.shout.task: ") for line in others)


def test_an_unknown_module_names_the_nearest_file(sweep: Path) -> None:
    first = problems(sweep, "datasets.shout.task=shoutin:Shout")[0]
    assert first.endswith(
        f"expected shoutin.py in {sweep.parent}, or a module of an installed package; did you mean 'shouting'?"
    )
    assert "expected module:Class, as in shouting:Shout" in problems(sweep, "datasets.shout.task='shouting:'")[0]


def test_a_file_named_as_a_module_of_python_is_refused_and_shadows_nothing(sweep: Path) -> None:
    (sweep.parent / "json.py").write_text(SHOUT)
    assert "found json.py, named as a module of Python itself" in problems(sweep, "datasets.shout.task=json:Shout")[0]
    (sweep.parent / "random.py").write_text("raise RuntimeError")
    (sweep.parent / "shouting.py").write_text(f"import random\n{SHOUT}")
    assert planned(sweep).artefacts
    assert str(sweep.parent) not in sys.path and "shouting" not in sys.modules


def test_files_of_one_name_in_two_folders_are_two_modules(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "s.yaml"
    other.parent.mkdir()
    other.write_text(SWEEP)
    (other.parent / "shouting.py").write_text(SHOUT.replace("Shout {word}", "Louder: {word}"))
    first, second = load(str(sweep), allow_code=True), load(str(other), allow_code=True)
    for read, start in ((first, "Shout"), (second, "Louder"), (first, "Shout")):
        found = plan(read, gather(read))
        task = next(a.params for a in found.artefacts if a.kind == "dataset")
        assert isinstance(task, RowTask) and task.example(0, random.Random(0)).prompt.startswith(start)
    assert not set(ids(plan(first, gather(first))).values()) & set(ids(plan(second, gather(second))).values())


def test_a_pickled_task_brings_its_source_to_a_process_that_has_no_such_file(sweep: Path) -> None:
    task = load(str(sweep), allow_code=True).datasets["shout"]
    (sweep.parent / "shouting.py").unlink()
    (sweep.parent / "task").write_bytes(pickle.dumps(task))  # as Ray does
    script = "import pickle, random, sys; task = pickle.load(open(sys.argv[1], 'rb')); "
    script += "print(task.task, task.rows, task.example(1, random.Random(1)).answer)"
    command = [sys.executable, "-c", script, str(sweep.parent / "task")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd="/").stdout.split()
    assert told[:2] == ["shouting:Shout", "40"] and told[2].startswith("WORD")


def installed(folder: Path, entries: str) -> None:
    """Put a package on disk as pip leaves one."""
    (folder / "site-packages" / "loudly").mkdir(parents=True)
    (folder / "site-packages" / "loudly" / "__init__.py").write_text("")
    (folder / "site-packages" / "loudly" / "tasks.py").write_text(SHOUT)
    (folder / "site-packages" / "loudly" / "broken.py").write_text("raise RuntimeError('it was loaded')")
    info = folder / "site-packages" / "loudly-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loudly\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[kvray.tasks]\n{entries}")


def test_a_task_of_a_package_by_module_or_by_entry_point(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "shout = loudly.tasks:Shout\nbroken = loudly.broken:Shout\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    for name in ("loudly.tasks:Shout", "shout"):
        read = load(str(sweep), (f"datasets.shout.task={name}", f"evaluate.shout.task={name}"))
        assert read.datasets["shout"].task == "loudly.tasks:Shout"
        found = plan(read, gather(read))
        assert found.code() == {} and all("code" not in a.recipe for a in found.artefacts)
        assert any(id_.startswith("datasets/loudly-tasks-Shout-") for id_ in ids(found).values())
    assert "loudly.broken" not in sys.modules, "an entry point is loaded only when its name is asked for"
    assert "did you mean 'shout'?" in problems(sweep, "datasets.shout.task=shuot")[0]
    assert "RuntimeError: it was loaded" in problems(sweep, "datasets.shout.task=broken")[0]


def test_the_schema_for_editors_takes_tasks_from_elsewhere() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    blocks = {"a": {"task": "shouting:Shout", "words": 3}, "b": {"task": "simple_kv", "rows": 3}}
    jsonschema.validate({"name": "s", "base_model": "kvray-tiny", "datasets": blocks}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"name": "s", "base_model": "x", "datasets": {"b": {"task": "simple_kv", "rosw": 3}}}, json_schema()
        )


class Whisper(RowTask):
    """A task of this module, which a test passes as an object."""

    words: int = recipe(2, description="words")

    def example(self, row: int, rng: random.Random) -> Example:
        return Example(f"Whisper WORD{row}", f"word{row}")


def test_a_class_of_a_module_is_passed_as_an_object() -> None:
    task = Whisper(rows=5)
    assert task.task == f"{__name__}:Whisper" and len(code.digest_of(task)["code"]) == 64
    made = Sweep(name="s", base_model="kvray-tiny", evaluate={"w": task})
    again = Sweep.model_validate(json.loads(made.model_dump_json()))
    assert [a.id for a in plan(made, gather(made)).artefacts] == [a.id for a in plan(again, gather(again)).artefacts]


def test_a_class_that_no_worker_can_load_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inner(Whisper):
        pass

    _, found = check_task(Inner())
    assert "expected a class at the top of its module" in str(found[0])
    monkeypatch.setattr(Whisper, "__module__", "__main__")
    _, found = check_task(Whisper())
    assert "type: from my_tasks import Whisper" in str(found[0])


def test_a_row_task_counts_numbers_and_pairs_for_its_author() -> None:
    task = Whisper(rows=6, seed=3)
    context = task.context(lambda texts: [len(text) for text in texts])  # type: ignore[arg-type, return-value]
    assert task.count(context) == 6
    whole, part = task.build(0, 6, context), task.build(2, 4, context)
    assert whole.slice(2, 2).equals(part), "a row depends on nothing but itself"
    first = whole.to_pylist()[0]
    assert first["example_id"] == first["question_id"] == "0" and first["references"] == ["word0"]
    assert first["prompt_tokens"] == len(first["prompt"]) and first["position"] is None
    assert (task.score("The word0!", ["word0"]), task.score("word1", ["word0"])) == (1.0, 0.0)


def test_no_lookup_is_left_behind(sweep: Path) -> None:
    load(str(sweep), allow_code=True)
    assert blocks.code_file("shouting:Shout") is None
    with pytest.raises(InputError, match="found no module shouting; expected an installed module"):
        blocks.task_class("shouting:Shout")
    assert isinstance(load(str(sweep), allow_code=True).datasets["shout"], Task)
