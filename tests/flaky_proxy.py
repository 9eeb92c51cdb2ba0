"""A proxy that fails: it forwards HTTP to a server, and refuses, cuts, halves or delays a share of the requests.

    with FlakyProxy("127.0.0.1:5000", Faults.of(1 / 3), seed=1) as proxy:
        store = Store(f"s3://bucket/x?endpoint_override=http://{proxy.endpoint}")
        proxy.dead_for(20)

Which request fails, and how, follows from the seed, its method and path, and how often that was asked before: not from
the order in which threads happen to ask.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TIMEOUT_S = 60.0
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_OF_THE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect"}


@dataclass(frozen=True)
class Faults:
    """Shares of all requests, 0 to 1 in all, that end otherwise than the server would have it.

    Attributes:
        slow_down: are answered 503 SLOW_DOWN, and never reach the server.
        refused: find their connection cut before they reach the server.
        lost: are done by the server, and cut before its answer arrives.
        halved: get an answer that is cut after half of its body.
        delayed: are answered ``delay_s`` seconds late.
    """

    slow_down: float = 0.0
    refused: float = 0.0
    lost: float = 0.0
    halved: float = 0.0
    delayed: float = 0.0
    delay_s: float = 0.05

    @classmethod
    def of(cls, share: float) -> Self:
        """Return all faults alike, in all a ``share`` of the requests."""
        return cls(**dict.fromkeys(_KINDS, share / len(_KINDS)))


_KINDS = [field.name for field in fields(Faults) if field.name != "delay_s"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients hang up, and servers that are stopped do not answer."""


class FlakyProxy:
    """Forwards to ``upstream`` (host:port) from :attr:`endpoint` while it is open; ``faults`` may be exchanged.

    :attr:`counts` says how many requests came ("requests"), how many met which fault, and how many a dead time
    ("dead").
    """

    def __init__(self, upstream: str, faults: Faults | None = None, seed: int = 0) -> None:
        self.faults = faults or Faults()
        self.counts: Counter[str] = Counter()
        self._upstream = upstream
        self._seed = seed
        self._asked: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._dead_until = 0.0
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def dead_for(self, seconds: float) -> None:
        """Cut every request for so long, from now on; 0 ends a dead time."""
        self._dead_until = time.monotonic() + seconds

    def fault(self, method: str, path: str) -> str | None:
        """Return what becomes of a request: the name of a fault or "dead"; None if it is forwarded unharmed."""
        with self._lock:
            self.counts["requests"] += 1
            found: str | None = "dead"
            if time.monotonic() >= self._dead_until:
                self._asked[method, path] += 1
                drawn = random.Random(f"{self._seed} {method} {path} {self._asked[method, path]}")
                shares = [getattr(self.faults, kind) for kind in _KINDS]
                (found,) = drawn.choices([*_KINDS, None], [*shares, max(0.0, 1 - sum(shares))])
            if found:
                self.counts[found] += 1
            return found

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        """Ask the server, and return its answer."""
        connection = http.client.HTTPConnection(self._upstream, timeout=TIMEOUT_S)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {**headers, "content-length": str(len(body)), "connection": "close"}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        return connection.getresponse()


def _end_to_end(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return headers, by names in lower case, without those that are about one connection."""
    lower = ((name.lower(), value) for name, value in headers)
    return {name: value for name, value in lower if name not in _OF_THE_CONNECTION}


def _handler(proxy: FlakyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            fault = proxy.fault(self.command, self.path)
            if fault in ("dead", "refused"):
                self._cut()
                return
            if fault == "slow_down":
                self._answer(503, {"content-type": "application/xml"}, SLOW_DOWN)
                return
            response = proxy.forward(self.command, self.path, _end_to_end(self.headers.items()), body)
            answer = response.read()
            if fault == "lost":
                self._cut()
                return
            if fault == "delayed":
                time.sleep(proxy.faults.delay_s)
            self._answer(response.status, _end_to_end(response.getheaders()), answer, half=fault == "halved")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(pieces)

        def _answer(self, status: int, headers: dict[str, str], body: bytes, half: bool = False) -> None:
            head = self.command == "HEAD"
            self.send_response_only(status)
            # Of a HEAD the length is that of the body which is not sent.
            length = headers.get("content-length", "0") if head else str(len(body))
            for name, value in {**headers, "content-length": length}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if head else body[: len(body) // 2] if half else body)
            self.wfile.flush()
            if half and body:
                self._cut()

        def _cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                # Without lingering, a close resets the connection.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.shutdown(socket.SHUT_RD)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
