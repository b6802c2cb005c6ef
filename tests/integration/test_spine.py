"""From a signed webhook to REDCap and the inbox, through real processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
import requests

from shared.ledger import keys
from shared.messaging.tasks import QUEUES, TaskName
from tests.integration.world import SENDER_ADDRESS, STUDIES, World
from tests.processes import BIN, Process, wait_until

FORMAT = "%Y-%m-%d %H:%M:%S"


def seconds_ago(shown: str, zone: str) -> float:
    """How long ago a time is that REDCap shows."""
    return time.time() - datetime.strptime(shown, FORMAT).replace(tzinfo=ZoneInfo(zone)).timestamp()


class TestOneParticipant:
    def test_a_stop_reaches_redcap_and_the_team_and_a_start_takes_it_back(self, world: World) -> None:
        someone = world.enrol()
        stop = world.text(someone.phone)
        assert (stop.status, stop.content_type, stop.replies) == (200, "text/xml; charset=utf-8", ())
        entry = world.ended(stop)
        assert (entry.state, entry.records, entry.mail) == ("updated", (someone.record,), "sent")
        assert -1 <= seconds_ago(world.value(someone), "America/Los_Angeles") < 60
        assert world.value(someone, name="sms_opt_out___1") == "1"
        [mail] = world.mails_about(stop)
        assert (mail.sender, mail.recipients) == (SENDER_ADDRESS, ("asthma@example.edu",))
        assert mail.subject == f"[asthma] Opt-out (STOP) saved: record {someone.record}"

        start = world.text(someone.phone, "START")
        entry = world.ended(start)
        assert (entry.state, entry.reason) == ("updated", "")
        assert (world.value(someone), world.value(someone, name="sms_opt_out___1")) == ("", "0")
        assert [mail.subject for mail in world.mails_about(start)] == [
            f"[asthma] Opt-in (START) saved: record {someone.record}"
        ]

    def test_the_mail_can_be_read_in_plain_text_and_html(self, world: World) -> None:
        someone = world.enrol()
        stop = world.text(someone.phone)
        world.ended(stop)
        [mail] = world.mails_about(stop)
        for text in (mail.text, mail.html):
            assert someone.record in text
            assert "sms_opt_out_at" in text
            assert stop.message.sid in text

    def test_a_redelivered_webhook_changes_nothing_and_sends_no_second_mail(self, world: World) -> None:
        someone = world.enrol()
        stop = world.text(someone.phone)
        world.ended(stop)
        shown = world.value(someone)
        answers = [world.twilio.send(stop.request).status for _ in range(3)]
        assert answers == [200, 200, 200]
        later = world.text(world.enrol().phone)
        world.ended(later)
        assert world.value(someone) == shown
        assert len(world.mails_about(stop)) == 1

    def test_a_second_stop_keeps_the_first_time_and_tells_nobody(self, world: World) -> None:
        someone = world.enrol()
        world.ended(world.text(someone.phone))
        shown = world.value(someone)
        again = world.text(someone.phone, "Unsubscribe")
        assert world.ended(again).state == "already_current"
        assert (world.value(someone), world.mails_about(again)) == (shown, [])

    def test_a_forged_webhook_changes_nothing(self, world: World) -> None:
        someone, other = world.enrol(), world.enrol()
        genuine = world.text(someone.phone, "see you tomorrow")
        forged = replace(genuine.request, body=genuine.request.body.replace(b"see+you+tomorrow", b"STOP"))
        assert world.twilio.send(forged).status == 403
        unsigned = replace(genuine.request, headers={"Content-Type": "application/x-www-form-urlencoded"})
        assert world.twilio.send(unsigned).status == 403
        world.ended(world.text(other.phone))
        assert world.value(someone) == ""
        assert world.entry(genuine) is None

    def test_help_and_other_texts_are_answered_and_ignored(self, world: World) -> None:
        someone = world.enrol()
        for body in ("HELP", "7", "see you tomorrow"):
            texted = world.text(someone.phone, body)
            assert (texted.status, texted.replies) == (200, ())
            assert world.entry(texted) is None

    def test_a_stop_by_event_streams_is_recorded_with_twilio_s_time(self, world: World) -> None:
        someone = world.enrol()
        texted = world.text(someone.phone, via="events")
        assert [exchange.status for exchange in texted.events] == [200]
        entry = world.ended(texted)
        assert (entry.state, entry.source) == ("updated", "event_stream")
        assert abs((entry.occurred_at - texted.message.at).total_seconds()) < 0.002

    def test_the_same_message_by_webhook_and_event_streams_counts_once(self, world: World) -> None:
        someone = world.enrol()
        texted = world.text(someone.phone, via="both")
        assert world.ended(texted).state == "updated"
        assert len(world.mails_about(texted)) == 1


class TestShapesOfProjects:
    def test_several_records_with_one_number_in_different_spellings_are_all_written(
        self, world: World
    ) -> None:
        someone = world.enrol(style="({}) {}-{}")
        area, exchange, line = someone.phone[2:5], someone.phone[5:8], someone.phone[8:]
        for suffix, style in (("b", "+1 {} {} {}"), ("c", "{}.{}.{}"), ("d", "1-{}-{}-{}")):
            world.study().add_record(someone.record + suffix, mobile=style.format(area, exchange, line))
        stop = world.text(someone.phone)
        entry = world.ended(stop)
        ids = [someone.record + suffix for suffix in ("", "b", "c", "d")]
        assert sorted(entry.records) == ids
        assert "" not in {world.study().value(record, "sms_opt_out_at") for record in ids}
        [mail] = world.mails_about(stop)
        assert all(record in mail.text for record in ids)

    def test_a_longitudinal_project_is_written_at_its_event_in_its_time_zone(self, world: World) -> None:
        someone = world.enrol("sleep")
        stop = world.text(someone.phone, project="sleep")
        assert world.ended(stop, "sleep").state == "updated"
        shown = world.study("sleep").value(someone.record, "sms_opt_out_at", event="enrolment_arm_1")
        assert -1 <= seconds_ago(shown, "America/Chicago") < 60

    def test_a_number_in_a_repeating_form_opts_the_record_out(self, world: World) -> None:
        family = world.study("family")
        someone = world.enrol("family")
        *_, second = world.new_phone()
        family.set_value(someone.record, "mobile", second, instance=2)
        stop = world.text(second, project="family")
        assert world.ended(stop, "family").records == (someone.record,)
        assert family.value(someone.record, "sms_opt_out_at") != ""

    def test_two_projects_on_one_messaging_service_both_get_the_change(self, world: World) -> None:
        someone = world.enrol("north")
        world.study("south").add_record("S1", mobile=someone.phone)
        stop = world.text(someone.phone, project="north")
        assert [world.ended(stop, name).state for name in ("north", "south")] == ["updated", "updated"]
        assert world.value(someone, "north") != ""
        assert world.study("south").value("S1", "sms_opt_out_at") != ""
        assert {mail.recipients for mail in world.mails_about(stop)} == {
            ("north@example.edu",), ("south@example.edu",),
        }  # fmt: skip

    def test_a_number_that_no_record_holds_is_told_and_written_once_a_record_is_added(
        self, world: World
    ) -> None:
        *_, phone = world.new_phone()
        stop = world.text(phone)
        assert world.ended(stop).state == "no_matching_record"
        [mail] = world.mails_about(stop)
        assert mail.subject == "[asthma] Opt-out (STOP) from a number that no record holds"
        assert phone[2:] not in mail.text
        record = f"late{phone[-4:]}"
        world.study().add_record(record, mobile=phone)
        # The next use of the index brings it up to date; the new record is then written by itself.
        world.ended(world.text(world.enrol().phone))
        wait_until(
            lambda: world.study().value(record, "sms_opt_out_at"),
            seconds=40,
            what="the new record is written",
        )
        wait_until(lambda: world.ended(stop).state == "updated", what="the event is updated")


class TestProblems:
    def test_a_date_only_field_is_reported_its_stops_are_kept_and_other_projects_go_on(
        self, world: World
    ) -> None:
        someone, other = world.enrol("dateonly"), world.enrol()
        problem = wait_until(
            lambda: (
                requests.get(f"{world.platform.web_url}/readyz", timeout=5).json()["projects"].get("dateonly")
            ),
            what="the problem is seen at the worker's start",
        )
        assert requests.get(f"{world.platform.web_url}/readyz", timeout=5).status_code == 503
        assert problem["problem"] == "opt_out_field_holds_no_time"
        assert "set it to datetime_seconds_ymd" in problem["detail"]
        assert "opt_out_field_holds_no_time" in world.platform["worker"].text()

        kept, written = world.text(someone.phone, project="dateonly"), world.text(other.phone)
        assert (kept.status, world.ended(written).state) == (200, "updated")
        entry = world.entry(kept, "dateonly")
        assert entry is not None
        assert entry.state in {"received", "pending"}
        assert world.value(someone, "dateonly") == ""

        world.study("dateonly").change_field("sms_opt_out_at", validation="datetime_ymd")

        def swept() -> bool:
            world.publish(TaskName.SWEEP)
            found = world.entry(kept, "dateonly")
            return found is not None and found.state == "updated"

        wait_until(swept, seconds=60, what="the kept STOP is written")
        assert len(world.value(someone, "dateonly")) == len("2026-05-04 12:00")
        wait_until(lambda: world.mails_about(kept), what="it is told")
        ready = requests.get(f"{world.platform.web_url}/readyz", timeout=5)
        assert (ready.status_code, ready.json()["projects"]) == (200, {})

    def test_a_refused_record_is_told_and_can_be_replayed_after_the_mend(self, world: World) -> None:
        someone = world.enrol()
        world.study().lock_record(someone.record)
        stop = world.text(someone.phone)
        entry = world.ended(stop)
        assert entry.state == "failed"
        failed = {event["event_id"]: event for event in world.optout("events", "--state", "failed")}
        assert failed[stop.message.sid]["records"] == [someone.record]
        world.study().locked_records.clear()
        assert "replayed" in world.platform.run("replay", "--failed").stdout
        wait_until(lambda: world.value(someone), what="the replayed STOP is written")
        wait_until(lambda: len(world.mails_about(stop)) == 2, what="both mails have come")
        assert [mail.subject for mail in world.mails_about(stop)] == [
            f"[asthma] Opt-out (STOP) could NOT be saved: record {someone.record}",
            f"[asthma] Opt-out (STOP) saved: record {someone.record}",
        ]


class TestCommandLine:
    def test_events_and_status_show_what_happened(self, world: World) -> None:
        someone = world.enrol()
        stop = world.text(someone.phone)
        world.ended(stop)
        shown = {event["event_id"]: event for event in world.optout("events")}
        event = shown[stop.message.sid]
        assert (event["project"], event["change"], event["state"]) == ("asthma", "STOP", "updated")
        assert (event["records"], event["source"], event["reason"]) == ([someone.record], "webhook", "")
        by_project = {item["project"]: item for item in world.optout("status", someone.phone)}
        assert by_project["asthma"]["status"] == "opted_out"
        assert by_project["sleep"]["status"] == "unknown"

    def test_an_unknown_event_cannot_be_replayed(self, world: World) -> None:
        result = world.platform.run("replay", "SM" + "f" * 32, check=False)
        assert (result.returncode, "see optout events" in result.stderr) == (1, True)

    def test_without_redis_the_command_says_what_to_look_at(self, world: World) -> None:
        result = world.platform.run("events", check=False, OPTOUT_REDIS_URL="redis://127.0.0.1:9/0")
        assert result.returncode == 2
        assert "is OPTOUT_REDIS_URL right?" in result.stderr


class TestWorkers:
    @pytest.fixture
    def second_worker(self, world: World) -> Iterator[Process]:
        command = [str(BIN / "celery"), "-A", "worker.celery_app", "worker", "-n", "second@%h"]
        worker = Process("second-worker", command, env=world.platform.env, folder=world.platform.folder)
        worker.start()
        try:
            wait_until(lambda: " ready." in worker.text(), seconds=60, what="the second worker is ready")
            yield worker
        finally:
            worker.stop()

    def test_two_workers_share_the_work_with_one_updater_at_a_time(
        self, world: World, second_worker: Process
    ) -> None:
        people = [world.enrol() for _ in range(40)]
        first = len(world.redcap.requests)
        stops = [world.text(person.phone) for person in people]
        entries = [world.ended(stop, seconds=60) for stop in stops]
        assert {entry.state for entry in entries} == {"updated"}
        assert "" not in {world.value(person) for person in people}
        assert [len(world.mails_about(stop)) for stop in stops] == [1] * 40
        token = STUDIES["asthma"][0]
        imports = [r for r in world.redcap.requests[first:] if r.kind == "import" and r.token == token]
        assert len(imports) < 40
        ends = [request.at + request.seconds for request in imports]
        assert all(begin.at >= end for begin, end in zip(imports[1:], ends, strict=False)), (
            "two imports at once"
        )

    def test_sweep_recovers_the_work_of_a_lost_queue(self, world: World) -> None:
        someone = world.enrol()
        redis = world.platform.redis
        world.platform["worker"].stop()
        try:
            stop = world.text(someone.phone)
            assert stop.status == 200
            lost = redis.delete(*QUEUES.values(), "unacked", "unacked_index")
            assert lost >= 1
            redis.zadd(keys.DUE, {f"lookup|asthma|{stop.message.sid}": 0}, xx=True)  # the minute is over
        finally:
            # Its log holds the first start's words, too: wait for a second "ready".
            started = world.platform["worker"].text().count(" ready.")
            world.platform["worker"].start()
        wait_until(
            lambda: world.platform["worker"].text().count(" ready.") > started,
            seconds=60,
            what="worker is back",
        )
        assert world.ended(stop, seconds=30).state == "updated"
        assert len(world.mails_about(stop)) == 1

    def test_stops_that_come_while_the_worker_is_away_are_written_when_it_is_back(self, world: World) -> None:
        people = [world.enrol() for _ in range(3)]
        worker = world.platform["worker"]
        worker.kill()
        stops = [world.text(person.phone) for person in people]
        worker.start()
        assert {world.ended(stop, seconds=60).state for stop in stops} == {"updated"}
        assert [len(world.mails_about(stop)) for stop in stops] == [1, 1, 1]

    def test_beat_publishes_the_sweep_each_minute(self, world: World) -> None:
        beat = world.platform["beat"]
        wait_until(lambda: "Sending due task sweep" in beat.text(), seconds=100, what="beat has sent a sweep")
