"""docs/tasks.md is what the tasks say of themselves, and its examples are theirs."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_tasks_is_up_to_date() -> None:
    made = runpy.run_path(str(DOCS / "make_tasks.py"))["page"]()
    assert (DOCS / "tasks.md").read_text() == made, "type: python docs/make_tasks.py"
