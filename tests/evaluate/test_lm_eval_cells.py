"""Benchmarks as cells of a sweep: chunks, resume, parts and failures with a stub for the engine; one with real vLLM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import benchmark_files
import evaluate_store as made
import pytest
from benchmark_cells import StubEngine, benchmark, cell
from local_driver import Driver, evaluate

from kvray.errors import CellError
from kvray.evaluate import chunks, job
from kvray.evaluate.engines.base import Reply, Request
from kvray.evaluate.lm_eval import tasks as lm_eval_tasks
from kvray.models.reference import resolve
from kvray.planning.artefacts import Artefact
from kvray.store.schemas import ANSWERS_SCHEMA
from kvray.store.store import Store

pytest.importorskip("lm_eval")
CHUNK = 16


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[StubEngine]]:
    """A stub in place of vLLM, whose answer to all letters is A; chunks of 16 rows; no tasks but ours."""
    from lm_eval.tasks import TaskManager

    def always_a(request: Request) -> Reply:
        scored = tuple((-2.0 if at else -0.5, not at) for at in range(len(request.labels)))
        return Reply(len(request.tokens), 0, 0, None, "stop", scored)

    monkeypatch.setattr(lm_eval_tasks, "_manager", lambda path: TaskManager(include_path=path, include_defaults=False))
    monkeypatch.setattr(chunks, "CHUNK_ROWS", CHUNK)
    monkeypatch.setattr(job, "engine_class", lambda base, runtime: StubEngine)
    monkeypatch.setattr(StubEngine, "rule", staticmethod(always_a), raising=False)
    monkeypatch.setattr(StubEngine, "asked", 0)
    monkeypatch.setattr(StubEngine, "lives", None)
    yield StubEngine


def do(store: Store, *cells: Artefact) -> list[str | None]:
    """Ask benchmarks of kvray-tiny; return the errors."""
    return evaluate(store, resolve("kvray-tiny"), *cells)


def test_a_cell_has_a_row_per_question_and_the_harnesss_facts(stub: type[StubEngine], tmp_path: Path) -> None:
    store, letters = Store(tmp_path), cell(benchmark("tiny_letters", shots=2))
    assert do(store, letters) == [None]
    table = store.read_table(letters.id)
    assert table.schema.names == ANSWERS_SCHEMA.names and table.num_rows == 60
    rows = table.to_pylist()
    assert rows[0]["example_id"] == rows[0]["question_id"] == "tiny_letters_birthplace-0"
    assert {row["subtask"] for row in rows} == {f"tiny_letters_{name}" for name in benchmark_files.PEOPLE}
    assert all(row["answer"] == "A" and row["task"] == "lm_eval" for row in rows)
    assert all((row["references"] == ["A"]) == (row["score"] == 1.0) == (row["outcome"] == "right") for row in rows)
    assert all(row["position"] is None and row["output_tokens"] == 0 and row["prompt_tokens"] > 50 for row in rows)
    facts = store.manifest(letters.id).measurements  # type: ignore[union-attr]
    assert facts["rows"] == 60 and facts["accuracy"] == 0.25 and facts["engines"]
    harness = facts["harness"]
    assert harness["lm_eval"] == "0.4.13" and harness["benchmark"] == "tiny_letters" and harness["cut"] == 0
    assert harness["subtasks"]["tiny_letters_emblem"] == {
        "version": "1.0", "shots": 2, "metric": "acc,none", "questions": 16, "run": 16
    }  # fmt: skip
    assert harness["aggregates"]["tiny_letters"] == {"acc,none": facts["accuracy"]}


def test_one_subtask_is_no_column_and_cut_prompts_are_counted(stub: type[StubEngine], tmp_path: Path) -> None:
    store, one = Store(tmp_path), cell(benchmark("tiny_letters_trade", shots=3, length=100, limit=5))
    do(store, one)
    table = store.read_table(one.id)
    assert table["subtask"].null_count == table.num_rows == 5
    assert store.manifest(one.id).measurements["harness"]["cut"] == 5  # type: ignore[union-attr]
    assert table["prompt_tokens"].to_pylist() == [98] * 5  # one for the label, one that vLLM must write


def test_an_engine_that_died_loses_and_asks_again_only_its_open_chunk(stub: type[StubEngine], tmp_path: Path) -> None:
    store, letters = Store(tmp_path), cell(benchmark("tiny_letters"))
    stub.lives = 40
    with pytest.raises(RuntimeError, match="died"):
        do(store, letters)
    assert store.manifest(letters.id) is None
    stub.lives, stub.asked = None, 0
    assert do(store, letters) == [None]
    assert stub.asked == 28
    assert len(set(store.read_table(letters.id)["example_id"].to_pylist())) == 60
    stub.asked = 0
    do(store, letters)
    assert stub.asked == 0


def test_a_benchmark_that_cannot_be_had_or_scored_fails_alone(
    stub: type[StubEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvray.evaluate.lm_eval import scoring

    def scored(loaded: Any, row: Any, *given: Any) -> Any:
        if row.subtask == "tiny_letters_emblem":
            raise CellError("metric acc,none of tiny_letters_emblem is no score")
        return real(loaded, row, *given)

    real = scoring._scored
    monkeypatch.setattr(scoring, "_scored", scored)
    store = Store(tmp_path)
    cells = [cell(benchmark(name)) for name in ("tiny_lettres", "tiny_letters_trade", "tiny_letters_emblem")]
    gone, good, bad = do(store, *cells)
    assert good is None and store.manifest(cells[1].id) is not None
    assert store.manifest(cells[0].id) is None and store.manifest(cells[2].id) is None
    assert "has none by this name" in str(gone) and "is no score" in str(bad)


def test_a_benchmark_longer_than_its_engine_is_done_by_a_longer_one(stub: type[StubEngine], tmp_path: Path) -> None:
    store, base = Store(tmp_path), resolve("kvray-tiny")
    short = made.predictions(store, made.dataset(store, made.example_table(4)), None)
    cells = [short, cell(benchmark("tiny_letters", shots=8))]
    driver = Driver(store, base)
    driver.add(cells)
    driver.queue.close()
    while not driver.queue.over:
        driver.seat()
    assert not any(driver.errors.values()) and len(driver.sources) == 2
    lengths = [store.manifest(each.id).measurements["engines"][0]["stub"] for each in cells]  # type: ignore[union-attr]
    assert lengths[0] < lengths[1]


@pytest.mark.slow
def test_real_vllm_answers_as_the_harnesss_own_model_class_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(benchmark_files.HOME), include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "_manager", lambda path: manager)
    store, base = Store(tmp_path / "store"), resolve("kvray-tiny")
    adapter = made.make_adapter(base, tmp_path / "adapter", strength=0.05)
    finetune = made.finetune(store, "real", adapter)
    tasks = {
        "tiny_qa": benchmark("tiny_qa", chat_template=True, limit=30),
        "tiny_steps": benchmark("tiny_steps", max_tokens=12),
        "tiny_choice": benchmark("tiny_choice"),
        "tiny_cloze": benchmark("tiny_cloze", chat_template=True),
        "tiny_letters": benchmark("tiny_letters", shots=2),
    }
    cells = {(name, model): cell(task, model) for name, task in tasks.items() for model in (None, finetune)}
    assert do(store, *cells.values()) == [None] * len(cells)
    for model, adapted in ((None, {}), (finetune, {"peft": str(adapter)})):
        lm = HFLM(pretrained=base.location, device="cpu", dtype="float32", batch_size=32, **adapted)
        for name, task in tasks.items():
            with contextlib.chdir(benchmark_files.HOME):
                theirs = simple_evaluate(
                    lm,
                    tasks=[name],
                    task_manager=manager,
                    num_fewshot=task.shots,
                    limit=task.limit,
                    apply_chat_template=task.chat_template,
                    gen_kwargs={"max_gen_toks": task.max_tokens} if task.max_tokens else None,
                    bootstrap_iters=0,
                )
            manifest = store.manifest(cells[name, model].id)
            assert manifest is not None and theirs is not None
            ours = manifest.measurements["harness"]["aggregates"]
            for part, found in theirs["results"].items():
                for key, value in found.items():
                    assert value == "N/A" or "," not in key or ours[part][key] == pytest.approx(value), (part, key)
            rows = {row["example_id"]: row for row in store.read_table(cells[name, model].id).to_pylist()}
            assert {row["adapter"] for row in rows.values()} == {model and model.rpartition("/")[2]}
            samples = {f"{part}-{one['doc_id']}": one for part, each in theirs["samples"].items() for one in each}
            assert rows.keys() == samples.keys()
            for key, sample in samples.items():
                if name in ("tiny_qa", "tiny_steps"):
                    assert rows[key]["answer"] == sample["resps"][0][0]
                else:
                    assert rows[key]["score"] == sample["acc"]
    base_facts = {name: store.manifest(cells[name, None].id).measurements for name in tasks}  # type: ignore[union-attr]
    assert base_facts["tiny_qa"]["accuracy"] == 1.0  # known by heart
    assert base_facts["tiny_cloze"]["accuracy"] == 1.0
    assert 0.3 < base_facts["tiny_choice"]["accuracy"] < 1.0
    assert any(
        store.read_table(cells[name, None].id)["answer"] != store.read_table(cells[name, finetune].id)["answer"]
        for name in tasks
    )
