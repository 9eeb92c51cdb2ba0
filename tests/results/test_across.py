"""Two sweeps side by side: what is shared, who is whose partner, and statistics that are those within one sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from made_sweeps import cell, commit_artefact, commit_sweep

from kvray.errors import InputError
from kvray.results import frames, stats
from kvray.results.across.compare import SAME, SAME_RECIPE, WHOLE, Comparison, compare
from kvray.results.across.pairing import ALONE, BY_HAND, SAME_FINETUNE
from kvray.store.store import Store

MIXTURES = ("ours", "mdqa")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Sweeps of one store: two seeds each of two mixtures; the second one's are others, the third's overlap."""
    found = Store(str(tmp_path_factory.mktemp("both") / "here"))
    commit_sweep(found, "first", mixtures=MIXTURES, questions=30)
    commit_sweep(found, "second", mixtures=MIXTURES, seeds=(2, 3), questions=30)
    commit_sweep(found, "third", mixtures=MIXTURES, seeds=(1, 2), questions=30)
    return found


def plan(store: Store, sweep: str) -> dict[str, Any]:
    return dict(json.loads(store.read_document(f"sweeps/{sweep}.json") or b""))


def replan(store: Store, sweep: str, name: str, **labels: dict[str, str]) -> None:
    """Write a sweep's plan under another name, with some labels called otherwise."""
    document = plan(store, sweep) | {"name": name}
    for artefact in document["artefacts"]:
        for label, other in labels.items():
            if artefact["labels"].get(label) in other:
                artefact["labels"][label] = other[artefact["labels"][label]]
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())


def overall(compared: Comparison, model: str, evaluation: str = "mdqa20") -> dict[str, Any]:
    rows = compared.overall.filter((pl.col("evaluation") == evaluation) & (pl.col("a") == model))
    (row,) = rows.to_dicts()
    return dict(row)


def test_each_model_is_compared_with_its_partner_on_the_same_examples(store: Store) -> None:
    compared = compare((store, "first"), (store, "second"))
    both = {}
    for sweep, seeds in (("first", (0, 1)), ("second", (2, 3))):
        rows = pa.concat_tables([cell("mdqa20", "ours", seed, questions=30) for seed in seeds])
        means = pl.DataFrame(rows).group_by("example_id").agg(pl.col("score").mean())
        both[sweep] = means.sort("example_id")["score"].to_numpy()
    row = overall(compared, "ours")
    assert row["difference"] == pytest.approx(np.mean(both["second"] - both["first"]))
    assert (row["n"], row["questions"], row["seeds_a"], row["seeds_b"]) == (180, 30, 2, 2)
    assert (row["test"], row["about"]) == ("crossed", frames.MIXTURES)
    assert row["low"] < row["difference"] < row["high"]


def test_the_other_way_round_every_number_changes_its_sign(store: Store) -> None:
    there, back = (compare((store, a), (store, b)) for a, b in (("first", "second"), ("second", "first")))
    for one, other in zip(there.tested.to_dicts(), back.tested.to_dicts(), strict=True):
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["low"] == pytest.approx(-other["high"], abs=0.02)
        assert one["p"] == pytest.approx(other["p"])


def test_what_both_have_is_not_tested_and_costs_the_others_nothing(store: Store) -> None:
    compared = compare((store, "first"), (store, "second"))
    base = overall(compared, "base")
    assert base["verdict"] == SAME and base["p"] is None and base["about"] is None
    assert base["a_accuracy"] == base["b_accuracy"]
    tested = compared.tested
    assert tested.height == 4
    assert tested["p_holm"].to_list() == pytest.approx(list(stats.holm(tested["p"].to_numpy())))


def test_finetunes_that_share_some_seeds_have_one_recipe_and_no_test(store: Store) -> None:
    compared = compare((store, "first"), (store, "third"))
    assert overall(compared, "ours")["verdict"] == SAME_RECIPE
    assert overall(compared, "ours")["p"] is None and compared.tested.height == 0


def test_a_shared_evaluation_is_split_by_position_with_a_correction_of_its_own(store: Store) -> None:
    compared = compare((store, "first"), (store, "second"))
    split = compared.table.filter(pl.col("family") == "by position")
    assert split.height == 2 * 6
    assert split["p_holm"].to_list() == pytest.approx(list(stats.holm(split["p"].to_numpy())))
    ours = split.filter(pl.col("a") == "ours")
    assert ours["position"].to_list() == sorted(ours["position"])
    assert ours["difference"].mean() == pytest.approx(overall(compared, "ours")["difference"])


