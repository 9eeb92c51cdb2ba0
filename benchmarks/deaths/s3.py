"""Moto's S3 in a process of its own, whose conditional PUT is one step, as that of S3, and a proxy that fails.

python -m benchmarks.deaths.s3 SEED     prints the server's address and the proxy's; SIGUSR1 cuts the proxy off
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flaky_proxy import Faults, FlakyProxy

ROOT = Path(__file__).parents[2]
BUCKET = "kvray-chaos"
FAILING = 1 / 3
"""Share of all requests that the proxy lets fail."""
CUT_OFF_S = 8.0
"""For which the proxy is cut off at a time."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIACHAOS",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
}


@dataclass(frozen=True)
class Server:
    """A running server: URIs of stores with NAME for a prefix, and what cuts the flaky one off for a while."""

    steady: str
    flaky: str
    cut_off: Callable[[], None]


@contextlib.contextmanager
def running(folder: Path, seed: int) -> Iterator[Server]:
    """Run the server and its proxy, with an empty bucket; this process has keys for it from then on."""
    import boto3

    os.environ |= ENVIRONMENT
    words = [sys.executable, "-m", "benchmarks.deaths.s3", str(seed)]
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert server.stdout
        addresses = server.stdout.readline().split()
        if len(addresses) != 2:
            raise SystemExit(f"the S3 server did not start:\n{(folder / 's3.log').read_text()}")
        boto3.client("s3", endpoint_url=f"http://{addresses[0]}").create_bucket(Bucket=BUCKET)
        steady, flaky = (f"s3://{BUCKET}/NAME?endpoint_override=http://{address}" for address in addresses)
        yield Server(steady, flaky, lambda: server.send_signal(signal.SIGUSR1))
    finally:
        server.kill()
        server.wait()


def main() -> None:
    """Serve on free ports of this machine until killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app, conditional = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        # Moto looks, then writes.
        with conditional if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext():
            return app(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, serve, threaded=True)
    steady = f"127.0.0.1:{server.server_port}"
    with FlakyProxy(steady, Faults.of(FAILING), seed=int(sys.argv[1])) as proxy:
        signal.signal(signal.SIGUSR1, lambda *_: proxy.dead_for(CUT_OFF_S))
        print(steady, proxy.endpoint, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
