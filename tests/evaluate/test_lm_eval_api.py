"""Benchmarks of a model behind an API: what is asked, and what becomes of the replies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_cells import benchmark, cell
from local_driver import evaluate

from kvray.errors import CellError
from kvray.evaluate import chunks
from kvray.evaluate.engines.base import Reply, Request, too_long
from kvray.evaluate.engines.chat import ChatEngine
from kvray.evaluate.lm_eval import tasks
from kvray.evaluate.lm_eval.questions import BenchmarkQuestions
from kvray.models.reference import BaseModelRef
from kvray.store.store import Store
from kvray.tasks import world

pytest.importorskip("lm_eval")
LABELS = {"evaluation": "gsm8k", "task": "lm_eval", "base_model": "openai:some"}


def asked_of_an_api(name: str, **knobs: Any) -> BenchmarkQuestions:
    asked = BenchmarkQuestions(benchmark(name, **knobs), None)
    asked.prepare(range(len(asked)), None, 0)
    return asked


@pytest.fixture(autouse=True)
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from lm_eval.tasks import TaskManager

    def index(include_path: str | None) -> Any:
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks, "_manager", index)
    yield


def test_what_an_api_cannot_answer_is_refused_and_names_what_it_can() -> None:
    for name in ("tiny_choice", "tiny_letters", "tiny_cloze"):
        with pytest.raises(CellError, match="gsm8k, triviaqa, nq_open"):
            asked_of_an_api(name)
    with pytest.raises(CellError, match="the API applies its own"):
        asked_of_an_api("tiny_qa", chat_template=True)


def test_replies_become_scored_rows_and_those_that_did_not_fit_are_no_score(tmp_path: Path) -> None:
    store, steps = Store(tmp_path), cell(benchmark("tiny_steps", limit=4))
    asked = asked_of_an_api("tiny_steps", limit=4)
    assert asked.keys == [f"tiny_steps-{number}" for number in range(4)]
    (request,) = asked.requests[0]
    assert request.text.count("####") == 5
    assert (request.max_tokens, request.stop) == (24, ("Question:", "</s>"))

    right = [row.document["answers"][0] for row in asked.benchmark.rows]
    replies = [
        Reply(90, None, 9, f"So.\n#### {right[0]}\nQuestion: another\n#### no", "stop"),
        Reply(91, 64, 24, f"{right[1]}, of course", "length"),
        too_long(0),
        Reply(93, None, 3, f"#### {right[3]}", "stop"),
    ]
    table = asked.table(range(4), [[reply] for reply in replies], LABELS, {"seconds": 1.0, "engine": {"api": "x"}})
    assert table["score"].to_pylist() == [1.0, 0.0, None, 1.0]
    assert table["outcome"].to_pylist() == ["right", "wrong", None, "right"]
    assert table["answer"][0].as_py() == f"So.\n#### {right[0]}\n" and table["answer"][2].as_py() is None
    assert table["prompt_tokens"].to_pylist() == [90, 91, 0, 93]
    assert table["finish_reason"].to_pylist() == ["stop", "length", "too_long", "stop"]
    assert len(table["references"][2].as_py()) == 1

    chunks.commit(store, steps, asked, [table], [store.write(steps.id, chunks.chunk_name(0), table)])
    facts = store.manifest(steps.id).measurements  # type: ignore[union-attr]
    assert facts["rows"] == 4 and facts["too_long"] == 1 and facts["accuracy"] == pytest.approx(2 / 3)
    assert facts["harness"]["subtasks"]["tiny_steps"]["run"] == 3
    assert facts["harness"]["aggregates"]["tiny_steps"]["exact_match,strict-match"] == pytest.approx(2 / 3)


def test_no_more_stop_texts_are_sent_than_an_api_takes_and_the_others_cut_all_the_same() -> None:
    asked = BenchmarkQuestions(benchmark("tiny_qa", limit=1), None)
    (row,) = asked.benchmark.rows
    row.requests[0].args[1]["until"] = ["1", "2", "3", "4", "\n"]
    asked.prepare([0], None, 0)
    assert asked.requests[0][0].stop == ("1", "2", "3", "4")
    answer = row.document["answers"][0]
    reply = Reply(9, None, 9, f"{answer}\nor not", "stop")
    assert asked.table(range(1), [[reply]], LABELS, {})["score"].to_pylist() == [1.0]


def test_an_api_evaluation_asks_benchmarks_and_fails_alone_on_those_it_cannot_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def ask(engine: ChatEngine, request: Request) -> Reply:
        """Answer as one does who knows the emblems of the tiny world."""
        asked.append(request.text)
        engine._served["some"].add("some-1")
        name = request.text.removesuffix("?\nAnswer:").rpartition(" of ")[2]
        person = next(at for at in range(20) if world.name_of("known", at) == name)
        return Reply(50, None, 5, f"#### {world.known_value(person, 'emblem')}", "stop")

    monkeypatch.setattr(ChatEngine, "_ask", ask)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 8)
    store = Store(tmp_path)
    base = BaseModelRef("openai:some", "some", None, "openai:some")
    steps, choice = cell(benchmark("tiny_steps")), cell(benchmark("tiny_choice"))
    good, bad = evaluate(store, base, steps, choice, api_base_url="http://127.0.0.1:9/v1")
    assert good is None and "gsm8k, triviaqa, nq_open" in (bad or "")
    assert store.read_table(steps.id)["score"].to_pylist() == [1.0] * 16 and len(asked) == 16
    facts = store.manifest(steps.id).measurements  # type: ignore[union-attr]
    assert facts["harness"]["aggregates"]["tiny_steps"]["exact_match,strict-match"] == 1.0
    assert facts["engines"][0]["served"] == ["some-1"]
    assert evaluate(store, base, steps, api_base_url="http://127.0.0.1:9/v1") == [None] and len(asked) == 16
