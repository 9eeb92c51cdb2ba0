"""RULER's retrieval family in our own words: what is hidden, what is asked, how it is scored."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.reference import resolve
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.base import CountTokens
from kvray.tasks.needle.ruler import VARIANTS, WORDS, Ruler

GOLDEN = {
    "essay": "e57ac46f0f2d9453e90381c252cf9d5c7d4232edd7ab244b9bfeb6850cd45e85",
    "needles": "3f0acab70c35ef6cf846a24ac2b426a20cddd1822185aae3c25c011b830b7510",
    "noise": "0086370924b59e7db7447c8c4bd41eda8abb70cd58395afe55f3072a4c3db52e",
}
NEEDLE = re.compile(r"One (number|word|UUID) registered under (\S+) is (\S+)\.(?=\s|$)")


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Ruler, count: CountTokens = count_words) -> list[dict]:
    context = task.context(count)
    return task.build(0, task.count(context), context).to_pylist()


def hidden(row: dict) -> list[tuple[str, str]]:
    """Return (key, value) of every needle in a row's text, in order."""
    return [found[1:] for found in NEEDLE.findall(row["prompt"].rpartition("\n\n")[0])]


def asked(row: dict) -> list[str]:
    """Return the keys that the question names."""
    question = row["prompt"].rpartition("\n\n")[2]
    return re.findall(r"[a-z]+-[a-z]+", question.split(" under ")[1])


def test_prompts_are_worded_as_written_here() -> None:
    (one,) = rows(Ruler(variants="single", haystack="noise", lengths=60, rows=1, seed=5))
    assert one["prompt"] == (
        "Somewhere in the text below, numbers are registered under names. You will be asked about them at its end.\n\n"
        "Then it was evening again. Rain fell on the roof all afternoon. A kettle hummed in the kitchen. "
        "One number registered under round-daisy is 8566734. The two clocks were a minute apart.\n\n"
        "Which number is registered under round-daisy?"
    )
    assert one["answer"] == "One number registered under round-daisy is 8566734." and one["references"] == ["8566734"]
    assert one["depth"] == 90 and one["units"] == 0 and one["position"] is None
    (two,) = rows(Ruler(variants="multiquery", haystack="noise", lengths=60, rows=1, seed=5, queries=2))
    assert two["prompt"].endswith(
        "One number registered under misty-basket is 4665715. One number registered under wandering-trellis is "
        "7909752. The two clocks were a minute apart. Nobody came to the door.\n\n"
        "Which numbers are registered under wandering-trellis and misty-basket? Name one for each."
    )
    assert two["answer"] == (
        "One number registered under wandering-trellis is 7909752. One number registered under misty-basket is 4665715."
    )


def test_each_variant_hides_and_asks_what_its_name_says() -> None:
    made = rows(Ruler(lengths=[200, 400], rows=6, keys=5, values=3, queries=2))
    assert len(made) == 6 * 2 * 4 and len({row["example_id"] for row in made}) == len(made)
    for row in made:
        pairs, keys, references = hidden(row), asked(row), row["references"]
        number = {"single": 1, "multikey": 5, "multivalue": 3, "multiquery": 2}[row["subtask"]]
        assert len(pairs) == number and len({value for _, value in pairs}) == number
        assert (row["depth"] is not None) == (row["subtask"] == "single")
        if row["subtask"] == "multivalue":
            assert {key for key, _ in pairs} == set(keys) and len(keys) == 1
            assert references == [value for _, value in pairs], "in the order of the text"
        else:
            assert len({key for key, _ in pairs}) == number
            assert references == [dict(pairs)[key] for key in keys]
        assert len(keys) == {"multiquery": 2}.get(row["subtask"], 1)
        assert [found[2] for found in NEEDLE.findall(row["answer"])] == references
    assert Counter(row["subtask"] for row in made) == dict.fromkeys(VARIANTS, 12)


