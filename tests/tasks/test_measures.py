"""Every task declares what it measures and what its units are called."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

import kvray.tasks
from kvray.tasks.base import REGISTRY, Measure

kvray.tasks.load_all()

EXPECTED = {
    "simple_kv": ("dictionaries", "retrieval"),
    "multi_subkey_kv": ("dictionaries", "retrieval"),
    "several_kv": ("dictionaries", "retrieval"),
    "kv_retrieval": ("keys", "retrieval"),
    "mdqa": ("documents", "retrieval"),
    "multidoc_qa": ("documents", "retrieval"),
    "in2": ("segments", "length"),
    "flenqa": ("units", "length"),
    "needle": ("units", "retrieval"),
    "ruler": ("units", "retrieval"),
    "val_probing": ("pieces", "retrieval"),
    "recall": ("units", "knowledge"),
    "lm_eval": ("units", "benchmark"),
    "messages": ("units", "other"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_task_says_what_it_measures_and_counts(name: str) -> None:
    task = REGISTRY[name]
    assert (task.UNIT, task.measures({20})) == EXPECTED[name]
    assert task.measures({5, 20}) in get_args(Measure)


def test_questions_without_documents_measure_knowledge_and_with_the_gold_one_the_ceiling() -> None:
    assert kvray.tasks.Mdqa.measures([0, 0]) == "knowledge"
    assert kvray.tasks.Mdqa.measures({1}) == "ceiling"
    assert kvray.tasks.Mdqa.measures({0, 1}) == kvray.tasks.Mdqa.measures({1, 20}) == "retrieval"
    assert kvray.tasks.MultiDocQa.measures({0}) == "other"


def test_task_classes_are_attributes_of_the_package_imported_when_asked_for() -> None:
    code = (
        "import sys, kvray.tasks\n"
        "assert not [name for name in sys.modules if name.startswith('kvray.tasks.')]\n"
        "assert kvray.tasks.SimpleKV(rows=350).task == 'simple_kv' and kvray.tasks.Mdqa().documents == 20\n"
        "assert {'SimpleKV', 'Mdqa', 'load_all'} <= set(dir(kvray.tasks))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    with pytest.raises(AttributeError, match=r"kvray.tasks.* has no attribute 'Nothing'"):
        _ = kvray.tasks.Nothing
