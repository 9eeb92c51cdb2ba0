"""A sweep file is read strictly: every mistake is told at once, with its line and the nearest valid name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_tasks import Quiz, Toy

from kvray.errors import InputError
from kvray.sweep.grid import Variant, suffix, variants
from kvray.sweep.load import load
from kvray.sweep.model import Finetune, Sweep
from kvray.sweep.schema import json_schema
from kvray.tasks.base import REGISTRY

Load = Callable[..., Sweep]
GOOD = """\
name: good
base_model: kvray-tiny
datasets:
  ours: {task: toy, rows: 20}
  other: {task: toy, seed: 1}
evaluate:
  ask: {task: toy, seed: 9}
"""


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.setitem(REGISTRY, "quiz", Quiz)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(tmp_path)

    def of(text: str, *overrides: str, scale: str | None = None) -> Sweep:
        Path("s.yaml").write_text(text, encoding="utf-8")
        return load("s.yaml", overrides, scale)

    return of


def label(variant: Variant) -> str:
    return suffix([(str(path[-1]), value) for path, value in variant.changes])


def problems(read: Load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        read(text, *overrides)
    assert caught.value.exit_status == 2
    return caught.value.problems


def test_a_good_file_is_read_with_defaults(read: Load) -> None:
    sweep = read(GOOD)
    assert isinstance(sweep.datasets["ours"], Toy)
    assert sweep.datasets["ours"].rows == 20
    assert sweep.mixtures == {"ours": {"ours": 1.0}, "other": {"other": 1.0}}
    assert sweep.finetune == Finetune()
    assert Sweep.model_validate(json.loads(sweep.model_dump_json())) == sweep


def test_five_mistakes_give_five_messages_in_the_order_of_the_file(read: Load) -> None:
    text = """\
name: five
base_model: kvray-tiny
datasets:
  ours: {task: toy, rws: 20}
  other: {task: tooy}
mixtures: {m: {ors: 1}}
finetune:
  epochs: -1
evaluate:
  ask: {task: toy, seed: 9, law: papr}
