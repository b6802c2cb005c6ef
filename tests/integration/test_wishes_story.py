"""Thirty texts, entries and decisions of one study: what each does to REDCap."""

from __future__ import annotations

import json

import pytest

from tests.integration.world import Participant, World, sender_of
from tests.processes import wait_until

BOX = "sms_opt_out___1"
pytestmark = pytest.mark.timeout(300)


class Story:
    """The participants of one story, and what they do."""

    def __init__(self, world: World) -> None:
        self.world = world

    def text(self, who: Participant, body: str, state: str, *, flagged: bool = False) -> str:
        """Somebody texts; the event ends in a state. Returns its id."""
        texted = self.world.text(who.phone, body, advanced_opt_out=flagged)
        assert texted.status == 200
        assert self.world.ended(texted).state == state, body
        return str(texted.message.sid)

    def ignored(self, who: Participant, body: str) -> None:
        texted = self.world.text(who.phone, body, advanced_opt_out=False)
        assert texted.status == 200
        assert self.world.entry(texted) is None, body

    def shows(self, who: Participant) -> tuple[bool, str]:
        return bool(self.world.value(who)), self.world.value(who, name=BOX)

    def enter(self, who: Participant, value: str, ticked: str = "0") -> None:
        """A coordinator types into REDCap."""
        study = self.world.study()
        study.set_value(who.record, "sms_opt_out_at", value)
        study.set_value(who.record, BOX, ticked)

    def opt_in(self, who: Participant) -> None:
        """Staff record a new consent, later than the participant's last text."""
        self.world.let_a_second_pass(who.phone)
        self.optout("record", "asthma", who.record, "start", "--reason", "signed again")

    def optout(self, *args: str, expected: int = 0) -> str:
        done = self.world.platform.run(*args, check=False)
        assert done.returncode == expected, done.stdout + done.stderr
        return str(done.stdout)


OUT, IN = (True, "1"), (False, "0")


def test_thirty_texts_and_entries_end_as_the_participants_wish(world: World) -> None:
    story = Story(world)
    ann, bea, cal, dee, eva = (world.enrol() for _ in range(5))

    # 1-8: words, with and without Twilio's judgement.
    story.text(ann, "STOP", "updated", flagged=True)
    assert story.shows(ann) == OUT
    story.text(ann, "Stop!!", "already_current")
    story.text(ann, "START", "updated", flagged=True)
    assert story.shows(ann) == IN
    story.text(ann, "opt-out", "updated")
    assert story.shows(ann) == OUT
    story.ignored(ann, "yes")
    story.text(ann, "unstop", "updated")
    assert story.shows(ann) == IN
    story.ignored(ann, "I stopped taking the tablets")
    story.text(ann, "Please stop, thank you", "updated")
    assert story.shows(ann) == OUT

    # 9-14: other wordings wait for a person.
    unclear = story.text(bea, "please take me off your list", "needs_review")
    assert story.shows(bea) == IN
    assert unclear in story.optout("review")
    story.optout("review", unclear, "stop", "--reason", "read in the console")
    assert story.shows(bea) == OUT
    story.text(bea, "leave me alone", "already_current")
    story.text(bea, "START", "updated", flagged=True)
    assert story.shows(bea) == IN
    wrong = story.text(bea, "wrong number", "needs_review")
    story.optout("review", wrong, "dismiss")
    assert story.shows(bea) == IN

    # 15-20: what a coordinator enters, a person ends.
    story.enter(cal, "2026-01-05 09:30:00")
    story.text(cal, "START", "needs_review", flagged=True)
    assert world.value(cal) == "2026-01-05 09:30:00"
    story.text(cal, "STOP", "updated", flagged=True)  # the box is ticked, the time stays
    assert (world.value(cal), world.value(cal, name=BOX)) == ("2026-01-05 09:30:00", "1")
    story.opt_in(cal)
    assert story.shows(cal) == IN
    story.enter(cal, "", ticked="1")
    story.text(cal, "START", "needs_review", flagged=True)
    assert story.shows(cal) == (False, "1")
    story.enter(cal, "")

    # 21-25: decisions by staff.
    story.optout("record", "asthma", dee.record, "stop", "--reason", "phoned", "--by", "coordinator")
    assert story.shows(dee) == OUT
    story.text(dee, "START", "needs_review", flagged=True)
    assert story.shows(dee) == OUT
    assert "recorded already" in story.optout("record", "asthma", dee.record, "stop", "--reason", "again")
    story.text(dee, "STOP", "already_current", flagged=True)
    story.opt_in(dee)
    assert story.shows(dee) == IN

    # 26-28: two numbers of one record.
    other = world.enrol()
    world.study().set_value(eva.record, "mobile", f"{eva.phone} or {other.phone}")
    world.study().delete_record(other.record)
    story.text(eva, "STOP", "updated", flagged=True)
    texted = world.text(other.phone, "START")
    wait_until(lambda: (e := world.entry(texted)) and e.finished_at, seconds=20, what="the other number")
    assert story.shows(eva) == OUT
    story.text(eva, "START", "updated", flagged=True)
    assert story.shows(eva) == IN

    # 29-30: the night restores what was emptied, clears nothing, and finds what was missed.
    story.enter(ann, "")
    story.enter(cal, "2026-02-01 10:00:00")
    missed = world.text(bea.phone, "END", deliver=False)
    report = json.loads(story.optout("reconcile", "--project", "asthma", "--json"))[0]
    assert (report["outcome"], report["changes_recovered"]) == ("success", 1)
    assert story.shows(ann) == story.shows(bea) == OUT
    assert world.value(cal) == "2026-02-01 10:00:00"
    assert cal.record in report["kept_entries"]
    assert world.ledger.load("asthma", missed.message.sid) is not None
    assert sender_of("1") not in json.dumps(report)
