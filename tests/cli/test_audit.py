"""The command kvray audit: tasks and sweeps, as text and as JSON, with the exit status of what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvray.audit.result import Audit, Audited
from kvray.audit.tally import Tally
from kvray.cli import app
from kvray.cli.audit import Subject, audit
from kvray.cli.samples import DEFAULT_BASE, task_of
from kvray.models.reference import resolve

BASE = resolve(DEFAULT_BASE)
QUICKSTART = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
SWEEP = """
name: audited
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 30, dictionaries: 6}
mixtures: {kv: {kv: 1}}
finetune: {match: rows, epochs: 1, learning_rate: 1.0e-3, seeds: [0, 1]}
evaluate:
  mdqa: {task: mdqa, documents: 4, questions: 8}
  bench: {task: lm_eval, benchmark: nq_open}
"""


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", *words])
    return done.exit_code, done.stdout


def chats(path: Path, *keys: str) -> Path:
    path.write_text("\n".join(json.dumps({"prompt": f"Where is {key}?", "answer": "Here."}) for key in keys))
    return path


def test_a_task_is_audited_in_the_terminal() -> None:
    code, shown = run("simple_kv", "--rows", "40", "--set", "dictionaries=8")
    assert code == 0
    assert "references found in the prompt alone     40 of 40" in shown
    assert "gold position" in shown and "random entry" in shown
    assert shown.rstrip().endswith("nothing wrong; 40 rows solved from their prompts alone")
    assert max(map(len, shown.splitlines())) <= 80


def test_json_has_what_the_text_has() -> None:
    code, shown = run("mdqa", "--rows", "20", "--set", "documents=4", "--json")
    found = json.loads(shown)
    assert code == 0 and found["problems"] == []
    (one,) = found["audited"]
    assert (one["rows"], one["found"], one["wrong"]) == (20, 20, 0)
    assert one["guesses"]["first entry"] == 0.25 and one["words_shared"] == 1.0
    assert {law["what"] for law in one["laws"]} == {"gold position"}


def test_processes_change_nothing() -> None:
    subject = Subject("kv", task_of("simple_kv", 0, ["dictionaries=5"]).with_rows(600))
    alone, together = (audit([subject], BASE, workers=workers) for workers in (1, 2))
    assert alone == together and alone.audited[0].tally.found == 600


def test_a_sweep_is_audited_whole(tmp_path: Path) -> None:
    file = tmp_path / "audited.yaml"
    file.write_text(SWEEP)
    code, shown = run(str(file))
    assert code == 0
    assert "== datasets.kv: 30 rows" in shown and "== evaluate.mdqa: 32 rows" in shown
    assert "evaluate.bench: not audited: another library brings its questions" in shown
    code, shown = run(str(file), "--json", "--rows", "10", "--set", "finetune.reseed_data=true")
    found = json.loads(shown)
    assert [one["name"] for one in found["audited"]] == ["datasets.kv", "datasets.kv (seed +1)", "evaluate.mdqa"]
    assert {one["rows"] for one in found["audited"]} == {10}
    assert [(pair["prompts"], pair["questions"]) for pair in found["shared"]] == [(0, 0), (0, 0)]


def test_prompts_that_training_and_evaluation_share_are_found(tmp_path: Path) -> None:
    files = chats(tmp_path / "mine.jsonl", "A", "B", "C"), chats(tmp_path / "other.jsonl", "C", "D")
    mine, other = (task_of("messages", 0, [f"source={file}"]) for file in files)
    done = audit([Subject("mine", mine, True), Subject("other", other, False)], BASE)
    assert done.problems() == ["mine and other: 1 of the same prompts"]
    assert (done.shared[0].prompts, done.shared[0].questions) == (1, 1)
    assert "none: what your own rows ask" in done.text()


def test_rows_that_come_twice_and_wrong_rows_end_with_their_ids() -> None:
    tally = Tally()
    row = {
        "example_id": "a", "question_id": "a", "prompt": "Which one?", "answer": "this", "references": ["this"],
        "prompt_tokens": 3, "length": None, "subtask": None, "condition": None,
    }  # fmt: skip
    for name in "ab":
        tally.take(row | {"example_id": name, "question_id": name}, None, lambda answer, references: 1.0)
    tally.refuse(row | {"example_id": "c"}, "planted")
    done = Audit([Audited("toy", tally)])
    assert done.problems() == ["toy: 1 of 2 rows are not confirmed", "toy: 1 prompts come again"]
    assert "c: planted\n    Which one?" in done.text() and "b: the prompt of a" in done.text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["simple_kw"], "did you mean 'simple_kv'?"),
        (["simple_kv", "--scale", "small"], "expected a sweep file"),
        (["lm_eval", "--set", "benchmark=nq_open"], "found nothing to audit"),
        ([str(QUICKSTART), "--seed", "3"], "type --set SECTION.NAME.seed=3"),
    ],
)
def test_what_cannot_be_audited_is_an_error_that_says_what_to_type(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["audit", *words])
    assert done.exit_code == 2 and told in done.output
