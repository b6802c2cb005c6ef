"""A stand-in for a mail server: a real SMTP socket, an inbox to look into, and failures on demand.

    with SmtpSimulator().serve() as smtp:
        smtp.url                         # smtp://127.0.0.1:PORT
        smtp.inbox[0].message["Subject"]

With `tls_context` it offers STARTTLS, and a login only after that, as Exchange Online does.

Run alone: python -m tests.simulators.smtp --port 9025 --http-port 9026   (inbox at http://127.0.0.1:9026/)
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import email
import email.policy
import html
import json
import re
import signal
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qsl, quote

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail that was taken, with the envelope it came in."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage
    received_at: datetime

    @property
    def subject(self) -> str:
        return str(self.message["Subject"] or "")

    @property
    def text(self) -> str:
        return self._part("plain")

    @property
    def html(self) -> str:
        return self._part("html")

    def _part(self, kind: str) -> str:
        part = self.message.get_body(preferencelist=(kind,))
        return str(part.get_content()) if part is not None else ""

    def summary(self) -> dict[str, Any]:
        """For GET /inbox."""
        return {
            "envelope_from": self.sender,
            "envelope_to": list(self.recipients),
            "received_at": self.received_at.isoformat(),
            "subject": self.subject,
            "headers": [[name, str(value)] for name, value in self.message.items()],
            "text": self.text,
            "html": self.html,
        }


class FaultKind(StrEnum):
    REFUSE_FOR_NOW = "451"
    REFUSE_FOR_GOOD = "550"
    SLOW = "slow"  # take the mail, and reply late
    HANG = "hang"  # say nothing after DATA's final dot
    LOSE_ANSWER = "lose_answer"  # the mail is taken, and the connection dropped before the answer
    QUIT_421 = "quit_421"  # the mail is taken, and QUIT answered by 421
    DROP_AT_QUIT = "drop_at_quit"  # the mail is taken, and the connection dropped at QUIT


AT_QUIT = {FaultKind.QUIT_421, FaultKind.DROP_AT_QUIT}


@dataclass(slots=True)
class Fault:
    """A failure on demand. A `recipient` makes a refusal apply to this RCPT TO alone; times None: for ever."""

    kind: FaultKind
    recipient: str | None = None
    times: int | None = 1
    seconds: float = 30.0

    def use(self) -> None:
        self.times = None if self.times is None else self.times - 1


@dataclass(slots=True)
class _Reply:
    """A reply on demand to a command: EHLO, AUTH, MAIL, RCPT (of one recipient or any) or DATA."""

    stage: str
    text: str
    recipient: str | None
    times: int | None


@dataclass(slots=True)
class SmtpSimulator:
    """The mail server. With `user` and `password` it demands AUTH (over plain text, as there is no TLS).

    With `user` and `token_is_valid` it accepts XOAUTH2 and nothing else.
    """

    user: str | None = None
    password: str | None = None
    token_is_valid: Callable[[str], bool] | None = None
    tls_context: ssl.SSLContext | None = None
    inbox: list[Mail] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    connections: int = 0
    logins: int = 0
    _replies: list[_Reply] = field(default_factory=list)
    url: str = ""
    port: int = 0
    _protocols: list[SMTP] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def fail(
        self,
        kind: FaultKind | str,
        *,
        recipient: str | None = None,
        times: int | None = 1,
        seconds: float = 30.0,
    ) -> Fault:
        """Make mails fail: kind 451, 550, hang, lose_answer …; times=None: until mend()."""
        fault = Fault(FaultKind(str(kind)), recipient, times, seconds)
        self.faults.append(fault)
        return fault

    def reply(self, stage: str, text: str, *, recipient: str | None = None, times: int | None = 1) -> None:
        """Reply `text` ("550 5.1.1 …") to a command; times=None: until mend()."""
        self._replies.append(_Reply(stage, text, recipient, times))

    def next_reply(self, stage: str, recipient: str | None = None) -> str | None:
        """The demanded reply to a command, if any; counts its use."""
        for each in self._replies:
            if each.stage == stage and each.recipient in {None, recipient} and each.times != 0:
                each.times = None if each.times is None else each.times - 1
                return each.text
        return None

    def mend(self) -> None:
        """Take back all faults."""
        self.faults.clear()
        self._replies.clear()

    def clear(self) -> None:
        with self._changed:
            self.inbox.clear()

    def wait_for(self, count: int, *, seconds: float = 5.0) -> list[Mail]:
        """The inbox as soon as it holds `count` mails; TimeoutError otherwise."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.inbox) >= count, seconds):
                raise TimeoutError(f"{len(self.inbox)} of {count} mails came within {seconds} s")
            return list(self.inbox)

    @contextlib.contextmanager
    def serve(self, port: int = 0, host: str = "127.0.0.1") -> Iterator[SmtpSimulator]:
        """Take mail until the block ends; port 0 takes any free one."""
        with _running_loop() as (loop, run):
            server = run(loop.create_server(self._protocol, host, port))
            self.port = server.sockets[0].getsockname()[1]
            login = f"{quote(self.user, safe='')}:{quote(self.password or '', safe='')}@" if self.user else ""
            self.url = f"smtp://{login}{host}:{self.port}"
            try:
                yield self
            finally:
                run(_close(server, self._protocols))
                self._protocols.clear()

    # -- used by the protocol

    def _protocol(self) -> SMTP:
        self.connections += 1
        protocol = SMTP(
            _Handler(self),
            hostname="smtp.simulator.example.edu",
            ident="simulator",
            enable_SMTPUTF8=True,
            auth_require_tls=self.tls_context is not None,
            tls_context=self.tls_context,
            auth_exclude_mechanism=["LOGIN", "PLAIN"] if self.token_is_valid else ["XOAUTH2"],
            authenticator=self._authenticate,
            loop=asyncio.get_running_loop(),
        )
        self._protocols.append(protocol)
        return protocol

    def _authenticate(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _way: str, login: Any
    ) -> AuthResult:
        self.logins += 1
        if demanded := self.next_reply("AUTH"):
            return AuthResult(success=False, handled=False, message=demanded)
        right = (
            isinstance(login, LoginPassword)
            and login.login.decode() == self.user
            and login.password.decode() == self.password
        )
        return AuthResult(success=right, handled=False)

    def authenticate_token(self, user: str, token: str) -> str:
        """ "" if this is the mailbox and a valid token, else the reply. Source: "The SASL XOAUTH2 mechanism"."""
        self.logins += 1
        if demanded := self.next_reply("AUTH"):
            return demanded
        valid = user == self.user and self.token_is_valid is not None and self.token_is_valid(token)
        return "" if valid else "535 5.7.3 Authentication unsuccessful"

    def take_fault(self, recipient: str | None, *, at_quit: bool = False) -> Fault | None:
        """The first fault that is due, for a recipient (RCPT), for the mail as a whole (DATA, None) or at QUIT."""
        for fault in self.faults:
            if fault.recipient == recipient and fault.times != 0 and at_quit == (fault.kind in AT_QUIT):
                fault.use()
                return fault
        return None

    def keep(self, envelope: Envelope) -> None:
        content = cast(bytes, envelope.content)
        message = email.message_from_bytes(content, policy=email.policy.default)
        mail = Mail(str(envelope.mail_from), tuple(envelope.rcpt_tos), message, datetime.now(UTC))
        with self._changed:
            self.inbox.append(mail)
            self._changed.notify_all()


