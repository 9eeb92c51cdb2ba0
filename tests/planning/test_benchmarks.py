"""Packages and data that benchmarks need are missed before anything is trained."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import kvray
from kvray.errors import InputError
from kvray.planning import benchmarks
from kvray.tasks.base import Task
from kvray.tasks.lm_eval import LmEval

pytest.importorskip("lm_eval")


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Take distributions off this machine; of nltk's data there are some or none."""

    def version(name: str) -> str:
        if name in names:
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(benchmarks, "version", version)


def test_each_benchmark_needs_what_its_extra_of_the_harness_lists() -> None:
    def needed(name: str, **knobs: str) -> set[str]:
        return set(benchmarks.needed(LmEval(benchmark=name, **knobs)))

    assert needed("ifeval") == {"langdetect", "immutabledict", "nltk"}
    assert needed("ruler") == needed("niah_single_1") == needed("ruler_vt") >= {"wonderwords", "nltk"}
    assert "jieba" in needed("longbench_triviaqa")
    assert needed("mmlu") == needed("triviaqa") == needed("ifeval", include_path="sweeps/tasks") == set()


def test_what_is_missing_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Task] = {"i": LmEval(benchmark="ifeval"), "m": LmEval(benchmark="mmlu")}
    monkeypatch.setattr(benchmarks, "_has_sentences", lambda: True)
    without(monkeypatch)
    assert list(benchmarks.warnings(asked)) == []
    without(monkeypatch, "langdetect", "immutabledict")
    (problem,) = map(str, benchmarks.problems(asked))
    assert problem.startswith("evaluate.i: found no langdetect, immutabledict here, which benchmark ifeval needs; ")
    assert problem.endswith("type pip install langdetect immutabledict")
    without(monkeypatch, "lm_eval")
    first, second = map(str, benchmarks.problems(asked))
    assert first.startswith("evaluate.i: found no lm_eval here") and second.startswith("evaluate.m: found no lm_eval")
    assert second.endswith("type pip install '.[benchmarks]' in a clone of kvray")


def test_data_of_nltk_that_are_not_here_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch)
    monkeypatch.setattr(benchmarks, "_has_sentences", lambda: False)
    asked: dict[str, Task] = {"i": LmEval(benchmark="ifeval"), "m": LmEval(benchmark="mmlu")}
    assert list(benchmarks.problems(asked)) == []
    (warning,) = map(str, benchmarks.warnings(asked))
    assert warning.startswith("evaluate.i: nltk's punkt_tab is not here") and "nltk.downloader punkt_tab" in warning


def test_a_plan_warns_and_a_run_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without(monkeypatch, "lm_eval")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "s.yaml"
    file.write_text("name: s\nbase_model: kvray-tiny\nevaluate: {g: {task: lm_eval, benchmark: gsm8k, limit: 400}}\n")
    assert any(each.startswith("evaluate.g: found no lm_eval here") for each in kvray.plan(file).warnings)
    with pytest.raises(InputError, match=r"evaluate\.g: found no lm_eval here"):
        kvray.run(file, tmp_path / "store")
    assert not (tmp_path / "store" / "sweeps").exists()