def test_a_row_is_asked_at_every_length_with_the_same_needles() -> None:
    made = rows(Ruler(lengths=[200, 300, 500], rows=4))
    assert [row["length"] for row in made[:12]] == [200] * 4 + [300] * 4 + [500] * 4
    assert [row["subtask"] for row in made[:4]] == list(VARIANTS)
    by_question: dict[str, list[dict]] = {}
    for row in made:
        by_question.setdefault(row["question_id"], []).append(row)
    assert len(by_question) == 16
    for group in by_question.values():
        assert [row["length"] for row in group] == [200, 300, 500]
        assert len({(row["answer"], row["depth"], row["prompt"].rpartition("\n\n")[2]) for row in group}) == 1
        texts = [NEEDLE.sub("", row["prompt"].rpartition("\n\n")[0]).split() for row in group]
        assert texts[1][: len(texts[0])] == texts[0] and texts[2][: len(texts[1])] == texts[1]


def test_a_haystack_of_needles_names_nothing_twice() -> None:
    for kinds in (("words", "words"), ("numbers", "numbers"), ("uuid", "uuid"), ("words", "numbers")):
        task = Ruler(haystack="needles", key_kind=kinds[0], value_kind=kinds[1], lengths=[900, 1800], rows=2)
        by_question: dict[str, set[tuple[str, str]]] = {}
        for row in rows(task):
            pairs = hidden(row)
            others = [pair for pair in pairs if pair[1] not in row["references"]]
            named = [text for pair in others for text in pair]
            assert len(others) > 100 and len(set(named)) == len(named)
            assert row["prompt"].count(row["references"][0]) == 1
            shorter = by_question.setdefault(row["question_id"], set(pairs))
            assert shorter <= set(pairs)


def test_too_long_a_haystack_of_words_says_what_to_type() -> None:
    task = Ruler(haystack="needles", value_kind="words", lengths=200_000, rows=1, variants=["single"])
    with pytest.raises(InputError, match="key_kind and value_kind 'numbers' or 'uuid'"):
        rows(task)


@pytest.mark.parametrize(
    ("kind", "pattern"), [("words", r"[a-z]+-[a-z]+"), ("numbers", r"\d{7}"), ("uuid", r"[0-9a-f-]{36}")]
)
def test_keys_and_values_are_of_the_kind_asked_for(kind: str, pattern: str) -> None:
    name = {"words": "word", "numbers": "number", "uuid": "UUID"}[kind]
    for row in rows(Ruler(key_kind=kind, value_kind=kind, haystack="noise", lengths=150, rows=3)):
        assert all(re.fullmatch(pattern, text) for pair in hidden(row) for text in pair)
        assert f"Which {name}" in row["prompt"] and f"below, {name}s are" in row["prompt"]


def test_words_are_many_and_no_one_holds_another() -> None:
    assert len(WORDS) == len(set(WORDS)) > 30_000
    halves = [{word.split("-")[half] for word in WORDS} for half in (0, 1)]
    # "cedar-oak" would be in "red-cedar-oak" only if a half ended with a hyphen; halves are plain words.
    assert all(re.fullmatch(r"[a-z]+", word) for half in halves for word in half)
    ends = {(one, two) for one in halves[0] for two in halves[0] if one != two and two.endswith(one)}
    begins = {(one, two) for one in halves[1] for two in halves[1] if one != two and two.startswith(one)}
    assert not ends and not begins, "so no word of two halves is part of another"


@pytest.mark.parametrize("kind", ["digits", "threes", "spaced", "bridging", None])
@pytest.mark.parametrize("haystack", ["essay", "noise", "needles"])
def test_prompts_keep_to_their_length_by_the_tokenizer(kind: str | None, haystack: str) -> None:
    count = TokenCounter(getattr(toy_tokenizers, kind)()) if kind else token_counter(resolve("kvray-tiny"))
    made = rows(Ruler(haystack=haystack, lengths=[900, 2000], rows=2), count)
    assert [row["prompt_tokens"] for row in made] == count([row["prompt"] for row in made]).tolist()
    longest = int(count([" One number registered under mysterious-waterfall is 1234567."])[0]) + 4
    assert all(0 <= row["length"] - row["prompt_tokens"] < longest for row in made)


