"""Login with OAuth 2.0 client credentials: a real token endpoint, and a mail server that takes nothing else."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

import pytest
from structlog.testing import capture_logs

from shared.config import Config
from shared.errors import ConfigError, MailDeferred
from tests.builders import config, project_table
from tests.fakes import fake_redis, study
from tests.processes import free_port
from tests.simulators.oauth2 import Answer, TokenEndpoint, reject
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.simulators.smtp import SmtpSimulator
from worker.mail import oauth2
from worker.mail.smtp import Mailer, make_mailer

MAILBOX = "optout@example.edu"


@dataclass
class Office:
    """A mail server and its authorization server."""

    smtp: SmtpSimulator
    tokens: TokenEndpoint
    redis: Any

    def config(self, **changes: Any) -> Config:
        table = {
            "token_url": self.tokens.url,
            "client_id": self.tokens.client_id,
            "client_secret": "env:OPTOUT_TEST_CLIENT_SECRET",
            "scope": self.tokens.scope,
        }
        smtp = {"sender": MAILBOX, "oauth2": {**table, **changes}}
        return config({"asthma": project_table()}, smtp=smtp)

    def mailer(self, **changes: Any) -> Mailer:
        settings = self.config(**changes)
        assert settings.smtp is not None
        return make_mailer(settings, settings.smtp, self.redis)

    def failure(self, mailer: Mailer | None = None) -> str:
        """Try to send. Returns the error, with everything that a traceback shows."""
        with pytest.raises(MailDeferred) as caught:
            (mailer or self.mailer()).send(mail())
        shown = "".join(traceback.format_exception(caught.value)).replace(__file__, "")
        assert self.tokens.client_secret not in shown
        assert "s3cret" not in shown
        return str(caught.value)

    def end_pause(self) -> None:
        self.redis.flushall()


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    tokens = TokenEndpoint()
    smtp = SmtpSimulator(user=MAILBOX, token_is_valid=lambda token: token in tokens.valid)
    with ExitStack() as stack:
        stack.enter_context(tokens.serve())
        stack.enter_context(smtp.serve())
        monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", tokens.client_secret)
        monkeypatch.setenv("OPTOUT_SMTP_URL", smtp.url.replace(":@", "@"))
        yield Office(smtp, tokens, fake_redis())


def mail() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = MAILBOX, "coordinator@example.edu"
    message.set_content("Saved.\n")
    return message


def test_mails_are_sent_with_one_token(office: Office) -> None:
    mailer = office.mailer()
    for _ in range(3):
        mailer.send(mail())
    assert len(office.smtp.wait_for(3)) == 3
    assert len(office.tokens.requests) == 1
    assert "token" not in str(office.redis.keys("*"))


def test_a_token_is_renewed_before_it_expires(office: Office) -> None:
    mailer = office.mailer()
    mailer.send(mail())
    now = time.time()
    for ahead, requests in ((3000, 1), (3599 - 60, 2), (3599 + 3000, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("time.time", lambda ahead=ahead: now + ahead)
            mailer.send(mail())
        assert len(office.tokens.requests) == requests


@pytest.mark.parametrize("expires_in", ["3599", None, 0, 30])
def test_any_lifetime_is_accepted(office: Office, expires_in: Any) -> None:
    office.tokens.expires_in = expires_in
    mailer = office.mailer()
    for _ in range(2):
        mailer.send(mail())
    assert len(office.smtp.wait_for(2)) == 2


def test_a_token_that_the_server_no_longer_accepts_is_renewed_at_once(office: Office) -> None:
    mailer = office.mailer()
    mailer.send(mail())
    office.tokens.valid.clear()
    mailer.send(mail())
    assert (len(office.smtp.inbox), len(office.tokens.requests)) == (2, 2)


def test_a_new_token_that_is_rejected_is_the_only_login_for_a_minute(office: Office) -> None:
    office.smtp.reply("AUTH", "535 5.7.3 Authentication unsuccessful", times=None)
    mailer = office.mailer()
    assert office.failure(mailer) == "smtp_login_rejected: code 535 5.7.3 at AUTH"
    assert office.failure(mailer).startswith("smtp_login_paused")
    assert (office.smtp.logins, len(office.tokens.requests)) == (1, 1)
    office.smtp.mend()
    office.end_pause()
    mailer.send(mail())
    assert len(office.tokens.requests) == 2


def test_a_rejected_client_defers_the_mail_and_asks_once_a_minute(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", "expired")
    assert office.failure() == "oauth2_client_rejected: invalid_client AADSTS7000215"
    assert office.failure().startswith("smtp_login_paused")
    assert (len(office.tokens.requests), office.smtp.logins) == (1, 0)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (reject(error="unauthorized_client", error_description=None), "oauth2_client_rejected: unauthorized_client"),
        (reject(error="Ticket s3cret!"), "oauth2_client_rejected: an unknown error AADSTS7000215"),
        (reject(error="server_error", error_description="s3cret"), "oauth2_unreachable: server_error"),
        (Answer(500, b"s3cret"), "oauth2_unreachable: status 500"),
        (Answer(503, b"{}"), "oauth2_unreachable: status 503"),
        (Answer(200, b"<html>s3cret</html>"), "oauth2_unreachable: the response contains no token"),
        (Answer(200, b"[]"), "oauth2_unreachable: the response contains no token"),
        (Answer(200, b"{}"), "oauth2_unreachable: the response contains no token"),
        (Answer(200, b'{"access_token": ""}'), "oauth2_unreachable: the response contains no token"),
        (Answer(200, b'{"access_token": 7}'), "oauth2_unreachable: the response contains no token"),
        (Answer(200, '{"access_token": "ü"}'.encode()), "oauth2_unreachable: the response contains no token"),
        (Answer(200, b'{"access_token": "a\\u0001b"}'), "oauth2_unreachable: the response contains no token"),
        (Answer(404, b"not found"), "oauth2_unreachable: status 404"),
        (Answer(429, b"slow down"), "oauth2_unreachable: status 429"),
        (Answer(401, b"s3cret"), "oauth2_client_rejected: status 401"),
    ],
)  # fmt: skip
def test_an_endpoint_that_gives_no_token_defers_the_mail(
    office: Office, answer: Answer, expected: str
) -> None:
    office.tokens.answers.append(answer)
    mailer = office.mailer()
    assert office.failure(mailer) == expected
    office.end_pause()
    mailer.send(mail())
    assert len(office.smtp.inbox) == 1


def test_an_endpoint_in_trouble_causes_no_pause(office: Office) -> None:
    office.tokens.answers.append(Answer(503, b""))
    mailer = office.mailer()
    office.failure(mailer)
    mailer.send(mail())
    assert len(office.smtp.inbox) == 1


def test_an_unreachable_endpoint_defers_the_mail(office: Office) -> None:
    address = f"127.0.0.1:{free_port()}"
    expected = f"oauth2_unreachable: {address}: refused: nothing listens there"
    assert office.failure(office.mailer(token_url=f"http://{address}/token")) == expected


def test_a_silent_endpoint_defers_the_mail(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth2, "OAUTH2_TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        failure = office.failure(office.mailer(token_url=f"http://{address}/token"))
        assert failure == f"oauth2_unreachable: {address}: timed out after 0.2 s"


def test_a_redirect_is_not_followed_with_the_secret(office: Office) -> None:
    with TokenEndpoint().serve() as other:
        office.tokens.answers.append(Answer(307, b"", other.url))
        assert office.failure().startswith("oauth2_unreachable")
        assert other.requests == []


def test_a_server_that_offers_only_passwords_is_not_given_the_token(office: Office) -> None:
    office.smtp.token_is_valid = None
    assert office.failure().startswith("smtp_not_supported")
    assert (office.smtp.logins, office.tokens.requests) == (0, [])


def test_a_server_that_takes_only_tokens_is_not_given_a_password(office: Office) -> None:
    with pytest.raises(MailDeferred, match="smtp_not_supported"):
        Mailer(office.smtp.url.replace(":@", ":right@"), MAILBOX).send(mail())
    assert office.smtp.logins == 0


def test_the_address_must_name_the_mailbox(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTOUT_SMTP_URL", f"smtp://127.0.0.1:{office.smtp.port}")
    with pytest.raises(ConfigError, match="needs the mailbox as user"):
        office.mailer()


def test_mails_that_wait_for_the_client_secret_are_sent_when_it_is_there(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPTOUT_TEST_CLIENT_SECRET")
    project = classic_study()
    enrol(project, 2)
    asthma = study(project)
    asthma.config = office.config()
    asthma.services = asthma.new_services()
    del asthma.services.__dict__["mailer"]
    event = asthma.text(fictional_phone(1))
    with capture_logs() as logs:
        asthma.work()
        assert asthma.entry(event).notice == "saved"
        monkeypatch.setenv("OPTOUT_TEST_CLIENT_SECRET", office.tokens.client_secret)
        asthma.sweep_later()
    assert asthma.entry(event).mail == "sent"
    assert "token-" not in str(logs)
    assert "s3cret" not in str(logs)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"token_url": "http://login.example.edu/token"}, "smtp.oauth2.token_url: must be an https address"),
        ({"token_url": "login.example.edu"}, "smtp.oauth2.token_url: must be an address"),
        ({"client_secret": "s3cret"}, 'smtp.oauth2.client_secret: must be a reference, "env:NAME"'),
        ({"client_id": ""}, "smtp.oauth2.client_id: does not have the right form. The client id"),
        ({"client-id": "x"}, 'smtp.oauth2.client-id: unknown key. Did you mean "client_id"'),
    ],
)
def test_a_table_that_cannot_be_used_is_a_configuration_error(
    office: Office, changes: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        office.config(**changes)
    assert "s3cret" not in str(caught.value)
