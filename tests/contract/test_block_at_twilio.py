"""Opt-outs that Twilio does not block by itself are blocked there: the step against the simulators of both."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.domain.scopes import scope_of
from shared.ledger import StaffDecision, StoredEvent, keys
from shared.ledger.opt_outs.blocks import BlockedNumber, Blocks, BlockState
from shared.messaging.tasks import TaskName
from tests import builders
from tests.builders import hashed
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.simulators.twilio import SENDER, SERVICE_SID, MessageRefused, TwilioSimulator
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.lookup_records import lookup_records
from worker.steps.staff_decisions import record_decision, review
from worker.steps.update_records import update_records
from worker.twilio.consents import submit

pytestmark = pytest.mark.usefixtures("naps")
PAT = fictional_phone(1)
BY = StaffDecision(by="kim", reason="phoned")


@dataclass
class Scene:
    """A study with its own Twilio."""

    study: Study
    twilio: TwilioSimulator

    def staff(self, change: Change = Change.STOP, record: str = "1", **more: Any) -> StoredEvent:
        """Staff record a decision; all tasks are done, and mail is sent."""
        self.study.clock.ahead += timedelta(seconds=2)
        decision = StaffDecision(by="kim", reason="phoned", **more)
        services = self.study.services
        entry = record_decision("asthma", record, change, self.study.clock(), decision, services)
        self.study.work()
        return self.entry(entry.event_id)

    def phrase(self, phone: str = PAT, **more: Any) -> OptOutEvent:
        """A participant texts an opt-out that Twilio does not recognise."""
        event = self.study.text(phone, blocked=False, **more)
        self.study.work()
        return event

    def entry(self, event_id: str) -> StoredEvent:
        entry = self.study.ledger.load("asthma", event_id)
        assert entry is not None
        return entry

    def block(self, event: OptOutEvent) -> tuple[str, str]:
        block = self.entry(event.event_id).block
        return block.state, block.reason

    @property
    def blocks(self) -> Blocks:
        return Blocks("asthma", self.study.redis)

    def due(self) -> bool:
        return self.study.redis.zscore(keys.DUE, "block|asthma|") is not None

    def mail(self, number: int = -1) -> str:
        message = self.study.mailer.sent[number]
        return " ".join(message.get_body(("plain",)).get_content().split())  # type: ignore[union-attr]

    def is_refused(self, phone: str = PAT) -> bool:
        return self.twilio.send_outbound(to=phone, service=SERVICE_SID).error_code == 21610


def scenes(**changes: Any) -> Iterator[Scene]:
    project = classic_study()
    enrol(project, 60)
    twilio = TwilioSimulator()
    with twilio.serve() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield Scene(study(project, block_at_twilio=True, **changes), twilio)


@pytest.fixture
def scene() -> Iterator[Scene]:
    yield from scenes()


@pytest.fixture
def plain_numbers() -> Iterator[Scene]:
    """A study with two numbers of its own, one of them WhatsApp's, and no Messaging Service."""
    yield from scenes(messaging_service_sid=None, senders=["+16505550177", "whatsapp:+16505550177"])


