"""Encoding by the chat template, the order of asking, lengths."""

from __future__ import annotations

import evaluate_store as made
import numpy as np
import pytest

from kvray.errors import InputError
from kvray.evaluate import prompts as requests
from kvray.models.reference import load_tokenizer, resolve
from kvray.tasks.qa.recall import Recall


def test_prompts_are_encoded_as_the_chat_template_encodes_them_one_by_one() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    prompts = made.example_table(300)["prompt"].to_pylist()
    encoded = requests.encode(tokenizer, prompts)
    assert len(encoded) == 300
    for prompt, ids in zip(prompts[::50], encoded[::50], strict=True):
        user = [{"role": "user", "content": prompt}]
        alone = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids.tolist() == alone
        # The template writes its own first token; a second one would be another prompt.
        assert ids.tolist().count(tokenizer.bos_token_id) == 1


def test_a_tokenizer_without_a_chat_template_is_named() -> None:
    tokenizer = load_tokenizer(resolve("kvray-tiny"))
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"kvray-tiny.*no chat template"):
        requests.encode(tokenizer, ["hello"])


def test_the_order_of_asking_is_by_question_then_position_whatever_the_order_of_rows() -> None:
    table = made.example_table(20)
    shuffled = table.take(np.random.default_rng(3).permutation(20))
    ordered = requests.ask_order(shuffled)
    assert ordered["example_id"].to_pylist() == table["example_id"].to_pylist()
    pairs = list(zip(ordered["question_id"].to_pylist(), ordered["position"].to_pylist(), strict=True))
    assert pairs == sorted(pairs)


def test_a_prompt_fits_only_together_with_its_longest_answer() -> None:
    prompt = np.zeros(156, np.int32)
    assert requests.fits(prompt, 100, 256)
    assert not requests.fits(prompt, 101, 256)


def test_an_engine_is_as_long_as_its_longest_request_rounded_up_but_never_longer_than_the_model() -> None:
    assert requests.engine_length([30, 129], 32768) == 192
    assert requests.engine_length([30, 250], 251) == 251
    assert requests.engine_length([], 4096) == requests.ROUNDING


def test_a_task_says_how_its_answers_end() -> None:
    assert requests.decoding(Recall()) == requests.Decoding(Recall.MAX_OUTPUT_TOKENS, Recall.STOP)
