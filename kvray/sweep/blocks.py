"""Task blocks of a sweep, ``{task: NAME, …}``, and the classes that they name: kvray's, or from outside.

Those are entry points of packages, and ``module:Class`` of a package or of a file beside the sweep. Such a file is
code by the sweep's author, so it is loaded only where :func:`lookup` allows it, and from its path: ``sys.path`` stays
as it is, so no other file of that folder can shadow a module of Python or of a package.
"""

import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import metadata
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from pydantic import ValidationError

from kvray.errors import InputError, Path, Problem
from kvray.tasks import load_all
from kvray.tasks.base import REGISTRY, Task
from kvray.tasks.code import Source, source_of
from kvray.tasks.problems import explain, misread_booleans, nearest, show, unknown
from kvray.tasks.rows import RowTask

TASK_SECTIONS = ("datasets", "evaluate")  # sections of a sweep that hold task blocks by name
GROUP = "kvray.tasks"  # entry-point group of tasks
_NAME = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


class _Lookup(NamedTuple):
    """Where names are looked up: known classes, and a folder whose files may stand for modules."""

    classes: Mapping[str, type[Task]]
    folder: FilePath | None
    allow_code: bool


_LOOKUP = ContextVar("lookup", default=_Lookup({}, None, False))  # noqa: B039  # it is frozen


def check_task(block: Any, path: Path = ()) -> tuple[Task | None, list[Problem]]:
    """Check one task block; return the task (None if there is a problem) and the problems."""
    load_all()
    if isinstance(block, Task):
        refused = refusal(type(block)) if ":" in block.task else None
        return (None, [Problem(path, refused)]) if refused else (block, [])
    if not isinstance(block, Mapping):
        return None, [Problem(path, f"found {show(block)}; expected a mapping like {{task: NAME, …}}")]
    name = block.get("task")
    if name is None:
        return None, [Problem(path, f"found no task; expected task: one of {', '.join(sorted(REGISTRY))}")]
    try:
        cls = task_class(name)
    except InputError as error:
        return None, [Problem((*path, "task"), str(error))]
    problems = misread_booleans(cls, block, path)
    try:
        task = cls.model_validate(dict(block))
    except ValidationError as error:
        return None, problems + explain(error, cls, block, path)
    return (None if problems else task), problems


def parse_task(block: Any) -> Task:
    """Return the task of a block ``{task: name, …}``, or the given task; ValueError with all problems of the block."""
    task, problems = check_task(block)
    if task is None:
        raise ValueError("; ".join(str(problem) for problem in problems))
    return task


@contextmanager
def lookup(folder: str | FilePath | None, allow_code: bool = False, sections: Iterable[object] = ()) -> Iterator[None]:
    """Within the context, look for ``module:Class`` in the sweep's folder too, but refuse it without ``allow_code``.

    Names of the tasks in these mappings (``sections``) stand for their classes; nothing is loaded for them.
    """
    tasks = [value for section in sections if isinstance(section, Mapping) for value in section.values()]
    classes = {task.task: type(task) for task in tasks if isinstance(task, Task)}
    token = _LOOKUP.set(_Lookup(classes, None if folder is None else FilePath(folder).resolve(), allow_code))
    try:
        yield
    finally:
        _LOOKUP.reset(token)


def task_class(name: object) -> type[Task]:
    """Return the class that ``task`` names; InputError of one line if it is unknown, not allowed, broken or no task."""
    current = _LOOKUP.get()
    if isinstance(name, str):
        if name in REGISTRY:
            return REGISTRY[name]
        if name in current.classes:
            return _checked(current.classes[name], name)
        if ":" in name:
            return _by_module(name, current)
    mine = {entry.value: entry for entry in _entries(tuple(sys.path)) if entry.name == name}
    if not mine:
        raise InputError(unknown(name, sorted({*REGISTRY, *entry_points()}), "one of the tasks"))
    if len(mine) > 1:
        raise InputError(f"found {name!r} in several packages; expected one of {', '.join(sorted(mine))}")
    value, entry = mine.popitem()
    return _checked(_run(entry.load, f"{name} ({value})"), value)


def entry_points() -> list[str]:
    """Return the task names of installed packages, without loading any."""
    return sorted({entry.name for entry in _entries(tuple(sys.path))})


def code_file(name: object) -> FilePath | None:
    """Return the file beside the sweep that the ``task`` of a block stands for, None if there is none."""
    match, folder = _NAME.fullmatch(str(name)), _LOOKUP.get().folder
    file = folder / f"{match[1]}.py" if match and folder else None
    return file if file and file.is_file() else None


