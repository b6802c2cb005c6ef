"""`optout check` and the mail server: a finding for each way to fail, with its fix."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shared.config import Config
from shared.errors import MailDeferred
from shared.ledger import keys
from tests.builders import config, project_table
from tests.contract.test_xoauth2 import mail
from tests.fakes import RecordingPublisher, fake_redis
from tests.processes import free_port
from tests.simulators.oauth2 import Answer, TokenEndpoint
from tests.simulators.smtp import SmtpSimulator
from worker.checks.findings import CATALOGUE, Finding, Passed
from worker.checks.mail import check_mail
from worker.mail.smtp import make_mailer
from worker.services import Services

MAILBOX = "optout@example.edu"
ROOT = Path(__file__).parents[2]


@dataclass
class Office:
    """A mail server that takes passwords, another that takes tokens, and the token endpoint."""

    monkeypatch: pytest.MonkeyPatch
    smtp: SmtpSimulator
    exchange: SmtpSimulator
    tokens: TokenEndpoint
    redis: Any = field(default_factory=fake_redis)
    oauth2: dict[str, str] | None = None
    notify: list[str] = field(default_factory=lambda: ["a@example.edu", "b@example.edu"])
    operator: list[str] = field(default_factory=list)

    def use_tokens(self, **changes: str) -> None:
        self.monkeypatch.setenv("OPTOUT_SMTP_URL", self.exchange.url.replace(":@", "@"))
        self.oauth2 = {
            "token_url": self.tokens.url, "client_id": self.tokens.client_id,
            "client_secret": "env:OPTOUT_TEST_CLIENT_SECRET", "scope": self.tokens.scope, **changes,
        }  # fmt: skip

    @property
    def config(self) -> Config:
        smtp: dict[str, Any] = {"sender": MAILBOX} | ({"oauth2": self.oauth2} if self.oauth2 else {})
        tables = {"asthma": project_table(notify=self.notify)}
        return config(tables, smtp=smtp, operator={"notify": self.operator})

    def check(self) -> list[Finding | Passed]:
        return list(check_mail(self.config, ["asthma"], self.redis))

    def found(self) -> dict[str, str]:
        """What is observed by finding."""
        return {item.id: item.observed for item in self.check() if isinstance(item, Finding)}

    def send(self) -> None:
        settings = self.config
        assert settings.smtp is not None
        make_mailer(settings, settings.smtp, self.redis).send(mail())


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    tokens = TokenEndpoint()
    smtp = SmtpSimulator(user=MAILBOX, password="right")
    exchange = SmtpSimulator(user=MAILBOX, token_is_valid=lambda token: token in tokens.valid)
    with ExitStack() as stack:
        for server in (tokens, smtp, exchange):
            stack.enter_context(server.serve())
        monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", tokens.client_secret)
        monkeypatch.setenv("OPTOUT_SMTP_URL", smtp.url)
        yield Office(monkeypatch, smtp, exchange, tokens)


def rejects(stage: str, reply: str) -> Callable[[Office], None]:
    return lambda office: office.smtp.reply(stage, reply, times=None)


def with_token(stage: str, reply: str) -> Callable[[Office], None]:
    def spoil(office: Office) -> None:
        office.use_tokens()
        office.exchange.reply(stage, reply, times=None)

    return spoil


def address(url: str) -> Callable[[Office], None]:
    return lambda office: office.monkeypatch.setenv("OPTOUT_SMTP_URL", url)


def wrong_secret(office: Office) -> None:
    office.use_tokens()
    office.monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", "expired")


def answers(answer: Answer) -> Callable[[Office], None]:
    def spoil(office: Office) -> None:
        office.use_tokens()
        office.tokens.answers.append(answer)

    return spoil


def no_endpoint(office: Office) -> None:
    office.use_tokens(token_url=f"http://127.0.0.1:{free_port()}/token")


def no_login(office: Office) -> None:
    """The server demands a login, and the address has none."""
    office.monkeypatch.setenv("OPTOUT_SMTP_URL", f"smtp://127.0.0.1:{office.smtp.port}")


def no_mailbox(office: Office) -> None:
    office.use_tokens()
    no_login(office)


def only_passwords(office: Office) -> None:
    office.use_tokens()
    office.monkeypatch.setenv("OPTOUT_SMTP_URL", office.smtp.url)


WAYS: list[tuple[str, Callable[[Office], None], str]] = [
    ("smtp-unreachable", address(f"smtp://127.0.0.1:{free_port()}"), ": refused: nothing listens there"),
    ("smtp-helo-rejected", rejects("EHLO", "504 5.5.2 <[172.18.0.5]>: rejected"), "code 504 5.5.2 at EHLO"),
    ("smtp-helo-rejected", rejects("EHLO", "550 Invalid HELO"), "code 550 at EHLO"),
    ("smtp-login-rejected", rejects("AUTH", "535 5.7.8 Invalid credentials"), "code 535 5.7.8 at AUTH"),
    ("smtp-login-rejected", rejects("AUTH", "550 5.7.30 Basic authentication"), "code 550 5.7.30 at AUTH"),
    ("smtp-login-rejected", rejects("AUTH", "534 5.7.9 Log in with a browser"), "code 534 5.7.9 at AUTH"),
    ("smtp-login-rejected", no_login, "code 530 5.7.0 at MAIL"),
    ("smtp-sender-rejected", rejects("MAIL", "550 5.7.60 No permission"), "code 550 5.7.60 at MAIL"),
    ("smtp-sender-rejected", rejects("MAIL", "553 5.7.1 Sender address rejected"), "code 553 5.7.1 at MAIL"),
    ("smtp-helo-rejected", rejects("RCPT", "504 5.5.2 <host>: Helo command rejected"), "code 504 5.5.2 at RCPT"),
    ("smtp-sender-rejected", rejects("RCPT", "550 5.1.8 <a@b>: Sender address rejected"), "code 550 5.1.8 at RCPT"),
    ("smtp-sender-rejected", rejects("RCPT", "553 5.7.1 <a@b>: not owned by user"), "code 553 5.7.1 at RCPT"),
    ("smtp-login-rejected", rejects("RCPT", "530 5.7.0 Must authenticate"), "code 530 5.7.0 at RCPT"),
    ("smtp-relay-denied", rejects("RCPT", "550 5.7.54 SMTP; Unable to relay recipient"), "code 550 5.7.54 at RCPT"),
    ("smtp-relay-denied", rejects("RCPT", "554 5.7.1 Relay access denied"), "code 554 5.7.1 at RCPT"),
    ("smtp-relay-denied", rejects("RCPT", "550 relay not permitted"), "code 550 at RCPT"),
    ("smtp-recipient-rejected", rejects("RCPT", "550 5.1.1 No such user"), "code 550 5.1.1 at RCPT"),
    ("smtp-deferred", rejects("MAIL", "451 4.7.0 Try again later"), "code 451 4.7.0 at MAIL"),
    ("smtp-deferred", rejects("RCPT", "451 4.7.1 Greylisted"), "code 451 4.7.1 at RCPT"),
    ("smtp-token-endpoint-unreachable", no_endpoint, ": refused: nothing listens there"),
    ("smtp-token-endpoint-unreachable", answers(Answer(503, b"")), "oauth2_unreachable: status 503"),
    ("smtp-token-endpoint-unreachable", answers(Answer(200, b"<html>")), "the response contains no token"),
    ("smtp-client-rejected", wrong_secret, "oauth2_client_rejected: invalid_client AADSTS7000215"),
    ("smtp-token-rejected", with_token("AUTH", "535 5.7.3 Authentication unsuccessful"), "code 535 5.7.3 at AUTH"),
    ("smtp-token-rejected", with_token("AUTH", "535 5.7.139 Disabled"), "code 535 5.7.139 at AUTH"),
    ("smtp-sender-rejected", with_token("MAIL", "550 5.7.60 No permission"), "code 550 5.7.60 at MAIL"),
    ("smtp-refused", only_passwords, "smtp_not_supported"),
    ("smtp-refused", no_mailbox, "needs the mailbox as user"),
]  # fmt: skip


@pytest.mark.parametrize(("id_", "spoil", "observed"), WAYS)
def test_each_way_to_fail_is_a_finding_with_a_fix(
    office: Office, id_: str, spoil: Callable[[Office], None], observed: str
) -> None:
    spoil(office)
    results = office.check()
    assert [item.id for item in results if isinstance(item, Finding)] == [id_]
    [finding] = [item for item in results if isinstance(item, Finding)]
    shown = json.dumps(finding.as_json())
    assert observed in finding.observed
    assert finding.as_json()["docs"] == f"docs/reference/checks.md#{id_}"
    assert [secret for secret in ("right", "s3cret", "expired", MAILBOX) if secret in finding.observed] == []
    named = [path for path in (ROOT / "docs/how-to").glob("*.md") if f"docs/how-to/{path.name}" in shown]
    assert shown.count("docs/how-to/") == len(named)
    assert office.smtp.inbox == office.exchange.inbox == []


def test_all_ways_are_in_the_catalogue() -> None:
    tested = {id_ for id_, _, _ in WAYS} | {"smtp-in-the-clear", "smtp-message-rejected"}
    assert tested == {id_ for id_ in CATALOGUE if id_.startswith("smtp-")}


@pytest.mark.parametrize("tokens", [False, True])
def test_a_server_that_accepts_all_passes_and_receives_nothing(office: Office, tokens: bool) -> None:
    if tokens:
        office.use_tokens()
    [passed] = office.check()
    assert isinstance(passed, Passed)
    assert "accepts connection, login and sender, and 2 of 2 recipients" in passed.text
    assert office.smtp.inbox == office.exchange.inbox == []


def test_a_login_that_was_refused_a_moment_ago_is_not_tried_again(office: Office) -> None:
    office.smtp.reply("AUTH", "535 5.7.8 Invalid credentials")
    assert office.found().keys() == {"smtp-login-rejected"}
    found = office.found()
    assert "no login for" in found["smtp-login-rejected"]
    assert "code 535 5.7.8 at AUTH" in found["smtp-login-rejected"]
    assert office.smtp.logins == 1


def test_a_corrected_password_need_not_wait_and_the_wrong_one_stays_paused(office: Office) -> None:
    right = office.smtp.url
    for url in (right.replace("right", "wrong"), right, right.replace("right", "wrong")):
        office.monkeypatch.setenv("OPTOUT_SMTP_URL", url)
        assert bool(office.found()) == (url != right)
    assert office.smtp.logins == 2
    assert "wrong" not in str([(key, office.redis.get(key)) for key in office.redis.keys("*")])


def test_a_corrected_client_secret_need_not_wait(office: Office) -> None:
    wrong_secret(office)
    assert office.found().keys() == {"smtp-client-rejected"}
    office.monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", office.tokens.client_secret)
    assert office.found() == {}


def test_a_client_that_was_rejected_a_moment_ago_is_still_that_finding(office: Office) -> None:
    wrong_secret(office)
    for _ in range(2):
        assert office.found().keys() == {"smtp-client-rejected"}
    assert len(office.tokens.requests) == 1


def test_one_recipient_that_does_not_exist_is_named_by_its_place(office: Office) -> None:
    office.smtp.reply("RCPT", "550 5.1.1 No such user", recipient="b@example.edu")
    assert office.found() == {"smtp-recipient-rejected": "notify, address 2 of 2: rejected"}


def test_the_operators_recipients_are_tried_too(office: Office) -> None:
    office.operator = ["Research IT <it@example.edu>"]
    office.smtp.reply("RCPT", "550 5.1.1 No such user", recipient="it@example.edu")
    assert office.found() == {"smtp-recipient-rejected": "operator.notify, address 1 of 1: rejected"}


def test_one_recipient_to_whom_the_server_does_not_relay_is_named(office: Office) -> None:
    office.smtp.reply("RCPT", "550 5.7.1 Not outside", recipient="a@example.edu")
    assert office.found() == {"smtp-relay-denied": "notify, address 1 of 2: code 550 5.7.1 at RCPT"}


def test_one_greylisted_recipient_is_a_warning(office: Office) -> None:
    office.smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient="a@example.edu")
    assert office.found() == {"smtp-deferred": "notify, address 1 of 2: code 451 4.7.1 at RCPT"}


@pytest.mark.parametrize(
    ("reply", "id_"),
    [
        ("550 5.7.60 SMTP; Client does not have permissions to send as this sender", "smtp-sender-rejected"),
        ("554 5.2.252 SendAsDenied; not allowed to send as", "smtp-sender-rejected"),
        ("554 5.2.0 STOREDRV submission quota exceeded", "smtp-message-rejected"),
        ("550 5.7.1 Message rejected due to policy", "smtp-message-rejected"),
    ],
)
def test_what_a_server_says_only_after_the_content_is_remembered_until_a_mail_is_accepted(
    office: Office, reply: str, id_: str
) -> None:
    office.smtp.reply("DATA", reply)
    with pytest.raises(MailDeferred):
        office.send()
    assert office.found().keys() == {id_}
    assert office.redis.ttl(keys.MAIL_REJECTION) > 86_400
    office.send()
    assert office.found() == {}


@pytest.mark.parametrize("tokens", [False, True])
def test_a_secret_in_the_clear_is_a_finding(office: Office, tokens: bool) -> None:
    if tokens:
        office.use_tokens()
    office.monkeypatch.setenv("OPTOUT_SMTP_URL", f"smtp://u{'' if tokens else ':p'}@mail.invalid:25")
    assert "smtp-in-the-clear" in office.found()


def test_a_missing_client_secret_is_reported_with_the_other_secrets(office: Office) -> None:
    office.use_tokens()
    office.monkeypatch.delenv("OPTOUT_TEST_CLIENT_SECRET")
    assert office.check() == []
    command = importlib.import_module("worker.cli.check")
    services = Services(config=office.config, redis=office.redis, publish=RecordingPublisher())
    office.monkeypatch.setattr(command, "make_services", lambda: services)
    url = f"http://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(command.check, ["--json", "--url", url, "--timeout", "3"])
    found = [item for item in json.loads(result.stdout)["findings"] if item["subject"] == "smtp"]
    assert [item["id"] for item in found] == ["secret-missing"]
    assert "oauth2.client_secret" in found[0]["observed"]
