"""Benchmarks at lengths of one's choice: the harness's metadata, a row's length, and how much of a prompt is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_cells import StubEngine, cell
from local_driver import evaluate

from kvray.errors import CellError, InputError
from kvray.evaluate import chunks, job
from kvray.evaluate.engines.base import Reply, Request
from kvray.evaluate.lm_eval import scoring, tasks
from kvray.evaluate.lm_eval.questions import BenchmarkQuestions
from kvray.evaluate.lm_eval.requests import Encoder
from kvray.models.reference import BUNDLED, load_tokenizer, resolve, tokenizer_place
from kvray.store.store import Store
from kvray.tasks.lm_eval import LmEval

pytest.importorskip("lm_eval")
TINY = str(BUNDLED["kvray-tiny"])
TASK = """\
task: counted
output_type: generate_until
test_split: test
custom_dataset: !function made.questions
doc_to_text: "{{input}}"
doc_to_target: "{{outputs}}"
process_results: !function made.scores
metric_list:
  - {metric: "4096", aggregation: !function made.mean, higher_is_better: true}
  - {metric: "8192", aggregation: !function made.mean, higher_is_better: true}
generation_kwargs: {until: ["\\n"], max_gen_toks: 8}
metadata: {version: 1.0}
"""
MADE = '''\
"""Questions with the fields of RULER's tasks in the harness, made for the lengths that metadata asks for."""
import random

import datasets
from transformers import AutoTokenizer

OWN = random.Random(7)


def questions(max_seq_lengths=(4096,), tokenizer=None, pretrained=None, rows=3, **others):
    assert tokenizer == pretrained
    count, made = AutoTokenizer.from_pretrained(pretrained), []
    for length in max_seq_lengths:
        for _ in range(rows):
            value, text = str(OWN.randint(1000, 9999) * 10 + random.randint(0, 9)), ""
            while len(count(text + " noise").input_ids) + 24 < length:
                text += " noise"
            made.append({"input": f"The number is {value}.{text}", "outputs": [value], "max_length": length})
    return {"test": datasets.Dataset.from_list(made)}


def scores(document, results):
    given = {"4096": -1.0}
    given[str(document["max_length"])] = float(document["outputs"][0] in results[0])
    return given


def mean(values):
    own = [value for value in values if value != -1]
    return sum(own) / len(own) if own else -1
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the task ``counted``; the harness's own 14,000 task files are not indexed."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(tasks, "_manager", lambda path: TaskManager(include_path=path, include_defaults=False))
    (tmp_path / "counted.yaml").write_text(TASK)
    (tmp_path / "made.py").write_text(MADE)
    return tmp_path


def counted(folder: Path, lengths: list[int], **knobs: Any) -> LmEval:
    return LmEval(benchmark="counted", include_path=str(folder), metadata={"max_seq_lengths": lengths}, **knobs)


def test_questions_are_made_for_the_lengths_asked_and_measured_by_the_base_model_s_tokenizer(folder: Path) -> None:
    loaded = tasks.load(counted(folder, [64, 192]), None, TINY)
    assert [row.document["max_length"] for row in loaded.rows] == [64] * 3 + [192] * 3
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    for row in loaded.rows:
        tokens = len(tokenizer(row.requests[0].args[0]).input_ids)
        assert row.document["max_length"] - 24 <= tokens <= row.document["max_length"]


def test_a_limit_is_of_each_length(folder: Path) -> None:
    loaded = tasks.load(counted(folder, [64, 96, 128], limit=2), None, TINY)
    assert Counter(row.document["max_length"] for row in loaded.rows) == {64: 2, 96: 2, 128: 2}
    assert [row.id for row in loaded.rows] == [f"counted-{number}" for number in range(6)]
    assert len(tasks.load(counted(folder, [64], limit=2), None, TINY).rows) == 2


def test_the_same_questions_are_made_at_every_load_even_by_generators_of_the_module_s_own(folder: Path) -> None:
    def asked() -> list[str]:
        return [row.requests[0].args[0] for row in tasks.load(counted(folder, [64]), None, TINY).rows]

    first = asked()
    assert len(set(first)) == 3 and asked() == first


def test_a_row_s_score_is_the_one_at_its_length(folder: Path) -> None:
    loaded = tasks.load(counted(folder, [64, 4096], limit=1), None, TINY)
    right = [row.document["outputs"] for row in loaded.rows]
    short, long = scoring.score(loaded, loaded.rows, [right[0], ["no"]])
    assert (short.length, short.metric, short.score) == (64, "64,none", 1.0)
    assert (long.length, long.metric, long.score) == (4096, "4096,none", 0.0)
    found = scoring.aggregate(loaded, {"counted": {"4096,none": [-1.0, 0.0], "64,none": [1.0]}})
    assert found == {"counted": {"4096,none": 0.0, "64,none": 1.0}}
    assert scoring.aggregate(loaded, {"counted": {"4096,none": [-1.0], "64,none": [1.0]}})["counted"] == {"64,none": 1}


def test_predictions_have_the_length_and_the_manifest_every_metric(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))

    def read(request: Request) -> Reply:
        """Answer the short prompts right."""
        text = tokenizer.decode(request.tokens)
        return Reply(
            len(request.tokens), 0, 2, text.split("number is ")[1][:5] if len(request.tokens) < 96 else "?", "stop"
        )

    monkeypatch.setattr(job, "engine_class", lambda base, runtime: StubEngine)
    monkeypatch.setattr(StubEngine, "rule", staticmethod(read), raising=False)
    monkeypatch.setattr(StubEngine, "lives", None)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 2)
    store, made = Store(tmp_path_factory.mktemp("store")), cell(counted(folder, [64, 192]))
    assert evaluate(store, resolve("kvray-tiny"), made) == [None]
    table = store.read_table(made.id)
    assert table["length"].to_pylist() == [64] * 3 + [192] * 3
    assert table["score"].to_pylist() == [1.0] * 3 + [0.0] * 3
    facts = store.manifest(made.id).measurements["harness"]  # type: ignore[union-attr]
    assert facts["subtasks"]["counted"]["metric"] == "64,none, 192,none"
    assert facts["aggregates"] == {"counted": {"64,none": 1.0, "192,none": 0.0}}


