"""Evaluation of a model behind an API, against a local server with every fault that such servers have."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluate_store as made
import pytest
from api_server import FAULTS, KEY, NAMED_DELAY_S, Api, serving
from local_driver import Driver, evaluate

import kvray.models.openai
from kvray.errors import CellError, InputError
from kvray.evaluate import chunks, pull
from kvray.evaluate.engines.base import Request, Serving
from kvray.evaluate.engines.chat import ChatEngine
from kvray.evaluate.questions import NO_TOKENS
from kvray.models.openai import Address, ApiError, address
from kvray.models.reference import BaseModelRef
from kvray.planning.artefacts import Artefact
from kvray.store.schemas import ANSWERS_SCHEMA
from kvray.store.store import Store
from kvray.sweep.model import Runtime
from kvray.tasks.qa.recall import Recall

BASE = BaseModelRef("openai:tiny", "tiny", None, "openai:tiny")


def answer(messages: list[dict[str, str]]) -> str:
    """Right where the prompt's last number is odd; another answer for almost every prompt."""
    last = messages[-1]["content"][13:-1].translate(str.maketrans("0123456789", "abcdefghij"))
    return f" Seven, {last}\n" if odd(messages[-1]["content"]) else f"No, {last}"


def odd(prompt: str) -> bool:
    return prompt[-2:-1] in tuple("13579")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(kvray.models.openai, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 16)


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(answer=answer) as api:
        yield api


def runtime(api: Api, **given: Any) -> Runtime:
    return Runtime(api_base_url=api.url, **given)


def texts(prompts: list[str], given: Runtime, base: BaseModelRef = BASE, **asked: Any) -> list[str | None]:
    """Return the answers to prompts in their order; raises what an answer could not be given for."""
    with closing(ChatEngine(Serving(base, given))) as engine:
        engine.start(0)
        requests = [(at, Request(NO_TOKENS, prompt, max_tokens=9, **asked)) for at, prompt in enumerate(prompts)]
        answers: dict[int, str | None] = {}
        for at, reply in engine.answer(requests):
            if isinstance(reply, CellError):
                raise reply
            answers[at] = reply.answer
    return [answers[at] for at in range(len(prompts))]


def cell(store: Store, rows: int, name: str = "facts", finetune: str | None = None) -> Artefact:
    return made.predictions(store, made.dataset(store, made.example_table(rows), name), finetune)


def tuned(store: Store, model: str, path: Path) -> str:
    """Commit a finetune that an API made; return its id."""
    path.mkdir()
    (path / "model.json").write_text(json.dumps({"model": model}))
    return made.finetune(store, path.name, path)


def errors(store: Store, *cells: Artefact, **given: Any) -> list[str | None]:
    return evaluate(store, BASE, *cells, **given)


def leaks(root: Path) -> list[str]:
    """Return the files that hold the key, or most of it."""
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if KEY[3:15].encode() in path.read_bytes()]


