"""kvray-tiny's tokenizer: names are one token, integers short pieces, everything round-trips."""

from __future__ import annotations

import pytest

from kvray.models import reference
from kvray.tasks import prompts, world


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return reference.load_tokenizer(reference.resolve("kvray-tiny"))


def test_names_and_values_are_one_token_each(tokenizer) -> None:
    values = [value for relation in world.RELATIONS.values() for value in relation]
    words = [f" {word}" for word in (*world.FIRST_NAMES, *world.LAST_NAMES, *values)]
    assert {len(ids) for ids in tokenizer(words, add_special_tokens=False)["input_ids"]} == {1}


def test_integers_come_in_pairs_of_digits_and_one_token_parts_key_from_value(tokenizer) -> None:
    pieces = [
        tokenizer.decode([token]) for token in tokenizer("{1234: 567, 89: 4321}", add_special_tokens=False).input_ids
    ]
    assert pieces == ["{", "12", "34", ": ", "56", "7", ", ", "89", ": ", "43", "21", "}"]


@pytest.mark.parametrize("text", [prompts.MDQA, prompts.SUBKEY_ANSWER, "Ünïcödé 東京\n\n\ttabs  and   spaces 1,234.5"])
def test_any_text_round_trips(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_bundled_tokenizer_is_the_one_that_the_code_makes(tokenizer) -> None:
    from kvray.finetune.pretrain.tokenizer import build

    made = build()
    assert made.get_vocab() == tokenizer.get_vocab()
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert made.apply_chat_template(chat, tokenize=False) == "<s>[INST]Q[/INST]A</s>"
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>[INST]Q[/INST]A</s>"
