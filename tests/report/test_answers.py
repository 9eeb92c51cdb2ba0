"""The answers in the page: what differs from the base comes first, every cell has some, the size keeps its limit."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import answered_sweep
import polars as pl
import pytest

from kvray.report import build
from kvray.report.page import answers
from kvray.results.snapshot import Snapshot, collect
from kvray.store.store import Store


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    store = Store(str(tmp_path_factory.mktemp("asked")))
    answered_sweep.commit(store)
    return collect(store, "asked")


def unpacked(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def held(snapshot: Snapshot) -> Any:
    (_, block) = answers.answer_by_answer(snapshot)
    assert isinstance(block, answers.Answers)
    return unpacked(block.packed)


def test_a_small_sweep_has_every_answer_with_its_prompt_once(snapshot: Snapshot) -> None:
    document = held(snapshot)
    assert len(document["answers"]["score"]) == snapshot.predictions.height == 5 * 7 * answered_sweep.QUESTIONS
    examples = document["examples"]
    assert len(examples["id"]) == len(document["prompts"]) == 7 * answered_sweep.QUESTIONS
    assert sorted(examples["prompt"]) == list(range(len(document["prompts"])))
    for evaluation, example, at in zip(examples["evaluation"], examples["id"], examples["prompt"], strict=True):
        name = document["evaluations"][evaluation]["name"]
        assert "".join(document["prompts"][at]) == answered_sweep.prompt(name, example)
    right = sum(score == 1 for score in document["answers"]["score"])
    assert right == (snapshot.predictions["score"] == 1).sum()
    assert answered_sweep.HOSTILE in document["answers"]["answer"]


@pytest.fixture
def rows(snapshot: Snapshot) -> pl.DataFrame:
    return answers._rows(snapshot.predictions)


def differs(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("score") != pl.col("base_score"))


def test_what_differs_from_the_base_comes_first_and_with_the_base(rows: pl.DataFrame) -> None:
    chosen = answers.choose(rows, 700_000)
    assert differs(chosen).height == differs(rows).height and differs(rows).height < chosen.height < rows.height
    few = answers.choose(rows, 100_000)
    base = few.filter(pl.col("model") == "base").select("evaluation", "example_id")
    assert few.join(base, on=base.columns, how="anti").height == 0
    assert few.filter(pl.col("model") != "base").select(pl.col("score") != pl.col("base_score")).to_series().all()


@pytest.mark.parametrize("size", [300_000, 1_000_000])
def test_cells_and_places_are_chosen_evenly_whatever_the_order_of_rows(rows: pl.DataFrame, size: int) -> None:
    chosen = answers.choose(rows, size)
    assert chosen.equals(answers.choose(rows.reverse(), size))
    of = ["evaluation", "model", "seed", "position"]
    available, taken = (differs(each).group_by(of).len() for each in (rows, chosen))
    counts = available.join(taken, on=of, how="left", nulls_equal=True, suffix="_in").fill_null(0)
    most = counts["len_in"].max()
    assert isinstance(most, int)
    assert all(taken >= min(all_, most - 1) for all_, taken in counts.select("len", "len_in").iter_rows())


@pytest.mark.parametrize("limit", [3_000, 12_000])
def test_a_page_keeps_its_limit_and_says_what_it_holds(
    snapshot: Snapshot, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LIMIT", limit)
    (_, block) = answers.answer_by_answer(snapshot)
    assert isinstance(block, answers.Answers)
    assert 0.3 * limit < len(block.packed) <= limit
    document = unpacked(block.packed)
    here = len(document["answers"]["score"])
    assert block.about.startswith(f"{here:,} of 1,050 scored answers are in this page")
    assert [each["all"] for each in document["evaluations"]] == [900, 150]


def test_a_prompt_is_marked_where_the_answer_stands_and_cut_far_from_it() -> None:
    gold = "Document [7](Title: Moss) It grows."
    prompt = f"{'a' * 3000}{gold}{'b' * 30_000}{gold}c"
    pieces = answers.pieces(prompt, [gold, "It grows."])
    assert pieces == ["a" * 3000, [gold], "b" * 2000, 26_000, "b" * 2000, [gold], "c"]
    short = f"before {gold} after"
    assert answers.pieces(short, [gold]) == ["before ", [gold], " after"]
    assert answers.pieces(short, []) == [short] and answers.pieces("", ["x"]) == []
    assert answers.pieces("abcdefg", ["abc", "cde", "f"]) == [["abcdef"], "g"]


def test_all_that_was_put_to_a_model_is_shown(snapshot: Snapshot) -> None:
    chosen = answers.choose(answers._rows(snapshot.predictions), 10_000)
    history = json.dumps([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}])
    asked = {"prompt": "Who?", "gold": [], "dataset": "d", "history": history, "answer_prefix": "It is"}
    prompts = dict.fromkeys(chosen.select("evaluation", "example_id").iter_rows(), asked)
    (said,) = {"".join(each) for each in answers.document(snapshot, chosen, prompts)["prompts"]}
    assert said == "system: Be brief.\n\nuser: Hi.\n\nuser: Who?\n\nassistant: It is \u2026"


def test_numbers_of_the_page_lead_to_their_answers_and_of_markdown_do_not(snapshot: Snapshot, tmp_path: Path) -> None:
    paths = build.write(snapshot.store, "asked", tmp_path)
    for link in (
        "#answers?evaluation=mdqa20&amp;model=ours",
        "#answers?evaluation=mdqa20&amp;model=base&amp;position=20",
        "#answers?evaluation=mdqa20&amp;model=ours&amp;beside=won",
    ):
        assert f'<a href="{link}">' in paths.page
    markdown = Path(paths.markdown).read_text()
    assert "#answers" not in markdown and "kvray show asked --wrong" in markdown
    without = build.write(
        snapshot.store, "asked", tmp_path, [each for each in build.SECTIONS if each != answers.answer_by_answer]
    )
    assert '"#answers' not in without.page and "answers-data" not in without.page


def test_half_right_answers_and_unanswered_rows_do_not_confuse(snapshot: Snapshot) -> None:
    part = snapshot.predictions.with_columns(
        score=pl.when(pl.col("evaluation") == "recall").then(pl.col("score") * 0.5).otherwise(pl.col("score")),
        answer=pl.when(pl.col("position") == 1).then(None).otherwise(pl.col("answer")),
    )
    rows = answers._rows(part)
    assert rows.height == part.height - 5 * answered_sweep.QUESTIONS
    document = answers.document(snapshot, answers.choose(rows, 10_000_000), {})
    assert set(document["examples"]["prompt"]) == {None}
    assert {score for score in document["answers"]["score"]} == {0.0, 0.5, 1.0}