"""
    assert problems(read, text) == [
        "s.yaml:4: datasets.ours.rws: found 'rws'; expected one of: task, seed, rows, size, law, positions; "
        "did you mean 'rows'?",
        f"s.yaml:5: datasets.other.task: found 'tooy'; expected one of the tasks: {', '.join(sorted(REGISTRY))}; "
        "did you mean 'toy'?",
        "s.yaml:6: mixtures.m.ors: found 'ors'; expected one of the datasets: ours, other; did you mean 'ours'?",
        "s.yaml:8: finetune.epochs: found -1; expected greater than 0",
        "s.yaml:10: evaluate.ask.law: found 'papr'; expected 'paper' or 'strict'; did you mean 'paper'?",
    ]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("finetune: {learning_rte: 1}", r"s.yaml:8: finetune.learning_rte: found .*did you mean 'learning_rate'\?"),
        ("name: again", r"s.yaml:8: name: found the key twice, first in line 1; expected it once"),
        ("finetune: {epochs: true}", r"finetune.epochs: found true; expected a number"),
        ("finetune: {batch_size: 1.5}", r"finetune.batch_size: found 1.5; expected a whole number"),
        ("finetune: {epochs: .inf}", r"finetune.epochs: found '.inf'; expected a number"),
        ("finetune: {seeds: [1, 1]}", r"finetune.seeds: found \[1, 1\]; expected every seed once"),
        ("finetune: {seeds: []}", r"finetune.seeds: found \[\]; expected at least 1 of them"),
        ("finetune: 3", r"s.yaml:8: finetune: found 3; expected a mapping"),
        ("runtime: {engins: 2}", r"runtime.engins: found 'engins'; .*did you mean 'engines'\?"),
        ("mixtures: {m: {ours: 0}}", r"mixtures.m.ours: found 0; expected greater than 0"),
        ("finetune: {lora_rank: 513}", r"finetune.lora_rank: found 513; expected less than or equal to 512"),
        ("finetune: {lora_targets: all_linear}", r"lora_targets: found 'all_linear'; .* did you mean 'all-linear'"),
        ("finetune: {lora_targets: []}", r"finetune.lora_targets: found \[\]; expected .*at least 1 of them"),
        ("finetune: {learning_rate: 0}", r"finetune.learning_rate: found 0; expected greater than 0"),
        ("grid: {finetune.lora_rank: [8, 513]}", r"s.yaml:8: grid.finetune.lora_rank\[1\]: found 513; .* equal to 512"),
        ("mixtures: {m: {}}", r"mixtures.m: found no dataset; expected DATASET: WEIGHT"),
        ("mixtures: {'a b': {ours: 1}}", r"mixtures.a b: found the name 'a b'; expected up to 80 letters"),
        (
            f"mixtures: {{{'n' * 81}: {{ours: 1}}}}",
            r"mixtures.nnn.*: found the name 'nnn.*expected up to 80 ",
        ),
        ("mixture: {m: {ours: 1}}", r"s.yaml:8: mixture: .*did you mean 'mixtures'\?"),
        ("grid: {finetune.lr: [1]}", r"s.yaml:8: grid.finetune.lr: found 'finetune.lr'; expected a path like"),
        ("grid: {finetune.epoch: [1]}", r"did you mean 'finetune.epochs'\?"),
        ("grid: {datasets.our.rows: [1]}", r"did you mean 'datasets.ours.rows'\?"),
        ("grid: {finetune.epochs: 2}", r"s.yaml:8: grid.finetune.epochs: found 2; expected a list"),
        ("grid: {finetune.epochs: []}", r"s.yaml:8: grid.finetune.epochs: found an empty list; expected at least one"),
        ("grid: {finetune.epochs: [2, 2]}", r"grid.finetune.epochs\[1\]: found 2 twice"),
        ("grid: {finetune.epochs: [2, x]}", r"grid.finetune.epochs\[1\]: found 'x'; expected a number"),
        ("grid: {finetune.seeds: [1, 2]}", r"expected the list of seeds in finetune itself"),
        ("grid: {base_model: [a, b]}", r"expected one base model per sweep"),
        ("grid: {runtime.engines: [1, 2]}", r"grid.runtime.engines: found 'runtime.engines'; expected a path like"),
        (
            "zip: {finetune.epochs: [1, 2], finetune.batch_size: [1]}",
            r"zip: found lists of 2 \(finetune.epochs\) and 1",
        ),
        ("datasets2: {}", r"s.yaml:8: datasets2: found 'datasets2'; .*did you mean 'datasets'\?"),
    ],
)
def test_each_kind_of_mistake_is_told(read: Load, added: str, message: str) -> None:
    found = problems(read, GOOD + added + "\n")
    assert any(re.search(message, line) for line in found), found
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "s.yaml:1: found an empty file; expected a mapping"),
        ("# only a comment\n", "s.yaml:1: found an empty file"),
        ("- a\n- b\n", "s.yaml:1: found a list; expected a mapping"),
        ("name: a\n\tb: c\n", "s.yaml:2: not YAML: .*found a tab; expected spaces"),
        ("name: [a\n", "s.yaml:2: not YAML"),
        ("name: a\n---\nname: b\n", "s.yaml:2: not YAML"),
        ("a: {b: ${HOME}}\n", 'write "\\${NAME}" in quotes'),
        ("name: !!python/object:os.system x\n", "s.yaml:1: name: found the tag"),
        ("name: &a [*a]\n", "s.yaml:1: name.0.?: found an alias inside its own anchor|found an alias inside"),
    ],
)
def test_what_is_no_mapping_is_refused_clearly(read: Load, text: str, message: str) -> None:
    assert re.search(message, "\n".join(problems(read, text)))


def test_a_missing_file_and_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no readable file"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        load(str(tmp_path / "bytes.yaml"))


def test_a_file_of_nested_aliases_does_not_explode(read: Load) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "aliases included" in problems(read, bomb)[0]


def test_scalars_mean_what_they_look_like(read: Load) -> None:
    sweep = read(GOOD + "finetune: {learning_rate: 1e-5, epochs: 1_0, seeds: 3}\n")
    assert sweep.finetune.learning_rate == 1e-5
    assert sweep.finetune.epochs == 10.0
    assert sweep.finetune.seeds == (3,)
    assert read(GOOD.replace("name: good", "name: no")).name == "no"


def test_anchors_and_merge_keys_work(read: Load) -> None:
    text = GOOD + "  more: &m {task: toy, seed: 3, rows: 4}\n  again: {<<: *m, seed: 4}\n"
    sweep = read(text)
    assert sweep.evaluate["again"].model_dump() == {**sweep.evaluate["more"].model_dump(), "seed": 4}


def test_an_empty_section_is_an_absent_one(read: Load) -> None:
    assert read(GOOD + "finetune:\nmixtures:\ngrid:\n") == read(GOOD)


def test_variables_come_from_the_environment(read: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD + "  file:\n    task: quiz\n    source: ${KVRAY_T}/q.txt\n    seed: ${KVRAY_S:-5}\n"
    monkeypatch.setenv("KVRAY_T", "/data")
    sweep = read(text)
    assert isinstance(sweep.evaluate["file"], Quiz)
    assert (sweep.evaluate["file"].source, sweep.evaluate["file"].seed) == ("/data/q.txt", 5)
    monkeypatch.delenv("KVRAY_T")
    assert problems(read, text) == [
        "s.yaml:10: evaluate.file.source: found '${KVRAY_T}/q.txt' but KVRAY_T is not set; "
        "expected it in the environment, or ${KVRAY_T:-…}"
    ]
    assert read(text, "evaluate.file.source=/here").evaluate["file"].model_dump()["source"] == "/here"


def test_a_dollar_can_be_written(read: Load) -> None:
    sweep = read(GOOD + "  file: {task: quiz, source: '$${HOME}'}\n")
    assert sweep.evaluate["file"].model_dump()["source"] == "${HOME}"


def test_overrides_are_checked_like_the_file(read: Load) -> None:
    sweep = read(GOOD, "datasets.ours.rows=7", "finetune.seeds=[0, 1]", "evaluate.new={task: toy, seed: 4}", "name=b")
    assert (sweep.datasets["ours"].model_dump()["rows"], sweep.finetune.seeds, sweep.name) == (7, (0, 1), "b")
    assert set(sweep.evaluate) == {"ask", "new"}
    assert read(GOOD, "grid.finetune.epochs=[1, 2]").grid == {"finetune.epochs": [1, 2]}
    found = problems(read, GOOD, "datasets.ours.rws=7", "datasets.our.rows=7", "finetune.epochs=x", "oops", "name.x=1")
    starts = (
        "--set datasets.ours.rws: ",
        "--set datasets.our.rows: ",
        "--set finetune.epochs: ",
        "--set: ",
        "--set name.x",
    )
    assert len(found) == len(starts)
    for start in starts:
        assert any(line.startswith(start) for line in found), (start, found)
    assert any("did you mean 'rows'?" in line for line in found)
    assert any("did you mean 'ours'?" in line for line in found)


def test_names_with_dots_can_be_overridden(read: Load) -> None:
    text = GOOD + "  ask-v0.2: {task: toy, seed: 4}\n"
    assert read(text, "evaluate.ask-v0.2.rows=3").evaluate["ask-v0.2"].model_dump()["rows"] == 3


def test_what_only_evaluates_is_no_training_data(read: Load) -> None:
    found = problems(read, GOOD.replace("{task: toy, rows: 20}", "{task: quiz, source: q}"))
    assert found[0].startswith("s.yaml:4: datasets.ours.task: found 'quiz', which only evaluates; expected one of")


def test_training_on_the_evaluated_examples_is_refused(read: Load) -> None:
    found = problems(read, GOOD.replace("seed: 9", "seed: 1, rows: 3"))
    assert found == [
        "s.yaml:5: datasets.other: found training data that evaluate.ask asks about "
        "(the same examples are drawn by the same seed; give one another seed); expected them apart"
    ]
    with pytest.raises(ValueError, match=r"evaluate\.ask asks about"):
        Sweep(name="a", base_model="b", datasets={"d": Toy()}, evaluate={"ask": Toy(rows=3)})


def test_a_pair_of_tasks_is_asked_once_for_overlaps_however_many_variants(
    read: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(Toy, "overlaps", lambda self, other: asked.append((self, other)))
    read(GOOD + "grid: {finetune.epochs: [1, 2, 3, 4]}\n")
    assert len(asked) == len(set(asked)) == 2  # ours and other against ask


def test_an_unreadable_source_is_left_to_the_facts(read: Load) -> None:
    text = GOOD.replace("{task: toy, seed: 1}", "{task: mdqa, split: train, source: /nowhere.jsonl}")
    text += "  real: {task: mdqa, source: /nowhere.jsonl}\n"
    assert set(read(text).datasets) == {"ours", "other"}
    assert (
        "split: train" in problems(read, text.replace("/nowhere.jsonl", "tiny").replace("split: train", "seed: 3"))[0]
    )


def test_a_grid_value_that_fits_no_combination_is_told_at_its_line(read: Load) -> None:
    text = GOOD + "grid:\n  evaluate.ask.size: [4, 20]\n  evaluate.ask.positions:\n    - [1, 3]\n    - [1, 20]\n"
    found = problems(read, text)
    assert len(found) == 1
    assert re.match(r"s.yaml:(9|10|12): grid\.evaluate\.ask\..*found 20; expected at most size = 4", found[0])
    zipped = text.replace("grid:", "zip:")
    assert [label(v) for v in variants(read(zipped))] == ["[size=4,positions=[1,3]]", "[size=20,positions=[1,20]]"]


def test_a_grid_is_a_product_and_zip_goes_side_by_side(read: Load) -> None:
    sweep = read(
        GOOD
        + "grid: {finetune.learning_rate: [1e-5, 5.0e-6], datasets.ours.law: [paper, strict]}\n"
        + "zip: {finetune.epochs: [1, 2], finetune.batch_size: [8, 16]}\n"
    )
    labels = [label(variant) for variant in variants(sweep)]
    assert len(labels) == len(set(labels)) == 8
    assert labels[:3] == [
        "[learning_rate=1e-05,law=paper,epochs=1.0,batch_size=8]",
        "[learning_rate=1e-05,law=paper,epochs=2.0,batch_size=16]",
        "[learning_rate=1e-05,law=strict,epochs=1.0,batch_size=8]",
    ]
    assert all(not variant.sweep.grid and not variant.sweep.zip for variant in variants(sweep))
    assert [label(variant) for variant in variants(read(GOOD))] == [""]


def test_a_grid_beyond_reason_is_refused(read: Load) -> None:
    values = list(range(1, 41))
    found = problems(read, GOOD + f"grid: {{finetune.batch_size: {values}, datasets.ours.rows: {values}}}\n")
    assert len(found) == 1
    assert "found 1,600 variants (grid and zip); expected at most 1,000" in found[0]


def test_variants_of_a_sweep_made_in_python_are_checked() -> None:
    with pytest.raises(InputError, match="found -1; expected greater than"):
        Sweep(name="a", base_model="b", evaluate={"ask": Toy()}, grid={"evaluate.ask.rows": [1, -1]})


def test_the_schema_accepts_a_good_file_and_refuses_wrong_knobs(read: Load) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = {
        "name": "a",
        "base_model": "kvray-tiny",
        "datasets": {"d": {"task": "toy", "rows": 3}},
        "evaluate": {"q": {"task": "quiz", "source": "q.txt"}},
        "finetune": {"seeds": 3},
    }
    validator.validate(good)
    for wrong in ({"task": "toy", "rws": 3}, {"task": "quiz", "source": "q.txt"}, {"task": "none"}, {"rows": 3}):
        assert not validator.is_valid({**good, "datasets": {"d": wrong}}), wrong
    assert not validator.is_valid({**good, "finetune": {"epoch": 3}})


SCALED = """\
scales:
  small:
    base_model: kvray-tiny
    datasets.ours: {rows: 3}
    datasets.other: null
    evaluate.ask.seed: 4
    grid: null
