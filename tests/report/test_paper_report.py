"""A report over every kind of evaluation: what is drawn, what stands beside it, and what it says of its data."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paper_store
import polars as pl
import pytest

from kvray.report import build, methods
from kvray.report.blocks import Text
from kvray.store.store import Store

MINUS = "\u2212"
EVALUATIONS = ("mdqa-20", "mdqa-20-retrieved", "mdqa-closed", "mdqa-oracle", "flenqa-direct", "needle", "gsm8k", "mmlu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(str(tmp_path_factory.mktemp("paper")))
    paper_store.commit(made, questions=24, mixtures=("kv-template", "in2"), evaluations=EVALUATIONS)
    return made


@pytest.fixture(scope="module")
def written(store: Store) -> build.Paths:
    return build.write(store, "paper")


@pytest.fixture(scope="module")
def text(written: build.Paths) -> str:
    return Path(written.markdown).read_text()


def section(text: str, title: str) -> str:
    """Return what stands under a heading of level 2."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, title
    return found.group(1)


def test_each_kind_has_its_figure(written: build.Paths, text: str) -> None:
    names = {Path(path).stem for path in written.figures}
    assert names == {
        "accuracy-by-position-mdqa-20",
        "accuracy-by-position-mdqa-20-retrieved",
        "accuracy-by-length-flenqa-direct",
        "recovered-by-position-mdqa-20",
        "recovered-by-position-mdqa-20-retrieved",
        "heatmap-needle",
        "heatmap-change-needle",
        "answers-mdqa-closed",
        "answers-flenqa-direct",
        "benchmark-change",
        "knowledge-change",
        "gain-against-loss-mdqa-20-mdqa-closed",
        "gain-against-loss-mdqa-20-retrieved-mdqa-closed",
        "gain-against-loss-needle-mdqa-closed",
    }
    for name in names:
        assert f"figures/{name}.png" in text


def test_benchmarks_are_one_table_with_published_rows_under_ours(text: str) -> None:
    part = section(text, "General benchmarks")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
    assert rows[0] == ["model", "from", "gsm8k", "mmlu"]
    at = next(i for i, row in enumerate(rows) if row[0] == "**kv-template**")
    assert rows[at][1] == "here"
    assert re.match(rf"\d+\.\d \([+{MINUS}]?\d+\.\d\)", rows[at][2])
    published = ["", "*Xiong et al. 2024, Mistral-7B-Instruct-v0.1*", f"*34.34 ({MINUS}0.31)*", "*53.44 (+0.02)*"]
    assert rows[at + 1] == published
    assert "mmlu" not in section(text, "Finetunes compared").split("### Finetunes against each other")[0]


