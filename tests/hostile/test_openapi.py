"""docs/reference/openapi.yaml names exactly the routes that there are, and each status that they can answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from shared.ledger import keys
from tests.builders import batch, cloud_event, inbound_form
from tests.hostile.asgi import NEVER, ask
from tests.processes import ROOT
from tests.unit.test_web_app import FORM, Ingress
from web.request_buffering import RequestBuffering
from web.twilio.limits import EVENTS_LIMIT_BYTES, INBOUND_LIMIT_BYTES

Seen = tuple[str, str, int, str]  # path, method, status, content type without its parameters


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docs/reference/openapi.yaml").read_text())
    return loaded


def test_it_names_the_routes_that_there_are(described: dict[str, Any]) -> None:
    rules = Ingress().app.url_map.iter_rules()
    there = {(str(rule), method) for rule in rules for method in (rule.methods or set()) - {"HEAD"}}
    assert there == {(path, verb.upper()) for path, verbs in described["paths"].items() for verb in verbs}


def test_it_names_the_statuses_and_content_types_that_are_answered(described: dict[str, Any]) -> None:
    assert set(_seen()) == set(_promised(described))


def test_only_what_twilio_calls_needs_a_signature(described: dict[str, Any]) -> None:
    for path, verbs in described["paths"].items():
        for operation in verbs.values():
            assert operation["security"] == ([{"twilioSignature": []}] if path.startswith("/twilio/") else [])


def _promised(described: dict[str, Any]) -> Iterator[Seen]:
    shared = described["components"]["responses"]
    for path, verbs in described["paths"].items():
        for verb, operation in verbs.items():
            for status, response in operation["responses"].items():
                named = shared[response["$ref"].rpartition("/")[2]] if "$ref" in response else response
                for kind in named["content"]:
                    yield path, verb.upper(), int(status), kind


def _seen() -> Iterator[Seen]:
    for ingress in (Ingress(), _without_store(), _with_a_problem()):
        answers = {
            "/twilio/inbound": [
                ingress.inbound(inbound_form()),
                ingress.inbound(inbound_form(From=None)),
                ingress.inbound(inbound_form(), token="another-token"),
                ingress.inbound(inbound_form(Body="x" * INBOUND_LIMIT_BYTES)),
            ],
            "/twilio/events": [
                ingress.events(batch(cloud_event())),
                ingress.events(b"{"),
                ingress.events(batch(cloud_event()), token="another-token"),
                ingress.events(b" " * (EVENTS_LIMIT_BYTES + 1)),
            ],
            **{path: [ingress.client.get(path)] for path in ("/healthz", "/readyz", "/metrics")},
        }
        for path, responses in answers.items():
            for response in responses:
                yield path, response.request.method, response.status_code, response.mimetype or ""
        app = RequestBuffering(ingress.app, body_seconds=0.05)
        for path in ("/twilio/inbound", "/twilio/events"):
            slow = ask(app, [b"Body=", NEVER], path=path, headers={"Content-Type": FORM})
            yield path, "POST", slow.status, slow.content_type.partition(";")[0]


def _without_store() -> Ingress:
    ingress = Ingress()
    ingress.lose_redis()
    return ingress


def _with_a_problem() -> Ingress:
    ingress = Ingress()
    ingress.redis.hset(keys.PROBLEMS, "asthma", '{"code": "redcap_forbidden"}')
    return ingress
