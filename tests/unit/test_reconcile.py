"""The nightly run, against the simulators: what it recovers, corrects, reports and leaves alone."""

from __future__ import annotations

import copy
import importlib
import json
import random
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from shared.config.schema import Operator
from shared.errors import MailDeferred
from shared.ledger import keys
from shared.ledger.mails.report_mails import ReportMails
from shared.ledger.projects import nights as ledger_nights
from shared.ledger.work.locks import try_lock
from shared.messaging.tasks import TaskName
from shared.retry_policy import FAILURE_MAIL_EVERY_MS, RECONCILE_AGAIN_MS
from tests.builders import NOTIFIED, REDCAP_TOKEN, config, hashed, project_table
from tests.fakes import Study
from tests.simulators.redcap import Project, classic_study, enrol, fictional_phone, fictional_phone_as_typed
from tests.simulators.twilio import AUTH_TOKEN, SENDER, SERVICE_SID, Message, TwilioSimulator
from worker.redcap.gateway import RedcapProject
from worker.steps.reconcile import OVERLAP, TWILIO_KEEPS, reconcile
from worker.steps.reconcile import compare as module
from worker.steps.reconcile.report import MOST_RECORDS_NAMED, Report
from worker.steps.reconcile.report_mail import compose_report
from worker.steps.send_email import send_email
from worker.steps.sweep import sweep
from worker.twilio import client as twilio_client
from worker.twilio import message_log

# The package names the command after its module, and so hides it.
command = importlib.import_module("worker.cli.reconcile")

pytestmark = pytest.mark.usefixtures("naps")

LOS_ANGELES = ZoneInfo("America/Los_Angeles")
# The message log speaks whole seconds. Four hours ago: within what every run reads.
BEGIN = (datetime.now(UTC) - timedelta(hours=4)).replace(microsecond=0)
PAT = fictional_phone(1)  # record 1's number


def seconds(number: float) -> datetime:
    """So many seconds after the beginning."""
    return BEGIN + timedelta(seconds=number)


def shown(moment: datetime) -> str:
    """A time as the opt-out field holds it."""
    return moment.astimezone(LOS_ANGELES).strftime("%Y-%m-%d %H:%M:%S")


class Night:
    """A study, Twilio, and a nightly run between them."""

    def __init__(self, twilio: TwilioSimulator, project: Project, **changes: Any) -> None:
        self.twilio = twilio
        table = project_table(**changes)
        accounts = (
            {"auth_token": ["env:OLD_AUTH_TOKEN", "env:TEST_AUTH_TOKEN"]} if changes.get("rotating") else {}
        )
        table.pop("rotating", None)
        main = {"account_sid": next(iter(twilio.accounts)), "auth_token": "env:TEST_AUTH_TOKEN"} | accounts
        self.study = Study(config({"asthma": table}, twilio={"main": main}), {REDCAP_TOKEN: project})
        del self.study.services.__dict__["time_of_text"]  # the simulator says when a text was sent
        self.redcap = self.study.redcap

    def missed(self, body: str = "STOP", at: float = 0, from_: str = PAT, **more: Any) -> Message:
        """A text that stands in Twilio's log alone: its webhook was lost."""
        return self.twilio.text(
            from_=from_, body=body, deliver=False, at=seconds(at), **{"service": SERVICE_SID} | more
        ).message

    def received(self, body: str = "STOP", at: float = 0, late: float = 0, **more: Any) -> Message:
        """A text whose webhook came, `late` seconds after Twilio's own time, and was worked off."""
        message = self.missed(body, at, **more)
        self.study.text(
            message.from_, body, event_id=message.sid, received=message.at + timedelta(seconds=late)
        )
        self.study.work()
        return message

    def run(self, **options: Any) -> Report:
        """One run, and the e-mails that it asks for."""
        report = reconcile("asthma", self.study.services, **options)
        self.study.work()
        return report

    def value(self, record: str = "1") -> str:
        return self.study.value(record)

    def state(self, message: Message) -> str:
        entry = self.study.ledger.load("asthma", message.sid)
        return entry.state.value if entry else "none"

    @property
    def subjects(self) -> list[str]:
        return [subject.replace(" saved : ", " saved: ") for subject in self.study.mailer.subjects]

    @property
    def changes_told(self) -> list[str]:
        return [subject for subject in self.subjects if "Nightly" not in subject]

    @property
    def reports_told(self) -> list[str]:
        return [subject for subject in self.subjects if "Nightly" in subject]

    def report_text(self) -> str:
        mails = [mail for mail in self.study.mailer.sent if "Nightly" in mail["Subject"]]
        body = mails[-1].get_body(("plain",))
        assert body is not None
        return str(body.get_content())

    def send_waiting_reports(self, **ahead: float) -> None:
        """What sweep asks for, without the reconciliation that is overdue by then."""
        self.study.clock.ahead += timedelta(**ahead)
        for name in ReportMails(self.study.redis, "asthma").names():
            send_email("asthma", f"report:{name}", self.study.services)

    def noted(self) -> dict[str, str]:
        return dict(self.study.redis.hgetall(keys.reconciled("asthma")))


