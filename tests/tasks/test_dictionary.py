"""simple_kv: both laws, exact tokens for every kind of tokenizer, rows that hang on nothing but the recipe."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.tokenizer import TokenCounter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.base import Context
from kvray.tasks.kv.simple import SimpleKV, collapse

LINE = re.compile(r"Dictionary \[(\d+)\] (\{.*\})")
GOLDEN: dict[str, str] = {
    "paper": "94d874748d01564591facbf5cc1126c9a4b34b6507b74f4a4e4881af35f05e0b",
    "strict": "147994603f79371fc78c86e0cc71b1fb93cb5346aab570511cfbd92d124f9b1e",
    "fit": "05767c1983cdaa1444fef2cdbd1d1ca5d8bb7629c9ced2105b97ea8927247dbc",
    "redrawn": "366703327a2dcee76a4396a689f6076b4357dc2c006b857e95c3f9cbbcf626b5",
}
SMALL: dict[str, Any] = {"rows": 40, "dictionaries": 12, "max_tokens": 4096}


def counter(kind: str = "digits") -> TokenCounter:
    return TokenCounter(getattr(toy_tokenizers, kind)())


def made(start: int = 0, stop: int = 40, kind: str = "digits", **knobs: Any) -> pa.Table:
    task = SimpleKV(**{**SMALL, **knobs})
    return task.build(start, stop, context(task, kind))


@cache
def context(task: SimpleKV, kind: str) -> Context:
    return task.context(counter(kind))


def pairs(prompt: str) -> list[list[tuple[int, int]]]:
    """Read a prompt's dictionaries as written, repeated keys and all; the labels must count from 1."""
    found = LINE.findall(prompt)
    assert [int(label) for label, _ in found] == list(range(1, len(found) + 1))
    return [[tuple(map(int, pair.split(": "))) for pair in body[1:-1].split(", ")] for _, body in found]


def digest(table: pa.Table) -> str:
    return hashlib.sha256(
        json.dumps(table.drop_columns(["depth", "subtask", "condition"]).to_pylist(), sort_keys=True).encode()
    ).hexdigest()


def test_prompt_and_answer_are_worded_as_the_paper_s() -> None:
    table = made(rows=1, dictionaries=2, keys_max=3, forced_first=1.0, early=0.0, stop=1)
    row = table.to_pylist()[0]
    (first, second), key = pairs(row["prompt"]), int(re.search(r"value of key (\d+)", row["prompt"])[1])
    lines = [f"Dictionary [{n}] {dict(d)}" for n, d in enumerate((first, second), 1)]
    report = (
        f"Above is a list of dictionaries such that each key and value is an integer. Report the value of key {key} "
        "and the dictionary it is in."
    )
    template = (
        f" Answer in the following template:\nThe value of key {key} is <fill-in-value> and it is in Dictionary "
        "[<fill-in-dictionary-name>]."
    )
    head = "Do a task using the list of dictionaries below."
    assert row["prompt"] == "\n".join([head, "", *lines, "", report + template])
    assert row["answer"] == f"The value of key {key} is {dict(first)[key]} and it is in Dictionary [1]."
    plain = made(rows=1, dictionaries=2, keys_max=3, forced_first=1.0, early=0.0, stop=1, template=False)
    assert plain["prompt"][0].as_py() == "\n".join([head, "", *lines, "", report])


@pytest.mark.parametrize("law", ["paper", "strict"])
def test_every_example_is_answered_by_its_own_prompt(law: str) -> None:
    task = SimpleKV(**{**SMALL, "law": law})
    table = made(law=law)
    assert table.schema.equals(EXAMPLE_SCHEMA, check_metadata=True)
    assert len(set(table["example_id"].to_pylist())) == 40
    for row in table.to_pylist():
        key = int(re.search(r"value of key (\d+) and", row["prompt"])[1])
        dictionaries = pairs(row["prompt"])
        holders = [n for n, dictionary in enumerate(dictionaries, 1) if key in dict(dictionary)]
        values = [value for dictionary in dictionaries for _, value in dictionary]
        value = dict(dictionaries[row["position"] - 1])[key]
        assert holders == [row["position"]]
        assert values.count(value) == 1
        assert row["answer"] == f"The value of key {key} is {value} and it is in Dictionary [{row['position']}]."
        assert row["references"] == [row["answer"]]
        assert row["units"] == len(dictionaries) == 12
        assert task.score(row["answer"], row["references"]) == 1.0


