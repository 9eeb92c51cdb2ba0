"""several_kv: every asked key is answered by the prompt, in its own dictionary, and partial answers get their share."""

from __future__ import annotations

import hashlib
import json
import re
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.tokenizer import TokenCounter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.kv.several import SeveralKV

LINE = re.compile(r"Dictionary \[(\d+)\] (\{.*\})")
COUNTER = TokenCounter(toy_tokenizers.digits())
GOLDEN = {
    "default": "2b40fd59359d1c45e02a9418c327991ebc9abddc3d1e9f77ae1b5fb5c712a5b6",
    "four": "5e6202102c133d76c3578795e40e78fc5c24fb57d29d69f431ea7fd1444827b2",
}
KNOBS: dict[str, dict[str, Any]] = {
    "default": {"rows": 12},
    "four": {"rows": 40, "keys_asked": 4, "dictionaries": 9, "template": False, "keys_min": 1, "digits_max": 5},
}


def made(start: int = 0, stop: int | None = None, **knobs: Any) -> pa.Table:
    task = SeveralKV(**knobs)
    return task.build(start, task.rows if stop is None else stop, task.context(COUNTER))


def pairs(prompt: str) -> list[list[tuple[int, int]]]:
    """Read a prompt's dictionaries as written; the labels must count from 1."""
    found = LINE.findall(prompt)
    assert [int(label) for label, _ in found] == list(range(1, len(found) + 1))
    return [[tuple(map(int, pair.split(": "))) for pair in body[1:-1].split(", ")] for _, body in found]


def asked(prompt: str) -> list[int]:
    return [int(key) for key in re.search(r"values of keys ([\d, ]+), in this order", prompt)[1].split(", ")]


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_golden_bytes(name: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    rows = json.dumps(made(**KNOBS[name]).to_pylist(), sort_keys=True)
    assert hashlib.sha256(rows.encode()).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_every_key_is_answered_by_the_prompt_each_in_another_dictionary(name: str) -> None:
    task = SeveralKV(**KNOBS[name])
    table = made(**KNOBS[name])
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)
    assert table["prompt_tokens"].to_pylist() == COUNTER(table["prompt"].to_pylist()).tolist()
    assert table["position"].null_count == table.num_rows
    for row in table.to_pylist():
        dictionaries, keys = pairs(row["prompt"]), asked(row["prompt"])
        assert len(dictionaries) == row["units"] == task.dictionaries
        assert len(keys) == len(set(keys)) == task.keys_asked
        every = [key for dictionary in dictionaries for key, _ in dictionary]
        values = [value for dictionary in dictionaries for _, value in dictionary]
        assert len(every) == len(set(every))
        holders, sentences = [], []
        for key in keys:
            (holder,) = [n for n, dictionary in enumerate(dictionaries, 1) if key in dict(dictionary)]
            value = dict(dictionaries[holder - 1])[key]
            assert values.count(value) == 1
            holders.append(holder)
            sentences.append(f"The value of key {key} is {value} and it is in Dictionary [{holder}].")
        assert len(set(holders)) == task.keys_asked
        assert row["answer"] == "\n".join(sentences)
        assert row["references"] == [row["answer"]]
        assert task.score(row["answer"], row["references"]) == 1.0
        blank = "is <fill-in-value> and it is in Dictionary [<fill-in-dictionary-name>]."
        template = "\n".join(f"The value of key {key} {blank}" for key in keys)
        assert row["prompt"].endswith(f" Answer in the following template:\n{template}" if task.template else "is in.")


def test_rows_hang_on_nothing_but_the_recipe() -> None:
    knobs = {"rows": 300, "dictionaries": 5}
    whole = made(**knobs)
    parts = [made(0, 7, **knobs), made(7, 8, **knobs), made(8, 300, **knobs)]
    assert pa.concat_tables(parts).combine_chunks().equals(whole)
    assert made(stop=9, **{**knobs, "rows": 9}).equals(whole.slice(0, 9))
    assert made(seed=1, **knobs)["prompt"].to_pylist() != whole["prompt"].to_pylist()
    bare = made(template=False, **knobs)["prompt"].to_pylist()
    assert all(a.startswith(b) for a, b in zip(whole["prompt"].to_pylist(), bare, strict=True))