class _Handler:
    """aiosmtpd's hooks: called once per command, in the server's event loop."""

    def __init__(self, simulator: SmtpSimulator) -> None:
        self.simulator = simulator

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.simulator.greetings.append(hostname)
        session.host_name = hostname
        demanded = self.simulator.next_reply("EHLO")
        return [demanded] if demanded else responses

    async def handle_HELO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str
    ) -> str:
        session.host_name = hostname
        return self.simulator.next_reply("EHLO") or "250 simulator"

    async def auth_XOAUTH2(self, server: SMTP, args: list[str]) -> AuthResult:  # noqa: N802
        given = base64.b64decode(args[1]).decode() if len(args) > 1 else ""
        found = re.fullmatch("user=(.*)\1auth=Bearer (.*)\1\1", given)
        rejection = self.simulator.authenticate_token(*found.groups()) if found else "501 5.5.4 Syntax"
        if not rejection:
            return AuthResult(success=True)
        await server.challenge_auth('{"status":"400","schemes":"Bearer","scope":"https://mail.example.edu/"}')
        return AuthResult(success=False, handled=False, message=rejection)

    async def handle_MAIL(  # noqa: N802  # aiosmtpd finds hooks by this name
        self, _server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.simulator.user is not None and not session.authenticated:
            return "530 5.7.0 Authentication required"
        if demanded := self.simulator.next_reply("MAIL"):
            return demanded
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if demanded := self.simulator.next_reply("RCPT", address):
            if demanded.startswith("2"):
                envelope.rcpt_tos.append(address)
            return demanded
        fault = self.simulator.take_fault(address)
        if fault is not None:
            return refusal(fault.kind)
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        if demanded := self.simulator.next_reply("DATA"):
            if demanded.startswith("2"):
                self.simulator.keep(envelope)
            return demanded
        fault = self.simulator.take_fault(None)
        if fault is None:
            self.simulator.keep(envelope)
            return "250 OK"
        if fault.kind is FaultKind.LOSE_ANSWER:
            self.simulator.keep(envelope)
        if fault.kind is FaultKind.SLOW:
            await asyncio.sleep(fault.seconds)
            self.simulator.keep(envelope)
            return "250 OK"
        if fault.kind is FaultKind.HANG:
            await asyncio.sleep(fault.seconds)
        if fault.kind in {FaultKind.HANG, FaultKind.LOSE_ANSWER}:
            cast(asyncio.Transport, server.transport).abort()
        return refusal(fault.kind)

    async def handle_QUIT(self, server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        fault = self.simulator.take_fault(None, at_quit=True)
        if fault is None:
            return "221 Bye"
        if fault.kind is FaultKind.DROP_AT_QUIT:
            cast(asyncio.Transport, server.transport).abort()
        return "421 4.3.2 Shutting down"


def refusal(kind: FaultKind) -> str:
    if kind is FaultKind.REFUSE_FOR_GOOD:
        return "550 5.1.1 Mailbox unavailable"
    return "451 4.3.0 Try again later"


async def _close(server: asyncio.Server, protocols: Sequence[SMTP]) -> None:
    """Stop listening, cut what is still connected and wait for its tasks, so that no socket is left open."""
    server.close()
    for protocol in protocols:
        if protocol.transport is not None:
            cast(asyncio.Transport, protocol.transport).abort()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for _ in range(3):  # a transport closes its socket in a later turn of the loop
        await asyncio.sleep(0)


@contextlib.contextmanager
def _running_loop() -> Iterator[tuple[asyncio.AbstractEventLoop, Callable[[Any], Any]]]:
    """An event loop in a thread of its own, and a function that runs a coroutine in it and waits."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="smtp-simulator", daemon=True)
    thread.start()
    try:
        yield loop, lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# ------------------------------------------------------------------ the inbox over HTTP


@dataclass(frozen=True, slots=True)
class Phone:
    """Fictional participants' phones, for people who want to text something: names by number, and the sending."""

    names: Mapping[str, str]
    send: Callable[[str, str], str]  # number and words -> what happened


class _InboxServer(ThreadingHTTPServer):
    """GET /inbox and DELETE /inbox (JSON), POST /faults, and pages to read: /, /mails/N (as HTML) and /phone."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], simulator: SmtpSimulator, phone: Phone | None = None
    ) -> None:
        super().__init__(address, _InboxRequest)
        self.simulator = simulator
        self.phone = phone


class _InboxRequest(BaseHTTPRequestHandler):
    @property
    def simulator(self) -> SmtpSimulator:
        return cast(_InboxServer, self.server).simulator

    def do_GET(self) -> None:  # http.server finds methods by this name
        if self.path == "/inbox":
            mails = [mail.summary() for mail in list(self.simulator.inbox)]
            self._answer(200, json.dumps(mails, ensure_ascii=False), "application/json")
        elif self.path == "/":
            has_phone = self.phone is not None
            self._answer(200, inbox_page(list(self.simulator.inbox), has_phone=has_phone), "text/html")
        elif self.path == "/phone" and self.phone:
            self._answer(200, phone_page(self.phone), "text/html")
        elif (mail := self._mail()) is not None:
            self._answer(200, mail.html or f"<pre>{html.escape(mail.text)}</pre>", "text/html")
        else:
            self._answer(404, "not found", "text/plain")

    @property
    def phone(self) -> Phone | None:
        return cast(_InboxServer, self.server).phone

    def _mail(self) -> Mail | None:
        """The mail that /mails/N asks for; they are counted from 1."""
        folder, _, number = self.path[1:].partition("/")
        inbox = list(self.simulator.inbox)
        if folder != "mails" or not number.isdecimal() or not 1 <= int(number) <= len(inbox):
            return None
        return inbox[int(number) - 1]

    def do_DELETE(self) -> None:
        known = self.path == "/inbox"
        if known:
            self.simulator.clear()
        self._answer(204 if known else 404, "", "text/plain")

    def do_POST(self) -> None:
        """/faults: {"kind": "451", "recipient": …, "times": …}, or {"kind": null}. /phone: a form, from and body."""
        content = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if self.path == "/phone" and self.phone:
            form = dict(parse_qsl(content.decode()))
            said = self.phone.send(form.get("from", ""), form.get("body", ""))
            self._answer(200, phone_page(self.phone, said), "text/html")
            return
        given = json.loads(content)
        kind = given.pop("kind")
        if kind is None:
            self.simulator.mend()
        else:
            self.simulator.fail(kind, **given)
        self._answer(204, "", "text/plain")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Say nothing."""

    def _answer(self, status: int, body: str, kind: str) -> None:
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        # A mail is shown as mail programs show it: nothing is loaded or run.
        self.send_header(
            "Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"
        )
        self.end_headers()
        self.wfile.write(content)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width"><title>Inbox ({count})</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}}
article{{border:1px solid #ccc;border-radius:.5rem;padding:0 1rem;margin:1rem 0}}
h2{{font-size:1.1rem}}pre{{white-space:pre-wrap;font:inherit}}small{{color:#595959}}</style>
<h1>Inbox ({count})</h1>{phone}{mails}</html>"""
PHONE_LINK = '<p><a href="/phone">Text something yourself</a></p>'
PHONE_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Text something</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem}}
label{{display:block;margin:1rem 0}}input,select,button{{font:inherit;padding:.3rem;max-width:100%}}</style>
<h1>Text something yourself</h1><form method="post" action="/phone">
<label>From <select name="from">{options}</select></label>
<label>Words <input name="body" value="STOP" required maxlength="160"></label>
<button>Send</button></form><p role="status">{said}</p><p><a href="/">Inbox</a></p></html>"""


def inbox_page(mails: Sequence[Mail], *, has_phone: bool = False) -> str:
    """The inbox for people: newest first, as plain texts, each with a link to how mail programs show it."""
    articles = [
        f"<article><h2>{html.escape(mail.subject)}</h2><small>{html.escape(mail.sender)} to "
        f"{html.escape(', '.join(mail.recipients))}, {mail.received_at:%H:%M:%S} UTC, "
        f'<a href="/mails/{number}">as a mail program shows it</a></small>'
        f"<pre>{html.escape(mail.text)}</pre></article>"
        for number, mail in reversed(list(enumerate(mails, 1)))
    ]
    return PAGE.format(
        count=len(mails),
        mails="".join(articles) or "<p>No mail yet.</p>",
        phone=PHONE_LINK if has_phone else "",
    )


def phone_page(phone: Phone, said: str = "") -> str:
    """A form: who texts, and what."""
    options = "".join(
        f'<option value="{html.escape(number)}">{html.escape(name)}</option>'
        for number, name in phone.names.items()
    )
    return PHONE_PAGE.format(options=options, said=html.escape(said))


@contextlib.contextmanager
def serve_inbox(
    simulator: SmtpSimulator, port: int = 0, host: str = "127.0.0.1", phone: Phone | None = None
) -> Iterator[str]:
    """Serve the inbox over HTTP until the block ends; yields its URL."""
    with _InboxServer((host, port), simulator, phone) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulators.smtp", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9025)
    parser.add_argument("--http-port", type=int, default=9026)
    parser.add_argument("--user", help="demand AUTH with this user")
    parser.add_argument("--password")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    simulator = SmtpSimulator(chosen.user, chosen.password)
    with (
        simulator.serve(chosen.port, chosen.host),
        serve_inbox(simulator, chosen.http_port, chosen.host) as inbox,
    ):
        print(f"SMTP simulator: {chosen.host}:{simulator.port}, inbox: {inbox}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
