"""`python -m web.console HOST:PORT`: serves the console with waitress, in one process.

A supervisor process would take 20 MB more; the container's engine, or systemd, restarts this one.
"""

import gc
import signal
import sys
from importlib import import_module

from waitress import serve

from shared.logs.lean import leave_out_colours


def main() -> None:
    """Serve until SIGTERM or SIGINT. As a container's first process, it gets no default handler of SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    leave_out_colours()
    app = import_module("web.console.wsgi").app
    gc.freeze()  # the collector need not look at modules and templates while a page waits
    serve(
        app,
        listen=sys.argv[1],
        ident=None,
        threads=4,
        # A few people read pages at a time. Idle or slow clients must not take all connections.
        connection_limit=256,
        channel_timeout=10,
        cleanup_interval=5,
        max_request_header_size=32_768,
        max_request_body_size=65_536,
    )


if __name__ == "__main__":
    main()
