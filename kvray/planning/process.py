"""A process of a seat: where it is, and its stack traces, which another process of the node asks for when it hangs."""

import faulthandler
import os
import signal
from dataclasses import dataclass
from functools import cache

import psutil

STACKS = "kvray-stacks"
"""The name of the file in memory that stack traces go to; other processes find it under ``/proc/PID/fd``."""
SIGNAL = signal.SIGUSR2
"""What asks for stack traces; Tune has taken SIGUSR1."""


@dataclass(frozen=True)
class Process:
    """A process on a node of Ray's; ``created`` (seconds since the epoch) tells it from a later one of its number."""

    node: str
    pid: int
    created: float


def this_process(node: str) -> Process:
    """Return the calling process, which then writes the stack traces of its threads whenever it is asked for them."""
    expose_stacks()
    return Process(node, os.getpid(), psutil.Process().create_time())


@cache
def expose_stacks() -> None:
    """Let :data:`SIGNAL` write the stack traces of all threads into a file in memory, from now on.

    They are written by the signal's handler itself, in C, so that a thread that holds the interpreter's lock for ever
    is no obstacle. Where there are no such files (elsewhere than on Linux) nothing is written.
    """
    if hasattr(os, "memfd_create"):
        faulthandler.register(SIGNAL, os.memfd_create(STACKS), all_threads=True)
