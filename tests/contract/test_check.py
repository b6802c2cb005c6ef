"""Every finding of `optout check`, each produced by the one thing that is wrong, on the simulators."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from click.testing import CliRunner
from flask import Flask
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from werkzeug.serving import make_server

from shared.config import parse_config, redis_url
from shared.domain.addresses import PhoneHasher
from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Source, State
from shared.errors import TwilioRejected
from shared.ledger import EventOutcome, Ledger, keys
from shared.ledger.platform.loaded_configurations import Trouble, publish
from shared.ledger.platform.service_senders import ServiceSenders
from shared.messaging.celery_config import make_celery
from shared.redis_client import connect
from tests import builders
from tests.fakes import RecordingPublisher, at_once, fake_redis
from tests.processes import ROOT, free_port
from tests.simulators.redcap import (
    Access,
    Event,
    RedcapSimulator,
    Repeating,
    classic_study,
    enrol,
    fictional_phone,
    longitudinal_study,
)
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    TwilioSimulator,
    new_sid,
)
from web.app import build_services, create_app
from worker.checks.configuration import check_configuration
from worker.checks.findings import CATALOGUE, Finding, Passed, Severity, format_records
from worker.checks.redcap import check_redcap
from worker.checks.redis import check_broker, check_redis, check_rights, check_tls
from worker.checks.runner import checks_for, run_checks
from worker.checks.web import check_backlog, check_unrouted, check_web, check_workers
from worker.cli.check import check as check_command
from worker.mail.smtp import Mailer
from worker.services import Services
from worker.twilio.account import TwilioAccountView

LONG_KEY = "k" * 40
# Digits that may look like a number: those of SIDs and of this machine's address.
NO_NUMBER = re.compile(r"[A-Z]{2}[0-9a-f]{32}|127\.0\.0\.1(:\d+)?")
NOW = datetime.now(UTC)
Found = list[Finding | Passed]


@dataclass
class World:
    """A study for which all is well, on simulators; a test spoils one thing."""

    monkeypatch: pytest.MonkeyPatch
    folder: Path
    redcap: RedcapSimulator
    twilio: TwilioSimulator
    smtp: SmtpSimulator
    redis: Any = field(default_factory=fake_redis)
    table: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    more_projects: dict[str, dict[str, Any]] = field(default_factory=dict)
    web_url: str = ""

    @property
    def study(self) -> Any:
        return self.redcap.projects[builders.REDCAP_TOKEN]

    @study.setter
    def study(self, study: Any) -> None:
        enrol(study, 3)
        self.redcap.projects[builders.REDCAP_TOKEN] = study

    @property
    def service(self) -> Any:
        return self.twilio.services[SERVICE_SID]

    def services(self) -> Services:
        url = self.table.get("redcap_url", self.redcap.url)
        own = {"redcap_requests_per_minute": 300, **self.table, "redcap_url": url}
        asthma = builders.project_table(**own)
        config = parse_config(builders.document({"asthma": asthma, **self.more_projects}, **self.changes))
        return Services(config=config, redis=self.redis, publish=RecordingPublisher())

    def run(self, check: str) -> Found:
        """The results of one check by its name in `checks_for`."""
        checks = checks_for(self.services(), ["asthma"], make_celery("memory://"), self.web_url)
        return list(checks[check]())

    def as_longitudinal(self, **changes: Any) -> None:
        self.study = longitudinal_study()
        self.table |= {"phone_event": "enrolment_arm_1", "opt_out_event": "enrolment_arm_1", **changes}

    def as_number(self, **hooks: Any) -> Any:
        """The study has a number outside any service."""
        number = self.twilio.add_sender("+16505550177", **hooks)
        self.table |= {"messaging_service_sid": None, "senders": ["+16505550177"], "keyword_fallback": True}
        return number


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    study = classic_study()
    enrol(study, 3)
    with ExitStack() as stack:
        redcap = stack.enter_context(RedcapSimulator({builders.REDCAP_TOKEN: study}).serve())
        twilio = TwilioSimulator()
        server = stack.enter_context(twilio.serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        twilio.services[SERVICE_SID].inbound_request_url += "&ct=1500"  # type: ignore[operator]
        twilio.services[SERVICE_SID].fallback_url = f"{PUBLIC_URL}/twilio/inbound"
        twilio.add_campaign(SERVICE_SID)
        for name, value in {**builders.SECRETS, "OPTOUT_HASH_KEY": LONG_KEY}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OPTOUT_SMTP_URL", smtp.url)
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield World(monkeypatch, tmp_path, redcap, twilio, smtp)


@pytest.fixture
def served() -> Iterator[Callable[[Any], str]]:
    """Serves a WSGI application until the test ends; answers its address."""
    servers: list[tuple[Any, threading.Thread]] = []

    def serve(app: Any) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


# --- what is wrong, by the finding that it must produce ---------------------------------------------

Spoil = Callable[[World], object]


def table(**changes: Any) -> Spoil:
    """A key of the project's table."""
    return lambda world: world.table.update(changes)


def rights(**changes: Any) -> Spoil:
    """The rights of the token's user."""
    return lambda world: _set(world.study.rights, changes)