def test_rows_are_those_of_an_engine_of_ours(tmp_path: Path, api: Api) -> None:
    store = Store(tmp_path / "store")
    one = cell(store, 20)
    one, api.delay_s = replace(one, recipe={**one.recipe, "system_message": "Be brief."}), 0.002
    assert errors(store, one, api_base_url=api.url, api_concurrency=5) == [None]
    table = store.read_table(one.id)
    assert table.schema.names == ANSWERS_SCHEMA.names
    assert table["example_id"].to_pylist() == [f"e{i:05d}" for i in range(20)]  # in asking order
    examples = {row["example_id"]: row for row in made.example_table(20).to_pylist()}
    for row in table.to_pylist():
        prompt = examples[row["example_id"]]["prompt"]
        assert row["answer"] == answer([{"content": prompt}])
        assert row["score"] == float(odd(prompt))
        assert row["prompt_tokens"] == len(prompt.split()) + 4
    told = {"base_model": "openai:tiny", "finish_reason": "stop", "output_tokens": 3, "cached_tokens": 2}
    assert {name: table[name].unique().to_pylist() for name in told} == {name: [value] for name, value in told.items()}
    body = api.chats[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["role"] == "user" and len(body["messages"]) == 2
    task = Recall()
    decoding = {"model": "tiny", "temperature": 0, "max_tokens": task.MAX_OUTPUT_TOKENS, "seed": 0}
    assert {name: body[name] for name in decoding} == decoding and "stop" not in body
    assert 2 <= api.most <= 5 and len(api.chats) == 20
    manifest = store.manifest(one.id)
    assert manifest is not None and [file.name for file in manifest.files] == [
        "data/chunk-00000.parquet",
        "data/chunk-00001.parquet",
    ]
    assert manifest.measurements["engines"][0]["api"] == api.url
    assert manifest.measurements["engines"][0]["served"] == ["tiny-1106 fp_1"]


def test_progress_is_told_row_by_row_with_the_retries(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "TOLD_S", 0.0)
    store, api.faults = Store(tmp_path / "store"), ("429",)
    driver = Driver(store, BASE, runtime(api, api_retries=2, api_concurrency=1))
    driver.add([cell(store, 6)])
    driver.queue.close()
    driver.seat()
    assert [done for done, _ in driver.sources[0].told] == [1, 2, 3, 4, 5, 6]
    assert driver.sources[0].told[-1][1] == "6 retries"


def test_a_faulty_server_gives_the_predictions_of_a_good_one(tmp_path: Path, api: Api) -> None:
    good, bad = Store(tmp_path / "good"), Store(tmp_path / "bad")
    assert errors(good, cell(good, 12), api_base_url=api.url) == [None]
    with serving(answer=answer, faults=FAULTS) as faulty:
        # The timeout is under the second that the slow answer takes.
        given = {
            "api_base_url": faulty.url,
            "api_retries": 3 * len(FAULTS),
            "api_timeout_s": 0.5,
            "api_concurrency": 12,
        }
        assert errors(bad, cell(bad, 12), **given) == [None]
        assert min(faulty.seen.values()) > len(FAULTS)
        for times in faulty.times.values():
            assert times[1] - times[0] >= NAMED_DELAY_S  # after the 429
    name = cell(good, 12).id
    assert good.read_table(name).equals(bad.read_table(name))
    assert leaks(tmp_path) == []


def test_one_attempt_too_few_fails_the_cell_and_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving(answer=answer, faults=("500", "500")) as api:
        (error,) = errors(store, cell(store, 2), api_base_url=api.url, api_retries=1)
        assert error is not None and "failed 2 times" in error and "500: The server had an error" in error
        assert 2 <= len(api.chats) <= 4
    assert leaks(tmp_path) == []


def test_a_wrong_key_is_one_clear_error_at_once(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    cells = [cell(store, 20), cell(store, 40, "other")]
    wrong = KEY[::-1]
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with pytest.raises(ApiError) as caught:
        errors(store, *cells, api_base_url=api.url, api_concurrency=4)
    message = str(caught.value)
    assert "refuses the key (401: Incorrect API key provided: <key>" in message and "OPENAI_API_KEY" in message
    assert api.refused <= 4 and not api.chats
    everything = message + repr(caught.value) + "".join(capfd.readouterr())
    assert not any(wrong[at : at + 8] in everything for at in range(len(wrong) - 8))


def test_no_key_is_an_error_for_openai_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY is not set"):
        texts(["a"], Runtime())
    with serving(key="EMPTY") as open_api:
        assert texts(["Hello"], runtime(open_api)) == ["You said Hello."]


def test_the_url_is_the_runtimes_then_the_environments_then_openais(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address().url == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there:8000/v1/")
    assert address().url == "http://there:8000/v1"
    assert address("http://here/v1").url == "http://here/v1"
    with pytest.raises(InputError, match="'here:8000/v1'"):
        address("here:8000/v1")
    with pytest.raises(InputError, match="a name, a password or a query") as caught:
        address("http://me:hunter22@here/v1")
    assert "hunter22" not in str(caught.value)


def test_a_cell_that_fails_leaves_the_others_alone_and_goes_on_later(tmp_path: Path, api: Api) -> None:
    store = Store(tmp_path)
    bad, good = cell(store, 20), cell(store, 6, "other")
    prompt = made.example_table(20)["prompt"][18].as_py()
    api.always = {prompt: "500"}
    first, second = errors(store, bad, good, api_base_url=api.url, api_retries=1)
    assert first is not None and "example e00018" in first and second is None
    assert store.manifest(bad.id) is None and store.manifest(good.id) is not None
    asked, api.always = len(api.chats), {}
    assert errors(store, bad, api_base_url=api.url) == [None]
    assert len(api.chats) - asked == 20 - chunks.CHUNK_ROWS  # the whole chunk was kept
    assert leaks(tmp_path) == []


def test_what_was_answered_before_a_sudden_end_is_kept(tmp_path: Path, api: Api) -> None:
    store = Store(tmp_path)
    one, api.until = cell(store, 2 * chunks.CHUNK_ROWS), chunks.CHUNK_ROWS + 12
    with pytest.raises(ApiError):
        errors(store, one, api_base_url=api.url)
    api.until, asked = None, len(api.chats)
    assert errors(store, one, api_base_url=api.url) == [None]
    assert len(api.chats) - asked == chunks.CHUNK_ROWS
    assert store.read_table(one.id).num_rows == 2 * chunks.CHUNK_ROWS


def test_a_prompt_that_does_not_fit_fails_its_row_alone(tmp_path: Path, api: Api) -> None:
    store, api.limit = Store(tmp_path), 100
    one = made.predictions(store, made.dataset(store, made.example_table(5, long_rows=(2,))), None)
    assert errors(store, one, api_base_url=api.url) == [None]
    rows = store.read_table(one.id).to_pylist()
    assert [row["finish_reason"] for row in rows] == ["stop", "stop", "too_long", "stop", "stop"]
    assert rows[2]["answer"] is None and rows[2]["score"] is None and rows[2]["output_tokens"] == 0


def test_a_finetune_is_asked_by_the_name_in_its_artefact(tmp_path: Path, api: Api) -> None:
    store = Store(tmp_path / "store")
    api.models.add("ft:tiny:lab:1")
    data = made.dataset(store, made.example_table(3))
    one = made.predictions(store, data, tuned(store, "ft:tiny:lab:1", tmp_path / "one"))
    gone = made.predictions(store, data, tuned(store, "ft:tiny:lab:2", tmp_path / "two"))
    ok, lost = errors(store, one, gone, api_base_url=api.url)
    assert ok is None and lost is not None and "no model 'ft:tiny:lab:2'" in lost
    assert {chat["model"] for chat in api.chats} == {"ft:tiny:lab:1", "ft:tiny:lab:2"}
    assert store.read_table(one.id)["adapter"].unique().to_pylist() == [one.params.finetune_id.split("/")[1]]


def test_an_adapter_on_disk_is_no_model_of_an_api(tmp_path: Path, api: Api) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    one = made.predictions(
        store, made.dataset(store, made.example_table(3)), made.finetune(store, "l", tmp_path / "lora")
    )
    (error,) = errors(store, one, api_base_url=api.url)
    assert error is not None and "holds no model.json" in error and not api.chats


def test_a_base_model_that_is_not_there_is_one_error(tmp_path: Path, api: Api) -> None:
    store, api.models = Store(tmp_path), set()
    with pytest.raises(ApiError, match="no model 'tiny'"):
        errors(store, cell(store, 40), cell(store, 30, "other"), api_base_url=api.url, api_concurrency=3)
    assert len(api.chats) <= 3


def test_a_server_that_is_not_there_ends_the_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with serving() as api:
        pass
    started = time.monotonic()
    with pytest.raises(ApiError, match="failed 3 times"):
        errors(store, cell(store, 40), cell(store, 30, "other"), api_base_url=api.url, api_retries=2)
    assert time.monotonic() - started < 10  # the waits of one request, not of seventy


def test_a_quota_that_is_used_up_is_not_asked_again(api: Api) -> None:
    api.always = {"a": "quota"}
    with pytest.raises(ApiError, match="exceeded your current quota"):
        texts(["a"], runtime(api))
    assert len(api.chats) == 1


def test_replies_come_in_the_order_of_the_prompts(api: Api) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    api.faults, api.answer, api.refuses = ("empty",), lambda messages: messages[-1]["content"].upper(), {"seed"}
    found = texts(prompts, runtime(api, api_concurrency=7), stop=("\n",), system="Shout.")
    assert found == [prompt.upper() for prompt in prompts]
    last = api.chats[-1]
    assert last["stop"] == ["\n"] and last["max_tokens"] == 9 and last["messages"][0]["content"] == "Shout."
    assert "seed" not in last  # this server takes none
    assert texts([], runtime(api)) == []
    api.limit = 8
    assert texts(["prompt 1", "a longer prompt"], runtime(api)) == ["PROMPT 1", None]


def test_an_answer_that_was_filtered_is_no_answer(api: Api) -> None:
    api.always = {"a": "filtered"}
    with pytest.raises(CellError, match="'content_filter'"):
        texts(["a"], runtime(api))


def test_no_message_holds_a_piece_of_the_key() -> None:
    place = Address("http://here/v1", "tok/en+a1b2c3")
    assert "a1b2c3" not in repr(place)
    for text in ("key tok/en+a1b2c3!", "url tok%2Fen%2Ba1b2c3", "head tok/en+a…", "masked sk-ab***********89Zz"):
        redacted = place.redact(text)
        assert "<key>" in redacted and "tok/en" not in redacted and "Zz" not in redacted
    assert place.redact("nothing of it here") == "nothing of it here"
