"""A bucket on this machine: moto's S3 server, for the tests of stores and of outputs."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import boto3
import pytest

from kvray.store.store import Store

KEY, SECRET = "AKIAKVRAYTESTKEY", "kvray/Test+Secret"
BUCKET = "kvray-sweeps"
REQUESTS: list[str] = []
"""What the server was asked since a test cleared it: LIST, or the method."""
CONDITIONS = ["kept"]
"""What the server makes of If-None-Match: it is kept, ignored (by older stores), or refused as not implemented."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Moto's S3 on a free port of this host, with one empty bucket."""
    # Not at the top: vLLM looks at every loaded module when an engine starts, and flask's, which moto loads, object.
    from moto.server import ThreadedMotoServer

    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        web = server._server
        assert web is not None
        app = web.app

        def counting(environ: dict[str, Any], start_response: Any) -> Any:
            listing = environ["REQUEST_METHOD"] == "GET" and "list-type" in environ["QUERY_STRING"]
            REQUESTS.append("LIST" if listing else environ["REQUEST_METHOD"])
            if CONDITIONS[0] == "ignored":
                environ.pop("HTTP_IF_NONE_MATCH", None)
            if CONDITIONS[0] == "refused" and "HTTP_IF_NONE_MATCH" in environ:
                start_response("501 Not Implemented", [("Content-Type", "application/xml")])
                return [b"<Error><Code>NotImplemented</Code><Message>A header is not implemented</Message></Error>"]
            # Moto looks, then writes, which S3 does in one step.
            with conditional if "HTTP_IF_NONE_MATCH" in environ else nullcontext():
                return app(environ, start_response)

        conditional = threading.Lock()
        web.app = counting
        bucket(f"{host}:{port}").create()
        yield f"{host}:{port}"
        server.stop()


def bucket(endpoint: str) -> Any:
    return boto3.resource("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1").Bucket(BUCKET)


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store on a disk, then one in the bucket."""
    if request.param == "disk":
        return Store(tmp_path)
    host = request.getfixturevalue("endpoint")
    return Store(f"s3://{BUCKET}/{tmp_path.name}?endpoint_override=http://{host}&scheme=http")
