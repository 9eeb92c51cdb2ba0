"""A stand-in for the Hugging Face hub: what its client asks for to create a repository and to upload files into it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a" * 30
READER = "hf_" + "b" * 30
"""A valid token that may not write."""


@dataclass
class Hub:
    """What the stand-in was told: repositories (``models/me/it``) with their visibility, files and commit messages."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty hub on a free port of this machine."""
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self._allowed():
                _, _, kind, owner, name = self.path.split("?")[0].split("/")[:5]
                key = f"{kind}/{owner}/{name}"
                found = {"id": f"{owner}/{name}", "private": state.private.get(key), "sha": "0" * 40, "siblings": []}
                self._reply(
                    found if key in state.private else {"error": "Not found"}, 200 if key in state.private else 404
                )

        def do_PUT(self) -> None:
            data = self._body()
            state.large[hashlib.sha256(data).hexdigest()] = data
            self._reply({})

        def do_POST(self) -> None:
            body = self._body()
            if not self._allowed(write=True):
                return
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                owner = f"{asked['organization']}/" if asked.get("organization") else ""
                key = f"{asked.get('type', 'model')}s/{owner}{asked['name']}"
                status = 409 if key in state.private else 200
                hidden = bool(asked.get("private")) or asked.get("visibility") == "private"
                state.private.setdefault(key, hidden)
                self._reply({"url": f"{state.address}/{key.removeprefix('models/')}"}, status)
            elif self.path == "/api/validate-yaml":
                self._reply({"warnings": [], "errors": []})
            elif "preupload" in parts:
                modes = [
                    {"path": f["path"], "shouldIgnore": False}
                    | {"uploadMode": "lfs" if f["path"].endswith((".safetensors", ".parquet")) else "regular"}
                    for f in json.loads(body)["files"]
                ]
                self._reply({"files": modes})
            elif parts[-1] == "batch":
                upload = {"actions": {"upload": {"href": f"{state.address}/large"}}}
                found = [{"oid": o["oid"], "size": o["size"], **upload} for o in json.loads(body)["objects"]]
                self._reply({"transfer": "basic", "objects": found})
            elif "commit" in parts:
                self._commit("/".join(parts[1:4]), body)
            else:
                self._reply({"error": f"no {self.path}"}, 404)

        def _commit(self, key: str, body: bytes) -> None:
            lines = [json.loads(line) for line in body.splitlines()]
            files = state.files.setdefault(key, {})
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    state.messages.append(value["summary"])
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                else:
                    files[value["path"]] = state.large[value["oid"]]
            self._reply(
                {"commitUrl": f"{state.address}/{key}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            )

        def _body(self) -> bytes:
            state.requests.append(f"{self.command} {self.path}")
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _allowed(self, write: bool = False) -> bool:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token == TOKEN or (token == READER and not write):
                return True
            self._reply({"error": "no"}, 403 if token == READER else 401)
            return False

        def _reply(self, value: Any, status: int = 200) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
