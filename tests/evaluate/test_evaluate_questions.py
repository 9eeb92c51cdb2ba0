"""Encoding by the chat template, the order of asking, lengths."""

from __future__ import annotations

import evaluate_store as made
import numpy as np
import pyarrow as pa
import pytest

from kvray.errors import InputError
from kvray.evaluate import questions
from kvray.evaluate.engines.base import Reply
from kvray.evaluate.questions import DatasetQuestions
from kvray.generate.job import build
from kvray.models.chat import conversation
from kvray.models.reference import load_tokenizer, resolve
from kvray.models.tokenizer import chat_tokens
from kvray.tasks.flenqa.flenqa import Flenqa
from kvray.tasks.qa.recall import Recall
from kvray.tasks.ruler.ruler import Ruler


def test_prompts_are_encoded_as_the_chat_template_encodes_them_one_by_one() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    prompts = made.example_table(300)["prompt"].to_pylist()
    encoded = list(chat_tokens(tokenizer, list(map(conversation, prompts)), prompt=True))
    assert len(encoded) == 300
    for prompt, ids in zip(prompts[::50], encoded[::50], strict=True):
        user = [{"role": "user", "content": prompt}]
        alone = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == alone
        # The template writes its own first token; a second one would be another prompt.
        assert ids.count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_a_chat_template_is_named() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"kvray-tiny.*no chat template"):
        next(chat_tokens(tokenizer, [conversation("hello")], prompt=True))


def test_the_order_of_asking_is_by_question_then_position_whatever_the_order_of_rows() -> None:
    table = made.example_table(20)
    shuffled = table.take(np.random.default_rng(3).permutation(20))
    ordered = questions.ask_order(shuffled)
    assert ordered["example_id"].to_pylist() == table["example_id"].to_pylist()
    pairs = list(zip(ordered["question_id"].to_pylist(), ordered["position"].to_pylist(), strict=True))
    assert pairs == sorted(pairs)


def test_a_prompt_fits_only_together_with_its_longest_answer() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    examples, task = made.example_table(1), Recall()
    needed = (
        len(next(chat_tokens(tokenizer, [conversation(examples["prompt"][0].as_py())], prompt=True)))
        + task.MAX_OUTPUT_TOKENS
    )
    for limit, requests in ((needed, 1), (needed - 1, 0)):
        asked = DatasetQuestions(examples, task)
        asked.prepare([0], tokenizer, limit)
        assert len(asked.requests[0]) == requests


def test_an_engine_is_as_long_as_its_longest_request_rounded_up_but_never_longer_than_the_model() -> None:
    assert questions.engine_length([30, 129], 32768) == 192
    assert questions.engine_length([30, 250], 251) == 251
    assert questions.engine_length([], 4096) == questions.ROUNDING


def test_a_task_says_how_its_answers_end() -> None:
    asked = DatasetQuestions(made.example_table(2), Recall(), system="Be brief.")
    asked.prepare(range(2), load_tokenizer(resolve("kvray-tiny")), 256)
    (request,) = asked.requests[1]
    assert (request.kind, request.max_tokens, request.stop) == ("generate", Recall.MAX_OUTPUT_TOKENS, Recall.STOP)


def test_an_engine_that_reads_text_gets_the_prompt_with_the_system_message() -> None:
    examples = made.example_table(2)
    asked = DatasetQuestions(examples, Recall(), system="Be brief.")
    asked.prepare([1], None, 0)
    (request,) = asked.requests[1]
    assert request.text == examples["prompt"][1].as_py() and request.system == "Be brief." and not len(request.tokens)


def ruler_table() -> tuple[Ruler, pa.Table]:
    task = Ruler(tasks="niah_single_1,vt,qa_1", rows=2, lengths=2048)
    return task, build(task, resolve("kvray-tiny"), range(6))


def test_an_answer_prefix_is_where_the_assistants_turn_begins() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    task, examples = ruler_table()
    asked = DatasetQuestions(examples, task)
    asked.prepare(range(6), tokenizer, 2048)
    rows = questions.ask_order(examples).to_pylist()
    for row, example in enumerate(rows):
        (request,) = asked.requests[row]
        alone = next(chat_tokens(tokenizer, [conversation(example["prompt"])], prompt=True))
        assert request.tokens[: len(alone)].tolist() == alone
        assert tokenizer.decode(request.tokens[len(alone) :]).strip() == example["answer_prefix"]
        # What training reads begins with what is asked.
        whole = [*conversation(example["prompt"]), {"role": "assistant", "content": example["answer"]}]
        trained = next(chat_tokens(tokenizer, [whole], prompt=False))
        assert tokenizer.decode(trained).startswith(tokenizer.decode(request.tokens))
        assert len(request.tokens) + request.max_tokens <= example["length"]
    limits = {row["subtask"]: asked.requests[at][0].max_tokens for at, row in enumerate(rows)}
    assert limits == {"niah_single_1": 128, "vt": 30, "qa_1": 32}


def test_a_server_gets_the_prefix_at_the_end_of_the_users_message() -> None:
    task, examples = ruler_table()
    asked = DatasetQuestions(examples, task)
    asked.prepare([0], None, 0)
    (request,) = asked.requests[0]
    row = questions.ask_order(examples).to_pylist()[0]
    assert request.text == f"{row['prompt']} {row['answer_prefix']}" and request.max_tokens == 128


def test_a_row_is_scored_by_the_rule_of_its_subtask() -> None:
    task, examples = ruler_table()
    asked = DatasetQuestions(examples, task)
    rows = questions.ask_order(examples).to_pylist()
    replies = [[Reply(9, None, 5, " ".join(row["references"][:1]), "stop")] for row in rows]
    columns, _ = asked.columns(range(6), replies)
    wanted = {"niah_single_1": (1.0, "right"), "vt": (0.2, "partial"), "qa_1": (1.0, "right")}
    assert list(zip(columns["score"], columns["outcome"], strict=True)) == [wanted[row["subtask"]] for row in rows]
    # Any of several accepted answers is right of a question, a share of several values is not.
    both = task.narrowed("qa_1").score("yes", ["yes", "indeed"]), task.narrowed("vt").score("yes", ["yes", "indeed"])
    assert both == (1.0, 0.5)


def test_chains_of_thought_are_measured_beside_the_worked_answer() -> None:
    examples = made.example_table(3)
    worked = pa.array(["Ann is old.\nBo is tall.\nIs it so? True"] * 3)
    examples = examples.set_column(examples.schema.names.index("answer"), examples.schema.field("answer"), worked)
    replies = [
        [Reply(1, 0, 3, "Ann is old. So true", "stop")],
        [Reply(1, 0, 3, "False, as Ann is old and Bo is tall.", "stop")],
        [Reply(9, None, 0, None, "too_long")],
    ]
    labels = dict.fromkeys(("evaluation", "task", "base_model"), "")
    for task, coverage, early in (
        (Flenqa(cot=True), [0.5, 0.5, None], [False, True, None]),
        (Recall(), [None] * 3, [None] * 3),
    ):
        table = DatasetQuestions(examples, task).table(range(3), replies, labels, {})
        assert (table["coverage"].to_pylist(), table["early"].to_pylist()) == (coverage, early)
