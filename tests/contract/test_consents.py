"""The client of the Consent Management API against the simulator, and the simulator by Twilio's own library."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import requests
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from shared.config.schema import TwilioAccount
from shared.errors import TwilioRejected, TwilioUnavailable
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    SENDER,
    SERVICE_SID,
    Account,
    MessageRefused,
    TwilioSimulator,
)
from worker.twilio.client import rest_client
from worker.twilio.consents import Collected, Consent, Wish, is_covered, probe, submit, why_not

PAT, SAM, TOLL_FREE = "+16505550100", "+16505550101", "+18885550123"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def sim() -> TwilioSimulator:
    return TwilioSimulator()


@pytest.fixture
def url(sim: TwilioSimulator) -> Iterator[str]:
    with sim.serve() as server:
        yield server.url


@pytest.fixture
def client(url: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setenv("OPTOUT_TWILIO_API_URL", url)
    monkeypatch.setenv("TEST_TOKEN", AUTH_TOKEN)
    return rest_client(TwilioAccount(account_sid=ACCOUNT_SID, auth_token=["env:TEST_TOKEN"]))


def consent(number: str = PAT, **changes: Any) -> Consent:
    values = {
        "number": number, "sender": SERVICE_SID, "wish": Wish.OPT_OUT, "collected": Collected.OFFLINE,
        "since": NOON, "correlation_id": f"{int(number[1:]):032x}",
    }  # fmt: skip
    return Consent(**{**values, **changes})


def problem(client: Client, one: Consent) -> str:
    return submit(client, [one])[one.correlation_id].problem


class TestSimulator:
    def test_a_consent_has_the_form_that_the_description_shows(self, sim: TwilioSimulator, url: str) -> None:
        """The example of twilio-oai, accounts_v1 CreateBulkConsents, with a sender of this account."""
        items = [
            {"contact_id": "+19999999999", "correlation_id": "ad388b5a46b33b874b0d41f7226db2ef",
             "sender_id": SERVICE_SID, "date_of_consent": "2025-02-28T10:05:27Z", "status": "opt-out",
             "source": "website"},
            {"contact_id": "+19", "correlation_id": "02520cfa6c432f0e3ec3a38c122d428d", "sender_id": SENDER,
             "date_of_consent": "2025-03-25", "status": "opt-in", "source": "opt-in-message"},
        ]  # fmt: skip
        answer = requests.post(
            f"{url}/v1/Consents/Bulk", data={"Items": list(map(json.dumps, items))},
            auth=(ACCOUNT_SID, AUTH_TOKEN), timeout=5,
        )  # fmt: skip
        assert answer.status_code == 201
        assert answer.json() == {
            "items": [
                {
                    "correlation_id": "ad388b5a46b33b874b0d41f7226db2ef",
                    "error_code": 0,
                    "error_messages": [],
                },
                {
                    "correlation_id": "02520cfa6c432f0e3ec3a38c122d428d",
                    "error_code": 30646,
                    "error_messages": ["INVALID_CONTACT_ID", "INVALID_DATE_OF_CONSENT"],
                },
            ]
        }
        assert sim.is_blocked(SERVICE_SID, "+19999999999")

    def test_texts_to_a_blocked_number_are_refused_until_it_is_opted_in(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        assert problem(client, consent(sender=SERVICE_SID)) == ""
        with pytest.raises(TwilioRestException) as refused:
            client.messages.create(to=PAT, from_=SENDER, body="Your visit is tomorrow.")
        assert refused.value.code == 21610
        assert sim.send_outbound(to=PAT, service=SERVICE_SID).error_code == 21610
        assert problem(client, consent(wish=Wish.OPT_IN, correlation_id="f" * 32)) == ""
        assert sim.send_outbound(to=PAT, service=SERVICE_SID).error_code is None

    def test_a_number_in_a_service_is_not_blocked_by_the_number(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        assert problem(client, consent(sender=SENDER)) == ""
        assert sim.send_outbound(to=PAT, service=SERVICE_SID).status == "delivered"

    def test_an_opt_in_does_not_unblock_a_toll_free_number(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        sim.add_sender(TOLL_FREE)
        assert problem(client, consent(sender=TOLL_FREE)) == ""
        assert problem(client, consent(sender=TOLL_FREE, wish=Wish.OPT_IN, correlation_id="e" * 32)) == ""
        with pytest.raises(MessageRefused):
            sim.send_outbound(to=PAT, from_=TOLL_FREE)

    def test_more_than_25_items_or_100_requests_a_minute_are_refused(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        with pytest.raises(TwilioRejected, match="status 400"):
            submit(client, [consent(f"+1650555{number:04d}") for number in range(26)])
        sim.consent_requests_per_minute = 2
        submit(client, [consent()])
        with pytest.raises(TwilioUnavailable, match="status 429"):
            submit(client, [consent()])


class TestClient:
    def test_each_consent_has_its_own_result(self, sim: TwilioSimulator, client: Client) -> None:
        sim.consent_errors[SAM] = ["INTERNAL_SERVER_ERROR"]
        good, bad, later = consent(), consent("+1999"), consent(SAM)
        results = submit(client, [good, bad, later])
        assert results[good.correlation_id].stored
        assert results[bad.correlation_id].problem == "Twilio error 30646: INVALID_CONTACT_ID"
        assert not results[bad.correlation_id].is_transient
        assert results[later.correlation_id].is_transient

    def test_the_time_of_the_opt_out_is_sent_in_utc(self, sim: TwilioSimulator, client: Client) -> None:
        submit(client, [consent(since=NOON.astimezone(timezone(timedelta(hours=-8))))])
        [sent] = sim.consents
        assert (sent.date_of_consent, sent.source, sent.status) == (
            "2026-03-01T12:00:00Z", "offline", "opt-out",
        )  # fmt: skip

    def test_what_twilio_says_beside_its_error_words_is_dropped(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        sim.consent_errors[PAT] = [f"the number {PAT} is not valid", "INVALID_STATUS"]
        assert problem(client, consent()) == "Twilio error 30646: INVALID_STATUS"

    @pytest.mark.parametrize(
        ("fault", "error"),
        [("429", TwilioUnavailable), ("503", TwilioUnavailable), ("reset", TwilioUnavailable),
         ("truncated", TwilioUnavailable), ("404", TwilioRejected)],
    )  # fmt: skip
    def test_a_request_that_fails_raises(
        self, sim: TwilioSimulator, client: Client, fault: str, error: type[Exception]
    ) -> None:
        sim.fail(fault, resource="Consents")
        with pytest.raises(error) as raised:
            submit(client, [consent()])
        assert PAT[2:] not in f"{raised.value!r} {raised.value}"

    def test_an_account_without_the_api_is_told_apart_from_a_wrong_token(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        sim.first_account.consents_enabled = False
        with pytest.raises(TwilioRejected) as refused:
            submit(client, [consent()])
        assert "not enabled" in why_not(refused.value)

    def test_the_probe_stores_no_consent_and_names_a_sender_that_is_not_accepted(
        self, sim: TwilioSimulator, client: Client
    ) -> None:
        assert probe(client, SERVICE_SID) == ["INVALID_CONTACT_ID"]
        assert probe(client, "+16505550198") == ["INVALID_CONTACT_ID", "INVALID_SENDER_ID"]
        assert len(sim.blocks) == 0

    def test_numbers_are_in_no_log_and_no_repr(
        self, client: Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        logging.getLogger("twilio.http_client").setLevel(logging.DEBUG)
        submit(client, [one := consent()])
        assert PAT[2:] not in caplog.text + repr(one)

    def test_only_numbers_and_short_codes_are_covered(self) -> None:
        assert is_covered(SENDER)
        assert is_covered("24680")
        assert not any(map(is_covered, [f"whatsapp:{SENDER}", "rcs:study_agent", "MyStudy"]))


def test_a_restricted_key_may_make_only_the_requests_that_it_is_permitted() -> None:
    account = Account(api_keys={"SK1": "secret"}, permissions={"SK1": frozenset({"GET Messages"})})
    sim = TwilioSimulator([account])
    with sim.serve() as server:
        base = f"{server.url}/2010-04-01/Accounts/{ACCOUNT_SID}"
        assert requests.get(f"{base}/Messages.json", auth=("SK1", "secret"), timeout=5).status_code == 200
        refused = requests.get(f"{base}/IncomingPhoneNumbers.json", auth=("SK1", "secret"), timeout=5)
        assert (refused.status_code, refused.json()["code"]) == (401, 70051)
