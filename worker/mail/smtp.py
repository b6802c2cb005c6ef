"""E-mail over SMTP."""

import binascii
import smtplib
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import cached_property
from typing import Any, Self
from urllib.parse import parse_qs, unquote

from redis.exceptions import RedisError

from shared.causes import cause_in_words
from shared.config import Config
from shared.config.certificates import client_context
from shared.config.schema import Smtp, SmtpOAuth2
from shared.config.urls import address_parts
from shared.domain.addresses import PhoneHasher
from shared.domain.mailbox import Mailbox
from shared.errors import ConfigError, MailDeferred
from shared.ledger import keys
from shared.redis_client import RedisClient
from shared.retry_policy import SMTP_CONTENT_TIMEOUT_SECONDS, SMTP_DIALOGUE_SECONDS, SMTP_TIMEOUT_SECONDS
from worker.mail.login_pacing import LoginPacing
from worker.mail.oauth2 import AccessTokens
from worker.mail.server_guard import ServerGuard
from worker.mail.verdicts import DataCommandError, Recipients, failure_of, failure_of_all, judge_recipients

SENT = "sent"
REMEMBER_SECONDS = 7 * 86_400

# Recipients that a server did not accept, with its replies.
Refused = dict[str, tuple[int, bytes]]


def outcome_of(missed: Recipients, message: EmailMessage) -> str:
    """The outcome of an accepted mail, in words for ledger and log, which contain no addresses."""
    number = len(missed.rejected) + len(missed.deferred)
    return partly_rejected(number, len(recipients_of(message))) if number else SENT


def recipients_of(message: EmailMessage) -> list[str]:
    """The addresses of a message, without display names."""
    return [address.addr_spec for address in message["To"].addresses]


def partly_rejected(number: int, of: int) -> str:
    """The outcome of a mail that some recipients never receive."""
    return f"partly rejected: {number} of {of} addresses"


class NoReply(smtplib.SMTPServerDisconnected):
    """The server did not reply in time; the text says which time."""


