"""The errors that kvray raises on purpose. Standard library alone, so that any module may import it."""

import errno
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, NamedTuple

Path = tuple[str | int, ...]  # where a value is in a document: mapping keys and 0-based list indices

SECRET = re.compile(r"(?i)(secret|passw|credential|(^|_)token($|_)|(api|access|private)_?key)")
"""Names of environment variables that hold secrets: AWS_SECRET_ACCESS_KEY, HF_TOKEN, OPENAI_API_KEY and so on."""
_SHORTEST_SECRET = 8  # characters; a shorter value is no key, and may be a word of any text
_SHOWN_PART = 60
_PACKAGE = os.path.dirname(__file__)
_LIBRARY = re.compile(r"[\\/](site-packages|dist-packages|IPython)[\\/]")


def dotted(path: Iterable[str | int]) -> str:
    """Return a path on one line: ``evaluate.mdqa.positions[2]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_one_line(part)}"
    return text.removeprefix(".")


def _one_line(name: str) -> str:
    shown = name if name.isprintable() and name.strip() else repr(name)
    return shown if len(shown) <= _SHOWN_PART else shown[: _SHOWN_PART - 1] + "…"


class Place(NamedTuple):
    """Where a value was written. Two values at one place are the same value, under two names by an alias."""

    line: int  # orders the messages
    text: str  # FILE:LINE, or the option: --set a.b
    column: int = 0  # from 1; 0 if unknown


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a document."""

    path: Path  # of the value; empty for the document itself
    text: str  # what was found and what was expected
    place: Place | None = None  # where it was written, if not at the path

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


Extra = Literal["run", "cpu", "gpu", "benchmarks"]
"""The groups of packages beside the light install, by their names in pyproject.toml."""


def installed(package: str) -> bool:
    """Return whether a package can be imported here, without importing it."""
    try:
        return package in sys.modules or find_spec(package) is not None
    except ImportError:  # of an import hook
        return False


def need(what: str, *packages: str, extra: Extra = "cpu") -> None:
    """Raise an InputError of one sentence if packages beside the light install are missing here.

    Args:
        what: what needs them, as the subject of the sentence: ``kvray run``.
        packages: names to import.
        extra: which brings them; the one for a CPU names the one for GPUs, too.
    """
    lacking = [package for package in packages if not installed(package)]
    if lacking:
        missing = "which is not installed" if len(lacking) == 1 else "which are not installed"
        named = " and ".join(filter(None, (", ".join(lacking[:-1]), lacking[-1])))
        gpu = ", or pip install '.[gpu]' there on a GPU host" if extra == "cpu" else ""
        raise InputError(f"{what} needs {named}, {missing}: type {install_command(extra)}{gpu}")


def install_command(extra: str) -> str:
    """Return what to type where the packages of an extra are missing: kvray is on no package index."""
    # The CPU set has builds that no plain "pip install" finds, so the Makefile installs it.
    command = "make setup" if extra == "cpu" else f"pip install '.[{extra}]'"
    return f"{command} in a clone of kvray"


def without_secrets(text: str) -> str:
    """Return a text without any secret of the environment: ``***`` in its place."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and SECRET.search(name):
            text = text.replace(value, "***")
    return text


def without_logins(text: str) -> str:
    """Return a text without the names and passwords of its URLs: ``https://***@host``."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without a final full stop, or its type if it has no message."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message (of a trace: the error itself), or its type if it has no message."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


class KvrayError(Exception):
    """An error whose message is meant for the user: what was found, what was expected, what to type next."""

    exit_status = 1
    passes = False
    """Whether the same call, made later, may succeed; see :func:`passes`."""

    def _render_traceback_(self, *_: object) -> list[str]:
        """Show the error in a notebook, where IPython asks for this: the user's own lines, then the message."""
        frames = traceback.extract_tb(self.__traceback__)
        own = [at for at in frames if not at.filename.startswith(_PACKAGE) and not _LIBRARY.search(at.filename)]
        return [*(f"line {at.lineno}: {at.line}" for at in own), f"{type(self).__name__}: {self}"]


class InputError(KvrayError):
    """The user's input cannot be used. Nothing has been written.

    ``found`` holds every problem with its path, where known; ``problems`` the same as lines, which are the message.
    """

    exit_status = 2

    def __init__(self, problems: str | Problem | Sequence[str | Problem]) -> None:
        given = [problems] if isinstance(problems, str | Problem) else problems
        self.found = tuple(each if isinstance(each, Problem) else Problem((), each) for each in given)
        self.problems = [str(each) for each in self.found]
        super().__init__("\n".join(self.problems))


class InvalidValueError(InputError, ValueError):
    """Values given in Python do not fit the object made of them: a sweep, a task, a part of a sweep."""


class SourceUnreachableError(InputError):
    """A source on the network does not answer. It may exist, so a plan can go on without it; a run cannot."""

    passes = True


class StoreError(KvrayError):
    """The store cannot be read or written as asked."""


class StoreUnavailableError(StoreError):
    """The store does not answer, or takes nothing, for now."""

    passes = True


class DiskFullError(StoreUnavailableError):
    """A disk has no room; the message names the path, what is free there and what to do."""


class DamagedArtefactError(StoreError):
    """A committed artefact no longer matches its manifest (rows, bytes or sha256)."""


class RecipeMismatchError(StoreError):
    """An artefact with another recipe is committed at this id; it is never overwritten."""


class ResourceError(KvrayError):
    """The cluster cannot provide what was asked for; the message names the resource."""


