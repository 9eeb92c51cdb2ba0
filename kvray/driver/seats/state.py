"""What the work queue knows of its lanes, seats and artefacts, and what it tells of a lane."""

from collections import defaultdict
from dataclasses import dataclass, field

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


@dataclass
class CellState:
    """An artefact in the making: its units that are not done, and the entries of the files that were stored."""

    lane: str
    open: dict[int, Unit]
    rows: float
    files: dict[str, FileEntry] = field(default_factory=dict)


@dataclass
class SeatState:
    """A seat, what it has taken, and the models that it said it has loaded."""

    lane: str
    since: float
    process: str = ""
    held: dict[int, Unit] = field(default_factory=dict)
    holding: tuple[str | None, ...] = ()
    up: bool = False
    dead: bool = False  # and told so; of a slot, its next process is yet to take
    idle_since: float | None = None
    progress: dict[int, tuple[float, str]] = field(default_factory=dict)


@dataclass
class LaneState:
    """A lane, its units that nobody has taken, and the work that is to come."""

    lane: Lane
    ready: dict[str | None, list[tuple[float, int]]] = field(default_factory=dict)  # heaps of (-priority, number)
    ready_s: defaultdict[str | None, float] = field(default_factory=lambda: defaultdict(float))  # seconds by model
    expected: dict[str, tuple[float, float, bool]] = field(default_factory=dict)  # (seconds, priority, soon) by id
    start_s: float = 0.0
    starts: int = 0
    failed_starts: int = 0
    refused: str | None = None
    length: int = 0
    done: float = 0.0
    total: float = 0.0
