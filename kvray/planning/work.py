"""Work as it is handed out: units, the seats that do them, and the source that a seat pulls them from. Pure.

A *seat* is a process that holds devices for as long as there is work for it: an engine that answers, or a slot in which
one finetune after the other is trained. A *lane* is all work that the same sort of seat does: finetunes, evaluation, or
the prompts of one writer. The driver fills lanes as artefacts become ready and decides how many seats each has; a seat
takes a unit, does it, tells how it ended, and takes the next.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kvray.store.manifest import FileEntry

FINETUNE, EVALUATE, WRITE = "finetune", "evaluate", "write"
"""Lanes; the lane of each writer is ``write:<its name>``."""


@dataclass(frozen=True)
class Unit:
    """What a seat does at a time: a finetune, or some chunks of a cell (predictions or writing).

    Attributes:
        number: of this unit, unique in a run.
        artefact_id: what it makes, or makes a part of.
        model: what answers, by a name of its own; None for the base model or a writer, and for finetunes.
        chunks: numbers of the chunks to answer. Empty: all are stored, and the cell is to be committed. None: all that
            the store lacks, which only the engine can count, as another library brings the examples.
        rows: planned rows; 1 for a finetune.
        seconds: estimated, without a start.
    """

    number: int
    artefact_id: str
    model: str | None = None
    chunks: tuple[int, ...] | None = None
    rows: int = 0
    seconds: float = 0.0


class Nothing(Enum):
    """Why :meth:`Source.take` has no unit."""

    LATER = "later"
    """Nothing is ready now; ask again."""
    END = "end"
    """The seat is to give back its devices: no work will come, or other work needs them more."""


@dataclass(frozen=True)
class Seat:
    """A process that does a lane's units one after the other, and what it holds of a node.

    Attributes:
        name: unique in a run.
        lane: whose units it does.
        cpus: CPUs reserved.
        gpus: GPUs reserved; of a slot's workers each.
        threads: CPU threads to compute with.
        workers: processes of one finetune; 1 for engines.
    """

    name: str
    lane: str
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    workers: int = 1


class Source(Protocol):
    """Where a seat gets its units from and tells how they ended. Picklable; calls may raise what Ray raises.

    Every call is a heartbeat, too: a seat that is silent for too long counts as hung, and is ended. Every unit that was
    taken ends with one of :meth:`committed`, :meth:`failed`, :meth:`died`, :meth:`give_back` or :meth:`finish`; what a
    dead seat held is handed out again.
    """

    def join(self, role: str = "engine") -> None:
        """Tell that the calling process works for this seat, as an engine or as ``worker 0``, ``worker 1`` and so on.

        Its node is where the seat is, its stack traces are written if the seat hangs, and it is ended with the seat.
        """

    def beat(self) -> None:
        """Tell that this seat computes, though no row or step is done yet."""

    def take(self, holding: Collection[str | None] = (), wait: bool = True) -> Unit | Nothing:
        """Return the next unit, or why there is none; with ``wait``, LATER only after about a second.

        ``holding`` are the models that this seat has loaded; their units are preferred, the first named the most.
        What an earlier process of this seat held has died with it: see :meth:`died`. If that was not told, Ray ended
        the process itself, as its node is about to be taken away, which is no failure.
        """

    def saved(self, unit: Unit, part: int, entry: FileEntry | None = None) -> None:
        """Tell what of a unit outlives this seat: the checkpoint of step ``part``, or chunk ``part`` as ``entry`` says.

        From there on the unit has all its attempts again, and whoever takes it next does not repeat these chunks.
        """

    def finish(self, unit: Unit, files: Sequence[FileEntry] = ()) -> Sequence[FileEntry] | None:
        """Tell that the chunks of a unit are stored, as ``files`` say.

        Returns None if other units of the cell are open or being done. Otherwise the caller commits the cell and calls
        :meth:`committed`; it gets the entries of all chunks that this run has stored (others are of earlier runs).
        """

    def committed(self, unit: Unit) -> None:
        """Tell that the artefact of a unit is committed."""

    def failed(self, unit: Unit, error: str) -> None:
        """Tell that the artefact of a unit cannot be made, and why; no retry would help. Drops its other units."""

    def died(self, error: str, preempted: bool = False, final: bool = False) -> bool:
        """Tell that this seat's process died, and why; return whether the seat is to start another, or to end.

        What it held is handed out again while it has attempts left, of which neither a preempted one takes one nor one
        whose node was lost; else it has failed with ``error``, and at once if the error is ``final``.
        """

    def give_back(self, unit: Unit, length: int) -> None:
        """Return a unit that needs a seat for requests of ``length`` tokens; :meth:`length` is at least that then."""

    def length(self) -> int:
        """Return the least tokens per request that an engine started now must take; 0 if nothing is known."""

    def progress(self, unit: Unit, done: float, note: str = "") -> None:
        """Tell how many rows of a unit are done, or what share of a finetune; ``note`` shows beside it."""

    def started(self, seconds: float) -> None:
        """Tell how long this seat took from its process's start until it could take its first unit."""


Work = Callable[[Source, Seat], None]
"""What a seat does until its source ends. A KvrayError is the answer for all units of the lane (nothing of it can be
done here, as when the model cannot be served); any other exception is the death of the seat, whose units are tried
again elsewhere."""


@dataclass(frozen=True)
class Lane:
    """What the dispatcher needs to know of a lane.

    Attributes:
        name: :data:`FINETUNE`, :data:`EVALUATE` or a writer's.
        work: what its seats do.
        needs: what a seat takes of the cluster in all: CPU, GPU.
        most: seats at a time; None: as many as there is room for.
        start_s: estimated seconds from a seat's start to its first unit; measured ones replace it.
    """

    name: str
    work: Work
    needs: Mapping[str, float]
    most: int | None = None
    start_s: float = 20.0
