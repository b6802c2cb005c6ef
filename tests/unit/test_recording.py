"""What is answered while the store works, fails or hangs: one outcome each, and nobody waits for long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import pytest
from kombu.exceptions import OperationalError

from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.builders import batch, cloud_event, inbound_form, project_table
from tests.hostile.asgi import Answered, answer, ask
from tests.hostile.test_attacks import with_hash
from tests.processes import wait_until
from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL, sign_form
from tests.unit.test_web_app import FORM, Ingress
from web.request_buffering import RequestBuffering
from web.twilio.limits import INBOUND_LIMIT_BYTES

SERVICES = {"asthma": "MG" + "a" * 32, "sleep": "MG" + "b" * 32}


@pytest.fixture
def ingress() -> Ingress:
    """Two projects, each on a service of its own."""
    return Ingress({name: project_table(messaging_service_sid=sid) for name, sid in SERVICES.items()})


def webhook(project: str = "asthma", **changes: str | None) -> dict[str, str]:
    return inbound_form(MessagingServiceSid=SERVICES[project], **changes)


def head_of(form: dict[str, str]) -> dict[str, str]:
    signature = sign_form(f"{PUBLIC_URL}/twilio/inbound", form, AUTH_TOKEN)
    return {"Content-Type": FORM, "X-Twilio-Signature": signature}


async def text(app: RequestBuffering, form: dict[str, str]) -> int:
    return (await answer(app, [urlencode(form).encode()], headers=head_of(form))).status


async def texts(app: RequestBuffering, forms: Sequence[dict[str, str]]) -> list[int]:
    """All at the same time."""
    return list(await asyncio.gather(*(text(app, form) for form in forms)))


def event(app: RequestBuffering, body: bytes) -> Answered:
    path, _, query = with_hash(body).partition("?")
    signature = sign_form(f"{PUBLIC_URL}{path}?{query}", {}, AUTH_TOKEN)
    head = {"Content-Type": "application/json", "X-Twilio-Signature": signature}
    return ask(app, [body], path=path, query=query.encode(), headers=head)


class Batches:
    """Notes how many requests share a transaction, and holds the store up while `open` is not set."""

    def __init__(self, ingress: Ingress) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self._redis = ingress.redis
        self._pipeline = ingress.redis.pipeline
        ingress.redis.pipeline = self._made

    def _made(self, *args: Any, **more: Any) -> Any:
        pipe = self._pipeline(*args, **more)
        execute = pipe.execute

        def counted(*args: Any, **more: Any) -> Any:
            self.sizes.append(sum("EVAL" in str(command[0][0]) for command in pipe.command_stack))
            assert self.open.wait(30)
            return execute(*args, **more)

        pipe.execute = counted
        return pipe


class TestTogether:
    def test_what_gathers_while_the_store_works_is_written_together(self, ingress: Ingress) -> None:
        batches = Batches(ingress)
        forms = [webhook() for _ in range(20)]
        assert asyncio.run(texts(RequestBuffering(ingress.app), forms)) == [200] * 20
        assert set(ingress.stored()) == {form["MessageSid"] for form in forms}
        assert sum(batches.sizes) == 20
        assert len(batches.sizes) < 5
        assert ingress.redis.hgetall(keys.METRICS) == {"webhooks|inbound|accepted": "20"}

    def test_each_has_an_outcome_of_its_own(self, ingress: Ingress) -> None:
        """A key of one project that cannot be written does not keep the others out, nor does it look stored."""
        ingress.redis.set(keys.status("sleep"), "no hash")
        forms = [webhook("asthma" if number % 2 else "sleep") for number in range(10)]
        assert asyncio.run(texts(RequestBuffering(ingress.app), forms)) == [503, 200] * 5
        assert len(ingress.stored("asthma")) == 5
        ingress.redis.delete(keys.status("sleep"))
        assert asyncio.run(texts(RequestBuffering(ingress.app), forms)) == [200] * 10
        assert len(ingress.stored("sleep")) == 5

    def test_of_a_batch_of_events_all_have_to_be_stored(self, ingress: Ingress) -> None:
        ingress.redis.set(keys.status("sleep"), "no hash")
        events = [cloud_event(messagingServiceSid=sid) for sid in SERVICES.values()]
        app = RequestBuffering(ingress.app)
        assert event(app, batch(*events)).status == 503
        ingress.redis.delete(keys.status("sleep"))
        assert event(app, batch(*events)).status == 200
        assert (len(ingress.stored("asthma")), len(ingress.stored("sleep"))) == (1, 1)

    def test_many_more_than_a_transaction_takes_are_all_stored(self, ingress: Ingress) -> None:
        forms = [webhook() for _ in range(150)]
        assert asyncio.run(texts(RequestBuffering(ingress.app), forms)) == [200] * 150
        assert len(ingress.stored()) == 150


class TestStoreThatFails:
    @pytest.mark.parametrize("error", [ConnectionResetError, ValueError, ZeroDivisionError, OSError])
    def test_whatever_fails_is_503_and_the_next_text_is_taken(
        self, ingress: Ingress, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
    ) -> None:
        app, form = RequestBuffering(ingress.app), webhook()

        def broken(*_: Any, **__: Any) -> None:
            raise error

        with monkeypatch.context() as while_broken:
            while_broken.setattr(ingress.redis, "pipeline", broken)
            assert asyncio.run(texts(app, [form, webhook()])) == [503, 503]
        assert asyncio.run(text(app, form)) == 200
        assert ingress.stored() == [form["MessageSid"]]

    def test_nobody_waits_for_a_store_that_hangs(self, ingress: Ingress) -> None:
        app, batches = RequestBuffering(ingress.app, store_seconds=0.3), Batches(ingress)
        batches.open.clear()

        async def during() -> tuple[list[int], float, int]:
            waiting = asyncio.gather(texts(app, [webhook() for _ in range(8)]))
            began = time.monotonic()
            await asyncio.sleep(0.05)
            alive = await answer(app, path="/healthz", method="GET")
            more = await text(app, webhook())
            [statuses] = await waiting
            return [*statuses, more], time.monotonic() - began, alive.status

        try:
            statuses, seconds, alive = asyncio.run(during())
        finally:
            batches.open.set()
        assert (statuses, alive) == ([503] * 9, 200)
        assert seconds < 2
        form = webhook()
        assert asyncio.run(text(app, form)) == 200
        assert form["MessageSid"] in ingress.stored()

    def test_a_503_is_short_and_leaves_the_connection_open(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        form = webhook()
        response = ask(RequestBuffering(ingress.app), [urlencode(form).encode()], headers=head_of(form))
        assert (response.status, response.content_type) == (503, "text/xml; charset=utf-8")


class TestLookups:
    def test_a_lookup_is_published_for_what_is_stored(self, ingress: Ingress) -> None:
        form = webhook()
        assert asyncio.run(text(RequestBuffering(ingress.app), form)) == 200
        wait_until(lambda: ingress.published.of(TaskName.LOOKUP) == [("asthma", form["MessageSid"])])

    def test_nothing_is_published_for_what_is_not(self, ingress: Ingress) -> None:
        app, form = RequestBuffering(ingress.app), webhook("sleep")
        ingress.redis.set(keys.status("sleep"), "no hash")
        assert asyncio.run(texts(app, [form, webhook()])) == [503, 200]
        wait_until(lambda: ingress.published.messages)
        assert [project for project, _ in ingress.published.of(TaskName.LOOKUP)] == ["asthma"]

    def test_a_broker_that_is_away_keeps_nobody_waiting(self, ingress: Ingress) -> None:
        ingress.published.error = OperationalError("away")
        form, another = webhook(), webhook(From="+16505550177")
        assert asyncio.run(texts(RequestBuffering(ingress.app), [form, another])) == [200, 200]
        assert f"lookup|asthma|{form['MessageSid']}" in ingress.redis.zrange(keys.DUE, 0, -1)


class TestThreads:
    """What would block the event loop runs in a thread, with the same answer."""

    @pytest.mark.parametrize("path", ["/readyz", "/metrics", "/readyz/"])
    def test_what_reads_the_store(self, ingress: Ingress, path: str) -> None:
        assert ask(RequestBuffering(ingress.app), path=path, method="GET").status == 200

    def test_a_large_batch_of_events(self, ingress: Ingress) -> None:
        events = [cloud_event(messagingServiceSid=SERVICES["asthma"], body="x" * 900) for _ in range(80)]
        body = batch(*events)
        assert len(body) > INBOUND_LIMIT_BYTES
        assert event(RequestBuffering(ingress.app), body).status == 200
        assert len(ingress.stored()) == 80

    def test_an_event_whose_service_has_to_be_looked_up(self, ingress: Ingress) -> None:
        sent = cloud_event(messagingServiceSid=None)
        hashed = ingress.app.extensions["optout"].router._hasher(sent["data"]["to"])
        ingress.redis.sadd(keys.service_senders(SERVICES["asthma"]), hashed)
        app = RequestBuffering(ingress.app)
        assert [event(app, batch(sent)).status for _ in range(2)] == [200, 200]
        assert ingress.stored() == [sent["data"]["messageSid"]]

    def test_a_store_that_is_away_is_told_in_the_same_way(self, ingress: Ingress) -> None:
        ingress.lose_redis()
        app = RequestBuffering(ingress.app)
        assert [ask(app, path=path, method="GET").status for path in ("/readyz", "/metrics")] == [503, 503]
        assert event(app, batch(cloud_event(messagingServiceSid=None))).status == 503
