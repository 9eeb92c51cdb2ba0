"""The page on two sweeps: it says what was found, stands alone, and lies where no sweep's report can."""

from __future__ import annotations

import shlex
from html.parser import HTMLParser
from pathlib import Path

import paper_store
import polars as pl
import pytest
from made_sweeps import commit_sweep

from kvray.report.across import build, sections
from kvray.report.across.terminal import document, lines
from kvray.report.text import change
from kvray.results.across.compare import Comparison, compare
from kvray.store import garbage
from kvray.store.store import Store
from kvray.sweep.model import NAME

MIXTURES = ("ours", "mdqa")


class _Balance(HTMLParser):
    """Checks that tags close in order, and collects what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "input", "path", "use", "rect", "circle"):
            self.open.append(tag)
        self.fetched += [v or "" for name, v in attrs if name in ("src", "href") and not (v or "").startswith("#")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            assert tag in ("path", "use", "rect", "circle"), tag


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store(str(tmp_path_factory.mktemp("both") / "here"))
    commit_sweep(found, "first", mixtures=MIXTURES, questions=40)
    commit_sweep(found, "second", mixtures=[*MIXTURES, "multi-subkey"], seeds=(2, 3), questions=40)
    return found


@pytest.fixture(scope="module")
def compared(store: Store) -> Comparison:
    return compare((store, "first"), (store, "second"))


@pytest.fixture(scope="module")
def written(compared: Comparison) -> build.Paths:
    return build.write(compared)


def test_the_page_stands_alone_with_its_figure_and_all_numbers(compared: Comparison, written: build.Paths) -> None:
    text = Path(written.html).read_text()
    parser = _Balance()
    parser.feed(text)
    assert parser.open == [] and parser.fetched == []
    assert {Path(path).name for path in written.figures} == {f"change-between-sweeps.{kind}" for kind in ("png", "svg")}
    assert text.count("<svg") == 1
    assert pl.read_parquet(written.pairs).equals(compared.table)
    for words in ("first and second", "mdqa20 (20 documents)", "By gold position", "the same artefact"):
        assert words in text


def test_the_findings_count_every_test_and_say_what_was_not(compared: Comparison, written: build.Paths) -> None:
    text = Path(written.markdown).read_text()
    assert set(compared.tested["verdict"]) == {"within noise"}
    assert "Of 4 comparisons of **second** with **first**, all are within noise." in text
    assert "2 of 6 cells are the same in both, and were not tested." in text
    assert "| multi-subkey | a model of the second sweep alone |" in text
    assert "--pair MODEL=OTHER" in text


def test_a_difference_is_told_with_its_interval_and_marked(store: Store, tmp_path: Path) -> None:
    commit_sweep(store, "third", mixtures=["ours"], seeds=(8,), questions=40)
    gained = compare((store, "first"), (store, "third"), ["base=ours"])
    row = gained.tested.filter(evaluation="mdqa20").row(0, named=True)
    assert (row["a"], row["b"], row["verdict"]) == ("base", "ours", "better")
    text = Path(build.write(gained, tmp_path).markdown).read_text()
    assert f"- **base → ours** on mdqa20 (20 documents): {change(row['difference'], row['low'], row['high'])}" in text
    assert "| **base → ours** | this finetune: better |" in text
    assert "what is told of it is about *this finetune*" in text


def test_the_command_on_the_page_makes_it_again(store: Store) -> None:
    crosswise = compare((store, "first"), (store, "second"), ["ours=mdqa"])
    words = shlex.split(sections.command(crosswise))
    assert words == ["kvray", "compare", "first", "second", "--store", store.uri, "--pair", "ours=mdqa"]
    # A pair of one name that was asked for changes nothing.
    assert "ours=mdqa" not in sections.command(compare((store, "first"), (store, "second")))


def test_the_same_results_give_the_same_page(compared: Comparison, written: build.Paths, tmp_path: Path) -> None:
    again = build.write(compared, tmp_path / "out")
    for one, other in ((written.html, again.html), (written.markdown, again.markdown), (written.pairs, again.pairs)):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_it_lies_where_no_report_of_a_sweep_can_and_goes_with_the_first_sweep(
    store: Store, written: build.Paths
) -> None:
    name = Path(written.directory).name
    assert name == "first+second" and not NAME.fullmatch(name)
    assert not [each for each in garbage.find(store, 0.0) if "reports/" in each.path]
    assert [each.path for each in garbage.find(store, 0.0, ["first"]) if "reports/" in each.path] == [f"reports/{name}"]


def test_comparisons_with_two_other_stores_lie_apart(store: Store, tmp_path: Path) -> None:
    names = set()
    for place in ("one", "two"):
        other = Store(str(tmp_path / place))
        commit_sweep(other, "first", mixtures=MIXTURES, questions=40)
        names.add(build.folder_name(compare((store, "first"), (other, "first"))))
    assert len(names) == 2 and all(name.startswith("reports/first+first-") for name in names)


def test_a_copy_is_told_as_one_and_draws_nothing(store: Store, tmp_path: Path) -> None:
    other = Store(str(tmp_path / "copy"))
    commit_sweep(other, "first", mixtures=MIXTURES, questions=40)
    paths = build.write(compare((store, "first"), (other, "first")), tmp_path / "out")
    assert paths.figures == ()
    assert "There is nothing to test" in Path(paths.markdown).read_text()


def test_the_terminal_has_a_line_per_pair_and_says_what_it_means(compared: Comparison) -> None:
    shown = lines(compared)
    assert sum("mdqa20 (20 documents)" in line for line in shown) == 3
    assert next(line for line in shown if "  base  " in line).endswith("the same artefact")
    assert "verdict: of second, after Holm's correction for all 4" in shown
    assert shown[-1] == "  multi-subkey: a model of the second sweep alone"


def test_plain_values_hold_what_the_table_holds(compared: Comparison) -> None:
    values = document(compared)
    assert [row["verdict"] for row in values["pairs"]] == compared.overall["verdict"].to_list()
    assert len(values["split"]) + len(values["pairs"]) == compared.table.height
    assert all(row["position"] for row in values["split"])
    assert values["a"] == {
        "sweep": "first",
        "store": compared.first.store.uri,
        "base_model": "kvray-tiny",
        "planned": 10,
        "evaluated": 10,
    }


def test_many_evaluations_have_one_overview_and_their_tables_folded(tmp_path: Path) -> None:
    first, second = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    for store, seed in ((first, 0), (second, 1)):
        paper_store.commit(store, questions=6, seeds=(seed,), mixtures=("kv-template", "in2"))
    paths = build.write(compare((first, "paper"), (second, "paper")), tmp_path / "out")
    text = Path(paths.markdown).read_text()
    header = next(line for line in text.splitlines() if line.startswith("| model | mdqa-20 |"))
    assert header.count("|") == len(paper_store.cells(1)) + 2
    assert "<details><summary>Intervals and p on each evaluation</summary>" in text
    for axis in ("By gold position", "By context length", "By needle depth", "By subtask", "By condition"):
        assert f"## {axis}" in text
