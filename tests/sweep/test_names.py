"""Names that results would confuse are refused in the file, with their line; so are unknown sets of references."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toy_tasks import Toy

from kvray.errors import InputError
from kvray.results import references
from kvray.sweep.check import reference_sets
from kvray.sweep.load import load
from kvray.tasks.base import REGISTRY

FILE = """\
name: {name}
base_model: kvray-tiny
datasets:
  {dataset}: {{task: toy, rows: 20}}
  other: {{task: toy, seed: 1}}
mixtures:
  {mixture}: {{{dataset}: 1}}
  plain: {{other: 1}}
evaluate:
  {evaluation}: {{task: toy, seed: 9}}
  again: {{task: toy, seed: 8}}
reference: [artificial-needles]
"""
GOOD = {"name": "good", "dataset": "ours", "mixture": "kv", "evaluation": "ask"}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(REGISTRY, "toy", Toy)
    monkeypatch.chdir(tmp_path)


def told(text: str, *overrides: str) -> list[str]:
    Path("s.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load("s.yaml", overrides)
    return caught.value.problems


@pytest.mark.parametrize("word", ["base", "Base", "BASE"])
@pytest.mark.parametrize(("of", "line"), [("mixture", 7), ("evaluation", 10)])
def test_base_is_the_base_models_in_any_case(of: str, line: int, word: str) -> None:
    (problem,) = told(FILE.format(**{**GOOD, of: word}))
    assert re.match(rf"s\.yaml:{line}: \w+\.{word}: found the name '{word}', which means the base model", problem)


def test_a_dataset_may_be_called_base_where_it_is_no_mixture() -> None:
    text = FILE.format(**{**GOOD, "dataset": "base"})
    Path("s.yaml").write_text(text)
    assert "base" in load("s.yaml").datasets
    alone = re.sub(r"mixtures:\n(  .*\n){2}", "", text)
    (problem,) = told(alone)
    assert problem.startswith("s.yaml:4: datasets.base: found the name 'base'")
    assert told(re.sub(r"mixtures:\n(  .*\n){2}", "mixtures:\n", text))[0].startswith("s.yaml:4: datasets.base")


@pytest.mark.parametrize(
    ("of", "word", "line"), [("dataset", "OTHER", 5), ("mixture", "Plain", 8), ("evaluation", "AGAIN", 11)]
)
def test_names_differ_by_more_than_case(of: str, word: str, line: int) -> None:
    (problem,) = told(FILE.format(**{**GOOD, of: word}))
    assert problem.startswith(f"s.yaml:{line}: ") and f"beside {word!r}" in problem


@pytest.mark.parametrize("name", ["small.yaml", "small.YML"])
def test_a_sweep_is_not_called_as_a_file(name: str) -> None:
    (problem,) = told(FILE.format(**{**GOOD, "name": name}))
    assert problem.startswith(f"s.yaml:1: name: found {name!r}; expected a name that does not end as a file")


def test_an_unknown_reference_is_told_with_its_line_and_the_nearest() -> None:
    text = FILE.format(**GOOD)
    (problem,) = told(text.replace("[artificial-needles]", "\n  - flenqa\n  - artificial-needle"))
    assert problem.startswith("s.yaml:14: reference[1]: found 'artificial-needle'; expected one of")
    assert problem.endswith("did you mean 'artificial-needles'?")
    (problem,) = told(text, "reference=rulr")
    assert problem.startswith("--set reference: reference: found 'rulr'") and problem.endswith("did you mean 'ruler'?")


def test_the_sets_are_those_of_the_report() -> None:
    assert list(reference_sets()) == references.sets()
