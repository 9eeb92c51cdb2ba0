"""Which errors may pass, told from the very exceptions that the libraries raise."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from small_disk import disk

from kvray.errors import (
    CellError,
    DamagedArtefactError,
    DiskFullError,
    InputError,
    RecipeMismatchError,
    ResourceError,
    SourceUnreachableError,
    StoreError,
    StoreUnavailableError,
    disk_full,
    passes,
)
from kvray.store.places.conditional import Bucket

__all__ = ["disk"]


class Server(ThreadingHTTPServer):
    """Answers every request with ``status`` and ``body``, of which it sends half if it is to be ``cut``."""

    daemon_threads = True
    status, body, cut = 200, b"", False


class Handler(BaseHTTPRequestHandler):
    """Serves a :class:`Server`."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response_only(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.server.body[: len(self.server.body) // 2] if self.server.cut else self.server.body)
        self.close_connection = self.server.cut

    do_GET = do_HEAD = do_PUT = do_POST = answer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }.items():
            patch.setenv(name, value)
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        made.shutdown()


@pytest.fixture
def closed() -> int:
    """A port that refuses connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def raised(call: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as failure:
        call()
    return failure.value


def s3(place: str) -> pafs.S3FileSystem:
    once = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    return pafs.S3FileSystem(endpoint_override=place, scheme="http", region="us-east-1", retry_strategy=once)


def put(fs: pafs.FileSystem) -> None:
    with fs.open_output_stream("bucket/key") as stream:
        stream.write(b"x")


S3 = [
    (503, "SlowDown", True),
    (503, "ServiceUnavailable", True),
    (500, "InternalError", True),
    (502, "", True),
    (504, "", True),
    (429, "TooManyRequests", True),
    (400, "RequestTimeout", True),
    (409, "OperationAborted", True),
    (403, "AccessDenied", False),
    (403, "InvalidAccessKeyId", False),
    (403, "SignatureDoesNotMatch", False),
    (400, "ExpiredToken", False),
    (404, "NoSuchBucket", False),
    (412, "PreconditionFailed", False),
    (301, "PermanentRedirect", False),
]


@pytest.mark.parametrize(("status", "code", "expected"), S3)
def test_s3(server: Server, status: int, code: str, expected: bool) -> None:
    server.status, server.cut = status, False
    server.body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if code else b""
    place = f"127.0.0.1:{server.server_port}"
    assert passes(raised(lambda: put(s3(place)))) == expected
    if code != "RequestTimeout":  # the answer to a HEAD has no code
        assert passes(raised(lambda: s3(place).open_input_file("bucket/key"))) == expected


@pytest.mark.parametrize(("status", "code", "expected"), [case for case in S3 if case[0] not in (404, 409, 412)])
def test_conditional_writes(server: Server, status: int, code: str, expected: bool) -> None:
    server.status, server.cut, server.body = status, False, f"<Error><Code>{code}</Code></Error>".encode()
    options = {"endpoint_override": f"127.0.0.1:{server.server_port}", "scheme": "http"}
    bucket = Bucket("s3", "bucket", options, "us-east-1", connect_s=2, request_s=1)
    if code != "RequestTimeout":  # of which obstore tells the status alone
        assert passes(raised(lambda: bucket.create("key", memoryview(b"x")))) == expected


def test_a_store_that_cuts_or_refuses_connections_or_has_no_address(server: Server, closed: int) -> None:
    server.status, server.body, server.cut = 200, b"<ListBucketResult>" + b" " * 2000, True
    whole = pafs.FileSelector("bucket/key", recursive=True)
    assert passes(raised(lambda: s3(f"127.0.0.1:{server.server_port}").get_file_info(whole)))
    assert passes(raised(lambda: put(s3(f"127.0.0.1:{closed}"))))
    away = Bucket("s3", "bucket", {"endpoint_override": f"127.0.0.1:{closed}", "scheme": "http"}, "us-east-1", 1, 1)
    assert passes(raised(lambda: away.create("key", memoryview(b"x"))))
    assert passes(raised(lambda: put(s3("nowhere.invalid"))))


@pytest.mark.parametrize(("status", "expected"), [(503, True), (429, True), (401, False), (403, False), (404, False)])
def test_google_cloud_storage(server: Server, status: int, expected: bool) -> None:
    server.status, server.body, server.cut = status, b'{"error": {"message": "m"}}', False
    place, limit = f"127.0.0.1:{server.server_port}", timedelta(seconds=0.5)
    fs = pafs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=place, retry_time_limit=limit)
    assert passes(raised(lambda: fs.open_input_file("bucket/key"))) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        *[(getattr(errno, name), True) for name in ("ENOSPC", "EDQUOT", "EIO", "ESTALE", "ECONNRESET", "ETIMEDOUT")],
        *[(getattr(errno, name), False) for name in ("EACCES", "ENOENT", "EROFS", "ENOTDIR", "ENAMETOOLONG")],
    ],
)
def test_the_operating_system(number: int, expected: bool) -> None:
    error = OSError(number, os.strerror(number))
    assert passes(error) == expected
    assert disk_full(error) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_a_full_disk_in_the_words_of_other_libraries(disk: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    full = raised(lambda: save_file({"a": torch.zeros(2**20)}, disk / "model"))
    assert disk_full(full) and passes(full), full
    full = raised(lambda: (disk / "file").write_bytes(bytes(2**21)))
    assert disk_full(full) and passes(full), full
    missing = raised(lambda: save_file({"a": torch.zeros(9)}, tmp_path / "no" / "such" / "place"))
    assert not disk_full(missing) and not passes(missing)


@pytest.mark.parametrize(("status", "expected"), [(500, True), (503, True), (429, True), (404, False), (401, False)])
def test_the_hub(server: Server, status: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.status, server.body, server.cut = status, b"{}", False
    hub = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}")
    assert passes(raised(lambda: hub.model_info("org/name", timeout=5))) == expected


def test_the_hub_out_of_reach_and_switched_off(
    server: Server, closed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi, constants, hf_hub_download

    given: Any = {"endpoint": f"http://127.0.0.1:{closed}", "cache_dir": tmp_path}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the hub's own retries
    assert passes(raised(lambda: HfApi(endpoint=f"http://127.0.0.1:{closed}").model_info("org/name")))
    assert passes(raised(lambda: hf_hub_download("org/name", "config.json", **given)))
    server.status, server.body, server.cut = 200, b'{"id": "org/name"}' + b" " * 2000, True
    assert passes(raised(lambda: HfApi(endpoint=f"http://127.0.0.1:{server.server_port}").model_info("org/name")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not passes(raised(lambda: HfApi(endpoint=f"http://127.0.0.1:{closed}").model_info("org/name")))
    assert not passes(raised(lambda: hf_hub_download("org/name", "config.json", **given)))


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(500, "", True), (429, "rate_limit_exceeded", True), (429, "insufficient_quota", False), (401, "", False)],
)
def test_an_api(server: Server, status: int, code: str, expected: bool) -> None:
    import openai

    server.status, server.cut = status, False
    server.body = b'{"error": {"message": "m", "code": "%s"}}' % code.encode()
    client = openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}/v1", max_retries=0)
    assert passes(raised(client.models.list)) == expected


def test_an_api_out_of_reach(closed: int) -> None:
    import openai

    client = openai.OpenAI(api_key="k", base_url=f"http://127.0.0.1:{closed}/v1", max_retries=0)
    assert passes(raised(client.models.list))


def test_the_web(server: Server, closed: int) -> None:
    import requests

    page = f"http://127.0.0.1:{server.server_port}/"
    for status, expected in ((503, True), (404, False)):
        server.status, server.body, server.cut = status, b"no", False
        assert passes(raised(lambda: urllib.request.urlopen(page))) == expected
        assert passes(raised(lambda: requests.get(page).raise_for_status())) == expected
    server.status, server.body, server.cut = 200, b"x" * 2000, True
    assert passes(raised(lambda: urllib.request.urlopen(page).read()))
    assert passes(raised(lambda: requests.get(page)))
    for call in (urllib.request.urlopen, requests.get):
        assert passes(raised(lambda call=call: call(f"http://127.0.0.1:{closed}/")))  # type: ignore[misc]
    assert passes(http.client.RemoteDisconnected("gone"))
    assert not passes(ssl.SSLCertVerificationError(1, "no certificate"))
    assert not passes(urllib.error.URLError(socket.gaierror(socket.EAI_NONAME, "no such name")))
    assert passes(urllib.error.URLError(socket.gaierror(socket.EAI_AGAIN, "for now")))


def test_ray() -> None:
    from ray import exceptions

    task = exceptions.RayTaskError("f", "trace", StoreUnavailableError("s3://b: cannot read"))
    passing = [
        exceptions.ActorDiedError(),
        exceptions.ActorUnavailableError("no answer", None),
        exceptions.NodeDiedError("gone"),
        exceptions.WorkerCrashedError(),
        exceptions.ObjectLostError("0" * 28, "", ""),
        exceptions.OwnerDiedError("0" * 28, "", ""),
        exceptions.GetTimeoutError(),
        exceptions.RpcError("GCS is away", rpc_code=14),
        exceptions.OutOfMemoryError("killed"),
        task,
        task.as_instanceof_cause(),
    ]
    assert [error for error in passing if not passes(error)] == []
    final = [
        exceptions.RuntimeEnvSetupError("no such package"),
        exceptions.TaskCancelledError(),
        exceptions.RayTaskError("f", "trace", ValueError("a bug")),
        exceptions.RayTaskError("f", "trace", InputError("no")).as_instanceof_cause(),
    ]
    assert [error for error in final if passes(error)] == []


def test_our_own() -> None:
    passing = [StoreUnavailableError("s"), DiskFullError("s"), SourceUnreachableError("s")]
    assert all(map(passes, passing))
    final = [StoreError("s"), DamagedArtefactError("s"), RecipeMismatchError("s"), InputError("s"), CellError("s")]
    assert not any(map(passes, [*final, ResourceError("s"), ValueError("s"), KeyError("s")]))


def test_an_error_that_tells_nothing_is_judged_by_its_cause_and_one_that_tells_is_not() -> None:
    def wrapped(kind: type[Exception]) -> Exception:
        try:
            try:
                raise ConnectionResetError("cut")
            except ConnectionResetError as inner:
                raise kind("could not load the model") from inner
        except Exception as error:
            return error

    assert passes(wrapped(OSError))
    assert not passes(wrapped(InputError))
    circle = RuntimeError("a")
    circle.__cause__ = RuntimeError("b")
    circle.__cause__.__cause__ = circle
    with contextlib.suppress(RuntimeError):
        raise circle
    assert not passes(circle)
