"""The page in a real browser (Debian's chromium, skipped where there is none): it is used as a reader uses it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answered_sweep
import pytest

from kvray.driver.api import Report
from kvray.report import build
from kvray.store.store import Store

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

APART = """() => {
  // Boxes of letters, without the room above and below them that a line has.
  const box = (element) => {
    const { left, top, right, bottom } = element.getBoundingClientRect();
    const [x, y, text] = [0.04 * (right - left), 0.2 * (bottom - top), element.textContent.slice(0, 60)];
    return { left: left + x, top: top + y, right: right - x, bottom: bottom - y, text };
  };
  const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const groups = [...document.querySelectorAll("figure svg")].map((svg) => [...svg.querySelectorAll("text")]);
  groups.push([...document.querySelectorAll("main > *, nav")]);
  const controls = [...document.querySelectorAll("#answers > *, #answers label, .chips button")];
  groups.push(controls.filter((each) => !each.querySelector("label, button")));
  for (const table of document.querySelectorAll("main > .wide > table")) {
    groups.push([...table.querySelectorAll("th:not(:first-child), td")]);
  }
  const found = [];
  for (const group of groups) {
    const boxes = group.map(box).filter(({ left, right, top, bottom }) => right > left && bottom > top);
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => overlap(a, b) && found.push(`${a.text} | ${b.text}`)));
  }
  return found;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = Store(str(tmp_path_factory.mktemp("asked")))
    answered_sweep.commit(store)
    return Path(build.write(store, "asked").html).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def said() -> list[str]:
    """What the page's scripts and the browser's policies complained of."""
    return []