class _Connection(smtplib.SMTP):
    """smtplib's client, but any 2xx is an acceptance (RFC 5321, section 4.2.1): it would send the mail again."""

    _deadline: threading.Timer | None = None
    _expired = False
    _reply_seconds = SMTP_TIMEOUT_SECONDS

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        opened: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]
        self._deadline = threading.Timer(SMTP_DIALOGUE_SECONDS, self._disconnect)
        self._deadline.daemon = True
        self._deadline.start()
        return opened

    def _disconnect(self) -> None:
        self._expired = True
        with suppress(OSError):
            if self.sock:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # SSLSocket's own is not thread-safe

    def getreply(self) -> tuple[int, bytes]:
        try:
            return super().getreply()
        except smtplib.SMTPServerDisconnected as error:
            if self._expired:
                raise NoReply(f"the dialogue did not end within {SMTP_DIALOGUE_SECONDS:g} s") from None
            if isinstance(error.__context__, TimeoutError):
                raise NoReply(f"timed out after {self._reply_seconds:g} s") from None
            raise

    def close(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().close()

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> tuple[int, bytes]:
        return _accepted(super().rcpt(recip, options))

    def data(self, msg: Any) -> tuple[int, bytes]:
        if self.sock:
            self.sock.settimeout(SMTP_CONTENT_TIMEOUT_SECONDS)
            self._reply_seconds = SMTP_CONTENT_TIMEOUT_SECONDS
        try:
            return _accepted(super().data(msg))
        except smtplib.SMTPDataError as error:
            raise DataCommandError(error.smtp_code, error.smtp_error) from None


class _TlsConnection(_Connection, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


def _accepted(reply: tuple[int, bytes]) -> tuple[int, bytes]:
    code, text = reply
    return (250 if 200 <= code < 300 else code), text


@dataclass(frozen=True, slots=True)
class _MailServer:
    """A mail server, and the login there. Its repr does not show the password."""

    host: str
    port: int
    tls: bool
    starttls: bool
    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read an address. Raises ConfigError, which does not repeat it."""
        parts = address_parts(url, "smtp.url")
        if parts.scheme not in {"smtp", "smtps"} or not parts.hostname:
            problem = "smtp.url: must be smtp://host:port or smtps://host:port; correct what it refers to"
            raise ConfigError("smtp.url", [problem])
        tls = parts.scheme == "smtps"
        starttls = parse_qs(parts.query).get("starttls", ["false"])[-1].lower() in {"true", "1", "yes"}
        port = parts.port or (465 if tls else 587 if starttls else 25)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(parts.hostname, port, tls, starttls, user, password)


class Mailer:
    """Sends through one mail server, given as `smtp://user:password@host:587?starttls=true` or `smtps://…`.

    `helo` is the name in EHLO; None uses this host's name. With `redis` all processes that use the same `login`
    together pause after a refused one. With `tokens` the login is by XOAUTH2, and the address names the mailbox.
    Raises ConfigError if the address is invalid; the error does not repeat it, as it contains a password.
    """

    def __init__(
        self,
        url: str,
        sender: str,
        *,
        helo: str | None = None,
        redis: RedisClient | None = None,
        tokens: AccessTokens | None = None,
        login: str = "",
    ) -> None:
        self._server = _MailServer.parse(url)
        self.sender = Mailbox.parse(sender)
        self._helo = helo
        if tokens and not self._server.user:
            problem = "smtp.url: needs the mailbox as user if there is [smtp.oauth2]; write smtp://bridge%40example.edu@…"
            raise ConfigError("smtp.url", [problem])
        self._tokens = tokens
        self._redis = redis
        self._pacing = LoginPacing(redis, f"{self.address}:{login}") if redis is not None else None
        self._guard = ServerGuard(redis, self.address) if redis is not None else None

    def __repr__(self) -> str:
        return f"Mailer({self.address})"

    @property
    def address(self) -> str:
        """Host and port, without the login."""
        return f"{self._server.host}:{self._server.port}"

    @cached_property
    def _tls_context(self) -> ssl.SSLContext:
        """Created once: reading the system's certificates takes longer than sending a mail."""
        return client_context()

    def send(self, message: EmailMessage, *, to: Sequence[str] = ()) -> Recipients:
        """Send one message, to all its recipients or only to some of them (`to`).

        Returns the recipients that the server did not accept while it accepted others.

        Raises MailDeferred if it can be sent later, MailRejected if it never can.
        """
        addresses = list(dict.fromkeys(to or recipients_of(message)))
        try:
            with self._guard.connection() if self._guard else nullcontext():
                refused = self._talk(lambda server: server.send_message(message, self.sender, addresses))
        except MailDeferred as error:
            if error.code == "smtp_message_rejected":
                self._remember(str(error))
            raise
        self._remember("")
        return judge_recipients(refused, len(addresses) - len(refused))

    def check(self, recipients: Sequence[str] = ()) -> Recipients:
        """Connect, log in and ask about sender and recipients, without sending. Returns and raises as `send` does."""
        refused = self._talk(lambda server: _ask(server, self.sender, recipients))
        return judge_recipients(refused, len(recipients) - len(refused))

    def last_rejection(self) -> str:
        """Why the server rejected the last message after its content; "" if it did not."""
        return (self._redis.get(keys.MAIL_REJECTION) or "") if self._redis is not None else ""

    def _remember(self, rejection: str) -> None:
        """A check cannot find this out without sending. An error here must not send an accepted mail again."""
        if self._redis is None:
            return
        with suppress(RedisError):
            if rejection:
                self._redis.set(keys.MAIL_REJECTION, rejection, ex=REMEMBER_SECONDS)
            else:
                self._redis.delete(keys.MAIL_REJECTION)

    def _talk(self, dialogue: Callable[[smtplib.SMTP], Refused]) -> Refused:
        with self._translated_errors():
            server = self._connect()
            try:
                return dialogue(server)
            finally:
                _quit(server)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        """Translate smtplib's exceptions into MailDeferred and MailRejected."""
        try:
            yield
        except smtplib.SMTPRecipientsRefused as error:
            raise failure_of_all(error.recipients) from None
        except smtplib.SMTPResponseException as error:
            raise failure_of(error) from None
        except smtplib.SMTPNotSupportedError:
            problem = "the server offers no STARTTLS, no AUTH or not this mechanism; correct smtp.url"
            raise MailDeferred("smtp_not_supported", problem) from None
        except UnicodeError:
            # Its text and repr contain the password: smtplib's AUTH accepts ASCII only (CPython issue 73936).
            problem = "smtplib accepts ASCII characters only; correct host, user and password of smtp.url"
            raise MailDeferred("smtp_not_ascii", problem) from None
        except (smtplib.SMTPException, OSError, binascii.Error) as error:
            raise MailDeferred("smtp_unreachable", f"{self.address}: {_cause(error)}") from None

    def _connect(self) -> smtplib.SMTP:
        server = self._open()
        try:
            if self._server.starttls:
                server.starttls(context=self._tls_context)
            server.ehlo_or_helo_if_needed()
            if self._server.user:
                with self._pacing.login() if self._pacing else nullcontext(), self._translated_errors():
                    self._login(server)
        except BaseException:
            server.close()
            raise
        return server

    def _login(self, server: smtplib.SMTP) -> None:
        if self._tokens:
            self._login_by_token(server, self._tokens)
        else:
            self._login_by_password(server)

    def _login_by_password(self, server: smtplib.SMTP) -> None:
        """Log in by one mechanism: smtplib's login tries several, and a server counts each as a failure."""
        encrypted = self._server.tls or self._server.starttls
        preferred = ("PLAIN", "LOGIN", "CRAM-MD5") if encrypted else ("CRAM-MD5", "PLAIN", "LOGIN")
        mechanism = _offered(server, preferred)
        server.user, server.password = self._server.user, self._server.password
        server.auth(mechanism, getattr(server, f"auth_{mechanism.lower().replace('-', '_')}"))

    def _login_by_token(self, server: smtplib.SMTP, tokens: AccessTokens) -> None:
        """Log in by XOAUTH2; if the server rejects a token of before, once more with a new one.

        Source: Google's and Microsoft's docs, "The SASL XOAUTH2 mechanism".
        """
        _offered(server, ["XOAUTH2"])
        was_known = tokens.has_token
        login = f"user={self._server.user}\1auth=Bearer {tokens.get()}\1\1"
        code, text = server.docmd("AUTH", f"XOAUTH2 {b64encode(login.encode('ascii')).decode()}")
        if code == 334:  # the reason, which an empty line acknowledges
            code, text = server.docmd("")
        if code != 235:
            tokens.forget()
            if not was_known:
                raise smtplib.SMTPAuthenticationError(code, text)
            self._login_by_token(server, tokens)

    def _open(self) -> smtplib.SMTP:
        host, port, timeout = self._server.host, self._server.port, SMTP_TIMEOUT_SECONDS
        if self._server.tls:
            return _TlsConnection(host, port, self._helo, timeout=timeout, context=self._tls_context)
        return _Connection(host, port, self._helo, timeout=timeout)


def make_mailer(config: Config, smtp: Smtp, redis: RedisClient) -> Mailer:
    """The mailer of a configuration. Raises ConfigError."""
    url = smtp.url.resolve()
    tokens = AccessTokens(smtp.oauth2) if smtp.oauth2 else None
    login = _login_name(config, url, smtp.oauth2)
    return Mailer(url, smtp.sender, helo=config.helo, redis=redis, tokens=tokens, login=login)


def _login_name(config: Config, url: str, oauth2: SmtpOAuth2 | None) -> str:
    """The beginning of a keyed hash: a corrected password need not wait for the pause of the wrong one.

    It suffices to tell two logins apart, and is too short to try passwords against.
    """
    secret = oauth2.client_secret.resolve() if oauth2 else ""
    return PhoneHasher(config.hash_key.resolve())(f"login:{url}:{oauth2!r}:{secret}")[:3]


def _ask(server: smtplib.SMTP, sender: str, recipients: Sequence[str]) -> Refused:
    """The beginning of a mail transaction, up to its recipients. Raises as smtplib does."""
    code, text = server.mail(sender)
    if code != 250:
        raise smtplib.SMTPSenderRefused(code, text, sender)
    replies = {address: server.rcpt(address) for address in recipients}
    refused = {address: reply for address, reply in replies.items() if reply[0] not in {250, 251}}
    if refused and len(refused) == len(recipients):
        raise smtplib.SMTPRecipientsRefused(refused)
    server.rset()
    return refused


def _offered(server: smtplib.SMTP, mechanisms: Sequence[str]) -> str:
    """The first of the mechanisms that the server offers. Raises SMTPNotSupportedError if there is none."""
    offered = server.esmtp_features.get("auth", "").upper().split()
    mechanism = next((each for each in mechanisms if each in offered), None)
    if mechanism is None:
        raise smtplib.SMTPNotSupportedError
    return mechanism


def _quit(server: smtplib.SMTP) -> None:
    """Send QUIT and ignore errors: after the 250 reply to DATA the server owns the message (RFC 5321, 4.2.5).

    Leaving smtplib's `with` raises if the reply to QUIT is not 221: the mail would be sent once more.
    """
    with suppress(smtplib.SMTPException, OSError):
        server.quit()
    server.close()


def _cause(error: Exception) -> str:
    if isinstance(error, NoReply):
        return str(error)
    if isinstance(error, binascii.Error):
        return "a reply that is not Base64"
    return cause_in_words(error, timeout_seconds=SMTP_TIMEOUT_SECONDS)
