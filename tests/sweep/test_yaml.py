"""A sweep file of any content is answered within two seconds, with one message per mistake and its line."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from toy_tasks import Quiz, Toy

from kvray.driver.run import prepare
from kvray.errors import InputError
from kvray.sweep.load import load
from kvray.tasks.base import REGISTRY

HEAD = "name: a\nbase_model: kvray-tiny\n"
ASK = "evaluate:\n  ask: {task: toy}\n"
TOYS = "datasets:\n" + "".join(f"  d{i}: {{task: toy, seed: {i}}}\n" for i in range(3000))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setitem(REGISTRY, "quiz", Quiz)
    monkeypatch.chdir(tmp_path)


def problems(text: str | bytes, *overrides: str) -> list[str]:
    """Return what is told of a file by a plan, which must take no more than two seconds."""
    Path("s.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        prepare("s.yaml", overrides)
    assert time.process_time() - started < 2
    assert all(line.isprintable() for line in caught.value.problems)
    return caught.value.problems


MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9) if i else '{x: 1}'}]}}\n" for i in range(20))
MERGE_CHAIN = "".join(f"a{i}: &a{i} {{<<: {f'*a{i - 1}' if i else '{x: 1}'}}}\n" for i in range(3000))
ALIAS_CHAIN = "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(3000))
BLOCKS = "".join("  " * i + "a:\n" for i in range(500))
QUESTIONS = "evaluate:\n" + "".join(f"  d{i}: {{task: toy, seed: {i + 9000}}}\n" for i in range(900))
DEEP = "found over 32 mappings or lists inside each other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + MERGES, r"s\.yaml:3: found over 20,000 values \(aliases included\)"),
        (MERGE_CHAIN, rf"s\.yaml:1: {DEEP} \(aliases included\)"),
        (ALIAS_CHAIN, rf"s\.yaml:1: {DEEP} \(aliases included\)"),
        ("name: a\nx: " + "[" * 20000, rf"s\.yaml:2: {DEEP}"),
        ("name: a\nx: " + "{a: " * 20000, rf"s\.yaml:2: {DEEP}"),
        (BLOCKS, rf"s\.yaml:33: {DEEP}"),
        (HEAD + "evaluate:\n" + "  a: {task: toy}\n" * 600_000, r"s\.yaml: found over 1,048,576 bytes; expected"),
        (HEAD + "x: [" + "1, " * 300_000 + "]", r"s\.yaml:3: found over 20,000 values; expected fewer"),
        (
            HEAD + ASK + f"runtime: {{retries: {'9' * 5000}}}",
            r"s\.yaml:5: runtime\.retries: found a whole n.* 5,000 digits",
        ),
        (HEAD + ASK + 'tokenizer: "a\\0b"', r"s\.yaml:5: tokenizer: found the character '\\x00'; expected text"),
        (HEAD + ASK + '"a\\0b": 1\n', r"s\.yaml:5: found the key 'a\\x00b'; expected a name"),
        (HEAD + ASK + '"a\\nb": 1\n', r"s\.yaml:5: 'a\\nb': found 'a\\nb'; expected one of: "),
        (HEAD + "x: \x07\n", r"s\.yaml:3: not YAML: found the character '\\x07'"),
        (HEAD.encode() + b"x: \xff\n", r"s\.yaml:3: found bytes that are not UTF-8 at byte 34"),
        (HEAD.encode("utf-16"), r"s\.yaml:1: found bytes that are not UTF-8 at byte 0"),
        (HEAD + ASK + "system_message: !!str 5\n", r"s\.yaml:5: system_message: found the tag tag:yaml.org,2002:str"),
        (
            HEAD + "evaluate:\n  ask: {task: [toy]}\n",
            r"s\.yaml:4: evaluate\.ask\.task: found \[\"toy\"\]; expected one",
        ),
        (
            HEAD + ASK + "finetune: x\ngrid: {finetune.epochs: [1, 2]}\n",
            r"s\.yaml:5: finetune: found 'x'; expected a m",
        ),
        (HEAD + TOYS + QUESTIONS, r"s\.yaml:3: datasets: .* 2,700,000 pairs"),
        (HEAD + ASK + "finetune: {epochs: 1e999}\n", r"s\.yaml:5: finetune\.epochs: found '1e999'; expected a number"),
    ],
)
def test_one_message_with_its_line_within_two_seconds(text: str | bytes, message: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert re.match(message, found[0]), found


def test_of_very_many_mistakes_the_first_are_told() -> None:
    mixtures = "mixtures:\n" + "".join(f"  m{i}: {{x{i}: 1}}\n" for i in range(3000))
    for text in (HEAD + TOYS + mixtures, HEAD + ASK + "".join(f"k{i}: 1\n" for i in range(9000))):
        found = problems(text)
        assert len(found) == 101
        assert all(re.match(r"s\.yaml:\d+: ", line) for line in found[:100])
        assert found[100] == "s.yaml: more problems than these 100"


def test_what_is_no_file_is_refused_at_once() -> None:
    os.mkfifo("pipe.yaml")
    Path("folder.yaml").mkdir()
    for name, kind in {"pipe.yaml": "a pipe", "/dev/zero": "a pipe", "folder.yaml": "a directory"}.items():
        with pytest.raises(InputError, match=f"{name}: found {kind}.*; expected a file"):
            load(name)
    for name in ("a\0b", "x" * 300, "~nobodyatall/x.yaml"):
        with pytest.raises(InputError, match="found no readable file"):
            load(name)


def test_byte_order_marks_and_line_ends_of_other_systems_are_read() -> None:
    wrong = HEAD + ASK + "finetune:\n  epochs: x\n"
    for text in (
        wrong.encode(),
        b"\xef\xbb\xbf" + wrong.encode(),
        wrong.replace("\n", "\r\n").encode(),
        wrong.replace("\n", "\r").encode(),
    ):
        assert problems(text) == ["s.yaml:6: finetune.epochs: found 'x'; expected a number"]  # fmt: skip


def test_a_wrong_item_of_a_list_is_told_once() -> None:
    text = HEAD + "evaluate:\n  ask: {task: mdqa, positions: [1, x], documents: 3, questions: 5}\n"
    assert problems(text) == ["s.yaml:4: evaluate.ask.positions[1]: found 'x'; expected a whole number"]


def test_a_mistake_that_an_alias_repeats_is_told_once_where_it_was_written() -> None:
    text = HEAD + "evaluate:\n  ask: &ask {task: toy, rws: 3}\n  again: {<<: *ask, seed: 3}\n  third: *ask\n"
    (found,) = problems(text)
    assert found.startswith("s.yaml:4: evaluate.ask.rws: found 'rws'")
    unset = text.replace("rws: 3", 'rows: "${KVRAY_NOT_SET}"')
    (found,) = problems(unset)
    assert found.startswith("s.yaml:4: evaluate.ask.rows: found '${KVRAY_NOT_SET}'")


def test_two_equal_mistakes_in_one_line_are_two() -> None:
    assert len(problems(HEAD + "evaluate: {a: {task: toy, rws: 3}, b: {task: toy, rws: 3}}\n")) == 2


def test_nothing_is_said_of_what_a_problem_hides() -> None:
    (found,) = problems(HEAD + "evaluate: !x {ask: {task: toy}}\n")
    assert found.startswith("s.yaml:3: evaluate: found the tag")


def test_problems_of_sources_base_model_and_plan_have_the_line_of_the_value() -> None:
    text = """\
