"""A local server of the OpenAI API's kind for tests: chat completions, files and fine-tuning jobs, and every fault."""

from __future__ import annotations

import email
import email.policy
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-test-0a1b2c3d4e5f6g7h8i9j0k1l2m3n4o5p6q"
NAMED_DELAY_S = 0.3
FAULTS = ("429", "500", "cut", "truncated", "empty", "slow", "503-date")
"""What can go wrong before an answer: refusals for now, half a transfer, half a JSON, no usage, no answer in time."""


@dataclass
class Api:
    """What the server does and what was asked of it.

    Attributes:
        url: the base URL.
        answer: makes the answer to a chat's messages.
        faults: what happens, in order, to each chat before its answer.
        delay_s: before each chat's answer.
        key: the key that opens it; None opens it to all.
        models: that chat.
        limit: characters of a prompt that fit; None for all.
        refuses: parameters of a chat that it does not take.
        until: requests after which the key is refused.
        chats: bodies of all chats that were let in, in order.
        refused: how many requests had a wrong key.
        most: chats at a time, at most.
        files: uploaded files: id, filename, bytes, content.
        jobs: fine-tuning jobs.
        path: what a job's status is at each look.
        keeps_metadata: whether a job tells its metadata; it tells its suffix in any case.
        after_create: called with the job's number after one is made, before the answer; may raise Fault.
        epochs: what a job says that it trains; None for what was asked.
        tunes: whether there is any fine-tuning.
        requests: (method, path) of everything.
    """

    url: str = ""
    answer: Callable[[list[dict[str, str]]], str] = lambda messages: f"You said {messages[-1]['content'][:12]}."
    faults: tuple[str, ...] = ()
    key: str | None = KEY
    delay_s: float = 0.0
    models: set[str] = field(default_factory=lambda: {"tiny"})
    limit: int | None = None
    refuses: set[str] = field(default_factory=set)
    until: int | None = None
    always: dict[str, str] = field(default_factory=dict)
    chats: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    refused: int = 0
    most: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    path: tuple[str, ...] = ("validating_files", "queued", "running", "succeeded")
    error: dict[str, Any] | None = None
    keeps_metadata: bool = True
    after_create: Callable[[int], None] | None = None
    epochs: int | None = None
    tunes: bool = True
    requests: list[tuple[str, str]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def made(self, path: str) -> int:
        """Return how many things were created under a path."""
        return sum(request == ("POST", path) for request in self.requests)


class Fault(Exception):
    """Ends a request with a status and a body."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **error: Any) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.body = {"error": {"message": message, "type": "error", "param": None, "code": None, **error}}


@contextmanager
def serving(**given: Any) -> Iterator[Api]:
    """Run a server on a free port; ``given`` are attributes of :class:`Api`."""
    api = Api(**given)

    class Handler(_Handler):
        state = api

    server = _Server(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # with the usual 5, connections made at once wait a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    state: Api
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._do(b"")

    def do_POST(self) -> None:
        self._do(self.rfile.read(int(self.headers["content-length"])))

    def _do(self, data: bytes) -> None:
        path = self.path.split("?")[0].removeprefix("/v1")
        with self.state.lock:
            self.state.requests.append((self.command, path))
        try:
            self._check_key()
            self._send(200, self._route(path, data))
        except Fault as fault:
            self._send(fault.status, fault.body, fault.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _check_key(self) -> None:
        api = self.state
        given = (self.headers["authorization"] or "").removeprefix("Bearer ")
        with api.lock:
            if api.key in (None, given) and (api.until is None or len(api.chats) < api.until):
                return
            api.refused += 1
        # Some servers do echo what they were given.
        raise Fault(401, f"Incorrect API key provided: {given} ({given[:20]}…)", code="invalid_api_key")

    def _route(self, path: str, data: bytes) -> dict[str, Any] | None:
        if path == "/chat/completions":
            return self._chat(json.loads(data))
        if self.state.tunes and path == "/files":
            return self._files(data)
        if self.state.tunes and path.startswith("/fine_tuning/jobs"):
            return self._jobs(path.removeprefix("/fine_tuning/jobs").strip("/").split("/"), data)
        raise Fault(404, "Not Found")

    def _send(self, status: int, body: dict[str, Any] | None, headers: dict[str, str] | None = None) -> None:
        if body is None:
            return
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _half(self, content: bytes, told: int) -> None:
        """Send what is there of a body of which more, or just as much, was told; and hang up."""
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(told))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
        self.close_connection = True

    def _chat(self, body: dict[str, Any]) -> dict[str, Any] | None:
        api, prompt = self.state, body["messages"][-1]["content"]
        with api.lock:
            api.chats.append(body)
            api.times.setdefault(prompt, []).append(time.monotonic())
            number = api.seen[prompt]
            api.seen[prompt] += 1
            api.now += 1
            api.most = max(api.most, api.now)
        time.sleep(api.delay_s)
        try:
            return self._answer(body, prompt, number)
        finally:
            with api.lock:
                api.now -= 1

    def _answer(self, body: dict[str, Any], prompt: str, number: int) -> dict[str, Any] | None:
        api = self.state
        if body["model"] not in api.models:
            raise Fault(404, f"The model `{body['model']}` does not exist", param="model", code="model_not_found")
        for name in api.refuses & set(body):
            raise Fault(422, f"Extra inputs are not permitted: {name}")
        if api.limit is not None and len(prompt) > api.limit:
            raise Fault(400, f"This model's maximum context length is {api.limit} tokens. However, …")
        whole = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": f"{body['model']}-1106",
            "system_fingerprint": "fp_1",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": api.answer(body["messages"])},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": len(prompt.split()) + 4,
                "completion_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        }
        fault = api.always.get(prompt) or (api.faults[number] if number < len(api.faults) else None)
        content = json.dumps(whole).encode()
        if fault == "429":
            raise Fault(
                429, "Rate limit reached", {"retry-after": "9", "retry-after-ms": f"{1000 * NAMED_DELAY_S:.0f}"}
            )
        if fault == "503-date":
            raise Fault(503, "Overloaded", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
        if fault == "quota":
            raise Fault(429, "You exceeded your current quota", code="insufficient_quota")
        if fault == "500":
            raise Fault(500, f"The server had an error; your key is {KEY}")
        if fault == "filtered":
            whole["choices"][0]["finish_reason"] = "content_filter"
        if fault == "slow":
            time.sleep(1.0)
        if fault == "empty":
            return {"id": "chatcmpl-1", "choices": []}
        if fault in ("cut", "truncated"):
            half = content[: len(content) // 2]
            self._half(half, len(content) if fault == "cut" else len(half))
            return None
        return whole

    def _files(self, data: bytes) -> dict[str, Any]:
        if self.command == "GET":
            shown = [{name: value for name, value in file.items() if name != "content"} for file in self.state.files]
            return self._page(shown)
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        parts = list(email.message_from_bytes(head + data, policy=email.policy.HTTP).iter_parts())  # type: ignore[attr-defined]
        fields = {part.get_param("name", header="content-disposition"): part for part in parts}
        content = fields["file"].get_payload(decode=True)
        assert fields["purpose"].get_payload() == "fine-tune"
        file = {
            "id": f"file-{len(self.state.files)}",
            "object": "file",
            "filename": fields["file"].get_filename(),
            "bytes": len(content),
            "purpose": "fine-tune",
            "status": "processed",
            "content": content,
        }
        self.state.files.append(file)
        return {name: value for name, value in file.items() if name != "content"}

    def _page(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Newest first, two at a time, whatever was asked for."""
        items = items[::-1]
        after = self.path.partition("after=")[2].partition("&")[0]
        start = next((at + 1 for at, item in enumerate(items) if item["id"] == after), 0)
        return {"object": "list", "data": items[start : start + 2], "has_more": start + 2 < len(items)}

    def _jobs(self, parts: list[str], data: bytes) -> dict[str, Any]:
        api = self.state
        if parts != [""]:
            return self._job(parts)
        if self.command == "GET":
            return self._page([self._shown(job) for job in api.jobs])
        body = json.loads(data)
        job = {
            "id": f"ftjob-{len(api.jobs)}",
            "object": "fine_tuning.job",
            "status": api.path[0],
            "created_at": 1000,
            "looks": 0,
            "asked": body,
            "cancelled": False,
        }
        with api.lock:
            api.jobs.append(job)
        if api.after_create is not None:
            api.after_create(len(api.jobs) - 1)
        return self._shown(job)

    def _job(self, parts: list[str]) -> dict[str, Any]:
        job = next((job for job in self.state.jobs if job["id"] == parts[0]), None)
        if job is None:
            raise Fault(404, f"No job {parts[0]}")
        if parts[1:] == ["cancel"]:
            job["status"] = "cancelled"
            return self._shown(job)
        job["looks"] += 1
        if job["status"] != "cancelled":
            job["status"] = self.state.path[min(job["looks"], len(self.state.path) - 1)]
        if job["status"] == "succeeded":
            job["model"] = f"ft:{job['asked']['model']}:lab:{job['asked']['suffix']}:{job['id']}"
            self.state.models.add(job["model"])
        return self._shown(job)

    def _shown(self, job: dict[str, Any]) -> dict[str, Any]:
        asked, done = job["asked"], job["status"] == "succeeded"
        given = asked["method"]["supervised"]["hyperparameters"]
        hyperparameters = {"batch_size": 1, "learning_rate_multiplier": 2.0, **given}
        if self.state.epochs is not None:
            hyperparameters["n_epochs"] = self.state.epochs
        return {
            "id": job["id"],
            "object": "fine_tuning.job",
            "status": job["status"],
            "model": f"{asked['model']}-1106",
            "training_file": asked["training_file"],
            "created_at": job["created_at"],
            "finished_at": 1090 if done else None,
            "fine_tuned_model": job.get("model") if done else None,
            "trained_tokens": 4321 if done else None,
            "seed": asked.get("seed"),
            "error": self.state.error if job["status"] == "failed" else None,
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            "user_provided_suffix": asked["suffix"],
            **({"metadata": asked["metadata"]} if self.state.keeps_metadata else {}),
        }
