"""Fixtures shared by the tests: one bounded Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# OpenMP threads that spin at every barrier slow each other down by a multiple where tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def ray_two_cpus() -> Iterator[None]:
    """A local Ray with two CPUs and a small object store, stopped at the end of the session."""
    import ray

    ray.init("local", num_cpus=2, object_store_memory=200 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests, and say which run one after the other where several processes share them.

    What starts Ray or vLLM is one group, so one such test runs at a time, beside the others; and each other file is a
    group, so that what its tests share is made once. The evaluate stage's tests come first: they start vLLM in this
    process, which looks at every loaded module then, and what moto's server loads objects to that.
    """
    for item in items:
        if "ray_two_cpus" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        alone = item.get_closest_marker("slow") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if alone else item.path.name))
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, "evaluate" not in item.path.parts))
