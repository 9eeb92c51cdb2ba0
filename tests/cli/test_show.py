"""kvray show: from a number to the answers behind it, in a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import terminals
from made_sweeps import commit_sweep
from typer.testing import CliRunner, Result

from kvray.cli import app
from kvray.cli.panels import excerpt, printable, write
from kvray.results.examples import COLUMNS
from kvray.results.reader import Results
from kvray.store.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("shown") / "store")
    commit_sweep(made, "first", questions=10)
    return made


def typed(store: Store, *words: str) -> Result:
    return CliRunner().invoke(app, ["show", "first", "--store", store.uri, *words])


def test_a_pipe_gets_prompt_answer_base_answer_references_and_rule(store: Store) -> None:
    told = typed(store, "--evaluation", "mdqa20", "--model", "ours", "--seed", "0", "--position", "10", "--wrong")
    assert told.exit_code == 0, told.output
    text = told.stdout
    assert "== mdqa20 · ours, seed 0 · position 10 · q" in text
    assert ">>>Document [10](Title: q" in text and "It was founded by Ada Quill.<<<" in text
    assert "answer: no idea" in text and "base answered: " in text and "accepted: Ada Quill" in text
    assert "score: 0 (outcome untold); base " in text
    assert "score of mdqa: Score as lost-in-the-middle does" in text
    assert "characters …]" in text and "Document [5](" not in text, "the prompt is shortened"
    wrong = Results(store).examples("mdqa20", "ours", 0, position=10, right=False)
    assert text.splitlines()[-1] == f"{wrong.height} of 10 match, {min(3, wrong.height)} shown"
    assert "\x1b" not in text


def test_whole_prompts_and_all_examples_on_request(store: Store) -> None:
    text = typed(store, "--evaluation", "mdqa20", "--model", "base", "--full", "--limit", "0").stdout
    assert text.count("Document [18](Title: Town 18)") >= 50 and "characters …]" not in text
    assert text.splitlines()[-1] == "60 of 60 match, 60 shown"
    assert "base answered" not in text


def test_json_is_a_line_per_example_with_all_columns(store: Store) -> None:
    told = typed(store, "--model", "mdqa", "--lost", "--json", "--limit", "2")
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(rows) == 2 and all(row["score"] == 0 and row["base_score"] == 1 for row in rows)
    assert rows[0]["prompt"] and rows[0]["references"] == ["Ada Quill"]
    assert "match, 2 shown" in told.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "our"), "did you mean 'ours'?"),
        (("--position", "4"), "position: found 4; expected one of: 1, 2, 5, 10, 15, 20"),
        (("--outcome", "refusal"), "outcome: found 'refusal'"),
    ],
)
def test_what_no_row_has_is_one_message_and_status_2(store: Store, words: tuple[str, ...], message: str) -> None:
    told = typed(store, *words)
    assert told.exit_code == 2 and message in told.stderr and "Traceback" not in told.output


def test_a_sweep_without_answers_says_what_to_type(tmp_path: Path) -> None:
    empty = Store(tmp_path)
    commit_sweep(empty, "first", skip=["predictions/"], questions=2)
    told = typed(empty)
    assert told.exit_code == 2 and "no answers in the store" in told.stderr and "kvray run" in told.stderr
    assert "not in the store" in CliRunner().invoke(app, ["show", "other", "--store", str(tmp_path)]).stderr


@pytest.mark.parametrize("columns", [60, 120])
def test_a_terminal_gets_panels_with_the_gold_highlighted(store: Store, columns: int) -> None:
    words = ["show", "first", "--model", "ours", "--position", "20", "--limit", "1", "--store", store.uri]
    environment = {**os.environ, "NO_COLOR": ""}
    environment.pop("NO_COLOR")
    seen = terminals.run([sys.executable, "-m", "kvray.cli", *words], columns=columns, environment=environment)
    assert seen.status == 0
    assert seen.screen[0].startswith("╭─ mdqa20 · ours, seed 0 · position 20") and len(seen.screen[0]) <= columns
    assert "\x1b[30;43mDocument [20]" in seen.raw, "black on yellow"
    assert any(line.startswith("│ accepted") for line in seen.screen)
    assert seen.screen[-1] == "20 of 20 match, 1 shown"


def test_an_excerpt_has_the_beginning_the_gold_and_the_end_and_says_what_it_leaves_out() -> None:
    words = [f"word{number:04d}" for number in range(1000)]
    prompt = " ".join(words)
    pieces = excerpt(prompt, ["word0500 word0501"])
    assert [kind for _, kind in pieces] == ["text", "cut", "text", "gold", "text", "cut", "text"]
    assert pieces[0][0].startswith("word0000 word0001") and pieces[-1][0].endswith("word0999")
    shown = [text for text, kind in pieces if kind != "cut"]
    assert all(word in words for text in shown for word in text.split()), "words are whole"
    left_out = sum(int(text.split()[1].replace(",", "")) for text, kind in pieces if kind == "cut")
    assert sum(map(len, shown)) + left_out == len(prompt)
    assert excerpt(prompt, ["word0500"], full=True)[1] == ("word0500", "gold")
    assert excerpt("short", []) == [("short", "text")]
    assert "".join(text for text, _ in excerpt(prompt, ["word0001", "word0001 word0002", ""], True)) == prompt


def test_an_answer_does_nothing_to_the_terminal() -> None:
    assert printable("a\x1b[31mb\tc\n\x07é") == "a\\x1b[31mb\tc\n\\x07é"


def test_a_chat_is_shown_with_its_turns_and_where_the_answer_goes_on_from(capsys: pytest.CaptureFixture[str]) -> None:
    row = dict.fromkeys(COLUMNS) | {"evaluation": "chats", "model": "base", "example_id": "a", "references": ["x"]}
    row |= {"history": '[{"role": "system", "content": "Be brief."}]', "prompt": "And now?", "answer_prefix": "It is"}
    write([row | {"gold": [], "answer": "x", "score": 1.0, "outcome": "right", "finish_reason": "length"}], full=False)
    told = capsys.readouterr().out
    assert "  [system] Be brief.\n\n  [user] And now?\n\n  [assistant] It is\nanswer: x [cut off]" in told
