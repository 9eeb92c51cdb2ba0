"""Evaluation against vLLM's own OpenAI server: the answers, scores and token counts of an engine in this process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import evaluate_store as made
import pyarrow as pa
import pytest
from local_driver import evaluate
from test_chat import texts

from kvray.models.openai import ApiError
from kvray.models.reference import BUNDLED, BaseModelRef, resolve
from kvray.models.tokenizer import token_counter
from kvray.store.store import Store
from kvray.sweep.model import Runtime
from kvray.tasks.qa.recall import Recall

KEY = "local-key-0123456789"
LENGTH = 256
_SERVER = """
import multiprocessing
import vllm.utils.system_utils as system
# The CPU build starts its two further processes afresh, each with all its imports; copies of this one serve as well.
system.get_mp_context = lambda: multiprocessing.get_context("fork")
from vllm.entrypoints.launchers.api_server.entry import main
main()
"""
_FLAGS = (
    "--served-model-name tiny --host 127.0.0.1 --dtype float32 --enforce-eager --generation-config vllm "
    f"--max-model-len {LENGTH} --max-num-seqs 32 --block-size 32 --kv-cache-memory-bytes 67108864 "
    "--enable-prompt-tokens-details --disable-log-stats --disable-uvicorn-access-log"
).split()


@contextmanager
def served(log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run vLLM's server on kvray-tiny, which is up some time after; yield its URL and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_API_KEY": KEY,
    }
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # the engines of this process have set it
    command = [sys.executable, "-c", _SERVER, "--model", str(BUNDLED["kvray-tiny"]), "--port", str(port), *_FLAGS]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        # Its session is its own: what it left behind goes, and nothing else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"no answer in time:\n{log.read_text()[-3000:]}")


@pytest.mark.slow
def test_vllms_server_answers_as_an_engine_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    tiny = resolve("kvray-tiny")
    task = Recall(questions=40)
    known = task.build(0, 40, task.context(token_counter(tiny)))
    # What it knows, what it can only ramble about, and what does not fit.
    asked = pa.concat_tables([known, made.example_table(12, long_rows=(11,)).cast(known.schema)])
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    cells = {store: made.predictions(store, made.dataset(store, asked), None) for store in (here, there)}
    base = BaseModelRef("openai:tiny", "tiny", None, "openai:tiny")
    log = tmp_path / "server.log"
    with served(log) as (url, process):
        # Meanwhile, the same in this process.
        assert evaluate(here, tiny, cells[here], max_model_len=LENGTH) == [None]
        wait_for(url, process, log)
        given = Runtime(api_base_url=f"{url}/v1", api_retries=2)
        assert evaluate(there, base, cells[there], **given.model_dump(exclude_unset=True)) == [None]
        monkeypatch.setenv("OPENAI_API_KEY", "another-key-9876543210")
        with pytest.raises(ApiError, match="refuses the key"):
            texts(["Hello"], given, base)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with pytest.raises(ApiError, match="no model 'other'"):
            texts(["Hello"], given, replace(base, location="other"))
    assert process.returncode is not None
    ours, theirs = (store.read_table(cells[store].id).to_pylist() for store in (here, there))
    same = ("example_id", "finish_reason", "answer", "score", "outcome", "output_tokens")
    for mine, other in zip(ours, theirs, strict=True):
        assert {name: other[name] for name in same} == {name: mine[name] for name in same}
        if other["answer"] is not None:
            assert other["prompt_tokens"] == mine["prompt_tokens"]
            assert other["cached_tokens"] is not None
    endings = Counter(row["finish_reason"] for row in theirs)
    assert endings["too_long"] == 1 and endings["stop"] >= 40 and sum(endings.values()) == 52
    assert sum(row["score"] or 0 for row in theirs) >= 30
