"""Sweeps made in Python: the same sweep and the same messages as from a file, and a file of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvray.errors import InputError, InvalidValueError
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.sweep.load import load
from kvray.sweep.model import Finetune, Runtime, Sweep
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.qa.mdqa import Mdqa

ROOT = Path(__file__).parents[2]
FILES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "sweeps").rglob("*.yaml")
    if not {"tasks", "instructions"} & {*path.parts}
)
FILE = """\
name: mine
base_model: kvray-tiny
datasets:
  kv: {task: simple_kv, rows: 35, dictionaries: 6}
  more: {task: simple_kv, rows: 40, dictionaries: 6, seed: 3}
mixtures: {one: {kv: 1}, both: {kv: 1, more: 3}}
finetune: {learning_rate: 5e-6, seeds: [0, 1], max_length: null}
evaluate: {mdqa: {task: mdqa, documents: 5, questions: 20}}
grid: {finetune.learning_rate: [5e-6, 1e-5], datasets.kv.template: [true, false]}
runtime: {engines: 2}
"""


def in_python(**changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "mine",
        "base_model": "kvray-tiny",
        "datasets": {
            "kv": SimpleKV(rows=35, dictionaries=6),
            "more": {"task": "simple_kv", "rows": 40, "dictionaries": 6, "seed": 3},
        },
        "mixtures": {"one": {"kv": 1}, "both": {"kv": 1, "more": 3}},
        "finetune": Finetune(learning_rate=5e-6, seeds=(0, 1), max_length=None),
        "evaluate": {"mdqa": Mdqa(documents=5, questions=20)},
        "grid": {"finetune.learning_rate": (5e-6, 1e-5), "datasets.kv.template": [True, False]},
        "runtime": Runtime(engines=2),
    }
    return Sweep(**given | changes)


def problems(**changes: Any) -> list[str]:
    with pytest.raises(InvalidValueError) as caught:
        in_python(**changes)
    return caught.value.problems


def test_a_sweep_in_python_is_the_one_of_the_file_and_plans_the_same_artefacts(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    of_file, of_python = load(str(file)), in_python()
    assert of_python == of_file == Sweep.from_yaml(file)
    ids = [[artefact.id for artefact in plan(each, gather(each)).artefacts] for each in (of_file, of_python)]
    assert ids[0] == ids[1] and len(ids[0]) > 10


@pytest.mark.parametrize("scale", [None, "small"])
@pytest.mark.parametrize("file", FILES)
def test_every_sweep_is_written_and_read_back(file: str, scale: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("NQ_OPEN", "nq.jsonl")
    try:
        sweep = Sweep.from_yaml(file, scale=scale, allow_code=True)
    except InputError as error:
        assert "--scale" in str(error), "the file has no such scale"
        return
    assert Sweep.from_yaml(sweep.to_yaml(), allow_code=True) == sweep
    assert Sweep(**{name: getattr(sweep, name) for name in sweep.model_fields_set}) == sweep


ODD = "no|on|1e-5|1:30|0x10|007|~|null|| a |${HOME}|$${HOME}|$$${A}|a: b|a #b|- a|'|\"|{a}|[a|!tag|&a|*a|@|1_000|.5|<<"


@pytest.mark.parametrize("text", [*ODD.split("|"), "é\tü", "two\nlines\n", "\\n"])
def test_a_text_stays_the_text_that_it_is(text: str) -> None:
    sweep = in_python(system_message=text, scales={text or "x": {"finetune.epochs": 1.5}})
    assert Sweep.from_yaml(sweep.to_yaml(), allow_code=True) == sweep


def test_numbers_stay_the_numbers_that_they_are() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        rates = [float(10 ** rng.uniform(-12, 0.5)) for _ in range(3)]
        given = Finetune(learning_rate=rates[0], seeds=tuple(map(int, rng.choice(2**31, 4, replace=False))))
        sweep = in_python(finetune=given, grid={"finetune.learning_rate": rates})
        assert Sweep.from_yaml(sweep.to_yaml(), allow_code=True) == sweep


def test_a_file_is_written_and_changed_on_the_way_in(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert in_python().to_yaml(file) == file.read_text() == str(in_python())
    by_key = Sweep.from_yaml(file, set={"finetune.epochs": 3, "finetune.seeds": [4], "name": "1e-5"})
    assert (by_key.finetune.epochs, by_key.finetune.seeds, by_key.name) == (3.0, (4,), "1e-5")
    assert Sweep.from_yaml(file, set=["finetune.epochs=3", "finetune.seeds=[4]", "name='1e-5'"]) == by_key
    # What --set leaves without use is read, and not written into a file that would be refused for it.
    full = Sweep.from_yaml(FILE, set={"finetune.lora_rank": 8})
    full = Sweep.from_yaml(full.to_yaml(), set={"finetune.method": "full"})
    assert "lora_rank" not in full.to_yaml()
    assert Sweep.from_yaml(full.to_yaml()).finetune.recipe() == full.finetune.recipe()


def test_a_typo_in_a_knob_gives_the_message_of_a_file() -> None:
    with pytest.raises(InvalidValueError) as caught:
        SimpleKV(rwos=350, keys_min="x", rows=True)  # type: ignore[call-arg, arg-type]
    assert isinstance(caught.value, InputError) and isinstance(caught.value, ValueError)
    with pytest.raises(InputError) as of_file:
        Sweep.from_yaml(FILE.replace("rows: 35,", "rwos: 350, keys_min: x, rows: true,"))
    texts = {line.split(": datasets.kv.")[1] for line in of_file.value.problems}
    assert set(caught.value.problems) == texts and len(texts) == 3
    assert any("did you mean 'rows'?" in text for text in texts)


def test_every_mistake_of_a_sweep_is_told_at_once_as_for_a_file_without_its_lines() -> None:
    wrong = {
        "datasets": {"kv": {"task": "simple_kv", "rwos": 1}, "more": {"task": "simple_kw"}, "base ": SimpleKV()},
        "mixtures": {"one": {"kw": 1}, "base": {"kv": 1}},
        "finetune": {"epochs": -1, "seeds": "x"},
        "runtime": {"engines": True},
        "grid": {"finetune.epoch": [1], "finetune.warmup_ratio": [0.5, 2]},
        "reference": "artificial-needle",
    }
    told = problems(**wrong)
    text = "{name: mine, base_model: kvray-tiny, datasets: {kv: {task: simple_kv, rwos: 1}, more: {task: simple_kw},"
    text += " 'base ': {task: simple_kv}}, mixtures: {one: {kw: 1}, base: {kv: 1}}, finetune: {epochs: -1, seeds: x},\n"
    text += "evaluate: {mdqa: {task: mdqa, documents: 5, questions: 20}}, runtime: {engines: true},"
    text += " grid: {finetune.epoch: [1], finetune.warmup_ratio: [0.5, 2]}, reference: artificial-needle}\n"
    with pytest.raises(InputError) as of_file:
        Sweep.from_yaml(text)
    assert len(told) > 8
    assert sorted(told) == sorted(line.split(": ", 1)[1] for line in of_file.value.problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": [1]}, "datasets: found [1]; expected a mapping"),
        ({"datasets": {"kv": 3}, "mixtures": None, "grid": {}}, "datasets.kv: found 3; expected a mapping like {task"),
        ({"base_model": 3}, "base_model: found 3; expected text"),
        ({"mixtures": {"one": {"kw": 1}}}, "mixtures.one.kw: found 'kw'; expected one of the datasets: kv, more"),
        ({"mixture": {}}, "mixture: found 'mixture'; expected one of: name, "),
        ({"finetune": Runtime(engines=2)}, "finetune.engines: found 'engines'; expected one of: method, "),
        ({"finetune": {"method": "full", "lora_rank": 8}}, "finetune.lora_rank: found 8, which method: full does"),
        ({"evaluate": {"same": SimpleKV(rows=5, dictionaries=6)}}, "found training data that evaluate.same asks about"),
    ],
)  # fmt: skip
def test_each_mistake_says_what_was_found_and_expected(changes: dict[str, Any], message: str) -> None:
    assert any(message in each for each in problems(**changes)), problems(**changes)


def test_paths_ranges_and_numbers_as_names_are_taken_as_a_file_would_have_them() -> None:
    sweep = in_python(
        base_model=Path("some/model"),
        finetune={"seeds": range(3)},
        evaluate={20: Mdqa(documents=5)},
        grid={"finetune.epochs": range(1, 4)},
    )
    assert sweep.base_model == "some/model" and sweep.finetune.seeds == (0, 1, 2)
    assert list(sweep.evaluate) == ["20"] and sweep.grid == {"finetune.epochs": [1, 2, 3]}
