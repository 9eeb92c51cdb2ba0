"""What a model writes for datasets: by chunk, once, by a real engine; then generate makes the dataset of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from kvray.errors import CellError
from kvray.evaluate import chunks
from kvray.evaluate.chunks import CHUNK_ROWS, Reply
from kvray.evaluate.desk import Desk, job_of
from kvray.evaluate.writing import write
from kvray.generate.job import generate
from kvray.models.reference import BaseModelRef, resolve
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, Kind, WritingJob
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import WRITING_SCHEMA
from kvray.store.store import Store, artefact_id
from kvray.sweep.model import Runtime
from kvray.tasks import prompts as wording
from kvray.tasks import writing
from kvray.tasks.base import Task
from kvray.tasks.in2.in2 import In2
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.questions import best_subspan_em

BASE = resolve("kvray-tiny")
TWO_DOCUMENTS = wording.MDQA.replace(
    "{documents}", "Document [1](Title: {title}) {text}\nDocument [2](Title: {answer}) {text}"
)
"""What the bundled model is good at: it words the answers of its own world's questions."""


def mdqa(**changes: Any) -> Mdqa:
    shape = {"documents": 3, "positions": (2,), "questions": 200, "split": "train", "answers": "sentence"}
    return Mdqa(**{**shape, "answer_writer": "kvray-tiny", "writer_prompt": TWO_DOCUMENTS, **changes})


def planned(kind: Kind, task: Task, params: Any, needs: tuple[str, ...] = (), rows: int = 0) -> Artefact:
    recipe: dict[str, Any] = {"task": task.recipe()}
    digest = fingerprint(recipe, needs)
    made = artefact_id(kind, task.task, digest)
    return Artefact(made, kind, task.task, digest, recipe, needs, rows, 0, {}, params)


def writing_of(task: Task, writer: str = "kvray-tiny") -> Artefact:
    return planned("writing", task, WritingJob(task, writer), rows=len(task.to_write(token_counter(BASE))))


def chunk_of(prompts: list[str], index: int, text: str) -> pa.Table:
    span = chunks.span(index, len(prompts))
    row = {"text": text, "finish_reason": "stop", "prompt_tokens": 1, "output_tokens": 1}
    rows = [{"index": number, "prompt": prompts[number], **row} for number in span]
    return pa.Table.from_pylist(rows, schema=WRITING_SCHEMA)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def prompts_of(cell: Artefact) -> list[str]:
    return job_of(cell).task.to_write(token_counter(BASE))


def said(prompts: list[str], text: str = "yes") -> list[Reply]:
    return [Reply(5, None, 2, text, "stop") for _ in prompts]


def test_what_is_there_is_kept_and_what_is_torn_or_of_other_prompts_is_asked_again(store: Store) -> None:
    cell = writing_of(mdqa(questions=2 * CHUNK_ROWS))
    prompts = prompts_of(cell)
    assert len(prompts) == 3 * CHUNK_ROWS
    store.write_table(cell.id, chunks.chunk_name(0), chunk_of(prompts, 0, "old"))
    store.write_table(cell.id, chunks.chunk_name(1), chunk_of([*prompts[1:], "other"], 1, "other"))
    whole = Path(store.path(cell.id, chunks.chunk_name(0))).read_bytes()
    Path(store.path(cell.id, chunks.chunk_name(2))).write_bytes(whole[:2000])
    done: list[int] = []
    desk = Desk(store, [cell], BASE, 0, 1, done.append)
    assert [(parcel.index, parcel.prompts) for parcel in desk.parcels] == [
        (1, prompts[CHUNK_ROWS : 2 * CHUNK_ROWS]),
        (2, prompts[2 * CHUNK_ROWS :]),
    ]
    for parcel in desk.parcels:
        assert store.manifest(cell.id) is None
        desk.finish(parcel, said(parcel.prompts), {"seconds": 1.5, "engine": {"vllm": "x"}})
    assert done == [CHUNK_ROWS, 2 * CHUNK_ROWS, 3 * CHUNK_ROWS]
    table = store.read_table(cell.id)
    assert table["index"].to_pylist() == list(range(len(prompts))) and table["prompt"].to_pylist() == prompts
    assert table["text"].to_pylist() == ["old"] * CHUNK_ROWS + ["yes"] * 2 * CHUNK_ROWS
    manifest = store.manifest(cell.id)
    assert manifest is not None
    facts = {name: manifest.measurements[name] for name in ("rows", "cut_off", "output_tokens", "seconds", "engines")}
    assert facts == {"rows": 768, "cut_off": 0, "output_tokens": 256 + 1024, "seconds": 3.0, "engines": [{"vllm": "x"}]}


