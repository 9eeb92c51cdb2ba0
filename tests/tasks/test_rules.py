"""What docs/tasks.md says about scoring: what every scorer strips, and whose rule that is; checked on answers."""

from __future__ import annotations

import pytest

from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.flenqa.flenqa import Flenqa
from kvray.tasks.in2.in2 import In2
from kvray.tasks.kv.retrieval import KVRetrieval
from kvray.tasks.kv.simple import SimpleKV
from kvray.tasks.needle.needle import NeedleInHaystack
from kvray.tasks.qa.mdqa import Mdqa

load_all()
WHOSE = ("ours", "authors", "lost-in-the-middle", "RULER", "SQuAD", "lm-evaluation-harness")


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_rule_says_what_is_stripped_and_whose_it_is(name: str) -> None:
    rule = REGISTRY[name].rule()
    assert "strip" in rule.lower(), rule
    assert any(author in rule for author in WHOSE), rule


@pytest.mark.parametrize(
    ("task", "answer", "reference", "score"),
    [
        # The first line after the ends are stripped; then case, punctuation, articles.
        (Mdqa(), "\nO'Neil", "the ONeil.", 1.0),
        (Mdqa(), "no\nO'Neil", "O'Neil", 0.0),
        (In2(), "\n an apple!", "Apple", 1.0),
        (In2(), "pear\napple", "apple", 0.0),
        (SimpleKV(), "\n is 5 Dictionary [3]", "is 5 in Dictionary [3]", 1.0),
        (SimpleKV(), "well\nis 5 Dictionary [3]", "is 5 in Dictionary [3]", 0.0),
        # Every line.
        (NeedleInHaystack(), "first\nThe Apple!", "apple", 1.0),
        (KVRetrieval(), "no\n ABC", "abc", 1.0),
        (KVRetrieval(), "a-b c", "ab c", 0.0),
        (Flenqa(), "False\nso it is the TRUE", "True", 1.0),
    ],
)
def test_a_scorer_strips_what_it_says(task: Task, answer: str, reference: str, score: float) -> None:
    assert task.score(answer, [reference]) == score
