"""What a node tells of itself. Runs on every node, pickled by value, since a node may lack kvray or have another one.

So the standard library alone is imported before it is known what there is, and answers are plain values.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

CACHE = "model cache"
SCRATCH = "scratch"
STORE = "store"
_SMI_S = 60  # seconds that nvidia-smi may take: the first call on a node loads the driver


def look(uri: str, name: str, node: str, packages: Sequence[str], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node's answers, as the fields of :class:`~kvray.cli.doctor.judge.Node`.

    Writes a small document ``<name>-<node>`` into the store at ``uri``, which has ``<name>-driver`` already.

    Args:
        uri: the store.
        name: the documents' names start with it.
        node: Ray's id of this node.
        packages: distributions whose versions are told.
        asked: ``scratch`` and ``model_cache`` (directories or None, as of ``runtime``), and of the base model
            ``location``, ``revision`` (None for a directory) and ``file``, one of its weights.
    """
    found = versions(packages)
    gpus = _gpus()
    cache = _cache(asked.get("model_cache"))
    return {
        "versions": found,
        "cpus": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
        "cuda": _cuda() if gpus and found.get("torch") else None,
        "disks": [
            disk(STORE, uri) if "://" not in uri else None,
            disk(SCRATCH, asked.get("scratch") or tempfile.gettempdir()),
            disk(CACHE, cache),
        ],
        "shared_memory": shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None,
        "store": store(uri, name, node),
        "base": base(asked, cache),
        "clock": time.time(),
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return Python's version and those of distributions, or of their builds for CPUs; None for what is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        found[package] = None
        for distribution in (package, f"{package}-cpu"):
            try:
                found[package] = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def disk(what: str, path: str) -> dict[str, Any]:
    """Return a directory's device and free bytes, and why nothing can be written there (None if it can)."""
    there = os.path.abspath(os.path.expanduser(path))
    while not os.path.exists(there):
        there = os.path.dirname(there)
    told: dict[str, Any] = {"what": what, "path": path, "free": shutil.disk_usage(there).free, "error": None}
    told["device"] = os.stat(there).st_dev
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        told["error"] = error.strerror or str(error)
    return told


def store(uri: str, name: str, node: str) -> str | None:
    """Write, read, create on condition and delete in the store; return what does not work, None if all does."""
    try:
        from kvray.store.store import Store

        place = Store(uri)
        if place.read_document(f"{name}-driver") is None:
            return "it does not see what the driver wrote there, so it is another place"
        place.write_document(f"{name}-{node}", node.encode())
        once = f"{name}-once-{node}"
        try:
            first, second = (place._files.put_new(place.path(once), memoryview(text)) for text in (b"1", b"2"))
            if not first or (second and not place.remote):
                return "a file that exists can be created again, so two drivers could not tell who was first"
        finally:
            place.delete_document(once)
        return None if place.read_document(once) is None else "what is deleted there can still be read"
    except Exception as error:
        # Any failure (no kvray, no credentials, no route) is this node's answer.
        return f"{type(error).__name__}: {error}"


def base(asked: Mapping[str, Any], cache: str) -> str | None:
    """Return why a node cannot load the base model's weights, None if it can: they are here, or the hub gives them."""
    location, revision = asked.get("location"), asked.get("revision")
    if location is None:
        return None
    if revision is None:
        return None if os.path.isdir(location) else f"the directory {location} is not on this node"
    if importlib.util.find_spec("huggingface_hub") is None:
        return "huggingface_hub is missing"
    return _on_hub(location, revision, asked["file"], cache)


def _on_hub(location: str, revision: str, file: str, cache: str) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    if isinstance(try_to_load_from_cache(location, file, os.path.join(cache, "hub"), revision), str):
        return None
    try:
        # The headers alone; where weights are gated, the list of files may be open all the same.
        get_hf_file_metadata(hf_hub_url(location, file, revision=revision), timeout=20)
    except GatedRepoError:
        return f"{location} is gated, and this node has no token that its owner let in"
    except Exception as error:
        # The client passes on whatever its HTTP library raises.
        return f"the hub does not give {file} of {location}: {type(error).__name__}: {str(error).splitlines()[0]}"
    return None


def _cache(given: str | None) -> str:
    """Return HF_HOME as huggingface_hub reads it, or ``runtime.model_cache``."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return os.path.expanduser(given or os.environ.get("HF_HOME", default))


def _gpus() -> list[dict[str, Any]]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in answer.stdout.splitlines() if line.strip()]
    return [{"name": name, "memory_mib": memory, "driver": driver} for name, memory, driver in rows]


def _cuda() -> dict[str, Any]:
    """Return the CUDA version of torch's build, and why it sees no GPU; in a process of its own, which ends again."""
    code = "import torch; print(torch.version.cuda); torch.zeros(1, device='cuda')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    version = done.stdout.strip() or None
    return {
        "build": None if version == "None" else version,
        "error": None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1],
    }
