"""multi_subkey_kv: only the gold key holds all the integers asked for."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.tokenizer import TokenCounter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.kv.subkeys import MultiSubkeyKV

LINE = re.compile(r"Dictionary \[(\d+)\] (\{.*\})")
SMALL: dict[str, Any] = {"rows": 60, "dictionaries": 10}
Key = tuple[int, ...]
GOLDEN: dict[str, str] = {
    "default": "bb522ca1605598bd2c1ee820a58541f395fcd75d2d0bbdf44e98698d3975d6c3",
    "ordered": "641b0a5c545ffb19cff4ac1bd372e055c91c95f3babbe3d0c4c385422f830eea",
    "plain": "f4122e63413a18c958d0bd5047f8705f7ac07561874849db84e5a861aff8c01c",
}
COUNTER = TokenCounter(toy_tokenizers.digits())


def made(start: int = 0, stop: int = 60, **knobs: Any) -> pa.Table:
    task = MultiSubkeyKV(**{**SMALL, **knobs})
    return task.build(start, stop, task.context(COUNTER))


def digest(table: pa.Table) -> str:
    return hashlib.sha256(
        json.dumps(table.drop_columns(["depth", "subtask", "condition"]).to_pylist(), sort_keys=True).encode()
    ).hexdigest()


def read(table: pa.Table) -> Iterator[tuple[dict[str, Any], list[int], Key, list[Key], list[int]]]:
    """Yield per row: the row, what is asked, the gold key, the other keys, the other values."""
    for row in table.to_pylist():
        dictionaries = [ast.literal_eval(body) for _, body in LINE.findall(row["prompt"])]
        assert [len(d) for d in dictionaries] == [body.count(")") for _, body in LINE.findall(row["prompt"])]
        asked = [int(n) for n in re.search(r"contains the integers ([\d, ]+) \(", row["prompt"])[1].split(", ")]
        gold = next(key for key in dictionaries[row["position"] - 1] if set(asked) <= set(key))
        others = [(key, value) for d in dictionaries for key, value in d.items() if key != gold]
        yield row, asked, gold, [key for key, _ in others], [value for _, value in others]


def test_every_example_is_answered_by_its_own_prompt_and_no_other_key() -> None:
    table = made()
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)
    shuffled = 0
    for row, asked, gold, keys, values in read(table):
        dictionaries = [ast.literal_eval(body) for _, body in LINE.findall(row["prompt"])]
        value = dictionaries[row["position"] - 1][gold]
        assert sorted(asked) == sorted(gold)
        assert len(set(asked)) == 3
        assert not any(set(asked) <= set(key) for key in keys)
        assert gold not in keys
        assert len(keys) == len(set(keys))
        assert value not in values
        names = ", ".join(map(str, asked))
        assert row["answer"] == (
            f"The key that contains the integers {names} is ({', '.join(map(str, gold))}). Its value is {value} and it "
            f"is in Dictionary [{row['position']}]."
        )
        assert row["prompt"].endswith(
            f"The key that contains the integers {names} is <fill-in-key>. Its value is <fill-in-value> and it is in "
            f"Dictionary [<fill-in-dictionary-name>]."
        )
        assert all(100 <= n <= 999 for key in [*keys, gold] for n in key)
        assert all(1000 <= n <= 9999 for n in values)
        assert {len(key) for key in keys} <= {3, 4}
        shuffled += tuple(asked) != gold
    assert 40 <= shuffled <= 58, "a random order of three is the key's own in one of six"
    assert table["prompt_tokens"].to_pylist() == COUNTER(table["prompt"].to_pylist()).tolist()


def test_other_keys_share_subkeys_by_the_two_probabilities() -> None:
    keys = [(set(gold) & set(key)) for _, _, gold, others, _ in read(made(stop=200, rows=200)) for key in others]
    # Half of the keys share; of these a quarter holds both, half holds one, a quarter none.
    for size, expected in ((0, 0.625), (1, 0.25), (2, 0.125)):
        assert abs(sum(len(shared) == size for shared in keys) / len(keys) - expected) < 0.03
    assert not any(set(gold) & set(k) for _, _, gold, others, _ in read(made(share_probability=0)) for k in others)


def test_an_ordered_run_stands_together_in_every_key() -> None:
    table = made(common_ordered=True, subkey_probability=1.0, share_probability=1.0, gold_key_size=4, key_size_max=5)
    starts = set()
    for _, _, gold, others, _ in read(table):
        shared = set.intersection(set(gold), *map(set, others))
        run = [n for n in gold if n in shared]
        assert len(run) == 2
        for key in [gold, *others]:
            at = key.index(run[0])
            starts.add(at)
            assert list(key[at : at + 2]) == run
    assert starts == {0, 1, 2, 3}


def test_rows_hang_on_nothing_but_the_recipe() -> None:
    whole = made()
    assert pa.concat_tables([made(0, 7), made(7, 8), made(8, 60)]).combine_chunks().equals(whole)
    assert made(seed=1)["prompt"].to_pylist() != whole["prompt"].to_pylist()
    tight = made(max_tokens=int(whole["prompt_tokens"].to_numpy().mean()))
    assert tight["prompt_tokens"].to_numpy().max() <= whole["prompt_tokens"].to_numpy().mean()
    kept = [a == b for a, b in zip(tight["prompt"].to_pylist(), whole["prompt"].to_pylist(), strict=True)]
    assert 10 < sum(kept) < 50


def test_a_budget_that_cannot_hold_names_the_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvray.tasks.kv.base.REDRAWS", 20)
    with pytest.raises(InputError, match=r"max_tokens: 200.*lower dictionaries, keys_max, key_size_max"):
        made(max_tokens=200)


@pytest.mark.parametrize(
    ("key", "value", "dictionary", "score"),
    [
        ("(141, 623, 616)", "5617", "[6]", 1.0),
        ("(141,623,616)", "5617", "[6].\nIts value is 3 and it is in Dictionary [4]", 1.0),
        ("(616, 141, 623)", "5617", "[6]", 0.0),
        ("(141, 623, 616)", "561", "[6]", 0.0),
        ("(141, 623, 616)", "5617", "[5]", 0.0),
        ("141, 623, 616", "5617", "[6]", 0.0),
    ],
)
def test_key_value_and_dictionary_must_all_be_right(key: str, value: str, dictionary: str, score: float) -> None:
    def answer(key: str, value: str, dictionary: str) -> str:
        asked = "The key that contains the integers 616, 141, 623"
        return f"{asked} is {key}. Its value is {value} and it is in Dictionary {dictionary}."

    reference = answer("(141, 623, 616)", "5617", "[6]")
    assert MultiSubkeyKV().score(answer(key, value, dictionary), [reference]) == score
    assert MultiSubkeyKV().score("", [reference]) == 0.0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"common_subkeys": 3}, "expected fewer than gold_key_size and key_size_min"),
        ({"common_ordered": True}, "needs subkey_probability: 1"),
        ({"key_size_min": 5}, "at most key_size_max = 4"),
        ({"subkey_digits": 1}, "subkey_digits"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        MultiSubkeyKV(**knobs)


def test_asking_the_same_examples_otherwise_is_an_overlap() -> None:
    assert "another seed" in str(MultiSubkeyKV().overlaps(MultiSubkeyKV(shuffle_query=False, template=False, rows=9)))
    assert MultiSubkeyKV().overlaps(MultiSubkeyKV(seed=1)) is None


def test_golden_bytes() -> None:
    # Whoever changes these changes every dataset made so far: raise MultiSubkeyKV.VERSION.
    assert MultiSubkeyKV.VERSION == 1
    assert {
        "default": digest(made()),
        "ordered": digest(made(common_ordered=True, subkey_probability=1.0)),
        "plain": digest(made(template=False, shuffle_query=False, seed=3)),
    } == GOLDEN
