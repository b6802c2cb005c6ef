"""The nightly reconciliation proves blocks by later texts, and asks Twilio for those that are missing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from shared.domain.events import Change
from shared.ledger.opt_outs.blocks import BlockState
from tests import builders
from tests.contract.test_block_at_twilio import PAT, Scene, scenes
from tests.simulators.redcap import fictional_phone
from tests.simulators.twilio import SERVICE_SID
from worker.steps.reconcile import reconcile
from worker.steps.reconcile.report import Report

pytestmark = pytest.mark.usefixtures("naps")


@pytest.fixture
def scene() -> Iterator[Scene]:
    yield from scenes()


def night(scene: Scene, *, dry_run: bool = False) -> Report:
    scene.study.clock.ahead += timedelta(hours=2)
    report = reconcile("asthma", scene.study.services, dry_run=dry_run)
    scene.study.work()
    return report


def study_texts(scene: Scene, phone: str = PAT) -> int | None:
    """The study texts an hour later. Returns Twilio's error."""
    at = scene.study.clock() + timedelta(hours=1)
    return scene.twilio.send_outbound(to=phone, service=SERVICE_SID, at=at).error_code


def report_mail(scene: Scene) -> str:
    return scene.mail(-1)


class TestProof:
    def test_a_text_that_twilio_refuses_confirms_the_block(self, scene: Scene) -> None:
        """A participant phones, staff record it, REDCap shows it, Twilio refuses the next text, the night says so."""
        entry = scene.staff()
        assert scene.study.value("1")
        assert entry.block.state is BlockState.BLOCKED
        assert study_texts(scene) == 21610
        report = night(scene)
        assert report.texts_after_opt_out == [{"record": "1", "refused": 1, "delivered": 0}]
        assert (report.blocks_confirmed, report.block_faults, report.not_blocked) == (1, [], [])
        assert "Texts that Twilio refused after a block" in report_mail(scene)

    def test_a_text_that_is_delivered_is_a_fault_of_the_block(self, scene: Scene) -> None:
        scene.staff()
        scene.twilio.unblock(SERVICE_SID, PAT)  # Twilio lost it
        assert study_texts(scene) is None
        report = night(scene)
        assert report.block_faults == [{"record": "1", "delivered": 1}]
        assert report.texts_after_opt_out == [{"record": "1", "refused": 0, "delivered": 1}]
        assert "a fault of the block" in report_mail(scene)
        assert "record 1: 1 delivered" in report_mail(scene)

    def test_a_participants_start_ends_the_block_at_twilio(self, scene: Scene) -> None:
        scene.phrase()
        scene.study.text(PAT, Change.START)
        scene.study.work()
        scene.twilio.unblock(SERVICE_SID, PAT)
        study_texts(scene)
        assert night(scene).block_faults == []

    def test_a_block_after_a_start_is_proved_by_itself(self, scene: Scene) -> None:
        scene.phrase()
        scene.study.text(PAT, Change.START)
        scene.study.work()
        scene.study.clock.ahead += timedelta(minutes=10)
        scene.phrase()
        scene.twilio.unblock(SERVICE_SID, PAT)  # Twilio lost it
        study_texts(scene)
        assert night(scene).block_faults == [{"record": "1", "delivered": 1}]

    def test_a_text_of_another_sender_proves_nothing(self, scene: Scene) -> None:
        scene.study.config = builders.config(
            {"asthma": builders.project_table(block_at_twilio=True, senders=["+16505550177"])}
        )
        scene.study.services = scene.study.new_services()
        scene.twilio.add_sender("+16505550177")
        scene.phrase()  # to the service
        at = scene.study.clock() + timedelta(hours=1)
        scene.twilio.send_outbound(to=PAT, from_="+16505550177", at=at)
        report = night(scene)
        assert report.block_faults == []
        assert report.texts_after_opt_out == [{"record": "1", "refused": 0, "delivered": 1}]

    def test_what_was_on_its_way_proves_nothing(self, scene: Scene) -> None:
        scene.staff()
        scene.twilio.unblock(SERVICE_SID, PAT)
        scene.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=scene.study.clock() + timedelta(seconds=5))
        assert night(scene).block_faults == []

    def test_a_refused_text_is_no_new_opt_out_of_the_participants(self, scene: Scene) -> None:
        scene.study.config = builders.config(
            {"asthma": builders.project_table(block_at_twilio=True, blocked_messages=True)}
        )
        scene.study.services = scene.study.new_services()
        scene.staff()
        study_texts(scene)
        assert night(scene).changes_recovered == 0
        assert len(list(scene.study.ledger.entries("asthma"))) == 1


class TestWhatIsMissing:
    def test_a_block_that_failed_is_asked_for_again(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = ["INVALID_SENDER_ID"]
        event = scene.phrase()
        report = night(scene)
        assert report.not_blocked == ["record 1: Twilio error 30646: INVALID_SENDER_ID"]
        assert "Twilio does not block these participants' numbers" in report_mail(scene)
        mails = len(scene.study.mailer.sent)
        assert night(scene).newly_not_blocked == []
        assert len(scene.study.mailer.sent) == mails
        scene.twilio.consent_errors.clear()
        assert night(scene).not_blocked == []
        assert scene.block(event) == ("blocked", "")

    def test_a_new_number_of_a_record_is_blocked_for_staffs_opt_out(self, scene: Scene) -> None:
        scene.staff()
        scene.study.project.set_value("1", "mobile", fictional_phone(99))
        night(scene)
        assert scene.is_refused(fictional_phone(99))

    def test_switched_on_later_what_twilio_does_not_block_is_blocked(self, scene: Scene) -> None:
        on = scene.study.config
        scene.study.config = builders.config({"asthma": builders.project_table()})
        scene.study.services = scene.study.new_services()
        scene.staff()
        scene.study.text(fictional_phone(2), blocked=False)
        scene.study.text(fictional_phone(3), blocked=True)
        scene.study.work()
        assert scene.twilio.consents == []
        scene.study.config = on
        scene.study.services = scene.study.new_services()
        night(scene)
        assert {each.contact_id for each in scene.twilio.consents} == {PAT, fictional_phone(2)}
        night(scene)
        assert len(scene.twilio.consents) == 2

    def test_a_dry_run_asks_twilio_for_nothing(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = ["INVALID_SENDER_ID"]
        scene.phrase()
        asked = len(scene.twilio.consents)
        night(scene, dry_run=True)
        assert len(scene.twilio.consents) == asked

    def test_an_opt_out_that_has_ended_is_not_asked_for_again(self, scene: Scene) -> None:
        scene.twilio.consent_errors[PAT] = ["INVALID_SENDER_ID"]
        scene.phrase()
        scene.staff(Change.START)
        report = night(scene)
        assert report.not_blocked == []
