"""The daily check: spread over the day, kept within bounds, and mailed only when it changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from shared.config import parse_config
from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.ledger.platform.loaded_configurations import publish
from shared.ledger.projects.check_results import MOST_ITEMS, PLATFORM, check_result, check_results
from shared.messaging.tasks import TaskName
from tests.builders import document, project_table
from tests.fakes import Study, study
from worker.checks.findings import Finding, FindingId, Passed
from worker.checks.runner import Report, platform_checks, project_checks
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.steps import daily_check as module
from worker.steps.daily_check import DAY_MS, daily_check, next_check_ms, request_due_checks
from worker.steps.notify_operator import notify_operator

UNREADABLE: FindingId = "phones-unreadable"


def finding(
    id_: FindingId = UNREADABLE, count: int = 0, *, subject: str = "asthma", observed: str = ""
) -> Finding:
    return Finding(id=id_, subject=subject, observed=observed or f"{count} of them", count=count)


class Platform:
    """A study with an operator, where a test says what each check finds."""

    def __init__(self, projects: int = 1) -> None:
        self.asthma: Study = study()
        tables = {"asthma": project_table()} | {f"study{n}": project_table() for n in range(1, projects)}
        self.services = self.asthma.services
        self.services.config = parse_config(
            document(tables, operator={"notify": ["research-it@example.edu"]})
        )
        self.found: list[Finding | Passed] = []

    def check(self, *found: Finding | Passed, scope: str = "asthma") -> None:
        self.found = list(found)
        daily_check(scope, self.services)

    def after(self, **time: float) -> list[Any]:
        """The mails of a sweep after that time."""
        self.asthma.clock.ahead += timedelta(**time)
        for kind in ("web", "beat", "worker"):
            publish(self.asthma.redis, f"{kind}|host|7", "abc", now_ms=milliseconds(self.asthma.clock()))
        for name in ("operator-mail", "operator-findings", "checks"):  # fakeredis has a clock of its own
            self.asthma.redis.delete(keys.queued(name))
        before = len(self.asthma.mailer.sent)
        notify_operator(self.services)
        return self.asthma.mailer.sent[before:]

    def requested(self, **time: float) -> list[str]:
        self.asthma.clock.ahead += timedelta(**time)
        self.asthma.redis.delete(keys.queued("checks"))
        request_due_checks(self.services)
        asked = [args[0] for args in self.asthma.published.of(TaskName.CHECK)]
        self.asthma.published.messages.clear()
        self.asthma.redis.delete(keys.BACKGROUND)
        return asked


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> Platform:
    made = Platform()
    monkeypatch.setattr(module, "run_checks", lambda *_, **__: Report.of(made.found))
    return made


class TestSchedule:
    def test_new_projects_are_checked_after_a_while_and_the_platform_too(self, platform: Platform) -> None:
        assert platform.requested() == []
        assert platform.requested(minutes=14) == []
        assert set(platform.requested(minutes=2)) == {PLATFORM, "asthma"}
        assert platform.requested(minutes=1) == []

    def test_only_a_few_are_asked_for_at_once(self) -> None:
        platform = Platform(projects=9)
        platform.requested()
        asked = [scope for _ in range(5) for scope in platform.requested(minutes=16)]
        assert len(asked) == len(set(asked)) == 10

    def test_many_projects_are_spread_over_the_day(self) -> None:
        times = [next_check_ms(f"study-{n}", 0, soon=False) for n in range(500)]
        hours = [sum(hour * 3600_000 <= time < (hour + 1) * 3600_000 for time in times) for hour in range(24)]
        assert sum(hours) == 500
        assert min(hours) > 5
        assert max(hours) < 50

    def test_each_has_the_same_time_every_day(self) -> None:
        first = next_check_ms("asthma", 0, soon=False)
        assert next_check_ms("asthma", first, soon=False) == first + DAY_MS
        assert next_check_ms("asthma", first + 5, soon=False) == first + DAY_MS

    def test_a_check_that_got_lost_is_asked_for_again(self, platform: Platform) -> None:
        platform.requested()
        platform.requested(minutes=16)
        assert set(platform.requested(hours=1, minutes=1)) == {PLATFORM, "asthma"}

    def test_after_an_error_it_runs_again_within_the_hour_until_it_is_gone(self, platform: Platform) -> None:
        platform.requested()
        platform.requested(minutes=16)
        platform.check(finding("redcap-token-refused"))
        redis, now_ms = platform.asthma.redis, milliseconds(platform.asthma.clock())
        assert now_ms < redis.zscore(keys.CHECKS_DUE, "asthma") <= now_ms + 3600_000
        platform.check()
        due = int(redis.zscore(keys.CHECKS_DUE, "asthma"))
        assert due % DAY_MS == next_check_ms("asthma", 0, soon=False) % DAY_MS

    def test_a_removed_project_is_forgotten(self, platform: Platform) -> None:
        platform.services.config = parse_config(document({"a": project_table(), "b": project_table()}))
        platform.requested()
        platform.check(finding(subject="a"), scope="a")
        platform.services.config = parse_config(document({"b": project_table()}))
        platform.requested()
        assert set(platform.asthma.redis.zrange(keys.CHECKS_DUE, 0, -1)) == {PLATFORM, "b"}
        assert check_results(platform.asthma.redis) == {}

    def test_a_redcap_that_pauses_is_not_asked(self, platform: Platform) -> None:
        CircuitBreaker(platform.asthma.redis, "redcap.example.edu").record_failure(banned=True)
        platform.check(finding())
        assert check_result(platform.asthma.redis, "asthma") is None


class TestResults:
    def test_findings_and_what_passed_are_kept_with_their_fix(self, platform: Platform) -> None:
        platform.check(finding("nobody-notified"), finding(count=2), Passed("asthma", "REDCap answers"))
        kept = check_result(platform.asthma.redis, "asthma")
        assert kept is not None
        assert [each.id for each in kept.findings] == [UNREADABLE, "nobody-notified"]
        assert kept.findings[0].fix
        assert kept.findings[0].title
        assert kept.findings[0].docs == f"docs/reference/checks.md#{UNREADABLE}"
        assert kept.passed == (("asthma", "REDCap answers"),)
        assert abs((kept.checked_at - platform.asthma.clock()).total_seconds()) < 5

    def test_what_is_kept_is_bounded(self, platform: Platform) -> None:
        many = [finding("log-erased", n, observed=f"{n} {'x' * 5000}") for n in range(200)]
        platform.check(*many)
        kept = check_result(platform.asthma.redis, "asthma")
        assert kept is not None
        assert len(kept.findings) == MOST_ITEMS
        assert kept.omitted == 200 - MOST_ITEMS
        assert len(platform.asthma.redis.hget(keys.CHECKS, "asthma")) < 60_000

    def test_what_a_broken_check_cannot_see_stays_as_it_was(self, platform: Platform) -> None:
        platform.check(finding("phones-unreadable", 3))
        platform.check(finding("redcap-unreachable"))
        kept = check_result(platform.asthma.redis, "asthma")
        assert kept is not None
        assert {each.id for each in kept.findings} == {"redcap-unreachable", "phones-unreadable"}
        platform.check()
        kept = check_result(platform.asthma.redis, "asthma")
        assert kept is not None
        assert kept.findings == ()

    def test_a_public_address_that_was_never_reached_from_here_is_not_a_finding(
        self, platform: Platform
    ) -> None:
        unreachable = finding("web-unreachable", subject="web")
        platform.check(unreachable, scope=PLATFORM)
        assert check_results(platform.asthma.redis)[PLATFORM].findings == ()
        platform.check(Passed("web", "it is this program"), scope=PLATFORM)
        for _ in range(2):
            platform.check(unreachable, scope=PLATFORM)
            [kept] = check_results(platform.asthma.redis)[PLATFORM].findings
            assert kept.id == "web-unreachable"

    def test_every_check_of_the_command_belongs_to_the_platform_or_to_a_project(
        self, platform: Platform
    ) -> None:
        shared = platform_checks(platform.services, ["asthma"], "https://optout.example.edu")
        own = project_checks(platform.services, "asthma")
        assert {"redis", "smtp", "web", "twilio.main"} <= shared.keys()
        assert all(name.startswith("asthma: ") for name in own)
        assert not shared.keys() & own.keys()


class TestMails:
    def lasting(self, platform: Platform, *found: Finding) -> list[Any]:
        platform.check(*found)
        return [*platform.after(), *platform.after(minutes=6)]

    def test_a_finding_is_mailed_once_with_its_fix(self, platform: Platform) -> None:
        [mail] = self.lasting(platform, finding(count=2, observed="2 records"))
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 new, 1 open"
        text = " ".join(mail.get_content().split())
        assert "[phones-unreadable]: 2 records. Fix: " in text
        assert self.lasting(platform, finding(count=2, observed="2 records")) == []

    def test_other_words_about_the_same_finding_are_no_change(self, platform: Platform) -> None:
        self.lasting(platform, finding(count=2, observed="the oldest for 3 hours"))
        assert self.lasting(platform, finding(count=2, observed="the oldest for 27 hours")) == []

    def test_one_that_affects_more_is_mailed_as_worse(self, platform: Platform) -> None:
        self.lasting(platform, finding(count=12))
        [mail] = self.lasting(platform, finding(count=13))
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 worse, 1 open"
        assert "13 of them" in mail.get_content()
        assert "Still open" not in mail.get_content()
        assert self.lasting(platform, finding(count=13)) == []

    @pytest.mark.parametrize(("count", "mails"), [(4, 0), (5, 0), (6, 1)])
    def test_a_note_is_worse_once_it_affects_twice_as_many(
        self, platform: Platform, count: int, mails: int
    ) -> None:
        self.lasting(platform, finding("phones-shared", 3))
        assert len(self.lasting(platform, finding("phones-shared", count))) == mails

    def test_after_it_got_better_the_same_number_again_is_worse(self, platform: Platform) -> None:
        self.lasting(platform, finding(count=12))
        assert self.lasting(platform, finding(count=2)) == []
        assert len(self.lasting(platform, finding(count=12))) == 1

    def test_one_that_went_away_is_mailed_as_resolved(self, platform: Platform) -> None:
        self.lasting(platform, finding(), finding("phones-none"))
        [mail] = self.lasting(platform, finding())
        assert mail["Subject"] == "[Opt-Out Bridge] Problems: 1 resolved, 1 open"

    def test_two_of_one_kind_are_one_condition(self, platform: Platform) -> None:
        found = [finding("log-erased", 2, observed="2 of ·23"), finding("log-erased", 4, observed="4 of ·77")]
        [mail] = self.lasting(platform, *found)
        assert mail["Subject"].endswith("1 new, 1 open")
        assert "2 of ·23; 4 of ·77" in " ".join(mail.get_content().split())

    def test_what_is_found_in_one_study_after_another_is_one_mail_an_hour(self, platform: Platform) -> None:
        platform.check(finding())
        platform.after()
        redis = platform.asthma.redis
        redis.set(keys.queued("operator-findings"), "1", px=3600_000)  # one was mailed just now
        platform.asthma.clock.ahead += timedelta(minutes=10)
        notify_operator(platform.services)
        assert platform.asthma.mailer.sent == []
        redis.delete(keys.queued("operator-findings"))
        assert len(platform.after()) == 1

    def test_a_note_alone_leaves_all_well(self, platform: Platform) -> None:
        self.lasting(platform, finding("nobody-notified"))
        platform.asthma.redis.set(keys.OPERATOR_WEEK, "2020-W01")
        [mail] = platform.after(minutes=1)
        assert mail["Subject"] == "[Opt-Out Bridge] Weekly report: all is well"
        assert "The daily check found 1 thing" in mail.get_content()
