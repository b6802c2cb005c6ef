"""The operator is notified of what lasts, once, and of its end; weekly in any case; and a switch is fed."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import requests
import time_machine

from shared.config import parse_config
from shared.domain.events import milliseconds
from shared.errors import ConfigError, MailDeferred, ProjectProblem
from shared.ledger import keys
from shared.ledger.platform.loaded_configurations import Trouble, publish
from tests.builders import at, document
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.projects.problems import note_problem
from worker.services import Services
from worker.steps.notify_operator import notify_operator, ping

pytestmark = pytest.mark.usefixtures("naps")

OPERATOR = "research-it@example.edu"
PING = "https://hc-ping.example.edu/0f0f"


class Platform:
    """A study with an operator; all processes run, at a time that a test sets ahead."""

    def __init__(self, **operator: Any) -> None:
        project = classic_study()
        enrol(project, 3)
        self.asthma: Study = study(project)
        table = {"notify": [OPERATOR], "ping_url": PING, **operator}
        self.asthma.services.config = parse_config(document(operator=table, time_zone="America/Los_Angeles"))
        self.running = {"web", "beat", "worker"}
        self.trouble: Trouble | None = None

    @property
    def services(self) -> Services:
        return self.asthma.services

    def after(self, **time: float) -> list[Any]:
        """Let time pass, then sweep; answers the mails of this sweep."""
        self.asthma.clock.ahead += timedelta(**time)
        for kind in self.running:
            now_ms = milliseconds(self.asthma.clock())
            publish(self.asthma.redis, f"{kind}|host|7", "abc", now_ms=now_ms, trouble=self.trouble)
        for name in ("operator-mail", "operator-week"):  # fakeredis does not see the clock of this test
            self.asthma.redis.delete(keys.queued(name))
        before = len(self.asthma.mailer.sent)
        notify_operator(self.services)
        return self.asthma.mailer.sent[before:]


@pytest.fixture
def platform() -> Platform:
    return Platform()


def problem(platform: Platform) -> None:
    note_problem("asthma", ProjectProblem("token_refused", "REDCap refuses the token"), platform.services)


class TestProblems:
    def test_while_all_is_well_nothing_is_sent(self, platform: Platform) -> None:
        assert platform.after() == []
        assert platform.after(hours=1) == []

    def test_a_problem_that_lasts_is_mailed_once_to_the_operator(self, platform: Platform) -> None:
        problem(platform)
        assert platform.after() == []
        [mail] = platform.after(minutes=5)
        assert mail["To"] == OPERATOR
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 new, 1 open"
        assert "asthma: token_refused: REDCap refuses the token. Changes are kept" in mail.get_content()
        assert platform.after(minutes=30) == []

    def test_its_end_is_mailed_too(self, platform: Platform) -> None:
        problem(platform)
        platform.after()
        platform.after(minutes=5)
        platform.asthma.redis.hdel(keys.PROBLEMS, "asthma")
        [mail] = platform.after(minutes=1)
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 resolved, 0 open"
        assert platform.asthma.redis.hgetall(keys.OPERATOR) == {}

    def test_one_that_was_short_is_not_mailed(self, platform: Platform) -> None:
        problem(platform)
        platform.after()
        platform.asthma.redis.hdel(keys.PROBLEMS, "asthma")
        assert platform.after(minutes=10) == []
        problem(platform)
        assert platform.after(minutes=1) == []

    def test_a_mail_that_was_not_accepted_is_tried_again(self, platform: Platform) -> None:
        problem(platform)
        platform.after()
        platform.asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
        assert platform.after(minutes=5) == []
        assert len(platform.after(minutes=5)) == 1

    @pytest.mark.parametrize("kind", ["web", "beat"])
    def test_a_process_that_does_not_run_is_named(self, platform: Platform, kind: str) -> None:
        platform.after()
        platform.running.discard(kind)
        platform.after(minutes=1)
        [mail] = platform.after(minutes=5)
        assert f"{kind} does not run" in mail.get_content()

    def test_one_of_several_processes_is_named_with_its_host_and_since_when(self, platform: Platform) -> None:
        moment = platform.asthma.clock()
        publish(platform.asthma.redis, "worker|c0ffee|9", "abc", now_ms=milliseconds(moment))
        assert platform.after() == []
        platform.after(minutes=1)
        assert platform.after(minutes=4) == []
        [mail] = platform.after(minutes=1)
        since = moment.astimezone(ZoneInfo("America/Los_Angeles")).strftime("%Y-%m-%d %H:%M")
        assert f"worker on c0ffee (process 9) has been silent since {since}" in mail.get_content()
        assert "does not run" not in mail.get_content()
        platform.asthma.redis.hdel(keys.HEARTBEATS, "worker|c0ffee|9")
        [mail] = platform.after(minutes=1)
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 resolved, 0 open"

    def test_a_failed_reconciliation_is_named_with_its_error(self, platform: Platform) -> None:
        now_ms = milliseconds(platform.asthma.clock())
        report = json.dumps({"errors": ["twilio_unavailable: no answer"]})
        platform.asthma.redis.hset(
            keys.reconciled("asthma"),
            mapping={"success_ms": now_ms - 90_000, "failure_ms": now_ms, "report": report},
        )
        platform.after()
        [mail] = platform.after(minutes=5)
        assert "asthma: the last reconciliation failed: twilio_unavailable" in mail.get_content()

    def test_a_missed_reconciliation_is_named(self, platform: Platform) -> None:
        now_ms = milliseconds(platform.asthma.clock())
        platform.asthma.redis.hset(keys.reconciled("asthma"), "success_ms", now_ms)
        assert platform.after(hours=25) == []
        platform.after(hours=1)
        [mail] = platform.after(minutes=5)
        assert "asthma: no reconciliation since" in mail.get_content()

    def test_changes_that_were_rejected_are_named_with_the_reason_that_the_study_team_does_not_get(
        self, platform: Platform
    ) -> None:
        platform.asthma.project.lock_record("1")
        platform.asthma.text(fictional_phone(1))
        platform.asthma.work()
        [unsaved] = platform.asthma.mailer.sent
        assert "locked" not in unsaved.as_string()
        platform.after()
        [mail] = platform.after(minutes=5)
        text = " ".join(mail.get_content().split())
        assert "asthma: 1 change is not in REDCap: " in text
        assert "locked" in text

    def test_changes_that_wait_for_an_hour_are_named_without_a_number(self, platform: Platform) -> None:
        platform.asthma.text(fictional_phone(1))
        assert platform.after(minutes=59) == []
        platform.after(minutes=2)
        [mail] = platform.after(minutes=5)
        assert "asthma: 1 change waits, the oldest since" in mail.get_content()
        assert fictional_phone(1)[2:] not in mail.as_string()

    def test_without_anybody_to_notify_nothing_is_sent_or_kept(self) -> None:
        platform = Platform(notify=[])
        problem(platform)
        assert platform.after(hours=1) == []
        assert not platform.asthma.redis.exists(keys.OPERATOR)


class TestWeeklyReport:
    def test_it_comes_on_monday_at_eight_local_time_and_says_that_all_is_well(self) -> None:
        with time_machine.travel(at("2026-05-08T12:00"), tick=False):
            platform = Platform()
            platform.asthma.text(fictional_phone(1))
            platform.asthma.work()
            assert platform.after() == []
            assert platform.after(hours=74) == []  # Monday, 07:00 in Los Angeles
            [mail] = platform.after(hours=1, minutes=1)
            assert mail["Subject"] == "[Opt-Out Bridge] Weekly report: all is well"
            assert "asthma: 1; none" in mail.get_content()
            assert platform.after(days=6) == []
            assert len(platform.after(days=1)) == 1

    def test_open_problems_are_listed_again(self) -> None:
        with time_machine.travel(at("2026-05-08T12:00"), tick=False):
            platform = Platform()
            problem(platform)
            platform.after()
            platform.after(minutes=5)
            [mail] = platform.after(days=4)
            assert mail["Subject"] == "[Opt-Out Bridge] Weekly report: 1 problem open"
            assert "token_refused" in mail.get_content()


class TestPing:
    def pings(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[str]:
        asked: list[str] = []

        def get(_self: Any, url: str, **_: Any) -> requests.Response:
            asked.append(url)
            if error:
                raise error
            answer = requests.Response()
            answer.status_code = 200
            return answer

        monkeypatch.setattr(requests.Session, "get", get)
        return asked

    def test_it_is_requested_once_a_minute(self, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.pings(monkeypatch)
        ping(platform.services)
        ping(platform.services)
        assert asked == [PING]

    def test_a_failure_ends_nothing_and_its_address_is_not_logged(
        self, platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.pings(monkeypatch, requests.ConnectionError(f"no route to {PING}"))
        ping(platform.services)
        assert PING not in "".join(capsys.readouterr())

    def test_without_an_address_nothing_is_requested(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.pings(monkeypatch)
        ping(Platform(ping_url=None).services)
        assert asked == []


def test_an_operator_to_notify_needs_a_mail_server() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(document({"asthma": {**document()["projects"]["asthma"], "notify": []}}, smtp=None,
                              operator={"notify": [OPERATOR]}))  # fmt: skip
    assert "operator has notify" in caught.value.problems[0]


def test_an_invalid_file_is_mailed_once_with_file_and_key_and_its_end_too(platform: Platform) -> None:
    trouble = Trouble("/etc/optout/studies/a.toml", "projects.a.phone_feild: unknown key")
    platform.trouble = trouble
    mails = [*platform.after(minutes=1), *platform.after(minutes=6), *platform.after(minutes=6)]
    [mail] = mails
    assert "studies/a.toml" in mail.get_body(("plain",)).get_content()
    assert "phone_feild" in mail.get_body(("plain",)).get_content()
    platform.trouble = None
    [_resolved] = platform.after(minutes=6)
