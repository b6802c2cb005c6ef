"""How a storm is handled by what others would write: all inside the request, or one Celery chain per event.

Both are as good as their kind gets: they verify the signature, keep their connections, ask REDCap for the record by
its phone number (in the spelling that is stored, which they are given), write it and send a mail. They limit nothing,
deduplicate nothing, and lose what fails.
"""

from __future__ import annotations

import json
import os
import smtplib
from datetime import UTC, datetime
from email.message import EmailMessage
from urllib.parse import urlsplit

import requests
from celery import Celery, chain
from flask import Flask, Response, request
from twilio.request_validator import RequestValidator

from tests.benchmarks.routes import EMPTY_RESPONSE, INBOUND
from tests.benchmarks.world import REDCAP_TOKEN
from tests.simulators.redcap import fictional_phone, fictional_phone_as_typed
from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL

REDCAP_URL = os.environ.get("BENCH_REDCAP_URL", "")
SMTP_URL = urlsplit(os.environ.get("OPTOUT_SMTP_URL", ""))
# The spelling that a record holds, which such code could only guess.
_TYPED = {fictional_phone(number): fictional_phone_as_typed(number) for number in range(1, 1_001)}
_session = requests.Session()


def find_record(sender: str) -> str:
    """The record by REDCap's own filter."""
    return str(
        _ask(
            {
                "content": "record", "type": "flat", "fields[0]": "record_id",
                "filterLogic": f"[mobile] = '{_TYPED[sender]}'",
            }
        )[0]["record_id"]
    )  # fmt: skip


def write_record(record: str) -> None:
    """The opt-out, in one import."""
    row = {
        "record_id": record, "sms_opt_out_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}", "sms_opt_out___1": "1",
    }  # fmt: skip
    _ask({"content": "record", "type": "flat", "overwriteBehavior": "overwrite", "data": json.dumps([row])})


def tell(record: str) -> None:
    """A mail."""
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = record, "a@example.edu", "b@example.edu"
    message.set_content(f"Record {record} has opted out.")
    with smtplib.SMTP(SMTP_URL.hostname or "", SMTP_URL.port or 25, timeout=30) as server:
        server.send_message(message)


def _ask(order: dict[str, str]) -> list[dict[str, str]]:
    data = {"token": REDCAP_TOKEN, "format": "json", "returnFormat": "json", **order}
    answer = _session.post(REDCAP_URL, data=data, timeout=60)
    answer.raise_for_status()
    found: list[dict[str, str]] = answer.json()
    return found


celery = Celery("alternative", broker=os.environ.get("OPTOUT_REDIS_URL"), set_as_current=False)
celery.conf.task_ignore_result = True
celery.conf.worker_concurrency = 4


@celery.task(name="alternative.lookup")
def lookup(sender: str) -> str:
    return find_record(sender)


@celery.task(name="alternative.update")
def update(record: str) -> str:
    write_record(record)
    return record


@celery.task(name="alternative.mail")
def mail(record: str) -> None:
    tell(record)


def _application(name: str, handle: object) -> Flask:
    app = Flask(name, static_folder=None)

    @app.post(INBOUND)
    def inbound() -> Response:
        signature = request.headers.get("X-Twilio-Signature", "")
        if not RequestValidator(AUTH_TOKEN).validate(PUBLIC_URL + request.path, request.form, signature):
            return Response(status=403)
        assert callable(handle)
        handle(request.form["From"])
        return Response(EMPTY_RESPONSE, content_type="text/xml")

    return app


def _all_at_once(sender: str) -> None:
    record = find_record(sender)
    write_record(record)
    tell(record)


def _chained(sender: str) -> None:
    chain(lookup.s(sender), update.s(), mail.s()).delay()


inside_the_request = _application("inside_the_request", _all_at_once)
chain_per_event = _application("chain_per_event", _chained)