class TestWhatIsBlocked:
    def test_an_opt_out_by_phone_is_blocked_and_the_mail_says_since_when(self, scene: Scene) -> None:
        entry = scene.staff()
        assert (entry.state, entry.block.state) == ("updated", BlockState.BLOCKED)
        [sent] = scene.twilio.consents
        assert (sent.contact_id, sent.sender_id, sent.status, sent.source) == (
            PAT, SERVICE_SID, "opt-out", "offline",
        )  # fmt: skip
        assert scene.is_refused()
        assert len(scene.study.mailer.sent) == 1
        assert "blocked at Twilio since " in scene.mail()
        assert "Twilio already blocks them" in scene.mail()
        assert not scene.due()

    def test_a_phrase_is_blocked_with_the_time_of_the_text(self, scene: Scene) -> None:
        event = scene.phrase()
        assert scene.block(event) == ("blocked", "")
        [sent] = scene.twilio.consents
        assert sent.source == "opt-out-message"
        assert sent.date_of_consent == f"{event.occurred_at:%Y-%m-%dT%H:%M:%SZ}"
        assert scene.is_refused()

    def test_a_confirmed_review_is_blocked(self, scene: Scene) -> None:
        event = scene.phrase(change=Change.UNCLEAR)
        assert scene.twilio.consents == []
        review(scene.entry(event.event_id), Change.STOP, BY, scene.study.services)
        scene.study.work()
        assert scene.block(event) == ("blocked", "")

    def test_all_numbers_of_a_record_are_blocked_for_staff(self, scene: Scene) -> None:
        scene.study.project.set_value("1", "mobile", f"{PAT} or {fictional_phone(99)}")
        scene.staff()
        assert {each.contact_id for each in scene.twilio.consents} == {PAT, fictional_phone(99)}

    def test_a_number_outside_a_service_is_blocked_by_itself(self, plain_numbers: Scene) -> None:
        scene = plain_numbers
        scene.twilio.add_sender("+16505550177")
        event = scene.phrase(scope=scope_of(None, [], "+16505550177", hashed))
        assert scene.block(event) == ("blocked", "")
        with pytest.raises(MessageRefused):
            scene.twilio.send_outbound(to=PAT, from_="+16505550177")

    def test_what_twilio_blocks_by_itself_is_not_sent(self, scene: Scene) -> None:
        scene.study.text(PAT, blocked=True)
        scene.study.text(fictional_phone(2), Change.START)
        scene.study.work()
        assert scene.twilio.consents == []

    def test_nothing_is_sent_unless_the_project_asks_for_it(self) -> None:
        [scene] = list(scenes())
        scene.study.config = builders.config({"asthma": builders.project_table()})
        scene.study.services = scene.study.new_services()
        entry = scene.staff()
        assert entry.block.state is BlockState.NONE
        assert scene.study.published.of(TaskName.BLOCK) == []

    def test_an_opt_out_that_redcap_rejects_is_blocked_all_the_same(self, scene: Scene) -> None:
        scene.study.project.set_value("1", "sms_opt_out_at", "declined")
        event = scene.phrase()
        assert scene.study.state(event) == "needs_review"
        assert scene.block(event) == ("blocked", "")

    def test_an_unknown_number_cannot_be_blocked_and_is_not_tried(self, scene: Scene) -> None:
        event = scene.phrase("+16505550188")
        assert scene.study.state(event) == "no_matching_record"
        assert scene.block(event) == ("", "")


