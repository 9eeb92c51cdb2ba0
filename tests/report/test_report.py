"""The report: what it says, that it stands alone, and that a partial sweep says what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from kvray.errors import InputError
from kvray.report import blocks as page
from kvray.report import build, terminal
from kvray.report.page.html import to_html
from kvray.store.schemas import SCORES_SCHEMA
from kvray.store.store import Store


class _Balance(HTMLParser):
    """Checks that tags close in order, and collects ids and what is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "!doctype"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory, make_sweep) -> Store:
    """A sweep with a failed cell, a missing one, and rows that were too long."""
    store = Store(str(tmp_path_factory.mktemp("partial")))
    ids = make_sweep(store, skip=["predictions/mdqa20-mdqa-s1", "recall-ours-s0"], too_long=3, questions=40)
    failed = next(one for one in ids if "mdqa20-mdqa-s1" in one)
    reason = json.dumps({"error": "EngineDeadError: exit -9\nretried"}).encode()
    store.write_document(f"failures/{failed}.json", reason)
    return store


@pytest.fixture(scope="module")
def written(partial: Store) -> build.Paths:
    return build.write(partial, "first")


def test_everything_is_written_under_the_store(partial: Store, written: build.Paths) -> None:
    assert Path(written.directory) == Path(partial.path("reports/first"))
    names = {Path(path).name for path in written.figures}
    stems = {"accuracy-by-position-mdqa20", "knowledge-change", "gain-against-loss-mdqa20-recall"}
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for path in (written.html, written.markdown, written.scores, *written.figures):
        assert Path(path).stat().st_size > 500


