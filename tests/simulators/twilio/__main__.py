"""`python -m tests.simulators.twilio`: one fictional account with a Messaging Service and a number."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Sequence
from typing import cast

from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Account,
    TwilioSimulator,
)


def main(arguments_given: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulators.twilio", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--public-url", default=PUBLIC_URL, help="what Twilio calls, and signs")
    parser.add_argument(
        "--deliver-to", help="where the public URL really listens, e.g. http://127.0.0.1:8000"
    )
    parser.add_argument("--route", action="append", default=[], metavar="PUBLIC=REAL", help="a further route")
    parser.add_argument("--account-sid", default=ACCOUNT_SID)
    parser.add_argument("--auth-token", default=AUTH_TOKEN, help="of this simulator only; never a real one")
    parser.add_argument("--service-sid", default=SERVICE_SID)
    parser.add_argument("--sender", action="append", help=f"may be repeated; default {SENDER}")
    chosen = parser.parse_args(arguments_given)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with simulator_from(chosen).serve(chosen.port, chosen.host) as server:
        print(f"Twilio simulator: {server.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def simulator_from(chosen: argparse.Namespace) -> TwilioSimulator:
    account = Account(sid=chosen.account_sid, auth_token=chosen.auth_token)
    simulator = TwilioSimulator([account], public_url=chosen.public_url, deliver_to=chosen.deliver_to)
    simulator.add_service(sid=chosen.service_sid, senders=chosen.sender or [SENDER])
    for route in chosen.route:
        public, _, real = cast(str, route).partition("=")
        simulator.deliver_to(real, public_url=public)
    return simulator


if __name__ == "__main__":
    main()
