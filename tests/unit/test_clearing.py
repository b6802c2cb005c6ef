"""What clears an opt-out, and what does not (promise P8): each case is one in which somebody would be contacted who
had said no."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.domain.events import OptOutEvent, Source
from shared.errors import TwilioUnavailable
from shared.ledger import keys
from tests.builders import at, hashed
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone, fictional_phone_as_typed
from tests.simulators.twilio import SERVICE_SID
from tests.unit.test_reconcile import PAT, Night, Nights, night, nights, seconds, shown

pytestmark = pytest.mark.usefixtures("naps")
__all__ = ["night", "nights"]

NOON = at("2026-05-04T19:00:00")
HAND = "2026-05-05 09:30:00"


def enrolled(count: int = 3, validation: str = "", **changes: Any) -> Study:
    project = classic_study(opt_out_validation=validation)
    enrol(project, count)
    return study(project, **changes)


def texted(asthma: Study, change: str = "STOP", number: int = 1, **more: Any) -> OptOutEvent:
    """A text whose webhook came and was processed."""
    event = asthma.text(fictional_phone(number), change, **more)
    asthma.work()
    return event


def enter(asthma: Study, value: str, record: str = "1", ticked: str = "") -> None:
    asthma.project.set_value(record, "sms_opt_out_at", value)
    if ticked:
        asthma.project.set_value(record, "sms_opt_out___1", ticked)


class TestWhatAPersonEntered:
    @pytest.mark.parametrize(
        "value",
        [HAND, "2026-05-05 09:30", "declined by phone", "withdrawn", "2099-01-01", "2099-01-01 10:00:00"],
    )
    def test_a_start_leaves_it_alone_and_somebody_is_asked(self, value: str) -> None:
        asthma = enrolled()
        enter(asthma, value)
        start = texted(asthma, "START")
        assert (asthma.value(), asthma.state(start)) == (value, "needs_review")
        assert asthma.mailer.subjects == ["[asthma] Opt-in (START) needs review: record 1"]

    def test_a_time_that_a_person_changed_is_the_person_s(self) -> None:
        asthma = enrolled()
        texted(asthma)
        enter(asthma, HAND)
        start = texted(asthma, "START")
        assert (asthma.value(), asthma.state(start)) == (HAND, "needs_review")

    def test_a_tick_alone_stays(self) -> None:
        asthma = enrolled(opt_out_checkbox="sms_opt_out")
        enter(asthma, "", ticked="1")
        start = texted(asthma, "START")
        assert asthma.project.value("1", "sms_opt_out___1") == "1"
        assert asthma.state(start) == "needs_review"

    def test_a_start_that_the_log_shows_later_clears_no_record_that_got_the_number_in_between(self) -> None:
        asthma = enrolled()
        texted(asthma)
        before = asthma.clock()
        asthma.clock.ahead += timedelta(hours=1)
        asthma.project.set_value("1", "mobile", fictional_phone(9))
        asthma.services.index("asthma").rebuild(
            asthma.services.project("asthma").read_all(), now=asthma.clock()
        )
        asthma.clock.ahead += timedelta(hours=1)
        start = asthma.text(
            fictional_phone(9), "START", when=before + timedelta(minutes=1), source=Source.MESSAGE_LOG
        )
        asthma.work()
        assert (asthma.value() != "", asthma.state(start)) == (True, "needs_review")

    def test_a_tick_whose_time_a_person_removed_stays(self) -> None:
        asthma = enrolled(opt_out_checkbox="sms_opt_out")
        texted(asthma)
        enter(asthma, "")
        start = texted(asthma, "START")
        assert asthma.project.value("1", "sms_opt_out___1") == "1"
        assert asthma.state(start) == "needs_review"

    def test_a_second_start_is_no_further_mail_that_day(self) -> None:
        asthma = enrolled()
        enter(asthma, HAND)
        starts = [texted(asthma, "START") for _ in range(2)]
        assert [asthma.state(each) for each in starts] == ["needs_review", "needs_review"]
        assert len(asthma.mailer.sent) == 1

    def test_the_mail_never_holds_the_entry(self) -> None:
        asthma = enrolled()
        enter(asthma, "declined by phone")
        texted(asthma, "START")
        assert "declined" not in str(asthma.mailer.sent[0])

    def test_the_nightly_run_clears_neither_time_nor_tick_and_lists_them(self, nights: Nights) -> None:
        night = nights(opt_out_checkbox="sms_opt_out")
        night.missed("START", -90 * 86400)
        night.missed("START", -90 * 86400, fictional_phone(2))
        enter(night.study, shown(seconds(-3600)))
        enter(night.study, "", record="2", ticked="1")
        report = night.run()
        assert (night.value(), night.study.project.value("2", "sms_opt_out___1")) == (
            shown(seconds(-3600)),
            "1",
        )
        assert report.kept_entries == ["1", "2"]
        assert night.run().kept_entries == ["1", "2"]

    def test_without_any_text_it_is_only_counted(self, night: Night) -> None:
        enter(night.study, HAND)
        report = night.run()
        assert (report.entered_by_hand, report.kept_entries, report.is_worth_a_mail) == (1, [], False)

    def test_once_a_person_has_ended_it_a_stop_is_written_again(self) -> None:
        asthma = enrolled()
        enter(asthma, HAND)
        texted(asthma)
        enter(asthma, "")
        texted(asthma)
        assert asthma.value() not in {"", HAND}


class TestStopOverWhatIsThere:
    @pytest.mark.parametrize("value", ["No", "none", "N/A", "na", "0", "-", " "])
    def test_words_that_mean_nothing_are_replaced(self, value: str) -> None:
        asthma = enrolled()
        enter(asthma, value)
        stop = texted(asthma, when=NOON)
        assert (asthma.value(), asthma.state(stop)) == ("2026-05-04 12:00:00", "updated")

    def test_a_person_s_time_stays(self) -> None:
        asthma = enrolled()
        enter(asthma, HAND)
        stop = texted(asthma)
        assert (asthma.value(), asthma.state(stop), asthma.mailer.sent) == (HAND, "already_current", [])

    def test_text_stays_the_box_is_ticked_and_the_mail_says_so(self) -> None:
        asthma = enrolled(opt_out_checkbox="sms_opt_out")
        enter(asthma, "maybe later")
        stop = texted(asthma)
        assert (asthma.value(), asthma.project.value("1", "sms_opt_out___1")) == ("maybe later", "1")
        assert asthma.state(stop) == "updated"
        assert "text of a person" in asthma.mailer.sent[0].as_string()
        assert "maybe" not in asthma.mailer.sent[0].as_string()

    def test_text_without_a_box_needs_a_person(self) -> None:
        asthma = enrolled()
        enter(asthma, "maybe later")
        stop = texted(asthma)
        assert (asthma.value(), asthma.state(stop)) == ("maybe later", "needs_review")
        enter(asthma, "")
        asthma.ledger.require_update("asthma", [hashed(fictional_phone(1))], now=asthma.clock())
        asthma.sweep_later()
        assert (asthma.value() != "", asthma.state(stop)) == (True, "updated")
        assert asthma.ledger.reviews("asthma") == []


class TestScopes:
    def test_a_start_to_another_number_ends_nothing(self) -> None:
        asthma = enrolled()
        texted(asthma, scope="number:a", when=NOON)
        start = texted(asthma, "START", scope="number:b")
        assert (asthma.value(), asthma.state(start)) == ("2026-05-04 12:00:00", "superseded")

    def test_the_field_moves_to_the_later_opt_out_without_a_mail_and_clears_with_the_last(self) -> None:
        asthma = enrolled()
        texted(asthma, scope="number:a", when=NOON)
        texted(asthma, scope="number:b", when=NOON + timedelta(hours=2))
        assert asthma.value() == "2026-05-04 12:00:00"
        start = texted(asthma, "START", scope="number:a")
        asthma.sweep_later()
        assert (asthma.value(), asthma.state(start)) == ("2026-05-04 14:00:00", "superseded")
        assert len(asthma.mailer.sent) == 1
        start = texted(asthma, "START", scope="number:b")
        assert (asthma.value(), asthma.state(start)) == ("", "updated")

    def test_a_stop_that_was_missed_earlier_moves_the_field_back(self, night: Night) -> None:
        night.received("STOP", 7200)
        night.missed("STOP", 0)
        night.run()
        assert night.value() == shown(seconds(0))
        assert night.run().records_corrected == 0

    def test_two_numbers_of_one_record(self) -> None:
        asthma = enrolled()
        asthma.project.set_value("1", "mobile", f"{fictional_phone(1)} or {fictional_phone(9)}")
        texted(asthma, when=NOON)
        start = texted(asthma, "START", number=9)
        assert (asthma.value(), asthma.state(start)) == ("2026-05-04 12:00:00", "superseded")


class TestNumbersThatChange:
    def test_a_start_of_long_ago_does_not_clear_the_record_that_gets_the_number(self) -> None:
        asthma = enrolled()
        texted(asthma, "START", number=9)
        texted(asthma)
        value = asthma.value()
        asthma.project.set_value("1", "mobile", fictional_phone_as_typed(9))
        for _ in range(3):
            asthma.sweep_later(minutes=20)
            texted(asthma, number=2)
        assert asthma.value() == value

    def test_a_start_that_came_before_the_record_had_the_number_does_not_clear_it(self) -> None:
        asthma, now = enrolled(), datetime.now(UTC)
        texted(asthma, received=now - timedelta(minutes=10))
        value = asthma.value()
        start = asthma.text(
            fictional_phone(9), "START", received=datetime.now(UTC)
        )  # still waits in the queue
        asthma.project.set_value("1", "mobile", fictional_phone_as_typed(9))
        asthma.work()
        assert (asthma.value(), asthma.state(start)) == (value, "needs_review")

    def test_two_records_with_one_number_are_both_named(self) -> None:
        asthma = enrolled(2)
        asthma.project.set_value("2", "mobile", fictional_phone_as_typed(1))
        texted(asthma)
        texted(asthma, "START")
        assert (asthma.value("1"), asthma.value("2")) == ("", "")
        assert "records 1, 2" in asthma.mailer.subjects[-1]
        assert "new owner" in asthma.mailer.sent[-1].as_string()

    def test_a_record_that_stays_opted_out_is_named_in_the_mail_about_the_others(self) -> None:
        asthma = enrolled(2)
        asthma.project.set_value("2", "mobile", f"{fictional_phone(1)} or {fictional_phone(9)}")
        texted(asthma, number=9)
        texted(asthma)
        start = texted(asthma, "START")
        asthma.sweep_later()
        assert (asthma.value("1"), asthma.value("2") != "", asthma.state(start)) == ("", True, "updated")
        assert "record 2: still opted out" in " ".join(asthma.mailer.sent[-1].as_string().split())

    def test_a_record_that_is_found_later_is_mailed_too(self) -> None:
        asthma = enrolled(2)
        texted(asthma)
        asthma.project.set_value("2", "mobile", fictional_phone_as_typed(1))
        asthma.sweep_later(minutes=2)
        asthma.published.messages.extend(message._replace(delay_seconds=0) for message in asthma.later)
        asthma.work()
        assert asthma.value("2") != ""
        assert asthma.mailer.subjects[-1].endswith("records 1, 2")


class TestTimes:
    def test_a_start_whose_time_twilio_does_not_tell_waits_beside_a_stop(self) -> None:
        asthma = enrolled()
        texted(asthma)
        asthma.twilio_errors.append(TwilioUnavailable("twilio_server_error", "status 503"))
        start = texted(asthma, "START")
        assert (asthma.value() != "", asthma.state(start)) == (True, "received")
        asthma.sweep_later()
        assert (asthma.value(), asthma.state(start)) == ("", "updated")

    def test_a_start_that_twilio_never_explains_goes_to_a_person(self) -> None:
        asthma = enrolled()
        texted(asthma)
        start = asthma.text(fictional_phone(1), "START")
        del asthma.text_times[start.event_id]
        asthma.work()
        asthma.sweep_later(days=1, minutes=5)
        assert (asthma.value() != "", asthma.state(start)) == (True, "needs_review")

    def test_far_from_any_stop_it_counts_without_twilio(self) -> None:
        asthma = enrolled()
        texted(asthma)
        asthma.clock.ahead += timedelta(hours=1)
        asthma.twilio_errors.append(TwilioUnavailable("twilio_server_error", "status 503"))
        start = texted(asthma, "START")
        assert (asthma.value(), asthma.state(start)) == ("", "updated")

    def test_a_start_that_was_sent_before_the_stop_changes_nothing(self) -> None:
        asthma = enrolled()
        before = asthma.clock()
        texted(asthma)
        start = asthma.text(fictional_phone(1), "START")
        asthma.text_times[start.event_id] = before - timedelta(seconds=30)
        asthma.work()
        assert (asthma.value() != "", asthma.state(start)) == (True, "superseded")

    @pytest.mark.parametrize("source", [Source.WEBHOOK, Source.EVENT_STREAM])
    def test_a_request_that_is_repeated_after_its_retention_changes_nothing(self, source: Source) -> None:
        asthma = enrolled()
        start = texted(asthma, "START", source=source)
        texted(asthma)
        asthma.redis.delete(keys.event("asthma", start.event_id))
        asthma.text(fictional_phone(1), "START", event_id=start.event_id, source=source)
        asthma.work()
        assert asthma.value() != ""

    def test_of_a_start_and_a_stop_in_one_second_of_the_log_the_stop_counts(self, night: Night) -> None:
        night.missed("START", 10)
        night.missed("STOP", 10)
        night.run()
        assert night.value() == shown(seconds(10))

    def test_a_start_that_was_handled_is_not_handled_again(self, night: Night) -> None:
        night.received("STOP", 0)
        night.received("START", 60)
        enter(night.study, shown(seconds(0)))
        night.run()
        assert night.value() == shown(seconds(0))


class TestAfterALoss:
    def test_with_an_older_backup_and_twilio_away_nothing_is_cleared(self, night: Night) -> None:
        night.received("START", 0)
        enter(night.study, shown(seconds(300)))  # a STOP that was recorded after the backup
        night.twilio.fail("503", resource="Messages", times=None)
        night.run()
        assert night.value() == shown(seconds(300))

    def test_an_opt_out_of_a_lost_ledger_is_cleared_where_the_log_shows_whose_it_was(
        self, night: Night
    ) -> None:
        night.missed("STOP", 0)
        night.missed("START", 3600)
        enter(night.study, shown(seconds(0)))
        report = night.run(dry_run=True)
        assert (report.would_set, report.would_clear) == ([], ["1"])
        night.run()
        assert night.value() == ""

    def test_an_opt_out_that_no_log_explains_stays(self, night: Night) -> None:
        night.missed("START", 3600)
        enter(night.study, shown(seconds(0)))
        night.run()
        assert night.value() == shown(seconds(0))

    def test_a_survey_s_yes_in_the_log_is_no_opt_in(self, night: Night) -> None:
        night.received("STOP", 0)
        night.missed("yes", 3600)
        night.run()
        assert night.value() == shown(seconds(0))

    def test_a_stop_of_version_1_is_ended_by_a_person_if_its_sender_is_not_known(self) -> None:
        asthma = enrolled()
        stop = texted(asthma)
        ms = int(stop.occurred_at.timestamp() * 1000)
        asthma.redis.hset(keys.status("asthma"), hashed(fictional_phone(1)), f"STOP|{ms}|{stop.event_id}|0")
        start = texted(asthma, "START")
        assert (asthma.value() != "", asthma.state(start)) == (True, "needs_review")


class TestUnclearTexts:
    def unclear(self, asthma: Study, number: int = 1) -> OptOutEvent:
        return texted(asthma, "", number, blocked=False)

    def test_nothing_is_written_and_somebody_is_asked(self) -> None:
        asthma = enrolled()
        event = self.unclear(asthma)
        assert (asthma.value(), asthma.state(event), asthma.entry(event).records) == (
            "",
            "needs_review",
            ("1",),
        )
        assert asthma.mailer.subjects == ["[asthma] A text that may be an opt-out needs review: record 1"]
        mail = asthma.mailer.sent[0].as_string()
        assert event.event_id in mail
        assert f"optout review {event.event_id} stop" in " ".join(mail.replace("=\n", "").split())

    def test_of_an_unknown_number_it_ends_without_a_record(self) -> None:
        asthma = enrolled(notify_unmatched=True)
        event = self.unclear(asthma, 99)
        assert asthma.state(event) == "no_matching_record"
        assert asthma.mailer.subjects == [
            "[asthma] A text that may be an opt-out from a number that no record holds"
        ]

    @pytest.mark.parametrize("by_hand", [True, False])
    def test_of_somebody_who_is_opted_out_it_asks_nobody(self, by_hand: bool) -> None:
        asthma = enrolled()
        if by_hand:
            enter(asthma, HAND)
        else:
            texted(asthma)
        mails = len(asthma.mailer.sent)
        event = self.unclear(asthma)
        assert (asthma.state(event), len(asthma.mailer.sent)) == ("already_current", mails)

    def test_many_a_day_go_into_one_mail_at_its_end(self) -> None:
        asthma = enrolled(8, suspected_digest_after=2)
        for number in range(1, 9):
            self.unclear(asthma, number)
        assert len(asthma.mailer.sent) == 2
        asthma.sweep_later(days=1)
        asthma.work()
        assert len(asthma.mailer.sent) == 3
        assert "6 texts to review" in asthma.mailer.subjects[-1]
        assert len(asthma.ledger.reviews("asthma")) == 8

    def test_the_log_shows_it_too(self, night: Night) -> None:
        message = night.missed("please stop texting me", 0)
        night.run()
        assert (night.state(message), night.value()) == ("needs_review", "")

    def test_a_word_that_twilio_called_an_opt_out_before_counts_in_the_log(self, night: Night) -> None:
        night.study.redis.hset(keys.words(SERVICE_SID), "parar", "STOP")
        night.missed("PARAR", 0)
        night.run()
        assert night.value() == shown(seconds(0))

    def test_where_twilio_does_not_block_the_mail_says_so(self) -> None:
        asthma = enrolled()
        texted(asthma, blocked=False)
        texted(asthma, number=2)
        unblocked, blocked = (" ".join(mail.as_string().split()) for mail in asthma.mailer.sent)
        assert "may go on delivering" in unblocked
        assert "already blocks" in blocked

    def test_a_sender_that_is_no_number_is_mailed_where_the_project_wants_it(self) -> None:
        asthma = enrolled(notify_unmatched=True)
        event = texted(asthma, phone_hash="")
        assert (asthma.state(event), len(asthma.mailer.sent)) == ("no_matching_record", 1)


class TestTextsAfterAnOptOut:
    def test_refused_and_delivered_ones_are_counted_by_record(self, night: Night) -> None:
        night.received("STOP", 0)
        for at_seconds in (60, 600, 700):
            night.twilio.unblock(SERVICE_SID, PAT)
            night.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=seconds(at_seconds))
        night.twilio.block(SERVICE_SID, PAT)
        night.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=seconds(800))
        night.twilio.send_outbound(to=fictional_phone(2), service=SERVICE_SID, at=seconds(800))
        report = night.run()
        assert report.texts_after_opt_out == [{"record": "1", "refused": 1, "delivered": 2}]
        assert night.run().texts_after_opt_out == []

    def test_before_the_opt_out_and_after_a_start_nothing_is_wrong(self, night: Night) -> None:
        night.received("STOP", 3600)
        night.received("START", 7200)
        for at_seconds in (0, 8000):
            night.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=seconds(at_seconds))
        night.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=seconds(5000))
        assert night.run().texts_after_opt_out == [{"record": "1", "refused": 0, "delivered": 1}]

    def test_it_can_be_turned_off(self, nights: Nights) -> None:
        night = nights(watch_sends=False)
        night.received("STOP", 0)
        night.twilio.send_outbound(to=PAT, service=SERVICE_SID, at=seconds(700))
        assert night.run().texts_after_opt_out == []


class TestAnErasedLog:
    def test_messages_that_the_log_has_lost_are_reported_by_sender_and_time(self, night: Night) -> None:
        kept, lost = night.received("STOP", 0), night.received("STOP", 600, from_=fictional_phone(2))
        night.twilio.erase(lost.sid)
        report = night.run()
        assert [(each["sender"], each["messages"]) for each in report.missing_from_log] == [(SERVICE_SID, 1)]
        assert (report.is_well, report.messages_expected) == (False, 2)
        assert kept.sid not in str(report.missing_from_log)

    def test_a_complete_log_is_a_proof(self, night: Night) -> None:
        night.received("STOP", 0)
        report = night.run()
        assert (report.missing_from_log, report.is_well, report.messages_expected) == ([], True, 1)


class TestMails:
    def test_a_record_that_is_written_for_another_number_s_opt_out_is_mailed(self) -> None:
        """The earliest opt-out is entered, which was of a number that no record held when it came."""
        asthma = enrolled()
        first = texted(asthma, number=9)
        assert asthma.state(first) == "no_matching_record"
        asthma.project.set_value("1", "mobile", f"{fictional_phone(1)} or {fictional_phone(9)}")
        texted(asthma)
        asthma.sweep_later()
        assert asthma.state(first) == "updated"
        assert [subject.rpartition(" ")[2] for subject in asthma.mailer.subjects] == ["1"]