def test_one_name_in_two_stores_is_told_apart_by_the_store(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "there"))
    commit_sweep(other, "first", mixtures=MIXTURES, seeds=(4,), questions=30)
    compared = compare((store, "first"), (other, "first"))
    assert compared.names == ("first (here)", "first (there)")
    assert overall(compared, "base")["verdict"] == SAME, "an artefact is the same in whichever store it lies"
    assert overall(compared, "ours")["about"] == frames.FINETUNES, "one side has one seed"


def test_a_copy_of_a_store_has_nothing_to_test(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "here"))
    commit_sweep(other, "first", mixtures=MIXTURES, questions=30)
    compared = compare((store, "first"), (other, "first"))
    assert set(compared.overall["verdict"]) == {SAME} and compared.settings == [] and compared.apart == []
    assert compared.names == ("first (store 1)", "first (store 2)")


def test_models_without_a_partner_are_listed_and_can_be_paired_by_hand(store: Store) -> None:
    replan(store, "second", "renamed", mixture={"ours": "theirs [rows=7]"})
    compared = compare((store, "first"), (store, "renamed"))
    assert {each.what for each in compared.apart} == {"ours", "theirs [rows=7]"}
    assert "ours" not in compared.overall["a"]
    paired = compare((store, "first"), (store, "renamed"), ["ours=theirs [rows=7]"])
    assert (paired.apart, paired.pairs[1].why) == ([], BY_HAND)
    named = compare((store, "first"), (store, "second"))
    assert overall(paired, "ours")["p"] == overall(named, "ours")["p"]
    crosswise = compare((store, "first"), (store, "second"), [("ours", "mdqa")])
    assert {each.what: each.why for each in crosswise.apart} == {
        "mdqa": "a model of the first sweep alone",
        "ours": "a model of the second sweep alone",
    }


