"""IN2: lengths and kinds as asked for, every prompt within its length, the answer in its own segments alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kvray.errors import InputError, InvalidValueError, KvrayError
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks import world
from kvray.tasks.in2.corpus import cut, from_rows, prompt_of, windows
from kvray.tasks.in2.fill import LAYOUT, Draft, Segment, fill
from kvray.tasks.in2.in2 import In2
from kvray.tasks.qa.mdqa import Mdqa
from kvray.tasks.qa.questions import normalise
from kvray.tasks.qa.recall import Recall

COUNT = token_counter(resolve("kvray-tiny"))
SMALL = {"segment_tokens": 40, "length_min": 200, "length_max": 420}
TINY = In2(rows=240, integration_share=0.4, short_share=0.2, **SMALL)
GOLDEN = {
    "tiny": "b0f9c6f6d9efd55cf5dae82ba9ff7d8d7f322497dace67f4546aa2e5665d622b",
    "rows": "ddbc4f14162c9d64916b8a855db1e16057b8e4c4933cbf0a6a2ae35657ecf820",
    "written": "cbda92463a41a81436c0c9e719f45f3fe4149f875a408bcf6de39a4ab14b6548",
}
_FACT = re.compile(r"The (\w+) of (\w+ \w+) is (\w+)\.")


def words(texts: Sequence[str]) -> np.ndarray:
    """Count words: a tokenizer whose counts one can check by eye."""
    return np.array([len(text.split()) for text in texts], np.int64)


def make(task: In2, written: Sequence[str] | None = None) -> list[dict[str, Any]]:
    table = task.build(0, task.rows, task.context(COUNT, written))
    assert table.schema.equals(EXAMPLE_SCHEMA)
    return table.to_pylist()


def segments_of(prompt: str) -> list[str]:
    before, _, after = LAYOUT.partition("{context}")
    assert prompt.startswith(before)
    context, _, _ = prompt.removeprefix(before).partition(after.partition("{question}")[0])
    return context.split("\n")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return make(TINY)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A corpus of 30 texts, each of 40 sentences of their own."""
    home = tmp_path_factory.mktemp("corpus")
    for text in range(30):
        lines = [
            f"In year {1000 + n} the mill of village {text} ground {text * 100 + n} sacks of flour." for n in range(40)
        ]
        (home / f"{text:02d}.txt").write_text("\n".join(lines))
    return str(home)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 questions on one segment, 20 on two, 40 segments without a question."""
    path = tmp_path_factory.mktemp("own") / "own.jsonl"
    found: list[dict[str, Any]] = []
    for n in range(60):
        found.append({"text": f"The keeper of lighthouse {n} is Keeper{n:02d} Ford.", "question": f"Who keeps {n}?"})
        found[-1]["answer"] = f"Keeper{n:02d} Ford"
    for n in range(20):
        pieces = [f"Ship {n} sails to Port{n:02d}.", f"Port{n:02d} lies on the coast of Land{n:02d}."]
        found.append({"segments": pieces, "question": f"To which land sails ship {n}?", "answer": f"To Land{n:02d}."})
        found[-1]["references"] = [f"Land{n:02d}"]
    found += [{"text": f"Nobody asks about stone {n} by the road."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def test_a_prompt_is_within_its_length_and_within_one_segment_of_it(rows: list[dict[str, Any]]) -> None:
    counted = COUNT([row["prompt"] for row in rows]).tolist()
    for row, tokens in zip(rows, counted, strict=True):
        assert row["prompt_tokens"] == tokens
        if row["subtask"] != "short":
            assert row["length"] - SMALL["segment_tokens"] - 1 <= tokens <= row["length"]
            assert SMALL["length_min"] <= row["length"] <= SMALL["length_max"]


@pytest.mark.parametrize("seed", range(4))
def test_lengths_and_kinds_are_spread_evenly_and_together(seed: int) -> None:
    task = In2(seed=seed)
    short, integration, lengths = task.kinds(task.rows)
    assert abs(short.sum() - 70) <= 4
    assert abs(integration.sum() - 0.214 * 700) <= 4
    assert abs((short & integration).sum() - 15) <= 5
    for of in (~short, integration & ~short, ~integration & ~short):
        drawn = np.sort(lengths[of])
        even = np.linspace(1024, 4000, len(drawn))
        # Kolmogorov's distance: 700 independent draws would be about 0.03 to 0.05 away.
        assert np.abs(drawn - even).max() / (4000 - 1024) < (0.02 if len(drawn) > 500 else 0.05)
    # Fewer rows are the first of more.
    for fewer, more in zip(task.kinds(50), (short, integration, lengths), strict=True):
        assert (fewer == more[:50]).all()


def test_shares_of_nothing_and_of_all() -> None:
    assert not In2(short_share=0).kinds(1000)[0].any()
    assert In2(short_share=1).kinds(1000)[0].all()
    assert {row["subtask"] for row in make(In2(rows=9, short_share=0, integration_share=1, **SMALL))} == {"integration"}
    assert {row["subtask"] for row in make(In2(rows=9, short_share=1, **SMALL))} == {"short"}


def test_short_rows_hold_their_own_segments_alone(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["subtask"] == "short":
            assert row["length"] is None and row["units"] in (1, 2)
            names = re.findall(r"[A-Z]\w+ [A-Z]\w+", row["answer"].replace("The ", ""))
            for segment in segments_of(row["prompt"]):
                assert any(name in segment for name in names)


def test_the_facts_of_an_answer_stand_once_and_their_values_nowhere_else(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        segments = segments_of(row["prompt"])
        assert row["units"] == len(segments)
        told = [(at, fact) for at, segment in enumerate(segments) for fact in _FACT.findall(segment)]
        asked = _FACT.findall(row["answer"] + ".")
        assert len(asked) == {"fine_grained": 1, "integration": 2}.get(row["subtask"], len(segments))
        golds = [at for at, fact in told if fact in asked]
        assert len(golds) == len(set(golds)) == len(asked)
        values = {(relation, value) for relation, _, value in asked}
        assert all(fact in asked for _, fact in told if (fact[0], fact[2]) in values)
        # Every person stands in one passage: two facts, in one segment.
        of_people: dict[str, list[int]] = {}
        for at, (_, name, _) in told:
            of_people.setdefault(name, []).append(at)
        assert all(len(ats) == 2 and ats[0] == ats[1] for ats in of_people.values())
        assert {name for _, name, _ in asked} <= set(of_people)


def test_every_row_asks_about_something_else_and_any_segment_may_hold_it(rows: list[dict[str, Any]]) -> None:
    assert len({row["question_id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    many = make(In2(rows=300, integration_share=0, short_share=0, **SMALL))
    places = []
    for row in many:
        segments = segments_of(row["prompt"])
        (at,) = [n for n, segment in enumerate(segments) if row["answer"] + "." in segment]
        places.append((at + 0.5) / len(segments))
    counts = np.histogram(places, 4, (0, 1))[0]
    assert counts.min() > 50 and counts.max() < 100
    first = [row["prompt"].count(row["answer"] + ". The") for row in many]
    assert sum(first) > 60


def test_two_segments_of_an_integration_question_stand_apart() -> None:
    gaps = []
    for row in make(
        In2(rows=100, integration_share=1, short_share=0, segment_tokens=40, length_min=600, length_max=800)
    ):
        segments = segments_of(row["prompt"])
        facts = [f"The {' of '.join(fact[:2])} is {fact[2]}." for fact in _FACT.findall(row["answer"] + ".")]
        at = [next(n for n, segment in enumerate(segments) if fact in segment) for fact in facts]
        gaps.append(abs(at[0] - at[1]) / len(segments))
    # Two of n places at random are n/3 apart.
    assert 0.26 < np.mean(gaps) < 0.40


def test_conclusions_are_right_and_balanced() -> None:
    both = same = different = first = second = 0
    for row in make(In2(rows=400, integration_share=1, short_share=1, **SMALL)):
        (_, one, x), (_, two, y) = _FACT.findall(row["answer"] + ".")
        question = row["prompt"].rpartition("\n")[2]
        if "They are" in question:
            assert row["references"] == ["They are the same" if x == y else "They are different"]
            same, different = same + (x == y), different + (x != y)
        elif "It is" in question:
            asked = re.findall(r"Who has the \w+ (\w+),", question)[0]
            assert x != y and row["references"] == [f"It is {one if asked == x else two}"]
            first, second = first + (asked == x), second + (asked == y)
        else:
            assert row["references"] == [x, y]
            both += 1
        assert TINY.score(row["answer"], row["references"]) == 1.0
    assert min(both, same + different, first + second) > 100
    assert min(same, different, first, second) > 40


def test_an_answer_scores_if_it_holds_every_part_in_its_first_line() -> None:
    score = TINY.score
    assert score("The trade of Al is Law, the emblem of Bo is a Bear.", ["law", "bear"]) == 1.0
    assert score("The trade of Al is law.", ["law", "bear"]) == 0.0
    assert score("law\nbear", ["law", "bear"]) == 0.0
    assert score("\n law, bear", ["law", "bear"]) == 1.0


def test_people_of_training_and_test_differ() -> None:
    def people(task: In2) -> set[str]:
        return {name for row in make(task) for _, name, _ in _FACT.findall(row["prompt"])}

    train, test = people(In2(rows=20, **SMALL)), people(In2(rows=20, split="test", **SMALL))
    assert train <= {world.name_of("train", n) for n in range(world.group_size("train"))}
    assert not train & test


def test_overlaps_are_told_by_people_or_source(own: str) -> None:
    assert In2().overlaps(Mdqa(split="test")) is None
    assert In2().overlaps(Recall()) is None
    assert In2().overlaps(In2(split="test", seed=1)) is None
    assert "people" in str(In2().overlaps(In2(seed=1)))
    assert "people" in str(In2(split="test").overlaps(Mdqa(split="test")))
    assert "source" in str(In2(source=own).overlaps(In2(source=own, seed=1)))
    assert In2(source=own).overlaps(In2()) is None


def test_rows_do_not_hang_on_how_many_there_are_or_which_are_asked_for(rows: list[dict[str, Any]]) -> None:
    fewer = TINY.model_copy(update={"rows": 30})
    assert fewer.build(20, 30, fewer.context(COUNT)).to_pylist() == rows[20:30]


def test_lengths_that_cannot_be_met_say_what_to_change() -> None:
    with pytest.raises(InputError, match=r"length_min: a prompt of .* raise length_min, or lower segment_tokens"):
        make(In2(rows=9, length_min=100, length_max=120))
    with pytest.raises(InputError, match=r"segment_tokens: found 16; a passage .* expected at least that"):
        task = In2(rows=3, segment_tokens=16, length_min=200, length_max=300)
        task.build(0, 3, task.context(lambda texts: 2 * COUNT(texts)))
    with pytest.raises(InvalidValueError, match="length_max: found 500; expected at least length_min, 1024"):
        In2(length_max=500)
    with pytest.raises(InvalidValueError, match="question_writer: it writes on a corpus"):
        In2(question_writer="kvray-tiny")


# Filling


def draft(fillers: Sequence[str], gold: str = "the gold one") -> Draft:
    made = [Segment(text, len(text.split())) for text in fillers]
    return Draft("Which?", "gold", ("gold",), (Segment(gold, 3),), made, np.arange(len(made) + 1, dtype=np.uint64))


EMPTY = len(LAYOUT.format(context="", question="Which?").split())


@pytest.mark.parametrize("length", range(EMPTY + 3, EMPTY + 40))
def test_as_many_segments_as_fit_are_taken(length: int) -> None:
    filled = fill(draft(["four words in it"] * 20), length, words)
    assert filled.prompt_tokens == words([filled.prompt])[0] <= length
    assert filled.units == 1 + (length - EMPTY - 3) // 4


def test_segments_counted_too_low_or_too_high_are_settled_by_the_whole_prompt() -> None:
    text = "four words in it"
    for error in (-3, 3):
        made = [Segment(text, 4 + error)] * 60
        filled = fill(
            Draft("Which?", "", (), (Segment("gold", 1),), made, np.arange(61, dtype=np.uint64)), EMPTY + 101, words
        )
        assert EMPTY + 101 - 4 - 3 - 1 <= filled.prompt_tokens <= EMPTY + 101


def test_fillers_that_run_out_are_an_error() -> None:
    with pytest.raises(InputError, match=r"length_max: .* give a longer source"):
        fill(draft(["one two three four"] * 3), EMPTY + 40, words)


# Segments


def test_a_text_is_cut_at_sentences_ends_where_they_fit() -> None:
    text = "One two three. Four five! Six seven eight nine?\n\nTen (eleven.) Twelve."
    assert list(cut(text, 5, words)) == ["One two three. Four five!", "Six seven eight nine?", "Ten (eleven.) Twelve."]
    # A sentence that is longer is cut between its words.
    assert list(cut(text, 3, words)) == [
        "One two three.",
        "Four five! Six",
        "seven eight nine?",
        "Ten (eleven.) Twelve.",
    ]
    assert list(cut("  \n ", 3, words)) == []


@pytest.mark.parametrize("limit", [3, 8, 50])
@pytest.mark.parametrize(
    "text",
    ["word " * 300, "x" * 900, "Straße 日本語の文章。次の文です。" * 20, "A. B. C. " * 90 + "end", "é\u200b" * 77],
)
def test_segments_are_within_the_limit_and_lose_nothing(text: str, limit: int) -> None:
    segments = list(cut(text, limit, COUNT))
    assert COUNT(segments).max() <= limit
    assert "".join("".join(segments).split()) == "".join(text.split())


def test_a_segment_that_is_more_tokens_than_its_pieces_is_cut_again() -> None:
    def dear(texts: Sequence[str]) -> np.ndarray:
        return words(texts) ** 2

    assert all(dear([segment])[0] <= 9 for segment in cut("one two. three. four. five six seven.", 9, dear))


def test_runs_of_neighbours_do_not_overlap_or_cross_texts() -> None:
    by_text = [["a"] * 7, ["b"], [], ["c"] * 40]
    runs = windows(by_text, 4, 1)
    assert all(run == tuple(range(run[0], run[-1] + 1)) and 2 <= len(run) <= 4 for run in runs)
    assert all(run[-1] < 7 or run[0] >= 8 for run in runs)
    flat = [at for run in runs for at in run]
    assert len(flat) == len(set(flat)) >= 44
    assert {len(run) for run in runs} == {2, 3, 4}


# Questions of a file


def test_a_file_brings_its_own_questions(own: str) -> None:
    task = In2(
        rows=60, source=own, integration_share=0.25, short_share=0.1, segment_tokens=40, length_min=160, length_max=300
    )
    made = make(task)
    assert {row["subtask"] for row in made} == {"fine_grained", "integration", "short"}
    assert len({row["prompt"].rpartition("\n")[2] for row in made}) == 60  # no question twice
    for row in made:
        segments = segments_of(row["prompt"])
        assert len(set(segments)) == len(segments) == row["units"]
        holding = [segment for segment in segments if normalise(row["references"][0]) in normalise(segment)]
        assert len(holding) == 1
        if row["answer"].startswith("To "):
            assert any(f"to Port{row['references'][0][-2:]}." in segment for segment in segments)


def test_too_few_questions_of_a_kind_are_told_with_both_numbers(own: str) -> None:
    with pytest.raises(InputError, match=r"ask \d+ on several segments \(integration\); .* has 20 questions"):
        In2(rows=60, source=own, integration_share=0.5).context(COUNT)
    with pytest.raises(InputError, match=r"ask 70 on one segment \(fine-grained\); .* has 60 questions"):
        In2(rows=70, source=own, integration_share=0).context(COUNT)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Who?", "answer": "I"}, "no 'text' or 'segments'; found the fields question, answer"),
        ({"text": "a", "question": "Who?"}, "'question' and 'answer' must be texts; found 'Who\\?' and None"),
        ({"text": "a", "question": "Who?", "answer": "I", "references": "I"}, "'references' must be a list of texts"),
        ({"segments": ["a", ""], "question": "Who?", "answer": "I"}, "no 'text' or 'segments'"),
    ],
)
def test_a_row_that_lacks_something_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"x\.jsonl: row 2: {message}"):
        from_rows(str(path), 40, COUNT)


def test_a_text_longer_than_a_segment_makes_an_integration_question(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = {"text": "One two three four. Five six seven eight.", "question": "Which?", "answer": "Six"}
    path.write_text(json.dumps(row) + "\n")
    segments, (asked,) = from_rows(str(path), 4, words)
    assert [segments[at] for at in asked.segments] == ["One two three four.", "Five six seven eight."]


# Questions that a model writes


def writer_task(corpus: str, **changes: Any) -> In2:
    shape = {"rows": 40, "integration_share": 0.3, "segment_tokens": 60, "length_min": 400, "length_max": 700}
    return In2(source=corpus, question_writer="some/model", **{**shape, **changes})


def test_prompts_hold_segments_of_one_text_and_are_more_than_needed(corpus: str) -> None:
    task = writer_task(corpus)
    prompts = task.to_write(COUNT)
    several = int(task.kinds(40)[1].sum())
    assert len(prompts) == -(-3 * (40 - several) // 2) + -(-3 * several // 2)
    assert len(set(prompts)) == len(prompts)
    assert prompts == task.to_write(COUNT)
    for number, prompt in enumerate(prompts):
        villages = set(re.findall(r"mill of village (\d+)", prompt))
        pieces = re.findall(r"^Piece \d+:$", prompt, re.MULTILINE)
        assert len(villages) == 1
        assert (2 <= len(pieces) <= 4) if number >= -(-3 * (40 - several) // 2) else not pieces
        assert prompt.endswith("Question: <the question>\nAnswer: <the answer>")


def replies_to(prompts: Sequence[str]) -> list[str]:
    return [
        f"**Question:** Which sacks came {n}th?\n**Answer:** The last of {re.findall('ground ([0-9]+)', prompt)[-1]}."
        for n, prompt in enumerate(prompts)
    ]


def test_usable_replies_are_taken_in_order_and_asked_of_their_own_segments(corpus: str) -> None:
    task = writer_task(corpus)
    prompts = task.to_write(COUNT)
    replies = replies_to(prompts)
    spoilt = [
        "",
        "Question: Who?",
        f"Question: Who?\nAnswer: {'very ' * 400}long.",
        "Question: Who, in the text?\nAnswer: A.",
    ]
    for number, reply in zip((0, 2, 3, len(replies) - 1), spoilt, strict=True):
        replies[number] = reply
    assert task.count(task.context(COUNT)) == 40
    made = make(task, replies)
    asked = [int(re.findall(r"came (\d+)th", row["prompt"])[0]) for row in made]
    # Rows are dealt by kind, and each kind takes its own replies from the first on.
    _, integration, _ = task.kinds(40)
    fine = sorted(set(range(len(prompts))) - {0, 2, 3})
    border = sum("Piece 1" not in prompt for prompt in prompts)
    assert [n for n, several in zip(asked, integration, strict=True) if not several] == fine[
        : 40 - int(integration.sum())
    ]
    assert [n for n, several in zip(asked, integration, strict=True) if several] == [
        *range(border, border + int(integration.sum()))
    ]
    for row, number in zip(made, asked, strict=True):
        segments = segments_of(row["prompt"])
        gold = [segment for segment in segments if segment in prompts[number]]
        assert prompt_of([segment for segment in gold]) == prompts[number] or len(gold) > 1
        assert len(gold) == max(1, prompts[number].count("Piece "))
        assert row["subtask"] != "short" or len(gold) == len(segments)
        assert row["references"] == [row["answer"]]


def test_too_few_usable_replies_are_an_error_that_counts_them(corpus: str) -> None:
    task = writer_task(corpus)
    prompts = task.to_write(COUNT)
    replies = replies_to(prompts)
    with pytest.raises(
        InputError, match=r"fine-grained questions: some/model wrote 0 .* in \d+ replies; \d+ are needed"
    ):
        task.context(COUNT, [""] * len(prompts))
    border = sum("Piece 1" not in prompt for prompt in prompts)
    with pytest.raises(InputError, match="integration questions: some/model wrote 1 "):
        task.context(COUNT, [*replies[: border + 1], *[""] * (len(prompts) - border - 1)])
    with pytest.raises(KvrayError, match=r"\d+ replies to \d+ prompts"):
        task.context(COUNT, replies[:-1])


def test_a_corpus_too_short_for_its_questions_is_told_with_both_numbers(corpus: str) -> None:
    with pytest.raises(InputError, match=r"ask about \d+ (segments|runs of neighbouring segments); .* has \d+"):
        writer_task(corpus, rows=3000).to_write(COUNT)


def test_a_tiny_task_asks_nothing_to_be_written() -> None:
    assert In2().writer() is None and In2().to_write(COUNT) == []


def test_golden_bytes(corpus: str, own: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    task = writer_task(corpus)
    made = {
        "tiny": make(TINY),
        "rows": make(
            In2(rows=60, source=own, integration_share=0.25, segment_tokens=40, length_min=160, length_max=300)
        ),
        "written": make(task, replies_to(task.to_write(COUNT))),
    }
    assert {name: hashlib.sha256(json.dumps(found).encode()).hexdigest() for name, found in made.items()} == GOLDEN


def test_examples_are_a_table_of_the_shared_columns() -> None:
    table = TINY.build(3, 5, TINY.context(COUNT))
    assert isinstance(table, pa.Table) and table["example_id"].to_pylist() == ["in2-0000003", "in2-0000004"]
