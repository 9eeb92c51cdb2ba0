"""Benchmarks as loaded, encoded and scored, without a model."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_files
import numpy as np
import pytest
from benchmark_cells import benchmark, likelihoods

from kvray.errors import CellError, InputError
from kvray.evaluate.engines import vllm
from kvray.evaluate.engines.base import Reply, Request
from kvray.evaluate.lm_eval import requests, scoring, tasks
from kvray.evaluate.lm_eval.requests import Encoder, Reading
from kvray.models.reference import load_tokenizer, resolve
from kvray.tasks.lm_eval import LmEval

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve("kvray-tiny"))


@pytest.fixture(autouse=True)
def own_tasks_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Index our own task files alone: the harness's own 14,000 take seconds."""
    from lm_eval.tasks import TaskManager

    def index(include_path: str | None) -> Any:
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks, "_manager", index)
    yield


def test_the_task_files_ask_the_tiny_worlds_facts() -> None:
    for name, content in benchmark_files.files().items():
        assert (benchmark_files.HOME / name).read_text() == content, "run tests/evaluate/benchmark_files.py"
    written = (benchmark_files.INSTRUCTIONS / "instructions.jsonl").read_text()
    assert written == benchmark_files.instructions(), "run tests/evaluate/benchmark_files.py"


def test_sources_follow_every_file_and_nothing_else(tmp_path: Path) -> None:
    task = LmEval(benchmark="x", include_path=str(tmp_path))
    with pytest.raises(InputError, match="no task file"):
        task.sources()
    (tmp_path / "x.yaml").write_text("task: x")
    first = task.sources()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "u.pyc").write_bytes(b"1")
    (tmp_path / "README.md").write_text("What these are.")
    assert task.sources() == first
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.jsonl").write_text("{}")
    second = task.sources()
    assert second != first
    (tmp_path / "sub" / "data.jsonl").rename(tmp_path / "sub" / "other.jsonl")
    assert task.sources() not in (first, second)
    assert LmEval(benchmark="x").sources() == {}
    with pytest.raises(InputError, match="is no directory"):
        LmEval(benchmark="x", include_path=str(tmp_path / "gone")).sources()


def test_expected_rows_are_published_sizes_or_the_limit_of_every_subtask() -> None:
    expected = {"mmlu": 14042, "hellaswag": 10042, "gsm8k": 1319, "triviaqa": 17944, "nq_open": 3610}
    assert {name: LmEval(benchmark=name).expected_rows() for name in expected} == expected
    assert LmEval(benchmark="mmlu", limit=10).expected_rows() == 570
    assert LmEval(benchmark="gsm8k", limit=5000).expected_rows() == 1319
    assert LmEval(benchmark="boolq", limit=7).expected_rows() == 7
    assert LmEval(benchmark="boolq").expected_rows() > 0
    assert LmEval(benchmark="mmlu").with_rows(100).expected_rows() == 114
    assert LmEval(benchmark="mmlu", shots=5).tokens_estimate() > 5 * LmEval(benchmark="mmlu").tokens_estimate()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"benchmark": "tiny_qaa"}, "near are tiny_qa"),
        ({"benchmark": "tiny_qa", "metric": "acc"}, "metric: found 'acc'; expected one of exact_match,remove_whitesp"),
        ({"benchmark": "tiny_steps", "metric": "exact_match,none"}, "exact_match,strict-match, exact_match,flexible"),
    ],
)
def test_what_cannot_be_asked_is_an_error_before_anything_is(
    knobs: dict[str, Any], message: str, tokenizer: Any
) -> None:
    name = knobs.pop("benchmark")
    with pytest.raises(CellError, match=message):
        tasks.load(benchmark(name, **knobs), tokenizer)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("output_type: loglikelihood", "output_type: loglikelihood_rolling", "needs loglikelihood_rolling"),
        ("metric: acc", "metric: perplexity", "is the better the lower"),
        ("higher_is_better: true", "higher_is_better: false", "is the better the lower"),
        ("metadata:", "unsafe_code: true\nmetadata:", "runs code that the model writes"),
        ("metadata:", "repeats: 3\nmetadata:", "asks each question several times"),
        ("metadata:", "num_fewshot: 0\nmetadata:", "shots: found 2; tiny_cloze is asked without any"),
    ],
)
def test_benchmarks_that_are_not_offered_are_refused(
    old: str, new: str, message: str, tmp_path: Path, tokenizer: Any
) -> None:
    text = (benchmark_files.HOME / "tiny_cloze.yaml").read_text()
    if "perplexity" in new:
        text = text.replace("higher_is_better: true", "higher_is_better: false")
    (tmp_path / "x.yaml").write_text(text.replace(old, new))
    for name, content in benchmark_files.files().items():
        (tmp_path / name).write_text(content)
    task = LmEval(benchmark="tiny_cloze", include_path=str(tmp_path), shots=2 if "num_fewshot" in new else None)
    with pytest.raises(CellError, match=message):
        tasks.load(task, tokenizer)


