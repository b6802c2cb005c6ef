"""E-mail over SMTP."""

import smtplib
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from email.message import EmailMessage
from email.utils import getaddresses
from functools import cached_property
from urllib.parse import parse_qs, unquote

from shared.config.urls import address_parts
from shared.errors import ConfigError, MailDeferred, MailRefused

TIMEOUT_SECONDS = 30.0
SENT = "sent"


def outcome_of(refused: Sequence[str], message: EmailMessage) -> str:
    """What became of a mail that was taken, in words for ledger and log, which hold no addresses."""
    if not refused:
        return SENT
    return f"partly refused: {len(refused)} of {len(getaddresses([message['To']]))} addresses"


class Mailer:
    """Sends through one mail server, given as `smtp://user:password@host:587?starttls=true` or `smtps://…`.

    Raises ConfigError where the address is none; it is not repeated, as it holds a password.
    """

    def __init__(self, url: str, sender: str) -> None:
        parts = address_parts(url, "smtp.url")
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            raise ConfigError(
                "smtp.url",
                ["smtp.url: must be smtp://host:port or smtps://host:port; mend what it refers to"],
            )
        self.sender = sender
        self._tls = parts.scheme == "smtps"
        self._starttls = parse_qs(parts.query).get("starttls", ["false"])[-1].lower() in {"true", "1", "yes"}
        self._host = parts.hostname
        self._port = parts.port or (465 if self._tls else 587 if self._starttls else 25)
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")

    def __repr__(self) -> str:
        return f"Mailer({self.address})"

    @property
    def address(self) -> str:
        """Host and port; without the login."""
        return f"{self._host}:{self._port}"

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        """Made once, as reading the system's certificates takes longer than sending a mail."""
        return ssl.create_default_context()

    def send(self, message: EmailMessage) -> list[str]:
        """Send one message. Answers the addresses that the server refused while it took the others.

        Raises MailDeferred where it took nothing for now, MailRefused where it never will.
        """
        with _failures_named():
            server = self._connected()
            try:
                return list(server.send_message(message))
            finally:
                _part_from(server)

    def _connected(self) -> smtplib.SMTP:
        server: smtplib.SMTP
        if self._tls:
            server = smtplib.SMTP_SSL(
                self._host, self._port, timeout=TIMEOUT_SECONDS, context=self._tls_context
            )
        else:
            server = smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_SECONDS)
        try:
            if self._starttls:
                server.starttls(context=self._tls_context)
            if self._user:
                server.login(self._user, self._password)
        except BaseException:
            server.close()
            raise
        return server

    def check(self) -> None:
        """Connect and log in, without sending. Raises as `send` does."""
        with _failures_named():
            _part_from(self._connected())


def _part_from(server: smtplib.SMTP) -> None:
    """Say QUIT, whatever comes of it: a mail is the server's from its 250 to the data on (RFC 5321, 4.2.5).

    Leaving smtplib's `with` raises where QUIT is answered by anything but 221: the mail would be sent once more.
    """
    with suppress(smtplib.SMTPException, OSError):
        server.quit()
    server.close()


@contextmanager
def _failures_named() -> Iterator[None]:
    """Turn what smtplib raises into MailDeferred and MailRefused."""
    try:
        yield
    except smtplib.SMTPRecipientsRefused as error:
        codes = {code for code, _ in error.recipients.values()}
        raise _failure(max(codes) if min(codes) >= 500 else min(codes)) from None
    except smtplib.SMTPResponseException as error:
        raise _failure(error.smtp_code) from None
    except smtplib.SMTPNotSupportedError:
        raise MailRefused("smtp_not_supported", "the server lacks STARTTLS or AUTH; mend smtp.url") from None
    except UnicodeError:
        # Its text and repr hold the password: smtplib's AUTH takes ASCII only (CPython issue 73936).
        raise MailDeferred(
            "smtp_not_ascii",
            "smtplib takes no letters outside ASCII; mend host, user and password of smtp.url",
        ) from None
    except (smtplib.SMTPException, OSError) as error:
        raise MailDeferred("smtp_unreachable", type(error).__name__) from None


def _failure(code: int) -> MailDeferred | MailRefused:
    """By SMTP's own rule: 4xx for now, 5xx for good (RFC 5321, 4.2.1). The server's text may repeat addresses."""
    if code >= 500:
        return MailRefused("smtp_refused", f"code {code}")
    return MailDeferred("smtp_deferred", f"code {code}")
