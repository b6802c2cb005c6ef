"""Convergence on the live platform: random histories, deliveries in any order, children killed on the way."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.scene import Scene, kill
from tests.integration.world import Participant
from tests.simulators.twilio import Message

pytestmark = pytest.mark.faults


@dataclass(frozen=True, slots=True)
class Turn:
    """One text, and the ways by which Twilio tells us."""

    who: Participant
    message: Message
    by: str

    @property
    def is_stop(self) -> bool:
        return self.message.body == "STOP"


def histories(scene: Scene, chance: random.Random, people: int) -> list[Turn]:
    """Up to five changes of mind each, in the last hour, whole seconds apart."""
    begin, turns, seconds = datetime.now(UTC) - timedelta(hours=1), [], 0
    for _ in range(people):
        who = scene.enrol()
        for _ in range(chance.randint(1, 5)):
            seconds += chance.randint(1, 9)
            body = chance.choice(["STOP", "START"])
            texted = scene.text(who.phone, body, deliver=False, at=begin + timedelta(seconds=seconds))
            by = chance.choice(["webhook", "webhook", "events", "both", "nobody"])
            turns.append(Turn(who, texted.message, by))
    return turns


def tell(scene: Scene, turns: list[Turn], chance: random.Random) -> None:
    """Deliver in any order, some twice; now and then a worker child is killed."""
    turns = [*turns, *chance.sample(turns, len(turns) // 4)]
    chance.shuffle(turns)
    for turn in turns:
        if turn.by in {"webhook", "both"}:
            assert scene.twilio.call_webhook(turn.message).status == 200
        if turn.by in {"events", "both"}:
            assert [answer.status for answer in scene.twilio.send_events(turn.message)] == [200]
        if chance.random() < 0.05:
            kill(chance.choice(scene.platform["worker"].children()))
        time.sleep(0.01)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_history_ends_in_the_latest_change(scene: Scene, seed: int) -> None:
    chance = random.Random(seed)
    turns = histories(scene, chance, 30)
    tell(scene, turns, chance)
    scene.until(lambda: not scene.waiting(), what="nothing waits")
    report = json.loads(scene.platform.run("reconcile", "--project", "asthma", "--json").stdout)[0]
    assert report["outcome"] == "success"
    scene.until(lambda: not scene.waiting(), what="nothing waits after the nightly run")
    latest = {turn.who.record: turn for turn in turns}
    wrong = [
        record for record, turn in latest.items()
        if (bool(scene.value(turn.who)), scene.value(turn.who, name="sms_opt_out___1") == "1")
        != (turn.is_stop, turn.is_stop)
    ]  # fmt: skip
    assert wrong == []
    mails = len(scene.smtp.inbox)
    again = json.loads(scene.platform.run("reconcile", "--project", "asthma", "--json").stdout)[0]
    assert (again["changes_recovered"], again["records_corrected"]) == (0, 0)
    scene.until(lambda: not scene.waiting(), what="nothing waits after another one")
    assert len(scene.smtp.inbox) == mails