def test_parts_share_the_chunks_and_the_last_one_commits(store: Store) -> None:
    cells = [writing_of(mdqa(questions=2 * CHUNK_ROWS)), writing_of(mdqa(questions=20))]
    desks = [Desk(store, cells, BASE, part, 2, lambda _: None) for part in range(2)]
    dealt = [(parcel.cell.id, parcel.index) for desk in desks for parcel in desk.parcels]
    assert sorted(dealt) == sorted([*((cells[0].id, index) for index in range(3)), (cells[1].id, 0)])
    for desk in desks:
        for parcel in desk.parcels:
            desk.finish(parcel, said(parcel.prompts), {})
    assert store.states([cell.id for cell in cells], verify=True) == {cell.id: "committed" for cell in cells}


def test_a_whole_writing_without_a_manifest_is_committed_without_an_engine(store: Store) -> None:
    cell = writing_of(mdqa(questions=20))
    store.write_table(cell.id, chunks.chunk_name(0), chunk_of(prompts_of(cell), 0, "old"))
    assert Desk(store, [cell], BASE, 0, 1, lambda _: None).parcels == []
    assert store.state(cell.id) == "committed"


def test_one_writing_that_cannot_be_asked_or_whose_writer_is_unknown_fails_alone(store: Store, tmp_path: Path) -> None:
    corpus = tmp_path / "short.txt"
    corpus.write_text("One sentence.")
    cells = [writing_of(mdqa(questions=20))]
    short = In2(source=str(corpus), question_writer="kvray-tiny")
    cells.append(planned("writing", short, WritingJob(short, "kvray-tiny")))
    desk = Desk(store, cells, BASE, 0, 1, lambda _: None)
    assert [parcel.cell.id for parcel in desk.parcels] == [cells[0].id]
    assert b"Give a longer source" in (store.read_document(f"failures/{cells[1].id}.json") or b"")
    (outcome,) = write([writing_of(mdqa(answer_writer="nobody"), "nobody")], store, BASE, Runtime())
    assert "'nobody' is no bundled model" in str(outcome.error)


def test_a_writer_behind_an_api_is_asked_without_ray_and_its_error_leaves_what_it_wrote(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def replies(ref: BaseModelRef, prompts: list[str], max_tokens: int, runtime: Runtime) -> list[Reply]:
        assert (ref.location, max_tokens) == ("gpt", Mdqa.WRITING_TOKENS)
        asked.append(len(prompts))
        if len(asked) == 2:
            raise CellError("429: over quota")
        return [Reply(9, None, 4, f"to {prompt[-9:]}", "stop" if at else "length") for at, prompt in enumerate(prompts)]

    monkeypatch.setitem(sys.modules, "kvray.evaluate.openai", SimpleNamespace(replies=replies))
    cell = writing_of(mdqa(answer_writer="openai:gpt"), "openai:gpt")
    (outcome,) = write([cell], store, BASE, Runtime())
    assert outcome.error == "429: over quota" and store.manifest(cell.id) is None
    (outcome,) = write([cell], store, BASE, Runtime())
    assert outcome.error is None and asked == [CHUNK_ROWS, 44, 44]
    table = store.read_table(cell.id)
    whole = [f"to {prompt[-9:]}" for prompt in prompts_of(cell)]
    whole[0] = whole[CHUNK_ROWS] = ""  # the first of each call was cut off, so it is of no use
    assert writing.texts(table) == whole and table["output_tokens"].to_pylist() == [4] * 300


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_the_bundled_model_writes_sentences_and_a_dataset_is_made_of_them(store: Store) -> None:
    task = mdqa()
    cell = writing_of(task)
    prompts = prompts_of(cell)
    assert len(prompts) == 300
    # As a kill leaves it: the first chunk whole, the second torn. The first of its texts is of no use.
    store.write_table(cell.id, chunks.chunk_name(1), chunk_of(prompts, 1, "I do not know."))
    torn = Path(store.path(cell.id, chunks.chunk_name(0)))
    torn.write_bytes(Path(store.path(cell.id, chunks.chunk_name(1))).read_bytes()[:1500])

    (outcome,) = write([cell], store, BASE, Runtime())

    assert outcome.error is None and store.problems(cell.id, verify=True) == []
    texts = writing.texts(store.read_table(cell.id))
    assert texts[CHUNK_ROWS:] == ["I do not know."] * (300 - CHUNK_ROWS)
    manifest = store.manifest(cell.id)
    assert manifest is not None and manifest.measurements["engines"][0]["flags"]["model"] == "kvray-tiny"
    assert manifest.measurements["output_tokens"] > 5 * CHUNK_ROWS and manifest.measurements["seconds"] > 0

    data = planned("dataset", task, task, (cell.id,), rows=200)
    (outcome,) = generate([data], store, BASE)
    assert outcome.error is None
    made = store.read_table(data.id)
    answers = made["answer"].to_pylist()
    # The first 200 of the 256 replies that hold their answer, in order.
    assert len(answers) == 200 and answers == [text for text in texts[:CHUNK_ROWS] if text in answers][:200]
    for answer, references in zip(answers, made["references"].to_pylist(), strict=True):
        assert best_subspan_em(answer, references) == 1.0 and answer.startswith("The ")
