"""`optout test-message`: what it shows, what it refuses, and that it leaves everything as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from werkzeug.serving import make_server

from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Change
from shared.errors import MailRejected
from shared.ledger import keys
from shared.ledger.work.locks import try_lock
from shared.messaging.tasks import TaskName
from tests import builders
from tests.fakes import Study, at_once, study
from tests.simulators.redcap import classic_study, enrol, longitudinal_study
from web.app import build_services, create_app
from worker.checks.end_to_end import (
    TEST_NUMBER,
    EndToEndTest,
    EndToEndTestFailed,
    EndToEndTestRefused,
    Via,
)

AS_TYPED = "(650) 555-0100"


@dataclass
class Bench:
    """A web process whose tasks are done before it answers, and the stages that were shown."""

    study: Study
    url: str
    stages: list[tuple[Change, str]] = field(default_factory=list)
    works: bool = True

    def publish(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self.study.published(task, *args, delay_seconds=delay_seconds)
        if self.works:
            self.study.work()

    def rehearsal(self, **more: Any) -> EndToEndTest:
        def show(change: Change, milliseconds: float, stage: str) -> None:
            assert milliseconds >= 0
            self.stages.append((change, stage))

        settings = {"number": TEST_NUMBER, "url": self.url, "timeout_seconds": 0.3, **more}
        return EndToEndTest(project="asthma", services=self.study.services, show=show, **settings)

    def run(self, *, force: bool = False, **more: Any) -> None:
        rehearsal = self.rehearsal(**more)
        rehearsal.prepare(force=force)
        rehearsal.run()


def _bench(asthma: Study) -> Iterator[Bench]:
    bench = Bench(asthma, "")
    app = create_app(build_services(asthma.config, asthma.redis, bench.publish, schedule=at_once))
    server = make_server("127.0.0.1", 0, app, threaded=False)
    bench.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield bench
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    project = classic_study()
    project.add_record("TEST", mobile=AS_TYPED)
    enrol(project, 2)
    yield from _bench(study(project, opt_out_checkbox="sms_opt_out"))


def traces(bench: Bench) -> dict[str, Any]:
    """What a run must leave as it was."""
    redis = bench.study.redis
    return {
        "record": dict(bench.study.project.records["TEST"]),
        "status": redis.hgetall(keys.status("asthma")),
        "pending": redis.zrange(keys.pending("asthma"), 0, -1),
        "intents": redis.hgetall(keys.intents("asthma")),
        "unfinished": redis.zrange(keys.unfinished("asthma"), 0, -1),
    }


def value(bench: Bench, name: str = "sms_opt_out_at") -> str:
    return bench.study.project.value("TEST", name)


@pytest.mark.parametrize("via", Via)
def test_a_stop_and_a_start_go_to_the_record_and_back(bench: Bench, via: Via) -> None:
    bench.run(via=via)
    expected = ["answered 200", "stored", "record found", "written to REDCap"]
    shown = [stage for change, stage in bench.stages if change is Change.STOP]
    assert shown == [
        *expected,
        "read back: record TEST shows the opt-out",
        "e-mail handed to the mail server",
    ]
    shown = [stage for change, stage in bench.stages if change is Change.START]
    assert shown == [*expected, "read back: record TEST shows none", "e-mail handed to the mail server"]
    assert len(bench.study.mailer.sent) == 2


def test_afterwards_record_and_ledger_are_as_they_were(bench: Bench) -> None:
    bench.run()
    assert (value(bench), value(bench, "sms_opt_out___1")) == ("", "0")
    before = traces(bench)
    bench.run()
    assert traces(bench) == before
    assert before["status"] == {}


def test_an_earlier_start_is_remembered_as_before(bench: Bench) -> None:
    event = bench.study.text(TEST_NUMBER, "START")
    bench.study.work()
    before = traces(bench)
    bench.run()
    assert traces(bench) == before
    assert event.event_id in str(before["status"])


def test_its_events_can_be_told_from_real_ones(bench: Bench) -> None:
    bench.run()
    ids = bench.study.redis.zrange(keys.events("asthma"), 0, -1)
    assert [id_.startswith(TEST_SID_PREFIX) and len(id_) == 34 for id_ in ids] == [True, True]


def test_it_tries_the_words_where_the_project_reads_them() -> None:
    project = classic_study()
    project.add_record("TEST", mobile=AS_TYPED)
    for bench in _bench(study(project, keyword_fallback=True)):
        bench.run()
        assert bench.stages[-1] == (Change.START, "e-mail handed to the mail server")


def test_where_mails_are_gathered_it_does_not_wait_for_one() -> None:
    project = classic_study()
    project.add_record("TEST", mobile=AS_TYPED)
    for bench in _bench(study(project, notify_digest="1h")):
        bench.run()
        assert bench.stages[-1] == (Change.START, "e-mail gathered for the project's digest")


def test_it_knows_longitudinal_projects() -> None:
    project = longitudinal_study()
    project.add_record("TEST", mobile=AS_TYPED)
    events = {"phone_event": "enrolment_arm_1", "opt_out_event": "enrolment_arm_1"}
    for bench in _bench(study(project, **events)):
        project.set_value("TEST", "sms_opt_out_at", "2026-01-01 10:00:00")
        bench.run(force=True)
        assert value(bench) == "2026-01-01 10:00:00"


class TestRefusals:
    def test_a_number_that_no_record_holds(self, bench: Bench) -> None:
        with pytest.raises(EndToEndTestRefused, match="add a record for tests"):
            bench.rehearsal(number="+16505550111").prepare()

    def test_a_number_whose_record_shows_an_opt_out(self, bench: Bench) -> None:
        bench.study.project.set_value("TEST", "sms_opt_out_at", "2026-01-01 10:00:00")
        with pytest.raises(EndToEndTestRefused, match="opted out at present"):
            bench.rehearsal().prepare()

    def test_a_number_whose_opt_out_is_on_its_way(self, bench: Bench) -> None:
        bench.study.text(TEST_NUMBER)
        with pytest.raises(EndToEndTestRefused, match="opted out at present"):
            bench.rehearsal().prepare()

    def test_a_number_that_a_project_on_the_same_service_holds_too(self) -> None:
        first, second = classic_study(), classic_study("Sleep")
        first.add_record("TEST", mobile=AS_TYPED)
        second.add_record("9", mobile=AS_TYPED)
        tables = {
            "asthma": builders.project_table(),
            "sleep": builders.project_table(redcap_token="env:OTHER_TOKEN"),
        }
        for bench in _bench_of_two(tables, first, second):
            with pytest.raises(EndToEndTestRefused, match="records of sleep, which shares"):
                bench.rehearsal().prepare()

    def test_nothing_is_sent_before_it_is_known_to_be_safe(self, bench: Bench) -> None:
        bench.rehearsal().prepare()
        assert bench.study.redis.zcard(keys.events("asthma")) == 0


def _bench_of_two(tables: dict[str, Any], first: Any, second: Any) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("OTHER_TOKEN", "B" * 32)
        projects = {builders.REDCAP_TOKEN: first, "B" * 32: second}
        yield from _bench(Study(builders.config(tables), projects))


def test_a_project_on_the_same_service_is_left_without_traces() -> None:
    first, second = classic_study(), classic_study("Sleep")
    first.add_record("TEST", mobile=AS_TYPED)
    enrol(second, 1)
    tables = {
        "asthma": builders.project_table(),
        "sleep": builders.project_table(redcap_token="env:OTHER_TOKEN"),
    }
    for bench in _bench_of_two(tables, first, second):
        bench.run()
        assert bench.study.redis.hgetall(keys.status("sleep")) == {}


def test_a_project_that_is_busy_keeps_no_other_from_being_put_back() -> None:
    first, second = classic_study(), classic_study("Sleep")
    first.add_record("TEST", mobile=AS_TYPED)
    enrol(second, 1)
    tables = {
        "asthma": builders.project_table(),
        "sleep": builders.project_table(redcap_token="env:OTHER_TOKEN"),
    }
    for bench in _bench_of_two(tables, first, second):
        rehearsal = bench.rehearsal()
        rehearsal.prepare()
        put_back = rehearsal._put_back

        def put_back_beside(started: str, bench: Bench = bench, put_back: Any = put_back) -> None:
            with try_lock(bench.study.redis, "update:asthma"):
                put_back(started)

        rehearsal._put_back = put_back_beside  # type: ignore[method-assign]
        with pytest.raises(EndToEndTestFailed, match="still updating asthma"):
            rehearsal.run()
        assert bench.study.redis.hgetall(keys.status("sleep")) == {}


class TestForce:
    def test_an_opt_out_is_put_back_with_its_time_and_tick(self, bench: Bench) -> None:
        bench.study.project.set_value("TEST", "sms_opt_out_at", "2026-01-01 10:00:00")
        bench.study.project.set_value("TEST", "sms_opt_out___1", "1")
        bench.run(force=True)
        assert (value(bench), value(bench, "sms_opt_out___1")) == ("2026-01-01 10:00:00", "1")

    def test_a_real_change_that_comes_meanwhile_is_not_undone(self, bench: Bench) -> None:
        rehearsal = bench.rehearsal()
        rehearsal.prepare(force=True)
        real = []

        def put_back_late(started: str) -> None:
            real.append(bench.study.text(TEST_NUMBER))
            bench.study.work()
            EndToEndTest._put_back(rehearsal, started)

        rehearsal._put_back = put_back_late  # type: ignore[method-assign]
        rehearsal.run()
        assert bench.study.state(real[0]) == "updated"
        assert value(bench) != ""
        assert real[0].event_id in str(traces(bench)["status"])


class TestWhatIsBroken:
    def test_an_address_where_nobody_answers(self, bench: Bench) -> None:
        rehearsal = bench.rehearsal(url="http://127.0.0.1:1")
        rehearsal.prepare()
        with pytest.raises(EndToEndTestFailed, match="was not reached"):
            rehearsal.run()

    def test_a_signature_that_is_refused(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TEST_AUTH_TOKEN", "f" * 32)
        rehearsal = bench.rehearsal()
        rehearsal.prepare()
        with pytest.raises(EndToEndTestFailed, match="answered 403: it refused the signature"):
            rehearsal.run()

    def test_a_worker_that_is_away_and_both_changes_are_sent_all_the_same(self, bench: Bench) -> None:
        bench.works = False
        rehearsal = bench.rehearsal()
        rehearsal.prepare()
        with pytest.raises(EndToEndTestFailed, match="is a worker running"):
            rehearsal.run()
        bench.study.work()
        assert value(bench) == ""

    def test_a_record_that_redcap_refuses(self, bench: Bench) -> None:
        bench.study.project.lock_record("TEST")
        rehearsal = bench.rehearsal()
        rehearsal.prepare()
        with pytest.raises(EndToEndTestFailed, match="the STOP ended as failed: record TEST"):
            rehearsal.run()

    def test_a_worker_that_is_still_updating_is_not_written_over(self, bench: Bench) -> None:
        bench.study.project.set_value("TEST", "sms_opt_out_at", "2026-01-01 10:00:00")
        rehearsal = bench.rehearsal()
        rehearsal.prepare(force=True)
        put_back = rehearsal._put_back

        def put_back_beside(started: str) -> None:
            with try_lock(bench.study.redis, "update:asthma") as acquired:
                assert acquired
                put_back(started)

        rehearsal._put_back = put_back_beside  # type: ignore[method-assign]
        with pytest.raises(EndToEndTestFailed, match=r"still updating asthma after 0\.3 s.*optout forget"):
            rehearsal.run()
        assert value(bench) == "2026-01-01 10:00:00"
        assert "START" in str(traces(bench)["status"])

    def test_a_mail_that_is_refused(self, bench: Bench) -> None:
        bench.study.mailer.errors.append(MailRejected("smtp_refused", "code 550"))
        rehearsal = bench.rehearsal()
        rehearsal.prepare()
        with pytest.raises(EndToEndTestFailed, match="the e-mail was not sent to everybody: refused"):
            rehearsal.run()


def test_the_number_of_the_test_record_may_be_typed_in_any_form(bench: Bench) -> None:
    bench.study.project.set_value("TEST", "mobile", "+1 650 555 0100")
    assert bench.rehearsal().prepare() == ["TEST"]