@pytest.fixture
def opened(browser: Any, report: str, said: list[str]) -> Iterator[Any]:
    """Opens the report at a width; at the end nothing was complained of, and nothing but the file requested."""
    pages, requested = [], []

    def open_at(width: int = 1280, hash_: str = "", **options: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(report + hash_)
        pages.append(page)
        return page

    yield open_at
    for page in pages:
        page.close()
    assert said == []
    assert {url.partition("#")[0] for url in requested} == {report}


def ready(page: Any) -> None:
    page.wait_for_selector("#answers[data-ready] .matches")


def counted(page: Any) -> int:
    return int(page.locator(".count").inner_text().split()[0].replace(",", ""))


def row(page: Any, table: int, first: str) -> Any:
    return page.locator(".wide table").nth(table).locator("tr", has=page.locator(f"th:text-is('{first}')"))


def test_three_clicks_lead_from_a_number_to_a_wrong_answer(opened: Any) -> None:
    page = opened()
    page.locator("a[href='#answers?evaluation=mdqa20&model=ours&position=20']").click()
    ready(page)
    asked = counted(page)
    assert asked == 2 * answered_sweep.QUESTIONS
    page.locator(".chips button", has_text=re.compile(r"^wrong")).click()
    assert 0 < counted(page) < asked
    page.locator(".matches summary").first.click()
    page.wait_for_selector(".matches details[open] .sides")
    body = page.locator(".matches details[open]").first.inner_text()
    assert "position 20" in body and "Expected: Ada Quill" in body and "lost-in-the-middle" in body
    assert page.locator(".matches .sides h4").all_inner_texts()[1].startswith("base")
    shown = page.locator(".matches > li > details > summary .badge").all_inner_texts()
    assert set(shown) == {"wrong"} and len(shown) == min(25, counted(page))
    page.locator(".asked > summary").first.click()
    prompt = page.locator(".prompt").first
    assert "Answer from these documents." in prompt.inner_text() and "Document [20]" not in prompt.inner_text()
    prompt.locator(".fold summary").click()
    assert "Document [20]" in prompt.inner_text()


def test_filters_agree_with_the_numbers_and_with_the_address(opened: Any) -> None:
    page = opened(hash_="#answers?evaluation=mdqa20&model=ours&seed=0&beside=lost")
    ready(page)
    lost = counted(page)
    badges = page.locator(".matches > li").first
    badges.locator("summary").first.click()
    badges.locator(".sides").wait_for()
    assert badges.locator(".sides .badge").all_inner_texts() == ["wrong", "right"]
    page.locator(".chips button", has_text="base wrong").click()
    won = counted(page)
    assert lost > 0 and won > lost  # this mixture gains
    page.locator("select[name=position]").select_option("5")
    assert 0 < counted(page) < won
    assert page.evaluate("location.hash") == "#answers?evaluation=mdqa20&model=ours&seed=0&beside=won&position=5"
    page.locator("select[name=evaluation]").select_option("recall")
    assert page.locator("select[name=position]").count() == 0
    page.locator("select[name=model]").select_option("")
    page.locator("select[name=seed]").select_option("")
    assert counted(page) == 5 * answered_sweep.QUESTIONS
    everyone = page.locator(".chips button").all_inner_texts()
    numbers = {text.rsplit(" ", 1)[0]: int(text.rsplit(" ", 1)[1]) for text in everyone}
    assert numbers["right"] + numbers["wrong"] == numbers["all"] == 5 * answered_sweep.QUESTIONS
    assert page.locator(".matches > li").count() == 25
    page.locator(".more").click()
    assert page.locator(".matches > li").count() == 50


def test_an_answer_is_text_whatever_it_says(opened: Any, said: list[str]) -> None:
    page = opened(hash_="#answers?evaluation=mdqa20&model=ours&text=q0003%4020")
    ready(page)
    page.locator(".matches summary", has_text="window.acted").first.click()
    assert page.locator(".sides pre").first.inner_text() == answered_sweep.HOSTILE
    assert page.evaluate("window.acted") is None
    assert page.locator("#answers img, #answers .matches script").count() == 0
    # Nor does a script that somehow got in: the page runs its own alone.
    page.evaluate("""() => {
      const added = document.createElement("script");
      added.textContent = "window.acted = 2";
      document.body.append(added);
    }""")
    assert page.evaluate("window.acted") is None
    (refused,) = said
    assert "Content Security Policy" in refused
    said.clear()


def test_tables_sort_by_value_and_filter(opened: Any) -> None:
    page = opened()
    table = page.locator(".wide table").first
    models = table.locator("tbody th")
    before = models.all_inner_texts()
    accuracy = table.locator("thead th", has_text="accuracy")
    for _ in range(2):
        accuracy.locator("button").click()
    assert accuracy.get_attribute("aria-sort") == "ascending"
    shares = [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
    assert shares == sorted(shares) and len(set(shares)) > 1
    accuracy.locator("button").press("Enter")
    assert accuracy.get_attribute("aria-sort") == "descending"
    shares = [float(text.split()[0]) for text in table.locator("tbody tr td:nth-child(3)").all_inner_texts()]
    assert shares == sorted(shares, reverse=True) and sorted(models.all_inner_texts()) == sorted(before)
    page.locator("summary", has_text="artefacts of the plan").click()
    box = page.locator("details[open] input[type=search]")
    box.fill("predictions recall")
    rows = page.locator("details[open] .wide tbody tr:visible")
    assert rows.count() == 5 and all("recall" in text for text in rows.all_inner_texts())


def test_figures_tell_their_numbers_and_have_text(opened: Any) -> None:
    page = opened()
    figure = page.locator("#accuracy-by-position-mdqa20")
    assert "Accuracy by gold position: mdqa20" in figure.locator("svg text").all_text_contents()
    assert page.evaluate("window.find('Accuracy by gold position: mdqa20')")
    spot = figure.locator(".spots > [data-to='#answers?evaluation=mdqa20&model=ours&position=20']")
    tip = page.locator("#tip")
    spot.hover()
    assert re.search(r"ours, position 20: \d+\.\d % ?, 95 % interval .* n 60", tip.inner_text()) is not None
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    spot.focus()
    assert "position 20" in tip.inner_text()
    page.keyboard.press("ArrowLeft")
    assert "position 15" in tip.inner_text()
    spot.click()
    tip.locator("a").click()
    ready(page)
    assert counted(page) == 60


@pytest.mark.parametrize("width", [1280, 820, 390])
def test_nothing_overlaps_and_the_page_is_as_wide_as_the_window(opened: Any, width: int) -> None:
    page = opened(width, hash_="#answers?evaluation=mdqa20&model=ours")
    ready(page)
    page.locator(".matches summary").first.click()
    page.wait_for_selector(".matches details[open] .sides")
    assert page.evaluate(APART) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#contents").evaluate("each => each.open") == (width == 1280)
    fonts = "[...document.fonts].filter((each) => each.status === 'loaded').map((each) => each.family)"
    assert "DejaVu Sans" in "".join(page.evaluate(fonts))


def test_light_dark_and_paper(opened: Any) -> None:
    colours = """['body', 'figure svg text'].map((each) => getComputedStyle(document.querySelector(each)))
        .flatMap(({ backgroundColor, fill }) => [backgroundColor, fill])"""
    light, dark = (opened(color_scheme=scheme).evaluate(colours) for scheme in ("light", "dark"))
    paper, ink = 0, 3  # of the body, of a figure's words
    assert light[paper] != dark[paper] and light[ink] != dark[ink]
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate(colours) == light
    assert not page.locator("nav").is_visible() and not page.locator("#answers form").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("main details:not([open])").count() == 0


def test_without_scripts_all_but_the_answers_can_be_read(browser: Any, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert page.locator("noscript").inner_text().endswith("kvray show asked --wrong.")
    assert page.locator("nav").is_visible() and page.locator("figure svg text").first.is_visible()
    assert "position 1:" in str(page.locator("#accuracy-by-position-mdqa20 .spots title").first.text_content())
    context.close()


def test_anchors_open_what_is_folded(opened: Any) -> None:
    page = opened()
    page.locator("nav a", has_text="Provenance").click()
    assert page.evaluate("location.hash") == "#provenance"
    assert page.locator("#provenance").bounding_box()["y"] < 900


def test_a_notebook_shows_the_page_in_a_frame_that_reaches_nothing_else(browser: Any, report: str) -> None:
    path = report.removeprefix("file://")
    shown = Report(path, str(Path(path).parent), Path(path).read_text())._repr_html_()
    page = browser.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_content(shown)
    frame = page.frame_locator("iframe")
    frame.locator("td a[href='#answers?evaluation=mdqa20&model=ours&position=20']").click()
    frame.locator(".chips button", has_text=re.compile(r"^wrong")).click()
    assert frame.locator(".matches > li").count() > 0
    assert said == [] and page.url == "about:blank"
    page.close()
