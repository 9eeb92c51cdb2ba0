"""Where an artefact was made: the versions of the packages that shape results, and the hardware of this host."""

import functools
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvray.store.fingerprint import plain

_DISTRIBUTIONS = ("kvray", "numpy", "peft", "polars", "pyarrow", "ray", "tokenizers", "torch", "transformers", "vllm")


def with_provenance(measurements: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a stage's measurements with versions and hardware; a number that is not finite becomes text ("nan")."""
    given = _finite(dict(measurements or {}))
    merged = {**given, "versions": {**versions(), **given.get("versions", {})}}
    merged["hardware"] = {**hardware(), **given.get("hardware", {})}
    return dict(plain(merged))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape results, without importing them."""
    packages = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        for distribution in (name, f"{name}-cpu"):
            try:
                packages[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            break
    return packages


@functools.cache
def hardware() -> dict[str, Any]:
    """Return this host's processor, cores, memory (bytes) and NVIDIA devices, without any driver library."""
    models = [
        line.split(":", 1)[1].strip()
        for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
        for line in information.read_text(errors="replace").splitlines()
        if line.startswith("Model:")
    ]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": models,
    }


def _finite(value: Any) -> Any:
    if type(value) is float and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
