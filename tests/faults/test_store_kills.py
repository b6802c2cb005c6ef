"""The store is killed again and again while webhooks arrive: what was acknowledged is there afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, local

import pytest
import requests

from shared.ledger import keys
from tests.builders import inbound_form
from tests.hostile.test_floods import CONFIG
from tests.processes import Platform, wait_until
from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL, sign_form

KILLS = 20
SENDERS = 8
TWILIO_WAITS_SECONDS = 15.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    secrets = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, "OPTOUT_HASH_KEY": "a-key-for-tests-only"}
    with Platform(tmp_path_factory.mktemp("kills"), CONFIG, secrets) as made:
        made.start("redis", "web")
        yield made


class Burst:
    """Senders that text without a pause, and what was answered."""

    def __init__(self, platform: Platform) -> None:
        self.answers: dict[str, int] = {}
        self.over = Event()
        self._platform = platform
        self._numbers = itertools.count(1)
        self._kept = local()

    def send(self) -> None:
        """Text until it is over; each text is of another participant."""
        self._kept.session = requests.Session()
        while not self.over.is_set():
            form = inbound_form(From=f"+1650{next(self._numbers):07d}")
            answered = self._kept.session.post(
                f"{self._platform.web_url}/twilio/inbound", data=form, timeout=TWILIO_WAITS_SECONDS,
                headers={"X-Twilio-Signature": sign_form(f"{PUBLIC_URL}/twilio/inbound", form, AUTH_TOKEN)},
            )  # fmt: skip
            self.answers[form["MessageSid"]] = answered.status_code

    def acknowledged(self) -> set[str]:
        return {sid for sid, status in list(self.answers.items()) if status == 200}


def test_twenty_kills_lose_nothing_that_was_acknowledged(platform: Platform) -> None:
    burst, web = Burst(platform), platform["web"].pid
    with ThreadPoolExecutor(SENDERS) as pool:
        senders = [pool.submit(burst.send) for _ in range(SENDERS)]
        try:
            for _ in range(KILLS):
                before = len(burst.acknowledged())
                wait_until(lambda: len(burst.acknowledged()) > before + 20, what="texts are taken")  # noqa: B023
                platform["redis"].kill()
                platform.start("redis")
        finally:
            burst.over.set()
        for each in senders:
            each.result()
    stored = set(platform.redis.zrange(keys.events("asthma"), 0, -1))
    assert len(burst.acknowledged()) > KILLS * 20
    assert burst.acknowledged() - stored == set()
    assert set(burst.answers.values()) <= {200, 503}
    assert (platform["web"].running, platform["web"].pid) == (True, web)