@pytest.mark.parametrize("kind", ["digits", "threes", "spaced", "bridging"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"law": "strict", "template": False},
        {"law": "strict", "dictionaries": "fit", "max_tokens": 900},
        {"digits_min": 1, "digits_max": 4, "keys_min": 1, "keys_max": 6},
    ],
    ids=["paper", "strict", "fit", "wide"],
)
def test_tokens_are_exact_for_every_kind_of_tokenizer(kind: str, knobs: dict[str, Any]) -> None:
    counting = counter(kind)
    table = made(kind=kind, **knobs)
    assert table["prompt_tokens"].to_pylist() == counting(table["prompt"].to_pylist()).tolist()
    assert (context(SimpleKV(**{**SMALL, **knobs}), kind).material.costs is None) == (kind == "bridging")


def test_a_counter_that_claims_too_much_is_found_out_on_real_prompts() -> None:
    class Boastful(TokenCounter):
        def separates(self, text: str) -> bool:
            return True

    task = SimpleKV(**SMALL)
    boastful = task.context(Boastful(toy_tokenizers.bridging()))
    assert boastful.material.costs is None
    assert task.build(0, 40, boastful).equals(made(kind="bridging"))


def test_sums_and_the_tokenizer_itself_give_the_same_rows() -> None:
    tight = {"max_tokens": int(np.median(made()["prompt_tokens"].to_numpy())) + 100}
    task = SimpleKV(**{**SMALL, **tight})
    counting = counter()
    calls = []

    def plain(texts: Sequence[str]) -> Any:
        calls.append(len(texts))
        return counting(texts)

    by_tokenizer = task.build(0, 40, task.context(plain))
    assert by_tokenizer.equals(made(**tight))
    assert sum(calls) > 80, "the budget must be tight enough for redraws"


def test_rows_hang_on_nothing_but_the_recipe() -> None:
    whole = made()
    assert pa.concat_tables([made(0, 7), made(7, 8), made(8, 40)]).combine_chunks().equals(whole)
    assert made(seed=1)["prompt"].to_pylist() != whole["prompt"].to_pylist()
    # More rows force other positions and nothing else: the dictionaries are the same, the gold one elsewhere.
    for few, many in zip(whole["prompt"].to_pylist(), made(rows=400)["prompt"].to_pylist(), strict=True):
        assert sorted(pairs(few)) == sorted(pairs(many))
    for with_template, without in zip(
        whole["prompt"].to_pylist(), made(template=False)["prompt"].to_pylist(), strict=True
    ):
        assert with_template.startswith(without)


def test_budget_of_the_paper_keeps_its_margins_by_redraws() -> None:
    loose = made()["prompt_tokens"].to_numpy()
    limit = int(np.median(loose)) + 100
    tight = made(max_tokens=limit)
    tokens = tight["prompt_tokens"].to_numpy()
    assert tokens.max() < limit - 100
    # A row that fits stays as it was; only the others are drawn again.
    kept = np.array(tight["prompt"].to_pylist()) == np.array(made()["prompt"].to_pylist())
    assert (kept == (loose < limit - 100)).all()


@pytest.mark.parametrize("knobs", [{"max_tokens": 300}, {"law": "strict", "max_tokens": 300}])
@pytest.mark.parametrize("kind", ["digits", "bridging"])
def test_a_budget_that_cannot_hold_names_the_knobs(knobs: dict[str, Any], kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("kvray.tasks.kv.base.REDRAWS", 20)
    with pytest.raises(InputError, match=r"max_tokens: 300.*lower dictionaries, keys_max or digits_max, or raise"):
        made(kind=kind, **knobs)
    with pytest.raises(InputError, match="fit found 0 to 0 dictionaries within max_tokens = 90"):
        made(law="strict", dictionaries="fit", max_tokens=90)


@pytest.mark.parametrize("kind", ["digits", "bridging"])
def test_fit_takes_as_many_dictionaries_as_the_budget_holds(kind: str) -> None:
    task = SimpleKV(rows=200, dictionaries="fit", law="strict", max_tokens=700)
    builder = task.context(counter(kind)).material
    table = builder.build(0, 30)
    assert table["prompt_tokens"].to_numpy().max() <= 700
    assert len(set(table["units"].to_pylist())) > 1
    rows = np.arange(30)
    draft = builder.attempt(rows, 0)
    draft.units = table["units"].to_numpy() + 1
    one_more = builder.count(rows, draft)
    assert (one_more > 700).all()
    assert (table["position"].to_numpy() <= table["units"].to_numpy()).all()


def test_fit_fills_a_long_context_until_unique_keys_run_short() -> None:
    # Digit by digit, a dictionary is some 41 tokens: these hold about 1,100 of the 1,237 whose keys find room.
    table = made(law="strict", dictionaries="fit", max_tokens=45_000, rows=2, stop=2)
    assert min(table["prompt_tokens"].to_pylist()) > 45_000 - 80
    with pytest.raises(InputError, match=r"fit found 1237 to 1237 .* of 1237 .*lower max_tokens, or raise digits_max"):
        made(law="strict", dictionaries="fit", max_tokens=60_000, rows=2, stop=2)


def test_repeated_keys_collapse_as_in_a_python_dict() -> None:
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 4, (50, 6, 5)), rng.integers(0, 100, (50, 6, 5))
    sizes = rng.integers(1, 6, (50, 6))
    expected = [
        [list(dict(zip(k[:n], v[:n], strict=True)).items()) for k, v, n in zip(*row, strict=True)]
        for row in zip(keys.tolist(), values.tolist(), sizes.tolist(), strict=True)
    ]
    collapse(keys, values, sizes)
    for row in range(50):
        for d in range(6):
            n = sizes[row, d]
            assert list(zip(keys[row, d, :n].tolist(), values[row, d, :n].tolist(), strict=True)) == expected[row][d]