def _set(thing: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        setattr(thing, name, value)


def fault(name: str) -> Spoil:
    """What REDCap answers from now on."""
    return lambda world: world.redcap.faults.add(name, times=None)


def service(**changes: Any) -> Spoil:
    """A setting of the Messaging Service."""
    return lambda world: _set(world.service, changes)


def longitudinal(**changes: Any) -> Spoil:
    return lambda world: world.as_longitudinal(**changes)


def number(**hooks: Any) -> Spoil:
    return lambda world: world.as_number(**hooks)


def environment(name: str, value: str) -> Spoil:
    return lambda world: world.monkeypatch.setenv(name, value)


def _two_tokens(primary: str, secondary: str | None) -> Spoil:
    """Two tokens are configured; the account has these."""

    def spoil(world: World) -> None:
        world.changes["twilio"] = {
            "main": {"account_sid": ACCOUNT_SID, "auth_token": ["env:TEST_AUTH_TOKEN", "env:TEST_OLD_TOKEN"]}
        }
        world.monkeypatch.setenv("TEST_OLD_TOKEN", "0" * 32)
        account = world.twilio.first_account
        account.auth_token, account.secondary_auth_token = primary, secondary

    return spoil


def _shared_phone(world: World) -> None:
    world.study.add_record("77", mobile=fictional_phone(1))


def _repeating_texting(world: World) -> None:
    world.study.repeating = (Repeating("texting"),)
    world.study.change_field("sms_opt_out_at")


def _dag(world: World) -> None:
    world.study.dags = ("north", "south")
    world.study.rights.dag = "north"


def _two_arms(world: World) -> None:
    """Week 1 is in an arm of its own, and so is record 2."""
    world.as_longitudinal(phone_event=None)
    world.study.arm_names = {1: "Drug", 2: "Placebo"}
    world.study.events = tuple(
        Event(
            event.unique_name,
            event.label,
            ("enrolment", "texting"),
            1 + (event.unique_name == "week_1_arm_1"),
        )
        for event in world.study.events
    )
    world.study.change_field("mobile")
    world.study.delete_record("2")
    world.study.add_record("2", event="week_1_arm_1", mobile=fictional_phone(2))


def _events_in_two_arms(world: World) -> None:
    _two_arms(world)
    world.table["phone_event"] = "week_1_arm_1"


def _hashed_ids(world: World) -> None:
    world.study.change_field("record_id", identifier=True)
    world.study.change_field("mobile", identifier=False)
    world.study.rights.forms.update(enrolment=Access.REMOVE_IDENTIFIERS)


def _undesignated(world: World) -> None:
    world.as_longitudinal(opt_out_event="week_1_arm_1")
    world.study.events = tuple(
        Event(event.unique_name, event.label, event.forms, event.arm) for event in world.study.events
    )


def _broken_template(world: World) -> None:
    (world.folder / "notice.txt").write_text("{{ nothing_like_this }}")
    world.table["templates"] = str(world.folder)


def _in_trouble(trouble: Trouble) -> Spoil:
    """A process publishes what keeps it from the files on disk."""

    def spoil(world: World) -> None:
        now_ms = time.time_ns() // 1_000_000
        publish(world.redis, "web|host|7", "0123abcd", now_ms=now_ms, trouble=trouble)

    return spoil


def _old_configuration(world: World) -> None:
    publish(world.redis, "web|host|7", "0123abcd", now_ms=int(time.time() * 1000))


def _rate(world: World) -> None:
    other = builders.project_table(redcap_url=world.redcap.url, redcap_requests_per_minute=100)
    world.more_projects["sleep"] = other


def _forgotten_number_address(world: World) -> None:
    world.twilio.sender_at(SENDER).sms_url = "https://redcap.example.edu/surveys/?s=EXAMPLE"


def _saved_before_setup(world: World, **before: Any) -> None:
    """What optout setup has saved about the service."""
    hooks = {"inbound_request_url": "", "use_inbound_webhook_on_number": False, **before}
    saved = json.dumps({"kind": "service", "before": hooks})
    world.redis.hset(keys.twilio_setup(ACCOUNT_SID), SERVICE_SID, saved)


def _forwarding_differs(world: World) -> None:
    _saved_before_setup(world, inbound_request_url="https://redcap.example.edu/surveys/?s=EXAMPLE")


def _unsubscribed(world: World) -> None:
    world.service.inbound_request_url = "https://elsewhere.example.edu/"
    world.twilio.add_sink()
    world.twilio.subscriptions.clear()


def _failed_sink(world: World) -> None:
    world.service.inbound_request_url = "https://elsewhere.example.edu/"
    world.twilio.add_sink(status="failed")


def _redacted(**what: bool) -> Spoil:
    def spoil(world: World) -> None:
        world.twilio.text(from_="+16505550101", body="hello", deliver=False)
        for name, value in what.items():
            setattr(world.twilio.first_account, name, value)

    return spoil


def _restricted(world: World) -> None:
    """An account that may not read Event Streams; the simulator's may read everything."""

    def refuse(_side: TwilioAccountView) -> None:
        raise TwilioRejected("twilio_rejected", "status 403, code 20003")

    world.monkeypatch.setattr(TwilioAccountView, "sinks", refuse)


def blocking(**changes: Any) -> Spoil:
    """The study has Twilio block."""
    return table(block_at_twilio=True, **changes)


def _not_enabled(world: World) -> None:
    blocking()(world)
    world.twilio.first_account.consents_enabled = False


def _plain_number_in_service(world: World) -> None:
    blocking(messaging_service_sid=None, senders=[SENDER])(world)


def _shared_service(world: World) -> None:
    blocking()(world)
    world.more_projects["sleep"] = builders.project_table()


def _failed_block(world: World) -> None:
    blocking()(world)
    world.redis.zadd(keys.blocks_failed("asthma"), {"SM1": 1})


def api_key(secret: str = "the-secret", *, without: frozenset[str] = frozenset()) -> Spoil:
    """The worker has an API key, with all permissions that it needs but those."""

    def spoil(world: World) -> None:
        account = world.twilio.first_account
        account.api_keys["SK1"] = "the-secret"
        account.permissions["SK1"] = WORKER_PERMISSIONS - without
        login = {"api_key": "env:TEST_API_KEY", "api_secret": "env:TEST_API_SECRET"}
        main = {"account_sid": ACCOUNT_SID, "auth_token": "env:TEST_AUTH_TOKEN", **login}
        world.changes["twilio"] = {"main": main}
        world.monkeypatch.setenv("TEST_API_KEY", "SK1")
        world.monkeypatch.setenv("TEST_API_SECRET", secret)
        world.table["block_at_twilio"] = True

    return spoil


# What docs/how-to/least-privilege.md names, as the simulator calls it.
WORKER_PERMISSIONS = frozenset(
    {
        "GET Messages", "GET Message", "GET IncomingPhoneNumbers", "GET IncomingPhoneNumber", "GET Services",
        "GET Service", "GET Services/PhoneNumbers", "GET Services/ShortCodes", "GET Services/ChannelSenders",
        "GET Services/Usa2p", "GET Sinks", "GET Subscriptions", "POST Consents",
    }
)  # fmt: skip


def _token_elsewhere(world: World) -> None:
    api_key()(world)
    world.monkeypatch.delenv("TEST_AUTH_TOKEN")


def _no_phones(world: World) -> None:
    for record in world.study.records:
        world.study.set_value(record, "mobile", "")


def _suspended(world: World) -> None:
    world.twilio.first_account.status = "suspended"


def _senders_gone(world: World) -> None:
    world.twilio.sender_at(SENDER).service_sid = None


REDCAP, INBOUND, ACCOUNT = "asthma: REDCap", "asthma: Twilio", "twilio.main"
BLOCKING, API_KEY = "asthma: blocking", "twilio.main: API key"
OURS = f"{PUBLIC_URL}/twilio/inbound"
ODD_SINKS: list[Any] = [
    None, {}, {"destination": None}, {"destination": 1}, {"destination": "https://["}, [], "", "no JSON", "[]",
]  # fmt: skip

PRODUCED_BY: dict[str, tuple[str, Spoil]] = {
    "secret-missing": ("configuration", environment("TEST_REDCAP_TOKEN", "")),
    "secret-published": (
        "configuration",
        environment("OPTOUT_HASH_KEY", (ROOT / "deploy/demo/secrets/hash_key").read_text().strip()),
    ),
    "hash-key-short": ("configuration", environment("OPTOUT_HASH_KEY", "short")),
    "public-url-not-https": (
        "configuration", lambda world: world.changes.update(public_url="http://optout.example.edu")
    ),
    "redcap-not-https": ("configuration", table(redcap_url="http://redcap.example.edu/api/")),
    "configuration-stale": ("configuration: processes", _old_configuration),
    "configuration-invalid": (
        "configuration: processes", _in_trouble(Trouble("studies/a.toml", "projects.a.twilio: missing.")),
    ),
    "configuration-needs-restart": (
        "configuration: processes", _in_trouble(Trouble(needs_restart=("hash_key",))),
    ),
    "redcap-rates-differ": ("configuration", _rate),
    "redcap-rate-near-ban": ("configuration", table(redcap_requests_per_minute=590)),
    "keyword-fallback-needless": ("configuration", table(keyword_fallback=True)),
    "nobody-notified": ("configuration", table(notify=[])),
    "templates-broken": ("templates", _broken_template),
    "smtp-unreachable": ("smtp", environment("OPTOUT_SMTP_URL", f"smtp://127.0.0.1:{free_port()}")),
    "smtp-refused": ("smtp", environment("OPTOUT_SMTP_URL", "imap://mail.example.edu")),
    "smtp-in-the-clear": ("smtp", environment("OPTOUT_SMTP_URL", "smtp://u:p@mail.invalid:25")),
    "redcap-unreachable": (REDCAP, fault("http_503")),
    "redcap-wrong-address": (REDCAP, fault("login_page")),
    "redcap-banned": (REDCAP, fault("ban_page")),
    "redcap-token-refused": (REDCAP, lambda world: world.redcap.revoked.add(builders.REDCAP_TOKEN)),
    "redcap-no-import-right": (REDCAP, rights(api_import=False)),
    "redcap-wrong-project": (REDCAP, table(redcap_project_id=999)),
    "redcap-field-missing": (REDCAP, table(opt_out_field="no_such_field")),
    "phone-field-unfit": (REDCAP, table(phone_field="sms_opt_out")),
    "redcap-event-missing": (REDCAP, longitudinal(opt_out_event="no_such_event")),
    "redcap-event-needless": (REDCAP, table(opt_out_event="enrolment_arm_1")),
    "redcap-field-not-on-event": (REDCAP, _undesignated),
    "redcap-events-in-two-arms": (REDCAP, _events_in_two_arms),
    "redcap-records-in-another-arm": (REDCAP, _two_arms),
    "redcap-hashes-record-ids": (REDCAP, _hashed_ids),
    "opt-out-field-unfit": (
        REDCAP, lambda world: world.study.change_field("sms_opt_out_at", validation="date_ymd")
    ),
    "opt-out-checkbox-unfit": (REDCAP, table(opt_out_checkbox="sex")),
    "opt-out-field-repeats": (REDCAP, _repeating_texting),
    "redcap-hides-field": (
        REDCAP, lambda world: world.study.rights.forms.update(enrolment=Access.REMOVE_IDENTIFIERS)
    ),
    "redcap-one-group-only": (REDCAP, _dag),
    "phones-none": (REDCAP, _no_phones),
    "phones-unreadable": (REDCAP, lambda world: world.study.set_value("2", "mobile", "ask her sister")),
    "phones-doubtful": (REDCAP, lambda world: world.study.set_value("2", "mobile", "555-0123")),
    "phones-shared": (REDCAP, _shared_phone),
    "opt-out-values-foreign": (
        REDCAP, lambda world: world.study.set_value("2", "sms_opt_out_at", "yes, by phone")
    ),
    "twilio-unreachable": (ACCOUNT, lambda world: world.twilio.fail("503", times=None)),
    "twilio-token-refused": (ACCOUNT, environment("TEST_AUTH_TOKEN", "f" * 32)),
    "twilio-token-stale": (ACCOUNT, _two_tokens(AUTH_TOKEN, None)),
    "twilio-token-not-signing": (ACCOUNT, _two_tokens("9" * 32, AUTH_TOKEN)),
    "twilio-account-inactive": (ACCOUNT, _suspended),
    "twilio-refused": (INBOUND, _restricted),
    "auth-token-not-here": ("configuration", _token_elsewhere),
    "api-key-refused": (API_KEY, api_key("another")),
    "api-key-lacks-permission": (API_KEY, api_key(without=frozenset({"GET Sinks", "POST Consents"}))),
    "block-not-enabled": (BLOCKING, _not_enabled),
    "block-sender-refused": (BLOCKING, blocking(messaging_service_sid=None, senders=["+16505550198"])),
    "block-wrong-scope": (BLOCKING, _plain_number_in_service),
    "block-covers-nothing": (BLOCKING, blocking(messaging_service_sid=None, senders=[f"whatsapp:{SENDER}"])),
    "block-concerns-others": (BLOCKING, _shared_service),
    "blocks-failed": (BLOCKING, _failed_block),
    "service-missing": (INBOUND, table(messaging_service_sid=new_sid("MG"))),
    "service-without-senders": (INBOUND, _senders_gone),
    "service-drops-messages": (INBOUND, service(inbound_request_url=None)),
    "number-unknown": (INBOUND, table(senders=["+16505550111"])),
    "number-in-service": (INBOUND, table(messaging_service_sid=None, senders=[SENDER])),
    "number-has-application": (INBOUND, number(sms_application_sid=new_sid("AP"))),
    "inbound-elsewhere": (INBOUND, service(inbound_request_url="https://elsewhere.example.edu/")),
    "inbound-by-get": (INBOUND, service(inbound_method="GET")),
    "webhook-without-retry": (INBOUND, service(inbound_request_url=OURS)),
    "webhook-without-fallback": (INBOUND, service(fallback_url=None)),
    "forwarding-differs": (INBOUND, _forwarding_differs),
    "replies-not-forwarded": (INBOUND, _forgotten_number_address),
    "sink-failed": (INBOUND, _failed_sink),
    "sink-not-subscribed": (INBOUND, _unsubscribed),
    "advanced-opt-out-unseen": (INBOUND, lambda world: None),
    "campaign-unverified": (INBOUND, lambda world: world.service.campaigns.clear()),
    "numbers-redacted": (INBOUND, _redacted(redact_numbers=True)),
    "bodies-redacted": (INBOUND, _redacted(redact_bodies=True)),
}  # fmt: skip

# Produced by tests of their own further down: they need a server, or a Redis with settings.
PRODUCED_ELSEWHERE = {
    "config-unusable", "redis-unreachable", "redis-not-append-only", "redis-fsync-late", "redis-may-evict",
    "redis-writes-fail", "redis-settings-hidden", "redis-right-missing", "redis-info-hidden",
    "redis-is-cluster", "redis-tls-unverified", "broker-unreachable", "clock-differs",
    "web-unreachable", "web-certificate", "web-is-another", "web-not-ready", "no-worker", "events-wait",
    "smtp-deferred", "smtp-helo-rejected", "smtp-login-rejected", "smtp-token-endpoint-unreachable",
    "smtp-client-rejected", "smtp-token-rejected", "smtp-sender-rejected", "smtp-relay-denied",
    "smtp-recipient-rejected", "smtp-message-rejected",
    "events-failed", "reviews-wait", "log-erased", "messages-of-no-project", "reconcile-late", "reconcile-never",
    "check-unfinished",
}  # fmt: skip


def ids(found: Found) -> set[str]:
    return {item.id for item in found if isinstance(item, Finding)}


def test_every_finding_has_a_test_that_produces_it() -> None:
    source = Path(__file__).read_text() + Path(__file__).with_name("test_check_mail.py").read_text()
    assert PRODUCED_BY.keys() | PRODUCED_ELSEWHERE == CATALOGUE.keys()
    assert all(source.count(id_) >= 2 for id_ in PRODUCED_ELSEWHERE)


@pytest.mark.parametrize("id_", PRODUCED_BY)
def test_what_is_wrong_is_found(world: World, id_: str) -> None:
    check, spoil = PRODUCED_BY[id_]
    spoil(world)
    assert id_ in ids(world.run(check))


@pytest.mark.parametrize("id_", ["twilio-token-refused", "twilio-token-stale", "service-missing"])
def test_it_is_found_by_the_newer_form_of_twilios_errors_too(world: World, id_: str) -> None:
    check, spoil = PRODUCED_BY[id_]
    world.twilio.problem_details = True
    spoil(world)
    assert id_ in ids(world.run(check))


def test_the_second_token_is_tried_by_the_newer_form_of_twilios_errors_too(world: World) -> None:
    world.twilio.problem_details = True
    _two_tokens("0" * 32, None)(world)
    assert ids(world.run(INBOUND)) <= {"advanced-opt-out-unseen"}


def test_an_api_key_with_its_permissions_does_all_that_the_checks_need(world: World) -> None:
    _token_elsewhere(world)
    assert ids(world.run(API_KEY)) | ids(world.run(BLOCKING)) | ids(world.run(ACCOUNT)) == set()
    assert ids(world.run(INBOUND)) <= {"advanced-opt-out-unseen"}
    assert ids(world.run("configuration")) == {"auth-token-not-here"}


def test_missing_permissions_of_an_api_key_are_named(world: World) -> None:
    api_key(without=frozenset({"GET Sinks", "POST Consents"}))(world)
    [finding] = [item for item in world.run(API_KEY) if isinstance(item, Finding)]
    assert finding.observed == "it may not: list Event Streams Sinks, create Consents"
    assert finding.subject == "twilio.main"


def test_asking_whether_twilio_blocks_blocks_nothing(world: World) -> None:
    blocking()(world)
    assert ids(world.run(BLOCKING)) == set()
    assert len(world.twilio.blocks) == 0


def test_a_campaign_that_twilio_does_not_show_is_no_finding(world: World) -> None:
    world.twilio.fail("404", resource="Services/Usa2p", times=None)
    found = world.run(INBOUND)
    assert ids(found) <= {"advanced-opt-out-unseen"}
    told = "Twilio does not tell whether it has an A2P 10DLC campaign"
    assert told in [item.text for item in found if isinstance(item, Passed)]


@pytest.mark.parametrize("configuration", ODD_SINKS)
def test_a_sink_of_another_form_is_passed_over(world: World, configuration: Any) -> None:
    world.twilio.add_sink().configuration = configuration
    assert ids(world.run(INBOUND)) <= {"advanced-opt-out-unseen"}


def test_a_sinks_configuration_may_come_as_a_text(world: World) -> None:
    sink = world.twilio.add_sink(status="failed")
    sink.configuration = json.dumps(sink.configuration)  # type: ignore[assignment]
    assert ids(world.run(INBOUND)) >= {"sink-failed"}


@pytest.mark.parametrize("check", ["configuration", "templates", "smtp", REDCAP, ACCOUNT, INBOUND])
def test_where_all_is_well_nothing_is_found(world: World, check: str) -> None:
    found = world.run(check)
    assert ids(found) <= {"advanced-opt-out-unseen"}


@pytest.mark.parametrize("id_", PRODUCED_BY)
def test_no_finding_holds_a_phone_number_or_a_secret(world: World, id_: str) -> None:
    check, spoil = PRODUCED_BY[id_]
    spoil(world)
    texts = [item.observed if isinstance(item, Finding) else item.text for item in world.run(check)]
    secrets = [AUTH_TOKEN, builders.REDCAP_TOKEN, LONG_KEY, "u:p@"]
    digest = world.services().config.digest  # of eight digits, now and then
    for text in texts:
        assert not re.search(r"\d[\d ().-]{5,}\d", NO_NUMBER.sub("", text.replace(digest, ""))), text
        assert not [secret for secret in secrets if secret in text]


def test_nothing_is_written_to_redcap_or_twilio(world: World) -> None:
    before = len(world.study.log)
    world.run(REDCAP)
    world.run(INBOUND)
    written = [row for row in world.study.log[before:] if row.kind != "export"]
    assert written == []
    assert {entry.method for entry in world.twilio.request_log} == {"GET"}


def seen_texts(found: Found) -> list[str]:
    return [item.text for item in found if isinstance(item, Passed)]


@pytest.mark.parametrize("name", ["http_500", "empty_404", "login_page"])
def test_a_server_that_stumbles_over_an_import_without_rows_is_looked_at_further(
    world: World, name: str
) -> None:
    world.redcap.faults.add(name, kind="import", times=None)
    world.study.set_value("2", "mobile", "ask her sister")
    found = world.run(REDCAP)
    assert ids(found) == {"phones-unreadable"}
    assert "3 records, 2 different phone numbers" in seen_texts(found)


@pytest.mark.parametrize("name", ["memory_200", "memory_500", "too_much_400", "truncated"])
def test_a_project_too_large_for_one_export_is_read_in_portions(world: World, name: str) -> None:
    world.monkeypatch.setattr("worker.checks.redcap.MAX_RECORDS_PER_REQUEST", 20)
    enrol(world.study, 50)
    world.redcap.most_records_named = 20
    world.redcap.faults.add(name, kind="export", times=1)
    found = world.run(REDCAP)
    assert ids(found) == set()
    assert "50 records, 50 different phone numbers" in seen_texts(found)


def test_a_missing_data_code_in_the_opt_out_field_is_no_foreign_value(world: World) -> None:
    world.study.missing_data_codes = {"NASK": "Not asked"}
    world.study.set_value("2", "sms_opt_out_at", "NASK")
    assert ids(world.run(REDCAP)) == set()


def test_an_event_that_repeats_as_a_whole_is_found_for_field_and_checkbox(world: World) -> None:
    world.as_longitudinal(opt_out_checkbox="sms_opt_out")
    world.study.repeating = (Repeating(event="enrolment_arm_1"),)
    world.study.change_field("sms_opt_out_at")
    found = [item.observed for item in world.run(REDCAP) if isinstance(item, Finding)]
    assert [text.partition(":")[0] for text in found][:2] == ["opt_out_field", "opt_out_checkbox"]


def test_records_in_another_arm_are_named(world: World) -> None:
    _two_arms(world)
    found = [item for item in world.run(REDCAP) if isinstance(item, Finding)]
    assert [(item.id, item.observed) for item in found] == [
        ("redcap-records-in-another-arm", "1 record (2) not in arm 1")
    ]


def test_a_longitudinal_project_that_is_right_has_no_findings(world: World) -> None:
    world.as_longitudinal()
    assert ids(world.run(REDCAP)) == set()


def test_event_streams_make_the_address_of_the_service_irrelevant(world: World) -> None:
    world.service.inbound_request_url = "https://redcap.example.edu/surveys/?s=EXAMPLE"
    world.twilio.add_sink()
    assert ids(world.run(INBOUND)) == set()


def test_the_first_stop_by_webhook_proves_advanced_opt_out(world: World) -> None:
    assert "advanced-opt-out-unseen" in ids(world.run(INBOUND))
    _stop_by_webhook(world, new_sid("SM"))
    assert "advanced-opt-out-unseen" not in ids(world.run(INBOUND))


def test_a_test_message_and_what_the_log_recovers_prove_no_advanced_opt_out(world: World) -> None:
    _stop_by_webhook(world, TEST_SID_PREFIX + "0" * 22)
    _stop_by_webhook(world, new_sid("SM"), source=Source.MESSAGE_LOG)
    _stop_by_webhook(world, new_sid("SM"), project="sleep")
    world.redis.hset(keys.COUNTS, f"asthma|{Source.WEBHOOK}|{State.UPDATED}", 1)
    assert "advanced-opt-out-unseen" in ids(world.run(INBOUND))


def _stop_by_webhook(world: World, event_id: str, **more: Any) -> None:
    event = builders.opt_out_event(SENDER, event_id=event_id, when=NOW, **more)
    Ledger(world.redis).accept([event], now=NOW)


def test_a_check_lists_the_senders_of_the_service(world: World) -> None:
    world.run(INBOUND)
    assert ServiceSenders(world.redis, PhoneHasher(LONG_KEY)).services_of(SENDER, [SERVICE_SID]) == [
        SERVICE_SID
    ]


REDCAPS = "https://redcap.example.edu/surveys/?s=EXAMPLE"


@pytest.mark.parametrize(
    ("before", "on_number", "forward_url", "expected"),
    [
        (REDCAPS, "", REDCAPS, ""),
        (REDCAPS + "#rc=1", "", REDCAPS, ""),
        (REDCAPS, "", None, "forward_url is missing"),
        (REDCAPS, "", "https://redcap.example.edu/surveys/?s=OTHER", "forward_url is https"),
        ("https://user:hunter2@redcap.example.edu/x", "", None, "https://…@redcap.example.edu/x"),
        ("", REDCAPS, "https://redcap.example.edu/surveys/?s=OTHER", "forward_url is https"),
        ("", REDCAPS, REDCAPS, ""),
        ("", "", None, ""),
    ],
)
def test_forwarding_that_differs_from_what_setup_saved(
    world: World, before: str, on_number: str, forward_url: str | None, expected: str
) -> None:
    _saved_before_setup(world, inbound_request_url=before, use_inbound_webhook_on_number=not before)
    world.twilio.sender_at(SENDER).sms_url = on_number
    world.table["forward_url"] = forward_url
    found = [
        item for item in world.run(INBOUND) if isinstance(item, Finding) and item.id == "forwarding-differs"
    ]
    assert len(found) == bool(expected)
    assert all(expected in item.observed and "hunter2" not in item.observed for item in found)


def test_a_check_of_one_project_still_sees_the_other_projects_of_its_host(world: World) -> None:
    _rate(world)
    (finding,) = (item for item in world.run("configuration") if isinstance(item, Finding))
    assert finding.observed.endswith("asthma 300, sleep 100; 100 holds for all")


def test_many_records_are_counted_and_some_are_named() -> None:
    text = format_records([str(number) for number in range(25)])
    assert text.startswith("25 records (0, 1, ")
    assert text.endswith("19 and 5 more)")


# --- Redis, broker, clock -----------------------------------------------------------------------------


class Settings:
    """A Redis of which only settings and clock matter."""

    WELL: ClassVar[dict[str, Any]] = {
        "appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction",
    }  # fmt: skip

    def __init__(self, *, forbidden: bool = False, ahead: float = 0, info: Any = (), **settings: Any) -> None:
        self.settings = {**self.WELL, **{key.replace("_", "-"): value for key, value in settings.items()}}
        self.about = {"aof_enabled": 1, "maxmemory_policy": "noeviction", **dict(info)}
        self.forbidden = forbidden
        self.ahead = ahead

    def info(self, _section: str) -> dict[str, Any]:
        return self.about

    def time(self) -> tuple[int, int]:
        return int(NOW.timestamp() + self.ahead), 0

    def config_get(self, name: str) -> dict[str, Any]:
        if self.forbidden:
            raise ResponseError("unknown command 'CONFIG'")
        return {name: self.settings[name]}


@pytest.mark.parametrize(
    ("redis", "expected"),
    [
        (Settings(), set()),
        (Settings(appendonly="no"), {"redis-not-append-only"}),
        (Settings(appendfsync="everysec"), {"redis-fsync-late"}),
        (Settings(maxmemory_policy="allkeys-lru"), {"redis-may-evict"}),
        (Settings(info={"aof_last_write_status": "err"}), {"redis-writes-fail"}),
        (Settings(info={"cluster_enabled": 1}), {"redis-is-cluster"}),
        (Settings(forbidden=True), {"redis-settings-hidden"}),
        (
            Settings(forbidden=True, info={"aof_enabled": 0}),
            {"redis-settings-hidden", "redis-not-append-only"},
        ),
        (
            Settings(forbidden=True, info={"maxmemory_policy": "volatile-lru"}),
            {"redis-settings-hidden", "redis-may-evict"},
        ),
        (Settings(ahead=90), {"clock-differs"}),
    ],
)
def test_settings_of_redis_that_lose_data_are_found(redis: Any, expected: set[str]) -> None:
    assert ids(list(check_redis(redis, lambda: NOW))) == expected


def _as_user(valkey_port: int, rules: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a Redis user with these rights."""
    with Redis(port=valkey_port) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">S3cret", *rules.split())
    monkeypatch.setenv("OPTOUT_REDIS_URL", f"redis://limited:S3cret@127.0.0.1:{valkey_port}/0")
    return connect(redis_url())


@pytest.mark.parametrize(
    ("rules", "missing"),
    [
        ("~* &* +@all -hget", "+hget"),
        ("~* &* +@all -evalsha -script", "+evalsha +script|exists +script|load"),
        ("~* &* +@all -brpop", "+brpop"),
        ("~* &* +@all -multi", "+multi"),
        ("~* &* +@all -time", "+time"),
        ("~* &* +@all -psubscribe", "+psubscribe"),
        (
            "~* +@all resetchannels",
            "&/0.celery.pidbox &/0.celeryev/* &/0.celeryev/worker.* &/0.celeryev/worker.heartbeat",
        ),
        ("~optout:* &* +@all", "~*.pidbox* ~_kombu.binding* ~celeryev.* ~optout.* ~unacked*"),
        ("~optout.* ~_kombu.binding* ~unacked* ~*.pidbox* ~celeryev.* &* +@all", "~optout:*"),
    ],
)
def test_a_missing_right_of_the_redis_user_is_named(
    valkey_port: int, rules: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _as_user(valkey_port, rules, monkeypatch) as redis:
        (finding,) = check_rights()
        assert "redis-unreachable" not in ids(list(check_redis(redis, lambda: datetime.now(UTC))))
    assert isinstance(finding, Finding)
    assert (finding.id, finding.subject) == ("redis-right-missing", "redis")
    assert finding.observed == f"the user in OPTOUT_REDIS_URL lacks {missing}"
    assert "S3cret" not in str(finding.as_json())


def test_a_redis_user_without_dangerous_commands_lacks_only_what_the_check_itself_reads(
    valkey_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _as_user(valkey_port, "~* &* +@all -@dangerous", monkeypatch) as redis:
        assert ids(list(check_rights())) == set()
        found = list(check_redis(redis, lambda: datetime.now(UTC)))
    assert ids(found) == {"redis-info-hidden", "redis-settings-hidden"}
    assert "+info" in str(found)


def test_a_test_of_the_rights_changes_nothing(valkey_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with _as_user(valkey_port, "~* &* +@all", monkeypatch) as redis:
        redis.flushall()
        (passed,) = check_rights()
        assert isinstance(passed, Passed)
        assert redis.dbsize() == 0


def test_a_redis_that_is_away_is_found() -> None:
    class Away(Settings):
        def info(self, _section: str) -> dict[str, Any]:
            raise RedisConnectionError

    away: Any = Away()
    assert ids(list(check_redis(away, lambda: NOW))) == {"redis-unreachable"}


@pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
@pytest.mark.parametrize(
    ("url", "verified"),
    [
        ("redis://h/0", True),
        ("rediss://h/0", True),
        ("rediss://h/0?ssl_cert_reqs=required", True),
        ("rediss://h/0?ssl_cert_reqs=none", False),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", False),
        ("rediss://h/0?ssl_cert_reqs=optional", False),
        ("rediss://h/0?ssl_check_hostname=false", False),
    ],
)
def test_a_certificate_that_is_not_verified_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str, url: str, verified: bool
) -> None:
    monkeypatch.setenv(name, url)
    found = list(check_tls())
    assert ids(found) == (set() if verified else {"redis-tls-unverified"})
    assert all(item.observed == f"the options in {name}" for item in found if isinstance(item, Finding))


def test_a_certificate_that_is_not_verified_is_found_among_several_brokers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPTOUT_BROKER_URL", "rediss://:p@one/0;rediss://:p@two/0?ssl_cert_reqs=none")
    assert ids(list(check_tls())) == {"redis-tls-unverified"}


def test_a_broker_that_is_away_is_found_without_showing_its_password() -> None:
    (finding,) = check_broker(f"redis://user:secret@127.0.0.1:{free_port()}/0")
    assert isinstance(finding, Finding)
    assert finding.id == "broker-unreachable"
    assert "secret" not in str(finding.as_json())


# --- web, workers, backlog ----------------------------------------------------------------------------


def _web(world: World) -> Flask:
    services = world.services()
    return create_app(build_services(services.config, world.redis, RecordingPublisher(), schedule=at_once))


def test_the_own_web_process_is_recognised(world: World, served: Callable[[Any], str]) -> None:
    assert ids(list(check_web(served(_web(world)), lambda: datetime.now(UTC)))) == set()


def test_an_address_where_nobody_answers_is_found() -> None:
    assert ids(list(check_web(f"http://127.0.0.1:{free_port()}", lambda: NOW))) == {"web-unreachable"}


def test_an_untrusted_certificate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise requests.exceptions.SSLError("certificate verify failed: self-signed certificate")

    monkeypatch.setattr(requests, "get", refuse)
    assert ids(list(check_web("https://optout.example.edu", lambda: NOW))) == {"web-certificate"}


def test_another_service_at_the_address_is_found(served: Callable[[Any], str]) -> None:
    assert ids(list(check_web(served(Flask("other")), lambda: datetime.now(UTC)))) == {"web-is-another"}


def test_a_project_that_is_not_ready_is_found(world: World, served: Callable[[Any], str]) -> None:
    world.redis.hset(keys.PROBLEMS, "asthma", '{"problem": "x", "detail": "opt_out_field: mend it"}')
    found = list(check_web(served(_web(world)), lambda: datetime.now(UTC)))
    assert ids(found) == {"web-not-ready"}
    assert "asthma: opt_out_field: mend it" in str(found)


def test_no_worker_is_found() -> None:
    assert ids(list(check_workers(make_celery("memory://")))) == {"no-worker"}


def test_a_new_project_has_not_been_reconciled_yet(world: World) -> None:
    assert ids(list(check_backlog(world.services().ledger, "asthma", NOW))) == {"reconcile-never"}


def test_a_nightly_run_that_stays_away_is_found(world: World) -> None:
    world.redis.hset(keys.reconciled("asthma"), "success_ms", int((NOW.timestamp() - 27 * 3600) * 1000))
    found = list(check_backlog(world.services().ledger, "asthma", NOW))
    assert ids(found) == {"reconcile-late"}
    assert "27 hours ago" in str(found)


def test_events_that_wait_for_long_are_found(world: World) -> None:
    ledger = world.services().ledger
    ledger.accept([builders.opt_out_event()], now=NOW - timedelta(minutes=11))
    assert "events-wait" in ids(list(check_backlog(ledger, "asthma", NOW)))
    assert "events-wait" not in ids(list(check_backlog(ledger, "asthma", NOW - timedelta(minutes=5))))


def test_a_review_that_waits_for_long_is_found(world: World) -> None:
    ledger, event = world.services().ledger, builders.opt_out_event(change="")
    ledger.accept([event], now=NOW)
    ledger.complete_events(
        "asthma",
        [EventOutcome(event_id=event.event_id, phone_hash=event.phone_hash, state=State.NEEDS_REVIEW)],
        now=NOW,
    )
    assert "reviews-wait" in ids(list(check_backlog(ledger, "asthma", NOW + timedelta(hours=25))))
    assert "reviews-wait" not in ids(list(check_backlog(ledger, "asthma", NOW + timedelta(hours=5))))


def test_a_log_that_is_being_erased_is_found(world: World) -> None:
    missing = {"sender": SERVICE_SID, "since": "2026-05-04", "until": "2026-05-05", "messages": 3}
    world.redis.hset(keys.reconciled("asthma"), "report", json.dumps({"missing_from_log": [missing]}))
    found = list(check_backlog(world.services().ledger, "asthma", NOW))
    assert "log-erased" in ids(found)
    assert f"3 of {SERVICE_SID}" in str(found)


def test_messages_of_no_project_are_found(world: World) -> None:
    assert ids(list(check_unrouted(world.redis))) == set()
    world.redis.hset(keys.METRICS, "webhooks|inbound|no_project", 2)
    assert ids(list(check_unrouted(world.redis))) == {"messages-of-no-project"}


def test_events_that_have_failed_are_found(world: World) -> None:
    ledger, event = world.services().ledger, builders.opt_out_event()
    ledger.accept([event], now=NOW)
    failed = EventOutcome(event_id=event.event_id, phone_hash=event.phone_hash, state=State.FAILED)
    ledger.complete_events("asthma", [failed], now=NOW)
    assert "events-failed" in ids(list(check_backlog(ledger, "asthma", NOW)))


# --- the run as a whole -------------------------------------------------------------------------------


def test_a_check_that_hangs_does_not_hold_up_the_rest() -> None:
    let_go = threading.Event()

    def hangs() -> Iterator[Passed]:
        yield Passed("asthma", "this far")
        let_go.wait(30)

    report = run_checks(
        {"asthma: REDCap": hangs, "smtp": lambda: [Passed("smtp", "fine")]}, timeout_seconds=0.3
    )
    let_go.set()
    assert [seen.text for seen in report.passed] == ["this far", "fine"]
    assert [(finding.id, finding.subject) for finding in report.findings] == [("check-unfinished", "asthma")]


def test_a_mail_password_that_was_not_encoded_is_a_finding_of_its_own(world: World) -> None:
    world.monkeypatch.setenv("OPTOUT_SMTP_URL", "smtp://user:S3cr/et@mail.example.edu:587")
    [finding] = world.run("smtp")
    assert isinstance(finding, Finding)
    assert (finding.id, "%2F" in finding.observed, "S3cr" in finding.observed) == (
        "smtp-refused",
        True,
        False,
    )


@pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
def test_a_login_of_redis_or_broker_that_was_not_encoded_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("OPTOUT_CONFIG", str(ROOT / "config.example.toml"))
    monkeypatch.setenv(name, "redis://user:S3cr/et@redis.example.edu:6379/0")
    result = CliRunner().invoke(check_command, ["--json"])
    [finding] = json.loads(result.stdout)["findings"]
    assert (finding["id"], result.exit_code) == ("config-unusable", 1)
    assert name in finding["observed"]
    assert "S3cr" not in result.output


def test_a_check_that_breaks_does_not_take_the_others_along_nor_show_its_text() -> None:
    def breaks() -> Found:
        raise KeyError("+16505550100")

    report = run_checks({"web": breaks, "smtp": lambda: [Passed("smtp", "fine")]}, timeout_seconds=5)
    assert [finding.observed for finding in report.findings] == ["web: ended with KeyError"]
    assert len(report.passed) == 1


def test_with_everything_down_the_report_is_complete(world: World) -> None:
    world.redcap.faults.add("http_503", times=None)
    world.twilio.fail("503", times=None)
    world.monkeypatch.setenv("OPTOUT_SMTP_URL", f"smtp://127.0.0.1:{free_port()}")
    world.web_url = f"http://127.0.0.1:{free_port()}"
    checks = checks_for(world.services(), ["asthma"], make_celery("memory://"), world.web_url)
    report = run_checks(checks, timeout_seconds=60)
    found = {finding.id for finding in report.findings}
    assert found >= {"redcap-unreachable", "twilio-unreachable", "smtp-unreachable", "web-unreachable"}
    assert not report.is_well


def test_without_redis_redcap_and_twilio_are_still_checked(world: World) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            def away(*_: Any, **__: Any) -> Any:
                raise RedisConnectionError

            return (lambda _script: away) if name == "register_script" else away

    world.redis = Away()
    checks = checks_for(world.services(), ["asthma"], make_celery("memory://"), PUBLIC_URL)
    checks = {name: check for name, check in checks.items() if name not in {"web", "worker"}}
    report = run_checks(checks, timeout_seconds=60)
    assert [finding.id for finding in report.findings] == ["redis-unreachable"]
    assert any("3 records" in seen.text for seen in report.passed)


def test_errors_come_first_and_only_they_make_the_report_red() -> None:
    finds = [
        Finding(id="phones-shared", subject="a", observed="1"),
        Finding(id="phones-none", subject="a", observed="2"),
    ]
    well = run_checks({"a": lambda: finds}, timeout_seconds=5)
    assert [finding.severity for finding in well.findings] == [Severity.WARNING, Severity.NOTE]
    assert well.is_well
    error = Finding(id="redcap-banned", subject="a", observed="3")
    red = run_checks({"a": lambda: [*finds, error]}, timeout_seconds=5)
    assert red.findings[0] is error
    assert not red.is_well


# --- the command --------------------------------------------------------------------------------------


def test_a_configuration_that_cannot_be_read_is_a_finding_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPTOUT_CONFIG", str(tmp_path / "none.toml"))
    result = CliRunner().invoke(check_command)
    assert result.exit_code == 1
    assert "[config-unusable]" in result.stdout
    assert "copy config.example.toml" in result.stdout


def test_the_mail_password_never_shows(world: World) -> None:
    mailer = Mailer("smtp://user:hunter2@mail.example.edu:587?starttls=true", "a@example.edu")
    assert "hunter2" not in f"{mailer!r} {mailer.address}"


def test_another_machine_s_clock_is_told_by_its_answers(world: World) -> None:
    services = world.services()
    found = check_redcap("asthma", services.config, redis=world.redis, now=lambda: NOW + timedelta(hours=1))
    (finding,) = (item for item in found if isinstance(item, Finding))
    assert finding.id == "clock-differs"
    assert "s behind this machine's" in finding.observed


def test_off_a_terminal_a_finding_is_not_wrapped(world: World) -> None:
    world.monkeypatch.setenv("OPTOUT_CONFIG", str(world.folder / ("long" * 60) / "none.toml"))
    lines = CliRunner().invoke(check_command).stdout.splitlines()
    assert any(line.strip().startswith("fix: ") for line in lines)
    assert "1 error, 0 warnings, 0 notes" in lines[-1]


def test_an_http_address_on_this_machine_is_no_finding(world: World) -> None:
    world.changes["public_url"] = "http://127.0.0.1:8000"
    found = check_configuration(world.services().config, ["asthma"])
    assert "public-url-not-https" not in ids(list(found))