name: a
base_model: kvray-tinny
datasets:
  one: {task: toy, seed: 3}
evaluate:
  ask:
    task: quiz
    source: nowhere.txt
"""
    found = problems(text)
    assert [line.split(": ")[:2] for line in found] == [["s.yaml:2", "base_model"], ["s.yaml:6", "evaluate.ask"]]
    (found,) = problems(text.replace("task: quiz", "task: mdqa").replace("kvray-tinny", "kvray-tiny"))
    assert found.startswith("s.yaml:8: evaluate.ask.source: nowhere.txt cannot be read")


def test_a_base_model_of_the_command_line_is_told_as_such() -> None:
    Path("s.yaml").write_text(HEAD + ASK)
    with pytest.raises(InputError, match=r"^--base-model: base_model: '?nonsense"):
        prepare("s.yaml", base_model="nonsense")
    with pytest.raises(InputError, match=r"^--set base_model: base_model: '?nonsense"):
        prepare("s.yaml", ["base_model=nonsense"])


def test_the_same_data_under_two_names_is_told_once_at_the_second() -> None:
    twice = "datasets:\n  one: {task: toy, seed: 3}\n  two: {task: toy, seed: 3}\n"
    assert problems(HEAD + twice + ASK) == [
        "s.yaml:5: datasets.two: found the same examples as datasets.one; expected one of the two, or another seed"
    ]
    mixed = "datasets:\n  one: {task: toy, seed: 3}\nmixtures:\n  m: {one: 1}\n  n: {one: 2}\n"
    assert problems(HEAD + mixed + ASK) == [
        "s.yaml:7: mixtures.n: found the same finetune as mixture m; expected one of the two"
    ]
    asked = HEAD + ASK + "  again: {task: toy}\n  third: {task: toy}\n"
    assert [line[:26] for line in problems(asked)] == ["s.yaml:5: evaluate.again: ", "s.yaml:6: evaluate.third: "]


def test_a_grid_value_that_no_source_has_is_told_at_its_line() -> None:
    text = HEAD + "evaluate: {ask: {task: mdqa, documents: 3, questions: 5}}\n"
    text += "grid:\n  evaluate.ask.source:\n  - tiny\n  - gone.jsonl\n"
    (found,) = problems(text)
    assert found.startswith("s.yaml:7: grid.evaluate.ask.source[1]: gone.jsonl cannot be read")


def test_a_device_or_a_pipe_is_no_source() -> None:
    os.mkfifo("pipe.jsonl")
    for source in ("/dev/zero", "pipe.jsonl"):
        text = HEAD + f"evaluate:\n  ask:\n    task: mdqa\n    source: {source}\n"
        assert problems(text) == [
            f"s.yaml:6: evaluate.ask.source: {source} cannot be read: it is neither a file nor a directory"
        ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.epochs=[", r"--set finetune\.epochs: finetune\.epochs: not YAML"),
        ("finetune.epochs=" + "[" * 5000, r"--set finetune\.epochs: finetune\.epochs: found over 32 mappings"),
        ("finetune.seeds=" + "9" * 5000, r"--set finetune\.seeds: finetune\.seeds: found a whole number of 5,000"),
        ("name=\udcff", r"--set name: name: not YAML: found the character '\\udcff'"),
        ("a\nb=1", r"--set a\\nb: 'a\\nb': found 'a\\nb'; expected one of"),
        ("=1", r"--set: found '=1'; expected KEY\.KEY=VALUE"),
        ("finetune.=1", r"--set: found 'finetune\.=1'; expected KEY\.KEY=VALUE"),
        ("name.x.y=1", r"--set name\.x\.y: name\.x\.y: found 'a' at name; expected a mapping"),
        ("name=&a [*a]", r"--set name: name\[0\]: found an alias inside its own anchor"),
        ("x" * 9000 + "=1", r"--set x{199}…: x{59}…: found 'x+…; expected one of"),
    ],
)
def test_what_is_typed_is_told_as_typed(override: str, message: str) -> None:
    (found,) = problems(HEAD + ASK, override)
    assert re.match(message, found), found


def test_a_scale_s_problems_are_told_at_the_lines_of_their_values() -> None:
    text = HEAD + ASK + "scales:\n  small:\n    evaluate.ask:\n      rows: 3\n      size: 0\n    finetune.method.x: 1\n"
    Path("s.yaml").write_text(text + "finetune: {method: lora}\n")
    with pytest.raises(InputError) as caught:
        load("s.yaml", scale="small")
    assert [line.split(": found")[0] for line in caught.value.problems] == [
        "s.yaml:9: evaluate.ask.size",
        "s.yaml:10: scales.small.finetune.method.x",
    ]