def violations(table: pa.Table, rows: int, dictionaries: int) -> set[str]:
    """Return which parts of law paper a dataset of the default knobs breaks, by its texts alone."""
    broken = set()
    prompts = [pairs(prompt) for prompt in table["prompt"].to_pylist()]
    gold = table["position"].to_numpy() - 1
    gold_sizes = np.array([len(prompt[at]) for prompt, at in zip(prompts, gold, strict=True)])
    if (gold_sizes == 3).mean() < 0.99 or gold_sizes.max() > 3:
        broken.add("gold size")
    sizes = np.array([len(d) for prompt, at in zip(prompts, gold, strict=True) for d in prompt[:at] + prompt[at + 1 :]])
    if abs((sizes == 4).mean() - 0.5) > 0.01 or sizes.max() > 4:
        broken.add("sizes")
    repeated = np.array([len(keys) - len(set(keys)) for keys in ([k for d in p for k, _ in d] for p in prompts)])
    # Keys have 3 or 4 digits with equal chance: two agree with chance (1/900 + 1/9000) / 4.
    each = dictionaries * 3.5
    if abs(repeated.mean() / (each * (each - 1) / 2 * (1 / 900 + 1 / 9000) / 4) - 1) > 0.1:
        broken.add("repeated keys")
    for part in (0, 1):
        drawn = np.array([pair[part] for prompt in prompts for d in prompt for pair in d])
        if abs((drawn < 1000).mean() - 0.5) > 0.01 or drawn.min() < 100 or drawn.max() > 9999:
            broken.add("digits")
        long = drawn[drawn >= 1000]
        if abs(long.mean() - 5499.5) > 30:
            broken.add("uniform")
    first, early, bound = int(rows * 0.05), int(rows * 0.03), min(int(rows * 0.05), dictionaries)
    expected = np.full(dictionaries, (rows - first - early) / dictionaries)
    expected[:bound] += early / bound
    expected[0] += first
    count = np.bincount(gold, minlength=dictionaries)
    if ((count - expected) ** 2 / expected).sum() > dictionaries + 4 * np.sqrt(2 * dictionaries):
        broken.add("positions")
    if table["prompt_tokens"].to_numpy().max() >= 4096 - 100:
        broken.add("tokens")
    return broken


def test_two_thousand_rows_follow_the_paper_s_law_and_strict_ones_do_not() -> None:
    knobs = {"rows": 2000, "dictionaries": 60, "stop": 2000, "early": 0.2}
    # 5 % of 2,000 samples is more than all 60 dictionaries: early is anywhere, while strict means the first 3.
    knobs_strict = {**knobs, "law": "strict"}

    def broken(table: pa.Table) -> set[str]:
        first, early = 100, 400
        found = violations(table, 2000, 60)
        expected = np.full(60, 1500 / 60 + early / 60)
        expected[0] += first
        count = np.bincount(table["position"].to_numpy() - 1, minlength=60)
        found.discard("positions")
        return found | ({"positions"} if ((count - expected) ** 2 / expected).sum() > 60 + 4 * np.sqrt(120) else set())

    assert broken(made(**knobs)) == set()
    assert {"gold size", "repeated keys", "positions"} <= broken(made(**knobs_strict))