def test_the_page_stands_alone_and_is_well_formed(written: build.Paths) -> None:
    text = Path(written.html).read_text()
    parser = _Balance()
    parser.feed(text)
    assert parser.open == []
    assert parser.fetched == []
    assert len(parser.ids) == len(set(parser.ids))
    assert text.count("<svg") == 3
    assert not re.search(r"@import|url\((?!#|data:)|<script[^>]*src|<link", text)
    assert set(re.findall(r"https?://[^\s\"<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    # Every reference inside a figure still meets its target after the ids were made the figure's own.
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(parser.ids)
    assert {address.partition("?")[0] for address in re.findall(r'href="#([^"]+)"', text)} <= set(parser.ids)


def test_a_partial_report_says_what_is_missing_and_why(written: build.Paths) -> None:
    for path in (written.markdown, written.html):
        text = Path(path).read_text()
        assert "2 of 18 cells are missing or failed" in text
        assert "mdqa, seed 1 on mdqa20" in text
        assert "EngineDeadError: exit -9 retried" in text
        assert "not run yet" in text
        assert "ours on mdqa20: 3 rows" in text


def test_findings_carry_their_numbers(written: build.Paths) -> None:
    text = Path(written.markdown).read_text()
    headline = re.search(r"- \*\*ours\*\* (.*)", text)
    assert headline
    assert re.match(
        r"is not shown to differ from the base model on mdqa20 \(20 documents\): \+\d+\.\d points "
        r"\(95 % interval .\d+\.\d to \+\d+\.\d\), within noise; recall: .* within noise\.",
        headline.group(1),
    )
    scores = pl.read_parquet(written.scores)
    row = scores.filter(pl.col("position").is_null() & (pl.col("mixture") == "ours") & (pl.col("task") == "mdqa"))
    assert f"+{100 * row['difference'][0]:.1f} points" in headline.group(1)
    assert "Verdicts on mixtures are over 2 seeds each, seeds and questions both" in text
    assert "1,423,000" in text
    assert "kvray report first --store" in text
    assert "kvray why predictions/" in text


def test_scores_have_their_schema_with_descriptions(written: build.Paths) -> None:
    assert pq.read_schema(written.scores).equals(SCORES_SCHEMA, check_metadata=True)


def test_the_same_results_give_the_same_report(partial: Store, written: build.Paths, tmp_path: Path) -> None:
    again = build.write(partial, "first", tmp_path / "out")
    assert Path(again.html).read_bytes() == Path(written.html).read_bytes()
    assert Path(again.scores).read_bytes() == Path(written.scores).read_bytes()


def test_summary_has_a_row_per_model_and_a_verdict_per_evaluation(partial: Store) -> None:
    lines = terminal.summary(partial, "first")
    assert lines[0] == "first: 16 of 18 cells evaluated"
    ours = next(line for line in lines if line.startswith("ours "))
    assert ours.count("within noise") == 2
    assert lines[-1] == terminal.ONE_SEED  # one mixture lacks its second seed


def test_a_sweep_with_nothing_evaluated_still_reports(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, skip=["predictions/"])
    paths = build.write(store, "first")
    text = Path(paths.markdown).read_text()
    assert "0 of 18 cells evaluated" in text
    assert paths.figures == ()
    assert pl.read_parquet(paths.scores).height == 0
    assert terminal.summary(store, "first")[-1] == "no predictions yet"


def test_missing_cells_of_one_mixture_finetuned_in_two_ways_are_told_apart(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, skip=["ours-s"], questions=6, mixtures=["ours", "mdqa"])
    document = json.loads(store.read_document("sweeps/first.json") or b"")
    for artefact in document["artefacts"]:
        labels = artefact["labels"]
        if labels.get("mixture") == "ours":
            labels |= {"finetune": f"lora[epochs={labels['seed'] + 1}]", "seed": 0}
    store.write_document("sweeps/first.json", json.dumps(document).encode())
    text = Path(build.write(store, "first").markdown).read_text()
    for way in ("[epochs=1]", "[epochs=2]"):
        assert f"| ours {way}, seed 0 on mdqa20 | predictions | missing | not run yet |" in text


@pytest.mark.parametrize(
    ("skip", "says"),
    [(["20-base-", "recall-base-"], "The base model has no predictions yet"), (["-s0-", "-s1-"], "No finetune")],
)
def test_half_a_comparison_claims_nothing(tmp_path: Path, make_sweep, skip: list[str], says: str) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, skip=skip, questions=10)
    text = Path(build.write(store, "first").markdown).read_text()
    assert says in text
    assert "retrieves better" not in text


def test_a_damaged_cell_is_listed_not_read(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    ids = make_sweep(store, questions=10)
    cell = next(one for one in ids if "recall-mdqa-s0" in one)
    Path(store.path(cell, "data/chunk-00000.parquet")).unlink()
    text = Path(build.write(store, "first").markdown).read_text()
    assert "| mdqa, seed 0 on recall | predictions | damaged |" in text


def test_an_output_that_cannot_be_written_is_named(partial: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"):
        build.write(partial, "first", tmp_path / "file")
    with pytest.raises(InputError, match="first"):
        build.write(partial, "second")


def test_text_is_escaped_and_marked() -> None:
    blocks = [page.Text("a <b> & `c<d>` **e** *f*"), page.Table(["x|y"], [["1|2"]])]
    shown = to_html("<t>", blocks)
    assert "a &lt;b&gt; &amp; <code>c&lt;d&gt;</code> <strong>e</strong> <em>f</em>" in shown
    assert "<title>&lt;t&gt;</title>" in shown
    assert "1\\|2" in page.to_markdown(blocks)


def test_arrows_are_explained_where_there_are_any() -> None:
    from kvray.report.text import arrows

    def compared(number: int, about: str = "mixtures") -> pl.DataFrame:
        return pl.DataFrame({"about": [about] * number}, schema={"about": pl.String})

    alone = arrows([["kv", "57 % \u25b2"]], compared(3, "finetunes"), "by length")
    assert alone.endswith("One seed: an arrow is about this finetune, not about the mixture.")
    assert arrows([["kv", "57 % \u25b2"]], compared(1200), "by length") == (
        "\u25b2 and \u25bc: differs from the base after Holm's correction over all 1,200 comparisons by length."
    )
    assert arrows([["kv", "57 %"]], compared(3), "by length").startswith("No number here differs from the base")
    assert arrows([["base", "57 %"]], compared(0), "by length") == ""
    shown = to_html("t", [page.Text("\u25b2 and \u25bc: 95 % sure")])
    assert '<p><span class="up">\u25b2</span> and <span class="down">\u25bc</span>: 95\u00a0% sure</p>' in shown


def test_one_seed_is_never_called_a_mixture(tmp_path: Path, make_sweep) -> None:
    store = Store(str(tmp_path))
    make_sweep(store, skip=["-s1-"], questions=200)
    written = build.write(store, "first")
    text = Path(written.markdown).read_text()
    assert "1 of 4 finetunes retrieves better than the base model" in text or "finetunes retrieve better" in text
    assert "**ours**, this finetune (seed 0), retrieves better than the base model on mdqa20" in text
    assert "no mixture is shown to be better or worse" in text
    assert "## Finetunes compared" in text and "### Finetunes against each other" in text
    assert "| **ours** | this finetune: better |" in text
    assert "finetune.seeds: [0, 1, 2, 3, 4]" in text
    assert '<span class="up">this finetune: better</span>' in written.page
    assert not re.search(r"mixtures? (retrieve|know|score|hold)s? ", text)
    lines = terminal.summary(store, "first")
    assert "this finetune: better" in "\n".join(lines)
    assert lines[-1] == terminal.ONE_SEED


def test_words_behind_numbers_are_set_left_and_may_break() -> None:
    table = page.Table(["model", "n", "by whom"], [["kv", "3", "someone"]], words=1)
    assert "| --- | ---: | --- |" in table._markdown()
    assert '<th scope="row">kv</th><td class="r">3</td><td>someone</td>' in to_html("t", [table]).replace("\n", "")


def test_words_are_verdicts_in_their_columns_alone() -> None:
    table = page.Table(["mixture", "verdict"], [["better", "better"]], left=2)
    shown = to_html("t", [table]).replace("\n", "")
    assert '<th scope="row">better</th><td><span class="up">better</span></td>' in shown


def test_headlines_count_models_where_a_mixture_has_several_and_benchmarks_have_a_verb(make_cell) -> None:
    from kvray.report.headlines import benchmark_line, headlines
    from kvray.results import comparisons, frames, profile
    from kvray.results.profile import OVERALL

    ways = [f"lora[learning_rate={rate}]" for rate in (1, 2)]
    cells = [make_cell("recall", questions=8), *(make_cell("recall", "ours", 0, questions=8, finetune=w) for w in ways)]
    parts = [pl.from_arrow(cell) for cell in cells]
    rows = frames.with_models(pl.concat(parts))  # type: ignore[type-var,arg-type]
    profiles = profile.profiles(rows)

    def first(rows: pl.DataFrame) -> str:
        against = comparisons.compare_all(rows, profiles).filter(pl.col("family") == OVERALL)
        return headlines(rows, against, profiles)[0]

    assert "2 of 2 finetunes" in first(rows)
    assert "1 of 1 finetune " in first(rows.filter(pl.col("model") != "ours [learning_rate=2]"))
    noise = {"difference": 0.0, "verdict": "within noise"}
    both = [{"evaluation": "mmlu", **noise}, {"evaluation": "gsm8k", **noise}]
    assert benchmark_line(both, first=True) == "is within noise on all 2 general benchmarks"
    assert benchmark_line(both[:1], first=False) == "general benchmarks: within noise on mmlu"
    worse = {"evaluation": "gsm8k", "difference": -0.02, "verdict": "worse"}
    said = "on general benchmarks: worse on gsm8k (\u22122.0), within noise on mmlu"
    assert benchmark_line([both[0], worse], first=True) == said
