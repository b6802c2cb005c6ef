"""The composition root, the doorway, and Twilio's client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kombu.exceptions import OperationalError

from shared.errors import ConfigError, ProjectProblem
from shared.ledger import Accepted, Ledger, keys
from shared.messaging.tasks import TaskName
from tests.builders import REDCAP_TOKEN, config, opt_out_event, project_table
from tests.fakes import RecordingPublisher, accept, study
from worker.services import Services
from worker.steps.verify_project import verify_project


def services(redis: Any, projects: dict[str, dict[str, Any]] | None = None) -> Services:
    return Services(config=config(projects), redis=redis, publish=RecordingPublisher())


class TestIntake:
    def test_only_new_events_are_published(self, redis: Any) -> None:
        published, event = RecordingPublisher(), opt_out_event()
        ledger = Ledger(redis)
        for expected in (Accepted.NEW, Accepted.KNOWN):
            assert accept([event], ledger=ledger, publish=published) == [expected]
        redis.delete(keys.queued("lookup:asthma"))  # the message has left the queue
        unmatched = opt_out_event(phone_hash="")
        assert accept([unmatched], ledger=ledger, publish=published) == [Accepted.NEW]
        assert published.of(TaskName.LOOKUP) == [("asthma", event.event_id), ("asthma", unmatched.event_id)]

    @pytest.mark.parametrize("error", [OperationalError("away"), ConnectionRefusedError()])
    def test_a_broker_that_is_away_is_no_failure(self, redis: Any, error: Exception) -> None:
        published = RecordingPublisher()
        published.error = error
        event = opt_out_event()
        assert accept([event], ledger=Ledger(redis), publish=published) == [Accepted.NEW]
        assert redis.zrange(keys.DUE, 0, -1) == [f"lookup|asthma|{event.event_id}"]

    def test_a_message_carries_a_project_and_a_message_sid_and_nothing_else(self, redis: Any) -> None:
        published, event = RecordingPublisher(), opt_out_event("+16505550177")
        accept([event], ledger=Ledger(redis), publish=published)
        assert [message.args for message in published.messages] == [("asthma", event.event_id)]


class TestServices:
    def test_a_missing_hash_key_stops_the_worker_with_its_name(
        self, redis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("OPTOUT_HASH_KEY")
        with pytest.raises(ConfigError, match="env:OPTOUT_HASH_KEY"):
            _ = services(redis).hasher

    def test_a_token_file_that_is_no_text_concerns_its_project_alone(
        self, redis: Any, tmp_path: Path
    ) -> None:
        path = tmp_path / "token"
        path.write_bytes(REDCAP_TOKEN.encode("utf-16"))
        asthma, sleep = (project_table(redcap_token=token) for token in (f"file:{path}", "env:NOT_SET"))
        both = services(redis, {"asthma": asthma, "sleep": sleep})
        for project in ("asthma", "sleep"):
            verify_project(project, both)
        problems = redis.hgetall(keys.PROBLEMS)
        assert set(problems) == {"asthma", "sleep"}
        assert json.loads(problems["asthma"])["problem"] == "secret_missing"
        assert "save it as UTF-8" in problems["asthma"]

    def test_a_missing_token_concerns_its_project_alone(
        self, redis: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        both = services(
            redis, {"asthma": project_table(redcap_token="env:NOT_SET"), "sleep": project_table()}
        )
        with pytest.raises(ProjectProblem, match="env:NOT_SET"):
            both.project("asthma")
        assert both.project("sleep").name == "sleep"

    def test_projects_on_one_host_share_the_most_careful_budget(self, redis: Any) -> None:
        some = services(redis, {
            "a": project_table(redcap_requests_per_minute=300),
            "b": project_table(redcap_requests_per_minute=60),
            "c": project_table(redcap_requests_per_minute=10, redcap_url="https://other.example.edu/api/"),
        })  # fmt: skip
        limits = {name: some.rate_limiter(some.config.projects[name]).per_minute for name in ("a", "b", "c")}
        assert limits == {"a": 60, "b": 60, "c": 10}

    def test_no_token_shows_in_any_representation(self, redis: Any) -> None:
        some = services(redis)
        gateway = some.project("asthma")
        shown = f"{some!r}{gateway!r}{vars(gateway)!r}{some.config!r}{some.mailer!r}"
        assert "AAAAAAAA" not in shown

    def test_without_an_smtp_table_there_is_no_mailer(self, redis: Any) -> None:
        silent = Services(
            config=config({"asthma": project_table(notify=None)}, smtp=None),
            redis=redis,
            publish=RecordingPublisher(),
        )
        assert silent.mailer is None

    def test_redcap_calls_are_counted_by_project_content_and_outcome(self) -> None:
        asthma = study()
        asthma.services.project("asthma").schema  # noqa: B018
        figures = asthma.redis.hgetall(keys.METRICS)
        assert figures["redcap_requests|asthma|metadata|ok"] == "1"