def test_data_that_are_not_there_are_an_error_that_names_the_benchmark(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "x.yaml").write_text((benchmark_files.HOME / "tiny_qa.yaml").read_text())
    with pytest.raises(CellError, match="benchmark tiny_qa: lm-evaluation-harness cannot load it"):
        tasks.load(LmEval(benchmark="tiny_qa", include_path=str(tmp_path)), tokenizer)


def test_local_data_are_read_quietly_and_without_any_network(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tokenizer: Any
) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = tasks.load(benchmark("tiny_letters", limit=3), tokenizer)
    assert [row.id for row in loaded.rows] == [
        f"tiny_letters_{name}-{number}" for name in ("birthplace", "emblem", "trade") for number in range(3)
    ]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_shots_are_the_tasks_own_or_ours_and_follow_the_seed(tokenizer: Any) -> None:
    def prompts(**knobs: Any) -> list[str]:
        rows = tasks.load(benchmark("tiny_steps", limit=4, **knobs), tokenizer).rows
        return [row.requests[0].args[0] for row in rows]

    assert all(text.count("####") == 5 for text in prompts())
    assert all("####" not in text for text in prompts(shots=0))
    assert prompts() == prompts() != prompts(seed=1)
    turns = prompts(chat_template=True, shots=2)[0]
    assert turns.count("[INST]") == 3 and turns.endswith("Answer:[/INST]")


def test_options_of_one_token_share_a_reading_and_longer_ones_have_their_own(tokenizer: Any) -> None:
    letters = tasks.load(benchmark("tiny_letters", limit=1), tokenizer)
    (reading,) = next(Encoder(tokenizer, letters.task, 4096).encode(letters.rows))
    assert reading.kind == "choose" and reading.numbers == (0, 1, 2, 3)
    assert [tokenizer.decode([token]) for token in reading.labels] == [" A", " B", " C", " D"]
    assert tokenizer.decode(reading.tokens) == letters.rows[0].requests[0].args[0]

    choice = tasks.load(benchmark("tiny_choice", limit=1), tokenizer)
    readings = next(Encoder(tokenizer, choice.task, 4096).encode(choice.rows))
    assert [reading.kind for reading in readings] == ["score"] * 4
    for reading, asked in zip(readings, choice.rows[0].requests, strict=True):
        assert tokenizer.decode(reading.tokens[reading.context :]) == asked.args[1]
        assert tokenizer.decode(reading.tokens[: reading.context]) == asked.args[0]


def test_prompts_over_the_length_lose_their_beginning_and_nothing_else(tokenizer: Any) -> None:
    for name, spare in (("tiny_steps", 24), ("tiny_choice", 1), ("tiny_letters", 1)):
        loaded = tasks.load(benchmark(name, limit=1, shots=5 if name == "tiny_letters" else None), tokenizer)
        before = next(Encoder(tokenizer, loaded.task, 4096).encode(loaded.rows))[0]
        limit = len(before.tokens) + spare - 3
        after = next(Encoder(tokenizer, loaded.task, limit).encode(loaded.rows))[0]
        assert before.cut == 0 and after.cut >= 3
        assert np.array_equal(after.tokens, before.tokens[after.cut :])
        assert len(after.tokens) + after.max_tokens <= limit
        scored = (len(after.tokens) - after.context, len(before.tokens) - before.context)
        assert scored[0] == scored[1] or after.kind != "score"
    with pytest.raises(CellError, match="leaves no room for a prompt in 24"):
        next(Encoder(tokenizer, benchmark("tiny_steps", length=24), 4096).encode(_rows("tiny_steps", tokenizer)))