class Nights:
    """Makes nights; all that they opened is closed at the end."""

    def __init__(self, opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self._opened = opened
        self._environment = monkeypatch

    def __call__(self, records: int = 3, *, twilio: TwilioSimulator | None = None, **changes: Any) -> Night:
        project = classic_study()
        enrol(project, records)
        twilio = twilio or TwilioSimulator()
        server = self._opened.enter_context(twilio.serve())
        self._environment.setenv("OPTOUT_TWILIO_API_URL", server.url)
        return Night(twilio, project, **changes)


@pytest.fixture
def nights(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nights]:
    with ExitStack() as opened:
        yield Nights(opened, monkeypatch)


@pytest.fixture
def night(nights: Nights) -> Night:
    return nights()


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message a page."""
    monkeypatch.setattr(message_log, "PAGE_SIZE", 1)


class TestRecovery:
    def test_a_missed_stop_is_written_with_twilios_time_and_told_once(self, night: Night) -> None:
        message = night.missed(at=7)
        report = night.run()
        assert (report.outcome, report.messages_read, report.changes_recovered) == ("success", 1, 1)
        assert night.value() == shown(seconds(7))
        assert night.state(message) == "updated"
        assert night.changes_told == ["[asthma] Opt-out (STOP) saved: record 1"]

    def test_two_hundred_mixed_changes_end_in_the_truth_and_a_second_run_finds_nothing(
        self, nights: Nights
    ) -> None:
        night = nights(60)
        dice = random.Random(3)
        truth: dict[int, str] = {}
        for number in range(200):
            person, body = (
                dice.randint(1, 60),
                dice.choice(["STOP", "START", "Unsubscribe", "unstop", "thanks"]),
            )
            night.missed(body, number, fictional_phone(person))
            if body in {"START", "unstop"}:
                truth[person] = ""
            elif body != "thanks":  # a repeated STOP keeps the time of the first
                truth[person] = truth.get(person) or shown(seconds(number))
        report = night.run()
        assert {person: night.value(str(person)) for person in truth} == truth
        assert report.changes_recovered == len(truth)
        stopped = [person for person, value in truth.items() if value]
        # START finds the field empty where its STOP was never written: nothing changes, nobody is told.
        assert len(night.changes_told) == len(stopped)
        assert len(night.reports_told) == 1

        before = night.redcap.count("import"), len(night.subjects)
        again = night.run()
        assert (again.outcome, again.changes_recovered, again.records_corrected) == ("success", 0, 0)
        assert (night.redcap.count("import"), len(night.subjects)) == before

    def test_a_change_that_was_overtaken_in_the_log_is_neither_written_nor_told(self, night: Night) -> None:
        stop, start = night.missed("STOP", 1), night.missed("START", 2)
        night.run()
        assert (night.state(stop), night.value()) == ("superseded", "")
        assert night.state(start) == "already_current"
        assert night.changes_told == []

    def test_an_older_message_never_overrides_a_newer_status(self, night: Night) -> None:
        night.missed("START", 1)
        night.received("STOP", 60)
        night.run()
        assert night.value() == shown(seconds(60))

    def test_a_start_missed_between_two_stops_moves_the_time_to_the_second(self, night: Night) -> None:
        night.received("STOP", 0)
        night.missed("START", 60)
        night.received("STOP", 120)
        assert night.value() == shown(seconds(0))  # still opted out, so far as was known
        report = night.run()
        assert night.value() == shown(seconds(120))
        assert report.records_corrected == 1

    @pytest.mark.parametrize("body", ["STOP", "alto", " Stop\n", "RevokE"])
    def test_words_are_the_defaults_and_the_configured_ones_in_any_case(
        self, nights: Nights, body: str
    ) -> None:
        night = nights(opt_out_keywords=["ALTO"])
        night.missed(body)
        night.run()
        assert night.value() == shown(seconds(0))

    @pytest.mark.parametrize("body", ["HELP", "", "yes"])
    def test_other_texts_change_nothing(self, night: Night, body: str) -> None:
        night.missed("thanks", 1)
        night.missed(body)
        report = night.run()
        assert (report.messages_read, report.changes_recovered, night.value()) == (2, 0, "")
        assert night.subjects == []

    def test_a_configured_word_opts_in(self, nights: Nights) -> None:
        night = nights(opt_in_keywords=["SEGUIR"])
        night.received("STOP", 0)
        night.missed("Seguir", 60)
        night.run()
        assert night.value() == ""

    @pytest.mark.parametrize("body", ["yes", "END"])
    def test_words_that_were_taken_out_in_the_console_change_nothing(self, nights: Nights, body: str) -> None:
        night = nights(ignored_keywords=["Yes", "end"])
        night.received("STOP", 0)
        night.run()
        night.missed(body, 60)
        assert night.run().changes_recovered == 0
        assert night.value() == shown(seconds(0))

    def test_whatsapp_counts_only_where_it_is_configured(self, nights: Nights) -> None:
        for channels, value in ((["sms", "rcs"], ""), (["sms", "whatsapp"], shown(seconds(0)))):
            night = nights(channels=channels)
            night.twilio.add_sender("whatsapp:+16505550198", service=night.twilio.services[SERVICE_SID])
            night.missed(from_=f"whatsapp:{PAT}")
            night.run()
            assert night.value() == value

    def test_a_sender_that_is_no_phone_number_ends_without_a_record(self, night: Night) -> None:
        message = night.missed(from_="72975")
        report = night.run()
        assert night.state(message) == "no_matching_record"
        assert report.changes_recovered == 1
        assert night.changes_told == []

    def test_a_number_that_no_record_holds_is_counted(self, night: Night) -> None:
        message = night.missed(from_=fictional_phone(99))
        report = night.run()
        assert night.state(message) == "no_matching_record"
        assert (report.statuses, report.statuses_without_record) == (1, 1)


class TestTimesOfReceipt:
    """A webhook carries no time, so that its receipt stands for it until the log is read."""

    def test_a_start_between_a_late_webhooks_two_times_is_on_the_right_side(self, night: Night) -> None:
        night.received("STOP", 0, late=8)
        night.missed("START", 5)
        night.run()
        assert night.value() == ""

    @pytest.mark.usefixtures("small_pages")
    def test_so_it_is_where_the_two_stand_on_different_pages(self, night: Night) -> None:
        night.received("STOP", 0, late=8)
        start = night.missed("START", 5)
        report = night.run()
        assert (night.value(), night.state(start), report.changes_recovered) == ("", "updated", 1)
        assert night.run().changes_recovered == 0

    def test_so_it_is_where_the_two_went_to_different_senders(self, nights: Nights) -> None:
        twilio = TwilioSimulator()
        twilio.add_sender("+16505550198", service=twilio.services[SERVICE_SID])
        night = nights(twilio=twilio)
        night.received("STOP", 0, late=8, to="+16505550198", service=None)
        night.missed("START", 5)
        night.run()
        assert night.value() == ""

    def test_two_webhooks_that_came_in_the_wrong_order_are_put_right(self, night: Night) -> None:
        start = night.missed("START", 5)
        stop = night.missed("STOP", 0)
        night.study.text(PAT, "START", event_id=start.sid, received=seconds(6))
        night.study.text(PAT, "STOP", event_id=stop.sid, received=seconds(8))  # its first try was lost
        night.twilio.fail("503", resource="Message", times=None)  # it does not say when
        night.study.work()
        assert night.value() == shown(seconds(8))
        night.twilio.faults.clear()
        report = night.run()
        assert (night.value(), report.changes_recovered) == ("", 1)
        assert night.run().changes_recovered == 0

    def test_where_twilio_says_when_they_are_put_right_at_once(self, night: Night) -> None:
        start, stop = night.missed("START", 5), night.missed("STOP", 0)
        night.study.text(PAT, "START", event_id=start.sid, received=seconds(6))
        night.study.text(PAT, "STOP", event_id=stop.sid, received=seconds(8))
        night.study.work()
        assert night.value() == ""
        assert night.run().changes_recovered == 0

    def test_a_clock_of_ours_that_is_slow_changes_no_order(self, night: Night) -> None:
        night.received("STOP", 15, late=-5)
        night.received("START", 17, late=-5)
        report = night.run()
        assert (report.changes_recovered, report.records_corrected, night.value()) == (0, 0, "")

    def test_a_correction_within_the_second_rewrites_nothing(self, night: Night) -> None:
        night.received("STOP", 0, late=1.4)
        value, imports = night.value(), night.redcap.count("import")
        report = night.run()
        assert (night.value(), night.redcap.count("import")) == (value, imports)
        assert report.is_worth_a_mail is False

    def test_the_time_of_an_event_stream_is_kept_as_it_is_exact(self, night: Night) -> None:
        message = night.missed("STOP", 0)
        exact = seconds(0) + timedelta(milliseconds=456)
        night.study.text(PAT, "STOP", event_id=message.sid, when=exact, source="event_stream")
        night.study.work()
        night.run()
        [status] = night.study.ledger.status("asthma", hashed(PAT))
        assert status.occurred_at == exact


class TestWatermark:
    def since(self, night: Night) -> datetime:
        """From when the last run read."""
        return datetime.fromisoformat(json.loads(night.noted()["report"])["since"])

    def test_the_first_run_reads_all_that_twilio_keeps(self, night: Night) -> None:
        night.run()
        assert abs(self.since(night) - (datetime.now(UTC) - TWILIO_KEEPS)) < timedelta(minutes=1)

    def test_later_runs_overlap_the_last_successful_one(self, night: Night) -> None:
        night.run()
        night.study.clock.ahead = timedelta(days=1)
        night.run()
        assert abs(self.since(night) - (datetime.now(UTC) - OVERLAP)) < timedelta(minutes=1)

    def test_a_message_that_shows_late_in_the_log_is_found_by_the_overlap(self, night: Night) -> None:
        night.run()
        night.missed(at=0)  # from before the run, logged after it
        assert night.run().changes_recovered == 1

    def test_it_stays_where_a_run_failed(self, night: Night) -> None:
        night.run()
        watermark = night.noted()["watermark_ms"]
        night.twilio.fail("503", resource="Messages", times=None)
        night.study.clock.ahead = timedelta(days=5)
        report = night.run()
        assert report.outcome == "failure"
        assert night.noted()["watermark_ms"] == watermark

    def test_the_next_run_covers_what_a_failed_one_left(self, night: Night) -> None:
        night.run()
        night.twilio.fail("503", resource="Messages", times=None)
        night.study.clock.ahead = timedelta(days=5)
        night.missed(at=0)
        night.run()
        night.twilio.mend()
        night.study.clock.ahead = timedelta(days=10)
        assert night.run().changes_recovered == 1

    def test_a_run_that_leaves_a_gap_does_not_move_it(self, night: Night) -> None:
        night.run(since=datetime.now(UTC) - timedelta(hours=1))
        assert "watermark_ms" not in night.noted()
        assert "success_ms" in night.noted()

    def test_a_run_that_reads_more_than_needed_moves_it(self, night: Night) -> None:
        night.run(since=datetime.now(UTC) - TWILIO_KEEPS)
        assert "watermark_ms" in night.noted()


class TestTwilioInTrouble:
    @pytest.mark.parametrize("fault", ["429", "503", "500", "reset", "truncated"])
    @pytest.mark.usefixtures("small_pages")
    def test_a_page_that_fails_half_way_is_asked_for_again(self, night: Night, fault: str) -> None:
        night.missed(at=0)
        night.missed(at=1, from_=fictional_phone(2))
        night.twilio.fail(fault, resource="Messages", page=1, times=2)
        report = night.run()
        assert (report.outcome, report.changes_recovered) == ("success", 2)
        assert night.value("1") == shown(seconds(0))

    @pytest.mark.parametrize("fault", ["429", "503", "reset", "truncated"])
    @pytest.mark.usefixtures("small_pages")
    def test_what_was_read_before_the_failure_is_kept_and_the_next_run_reads_the_rest(
        self, night: Night, fault: str
    ) -> None:
        night.missed(at=0)
        night.missed(at=1, from_=fictional_phone(2))
        night.twilio.fail(fault, resource="Messages", page=1, times=None)
        report = night.run()
        assert (report.outcome, report.changes_recovered) == ("failure", 1)
        assert report.errors[0].startswith(
            ("twilio_server_error", "twilio_unreachable", "twilio_strange_answer")
        )
        assert (night.value("2"), night.value("1")) == (shown(seconds(1)), "")
        night.twilio.mend()
        assert night.run().changes_recovered == 1
        assert night.value("1") == shown(seconds(0))

    def test_redcap_is_compared_though_twilio_is_down(self, night: Night) -> None:
        night.received("STOP", 0)
        night.study.project.set_value("1", "sms_opt_out_at", "")
        night.twilio.fail("503", times=None)
        report = night.run()
        assert (report.outcome, report.records_corrected) == ("failure", 1)
        assert night.value() == shown(seconds(0))

    def test_during_a_rotation_the_token_that_works_is_found(
        self, nights: Nights, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        night = nights(rotating=True)
        monkeypatch.setenv("OLD_AUTH_TOKEN", "f" * 32)
        night.missed()
        assert night.run().changes_recovered == 1
        assert {entry.status for entry in night.twilio.request_log} == {401, 200}

    def test_a_rotations_missing_token_is_passed_over(self, nights: Nights) -> None:
        night = nights(rotating=True)
        night.missed()
        assert night.run().changes_recovered == 1

    def test_tokens_that_are_all_refused_are_reported_without_being_shown(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_AUTH_TOKEN", "f" * 32)
        report = night.run()
        assert report.errors == ["twilio_token_rejected: status 401"]
        assert AUTH_TOKEN not in json.dumps(asdict(report))

    def test_a_service_that_is_not_there_is_reported(self, nights: Nights) -> None:
        night = nights(messaging_service_sid="MG" + "0" * 32)
        report = night.run()
        assert report.errors == ["twilio_rejected: status 404"]


class TestCalendarOfProof:
    """What is kept of each day's run for the console."""

    def kept(self, night: Night) -> list[tuple[str, tuple[str, ...]]]:
        nights = ledger_nights.Nights(night.study.redis).of("asthma").values()
        return [(each.outcome.value, each.hidden + each.errors) for each in nights]

    def test_a_run_that_saw_everything_is_a_proof(self, night: Night) -> None:
        night.missed()
        night.run()
        assert self.kept(night) == [("proved", ())]

    def test_what_is_not_in_redcap_leaves_the_night_open(self, night: Night) -> None:
        night.study.project.lock_record("1")
        night.received("STOP", 0)
        night.run()
        assert self.kept(night) == [("open", ())]

    def test_what_the_log_hides_makes_it_partly_blind(self, night: Night) -> None:
        night.twilio.first_account.redact_numbers = True
        night.missed()
        night.run()
        assert self.kept(night) == [("partly_blind", ("1 STOPs or STARTs have redacted numbers",))]

    def test_a_failed_run_keeps_its_reason(self, night: Night) -> None:
        night.twilio.fail("503", resource="Messages", times=None)
        report = night.run()
        assert self.kept(night) == [("failed", tuple(report.errors))]

    def test_a_run_that_left_a_gap_or_wrote_nothing_proves_nothing(self, night: Night) -> None:
        night.run(dry_run=True)
        night.run(since=night.study.clock() - timedelta(hours=1))
        assert self.kept(night) == []


class TestRedaction:
    def test_redacted_numbers_are_reported_and_not_guessed(self, night: Night) -> None:
        night.twilio.first_account.redact_numbers = True
        night.missed()
        report = night.run()
        assert (report.outcome, report.redacted_numbers, report.changes_recovered) == ("success", 1, 0)
        assert not report.is_well
        assert "1 STOPs or STARTs have redacted numbers" in night.report_text()

    def test_redacted_bodies_are_reported(self, night: Night) -> None:
        night.twilio.first_account.redact_bodies = True
        night.missed()
        night.missed("thanks", 1)
        report = night.run()
        assert (report.redacted_bodies, report.is_well) == (2, False)
        assert "All 2 texts have no body" in night.report_text()

    def test_one_empty_text_among_others_is_no_redaction(self, night: Night) -> None:
        night.missed("", 0)
        night.missed("thanks", 1)
        report = night.run()
        assert (report.redacted_bodies, report.is_well) == (1, True)

    def test_a_picture_without_words_is_no_redaction(self, night: Night) -> None:
        night.missed("", 0, num_media=1)
        assert night.run().redacted_bodies == 0

    def test_messages_that_cannot_be_placed_are_reported(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Twilio's description allows them; the simulator writes none."""
        dated = twilio_client.message_time
        monkeypatch.setattr(
            message_log, "message_time", lambda each: None if each.body == "STOP" else dated(each)
        )
        night.missed()
        night.missed("thanks", 1)
        report = night.run()
        assert (report.outcome, report.incomplete_messages, report.is_well) == ("success", 1, False)
        assert "1 messages have no date or no SID" in night.report_text()


class TestComparison:
    def test_a_field_that_was_changed_by_hand_is_restored_and_named_in_the_report(self, night: Night) -> None:
        night.received("STOP", 0)
        night.study.project.set_value("1", "sms_opt_out_at", "")
        report = night.run()
        assert night.value() == shown(seconds(0))
        assert (report.records_corrected, report.corrected) == (1, ["1"])
        assert "  record 1\n" in night.report_text()
        assert len(night.changes_told) == 1  # of the STOP itself, long ago

    def test_a_tick_that_was_changed_by_hand_is_restored(self, nights: Nights) -> None:
        night = nights(opt_out_checkbox="sms_opt_out")
        night.received("STOP", 0)
        night.study.project.set_value("1", "sms_opt_out___1", "")
        assert night.run().corrected == ["1"]
        assert night.study.project.value("1", "sms_opt_out___1") == "1"

    def test_a_record_that_was_added_after_the_stop_gets_it(self, night: Night) -> None:
        message = night.received("STOP", 0, from_=fictional_phone(7))
        assert night.state(message) == "no_matching_record"
        night.study.project.add_record("77", mobile=fictional_phone_as_typed(7))
        report = night.run()
        assert night.value("77") == shown(seconds(0))
        assert (report.corrected, night.state(message)) == (["77"], "updated")
        assert night.changes_told == ["[asthma] Opt-out (STOP) saved: record 77"]

    def test_a_record_that_was_renumbered_after_the_stop_gets_it(self, night: Night) -> None:
        night.received("STOP", 0)
        night.study.project.delete_record("1")
        night.study.project.add_record("1001", mobile=fictional_phone_as_typed(1))
        night.run()
        assert night.value("1001") == shown(seconds(0))
        assert night.study.services.index("asthma").records([hashed(PAT)]) == {hashed(PAT): ["1001"]}

    def test_a_record_whose_number_was_changed_is_left_alone(self, night: Night) -> None:
        night.received("STOP", 0)
        night.study.project.set_value("1", "mobile", fictional_phone_as_typed(8))
        night.study.project.set_value("1", "sms_opt_out_at", "")
        report = night.run()
        assert (night.value(), report.records_corrected, report.statuses_without_record) == ("", 0, 1)

    def test_a_write_that_failed_is_tried_again(self, night: Night) -> None:
        night.study.project.lock_record("1")
        message = night.received("STOP", 0)
        assert night.state(message) == "failed"
        night.study.project.locked_records.clear()
        report = night.run()
        assert (night.value(), night.state(message)) == (shown(seconds(0)), "updated")
        assert report.corrected == ["1"]

    def test_a_locked_record_is_reported_as_refused_and_the_run_is_a_success(self, night: Night) -> None:
        night.study.project.lock_record("1")
        night.received("STOP", 0)
        report = night.run()
        assert (report.outcome, report.is_well, report.records_corrected) == ("success", False, 0)
        assert len(report.refused) == 1
        assert report.refused[0].startswith("record 1: sms_opt_out_at: ")
        assert "REDCap refused to change these records" in night.report_text()
        assert night.reports_told == ["[asthma] Nightly reconciliation with Twilio needs attention"]

    def test_of_two_records_of_a_number_only_the_locked_one_is_refused(self, night: Night) -> None:
        night.study.project.add_record("9", mobile=fictional_phone_as_typed(1))
        night.received("STOP", 0)
        night.study.project.set_value("1", "sms_opt_out_at", "")
        night.study.project.set_value("9", "sms_opt_out_at", "")
        night.study.project.lock_record("9")
        report = night.run()
        assert (night.value("1"), night.value("9")) == (shown(seconds(0)), "")
        assert report.corrected == ["1"]
        assert [reason.partition(": ")[0] for reason in report.refused] == ["record 9"]

    def test_many_corrections_are_counted_and_the_first_are_named(self, nights: Nights) -> None:
        night = nights(MOST_RECORDS_NAMED + 5)
        for number in range(1, MOST_RECORDS_NAMED + 6):
            night.study.text(fictional_phone(number), "STOP")
        night.study.work()
        for number in range(1, MOST_RECORDS_NAMED + 6):
            night.study.project.set_value(str(number), "sms_opt_out_at", "")
        report = night.run()
        assert (report.records_corrected, len(report.corrected)) == (
            MOST_RECORDS_NAMED + 5,
            MOST_RECORDS_NAMED,
        )
        assert "  and 5 more\n" in night.report_text()

    def test_redcap_that_is_down_keeps_nothing_of_the_log_from_the_ledger(self, night: Night) -> None:
        message = night.missed()
        night.redcap.faults.add("http_503", times=None)
        report = night.run()
        assert (report.outcome, report.changes_recovered) == ("failure", 1)
        assert report.errors[0].startswith("redcap_server_error")
        assert night.state(message) == "received"
        night.redcap.faults.clear()
        night.study.sweep_later()
        assert night.value() == shown(seconds(0))
        assert len(night.changes_told) == 1

    def test_redcap_that_goes_down_before_the_write_leaves_it_pending_and_says_so(self, night: Night) -> None:
        night.missed()
        night.redcap.faults.add("http_503", kind="import", times=None)
        report = night.run()
        assert (report.outcome, report.still_pending) == ("failure", 1)
        assert "1 changes could not be written yet" in report.errors
        night.redcap.faults.clear()
        night.study.sweep_later()
        assert night.value() == shown(seconds(0))

    def test_a_refused_token_is_shown_as_the_projects_problem(self, night: Night) -> None:
        night.redcap.revoked.add(REDCAP_TOKEN)
        report = night.run()
        assert report.errors[0].startswith("redcap_forbidden")
        assert night.study.problem()["problem"] == "redcap_forbidden"

    def test_a_change_that_comes_while_the_export_runs_is_left_to_its_lookup(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = RedcapProject.read_all
        came: list[Any] = []

        def compared(self: Any, *args: Any) -> Iterator[Any]:
            yield from real(self, *args)
            if came:
                return
            night.study.clock.ahead = timedelta(seconds=1)
            night.study.project.add_record("50", mobile=fictional_phone_as_typed(50))
            came.append(night.study.text(fictional_phone(50)))

        monkeypatch.setattr(RedcapProject, "read_all", compared)
        reconcile("asthma", night.study.services)
        assert night.study.state(came[0]) == "received"
        night.study.work()
        assert night.study.state(came[0]) == "updated"


class TestBlockedMessages:
    @pytest.fixture
    def blocking(self, nights: Nights) -> Night:
        return nights(blocked_messages=True)

    def refuse(self, night: Night, at: float, number: int = 1) -> Message:
        """A text of the study's that Twilio refuses with 21610."""
        night.twilio.block(SERVICE_SID, fictional_phone(number))
        return night.twilio.send_outbound(to=fictional_phone(number), service=SERVICE_SID, at=seconds(at))

    def test_a_refused_text_opts_out_and_is_flagged_as_inferred(self, blocking: Night) -> None:
        message = self.refuse(blocking, 5)
        report = blocking.run()
        assert (report.changes_recovered, blocking.value()) == (1, shown(seconds(5)))
        entry = blocking.study.ledger.load("asthma", message.sid)
        assert entry is not None
        assert entry.source == "blocked_message"

    def test_it_is_not_looked_for_unless_configured(self, night: Night) -> None:
        self.refuse(night, 5)
        assert night.run().changes_recovered == 0
        assert night.value() == ""

    def test_a_refusal_before_a_start_does_not_count(self, blocking: Night) -> None:
        message = self.refuse(blocking, 5)
        blocking.missed("START", 10)
        blocking.run()
        assert (blocking.value(), blocking.state(message)) == ("", "none")

    def test_a_refusal_after_a_start_counts(self, blocking: Night) -> None:
        blocking.received("STOP", 0)
        blocking.missed("START", 10)
        self.refuse(blocking, 20)
        blocking.run()
        assert blocking.value() == shown(seconds(20))

    def test_a_start_to_another_sender_is_known_before_a_refusal_is_judged(self, nights: Nights) -> None:
        twilio = TwilioSimulator()
        twilio.add_sender("+16505550198", service=twilio.services[SERVICE_SID])
        night = nights(twilio=twilio, blocked_messages=True)
        message = self.refuse(night, 5)
        night.missed("START", 10, to="+16505550198", service=None)
        night.run()
        assert (night.value(), night.state(message)) == ("", "none")

    def test_after_a_real_stop_refusals_say_nothing_new(self, blocking: Night) -> None:
        blocking.missed("STOP", 0)
        message = self.refuse(blocking, 20)
        blocking.run()
        assert (blocking.value(), blocking.state(message)) == (shown(seconds(0)), "none")

    def test_many_refused_texts_make_one_event_with_the_first_ones_time(self, blocking: Night) -> None:
        messages = [self.refuse(blocking, at) for at in (5, 10, 15)]
        assert blocking.run().changes_recovered == 1
        assert [blocking.state(message) for message in messages] == ["updated", "none", "none"]
        assert blocking.value() == shown(seconds(5))
        assert blocking.run().changes_recovered == 0

    def test_other_failures_of_delivery_say_nothing(self, blocking: Night) -> None:
        blocking.twilio.add_messages(
            [
                Message(
                    SENDER, PAT, "hi", seconds(0), direction="outbound-api", status="failed", error_code=30003
                )
            ]
        )
        assert blocking.run().changes_recovered == 0

    def test_a_refusal_on_a_channel_that_does_not_count_says_nothing(self, blocking: Night) -> None:
        text = Message(
            SENDER, f"whatsapp:{PAT}", "hi", seconds(0), direction="outbound-api", error_code=21610
        )
        blocking.twilio.add_messages([text])
        assert blocking.run().changes_recovered == 0


class TestDryRun:
    def everything(self, night: Night) -> dict[str, Any]:
        """All that could have changed; the request budget, the structure cache and request counts may."""
        redis, may_change = night.study.redis, (keys.rate(""), keys.structure(""), keys.METRICS)
        dump = {key: redis.dump(key) for key in redis.keys("*") if not key.startswith(may_change)}
        expiries = {key: redis.pttl(key) >= 0 for key in dump}
        records = copy.deepcopy(night.study.project.records)
        return {"redis": dump, "expiries": expiries, "records": records, "mails": list(night.subjects)}

    def troubled(self, nights: Nights) -> Night:
        """A night with something of every kind to do."""
        night = nights(8, blocked_messages=True)
        night.received("STOP", 0, from_=fictional_phone(2))
        night.received("STOP", 10, late=8, from_=fictional_phone(3))
        night.received("STOP", 0, from_=fictional_phone(20))
        night.study.project.set_value("2", "sms_opt_out_at", "")
        night.missed("STOP", 1)
        night.missed("START", 15, from_=fictional_phone(3))
        night.missed("STOP", 5, from_=fictional_phone(30))
        night.twilio.block(SERVICE_SID, fictional_phone(4))
        night.twilio.send_outbound(to=fictional_phone(4), service=SERVICE_SID, at=seconds(3))
        night.study.project.add_record("21", mobile=fictional_phone_as_typed(20))
        return night

    def test_it_changes_nothing_anywhere(self, nights: Nights) -> None:
        night = self.troubled(nights)
        before = self.everything(night)
        night.run(dry_run=True)
        assert self.everything(night) == before

    def test_it_says_what_the_run_then_does(self, nights: Nights) -> None:
        night = self.troubled(nights)
        rehearsed, done = night.run(dry_run=True), night.run()
        told = asdict(rehearsed) | {"dry_run": False, "since": done.since, "would_set": [], "would_clear": []}
        assert told == asdict(done)
        assert (rehearsed.would_set, rehearsed.would_clear) == (["1", "2", "4", "21"], ["3"])
        assert (done.changes_recovered, done.corrected) == (4, ["2", "21"])

    def test_it_rehearses_two_webhooks_in_the_wrong_order(self, night: Night) -> None:
        start, stop = night.missed("START", 5), night.missed("STOP", 0)
        night.study.text(PAT, "START", event_id=start.sid, received=seconds(6))
        night.study.text(PAT, "STOP", event_id=stop.sid, received=seconds(8))
        night.twilio.fail("503", resource="Message", times=None)
        night.study.work()
        night.twilio.faults.clear()
        assert [night.run(dry_run=dry).changes_recovered for dry in (True, True, False, True)] == [1, 1, 1, 0]

    def test_it_rehearses_a_start_missed_between_two_stops(self, night: Night) -> None:
        night.received("STOP", 0)
        night.missed("START", 60)
        night.received("STOP", 120)
        assert night.run(dry_run=True).corrected == ["1"]
        assert night.value() == shown(seconds(0))

    def test_it_notes_no_failure_either(self, night: Night) -> None:
        night.redcap.revoked.add(REDCAP_TOKEN)
        night.twilio.fail("503", times=None)
        report = night.run(dry_run=True)
        assert (report.outcome, len(report.errors)) == ("failure", 2)
        assert (night.noted(), night.study.problem(), night.subjects) == ({}, {}, [])


class TestOneAtATime:
    def test_a_run_beside_another_is_skipped(self, night: Night) -> None:
        night.missed()
        with try_lock(night.study.redis, "reconcile:asthma") as acquired:
            assert acquired
            assert night.run().outcome == "skipped"
        assert (night.value(), night.noted()) == ("", {})

    def test_two_beats_start_one_nightly_run(self, night: Night) -> None:
        assert [night.run(nightly=True).outcome for _ in range(2)] == ["success", "skipped"]

    def test_a_run_by_hand_is_not_skipped(self, night: Night) -> None:
        night.run(nightly=True)
        assert night.run().outcome == "success"

    def test_the_next_nights_run_is_not_skipped(self, night: Night) -> None:
        night.run(nightly=True)
        night.study.clock.ahead = timedelta(hours=23)
        assert night.run(nightly=True).outcome == "success"


class TestReport:
    def test_a_quiet_night_sends_no_mail(self, night: Night) -> None:
        night.received("STOP", 0)
        mails = len(night.subjects)
        report = night.run()
        assert (report.is_well, len(night.subjects)) == (True, mails)

    def test_a_night_with_corrections_sends_one(self, night: Night) -> None:
        night.missed()
        night.run()
        assert night.reports_told == ["[asthma] Nightly reconciliation with Twilio restored what differed"]
        mail = next(mail for mail in night.study.mailer.sent if "Nightly" in mail["Subject"])
        assert (mail["To"], mail["Auto-Submitted"]) == (NOTIFIED, "auto-generated")
        assert mail["Date"]
        assert mail["Message-ID"].endswith("@example.edu>")

    def test_nobody_is_told_where_nobody_wants_to_know(self, nights: Nights) -> None:
        night = nights(notify=[])
        night.missed()
        night.run()
        assert night.subjects == []

    def test_a_lasting_failure_is_mailed_once_a_day(self, night: Night) -> None:
        night.twilio.fail("503", times=None)
        for hour in range(26):
            night.study.clock.ahead = timedelta(hours=hour)
            night.run()
        hours = FAILURE_MAIL_EVERY_MS // 3_600_000
        assert hours == 20
        assert len(night.reports_told) == 2

    def test_a_failure_whose_mail_failed_is_mailed_by_the_next_run(self, night: Night) -> None:
        night.twilio.fail("503", times=None)
        night.study.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
        night.run()
        night.run()
        assert len(night.reports_told) == 1

    def test_a_report_that_the_mail_server_defers_is_sent_later_once(self, night: Night) -> None:
        night.missed()
        night.study.mailer.errors.extend(MailDeferred("smtp_deferred", "code 451") for _ in range(3))
        night.run()
        told = "[asthma] Nightly reconciliation with Twilio restored what differed"
        assert told not in night.reports_told
        for minutes in (2, 10, 30, 60):
            night.study.sweep_later(minutes=minutes)
        assert night.reports_told == [told]
        mail = next(mail for mail in night.study.mailer.sent if mail["Subject"] == told)
        assert mail["Message-ID"].endswith("@example.edu>")
        assert not night.study.redis.exists(keys.report_mails("asthma"))
        assert not [each for each in night.study.redis.zrange(keys.DUE, 0, -1) if "report:" in each]

    def test_a_recipient_of_the_report_who_is_deferred_receives_it_later_alone(self, nights: Nights) -> None:
        night = nights(notify=["a@example.edu", "b@example.edu"])
        night.missed()
        night.study.mailer.defers = ["b@example.edu"]
        night.run()
        night.study.mailer.defers = []
        for minutes in (2, 10):
            night.study.sweep_later(minutes=minutes)
        reports = [
            to
            for mail, to in zip(night.study.mailer.sent, night.study.mailer.sent_to, strict=True)
            if "Nightly" in mail["Subject"]
        ]
        assert reports == [("a@example.edu",), ("b@example.edu",)]

    def test_a_report_is_abandoned_after_a_week_of_deferral(self, night: Night) -> None:
        night.missed()
        night.study.mailer.errors.extend(MailDeferred("smtp_deferred", "code 451") for _ in range(99))
        night.run()
        with capture_logs() as logs:
            night.send_waiting_reports(days=8)
        assert [line["log_level"] for line in logs if line["event"] == "report_not_mailed"] == ["error"]
        assert night.study.redis.hget(keys.METRICS, "mails|asthma|report|given up") == "1"
        assert not night.study.redis.exists(keys.report_mails("asthma"))

    def test_failures_of_nights_without_mail_server_are_one_report(self, night: Night) -> None:
        night.twilio.fail("503", times=None)
        night.study.mailer.errors.extend(MailDeferred("smtp_deferred", "code 451") for _ in range(5))
        for hour in range(5):
            night.study.clock.ahead = timedelta(hours=hour)
            night.run()
        assert night.study.redis.hlen(keys.report_mails("asthma")) == 1
        night.send_waiting_reports(hours=5)
        assert len(night.reports_told) == 1

    def test_a_report_that_some_addresses_refused_is_no_success(self, night: Night) -> None:
        night.twilio.fail("503", times=None)
        night.study.mailer.refuses = ["gone@example.edu"]
        with capture_logs() as logs:
            night.run()
            night.run()
        assert len(night.reports_told) == 1
        counted = night.study.redis.hget(keys.METRICS, "mails|asthma|report|partly rejected")
        assert counted == "1"
        [line] = [line for line in logs if line["event"] == "report_mailed_in_part"]
        assert (line["log_level"], line["outcome"]) == ("error", "partly rejected: 1 of 1 addresses")

    def test_outcome_and_report_are_noted_for_the_metrics(self, night: Night) -> None:
        night.run()
        figures = {"log_covered", "refused", "delivered", "block_faults"}
        assert night.noted().keys() == {"success_ms", "watermark_ms", "report", *figures}
        night.twilio.fail("503", times=None)
        night.run()
        assert "failure_ms" in night.noted()
        assert json.loads(night.noted()["report"])["outcome"] == "failure"

    def test_one_log_line_tells_the_counts(self, night: Night) -> None:
        night.missed()
        with capture_logs() as lines:
            night.run()
        told = [line for line in lines if line["event"] == "reconciled"]
        assert len(told) == 1
        assert (told[0]["project"], told[0]["changes_recovered"], told[0]["outcome"]) == (
            "asthma",
            1,
            "success",
        )

    def test_nothing_personal_is_in_result_ledger_log_or_mails(self, nights: Nights) -> None:
        night = nights(blocked_messages=True)
        night.missed("Unsubscribe")
        night.missed("my secret words", 1)
        night.missed(at=2, from_=fictional_phone(9))
        night.study.project.lock_record("1")
        with capture_logs() as lines:
            report = night.run()
        redis = night.study.redis
        kept = "".join(str(redis.dump(key)) for key in redis.keys("*"))
        told = "".join(str(mail) for mail in night.study.mailer.sent)
        everything = json.dumps(asdict(report)) + kept + told + json.dumps(lines, default=str)
        for private in (
            "6505550001",
            "555-0001",
            "6505550009",
            "secret words",
            "Unsubscribe",
            "Participant",
            AUTH_TOKEN,
        ):
            assert private not in everything

    def test_reasons_beyond_what_a_mail_bears_are_counted(self) -> None:
        report = Report(project="asthma", refused=[f"record {number}: locked" for number in range(30)])
        text = compose_report(report, [NOTIFIED], sender="optout-bridge@example.edu").as_string()
        assert "  and 10 more\n" in text

    def test_what_only_the_operator_can_fix_is_left_to_the_operator(self, night: Night) -> None:
        operator = Operator(notify=["research-it@example.edu"])
        config_ = night.study.services.config
        night.study.services.config = config_.model_copy(update={"operator": operator})
        night.twilio.fail("503", times=None)
        assert night.run().outcome == "failure"
        assert night.study.mailer.sent == []
        report = Report(
            project="asthma", outcome="failure", refused=["record 7: locked"], errors=["twilio_unavailable: 503"],
            redacted_numbers=2,
        )  # fmt: skip
        mail = compose_report(report, [NOTIFIED], sender="bridge@example.edu", operator_notified=True)
        text = " ".join(str(mail.get_body(("plain",)).get_content()).split())  # type: ignore[union-attr]
        assert "record 7: locked" in text
        assert "does not prove that no opt-out was missed" in text
        for technical in ("twilio_unavailable", "redacted"):
            assert technical not in text

    def test_a_run_that_breaks_off_is_noted_as_a_failure_without_its_text(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def breaks(*_: Any) -> None:
            raise RuntimeError("+16505550001")

        monkeypatch.setattr(module, "update_records", breaks)
        night.missed()
        with pytest.raises(RuntimeError):
            night.run()
        assert "failure_ms" in night.noted()
        assert json.loads(night.noted()["report"])["errors"] == ["the run broke off: RuntimeError"]
        assert night.study.redis.exists(keys.lock("reconcile:asthma")) == 0


class TestCatchingUp:
    """Sweep starts a run that was missed, because beat was down at its time or the last run failed."""

    def started(self, night: Night, **ahead: float) -> int:
        night.study.clock.ahead += timedelta(**ahead)
        sweep(night.study.services)
        runs = len(night.study.published.of(TaskName.RECONCILE))
        night.study.published.messages.clear()
        return runs

    def test_a_run_that_is_overdue_is_started_once(self, night: Night) -> None:
        night.run()
        assert self.started(night, hours=25) == 0
        assert (
            self.started(night, milliseconds=ledger_nights.RECONCILE_OVERDUE_MS - 25 * 3_600_000 + 1000) == 1
        )
        assert self.started(night, minutes=1) == 0

    def test_a_failed_run_is_tried_again_after_an_hour(self, night: Night) -> None:
        night.run()
        night.twilio.fail("503", times=None)
        night.study.clock.ahead = timedelta(hours=30)
        night.run()
        assert self.started(night, minutes=30) == 0
        assert self.started(night, milliseconds=RECONCILE_AGAIN_MS) == 1

    def test_before_the_first_run_nothing_is_overdue(self, night: Night) -> None:
        assert self.started(night, days=3) == 0


class TestCommand:
    def invoke(self, night: Night, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
        monkeypatch.setattr(command, "make_services", lambda: night.study.services)
        with capture_logs():  # the command's own settings send them to standard error
            return CliRunner().invoke(command.reconcile, arguments)

    def test_json_is_an_array_of_reports(self, night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
        night.missed()
        result = self.invoke(night, monkeypatch, "--json")
        assert result.exit_code == 0
        assert [(report["project"], report["changes_recovered"]) for report in json.loads(result.stdout)] == [
            ("asthma", 1)
        ]

    def test_elsewhere_than_on_a_terminal_there_are_plain_lines_and_no_progress_bar(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        night.missed()
        result = self.invoke(night, monkeypatch)
        assert result.stdout.split("\t")[:4] == ["asthma", "success", "1", "1"]
        assert result.stderr == ""

    def test_since_is_a_day_in_the_projects_zone(
        self, nights: Nights, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        night = nights(time_zone="Asia/Tokyo")
        day = datetime.now(ZoneInfo("Asia/Tokyo")).date() - timedelta(days=3)
        midnight = datetime.fromisoformat(f"{day - timedelta(days=1)}T15:00:00Z")
        for late in (-1, 0, 1):
            night.missed("thanks", at=(midnight - BEGIN).total_seconds() + late)
        result = self.invoke(night, monkeypatch, "--since", day.isoformat(), "--json")
        (report,) = json.loads(result.stdout)
        assert (datetime.fromisoformat(report["since"]), report["messages_read"]) == (midnight, 2)

    def test_since_is_limited_to_what_twilio_keeps(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        result = self.invoke(night, monkeypatch, "--since", "2001-01-31", "--json")
        since = datetime.fromisoformat(json.loads(result.stdout)[0]["since"])
        assert datetime.now(UTC) - since <= TWILIO_KEEPS + timedelta(minutes=1)

    @pytest.mark.parametrize("day", ["2999-01-01", "yesterday", "31.01.2026"])
    def test_a_day_that_is_none_or_to_come_is_refused(
        self, night: Night, monkeypatch: pytest.MonkeyPatch, day: str
    ) -> None:
        result = self.invoke(night, monkeypatch, "--since", day)
        assert result.exit_code == 2
        assert "--since" in result.stderr

    def test_an_unknown_project_is_refused(self, night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
        result = self.invoke(night, monkeypatch, "--project", "sleep")
        assert result.exit_code == 2
        assert "configured are: asthma" in result.stderr

    def test_the_exit_code_is_1_when_something_is_wrong(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        night.twilio.fail("503", times=None)
        result = self.invoke(night, monkeypatch)
        assert result.exit_code == 1
        assert "twilio_server_error: status 503" in result.stdout

    def test_hidden_texts_are_wrong_too(self, night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
        night.twilio.first_account.redact_bodies = True
        night.missed()
        result = self.invoke(night, monkeypatch)
        assert (result.exit_code, "all 1 texts without body" in result.stdout) == (1, True)

    def test_a_run_beside_another_ends_with_1_and_says_why(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with try_lock(night.study.redis, "reconcile:asthma"):
            result = self.invoke(night, monkeypatch)
        assert (result.exit_code, "another run is under way" in result.stdout) == (1, True)

    def test_a_dry_run_ends_with_1_where_there_is_something_to_mend(
        self, night: Night, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.invoke(night, monkeypatch, "--dry-run").exit_code == 0
        night.missed()
        result = self.invoke(night, monkeypatch, "--dry-run")
        assert (result.exit_code, "success (dry run)" in result.stdout) == (1, True)
        assert night.value() == ""
