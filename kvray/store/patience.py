"""Patience with an object store: errors that pass (SLOW_DOWN, a connection that broke) are no answer for good."""

import time
from collections.abc import Callable
from typing import TypeVar

from kvray.errors import DamagedArtefactError, RecipeMismatchError, StoreError
from kvray.store.root import Root

WAITS_S = (1.0, 4.0, 16.0)
"""Before each further attempt, beside those that the store's client makes at once."""
_Result = TypeVar("_Result")


def patiently(store: Root, call: Callable[..., _Result], *given: object) -> _Result:
    """Return ``call(*given)``, made again after a while where ``store`` is an object store that raised a StoreError.

    The last error is raised, and at once that of a local disk, or what is wrong with an artefact itself.
    """
    for wait_s in WAITS_S if store.remote else ():
        try:
            return call(*given)
        except (DamagedArtefactError, RecipeMismatchError):
            raise
        except StoreError:
            time.sleep(wait_s)
    return call(*given)
