"""The demo in containers (`docker compose up` in a fresh clone): its story, played beside the platform.

The simulators of REDCap, Twilio and mail run here too, and stay up afterwards for a look around.
"""

from __future__ import annotations

import os
import subprocess
import sys

import requests
from redis import Redis
from rich.console import Console

from shared.config import redis_url
from shared.ledger import keys
from tests.compose.simulators import MAIL_PORT, serving, wait_for_sigterm
from tests.demo import World, play
from tests.processes import wait_until

STUDIES = 2
PROJECT = os.environ.get("DEMO_PROJECT", "optout-demo")


class Containers:
    """The platform's containers, seen from beside them."""

    web_url = "http://web:8000"
    console_url = f"http://127.0.0.1:{os.environ.get('DEMO_CONSOLE_PORT', '15050')}"
    flower_url = f"http://127.0.0.1:{os.environ.get('DEMO_FLOWER_PORT', '15555')}"

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run `optout ARGS` with the demo's configuration and secrets."""
        return subprocess.run(["optout", *args], capture_output=True, text=True, check=True, timeout=120)

    def logs(self) -> str:
        """Where the logs are: a container cannot read the others'."""
        return f"What web and worker say:  docker compose -p {PROJECT} logs web worker"


def forget_last_time() -> None:
    """Start the story from nothing where the demo ran before: without the ledger's keys, at one stroke.

    Only the demo's password is known here, so that no other deployment can be touched.
    """
    with Redis.from_url(redis_url(), decode_responses=True) as redis:
        if not redis.keys(f"{keys.PREFIX}:events:*"):
            return
        # A worker that starts looks at every project first; not in the middle of that.
        # Where it found REDCap away, it looks again with the next sweep.
        looked = "the worker has looked at the studies"
        wait_until(lambda: redis.hlen(keys.VERIFIED) == STUDIES, seconds=120, what=looked)
        redis.delete(*redis.keys(f"{keys.PREFIX}:*"))


def look_around(console: Console) -> None:
    """Say what can be seen, and done."""
    mailbox = f"http://127.0.0.1:{os.environ.get('DEMO_MAIL_PORT', MAIL_PORT)}"
    console.print(
        f"Console (the studies, and what needs somebody), user and password demo:  {Containers.console_url}",
        f"Flower (what the tasks did), user and password demo:  {Containers.flower_url}/tasks",
        f"The mailbox (also as HTML):  {mailbox}/",
        f"Text something yourself:  {mailbox}/phone",
        f"End with Ctrl+C. Remove the demo's containers:  docker compose -p {PROJECT} down",
        sep="\n",
    )


def main() -> int:
    """Serve the simulators, play the story, and stay. Answers 1 where the story went wrong."""
    console = Console(width=110, force_terminal=False)
    with serving() as (asthma, sleep, twilio, smtp):
        twilio.deliver_to(Containers.web_url)
        wait_until(lambda: requests.get(f"{Containers.web_url}/healthz", timeout=2).ok, what="web answers")
        forget_last_time()
        if not play(World(Containers(), twilio, smtp, asthma, sleep), console):
            return 1
        look_around(console)
        wait_for_sigterm()
    return 0


if __name__ == "__main__":
    sys.exit(main())