def refuse_code(names: Iterable[object]) -> str | None:
    """Return the message that refuses the files that names stand for, None if there are none or they are allowed."""
    files = dict.fromkeys(file.name for name in names if (file := code_file(name)))
    if not files or _LOOKUP.get().allow_code:
        return None
    return f"found code beside the sweep ({', '.join(files)}), which is not loaded; type --allow-code to load it"


def refusal(cls: type[Task]) -> str | None:
    """Return why a task class cannot be used, None if it can be."""
    if cls.__module__ == "__main__":
        return (
            f"found {cls.__name__}, a class of a script or notebook, which no worker can load; put it into a file, "
            f"my_tasks.py say, and type: from my_tasks import {cls.__name__}"
        )
    if "." in cls.__qualname__:
        return f"found {cls.__qualname__}; expected a class at the top of its module, so that workers can load it"
    if issubclass(cls, RowTask):
        lacking = ["example()"] if (cls.example, cls.build) == (RowTask.example, RowTask.build) else []
    else:
        lacking = [f"{name}()" for name in ("build", "score") if getattr(cls, name) is getattr(Task, name)]
    if lacking:
        return f"found the task {cls.__name__} without {' and '.join(lacking)}; expected methods of these names"
    try:
        for name in cls.model_fields:
            cls.identity(name)
    except TypeError as error:
        return f"found a knob of unknown use: {error}"
    return None


@lru_cache(maxsize=1)
def _entries(path: tuple[str, ...]) -> list[metadata.EntryPoint]:
    """Return the tasks' entry points; cached by ``sys.path``, since the metadata of every package is read."""
    return list(metadata.entry_points(group=GROUP))


def _by_module(name: str, current: _Lookup) -> type[Task]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"found {show(name)}; expected module:Class, as in shouting:Shout")
    module, cls = match.groups()
    file = code_file(name)
    if file is None:
        return _member(_import(module, current.folder), cls, module)
    refused = refuse_code([name])
    if refused:
        raise InputError(refused)
    if module in sys.stdlib_module_names:
        raise InputError(f"found {file.name}, named as a module of Python itself; expected another name")
    source = Source(module, str(file), file.read_bytes())
    return _member(_run(source.load, file.name, str(file)), cls, file.name)


def _import(name: str, folder: FilePath | None) -> object:
    """Import a module, but not from a file that is importable only because ``python -m`` was started beside it."""
    top = name.partition(".")[0]
    if top not in sys.modules:
        spec = importlib.util.find_spec(top)
        here = FilePath.cwd()
        started_here = sys.path[0] in ("", str(here)) and str(here) not in sys.path[1:]
        origin = FilePath(spec.origin) if spec is not None and spec.origin else None
        if spec is None or (folder and started_here and origin and here in list(origin.parents)[:2]):
            beside = sorted(file.stem for file in folder.glob("*.py")) if folder else []
            near = nearest(top, beside)
            place = f"{top}.py in {folder}, or a module of an installed package" if folder else "an installed module"
            raise InputError(f"found no module {top}; expected {place}" + (f"; did you mean {near!r}?" if near else ""))
    return _run(lambda: importlib.import_module(name), name)


def _run(load: Callable[[], Any], what: str, file: str = "") -> Any:
    """Load somebody else's code; whatever it raises, ``SystemExit`` included, becomes an InputError of one line."""
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, SyntaxError):
            line, why = error.lineno, f"{error.msg}"
        else:
            frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
            line, why = next(reversed(frames), None), " ".join(f"{type(error).__name__}: {error}".split())
        at = f"line {line}: " if line else ""
        hint = ""
        if isinstance(error, ModuleNotFoundError) and file and FilePath(file).with_name(f"{error.name}.py").is_file():
            hint = "; a task's file is loaded alone: put what it needs into it, or install that as a package"
        raise InputError(f"found {what}, which cannot be loaded: {at}{why}{hint}") from error


def _member(module: object, name: str, where: str) -> type[Task]:
    found = getattr(module, name, None)
    if found is None:
        own = sorted(key for key, value in vars(module).items() if _is_task(value))
        raise InputError(unknown(name, own, f"one of the tasks in {where}"))
    checked = _checked(found, f"{where}:{name}")
    if where.endswith(".py") and source_of(checked) != getattr(module, "__kvray_source__", None):
        raise InputError(f"found {name}, which {where} imports; expected {checked.__module__}:{checked.__qualname__}")
    return checked


def _is_task(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Task) and value not in (Task, RowTask)


def _checked(value: Any, where: str) -> type[Task]:
    if not _is_task(value):
        kind = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise InputError(f"found {where}, {kind}; expected a subclass of kvray.tasks.Task or kvray.tasks.RowTask")
    cls: type[Task] = value
    refused = refusal(cls)
    if refused:
        raise InputError(refused)
    return cls