def test_published_changes_stand_beside_ours_cell_by_cell(text: str, written: build.Paths) -> None:
    part = section(text, "Beside the published numbers")
    scores = pl.read_parquet(written.scores)
    of = (pl.col("evaluation") == "mdqa-20") & (pl.col("position") == 10) & (pl.col("mixture") == "kv-template")
    ours = 100 * scores.filter(of)["difference"][0]
    line = next(line for line in part.splitlines() if line.startswith("| mdqa-20 | position 10 | kv-template"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[3].startswith(f"{ours:+.1f}".replace("-", MINUS))
    assert cells[4] == "+10.5"
    assert cells[5] == (f"{ours - 10.5:+.1f}".replace("-", MINUS) if round(ours - 10.5, 1) else "0.0")
    assert cells[-2:] == ["gpt-3.5-turbo-1106", "primary"]
    assert "**Base models differ:**" in part
    assert "gpt-3.5-turbo-1106" in part.split("**Base models differ:**")[1].splitlines()[0]
    assert re.search(r"\*\*Xiong et al. 2024\*\* on Mistral-7B-Instruct-v0.1, 4 changes", part)
    position = section(text, "By gold position")
    liu = "| *base* | *Liu et al. 2023, gpt-3.5-turbo, primary* | *76 %* | *57 %* | *54 %* | *55 %* | *63 %* |"
    assert liu in position


def test_a_sweep_that_names_no_set_shows_nothing_published(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    paper_store.commit(store, questions=12, mixtures=("kv-template",), evaluations=("gsm8k",), reference=())
    text = Path(build.write(store, "paper").markdown).read_text()
    assert "ublished" not in text
    assert "| model | gsm8k |" in text
    paper_store.commit(store, questions=12, mixtures=("kv",), evaluations=("gsm8k",), reference=("gone",), name="b")
    assert "no set gone; there are: artificial-needles" in Path(build.write(store, "b").markdown).read_text()


def test_floors_and_ceilings_are_drawn_for_the_same_questions(store: Store) -> None:
    from kvray.report import breakdowns
    from kvray.results.snapshot import collect

    snapshot = collect(store, "paper")
    levels = breakdowns.bounds(snapshot, "mdqa-20")
    assert [(level.name, level.floor) for level in levels] == [
        ("mdqa-closed (closed book)", True),
        ("mdqa-oracle (one document)", False),
    ]
    floor, ceiling = levels
    assert floor.base is not None
    assert ceiling.base is not None
    assert floor.base < ceiling.base
    assert None not in (floor.low, floor.high, ceiling.low, ceiling.high)
    assert breakdowns.bounds(snapshot, "needle") == []
    some = snapshot.predictions.filter((pl.col("evaluation") != "mdqa-20") | (pl.col("question_id") < "q0005"))
    fewer = breakdowns.bounds(dataclasses.replace(snapshot, predictions=some), "mdqa-20")[0]
    closed = some.filter(evaluation="mdqa-closed", model="base").filter(pl.col("question_id") < "q0005")
    assert closed["question_id"].n_unique() == 5
    assert fewer.base == pytest.approx(closed["score"].mean())


def test_inventions_and_other_answers_are_told(text: str) -> None:
    part = section(text, "What the answers are")
    assert "| model | right | refusal | invention | wrong answers | of these inventions |" in part
    assert "| model | right | other | wrong |" in part


def test_chains_of_thought_have_their_coverage_and_early_responses(tmp_path: Path) -> None:
    store, evaluations = Store(str(tmp_path)), ("flenqa-direct", "flenqa-cot")
    paper_store.commit(store, questions=12, mixtures=("kv",), evaluations=evaluations, reference=())
    part = section(Path(build.write(store, "paper").markdown).read_text(), "How the chains of thought go")
    assert "| model | share | 250 tokens | 500 tokens | 1,000 tokens | 2,000 tokens | 3,000 tokens |" in part
    (stated,) = re.findall(r"\| base \| key facts stated \| (\d+) %", part)
    (first,) = re.findall(r"\| base .*\n\|  ?\| answered first \| (\d+) %", part)
    # The made-up right answers state three quarters, the others a quarter, and begin with their conclusion.
    assert int(stated) == pytest.approx(75 - int(first) / 2, abs=1)
    assert "Levy et al. 2024" in part and "flenqa-direct" not in part


def test_subtasks_conditions_and_cells_have_their_tables(text: str) -> None:
    part = section(text, "By kind of example")
    assert "| model | MonoRel | PIR | RuleTaker |" in part
    assert "| model | books | same |" in part
    assert "mmlu_00" not in text
    assert "| base, depth | 1,024 tokens |" in section(text, "By context length and needle depth")


def test_mixtures_tell_their_tokens_by_dataset_and_that_they_match(text: str) -> None:
    part = section(text, "What was trained")
    assert "| in2 | in2: 1,371,515 in 330 rows | 1,371,515 | 11,301 |" in part
    assert "**Token-matched** (cut to the sweep's first)" in part


def test_unequal_mixtures_are_said_to_be_unequal() -> None:
    from kvray.report.training import matched

    assert matched({"a": 1000.0, "b": 1100.0}, True).startswith("**Not token-matched:**")
    assert matched({"a": 1000.0, "b": 1010.0}, False).startswith("**Token-matched** (by the size")
    # Each against the first, to which they were cut: 1,040 and 960 are eight percent apart.
    assert "at most 4.0 % off the first one's" in matched({"a": 1000.0, "b": 1040.0, "c": 960.0}, True)
    assert matched({"a": 1000.0}, False) == "One mixture, 1,000 tokens per epoch."


def test_writings_are_in_the_provenance(text: str) -> None:
    part = section(text, "Provenance")
    line = "| in2 | `Qwen/Qwen2.5-7B-Instruct` | committed | 420 | 98.6 % | not recorded | 31,512 | 1 min 28 s |"
    assert line in part
    assert "text written for in2" in part


def test_pairs_of_benchmarks_alone_have_a_heading_of_their_own(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    evaluations, mixtures = ("gsm8k", "mmlu"), ("kv-template", "kv", "in2", "needle", "multidoc_qa")
    paper_store.commit(store, questions=4, mixtures=mixtures, evaluations=evaluations, reference=())
    text = Path(build.write(store, "paper").markdown).read_text()
    assert "\n## Finetunes against each other\n" in text
    assert "## Finetunes compared" not in text


def test_answers_of_one_kind_are_a_sentence(store: Store) -> None:
    from kvray.report import breakdowns
    from kvray.results.snapshot import collect

    snapshot = collect(store, "paper")
    same = snapshot.predictions.with_columns(pl.lit("other").alias("outcome"))
    one = dataclasses.replace(snapshot, predictions=same)
    sentence = Text("Every answer of every model is of one kind: *other*.")
    assert breakdowns.answers_in(one, "flenqa-direct") == [sentence]


def test_published_accuracies_alone_have_no_columns_of_changes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    paper_store.commit(store, questions=12, mixtures=("kv",), evaluations=("flenqa-direct",), reference=("flenqa",))
    part = section(Path(build.write(store, "paper").markdown).read_text(), "Beside the published numbers")
    assert "| evaluation | at | model | accuracy, ours | accuracy, theirs | published by | on | certainty |" in part
    assert re.search(r"\| 250 tokens, PIR \| base \| [\d.]+ % \| 81 % \| Levy et al. 2024, ", part)


@pytest.mark.parametrize(
    ("values", "said"),
    [([1, 2, 3, 4], "positions 1 to 4"), ([1, 2], "positions 1, 2"), ([1, 5, 10], "positions 1, 5, 10"),
     (list(range(0, 40, 2)), "positions 0 to 38 (20)")],
)  # fmt: skip
def test_places_in_a_row_are_a_range(values: list[int], said: str) -> None:
    from kvray.report.methods import places

    rows = pl.DataFrame({"position": values}).with_columns(length=pl.lit(None), depth=pl.lit(None))
    assert places(rows) == said


def test_benchmarks_whose_prompts_were_cut_are_named() -> None:
    def cell(evaluation: str, **measured: Any) -> tuple[dict[str, Any], Any]:
        return {"labels": {"evaluation": evaluation}}, SimpleNamespace(measurements=measured)

    committed = [cell("mdqa"), cell("long", harness={"cut": 3}), cell("long", harness={"cut": 1200}), cell("short")]
    snapshot: Any = SimpleNamespace(committed=lambda kind: committed)
    (warning,) = methods.cut_prompts(snapshot)
    assert isinstance(warning, Text) and warning.text.startswith("**Cut prompts:** 1,200 of long lost their beginning")
    committed[1:3] = [cell("long", harness={"cut": 0})]
    assert methods.cut_prompts(snapshot) == []