def test_the_paper_s_counts_of_forced_positions() -> None:
    # 350 rows: 17 first, 10 among the first 17 (5 % of the samples), 323 uniform over 85 (paper.md 1.1).
    builder = SimpleKV().context(counter()).material
    first, early = (np.flatnonzero(builder.forced_rows == which) for which in (1, 2))
    assert (len(first), len(early)) == (17, 10)
    gold = builder.gold(np.arange(350), np.full(350, 85))
    assert (gold[first] == 0).all()
    assert gold[early].max() <= 16
    strict = SimpleKV(law="strict", early=0.9).context(counter()).material
    assert strict.gold(np.arange(350), np.full(350, 85))[strict.forced_rows == 2].max() == 3


def test_strict_keys_are_unique_and_sizes_alike() -> None:
    table = made(law="strict", rows=300, stop=300, dictionaries=40)
    prompts = [pairs(prompt) for prompt in table["prompt"].to_pylist()]
    for prompt in prompts:
        keys = [key for dictionary in prompt for key, _ in dictionary]
        assert len(keys) == len(set(keys))
    gold = np.array([len(p[at - 1]) for p, at in zip(prompts, table["position"].to_pylist(), strict=True)])
    assert abs((gold == 4).mean() - 0.5) < 0.12


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("The value of key 2931 is 8364 and it is in Dictionary [32].", 1.0),
        ("  the key is 8364, in Dictionary [32]\nThe value of key 1 is 2", 1.0),
        ("The value of key 2931 is 8364 and it is in Dictionary [3].", 0.0),
        ("The value of key 2931 is 83645 and it is in Dictionary [32].", 0.0),
        ("The value of key 8364 is 2931 and it is in Dictionary [32].", 0.0),
        ("8364, Dictionary [32]", 0.0),
        ("\n\nThe value of key 2931 is 8364 and\nit is in Dictionary [32].", 0.0),
        ("", 0.0),
    ],
)
def test_value_and_dictionary_must_both_be_right(answer: str, score: float) -> None:
    reference = "The value of key 2931 is 8364 and it is in Dictionary [32]."
    assert SimpleKV().score(answer, [reference]) == score


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"dictionaries": "fit"}, "needs law: strict"),
        ({"dictionaries": 0}, "expected 1 to 99999"),
        ({"dictionaries": "all"}, "'fit'"),
        ({"keys_min": 5}, "at most keys_max = 4"),
        ({"digits_max": 2}, "at most digits_max = 2"),
        ({"law": "strict", "digits_max": 3, "dictionaries": 120}, "raise digits_max"),
        ({"forced_first": 0.6, "early": 0.6}, "found more than 1"),
        ({"dictionary": 3}, "found 'dictionary'; expected one of: task, seed, rows, dictionaries, "),
    ],
)
def test_knobs_that_make_no_sense_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        SimpleKV(**knobs)


def test_the_row_that_found_no_draft_is_named_with_its_own_tokens(monkeypatch: Any) -> None:
    monkeypatch.setattr("kvray.tasks.kv.base.REDRAWS", 3)
    monkeypatch.setattr(
        "kvray.tasks.kv.simple.SimpleBuilder._measure",
        lambda self, rows, draft: setattr(draft, "tokens", 1000 + rows) or (rows % 4 != 2),
    )
    with pytest.raises(InputError, match=r"row 2: .*the last had 1002 tokens"):
        made(0, 7)


def test_asking_the_same_examples_otherwise_is_an_overlap() -> None:
    trained = SimpleKV()
    for other in (SimpleKV(rows=20), SimpleKV(template=False), SimpleKV(max_tokens=5000, early=0)):
        assert "another seed" in str(trained.overlaps(other))
    for other in (SimpleKV(seed=1), SimpleKV(law="strict"), SimpleKV(dictionaries=84)):
        assert trained.overlaps(other) is None


def test_golden_bytes() -> None:
    # Whoever changes these changes every dataset made so far: raise SimpleKV.VERSION.
    assert SimpleKV.VERSION == 1
    assert {
        "paper": digest(made()),
        "strict": digest(made(law="strict")),
        "fit": digest(made(law="strict", dictionaries="fit", max_tokens=900)),
        "redrawn": digest(made(max_tokens=720, template=False)),
    } == GOLDEN


def test_a_prompt_is_python() -> None:
    for _, body in LINE.findall(made(dictionaries=30)["prompt"][0].as_py()):
        assert ast.literal_eval(body)
