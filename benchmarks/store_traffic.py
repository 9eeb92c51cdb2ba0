"""What a large sweep that is already committed costs: seconds, and on S3 requests, of plan, status and an empty run.

A sweep of about N cells (mixtures x seeds x evaluations, kvray-tiny) is committed with tiny files by the real
``Store.commit``, once on a local disk and once in a bucket of moto's S3 server, which runs in this process and counts
requests as they arrive; of a report only its note and its scores are there. Then the commands run, each in a process
of its own. "after imports" leaves out the time in which Python and the command's modules load; "CPU s" is what the
command computed in the rest, which a busy machine changes less. The references, of the same run: the same command on
the fewest cells ("x first", of CPU seconds), and a bare recursive listing of the store.

    python benchmarks/store_traffic.py                      100, 1,000 and 10,000 cells
    python benchmarks/store_traffic.py --cells 1000 --on s3
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.fs as pafs

from kvray.driver.run import prepare
from kvray.evaluate.chunks import chunk_name
from kvray.generate.job import shard_name
from kvray.planning.artefacts import Artefact, Plan
from kvray.report.build import made_from
from kvray.results.snapshot import look
from kvray.store.content import encode
from kvray.store.places import local
from kvray.store.places.object_store import ObjectFiles
from kvray.store.schemas import ANSWERS_SCHEMA, LOSS_SCHEMA, SCORES_SCHEMA
from kvray.store.store import Store

SIZES = {100: (2, 5, 10), 1_000: (10, 10, 10), 10_000: (20, 50, 10)}  # mixtures, seeds, evaluations
COMMANDS = {
    "plan": ["plan", "SWEEP"],
    "status": ["status", "sweep"],
    "status FILE": ["status", "SWEEP"],
    "run": ["run", "SWEEP", "--no-report"],
    "run, report current": ["run", "SWEEP"],
}
BUCKET = "kvray-traffic"
TIMED = """
import sys, time
import kvray.driver.run, kvray.planning.cost.estimate, kvray.report.build, pandas, scipy.special, tokenizers
from kvray.cli import main
started, busy = time.perf_counter(), time.process_time()
try:
    main()
finally:
    print(time.perf_counter() - started, time.process_time() - busy, file=sys.stderr)
