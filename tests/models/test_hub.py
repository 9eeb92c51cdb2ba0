"""The hub, and other servers of sources, are asked again while they answer that they cannot for now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from kvray.errors import InputError, SourceUnreachableError
from kvray.models import hub
from kvray.models.reference import resolve
from kvray.store import patience
from kvray.tasks.sources import read

MODEL = b'{"id": "org/name", "sha": "%s", "siblings": []}' % (b"0" * 40)


class Server(ThreadingHTTPServer):
    """Answers with each of ``statuses``, then with ``status`` and a model's description."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.status = 200


class Handler(BaseHTTPRequestHandler):
    """Serves a :class:`Server`."""

    server: Server

    def answer(self) -> None:
        status = self.server.statuses.pop() if self.server.statuses else self.server.status
        body = MODEL if status == 200 else b"{}"
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.02)
    hub._patience.cache_clear()
    with Server() as made:
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        yield made
        made.shutdown()
    hub._patience.cache_clear()


def test_a_busy_hub_is_asked_again(server: Server) -> None:
    server.statuses = [503, 429, 502]
    assert resolve("org/name").revision == "0" * 40
    assert server.statuses == []


def test_a_hub_that_refuses_is_not(server: Server) -> None:
    server.statuses = [503, 401]
    with pytest.raises(InputError, match="could not be resolved") as failure:
        resolve("org/name")
    assert not isinstance(failure.value, SourceUnreachableError)
    assert server.statuses == [503]


def test_a_hub_that_stays_away_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.VARIABLE, "0.3")
    server.status = 503
    with pytest.raises(SourceUnreachableError, match="does not answer"):
        resolve("org/name")


def test_a_busy_web_server_is_asked_again(server: Server) -> None:
    server.statuses = [503, 500]
    read._from_network.cache_clear()
    assert read._from_network(f"http://127.0.0.1:{server.server_port}/data.jsonl") == MODEL
    server.statuses = [503, 404]
    with pytest.raises(InputError, match="404"):
        read._from_network(f"http://127.0.0.1:{server.server_port}/other.jsonl")
    assert server.statuses == [503]