def test_a_benchmark_s_own_code_that_fails_is_the_cell_s_error(folder: Path) -> None:
    loaded = tasks.load(counted(folder, [64], limit=1), None, TINY)
    loaded.subtasks["counted"].config.process_results = lambda document, results: document["x"]
    with pytest.raises(CellError, match=r"benchmark counted: counted-0 cannot be scored: KeyError: 'x'"):
        scoring.score(loaded, loaded.rows, [["1"]])

    def lacks(document: Any, results: Any) -> Any:
        raise LookupError("****\n  Resource punkt_tab not found.\n  >>> nltk.download('punkt_tab')\n****\n")

    loaded.subtasks["counted"].config.process_results = lacks
    with pytest.raises(CellError, match=r"nltk has no punkt_tab here; type python -m nltk\.downloader punkt_tab"):
        scoring.score(loaded, loaded.rows, [["1"]])


def test_prompts_are_as_long_as_the_engine_serves_unless_the_benchmark_is_short(folder: Path) -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))

    def length(task: LmEval, limit: int = 32768) -> int:
        return Encoder(tokenizer, task, limit).length

    assert length(counted(folder, [8192])) == length(LmEval(benchmark="longbench2")) == 32768
    assert length(LmEval(benchmark="gsm8k")) == length(LmEval(benchmark="x", include_path=str(folder))) == 4096
    assert length(LmEval(benchmark="mmlu", shots=50)) == 32768
    assert length(LmEval(benchmark="longbench2", length=20000)) == 20000
    assert length(LmEval(benchmark="longbench2", length=20000), 512) == 512
    asked = BenchmarkQuestions(counted(folder, [6000], limit=1), tokenizer, TINY)
    asked.prepare([0], tokenizer, 32768)
    (long,) = asked.requests[0]
    text = asked.benchmark.rows[0].requests[0].args[0]
    assert long.cut == 0 and 5900 < len(long.tokens) <= 6000 - 8
    assert np.array_equal(long.tokens, tokenizer(text).input_ids)


def test_ids_of_what_was_asked_before_hold_and_a_path_is_no_identity(tmp_path: Path) -> None:
    assert LmEval(benchmark="gsm8k").recipe() == LmEval(benchmark="gsm8k", length=4096).recipe()
    assert "metadata" not in LmEval(benchmark="gsm8k").recipe()
    assert LmEval(benchmark="longbench2").recipe()["length"] is None
    asked = LmEval(benchmark="ruler", metadata={"max_seq_lengths": [4096]})
    assert asked.recipe()["metadata"] == {"max_seq_lengths": [4096]} and asked.sources() == {}
    (tmp_path / "m").symlink_to(TINY)
    here, there = (
        LmEval(benchmark="ruler", metadata={"max_seq_lengths": [4096], "tokenizer": name})
        for name in ("kvray-tiny", str(tmp_path / "m"))
    )
    assert here.recipe() == there.recipe() == asked.recipe()
    assert here.sources() == there.sources() != {}
    with pytest.raises(InputError, match="is no directory"):
        LmEval(benchmark="ruler", metadata={"tokenizer": "/not/there"}).sources()
    with pytest.raises(InputError, match="found pretrained; expected it left out"):
        LmEval(benchmark="ruler", metadata={"pretrained": "x"})


def test_sizes_count_every_length() -> None:
    ruler = LmEval(benchmark="ruler", metadata={"max_seq_lengths": [4096, 8192]}, limit=10)
    assert ruler.expected_rows() == 2 * 13 * 10 and ruler.tokens_estimate() == 6144
    assert ruler.with_rows(52).limit == 2
    assert LmEval(benchmark="babilong", metadata={"max_seq_lengths": "8k"}).lengths() == ()


def test_an_api_s_benchmarks_are_measured_by_the_tokenizer_that_counts_for_it() -> None:
    assert tokenizer_place(resolve("openai:some", "kvray-tiny")) == tokenizer_place(resolve("kvray-tiny")) == TINY


@pytest.mark.slow
def test_the_harness_s_own_ruler_is_asked_at_the_lengths_given(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nltk")
    pytest.importorskip("wonderwords")
    from lm_eval import tasks as theirs
    from lm_eval.tasks import TaskManager

    ruler = Path(theirs.__file__).parent / "ruler"
    monkeypatch.setattr(tasks, "_manager", lambda path: TaskManager(include_path=str(ruler), include_defaults=False))
    task = LmEval(benchmark="niah_single_1", metadata={"max_seq_lengths": [512, 1024]}, limit=4)
    loaded = tasks.load(task, None, TINY)
    assert Counter(row.document["max_length"] for row in loaded.rows) == {512: 4, 1024: 4}
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    for row in loaded.rows:
        text = row.requests[0].args[0]
        assert text.startswith("A special magic number is hidden") and text.endswith(
            "mentioned in the provided text is"
        )
        assert len(tokenizer(text).input_ids) <= row.document["max_length"]
    scored = scoring.score(loaded, loaded.rows, [[f" {row.document['outputs'][0]}."] for row in loaded.rows])
    assert [(one.length, one.score) for one in scored] == [(512, 1.0)] * 4 + [(1024, 1.0)] * 4
