"""What benchmarks of lm-evaluation-harness need on this machine, told before anything is trained."""

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from kvray.errors import Problem, install_command
from kvray.tasks.base import Task
from kvray.tasks.lm_eval import LmEval

_SENTENCES = "punkt_tab"
"""Data of nltk, which it downloads when it is first imported by the tasks that split text into sentences."""


def problems(evaluate: Mapping[str, Task]) -> Iterator[Problem]:
    """Yield a problem per evaluation by a benchmark that lacks packages here: the harness, or what its extra lists."""
    for name, task in evaluate.items():
        lacking = _lacking(task) if isinstance(task, LmEval) else []
        if lacking and isinstance(task, LmEval):
            todo = install_command("benchmarks") if "lm_eval" in lacking else f"pip install {' '.join(lacking)}"
            text = f"found no {', '.join(lacking)} here, which benchmark {task.benchmark} needs; type {todo}"
            yield Problem(("evaluate", name), text)


def warnings(evaluate: Mapping[str, Task]) -> Iterator[Problem]:
    """Yield :func:`problems`, and evaluations by a benchmark that may ask for data of nltk's that is not here."""
    yield from problems(evaluate)
    for name, task in evaluate.items():
        if isinstance(task, LmEval) and "nltk" in needed(task) and not _lacking(task) and not _has_sentences():
            text = f"nltk's {_SENTENCES} is not here; it is downloaded when the benchmark is loaded. Without a network "
            text += f"there, type python -m nltk.downloader {_SENTENCES} where there is one, and copy ~/nltk_data"
            yield Problem(("evaluate", name), text)


def needed(task: LmEval) -> list[str]:
    """Return the packages that the harness lists for a benchmark of its own beyond what all need, by its extras."""
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations or task.include_path is not None:
        return []
    from packaging.requirements import Requirement

    folder, found = Path(spec.submodule_search_locations[0]) / "tasks", []
    for each in map(Requirement, requires("lm_eval") or []):
        extra = str(each.marker).partition('extra == "')[2].rstrip('"') if each.marker else ""
        if extra and (f"{task.benchmark}_".startswith(f"{extra}_") or _defines(folder / extra, task.benchmark)):
            found.append(each.name)
    return found


def _defines(folder: Path, benchmark: str) -> bool:
    """Return whether a file of a folder of the harness, by the benchmark's name, is that benchmark's."""
    file = folder / f"{benchmark}.yaml"
    return file.is_file() and f"task: {benchmark}\n" in file.read_text(encoding="utf-8")


def _lacking(task: LmEval) -> list[str]:
    lacking = []
    for name in ("lm_eval", "datasets", *needed(task)):
        try:
            version(name)
        except PackageNotFoundError:
            lacking.append(name)
    return lacking


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find(f"tokenizers/{_SENTENCES}")
    except LookupError:
        return False
    return True
