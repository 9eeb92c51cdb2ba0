"""Moto's S3 in a process of its own, whose conditional PUT is one step, as that of S3: ``python -m … PORT``."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any


def main() -> None:
    """Serve on a port of this machine until killed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app, conditional = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Any:
        # Moto looks, then writes.
        with conditional if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext():
            return app(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True)


if __name__ == "__main__":
    main()
