"""Task classes that a Python file outside any package defines: their source, its hash, and their way to other nodes.

Such a class is ``module:Class``. Its file's sha256 is part of its recipes, and a pickled task takes the source along,
so that every node runs the bytes that were planned with. Files of one name in two folders stay two modules.
"""

import hashlib
import sys
import sysconfig
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

_SOURCE = "__kvray_source__"
_STDLIB = sysconfig.get_path("stdlib")


@dataclass(frozen=True)
class Source:
    """A Python file as it was read: the module's ``name`` without a package, the ``path`` on that node, the bytes."""

    name: str
    path: str
    text: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()

    @cached_property
    def module(self) -> str:
        """The name in ``sys.modules``: one per place and content, so that it never stands for another module."""
        place = hashlib.sha256(f"{self.path}\0{self.sha256}".encode()).hexdigest()
        return f"_kvray_{self.name}_{place[:16]}"

    def load(self) -> ModuleType:
        """Execute the source as a module, once per process; what it raises is passed on, as with ``import``."""
        known = sys.modules.get(self.module)
        if known is not None:
            return known
        module = ModuleType(self.module)
        module.__dict__.update({"__file__": self.path, _SOURCE: self})
        sys.modules[self.module] = module  # pydantic and dataclasses look names up there
        try:
            exec(compile(self.text, self.path, "exec", dont_inherit=True), module.__dict__)
        except BaseException:
            del sys.modules[self.module]
            raise
        return module


def source_of(cls: type) -> Source | None:
    """Return the file that defines a class; None for installed modules and modules of packages."""
    module = sys.modules.get(cls.__module__)
    loaded = getattr(module, _SOURCE, None)
    if isinstance(loaded, Source):
        return loaded
    file = getattr(module, "__file__", None)
    if file is None or "." in cls.__module__ or hasattr(module, "__path__") or cls.__module__ == "__main__":
        return None
    return _read(cls.__module__, str(Path(file).resolve()))


def name_of(cls: type) -> str:
    """Return a class's ``module:Class``."""
    source = source_of(cls)
    return f"{source.name if source else cls.__module__}:{cls.__qualname__}"


def digest_of(task: Any) -> dict[str, str]:
    """Return the part of a recipe that identifies the code of a task; empty for installed code."""
    source = carried(task)
    return {"code": source.sha256} if source else {}


def carried(task: Any) -> Source | None:
    """Return the source that a pickled task takes along, None for tasks that every node has installed."""
    return source_of(type(task)) if ":" in task.task else None


def restore(source: Source, name: str) -> Any:
    """Return a blank instance of a class of a source, for ``pickle`` to fill."""
    cls = getattr(source.load(), name)
    return cls.__new__(cls)


@lru_cache(maxsize=64)
def _read(name: str, file: str) -> Source | None:
    if {"site-packages", "dist-packages"} & set(Path(file).parts) or Path(file).is_relative_to(_STDLIB):
        return None
    return Source(name, file, Path(file).read_bytes())
