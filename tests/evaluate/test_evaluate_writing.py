"""What a model writes for datasets: by chunk, once, by a real engine; then generate makes the dataset of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from local_driver import evaluate

from kvray.errors import CellError
from kvray.evaluate import chunks, job
from kvray.evaluate.chunks import CHUNK_ROWS
from kvray.evaluate.engines.base import Adapter, Engine, Key, Reply, Request
from kvray.evaluate.engines.chat import ChatEngine
from kvray.generate.job import generate
from kvray.models.reference import BaseModelRef, load_tokenizer, resolve
from kvray.models.tokenizer import token_counter
from kvray.planning.artefacts import Artefact, Kind, WritingJob
from kvray.store.fingerprint import fingerprint
from kvray.store.schemas import WRITING_SCHEMA
from kvray.store.store import Store, artefact_id
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
    return Artefact(made, kind, task.task, digest, needs, rows, 0, {}, recipe, params)


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
    assert isinstance(cell.params, WritingJob)
    return cell.params.task.to_write(token_counter(BASE))


class Yes(Engine):
    """Answers yes.

    Attributes:
        asked: by all engines of a test.
    """

    asked: ClassVar[list[str]] = []
    limit = 2048

    def start(self, length: int) -> None:
        """Load nothing."""

    def info(self, adapter: Adapter | None) -> dict[str, Any]:
        """Say that it is no vLLM."""
        return {"vllm": "x"}

    def answer(self, requests: Iterable[tuple[Key, Request]]) -> Iterator[tuple[Key, Reply | CellError]]:
        """Yield as many answers as there are requests."""
        tokenizer = load_tokenizer(BASE)
        for key, request in requests:
            self.asked.append(tokenizer.decode(request.tokens, skip_special_tokens=True))
            yield key, Reply(5, None, 2, "yes", "stop")


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every writer says yes; returns the prompts that they were asked."""
    monkeypatch.setattr(job, "engine_class", lambda base, runtime: Yes)
    monkeypatch.setattr(Yes, "asked", [])
    return Yes.asked


def test_what_is_there_is_kept_and_what_is_torn_or_of_other_prompts_is_asked_again(
    store: Store, yes: list[str]
) -> None:
    cell = writing_of(mdqa(questions=2 * CHUNK_ROWS))
    prompts = prompts_of(cell)
    assert len(prompts) == 3 * CHUNK_ROWS
    store.write(cell.id, chunks.chunk_name(0), chunk_of(prompts, 0, "old"))
    store.write(cell.id, chunks.chunk_name(1), chunk_of([*prompts[1:], "other"], 1, "other"))
    whole = Path(store.path(cell.id, chunks.chunk_name(0))).read_bytes()
    Path(store.path(cell.id, chunks.chunk_name(2))).write_bytes(whole[:2000])
    assert evaluate(store, BASE, cell) == [None]
    assert len(yes) == 2 * CHUNK_ROWS
    assert all(prompt.split()[-9:] == text.split()[-9:] for prompt, text in zip(prompts[CHUNK_ROWS:], yes, strict=True))
    table = store.read_table(cell.id)
    assert table["index"].to_pylist() == list(range(len(prompts))) and table["prompt"].to_pylist() == prompts
    assert table["text"].to_pylist() == ["old"] * CHUNK_ROWS + ["yes"] * 2 * CHUNK_ROWS
    manifest = store.manifest(cell.id)
    assert manifest is not None
    facts = {name: manifest.measurements[name] for name in ("rows", "cut_off", "output_tokens", "engines")}
    assert facts == {"rows": 768, "cut_off": 0, "output_tokens": 256 + 1024, "engines": [{"vllm": "x"}]}
    assert manifest.measurements["seconds"] >= 0


def test_a_whole_writing_without_a_manifest_is_committed_without_an_engine(store: Store, yes: list[str]) -> None:
    cell = writing_of(mdqa(questions=20))
    store.write(cell.id, chunks.chunk_name(0), chunk_of(prompts_of(cell), 0, "old"))
    assert evaluate(store, BASE, cell) == [None]
    assert store.state(cell.id) == "committed" and not yes


def test_one_writing_that_cannot_be_asked_fails_alone(store: Store, tmp_path: Path, yes: list[str]) -> None:
    corpus = tmp_path / "short.txt"
    corpus.write_text("One sentence.")
    cells = [writing_of(mdqa(questions=20))]
    short = In2(source=str(corpus), question_writer="kvray-tiny")
    cells.append(planned("writing", short, WritingJob(short, "kvray-tiny")))
    good, bad = evaluate(store, BASE, *cells)
    assert good is None and "Give a longer source" in str(bad)
    assert store.state(cells[0].id) == "committed" and store.state(cells[1].id) == "missing"


def test_a_writer_behind_an_api_is_asked_without_ray_and_its_error_leaves_what_it_wrote(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def ask(engine: ChatEngine, request: Request) -> Reply:
        assert (engine.serving.base.location, request.max_tokens) == ("gpt", Mdqa.WRITING_TOKENS)
        asked.append(request.text)
        if len(asked) == CHUNK_ROWS + 20:
            raise CellError("429: over quota")
        return Reply(9, None, 4, f"to {request.text[-9:]}", "length" if request.text == prompts[3] else "stop")

    monkeypatch.setattr(ChatEngine, "_ask", ask)
    cell = writing_of(mdqa(answer_writer="openai:gpt"), "openai:gpt")
    prompts, writer = prompts_of(cell), BaseModelRef("openai:gpt", "gpt", None, "openai:gpt", tokenizer=BASE)
    runtime = {"api_base_url": "http://127.0.0.1:9/v1", "api_concurrency": 1}
    (error,) = evaluate(store, writer, cell, **runtime)
    assert error == f"prompt {CHUNK_ROWS + 19}: 429: over quota" and store.manifest(cell.id) is None
    assert asked == prompts[: CHUNK_ROWS + 20]
    assert evaluate(store, writer, cell, **runtime) == [None] and asked[CHUNK_ROWS + 20 :] == prompts[CHUNK_ROWS:]
    table = store.read_table(cell.id)
    whole = [f"to {prompt[-9:]}" for prompt in prompts]
    whole[3] = ""  # cut off, so it is of no use
    assert writing.texts(table) == whole and table["output_tokens"].to_pylist() == [4] * 300
    manifest = store.manifest(cell.id)
    assert manifest is not None and manifest.measurements["engines"][0]["model"] == "gpt"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_two_cpus")
def test_the_bundled_model_writes_sentences_and_a_dataset_is_made_of_them(store: Store) -> None:
    task = mdqa()
    cell = writing_of(task)
    prompts = prompts_of(cell)
    assert len(prompts) == 300
    # As a kill leaves it: the first chunk whole, the second torn. The first of its texts is of no use.
    store.write(cell.id, chunks.chunk_name(1), chunk_of(prompts, 1, "I do not know."))
    torn = Path(store.path(cell.id, chunks.chunk_name(0)))
    torn.write_bytes(Path(store.path(cell.id, chunks.chunk_name(1))).read_bytes()[:1500])

    assert evaluate(store, BASE, cell) == [None]
    assert store.problems(cell.id, verify=True) == []
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
