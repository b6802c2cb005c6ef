"""A mail server that accepts connections and never answers delays no opt-out."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from shared.ledger import keys
from tests.integration.test_mail_login import platform, stops
from tests.integration.world import World
from tests.processes import wait_until
from tests.simulators.smtp import SmtpSimulator

MAILS = 60
FRESH = 5
SECONDS = 6.0


def fresh_stop(world: World) -> float:
    """Seconds until REDCap shows an opt-out."""
    person, began = world.enrol(), time.monotonic()
    world.text(person.phone)
    wait_until(lambda: world.value(person), what="it is in REDCap")
    return time.monotonic() - began


def test_a_storm_of_mails_to_a_silent_server_delays_no_opt_out(tmp_path: Path) -> None:
    smtp = SmtpSimulator()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as silent:
        port = silent.getsockname()[1]
        with platform(tmp_path, smtp, OPTOUT_SMTP_URL=f"smtp://127.0.0.1:{port}") as world:
            stops(world, MAILS)
            seconds: list[float] = []
            while len(seconds) < FRESH or "mail_server_hangs" not in world.platform["worker"].text():
                seconds.append(fresh_stop(world))
                time.sleep(2)
            seconds.append(fresh_stop(world))
            assert max(seconds) < SECONDS, seconds
            redis = world.platform.redis
            wait_until(
                lambda: redis.zcard(keys.mailing("asthma")) == MAILS + len(seconds), what="all mails are due"
            )
