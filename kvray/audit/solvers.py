"""Which solver reads which task, and why some tasks have none."""

from kvray.audit import dictionaries, documents, flenqa, needles, pieces, ruler
from kvray.audit.reading import Knobs, Solver

_SOLVERS = {
    "simple_kv": dictionaries.simple,
    "several_kv": dictionaries.several,
    "multi_subkey_kv": dictionaries.subkeys,
    "kv_retrieval": dictionaries.records,
    "mdqa": documents.mdqa,
    "multidoc_qa": documents.multidoc,
    "in2": documents.in2,
    "needle": needles.needle,
    "flenqa": flenqa.flenqa,
    "ruler": ruler.ruler,
    "val_probing": pieces.pieces,
}
_UNREAD = {
    "messages": "what your own rows ask, nobody but you knows",
    "recall": "closed book: a prompt does not hold its answer",
    "mdqa": "closed book: a prompt does not hold its answer",
    "in2": "its questions are of your own rows, or a model wrote them",
    "flenqa": "its facts are published ones, in the words of a model",
}


def solver_of(task: str, knobs: Knobs) -> tuple[Solver | None, str]:
    """Return the solver of a task, or None and the reason why there is none."""
    find = _SOLVERS.get(task)
    solver = find(knobs) if find else None
    return solver, "" if solver else _UNREAD.get(task, "kvray has no solver for it")
