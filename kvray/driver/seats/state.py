"""What the work queue knows of its lanes, seats and artefacts, and what it tells of a lane."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvray.driver.seats.backlog import Backlog
from kvray.planning.process import Process
from kvray.planning.work import Lane, Unit
from kvray.store.manifest import FileEntry


@dataclass(frozen=True)
class LaneView:
    """What a lane does now, for a reader.

    ``done`` and ``total`` are rows, or finetunes with their shares. Of its seats some are ``pending`` (they have no
    devices yet), ``starting``, ``working`` or ``idle``. ``under_way`` has each unit's artefact, how much of it is done,
    and its note. ``left_s`` is the work, in estimated seconds, that is not done; ``waiting`` artefacts wait for others.
    """

    name: str
    done: float
    total: float
    pending: int
    starting: int
    working: int
    idle: int
    under_way: tuple[tuple[str, float, str], ...]
    left_s: float
    waiting: int

    @property
    def held(self) -> int:
        """Seats that have devices."""
        return self.starting + self.working + self.idle


@dataclass(frozen=True)
class Stall:
    """A seat that hangs: ``why`` it counts as hung, and its processes, by what each does there."""

    seat: str
    why: str
    processes: Mapping[str, Process]


@dataclass
class CellState:
    """An artefact in the making: its units that are not done, and the entries of the files that were stored."""

    lane: str
    open: dict[int, Unit]
    rows: float
    begun: bool = False  # a seat has taken a unit of it
    files: dict[str, FileEntry] = field(default_factory=dict)


@dataclass
class SeatState:
    """A seat, what it has taken, and the models that it said it has loaded.

    ``saved`` are parts of held units that are stored: entries of chunks, by the unit's number and the chunk's. The seat
    has been silent for ``silent_s`` seconds, since its first process came (None before).
    """

    lane: str
    since: float
    process: str = ""
    held: dict[int, Unit] = field(default_factory=dict)
    holding: tuple[str | None, ...] = ()
    up: bool = False
    dead: bool = False  # and told so; of a slot, its next process is yet to take
    idle_since: float | None = None
    progress: dict[int, tuple[float, str]] = field(default_factory=dict)
    saved: dict[int, dict[int, FileEntry]] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    silent_s: float | None = None
    hung: str = ""  # why it is being ended

    @property
    def placed(self) -> bool:
        """Whether it has its devices: a process on them has joined, or has taken work."""
        return bool(self.process) or self.up or self.silent_s is not None


@dataclass
class LaneState:
    """A lane, its units that nobody has taken, and the work that is to come."""

    lane: Lane
    ready: Backlog = field(default_factory=Backlog)
    expected: dict[str, tuple[float, float, bool]] = field(default_factory=dict)  # (seconds, priority, soon) by id
    start_s: float = 0.0
    starts: int = 0
    refused: str | None = None
    length: int = 0
    done: float = 0.0
    total: float = 0.0