def test_depths_of_one_needle_come_in_eleven_steps() -> None:
    depths = Counter(row["depth"] for row in rows(Ruler(variants="single", haystack="noise", lengths=60, rows=440)))
    assert set(depths) == set(range(0, 101, 10)) and min(depths.values()) > 20


def test_a_row_is_a_pure_function_of_recipe_and_index() -> None:
    for haystack in ("essay", "needles"):
        task = Ruler(haystack=haystack, lengths=[200, 300], rows=4)
        context = task.context(count_words)
        whole = task.build(0, 32, context)
        assert whole.schema.equals(EXAMPLE_SCHEMA) and task.count(context) == 32 == task.expected_rows()
        assert pa.concat_tables([task.build(a, b, context) for a, b in ((0, 5), (5, 30), (30, 32))]).equals(whole)
        fewer = Ruler(haystack=haystack, lengths=300, rows=2, variants="multikey,multiquery")
        kept = [row for row in whole.to_pylist()[:16] if row["length"] == 300 and row["subtask"] in fewer.variants]
        assert rows(fewer) == kept
        assert rows(task.model_copy(update={"seed": 1})) != whole.to_pylist()


@pytest.mark.parametrize(
    ("answer", "references", "score", "outcome"),
    [
        ("1234567", ["1234567"], 1.0, "right"),
        ("It is 1,234,567", ["1234567"], 0.0, "wrong"),
        ("first 1234567,\n\nthen 7654321.", ["7654321", "1234567"], 1.0, "right"),
        ("1234567 and 1234567", ["7654321", "1234567"], 0.5, "partial"),
        ("1, 2, 3", ["7654321", "1234567"], 0.0, "wrong"),
        ("Amber-Falcon", ["amber-falcon"], 1.0, "right"),
        ("a b c", ["a", "b", "c", "d"], 0.75, "partial"),
        ("", ["a"], 0.0, "wrong"),
    ],
)
def test_the_score_is_the_share_of_the_values_in_the_answer(
    answer: str, references: Sequence[str], score: float, outcome: str
) -> None:
    assert Ruler().score(answer, references) == score and Ruler().outcome(answer, references) == outcome


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"variants": "single,double"}, "multikey"),
        ({"variants": []}, "at least one"),
        ({"lengths": "4096,4096"}, "each once"),
        ({"keys": 1}, "greater than or equal to 2"),
        ({"haystack": "books"}, "essay"),
    ],
)
def test_a_wrong_knob_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Ruler(**wrong)


def test_text_is_read_for_essays_alone(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read"):
        Ruler(source=missing).context(count_words)
    assert Ruler(source=missing, haystack="noise").sources() == {} and Ruler().sources() != {}
    (tmp_path / "essay.txt").write_text("It rained. It stopped.")
    (row,) = rows(Ruler(source=str(tmp_path / "essay.txt"), variants="single", lengths=60, rows=1))
    assert row["prompt"].count("It rained.") > 3
    with pytest.raises(InputError, match="lengths: found 30"):
        rows(Ruler(haystack="noise", lengths=30, rows=1))


def test_the_same_draws_are_not_trained_on_and_evaluated() -> None:
    assert "seed" in str(Ruler(lengths=300, variants="single").overlaps(Ruler(haystack="noise")))
    assert Ruler(seed=1).overlaps(Ruler()) is None
    assert Ruler().with_rows(3).expected_rows() == 16 and Ruler().distinct_questions(16) == 4


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    made = json.dumps(rows(Ruler(haystack=name, lengths=[400, 700], rows=5), token_counter(resolve("kvray-tiny"))))
    assert hashlib.sha256(made.encode()).hexdigest() == GOLDEN[name]