grid:
  datasets.ours.rows: ["${NOT_SET_ROWS}"]
"""


def test_a_scale_merges_replaces_and_takes_away(read: Load) -> None:
    sweep = read(GOOD.replace("kvray-tiny", "org/big") + SCALED, scale="small")
    assert (sweep.name, sweep.base_model) == ("good-small", "kvray-tiny")
    assert list(sweep.datasets) == ["ours"] and sweep.datasets["ours"].rows == 3  # type: ignore[attr-defined]
    assert sweep.evaluate["ask"].seed == 4 and not sweep.grid
    assert read(GOOD + SCALED, "base_model=org/other", "datasets.ours.rows=7", scale="small").base_model == "org/other"


def test_a_scale_s_mistakes_are_told_at_their_line(read: Load) -> None:
    text = GOOD + SCALED.replace("rows: 3", "rowz: 3")
    with pytest.raises(InputError) as caught:
        read(text, scale="small")
    (told,) = caught.value.problems
    assert re.match(r"s\.yaml:11: datasets\.ours\.rowz: .*did you mean 'rows'", told)
    with pytest.raises(InputError, match="--scale: found the scale 'tiny'; expected one of the file's scales: small"):
        read(text, scale="tiny")
    with pytest.raises(InputError, match="the file has no scales"):
        read(GOOD, scale="small")
