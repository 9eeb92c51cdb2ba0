"""What is ready follows from what is committed, and a failure takes along exactly what needs it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from kvray.driver.graph import Graph


def artefact(name: str, *needs: str) -> Any:
    return cast("Any", SimpleNamespace(id=name, needs=needs))


PLAN = [
    artefact("data/a"),
    artefact("data/b", "writing"),
    artefact("questions", "committed"),
    artefact("finetunes/a", "data/a"),
    artefact("finetunes/ab", "data/a", "data/b"),
    artefact("cells/base", "questions"),
    artefact("cells/a", "questions", "finetunes/a"),
    artefact("cells/ab", "questions", "finetunes/ab"),
]
SECONDS = {"data/a": 1.0, "data/b": 2.0, "finetunes/a": 10.0, "finetunes/ab": 30.0, "cells/a": 5.0, "cells/ab": 5.0}


def names(artefacts: list[Any]) -> list[str]:
    return [each.id for each in artefacts]


def test_what_needs_nothing_is_ready_once_and_the_longest_chain_first() -> None:
    graph = Graph(PLAN, SECONDS)
    assert names(graph.ready()) == ["data/b", "data/a", "questions"]
    assert graph.ready() == []
    assert graph.after("data/a") == 35.0
    assert graph.after("cells/ab") == 0.0


def test_an_artefact_is_ready_with_the_last_of_its_needs() -> None:
    graph = Graph(PLAN, SECONDS)
    graph.ready()
    graph.made("questions")
    assert names(graph.ready()) == ["cells/base"]
    graph.made("data/a")
    assert names(graph.ready()) == ["finetunes/a"]
    waits = {one.id: names(list(needs)) for one, needs in graph.waiting()}
    assert waits == {"finetunes/ab": ["data/b"], "cells/a": ["finetunes/a"], "cells/ab": ["finetunes/ab"]}
    graph.made("finetunes/a")
    assert names(graph.ready()) == ["cells/a"]


def test_a_failure_takes_along_what_needs_it_and_nothing_else() -> None:
    graph = Graph(PLAN, SECONDS)
    graph.ready()
    assert graph.failed("data/b") == ["finetunes/ab", "cells/ab"]
    for one in ("questions", "data/a"):
        graph.made(one)
    assert names(graph.ready()) == ["finetunes/a", "cells/base"]
    graph.made("finetunes/a")
    assert names(graph.ready()) == ["cells/a"]
    for one in ("cells/base", "cells/a"):
        assert graph.left
        graph.made(one)
    assert not graph.left