def _rows(name: str, tokenizer: Any) -> Any:
    return tasks.load(benchmark(name, limit=1), tokenizer).rows


def test_generation_settings_are_followed_or_refused() -> None:
    task = LmEval(benchmark="x")
    assert tasks.generation(task, {"until": ["\n"], "max_gen_toks": 8, "temperature": 0.0}) == (8, ("\n",))
    assert tasks.generation(task, {"until": "###"}) == (256, ("###",))
    assert tasks.generation(LmEval(benchmark="x", max_tokens=3), {"max_gen_toks": 8}) == (3, ())
    with pytest.raises(CellError, match="samples its answers"):
        tasks.generation(task, {"do_sample": True, "temperature": 0.7})
    with pytest.raises(CellError, match="repetition_penalty are not known"):
        tasks.generation(task, {"repetition_penalty": 1.2})


def test_generations_are_scored_by_the_harnesss_filters_and_any_accepted_answer(tokenizer: Any) -> None:
    loaded = tasks.load(benchmark("tiny_qa", limit=3), tokenizer)
    accepted = loaded.rows[1].document["answers"]
    scored = scoring.score(loaded, loaded.rows, [["  pergrad! "], [accepted[1]], ["Pergrad or so"]])
    assert [one.score for one in scored] == [1.0, 1.0, 0.0]
    assert scored[0].answer == "  pergrad! "
    assert scoring.references(loaded, loaded.rows[1]) == accepted
    assert {one.metric for one in scored} == {"exact_match,remove_whitespace"}


def test_the_score_is_the_first_filters_metric_unless_another_is_asked_for(tokenizer: Any) -> None:
    response = ["It is some kind of lynx.\n#### heron lynx"]

    def score(metric: str | None) -> tuple[str, float]:
        loaded = tasks.load(benchmark("tiny_steps", limit=1, metric=metric), tokenizer)
        (one,) = scoring.score(loaded, loaded.rows, [response])
        assert one.values == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
        return one.metric, one.score

    assert score(None) == score("exact_match") == ("exact_match,strict-match", 0.0)
    assert score("exact_match,flexible-extract") == ("exact_match,flexible-extract", 1.0)


def test_instructions_are_scored_by_prompt_and_every_measure_is_kept(tokenizer: Any) -> None:
    task = LmEval(benchmark="tiny_instructions", include_path=str(benchmark_files.INSTRUCTIONS), chat_template=True)
    loaded = tasks.load(task, tokenizer)
    one, two = loaded.rows[4], loaded.rows[5]
    assert one.document["instruction_id_list"] == ["punctuation:no_comma"]
    assert two.document["instruction_id_list"] == ["length_constraints:number_words", "keywords:existence"]
    scored = scoring.score(loaded, [one, two, two], [["Ash."], ["No, none."], [f"It is {_keyword(two)}."]])
    assert [each.score for each in scored] == [1.0, 0.0, 1.0]
    assert {each.metric for each in scored} == {"prompt_level_strict_acc,none"}
    assert scored[1].values["inst_level_strict_acc,none"] == [True, False]
    assert scoring.references(loaded, one) == []  # its target is a placeholder
    values = {name: [each.values[name] for each in scored] for name in scored[0].values}
    found = scoring.aggregate(loaded, {"tiny_instructions": values})["tiny_instructions"]
    assert found["prompt_level_strict_acc,none"] == pytest.approx(2 / 3)
    assert found["inst_level_strict_acc,none"] == pytest.approx(4 / 5)


def _keyword(row: Any) -> str:
    return next(str(given["keywords"][0]) for given in row.document["kwargs"] if given["keywords"])


def test_the_chosen_option_is_the_metrics_own_choice(tokenizer: Any) -> None:
    def choose(metric: str) -> tuple[int, str]:
        loaded = tasks.load(benchmark("tiny_choice", metric=metric), tokenizer)
        row = next(row for row in loaded.rows if len({len(each) for each in row.document["sentences"]}) == 4)
        options = sorted(row.document["sentences"], key=len)
        # The shortest is the likeliest, the longest the likeliest per character.
        by_option = dict(zip(options, [-1.00 * len(options[0]), -90.0, -90.0, -0.99 * len(options[3])], strict=True))
        assert by_option[options[0]] > by_option[options[3]]
        responses = [(by_option[option], False) for option in row.document["sentences"]]
        (one,) = scoring.score(loaded, [row], [responses])
        accepted = scoring.references(loaded, row)
        assert accepted == [row.document["sentences"][row.document["gold"]]]
        assert one.score == float(one.answer == accepted[0])
        return options.index(one.answer), one.metric

    assert choose("acc") == (0, "acc,none")
    assert choose("acc_norm") == (3, "acc_norm,none")