def test_a_tight_budget_draws_again_and_leaves_rows_that_fit() -> None:
    knobs = {"rows": 60, "dictionaries": 8}
    loose = made(**knobs)
    limit = int(np.median(loose["prompt_tokens"].to_numpy()))
    tight = made(max_tokens=limit, **knobs)
    assert tight["prompt_tokens"].to_numpy().max() <= limit
    kept = np.array(tight["prompt"].to_pylist()) == np.array(loose["prompt"].to_pylist())
    assert (kept == (loose["prompt_tokens"].to_numpy() <= limit)).all()
    assert made(5, 9, max_tokens=limit, **knobs).equals(tight.slice(5, 4))


def test_a_budget_that_cannot_hold_names_the_knobs_soon() -> None:
    started = time.process_time()
    with pytest.raises(InputError, match=r"row 0: no draft of 8 dictionaries.*max_tokens: 100\).*raise max_tokens"):
        made(rows=200, dictionaries=8, max_tokens=100)
    assert time.process_time() - started < 3


def test_places_sizes_and_digits_are_uniform() -> None:
    table = made(rows=3000, dictionaries=6)
    place = np.zeros((3, 6))
    index = np.zeros(4)
    sizes: list[int] = []
    digits: list[int] = []
    for row in table.to_pylist():
        dictionaries = pairs(row["prompt"])
        sizes += [len(dictionary) for dictionary in dictionaries]
        digits += [len(str(number)) for dictionary in dictionaries for pair in dictionary for number in pair]
        for order, key in enumerate(asked(row["prompt"])):
            (holder,) = [n for n, dictionary in enumerate(dictionaries) if key in dict(dictionary)]
            place[order, holder] += 1
            index[[k for k, _ in dictionaries[holder]].index(key)] += 1
    # Five standard deviations of a count each: no seed in a million fails.
    assert (np.abs(place - 500) < 5 * np.sqrt(3000 / 6 * 5 / 6)).all()
    assert np.abs(np.mean(np.array(sizes) == 4) - 0.5) < 5 * 0.5 / np.sqrt(len(sizes))
    assert np.abs(np.mean(np.array(digits) == 4) - 0.5) < 5 * 0.5 / np.sqrt(len(digits))
    expected = 9000 * np.array([7 / 24, 7 / 24, 7 / 24, 3 / 24])
    assert (np.abs(index - expected) < 5 * np.sqrt(expected)).all()


REFERENCE = "\n".join(
    f"The value of key {key} is {value} and it is in Dictionary [{dictionary}]."
    for key, value, dictionary in ((2931, 8364, 32), (512, 77, 4), (600, 1234, 80))
)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (REFERENCE, 1.0),
        ("\n".join(reversed(REFERENCE.split("\n"))), 1.0),
        (REFERENCE.replace("\n", " "), 1.0),
        ("Sure! Key 512 is 77, in Dictionary [4].", 1 / 3),
        (REFERENCE.replace("[4]", "[5]"), 2 / 3),
        (REFERENCE.replace(" 77 ", " 770 "), 2 / 3),
        # Values of two keys swapped: neither is right.
        (REFERENCE.replace("8364", "x").replace(" 77 ", " 8364 ").replace("x", "77"), 1 / 3),
        # The first statement about a key counts.
        (f"The value of key 512 is 78 and it is in Dictionary [4].\n{REFERENCE}", 2 / 3),
        # A dictionary named behind the next key is not this key's.
        ("The value of key 2931 is 8364 and of key 512 is 77 and both are in Dictionary [32].", 0.0),
        ("The value of key 2931 is 8364 and\nit is in Dictionary [32].", 0.0),
        ("8364, 77, 1234", 0.0),
        ("", 0.0),
    ],
)
def test_a_sentence_counts_if_value_and_dictionary_are_right(answer: str, score: float) -> None:
    assert SeveralKV().score(answer, [REFERENCE]) == pytest.approx(score)
    assert SeveralKV().outcome(answer, [REFERENCE]) == ("right" if score == 1 else "wrong")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"keys_asked": 5, "dictionaries": 4}, "expected at most dictionaries = 4"),
        ({"keys_asked": 1}, "greater than or equal to 2"),
        ({"keys_min": 5}, "at most keys_max = 4"),
        ({"digits_max": 2}, "at most digits_max = 2"),
        ({"digits_max": 3, "dictionaries": 120}, "raise digits_max"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        SeveralKV(**knobs)


def test_the_estimate_of_tokens_is_near() -> None:
    for kind in (toy_tokenizers.digits, toy_tokenizers.threes):
        task = SeveralKV(rows=20)
        counted = task.build(0, 20, task.context(TokenCounter(kind())))["prompt_tokens"].to_numpy().mean()
        assert 0.6 < task.tokens_estimate() / counted < 1.6
