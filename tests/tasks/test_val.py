"""VaL probing: FILM's scorers and skip lists, its published rows, and contexts made of pieces without ambiguity."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from kvray.errors import InputError, InvalidValueError
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.in2.fill import LAYOUT
from kvray.tasks.val.contexts import PIECE_WORDS, TEXTS, Probe, tiny
from kvray.tasks.val.val import ValProbing

PROBES: tuple[Probe, ...] = get_args(Probe)
# As in the authors' VaLProbing/pieces.
RAW: dict[str, list[dict[str, str]]] = {
    "document_sentences.jsonl": [
        {"sentence": f"Given case {n} we find that the mode of exchange number {n} arises in all of them.",
         "piece": f"find that the mode of exchange number {n}"} for n in range(10, 22)
    ],
    "code_functions.jsonl": [
        {"function_name": f"read_{n}", "function_define": f"    a = {n}\n    if b > {n * 1000 + n}:\n    return a",
         "piece": f"if b > {n * 1000 + n}:"} for n in range(10, 22)
    ],
    "database_entities.jsonl": [
        {"id": f"Q76284{n}", "label": f"Category:Groups of {n}", "dcpt": "Wikimedia category"} for n in range(10, 22)
    ],
}  # fmt: skip


def words(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def made(**knobs: Any) -> list[dict[str, Any]]:
    task = ValProbing(**knobs)
    context = task.context(words)
    table = task.build(0, task.count(context), context)
    assert table.schema.equals(EXAMPLE_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def parts(prompt: str) -> tuple[str, str]:
    """Return the context and the instruction of a prompt in FILM's layout."""
    before, between, _ = LAYOUT.replace("{question}", "{context}").split("{context}")
    context, _, instruction = prompt.removeprefix(before).partition(between)
    assert prompt == LAYOUT.format(context=context, question=instruction)
    return context, instruction


def key_of(probe: str, instruction: str) -> str:
    before, after = TEXTS["instructions"][probe].split("{key}")
    return str(instruction.removeprefix(before).removesuffix(after))


@pytest.mark.parametrize("probe", PROBES)
def test_what_is_asked_for_stands_once_at_every_position_among_the_same_others(probe: Probe) -> None:
    rows = made(probe=probe, pieces=30, questions=12)
    task = ValProbing(probe=probe, pieces=30)
    assert len(rows) == 12 * 5 and [row["position"] for row in rows[:5]] == [1, 8, 15, 22, 30]
    others: dict[str, set[frozenset[str]]] = {}
    for row in rows:
        context, instruction = parts(row["prompt"])
        pieces = context.replace("\n    ", "\v").split("\n")
        key = key_of(probe, instruction)
        assert len(pieces) == 30 == row["units"] and context.count(key) == 1
        gold = pieces.pop(row["position"] - 1)
        assert key in gold and all(reference in gold for reference in row["references"])
        assert row["answer"] == row["references"][0] and task.score(row["answer"], row["references"]) == 1.0
        others.setdefault(row["question_id"], set()).add(frozenset(pieces))
    assert len(others) == 12 and all(len(contexts) == 1 for contexts in others.values())
    assert made(probe=probe, pieces=30, questions=3) == rows[:15]
    assert made(probe=probe, pieces=30, questions=1, seed=1)[0]["prompt"] != rows[0]["prompt"]


def test_made_up_pieces_are_of_the_published_make() -> None:
    for piece in tiny("document", 0)[:200]:
        assert len(piece.key.split()) == PIECE_WORDS and piece.key in piece.references[0]
    for piece in tiny("code", 0)[:200]:
        name, *lines = piece.text.split("\n")
        assert name == f"def {piece.references[0]}():" and len(lines) == 3
        assert lines[1] == f"    {piece.key}" and all(line.startswith("    ") for line in lines)
    for piece in tiny("database", 0)[:200]:
        assert piece.key.startswith("Q") and len(piece.references) == 2
    assert all(len(tiny(probe, 0)) > 1900 for probe in PROBES)


def test_contexts_are_as_long_as_the_published_ones_unless_told() -> None:
    assert [ValProbing(probe=probe).units() for probe in PROBES] == [800, 800, 750]
    assert all(30_000 < ValProbing(probe=probe).tokens_estimate() < 34_000 for probe in PROBES)


@pytest.mark.parametrize(
    ("probe", "answer", "references", "score"),
    [
        ("document", "Given the WEALTH inequality", ["Given the wealth inequality worldwide, there"], 4 / 6),
        (
            "document",
            "The sentence is: worldwide, given there",
            ["Given the wealth inequality worldwide, there"],
            4 / 6,
        ),
        ("document", "", ["A word"], 0.0),
        ("document", "the the the", ["the end of the road"], 1 / 4),
        ("code", " `read_files`.", ["read_files"], 1.0),
        ("code", "Read_Files", ["read_files"], 0.0),
        ("code", "it is run", ["run."], 1.0),
        ("database", "It is the 18 belmont crescent", ["18 Belmont Crescent.", "building in Glasgow"], 1.0),
        ("database", "a Building in glasgow city", ["18 Belmont Crescent", "building in Glasgow"], 1.0),
        ("database", "18 Belmont", ["18 Belmont Crescent", "building in Glasgow"], 0.0),
    ],
)
def test_scores_are_those_of_the_authors_plots(probe: Probe, answer: str, references: list[str], score: float) -> None:
    assert ValProbing(probe=probe).score(answer, references) == pytest.approx(score)


