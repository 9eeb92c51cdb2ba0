"""Task families, one file each: every module here that registers tasks is found by :func:`load_all`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


@cache
def load_all() -> None:
    """Import every module of this package, so that ``kvray.tasks.base.REGISTRY`` knows every task.

    There is no list to keep: a new task is one new file that registers itself.
    """
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