class TestNotBlocked:
    def test_whatsapp_is_not_blocked_and_the_mail_says_so(self, scene: Scene) -> None:
        event = scene.phrase(scope="whatsapp:abc")
        assert scene.block(event) == ("failed", "Twilio does not block WhatsApp")
        assert "not blocked: Twilio does not block WhatsApp" in scene.mail()
        assert "may go on delivering" in scene.mail()
        assert not scene.due()

    def test_twilios_error_of_one_number_ends_that_one_alone(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = ["INVALID_CONTACT_ID"]
        bad = scene.study.text(PAT, blocked=False)
        good = scene.study.text(fictional_phone(2), blocked=False)
        scene.study.work()
        assert scene.block(bad) == ("failed", "Twilio error 30646: INVALID_CONTACT_ID")
        assert scene.block(good) == ("blocked", "")
        assert scene.blocks.failed() == [bad.event_id]

    def test_a_number_that_was_removed_from_the_record_is_not_sent(self, scene: Scene) -> None:
        scene.twilio.fail("503", resource="Consents")
        event = scene.phrase()
        scene.study.project.set_value("1", "mobile", "")
        scene.study.sweep_later()
        assert scene.block(event) == ("failed", "no record holds the number any more")
        assert scene.twilio.consents == []

    def test_an_opt_out_that_ended_in_the_meantime_is_not_sent(self, scene: Scene) -> None:
        scene.twilio.fail("503", resource="Consents")
        event = scene.phrase()
        scene.study.text(PAT, Change.START)
        scene.study.work()
        scene.study.sweep_later()
        assert scene.block(event)[0] == "not_needed"
        assert scene.twilio.consents == []

    def test_what_staff_ended_in_the_meantime_is_not_sent(self, scene: Scene) -> None:
        scene.twilio.fail("503", resource="Consents", times=2)
        event = scene.phrase()
        scene.staff(Change.START)
        scene.study.sweep_later()
        assert scene.block(event)[0] == "not_needed"


class TestRetries:
    @pytest.mark.parametrize("fault", ["429", "503", "reset", "truncated"])
    def test_a_request_that_fails_is_repeated_with_the_same_ids(self, scene: Scene, fault: str) -> None:
        scene.twilio.fail(fault, resource="Consents")
        event = scene.phrase()
        assert scene.block(event)[0] == "waiting"
        assert scene.due()
        assert "not blocked: twilio_" in scene.mail()
        assert "it is tried again" in scene.mail()
        scene.study.sweep_later()
        assert scene.block(event) == ("blocked", "")
        assert len({each.correlation_id for each in scene.twilio.consents}) == 1
        assert len(scene.study.mailer.sent) == 1

    def test_twilios_own_failure_of_one_item_is_repeated(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = ["INTERNAL_SERVER_ERROR"]
        event = scene.phrase()
        assert scene.block(event) == ("waiting", "Twilio error 30646: INTERNAL_SERVER_ERROR")
        scene.twilio.consent_errors.clear()
        scene.study.sweep_later()
        assert scene.block(event) == ("blocked", "")

    def test_an_account_without_the_api_is_tried_for_a_day(self, scene: Scene) -> None:
        scene.twilio.first_account.consents_enabled = False
        event = scene.phrase()
        state, reason = scene.block(event)
        assert state == "waiting"
        assert "the Consent Management API is not enabled" in reason
        scene.study.sweep_later(hours=23)
        assert scene.block(event)[0] == "waiting"
        scene.study.sweep_later(hours=2)
        assert scene.block(event)[0] == "failed"
        assert not scene.due()

    def test_many_are_sent_25_at_a_time_after_one_export(self, scene: Scene) -> None:
        for number in range(1, 61):
            scene.study.text(fictional_phone(number), blocked=False)
        scene.study.published.messages.clear()
        for entry in list(scene.study.ledger.entries("asthma")):
            lookup_records("asthma", entry.event_id, scene.study.services)
        update_records("asthma", scene.study.services)
        before = scene.study.exports()
        block_at_twilio("asthma", scene.study.services)
        assert scene.study.exports() - before == 1
        assert scene.twilio.request_counts()["Consents"] == 3
        assert len(scene.blocks.in_force()) == 60

    def test_a_mail_does_not_wait_for_a_worker_that_died(self, scene: Scene) -> None:
        event = scene.study.text(PAT, blocked=False)
        while scene.study.published.messages:
            message = scene.study.published.messages.popleft()
            if message.task is not TaskName.BLOCK:  # its worker dies
                scene.study.run(message)
        assert scene.study.mailer.sent == []
        scene.twilio.fail("503", resource="Consents", times=None)
        scene.study.sweep_later()
        assert len(scene.study.mailer.sent) == 1
        scene.twilio.mend()
        scene.study.sweep_later()
        assert scene.block(event) == ("blocked", "")

    def test_a_lost_message_is_published_again(self, scene: Scene) -> None:
        event = scene.study.text(PAT, blocked=False)
        while scene.study.published.messages:
            message = scene.study.published.messages.popleft()
            if message.task not in {TaskName.BLOCK, TaskName.EMAIL}:
                scene.study.run(message)
        scene.study.sweep_later()
        assert scene.block(event) == ("blocked", "")


class TestUnblock:
    def test_twilio_delivers_again_if_staff_asked_for_it(self, scene: Scene) -> None:
        scene.staff()
        assert scene.is_refused()
        entry = scene.staff(Change.START, unblock=True)
        assert entry.block.state is BlockState.UNBLOCKED
        assert scene.twilio.consents[-1].status == "opt-in"
        assert not scene.is_refused()
        assert scene.blocks.in_force() == {}
        assert "unblocked at Twilio since" in scene.mail()

    def test_without_being_asked_for_nothing_is_unblocked(self, scene: Scene) -> None:
        scene.staff()
        entry = scene.staff(Change.START)
        assert entry.block.state is BlockState.NONE
        assert [each.status for each in scene.twilio.consents] == ["opt-out"]
        assert scene.is_refused()

    def test_a_participants_start_sends_no_opt_in(self, scene: Scene) -> None:
        scene.phrase()
        scene.study.text(PAT, Change.START, blocked=False)
        scene.study.work()
        assert [each.status for each in scene.twilio.consents] == ["opt-out"]

    def test_a_later_opt_out_stops_an_unblock_that_waits(self, scene: Scene) -> None:
        scene.staff()
        scene.twilio.fail("503", resource="Consents", times=2)  # the command, then a worker
        entry = scene.staff(Change.START, unblock=True)
        scene.study.text(PAT)
        scene.study.work()
        scene.study.sweep_later()
        assert scene.entry(entry.event_id).block.state is BlockState.NOT_NEEDED
        assert scene.is_refused()

    def test_an_opt_out_that_comes_while_twilio_is_asked_is_blocked_again(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scene.staff()

        def while_asked(client: Any, consents: Any) -> Any:
            if consents[0].wish == "opt-in":
                scene.study.text(PAT)
            return submit(client, consents)

        monkeypatch.setattr("worker.steps.block_at_twilio.submit", while_asked)
        scene.staff(Change.START, unblock=True)
        scene.study.sweep_later()
        assert [each.status for each in scene.twilio.consents] == ["opt-out", "opt-in", "opt-out"]
        assert scene.is_refused()

    def test_another_project_of_the_same_service_keeps_its_opt_out(self, scene: Scene) -> None:
        tables = {name: builders.project_table(block_at_twilio=True) for name in ("asthma", "sleep")}
        scene.study.config = builders.config(tables)
        scene.study.services = scene.study.new_services()
        scene.staff()
        other = builders.opt_out_event(PAT, project="sleep")
        scene.study.accept([other])
        entry = scene.staff(Change.START, unblock=True)
        assert entry.block.state is BlockState.FAILED
        assert "sleep, which shares the sender, has an opt-out" in entry.block.reason
        assert scene.is_refused()


class TestLedger:
    def test_forgetting_a_number_forgets_its_block(self, scene: Scene) -> None:
        scene.phrase()
        assert scene.blocks.in_force().keys() == {BlockedNumber(hashed(PAT), SERVICE_SID)}
        scene.study.ledger.forget("asthma", hashed(PAT))
        assert scene.blocks.in_force() == {}

    def test_switching_it_off_ends_what_waits(self, scene: Scene) -> None:
        scene.twilio.fail("503", resource="Consents")
        event = scene.phrase()
        scene.study.config = builders.config({"asthma": builders.project_table()})
        scene.study.services = scene.study.new_services()
        scene.study.sweep_later()
        assert scene.block(event) == ("not_needed", "block_at_twilio was switched off")
        assert not scene.due()

    def test_no_number_is_in_redis_or_in_a_message(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = [f"{PAT} is invalid"]
        published = []
        original = scene.study.run
        scene.study.run = lambda message: (published.append(message), original(message))  # type: ignore[method-assign, assignment, func-returns-value]
        scene.phrase()
        redis = scene.study.redis
        kept = [str(redis.hgetall(key)) for key in redis.keys("*") if redis.type(key) == "hash"]
        assert PAT[2:] not in json.dumps(kept) + str(published)

    def test_a_test_message_is_never_sent_to_twilio(self, scene: Scene) -> None:
        event = builders.opt_out_event(
            PAT, event_id="SMoptouttest" + "0" * 22, blocked=False, source=Source.EVENT_STREAM,
            when=scene.study.clock(),
        )  # fmt: skip
        scene.study.accept([event])
        scene.study.work()
        assert scene.study.state(event) == "updated"
        assert scene.twilio.consents == []

    def test_the_time_of_a_block_is_kept(self, scene: Scene) -> None:
        event = scene.phrase()
        [since] = scene.blocks.in_force().values()
        assert abs(milliseconds(since) - milliseconds(scene.study.clock())) < 60_000
        assert scene.entry(event.event_id).block.at is not None
        assert SENDER not in str(scene.blocks.in_force())