def published(folder: Path, probe: Probe, sets: int = 2, positions: int = 6) -> None:
    """Write rows as the hub has them: one space where a field is not of this probe."""
    rows = []
    for of_set in range(sets):
        for at in range(positions):
            own = (
                {"label": f"Label {at}", "description": f"kind {of_set}", "completion": " "}
                if probe == "database"
                else {"label": " ", "description": " ", "completion": f"{probe}_{at} done"}
            )
            prompt = f"[INST] Below {{braces}}.\n\n### Context:\nc{of_set}\n\n### Instruction:\nq{at} [/INST]"
            rows.append({"prompt": prompt, "position_id": at, "set_id": of_set, **own})
    name = {"document": "document_bi_32k", "code": "code_backward_32k", "database": "database_forward_32k"}[probe]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("probe", PROBES)
def test_published_rows_are_asked_as_they_are_without_the_template_of_one_model(tmp_path: Path, probe: Probe) -> None:
    for each in PROBES:
        published(tmp_path, each)
    rows = made(probe=probe, source=str(tmp_path), questions=2, positions=[1, 2, 6])
    assert len(rows) == 2 * 3
    first = rows[1]
    assert first["prompt"] == "Below {braces}.\n\n### Context:\nc0\n\n### Instruction:\nq1"
    assert (first["position"], first["units"], first["question_id"]) == (2, 6, f"{probe}-0-2")
    wanted = ["Label 1", "kind 0"] if probe == "database" else [f"{probe}_1 done"]
    assert first["references"] == wanted and first["answer"] == wanted[0]
    assert len({row["example_id"] for row in rows}) == 6
    assert len(made(probe=probe, source=str(tmp_path), questions=1)) == 5


def test_rows_that_the_authors_skip_are_left_out(tmp_path: Path) -> None:
    skipped = TEXTS["skipped"]
    assert (len(skipped["document"]), len(set(skipped["code"])), skipped["database"]) == (0, 313, [774, 1126])
    assert skipped["code"] == sorted(skipped["code"]) and skipped["code"][-1] < 3200
    published(tmp_path, "code", positions=20)
    rows = made(probe="code", source=str(tmp_path), questions=2, positions=list(range(1, 21)))
    # Numbers 8 and 17 of the file are in the first set.
    assert len(rows) == 38 and {9, 18} & {row["position"] for row in rows[:18]} == set()


@pytest.mark.parametrize("probe", PROBES)
def test_raw_pieces_of_the_authors_make_contexts_of_any_size(tmp_path: Path, probe: Probe) -> None:
    for name, rows in RAW.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = made(probe=probe, source=str(tmp_path), pieces=6, questions=3, positions=[1, 6])
    assert len(examples) == 6
    for example in examples:
        context, instruction = parts(example["prompt"])
        assert context.count(key_of(probe, instruction)) == 1
        assert all(reference in context for reference in example["references"])
    with pytest.raises(InputError, match=r"pieces: 13 in a context, but .* has 12; type pieces: 12"):
        made(probe=probe, source=str(tmp_path), pieces=13)


def test_pieces_that_say_the_same_are_not_asked_for(tmp_path: Path) -> None:
    rows = [{"sentence": f"Of {n} the same is said here.", "piece": "the same is said"} for n in range(8)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="whatever could be asked for occurs twice"):
        made(source=str(tmp_path / "p.jsonl"), pieces=4)


@pytest.mark.parametrize(
    ("rows", "knobs", "message"),
    [
        ([{"text": "x"}], {}, r"no 'sentence', 'piece' \(raw pieces of the document probe\); found the fields text"),
        ([{"prompt": "x", "position_id": 0, "set_id": 0, "completion": " "}], {}, "no 'completion'"),
        ([{"prompt": "x", "set_id": 0, "completion": "y"}], {}, "no 'position_id'"),
        ([{"prompt": "x", "position_id": 0, "set_id": 0, "completion": "y"}], {"questions": 2}, "type questions: 1"),
        ([{"prompt": "x", "position_id": 0, "set_id": 0, "completion": "y"}], {"questions": 1, "positions": 3},
         r"positions: found \[3\], none of which"),
    ],
)  # fmt: skip
def test_sources_that_hold_something_else_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], knobs: dict[str, Any], message: str
) -> None:
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message):
        made(source=str(tmp_path / "f.jsonl"), **knobs)


def test_positions_are_within_the_context() -> None:
    with pytest.raises(InvalidValueError, match=r"positions: found \[751\], expected 1 to pieces \(750\)"):
        ValProbing(probe="database", positions=[1, 751])
