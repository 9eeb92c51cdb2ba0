"""The sweep of the README that a newcomer copies learns: run as it stands there, at its small scale."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import snippets

import kvray

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_sweep_of_the_readme_changes_the_base_beyond_noise(tmp_path: Path) -> None:
    (text,) = [each.text for each in snippets(ROOT / "README.md") if each.language == "yaml"]
    sweep = kvray.Sweep.from_yaml(text, scale="small", set={"runtime.num_cpus": 2})
    planned = kvray.plan(sweep, store=tmp_path / "store")
    assert not [warning for warning in planned.warnings if warning.startswith("finetune ")]
    result = kvray.run(sweep, store=tmp_path / "store")
    assert not result.failed
    (row,) = result.compare("base", "ours").filter(evaluation="mdqa").to_dicts()
    assert row["low"] > 0, row
