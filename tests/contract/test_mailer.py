"""Our mailer against the SMTP simulator, over a real socket."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage

import pytest

from shared.errors import ConfigError, MailDeferred, MailRejected
from tests.processes import free_port
from tests.simulators.smtp import SmtpSimulator
from worker.mail import smtp as module
from worker.mail.smtp import Mailer, outcome_of
from worker.mail.verdicts import Recipients

SENDER = "optout-bridge@example.edu"


@pytest.fixture
def smtp() -> Iterator[SmtpSimulator]:
    with SmtpSimulator().serve() as server:
        yield server


def message(*recipients: str) -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = "Opt-out (STOP) saved: record 7"
    mail["From"] = SENDER
    mail["To"] = ", ".join(recipients or ("coordinator@example.edu",))
    mail.set_content("Grüße: saved.\n")
    mail.add_alternative("<p>Grüße: saved.</p>", subtype="html")
    return mail


def test_a_mail_arrives_with_both_parts(smtp: SmtpSimulator) -> None:
    assert Mailer(smtp.url, SENDER).send(message()) == Recipients()
    [mail] = smtp.wait_for(1)
    assert (mail.sender, mail.recipients) == (SENDER, ("coordinator@example.edu",))
    assert mail.subject == "Opt-out (STOP) saved: record 7"
    assert (mail.text.strip(), mail.html.strip()) == ("Grüße: saved.", "<p>Grüße: saved.</p>")


def test_it_goes_to_every_address(smtp: SmtpSimulator) -> None:
    Mailer(smtp.url, SENDER).send(message("a@example.edu", "b@example.edu"))
    assert smtp.wait_for(1)[0].recipients == ("a@example.edu", "b@example.edu")


def test_a_server_that_asks_for_a_login_gets_it() -> None:
    with SmtpSimulator(user="bridge@example.edu", password="p:a/s@s %").serve() as server:
        assert Mailer(server.url, SENDER).send(message()) == Recipients()
        assert len(server.wait_for(1)) == 1


def test_a_wrong_password_defers_the_mail_and_is_not_repeated() -> None:
    with SmtpSimulator(user="bridge", password="right").serve() as server:
        mailer = Mailer(server.url.replace("right", "wrong-one"), SENDER)
        with pytest.raises(MailDeferred, match="smtp_login_rejected: code 535") as caught:
            mailer.send(message())
        assert "wrong-one" not in f"{caught.value}{mailer!r}"
        assert server.inbox == []


def test_a_password_outside_ascii_defers_the_mail_and_is_not_repeated() -> None:
    password = "geheim-ü-Zx81"
    with SmtpSimulator(user="bridge", password=password).serve() as server:
        with pytest.raises(MailDeferred, match="smtp_not_ascii") as caught:
            Mailer(server.url, SENDER).send(message())
        told = "".join(traceback.format_exception(caught.value))
        assert [piece for piece in ("geheim-", "Zx81") if piece in told] == []
        assert server.inbox == []


def test_a_host_that_is_no_name_defers_the_mail() -> None:
    with pytest.raises(MailDeferred, match="correct host, user and password"):
        Mailer(f"smtp://{'h' * 64}.example.edu", SENDER).check()


def test_a_server_that_says_later_defers_the_mail(smtp: SmtpSimulator) -> None:
    smtp.fail("451")
    with pytest.raises(MailDeferred, match=r"smtp_deferred: code 451 4\.3\.0 at DATA"):
        Mailer(smtp.url, SENDER).send(message())
    assert Mailer(smtp.url, SENDER).send(message()) == Recipients()
    assert len(smtp.wait_for(1)) == 1


def test_a_server_that_says_never_refuses_the_mail(smtp: SmtpSimulator) -> None:
    smtp.fail("550")
    with pytest.raises(MailRejected, match=r"smtp_rejected: code 550 5\.1\.1 at DATA"):
        Mailer(smtp.url, SENDER).send(message())


def test_one_refused_address_does_not_keep_the_others_from_being_told(smtp: SmtpSimulator) -> None:
    smtp.fail("550", recipient="gone@example.edu")
    mail = message("gone@example.edu", "b@example.edu")
    refused = Mailer(smtp.url, SENDER).send(mail)
    assert refused == Recipients(rejected=("gone@example.edu",))
    assert outcome_of(refused, mail) == "partly rejected: 1 of 2 addresses"
    assert smtp.wait_for(1)[0].recipients == ("b@example.edu",)


def test_when_one_of_all_refused_addresses_may_work_later_the_mail_is_deferred(smtp: SmtpSimulator) -> None:
    smtp.fail("550", recipient="gone@example.edu")
    smtp.fail("451", recipient="full@example.edu")
    with pytest.raises(MailDeferred):
        Mailer(smtp.url, SENDER).send(message("gone@example.edu", "full@example.edu"))


def test_when_all_addresses_are_refused_for_good_the_mail_is(smtp: SmtpSimulator) -> None:
    smtp.fail("550", recipient="gone@example.edu")
    with pytest.raises(MailRejected) as caught:
        Mailer(smtp.url, SENDER).send(message("gone@example.edu"))
    assert "gone@" not in str(caught.value)


def test_a_server_that_is_not_there_defers_the_mail() -> None:
    with pytest.raises(
        MailDeferred, match=r"smtp_unreachable: 127\.0\.0\.1:\d+: refused: nothing listens there"
    ):
        Mailer(f"smtp://127.0.0.1:{free_port()}", SENDER).send(message())


def test_a_server_that_falls_silent_defers_the_mail(
    smtp: SmtpSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMTP_TIMEOUT_SECONDS", 0.2)
    smtp.fail("hang", seconds=2)
    with pytest.raises(MailDeferred):
        Mailer(smtp.url, SENDER).send(message())


def test_an_answer_that_was_lost_defers_the_mail_although_it_arrived(smtp: SmtpSimulator) -> None:
    """So it may come twice, never not at all; its Message-ID is the same both times."""
    smtp.fail("lose_answer")
    with pytest.raises(MailDeferred):
        Mailer(smtp.url, SENDER).send(message())
    assert len(smtp.wait_for(1)) == 1


@pytest.mark.parametrize("farewell", ["quit_421", "drop_at_quit"])
def test_a_mail_that_was_taken_is_sent_however_the_server_parts(smtp: SmtpSimulator, farewell: str) -> None:
    smtp.fail(farewell)
    assert Mailer(smtp.url, SENDER).send(message()) == Recipients()
    assert len(smtp.wait_for(1)) == 1


def test_a_server_without_starttls_defers_the_mail_if_it_is_required(smtp: SmtpSimulator) -> None:
    with pytest.raises(MailDeferred, match="smtp_not_supported"):
        Mailer(f"{smtp.url}?starttls=true", SENDER).send(message())
    assert smtp.inbox == []


def test_the_connection_can_be_checked_without_a_mail(smtp: SmtpSimulator) -> None:
    Mailer(smtp.url, SENDER).check()
    assert smtp.inbox == []


@pytest.mark.parametrize(
    "url", ["", "mail.example.edu", "http://mail.example.edu", "smtp://", "smtp:user:secret@x"]
)
def test_an_address_that_is_none_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mailer(url, SENDER)
    assert "smtp.url: must be smtp://host:port" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "password", ["S3cr/et#1", "S3cr#et", "S3cr?et", "12/S3cret", "12#S3cret", "S3c[ret", "S3cret\u2100"]
)
def test_a_login_that_was_not_encoded_is_told_with_its_mend_and_not_repeated(password: str) -> None:
    with pytest.raises(ConfigError, match="/ is %2F, # is %23") as caught:
        Mailer(f"smtp://user:{password}@mail.example.edu:587", SENDER)
    told = "".join(traceback.format_exception(caught.value))
    assert "S3c" not in told.replace(__file__, "")
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("smtp://h", 25),
        ("smtp://h?starttls=true", 587),
        ("smtps://h", 465),
        ("smtp://h:2525?starttls=1", 2525),
    ],
)
def test_the_port_follows_from_the_kind_of_address(url: str, port: int) -> None:
    assert repr(Mailer(url, SENDER)) == f"Mailer(h:{port})"


@pytest.mark.parametrize(
    ("stage", "reply", "code"),
    [
        ("AUTH", "535 5.7.8 Authentication credentials invalid", "smtp_login_rejected"),
        ("AUTH", "535 5.7.139 Basic authentication is disabled", "smtp_login_rejected"),
        ("MAIL", "530 5.7.57 Client was not authenticated", "smtp_sender_rejected"),
        ("MAIL", "550 5.7.60 Client does not have permission to send as this sender", "smtp_sender_rejected"),
        ("MAIL", "550 Sender rejected", "smtp_sender_rejected"),
        ("RCPT", "550 5.7.1 Unable to relay", "smtp_relay_rejected"),
        ("RCPT", "554 5.7.1 Relay access denied", "smtp_relay_rejected"),
        ("RCPT", "550 5.1.8 Sender address has null MX", "smtp_relay_rejected"),
        ("RCPT", "550 Relaying denied", "smtp_relay_rejected"),
        ("DATA", "554 5.2.0 STOREDRV submission quota exceeded", "smtp_message_rejected"),
        ("DATA", "550 5.7.1 Message rejected due to policy", "smtp_message_rejected"),
        ("EHLO", "504 5.5.2 <[172.18.0.5]>: Helo command rejected", "smtp_greeting_rejected"),
        ("DATA", "421 4.3.2 Service not available", "smtp_deferred"),
    ],
)
def test_what_is_rejected_because_of_us_is_deferred(stage: str, reply: str, code: str) -> None:
    with SmtpSimulator(user="bridge", password="right").serve() as server:
        server.reply(stage, reply, times=None)
        with pytest.raises(MailDeferred) as caught:
            Mailer(server.url, SENDER).send(message())
    assert caught.value.code == code
    assert str(caught.value).endswith(f"at {stage}")


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("RCPT", "550 5.1.1 The email account that you tried to reach does not exist"),
        ("RCPT", "550 5.1.10 Recipient not found"),
        ("MAIL", "552 5.3.4 Message size exceeds fixed limit"),
        ("DATA", "552 5.3.4 Message too big for system"),
        ("DATA", "554 5.6.0 Corrupt message content"),
        ("DATA", "550 This message was classified as spam"),
    ],
)
def test_a_verdict_on_recipient_size_or_content_is_final(smtp: SmtpSimulator, stage: str, reply: str) -> None:
    smtp.reply(stage, reply, times=None)
    with pytest.raises(MailRejected, match=f"smtp_rejected: code 55[024].* at {stage}"):
        Mailer(smtp.url, SENDER).send(message())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("550 No such user", Recipients(rejected=("gone@example.edu",))),
        ("550 5.1.1 No such user", Recipients(rejected=("gone@example.edu",))),
        ("550 5.7.1 Not permitted", Recipients(deferred=("gone@example.edu",))),
        ("451 4.7.1 Greylisted", Recipients(deferred=("gone@example.edu",))),
    ],
)
def test_a_recipient_is_judged_by_itself_if_another_was_accepted(
    smtp: SmtpSimulator, reply: str, expected: Recipients
) -> None:
    smtp.reply("RCPT", reply, recipient="gone@example.edu")
    assert Mailer(smtp.url, SENDER).send(message("gone@example.edu", "b@example.edu")) == expected


def test_the_greeting_names_the_configured_host(smtp: SmtpSimulator) -> None:
    Mailer(smtp.url, SENDER, helo="optout.example.edu").check()
    assert smtp.greetings == ["optout.example.edu"]


@pytest.mark.parametrize(
    ("stage", "reply", "code"),
    [
        ("DATA", "530 Authentication required", "smtp_message_rejected"),
        ("DATA", "550 5.1.90 You have reached your daily limit for message recipients", "smtp_message_rejected"),
        ("DATA", "503 Bad sequence of commands", "smtp_message_rejected"),
        ("RCPT", "504 5.5.2 <host>: Helo command rejected: need fully-qualified hostname", "smtp_relay_rejected"),
        ("RCPT", "530 5.1.1 Log in first", "smtp_relay_rejected"),
        ("RCPT", "550 5.1.7 Bad sender address", "smtp_relay_rejected"),
        ("RCPT", "550 5.2.2 Mailbox full", "smtp_relay_rejected"),
        ("RCPT", "550 5.4.1 Access denied", "smtp_relay_rejected"),
        ("RCPT", "553 sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", "smtp_relay_rejected"),
        ("RCPT", "550 #5.7.1 Not permitted", "smtp_relay_rejected"),
        ("RCPT", "554 Relay access denied", "smtp_relay_rejected"),
        ("RCPT", "550-5.7.26 Blocked\r\n550 5.7.26 5.1.1 is not it", "smtp_relay_rejected"),
        ("RCPT", "421 4.3.2 Closing", "smtp_deferred"),
        ("MAIL", "421 4.3.2 Closing", "smtp_deferred"),
        ("AUTH", "421 4.7.0 Too many attempts", "smtp_deferred"),
        ("EHLO", "421 4.3.2 Closing", "smtp_deferred"),
        ("MAIL", "354 Go ahead", "smtp_deferred"),
        ("RCPT", "354 Go ahead", "smtp_deferred"),
        ("DATA", "354 Go ahead", "smtp_deferred"),
        ("MAIL", "501 5.1.7 Bad sender address syntax", "smtp_sender_rejected"),
        ("MAIL", "550 5.1.0 Address rejected", "smtp_sender_rejected"),
        ("DATA", "451-4.3.0 Try\r\n451 4.3.0 again", "smtp_deferred"),
    ],
)  # fmt: skip
def test_what_is_not_a_verdict_on_recipient_or_content_is_deferred(stage: str, reply: str, code: str) -> None:
    with SmtpSimulator(user="bridge", password="right").serve() as server:
        server.reply(stage, reply, times=None)
        with pytest.raises(MailDeferred) as caught:
            Mailer(server.url, SENDER).send(message())
    assert caught.value.code == code


@pytest.mark.parametrize(
    "reply",
    [
        "550 #5.1.0 Address rejected.",
        "550 sorry, no mailbox here by that name. (#5.1.1)",
        "501 5.1.3 Bad recipient address syntax",
        "550-5.1.1 The email account that you tried\r\n550 5.1.1 to reach does not exist",
    ],
)
def test_a_verdict_on_the_recipient_is_found_in_any_notation(smtp: SmtpSimulator, reply: str) -> None:
    smtp.reply("RCPT", reply, times=None)
    with pytest.raises(MailRejected, match=r"5\.1\.\d at RCPT"):
        Mailer(smtp.url, SENDER).send(message())


@pytest.mark.parametrize(
    "reply", ["530 Log in first", "554 Relay access denied", "552 Mailbox full", "571 Refused"]
)
def test_only_a_bare_550_for_one_recipient_alone_is_a_verdict_on_it(smtp: SmtpSimulator, reply: str) -> None:
    smtp.reply("RCPT", reply, recipient="a@example.edu")
    missed = Mailer(smtp.url, SENDER).send(message("a@example.edu", "b@example.edu"))
    assert missed == Recipients(deferred=("a@example.edu",))


def test_a_connection_that_is_closed_between_two_recipients_sends_to_nobody(smtp: SmtpSimulator) -> None:
    smtp.reply("RCPT", "421 4.3.2 Closing", recipient="b@example.edu")
    with pytest.raises(MailDeferred, match="smtp_deferred: code 421"):
        Mailer(smtp.url, SENDER).send(message("a@example.edu", "b@example.edu"))
    assert smtp.inbox == []


@pytest.mark.parametrize(
    ("stage", "reply"), [("DATA", "200 OK"), ("DATA", "251 Taken"), ("RCPT", "252 Will try")]
)
def test_any_positive_reply_is_an_acceptance(smtp: SmtpSimulator, stage: str, reply: str) -> None:
    """Otherwise the mail would be sent again for a week."""
    smtp.reply(stage, reply)
    assert Mailer(smtp.url, SENDER).send(message()) == Recipients()
    assert len(smtp.wait_for(1)) == 1


@pytest.mark.parametrize(
    "reply", ["554 5.5.1 No valid recipients", "550 Denied", "503 Bad sequence", "250 OK"]
)
def test_a_server_that_does_not_want_the_content_has_not_judged_it(reply: str) -> None:
    with scripted(reply) as url, pytest.raises(MailDeferred, match=f"code {reply[:3]}.* at DATA command"):
        Mailer(url, SENDER).send(message())


def test_a_server_that_scans_the_content_for_long_has_more_time(
    smtp: SmtpSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMTP_TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(module, "SMTP_CONTENT_TIMEOUT_SECONDS", 5)
    smtp.fail("slow", seconds=0.8)
    assert Mailer(smtp.url, SENDER).send(message()) == Recipients()
    assert len(smtp.inbox) == 1


@contextmanager
def scripted(reply_to_data: str) -> Iterator[str]:
    """A server that accepts everything up to DATA, and replies to that as given."""
    replies = {"DATA": reply_to_data, "QUIT": "221 Bye"}
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw", newline="\r\n") as stream:
                stream.write("220 ready\r\n")
                stream.flush()
                for line in stream:
                    stream.write(f"{replies.get(line.split()[0].upper(), '250 OK')}\r\n")
                    stream.flush()

        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(5)
