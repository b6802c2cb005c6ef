"""A participant phones, and Twilio refuses the next text: the whole story, with a real worker and every socket."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest

from shared.ledger.opt_outs.blocks import BlockState
from tests.integration.privacy import Needles, scan
from tests.integration.world import STUDIES, Participant, World, service_sid
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(300)
SERVICE = service_sid(STUDIES["phoned"][1])
_AFTER_GRACE = timedelta(minutes=5)


def decided(world: World, who: Participant, decision: str, *more: str) -> str:
    """Staff decide about a participant on the command line."""
    done = world.platform.run("record", "phoned", who.record, decision, "--reason", "phoned", *more)
    return str(done.stdout)


def study_texts(world: World, who: Participant) -> int | None:
    return world.twilio.send_outbound(to=who.phone, service=SERVICE).error_code


def test_an_opt_out_by_phone_reaches_redcap_and_twilio_and_the_night_proves_it(world: World) -> None:
    who = world.enrol("phoned")
    assert study_texts(world, who) is None
    assert "blocked at Twilio since" in decided(world, who, "stop")
    assert world.value(who, "phoned")
    mail = wait_until(
        lambda: next((each for each in world.smtp.inbox if who.record in each.subject), None),
        seconds=20, what="the mail",
    )  # fmt: skip
    assert "blocked at Twilio since" in " ".join(mail.text.split())
    time.sleep(1)  # Twilio's log counts seconds: a text of the same second is not one after the opt-out
    assert study_texts(world, who) == 21610
    _let_the_grace_period_pass(world, who)
    [report] = json.loads(world.platform.run("reconcile", "--project", "phoned", "--json").stdout)
    [texts] = [each for each in report["texts_after_opt_out"] if each["record"] == who.record]
    assert (texts["refused"], texts["delivered"]) == (2, 0)
    assert report["blocks_confirmed"] == 1
    assert report["block_faults"] == report["not_blocked"] == []

    assert "unblocked at Twilio since" in decided(world, who, "start", "--unblock")
    assert study_texts(world, who) is None


def _let_the_grace_period_pass(world: World, who: Participant) -> None:
    """One more text, which the log has as sent a little later."""
    message = world.twilio.send_outbound(to=who.phone, service=SERVICE)
    message.at += _AFTER_GRACE


def test_a_phrase_is_blocked_by_the_worker(world: World) -> None:
    who = world.enrol("phoned")
    texted = world.text(who.phone, "please stop, thank you", "phoned", advanced_opt_out=False)
    assert texted.status == 200
    entry = world.ended(texted, "phoned")
    assert entry.state == "updated"
    assert entry.block.state is BlockState.BLOCKED
    [mail] = world.mails_about(texted)
    assert "blocked at Twilio since" in " ".join(mail.text.split())
    assert study_texts(world, who) == 21610


def test_an_outage_of_twilios_delays_the_block_and_loses_nothing(world: World) -> None:
    who = world.enrol("phoned")
    world.twilio.fail("429", resource="Consents", times=2)
    texted = world.text(who.phone, "STOP please", "phoned", advanced_opt_out=False)

    def blocked() -> bool:
        entry = world.entry(texted, "phoned")
        return entry is not None and entry.block.state is BlockState.BLOCKED

    wait_until(blocked, seconds=120, what="the block")
    asked = [each for each in world.twilio.consents if each.contact_id == who.phone]
    assert len({each.correlation_id for each in asked}) == 1
    assert study_texts(world, who) == 21610


def test_the_number_is_nowhere_afterwards(world: World) -> None:
    who = world.enrol("phoned")
    decided(world, who, "stop")
    needles = Needles.of(phones=[who.phone], texts={})
    assert scan(world.platform, needles) == []
