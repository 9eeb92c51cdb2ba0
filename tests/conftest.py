"""Fixtures shared by the tests: one bounded Ray for the whole session."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from mistral import mistral

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What a store refuses for minutes is refused for good: a test that meets that is to fail soon.
os.environ.setdefault("KVRAY_PATIENCE_S", "2")
# OpenMP threads that spin at every barrier slow each other down by a multiple where tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell's background jobs, CI's among them, start with Ctrl-C ignored, and so would every program that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_two_cpus() -> Iterator[None]:
    """A local Ray with two CPUs and a small object store, stopped at the end of the session."""
    import ray

    ray.init("local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def no_ray() -> None:
    """This process has joined no Ray: for tests that join a cluster of their own."""
    import ray

    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def mistral_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of Mistral-7B-Instruct-v0.1 without weights, for ``base_model`` of plans at real size."""
    return mistral(tmp_path_factory.mktemp("models") / "Mistral-7B-Instruct-v0.1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the evaluate stage's tests first, those of moto's server last, those of the shared Ray after those of none.

    The order on the command line does not matter. Tests that start vLLM in this process come before those that load
    moto's server: vLLM looks at every loaded module, and what that server loads objects. The shared Ray stays until the
    session ends.
    """

    def place(item: pytest.Item) -> int:
        fixtures = getattr(item, "fixturenames", ())
        evaluates, shares = "evaluate" in item.path.parts, "ray_two_cpus" in fixtures
        if evaluates and not shares:
            return 0
        return 1 if "no_ray" in fixtures else 4 if "endpoint" in fixtures else 2 if evaluates else 3

    items.sort(key=place)
    for item in items:
        # Whatever starts Ray has the machine to itself; all else runs side by side (see the Makefile).
        if "ray_two_cpus" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
