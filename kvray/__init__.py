"""kvray: which synthetic long-context finetuning data makes a language model retrieve better.

A sweep says what data to make, what to finetune on them and what to ask afterwards; running it leaves Parquet that
answers the question with error bars::

    import kvray

    sweep = kvray.Sweep(
        name="mine",
        base_model="kvray-tiny",
        datasets={"kv": kvray.tasks.SimpleKV(rows=350)},
        evaluate={"mdqa": kvray.tasks.Mdqa(documents=20)},
    )
    plan = kvray.plan(sweep)  # or the path of a sweep file
    result = kvray.run(plan, store="store")
    result.compare("base", "kv")

Importing ``kvray`` imports nothing heavy: each name is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvray import tasks
    from kvray.driver.across import SweepComparison, compare
    from kvray.driver.api import Report, SweepPlan, SweepResult, plan, run
    from kvray.errors import InputError, KvrayError
    from kvray.results.reader import Results, open
    from kvray.sweep.model import Finetune, Runtime, Sweep

__version__ = "0.1.0"
__all__ = [
    "Finetune",
    "InputError",
    "KvrayError",
    "Report",
    "Results",
    "Runtime",
    "Sweep",
    "SweepComparison",
    "SweepPlan",
    "SweepResult",
    "__version__",
    "compare",
    "open",
    "plan",
    "run",
    "tasks",
]
_HOMES = {
    **dict.fromkeys(("SweepComparison", "compare"), "kvray.driver.across"),
    **dict.fromkeys(("Report", "SweepPlan", "SweepResult", "plan", "run"), "kvray.driver.api"),
    **dict.fromkeys(("InputError", "KvrayError"), "kvray.errors"),
    **dict.fromkeys(("Results", "open"), "kvray.results.reader"),
    **dict.fromkeys(("Finetune", "Runtime", "Sweep"), "kvray.sweep.model"),
}


def __getattr__(name: str) -> Any:
    if name == "tasks":
        return import_module("kvray.tasks")
    if name not in _HOMES:
        raise AttributeError(f"module 'kvray' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