class MemoryExhaustedError(KvrayError):
    """Memory ran out over what a process had taken, as it would again; the message names what to change."""


class CellError(KvrayError):
    """One cell of a sweep failed; the others go on."""


class RunInterrupted(KeyboardInterrupt):  # an interruption, as its base class, and no error
    """Ctrl-C during work that can be resumed; the message says what is kept."""


_ERRNOS = {
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EAGAIN,
    errno.EBUSY,
    # A network mount whose server is away, or was exchanged.
    errno.EIO,
    errno.ESTALE,
    # Until there is room.
    errno.ENOSPC,
    errno.EDQUOT,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}  # 409 says that another request is being served first
USED_UP = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
"""Codes that an OpenAI-compatible API sends with status 429 where waiting is of no use."""
_HTTPX = {"TimeoutException": True, "NetworkError": True, "RemoteProtocolError": True, "ProxyError": True}
_TYPES: Mapping[str, Mapping[str, bool]] = {
    "builtins": {"ConnectionError": True, "TimeoutError": True},
    "ssl": {"SSLCertVerificationError": False},
    "http": {"IncompleteRead": True, "BadStatusLine": True},
    "urllib3": {"SSLError": False, "ProtocolError": True, "TimeoutError": True, "NewConnectionError": True},
    "requests": {"SSLError": False, "ConnectionError": True, "Timeout": True, "ChunkedEncodingError": True},
    "httpx": _HTTPX,
    "httpx2": _HTTPX,
    "huggingface_hub": {"OfflineModeIsEnabled": False},
    "openai": {"APIConnectionError": True},
    "botocore": {"ConnectionError": True, "HTTPClientError": True, "IncompleteReadError": True},
    "ray": {
        "RayActorError": True,
        "WorkerCrashedError": True,
        "NodeDiedError": True,
        "LocalRayletDiedError": True,
        "ObjectLostError": True,
        "ObjectStoreFullError": True,
        "OutOfMemoryError": True,
        "OutOfDiskError": True,
        "GetTimeoutError": True,
        "RpcError": True,  # the head's own services are away
    },
}
"""Errors of libraries by package and name, with those that inherit from them, and whether they may pass.

By name, since whoever asks has not imported most of these libraries. The first of an error's classes decides.
"""
_AWS = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))? during \w+ operation")
_AWS_NAMES = {"NETWORK_CONNECTION", "SLOW_DOWN", "THROTTLING", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE"}
_AWS_NAMES |= {"INTERNAL_FAILURE", "INTERNAL_SERVER_ERROR"}
_GOOGLE = re.compile(r"google::cloud::Status\((\w+)")
_GOOGLE_NAMES = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"}
_OBSTORE = re.compile(r"non-2xx status code: (\d+)|HTTP error: ")
_ERRNO_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # libraries in Rust, and repeated messages


def passes(error: BaseException) -> bool:
    """Return whether an error may pass by itself, so that the same call, made later, may succeed.

    Knows kvray's own errors, those of the operating system, of object stores through pyarrow and obstore, the Hugging
    Face hub, OpenAI-compatible APIs and Ray. An error that tells nothing of itself is judged by its cause. What is
    refused (access, a name, a recipe), missing or damaged does not pass.
    """
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is each for each in seen):
        verdict = _verdict(current)
        if verdict is not None:
            return verdict
        seen.append(current)
        inner = getattr(current, "cause", None) or getattr(current, "reason", None)  # of Ray's task errors; of urllib's
        current = inner if isinstance(inner, BaseException) else current.__cause__
    return False


def status_passes(status: int) -> bool:
    """Return whether an HTTP status says that a server cannot answer at the moment."""
    return status in _STATUSES or status > 511  # beyond the registered ones: of proxies, such as 520 to 530


def disk_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, or the user's share of it, is full."""
    return _errno(error) in _FULL


def _verdict(error: BaseException) -> bool | None:
    """Return whether an error may pass, None if nothing of it tells."""
    if isinstance(error, KvrayError):
        return error.passes
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    verdicts = (judge(error) for judge in (_by_type, _by_status, _by_errno, _by_text))
    return next((verdict for verdict in verdicts if verdict is not None), None)


def _by_type(error: BaseException) -> bool | None:
    names = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__)
    found = (_TYPES.get(package, {}).get(name) for package, name in names)
    return next((verdict for verdict in found if verdict is not None), None)


def _by_status(error: BaseException) -> bool | None:
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:  # of requests, httpx and the hub; of openai; of urllib
        found = (getattr(response, "status_code", None), getattr(error, "status_code", None))
        status = next((each for each in (*found, getattr(error, "code", None)) if isinstance(each, int)), None)
    if not isinstance(status, int):
        return None
    return status_passes(status) and getattr(error, "code", None) not in USED_UP


def _by_errno(error: BaseException) -> bool | None:
    number = _errno(error)
    return None if number is None else number in _ERRNOS


def _by_text(error: BaseException) -> bool | None:
    text = str(error)
    if found := _AWS.search(text):
        return found[1] in _AWS_NAMES or (found[2] is not None and status_passes(int(found[2])))
    if found := _OBSTORE.search(text):
        return found[1] is None or status_passes(int(found[1]))
    found = _GOOGLE.search(text)
    return None if found is None else found[1] in _GOOGLE_NAMES


def _errno(error: BaseException) -> int | None:
    number = getattr(error, "errno", None)
    if number is None and (found := _ERRNO_IN_TEXT.search(str(error))):
        number = int(found[1] or found[2])
    return number if isinstance(number, int) else None