def test_a_finetune_under_another_name_and_the_only_ones_are_partners(store: Store, tmp_path: Path) -> None:
    replan(store, "first", "again", mixture={"ours": "mine"})
    compared = compare((store, "first"), (store, "again"))
    assert [(one.name, one.why) for one in compared.pairs if one.why] == [("ours → mine", SAME_FINETUNE)]
    assert set(compared.overall["verdict"]) == {SAME}
    for at, mixture in enumerate(MIXTURES):
        commit_sweep(Store(str(tmp_path)), mixture, mixtures=[mixture], seeds=(at,), questions=12)
    single = compare((Store(str(tmp_path)), "ours"), (Store(str(tmp_path)), "mdqa"))
    assert [(one.name, one.why) for one in single.pairs] == [("base", ""), ("ours → mdqa", ALONE)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["ourz=ours"], "did you mean 'ours'"),
        (["ours=theirs"], "a model of the second sweep, second: base, ours, mdqa"),
        (["ours"], "expected MODEL=OTHER"),
        (["ours=ours", "ours=mdqa"], "twice"),
    ],
)
def test_a_pair_that_is_none_is_refused(store: Store, asked: Sequence[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        compare((store, "first"), (store, "second"), asked)


def test_a_sweep_is_not_compared_with_itself_nor_with_one_that_is_not_there(store: Store) -> None:
    with pytest.raises(InputError, match="twice"):
        compare((store, "first"), (store, "first"))
    with pytest.raises(InputError, match="it has"):
        compare((store, "first"), (store, "fourth"))


def test_cells_that_one_side_lacks_are_listed_and_the_names_are_those_of_the_plan(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    commit_sweep(store, "first", mixtures=MIXTURES, questions=12)
    commit_sweep(store, "second", mixtures=MIXTURES, seeds=(2, 3), questions=12, skip=["recall-ours", "mdqa20-mdqa"])
    compared = compare((store, "first"), (store, "second"))
    assert [(each.what, each.why) for each in compared.apart] == [
        ("mdqa on mdqa20", "no predictions in the second sweep"),
        ("ours on recall", "no predictions in the second sweep"),
    ]
    assert compared.overall.height == 4


def test_nothing_in_common_is_an_error_that_says_why(tmp_path: Path) -> None:
    store, other = Store(str(tmp_path / "one")), Store(str(tmp_path / "two"))
    commit_sweep(store, "first", mixtures=MIXTURES, questions=12)
    commit_sweep(other, "second", mixtures=MIXTURES, questions=12, skip=["predictions/"])
    with pytest.raises(InputError, match="no predictions in the second sweep yet"):
        compare((store, "first"), (other, "second"))


def asked(questions: Sequence[str], positions: Sequence[int]) -> pa.Table:
    rows = [
        {
            "example_id": f"q{at}@{position}",
            "question_id": f"q{at}",
            "prompt": f"{question} at {position}",
            "references": ["Ada"],
        }
        for at, question in enumerate(questions)
        for position in positions
    ]
    return pa.Table.from_pylist(rows)


def small(store: Store, name: str, dataset: pa.Table, right: float, evaluation: str = "ask", **recipe: object) -> None:
    """Commit a sweep whose base model answers a dataset; a share of its answers is right."""
    planned: list[dict[str, Any]] = []
    data = commit_artefact(
        store, planned, "dataset", f"data-{name}", [], {"dataset": evaluation, "role": "evaluate"}, dataset, method="x"
    )
    table = cell("mdqa20", questions=1).slice(0, 1).to_pylist()[0]
    rows = [
        {**table, "example_id": row["example_id"], "question_id": row["question_id"], "position": None}
        | {"evaluation": evaluation, "score": float(at < right * dataset.num_rows)}
        for at, row in enumerate(dataset.to_pylist())
    ]
    labels = {"evaluation": evaluation, "mixture": None, "finetune": None, "seed": None}
    made = pa.Table.from_pylist(rows, schema=cell("mdqa20", questions=1).schema)
    commit_artefact(store, planned, "predictions", f"base-{name}", [data], labels, made, method="x")
    document = {"format": 1, "name": name, "base_model": "kvray-tiny", "sweep": recipe, "artefacts": planned}
    store.write_document(f"sweeps/{name}.json", json.dumps(document).encode())


def test_of_different_datasets_only_equal_examples_are_paired(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    questions = [f"Who is {at}?" for at in range(10)]
    small(store, "many", asked(questions, (1, 2)), 0.5)
    small(store, "few", asked([*questions[:6], *("another" for _ in range(4))], (2, 3)), 1.0)
    small(store, "none", asked(["something else"] * 10, (1, 2)), 1.0)
    compared = compare((store, "many"), (store, "few"))
    assert compared.evaluations[0].note == "the datasets differ; 6 of 20 examples are the same in both"
    row = overall(compared, "base", "ask")
    assert (row["n"], row["questions"]) == (6, 6), "same ids, but other prompts, are other examples"
    with pytest.raises(InputError, match="no example has the same id, prompt and accepted answers"):
        compare((store, "many"), (store, "none"))


def test_one_dataset_is_one_evaluation_whatever_it_is_called(tmp_path: Path, store: Store) -> None:
    replan(store, "second", "called", evaluation={"mdqa20": "documents"})
    compared = compare((store, "first"), (store, "called"))
    assert [each.note for each in compared.evaluations] == ["called documents in the second sweep", ""]
    assert overall(compared, "ours")["n"] == 180


def test_settings_that_differ_are_listed_and_those_that_change_no_result_are_not(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    table = asked(["Who?", "What?"], (1,))
    settings = {"datasets": {}, "finetune": {"learning_rate": 0.003, "seeds": [0]}, "runtime": {"engines": 1}}
    others = {"finetune": {"learning_rate": 0.001, "seeds": [0, 1]}, "runtime": {"engines": 2}}
    small(store, "a", table, 0.5, **settings)
    small(store, "b", table, 0.5, **others, datasets={"more": {"rows": 5}})
    found = {each.name: (each.first, each.second) for each in compare((store, "a"), (store, "b")).settings}
    assert found.pop("evaluate.ask: label") == ('"data-a"', '"data-b"'), "a recipe differs behind equal settings"
    assert found == {
        "finetune.learning_rate": ("0.003", "0.001"),
        "finetune.seeds": ("[0]", "[0, 1]"),
        "datasets.more": ("(absent)", '{"rows": 5}'),
    }


def test_the_table_names_whole_evaluations_first(store: Store) -> None:
    families = compare((store, "first"), (store, "second")).table["family"].unique(maintain_order=True).to_list()
    assert families == [WHOLE, "by position"]
