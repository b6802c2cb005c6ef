"""A console over fake Redis, and a ledger with a history."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from werkzeug.test import TestResponse

from shared.config import Config
from shared.domain.events import Change, OptOutEvent, State
from shared.ledger import EventOutcome, Ledger
from shared.ledger.platform.loaded_configurations import publish
from tests.builders import config, opt_out_event, project_table
from tests.fakes import fake_redis
from web.console.app import create_console
from web.console.context import ConsoleServices
from web.console.login import Gate, Login

LOGIN = ("operator", "right-password")


class Console:
    """The application, its ledger, and what a browser gets."""

    def __init__(self, *names: str, gate: Gate | None = None) -> None:
        self.redis: Any = fake_redis()
        self.ledger = Ledger(self.redis)
        self.now = datetime.now(UTC)
        services = "MG{:032d}"
        tables = {
            name: project_table(messaging_service_sid=services.format(number))
            for number, name in enumerate(names or ("asthma", "sleep"))
        }
        self.config: Config = config(tables)
        gate = gate or Gate(Login(":".join(LOGIN)))
        self.app = create_console(
            ConsoleServices(lambda: self.config, self.ledger, gate, "http://127.0.0.1:5555")
        )
        self.client = self.app.test_client()

    def get(self, path: str, **more: Any) -> TestResponse:
        return self.client.get(path, **{"auth": LOGIN} | more)

    def text(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def processes_run(self, digest: str | None = None) -> None:
        for kind in ("web", "worker", "beat"):
            now_ms = round(datetime.now(UTC).timestamp() * 1000)
            publish(self.redis, f"{kind}|host|1", digest or self.config.digest, now_ms=now_ms)

    def event(
        self,
        state: State | None = State.UPDATED,
        *,
        project: str = "asthma",
        ago: timedelta = timedelta(hours=1),
        reason: str = "",
        records: tuple[str, ...] = ("7",),
        **more: Any,
    ) -> OptOutEvent:
        """An event that was accepted some time ago, and has ended two seconds later unless the state is None."""
        event = opt_out_event(project=project, when=self.now - ago, **more)
        self.ledger.accept([event], now=event.occurred_at)
        if state is not None:
            outcome = EventOutcome(
                event_id=event.event_id,
                phone_hash=event.phone_hash,
                state=state,
                reason=reason,
                records=records,
            )
            zone = self.config.zone(self.config.projects[project])
            now = event.occurred_at + timedelta(seconds=2)
            self.ledger.complete_events(project, [outcome], now=now, zone=zone)
        return event


def review(console: Console, **more: Any) -> OptOutEvent:
    """An unclear text that waits for a decision."""
    return console.event(State.NEEDS_REVIEW, change=Change.UNCLEAR, reason="may be an opt-out", **more)
