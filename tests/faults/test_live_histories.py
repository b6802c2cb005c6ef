"""Convergence on the live platform: what tests/properties does with single steps, with real processes.

Random histories: texts told by any way, late, repeated or never, in any order; children and Valkey killed; REDCap
and mail in trouble; records renumbered, edited and locked; replays; sweeps. A history that fails is played again by
its seed; it is not shrunk.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.domain.events import State
from tests.faults.scene import Scene, kill
from tests.integration.world import Participant
from tests.processes import wait_until
from tests.properties.test_convergence import ERRORS
from tests.simulators.twilio import Message, Texted

pytestmark = pytest.mark.timeout(600)  # one fault may be waited for longer than the usual three minutes

FIELD, BOX = "sms_opt_out_at", "sms_opt_out___1"


@dataclass(frozen=True, slots=True)
class Turn:
    """One text, and the ways by which Twilio tells us."""

    phone: str
    message: Message
    by: str

    @property
    def is_stop(self) -> bool:
        return self.message.body == "STOP"


class History:
    """Some participants, up to five changes of mind each in the last hour, and all that happens meanwhile."""

    def __init__(self, scene: Scene, seed: int, people: int = 30) -> None:
        self.scene, self.chance = scene, random.Random(seed)
        self.people = [scene.enrol() for _ in range(people)]
        self.turns = list(self._texts())
        self.disturbed: set[str] = set()  # numbers of records that somebody edited
        self.repeats = 0  # mails that may come once more
        self.others = self.other_values()

    def _texts(self) -> Iterator[Turn]:
        at = datetime.now(UTC) - timedelta(hours=1)
        for who in self.people:
            for _ in range(self.chance.randint(1, 5)):
                at += timedelta(seconds=self.chance.randint(1, 9))
                body = self.chance.choice(["STOP", "START"])
                texted = self.scene.text(who.phone, body, deliver=False, at=at)
                by = self.chance.choice(["webhook", "webhook", "events", "both", "nobody"])
                yield Turn(who.phone, texted.message, by)

    def other_values(self) -> dict[str, tuple[str, ...]]:
        """What no import may touch (promise P4)."""
        study = self.scene.study()
        names = ("first_name", "texting_notes")
        return {record: tuple(study.value(record, name) for name in names) for record in study.records}

    # --- what happens -------------------------------------------------------------------------------

    def play(self) -> None:
        """Deliver in any order, some twice; between any two deliveries something else may happen."""
        turns = [*self.turns, *self.chance.sample(self.turns, len(self.turns) // 4)]
        self.chance.shuffle(turns)
        acts: list[Callable[[], None]] = [
            self.kill_a_child, self.break_redcap, self.break_mail, self.edit, self.edit, self.replay, self.sweep,
        ]  # fmt: skip
        kill_valkey_before = self.chance.choice(turns)
        for turn in turns:
            if turn is kill_valkey_before:
                self.kill_valkey()
            self.deliver(turn)
            if self.chance.random() < 0.2:
                self.chance.choice(acts)()
            time.sleep(0.01)

    def deliver(self, turn: Turn) -> None:
        if turn.by in {"webhook", "both"}:
            assert self.scene.twilio.call_webhook(turn.message).status == 200
        if turn.by in {"events", "both"}:
            assert [answer.status for answer in self.scene.twilio.send_events(turn.message)] == [200]

    def kill_a_child(self) -> None:
        self.repeats += 1
        if children := self.scene.platform["worker"].children():
            kill(self.chance.choice(children))

    def kill_valkey(self) -> None:
        self.repeats += 12  # four children, each in the midst of a mail, whose notes are tried three times
        self.scene.platform["redis"].kill()
        self.scene.restart("redis")

    def break_redcap(self) -> None:
        kind = self.chance.choice(["export", "import", "any"])
        times, late = self.chance.randint(1, 3), self.chance.random() < 0.5
        self.scene.redcap.faults.add(self.chance.choice(ERRORS), kind=kind, times=times, after_commit=late)

    def break_mail(self) -> None:
        self.repeats += 1
        self.scene.smtp.fail(self.chance.choice(["451", "lose_answer"]), times=1)

    def edit(self) -> None:
        """The study team renumbers a record, edits its opt-out fields by hand, or locks it."""
        who, other = self.chance.sample(self.people, 2)
        study = self.scene.study()
        self.disturbed |= {who.phone, other.phone}
        match self.chance.choice(["renumber", "by hand", "lock"]):
            case "renumber":
                study.set_value(who.record, "mobile", other.phone)
            case "by hand":
                study.set_value(who.record, FIELD, self.chance.choice(["", "2024-02-03 04:05:06"]))
            case "lock":
                study.lock_record(who.record)

    def replay(self) -> None:
        self.scene.platform.run("replay", self.chance.choice(self.turns).message.sid, check=False)

    def sweep(self) -> None:
        self.scene.hurry()

    # --- what must be then --------------------------------------------------------------------------

    def latest(self, who: Participant) -> Turn | None:
        """The latest text of the number that the record holds now."""
        typed = self.scene.study().value(who.record, "mobile")
        digits = "+1" + "".join(filter(str.isdigit, typed))[-10:]
        return next((turn for turn in reversed(self.turns) if turn.phone == digits), None)

    def wrong(self) -> list[str]:
        """Records that do not show an opt-out in force (promise P2), or one that a START has cleared."""
        found = []
        for who in self.people:
            turn = self.latest(who)
            assert turn is not None
            shown = bool(self.scene.value(who)), self.scene.value(who, name=BOX) == "1"
            if turn.is_stop:
                is_right = shown == (True, True)
            else:
                is_right = shown == (False, False) or not self._must_be_cleared(turn)
            if not is_right:
                found.append(f"{who.record} shows {shown} after {turn.message.body}")
        return found

    def _must_be_cleared(self, turn: Turn) -> bool:
        """Whether the START was written last: nobody edited the record, and no STOP was received after it."""
        entry = self.scene.entry(Texted(turn.message))
        if entry is None or entry.state is not State.UPDATED or turn.phone in self.disturbed:
            return False
        stops = [self.scene.entry(Texted(other.message)) for other in self.turns if other.is_stop]
        return not any(
            stop.phone_hash == entry.phone_hash and stop.received_at >= entry.arrived_at
            for stop in filter(None, stops)
        )

    def expect_told_once(self) -> None:
        """What was written was mailed, once, but for what a crash or a lost answer repeats (promise P3)."""
        saved: Counter[str] = Counter()
        for turn in self.turns:
            entry = self.scene.entry(Texted(turn.message))
            mails = len(self.scene.mails_about(Texted(turn.message)))
            if entry and entry.state is State.UPDATED and turn.phone not in self.disturbed:
                assert mails >= 1, f"{entry.event_id} is updated and not told"
            saved[turn.message.sid] = mails
        assert sum(max(mails - 1, 0) for mails in saved.values()) <= self.repeats


def nightly_run(scene: Scene) -> dict[str, Any]:
    """`optout reconcile`, and all that it leads to."""
    report: dict[str, Any] = wait_until(lambda: _report(scene), seconds=120, what="no other run is under way")
    scene.until(lambda: not scene.waiting(), what="nothing waits after the nightly run")
    assert (report["outcome"], report["errors"], report["refused"]) == ("success", [], []), report
    return report


def _report(scene: Scene) -> dict[str, Any] | None:
    """The report; None while another run is under way: sweep begins one when Valkey has started again."""
    [report] = json.loads(
        scene.platform.run("reconcile", "--project", "asthma", "--json", check=False).stdout
    )
    return None if report["outcome"] == "skipped" else report


def mails_about_changes(scene: Scene) -> int:
    """Without reports: one may name entries that the last run has left to a person."""
    return sum("X-Opt-Out-Event" in mail.message for mail in scene.smtp.inbox)


@pytest.mark.parametrize("seed", range(1, 5))
def test_any_history_ends_with_the_opt_outs_in_force(scene: Scene, seed: int) -> None:
    history = History(scene, seed)
    history.play()
    scene.mend()
    nightly_run(scene)
    assert history.wrong() == []
    history.expect_told_once()
    assert history.other_values() == history.others
    mails = mails_about_changes(scene)
    again = nightly_run(scene)
    assert (again["changes_recovered"], again["records_corrected"]) == (0, 0)
    assert mails_about_changes(scene) == mails
