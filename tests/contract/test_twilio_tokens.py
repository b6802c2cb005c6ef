"""Which of an account's tokens is used: several are listed while one is rotated, and one of them may be missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.config import Config
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from tests.builders import config, hashed
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, SENDER, TwilioSimulator
from worker.twilio.client import working_client
from worker.twilio.message_log import open_message_log

OLD_TOKEN = "0" * 32


@pytest.fixture
def sim(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwilioSimulator]:
    monkeypatch.setenv("RIGHT", AUTH_TOKEN)
    monkeypatch.setenv("OLD", OLD_TOKEN)
    monkeypatch.setattr("worker.twilio.client.tenacity.nap.time.sleep", lambda _seconds: None)
    simulator = TwilioSimulator()
    with simulator.serve() as server:
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield simulator


def configured(*names: str) -> Config:
    tokens = [f"env:{name}" for name in names]
    return config(twilio={"main": {"account_sid": ACCOUNT_SID, "auth_token": tokens}})


@pytest.mark.parametrize("names", [["RIGHT"], ["RIGHT", "OLD"], ["OLD", "RIGHT"], ["MISSING", "RIGHT"],
                                   ["RIGHT", "MISSING"], ["OLD", "MISSING", "RIGHT"]])  # fmt: skip
def test_the_first_one_that_twilio_takes(sim: TwilioSimulator, names: list[str]) -> None:
    settings = configured(*names)
    assert working_client(settings.twilio["main"]).password == AUTH_TOKEN
    log = open_message_log("asthma", settings.projects["asthma"], settings.twilio["main"], hashed)
    assert log.client.password == AUTH_TOKEN
    assert log.senders() == [SENDER]


@pytest.mark.parametrize("form", [False, True])
def test_where_none_is_taken_what_was_wrong_with_the_last_is_told(sim: TwilioSimulator, form: bool) -> None:
    sim.problem_details = form
    with pytest.raises(TwilioRejected, match="twilio_token_rejected"):
        working_client(configured("MISSING", "OLD").twilio["main"])
    with pytest.raises(ConfigError, match="MISSING"):
        working_client(configured("OLD", "MISSING").twilio["main"])


def test_a_lone_one_is_not_tried(sim: TwilioSimulator) -> None:
    working_client(configured("OLD").twilio["main"])
    assert sim.request_log == []


def test_where_twilio_is_away_no_other_is_tried(sim: TwilioSimulator) -> None:
    sim.fail("503", times=None)
    with pytest.raises(TwilioUnavailable):
        working_client(configured("RIGHT", "OLD").twilio["main"])
    assert len(sim.request_log) == 1


def test_the_message_log_waits_for_twilio(sim: TwilioSimulator) -> None:
    settings = configured("OLD", "RIGHT")
    sim.fail("503", times=3)
    log = open_message_log("asthma", settings.projects["asthma"], settings.twilio["main"], hashed)
    assert log.client.password == AUTH_TOKEN