"""


@dataclass(frozen=True)
class Cost:
    """What one command took."""

    seconds: float  # by the clock, process start included
    after_imports: float
    cpu: float  # of the command after imports, of all its threads
    requests: Counter[str]  # by kind; empty on a disk


def sweep_text(cells: int) -> str:
    """Return the YAML of a sweep of about so many cells."""
    mixtures, seeds, evaluations = SIZES[cells]
    lines = [
        *("name: sweep", "base_model: kvray-tiny", "datasets:"),
        "  one: {task: simple_kv, rows: 40, dictionaries: 5}",
        "  two: {task: simple_kv, rows: 40, dictionaries: 6}",
        "mixtures:",
        *(f"  m{at:03}: {{one: {at + 10}, two: 30}}" for at in range(mixtures)),
        "evaluate:",
        *(f"  e{at:03}: {{task: simple_kv, rows: 20, dictionaries: 8, seed: {at + 1}}}" for at in range(evaluations)),
        f"finetune: {{seeds: {list(range(seeds))}, match: rows}}",
    ]
    return "\n".join(lines) + "\n"


def commit(store: Store, artefact: Artefact) -> None:
    """Commit an artefact of a plan with tiny files in place of what a stage would make."""
    labels = artefact.labels
    if artefact.kind == "predictions":
        rows = [
            {
                **{name: labels[name] for name in ("evaluation", "mixture", "finetune", "seed")},
                **{"task": "simple_kv", "base_model": "kvray-tiny", "adapter": None},
                **{"example_id": f"q{at}", "question_id": f"q{at}", "units": 8, "prompt_tokens": 100},
                **{"output_tokens": 4, "answer": "1", "references": ["1"], "finish_reason": "stop"},
                "score": float(hash((artefact.id, at)) % 3 > 0),
            }
            for at in range(4)
        ]
        table = pa.Table.from_pylist(rows, schema=ANSWERS_SCHEMA)
        files = [store.write(artefact.id, chunk_name(0), table)]
    elif artefact.kind == "finetune":
        files = [store.write(artefact.id, name, b"{}") for name in ("adapter_config.json", "adapter_model.safetensors")]
        files.append(store.write(artefact.id, "loss.parquet", LOSS_SCHEMA.empty_table()))
    else:
        files = [store.write(artefact.id, shard_name(0), pa.table({"prompt": ["x"]}))]
    measured = {"seconds": 1.0, "prompt_tokens": artefact.tokens, "trained_tokens": artefact.tokens}
    store.commit(**artefact.identity(), files=files, measurements=measured)


def commit_all(store: Store, plan: Plan) -> None:
    with mock.patch.object(local.os, "fsync", lambda _: None):  # the set-up, not the subject
        for artefact in plan.artefacts:
            commit(store, artefact)


class InFolder(ObjectFiles):
    """What a bucket would hold, in a folder, whose directories are made as they are needed."""

    def __init__(self) -> None:
        super().__init__(pafs.LocalFileSystem())

    def put(self, path: str, data: memoryview) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)


class Bucket:
    """Moto's S3 server on a free port, in front of which every request is counted by its kind."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from moto.s3.models import s3_backends
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: Counter[str] = Counter()
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._count, threaded=True)
        self.backend = s3_backends["123456789012"]["aws"]
        self.backend.create_bucket(BUCKET, "us-east-1")
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def uri(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint_override=http://127.0.0.1:{self._server.server_port}&scheme=http"

    def fill(self, prefix: str, directory: Path) -> None:
        """Put every file below a directory into the bucket, past HTTP."""
        for path in (path for path in directory.rglob("*") if path.is_file()):
            self.backend.put_object(BUCKET, f"{prefix}/{path.relative_to(directory)}", path.read_bytes())

    def _count(self, environ: dict[str, Any], start_response: Any) -> Any:
        listing = environ["REQUEST_METHOD"] == "GET" and "list-type" in parse_qs(environ["QUERY_STRING"])
        self.requests["LIST" if listing else environ["REQUEST_METHOD"]] += 1
        return self._app(environ, start_response)


@contextmanager
def committed(cells: int, bucket: Bucket | None, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file of a sweep and the URI of a store that has all of it."""
    file = folder / "sweep.yaml"
    file.write_text(sweep_text(cells))
    plan, _ = prepare(str(file))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = Store(place)
        if bucket is not None:  # by the code for buckets, into a folder
            store.__dict__["_files"] = InFolder()
        commit_all(store, plan)
        if bucket is None:
            yield file, place
            return
        bucket.fill(str(cells), Path(place))
    yield file, bucket.uri(str(cells))


def note_report(store: Store) -> None:
    """Put a report's note and scores there, in place of a report: writing one reads every prediction."""
    made = {**made_from(store, look(store, "sweep")), "files": ["scores.parquet"], "summary": ["the table of results"]}
    store.write_document("reports/sweep/scores.parquet", encode(SCORES_SCHEMA.empty_table()).to_pybytes())
    store.write_document("reports/sweep/made-from.json", json.dumps(made).encode())


def cost(command: list[str], file: Path, uri: str, bucket: Bucket | None) -> Cost:
    """Run a command in a process of its own."""
    words = [str(file) if word == "SWEEP" else word for word in command]
    before = Counter(bucket.requests) if bucket else Counter()
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", TIMED, *words, "--store", uri],
        check=False,
        capture_output=True,
        text=True,
        cwd=file.parent,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"},
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"kvray {' '.join(words)}: status {done.returncode}\n{done.stderr}")
    requests = Counter(bucket.requests) - before if bucket else Counter()
    after_imports, cpu = map(float, done.stderr.split()[-2:])
    return Cost(seconds, after_imports, cpu, requests)


def listing_s(uri: str) -> float:
    """Return the seconds of a bare recursive listing of a store."""
    store = Store(uri)
    store.check()
    started = time.perf_counter()
    store.fs.get_file_info(pafs.FileSelector(store.root, recursive=True))
    return time.perf_counter() - started


def table(where: str, sizes: list[int], commands: list[str], bucket: Bucket | None) -> None:
    first: dict[str, Cost] = {}
    titles = f"{'s':>6}  {'after imports':>13}  {'CPU s':>5}  {'x first':>7}"
    print(f"{where:>10}  {'cells':>6}  {'command':<20}  {titles}  requests")
    for cells in sizes:
        with tempfile.TemporaryDirectory() as folder, committed(cells, bucket, Path(folder)) as (file, uri):
            cost(COMMANDS["run"], file, uri, bucket)  # writes the plan's document
            note_report(Store(uri))
            for name in commands:
                took = cost(COMMANDS[name], file, uri, bucket)
                ratio = took.cpu / first.setdefault(name, took).cpu
                kinds = " ".join(f"{kind} {number}" for kind, number in took.requests.most_common())
                shown = f"{took.requests.total()} ({kinds})" if bucket else "-"
                numbers = f"{took.seconds:>6.2f}  {took.after_imports:>13.2f}  {took.cpu:>5.2f}  {ratio:>7.1f}"
                print(f"{where:>10}  {cells:>6,}  {name:<20}  {numbers}  {shown}", flush=True)
            print(f"{where:>10}  {cells:>6,}  {'bare listing':<20}  {listing_s(uri):>6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--on", nargs="+", choices=["disk", "s3"], default=["disk", "s3"])
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    given = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "NO_PROXY": "127.0.0.1"}
    for where in given.on:
        table(where, given.cells, given.commands, Bucket() if where == "s3" else None)


if __name__ == "__main__":
    main()
