"""The connection to Ray: joins the requested one, or starts a local one apart from any other."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import NamedTuple

from kvray.console import say
from kvray.errors import ResourceError, need
from kvray.store.places.scratch import remove_abandoned
from kvray.sweep.model import Runtime

LOCAL_OBJECT_STORE = 512 * 2**20  # bytes, in a local Ray; stages exchange files, so little passes through it
ANSWER_TIMEOUT_S = 10.0  # a Ray that is silent for so long counts as dead; its own client would try for three minutes
_ADDRESS = "RAY_ADDRESS"
_WAY_OUT = f"unset {_ADDRESS} and runtime.address to start a local Ray instead"


class Connection(NamedTuple):
    """A Ray: whether it was started for this process alone, and whether it ends with the connection."""

    local: bool
    ends: bool


_started: set[int] = set()  # ids of processes, this one, that have started the Ray that they are connected to


@contextlib.contextmanager
def connect(runtime: Runtime) -> Iterator[Connection]:
    """Join the Ray that ``runtime.address`` or RAY_ADDRESS names; otherwise start a local one and stop it at the end.

    A Ray that this process has joined is used as it is. Without an address, or with ``local``, any other Ray on this
    machine is left alone: its resources are not ours, and an address file may outlive its Ray. Raises ResourceError if
    the Ray does not answer, or cannot be joined from here; InputError if Ray is not installed.
    """
    address = asked_for(runtime)
    prepare_environment(local=address is None)
    need("this", "ray")
    import ray

    if ray.is_initialized():
        yield Connection(os.getpid() in _started, ends=False)
        return
    if address is None:
        _start_local(runtime)
    else:
        _join(address, runtime)
    if address is None:
        _started.add(os.getpid())
    try:
        yield Connection(local=address is None, ends=True)
    finally:
        _started.discard(os.getpid())
        ray.shutdown()
        remove_abandoned()  # of actors that ended with it


def asked_for(runtime: Runtime) -> str | None:
    """Return the address of the Ray to join, None to start one."""
    address = runtime.address or os.environ.get(_ADDRESS)
    return None if address in (None, "", "local") else address


def prepare_environment(local: bool) -> None:
    """Set the environment variables of Ray's processes that the user has not set."""
    if local:
        # Since Ray 2.59 a local Ray turns on token authentication and writes into the home directory; a Ray that
        # listens on this machine alone needs neither. A cluster keeps its own setting.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP threads spin at every barrier otherwise, which is many times slower beside a busy neighbour.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _start_local(runtime: Runtime) -> None:
    import ray
    from ray._private import services

    others = sorted(services.find_gcs_addresses())
    beside = f", beside the one that runs at {others[0]} ({_ADDRESS}={others[0]} would join it)" if others else ""
    say(f"kvray: starting a local Ray{beside}")
    ray.init(
        address="local",
        num_cpus=runtime.num_cpus or os.cpu_count(),
        object_store_memory=runtime.object_store_memory or LOCAL_OBJECT_STORE,
        include_dashboard=False,
        **_quiet(),
    )


def _join(address: str, runtime: Runtime) -> None:
    import ray

    _check_answers(address)
    unused = [name for name in ("num_cpus", "object_store_memory") if getattr(runtime, name) is not None]
    note = f" (without effect there: runtime.{', runtime.'.join(unused)})" if unused else ""
    say(f"kvray: joining the Ray at {address}{note}")
    try:
        ray.init(address=address, **_quiet())
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ResourceError(f"Ray at {address} cannot be joined from here: {why}; {_WAY_OUT}") from error


def _check_answers(address: str) -> None:
    from ray._private import services

    place = address
    try:
        if address.startswith("ray://"):
            host, _, port = address.removeprefix("ray://").partition("/")[0].partition(":")
            place = f"{host}:{port or '10001'}"  # the default of Ray's clients
        else:
            place = services.canonicalize_bootstrap_address_or_die(address)
    except ConnectionError as error:
        raise ResourceError(f"Ray at {address}: {' '.join(str(error).split())} {_WAY_OUT}") from error
    except (ValueError, OSError) as error:
        raise ResourceError(
            f"Ray at {address}: found no address; expected HOST:PORT, ray://HOST:PORT or auto; {_WAY_OUT}"
        ) from error
    named = address if place == address else f"{address} ({place})"
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise ResourceError(f"Ray at {named} does not answer ({why}); {_WAY_OUT}") from error
    if os.environ.get("RAY_USE_TLS", "0") == "0" and not _speaks_grpc(place):
        raise ResourceError(
            f"Ray at {named} does not answer: something listens there and said nothing for "
            f"{ANSWER_TIMEOUT_S:.0f} s; {_WAY_OUT}"
        )


def _speaks_grpc(place: str) -> bool:
    """Return whether a gRPC server, as every Ray is, answers in time; a frozen process accepts but stays silent."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return False
    return True


def _quiet() -> dict[str, object]:
    verbose = bool(os.environ.get("KVRAY_VERBOSE"))
    return {"log_to_driver": verbose, "logging_level": "INFO" if verbose else "ERROR"}