def test_a_groups_aggregate_weighs_subtasks_by_size(tokenizer: Any) -> None:
    loaded = tasks.load(benchmark("tiny_letters"), tokenizer)
    first = [[(-1.0, True), (-2.0, False), (-2.0, False), (-2.0, False)]] * len(loaded.rows)
    scored = scoring.score(loaded, loaded.rows, first)
    values: dict[str, dict[str, list[Any]]] = {}
    for row, one in zip(loaded.rows, scored, strict=True):
        values.setdefault(row.subtask, {}).setdefault(one.metric, []).append(one.score)
    values["tiny_letters_trade"]["acc,none"] = [1.0] * 20
    found = scoring.aggregate(loaded, values)
    assert found["tiny_letters_trade"] == {"acc,none": 1.0}
    assert found["tiny_letters_emblem"] == {"acc,none": 0.25}
    assert found["tiny_letters"]["acc,none"] == pytest.approx((24 * 0.25 + 16 * 0.25 + 20) / 60)


def test_outputs_of_vllm_become_replies_and_these_responses() -> None:
    logprobs = [None, *({token: SimpleNamespace(logprob=-float(token), rank=token)} for token in (2, 1, 3))]
    written = SimpleNamespace(finish_reason="length", token_ids=[9], text="")
    output = SimpleNamespace(outputs=[written], num_cached_tokens=4, prompt_logprobs=logprobs)
    prompt = np.array([7, 2, 1, 3], np.int32)

    def responses(reading: Reading, reply: Reply, count: int) -> list[Any]:
        asked = SimpleNamespace(requests=[None] * count)
        return requests.responses(asked, [reading], [reply])  # type: ignore[arg-type]

    score = Reading(prompt, kind="score", context=2)
    reply = vllm.reply(score, output)
    assert reply == Reply(4, 4, 0, None, "stop", ((-1.0, True), (-3.0, False)))
    assert responses(score, reply, 1) == [(-4.0, False)]
    shorter = SimpleNamespace(outputs=[written], num_cached_tokens=0, prompt_logprobs=logprobs[:3])
    assert responses(score, vllm.reply(Request(prompt[:3], kind="score", context=2), shorter), 1) == [(-1.0, True)]
    choose = Reading(prompt, kind="choose", labels=(3, 4), numbers=(0, 1))
    chosen = vllm.reply(choose, likelihoods({3: -1.5, 4: -0.5, 9: -0.1}, 9))
    assert responses(choose, chosen, 2) == [(-1.5, False), (-0.5, False)]
    written = SimpleNamespace(finish_reason="stop", token_ids=[1, 2], text="yes. no\n")
    output = SimpleNamespace(outputs=[written], num_cached_tokens=0, prompt_logprobs=None)
    generate = Reading(prompt, stop=("\n", "."), ends=("\n", "."))
    made = vllm.reply(generate, output)
    assert made == Reply(4, 0, 2, "yes. no\n", "stop")
    assert responses(generate, made, 1) == ["yes"]
    written.finish_reason = "abort"
    with pytest.raises(RuntimeError, match="abort"):
        vllm.reply(generate, output)


def test_a_chat_template_without_system_messages_is_noted() -> None:
    from jinja2 import TemplateError

    class Tokenizer:
        chat_template = "some"

        def apply_chat_template(self, messages: Any, **how: Any) -> str:
            if messages[0]["role"] == "system":
                raise TemplateError("no system")
            return str(messages[0]["content"])

    template = tasks.ChatTemplate(Tokenizer())
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert template(chat) == "u" and template.left_out == 1
    assert template(chat[1:]) == "u" and template.left_out == 1
    with pytest.raises(CellError, match="the tokenizer has none"):
        tasks.ChatTemplate(SimpleNamespace(chat_template=None))
