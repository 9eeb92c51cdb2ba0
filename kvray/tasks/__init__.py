"""Task families: :func:`load_all` imports every module here, and those that define tasks register them.

Task classes are attributes of this package (``kvray.tasks.SimpleKV``), imported when first asked for; so is what one's
own task is written with: :class:`Task`, :class:`RowTask`, :class:`Example`, :func:`recipe`.
"""

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors; at run time the registry is asked
    from kvray.tasks.base import Task as Task
    from kvray.tasks.base import recipe as recipe
    from kvray.tasks.flenqa.flenqa import Flenqa as Flenqa
    from kvray.tasks.in2.in2 import In2 as In2
    from kvray.tasks.kv.retrieval import KVRetrieval as KVRetrieval
    from kvray.tasks.kv.several import SeveralKV as SeveralKV
    from kvray.tasks.kv.simple import SimpleKV as SimpleKV
    from kvray.tasks.kv.subkeys import MultiSubkeyKV as MultiSubkeyKV
    from kvray.tasks.lm_eval import LmEval as LmEval
    from kvray.tasks.messages import Messages as Messages
    from kvray.tasks.needle.needle import NeedleInHaystack as NeedleInHaystack
    from kvray.tasks.qa.mdqa import Mdqa as Mdqa
    from kvray.tasks.qa.multidoc import MultiDocQa as MultiDocQa
    from kvray.tasks.qa.recall import Recall as Recall
    from kvray.tasks.rows import Example as Example
    from kvray.tasks.rows import RowTask as RowTask
    from kvray.tasks.ruler.ruler import Ruler as Ruler
    from kvray.tasks.val.val import ValProbing as ValProbing

_AUTHORING = {"Task": "base", "recipe": "base", "RowTask": "rows", "Example": "rows"}


@cache
def load_all() -> None:
    """Import every module of this package, so that ``kvray.tasks.base.REGISTRY`` knows every task."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)


def _classes() -> dict[str, Any]:
    from kvray.tasks.base import REGISTRY

    load_all()
    return {task.__name__: task for task in REGISTRY.values() if task.__module__.startswith(f"{__name__}.")}


def __getattr__(name: str) -> Any:
    if name in _AUTHORING:
        return getattr(importlib.import_module(f"{__name__}.{_AUTHORING[name]}"), name)
    # Modules have lower-case names: asking for one must not import all others in the middle of importing it.
    if name[0].isupper() and name in (classes := _classes()):
        return classes[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_AUTHORING, *_classes()])
