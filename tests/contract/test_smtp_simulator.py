"""The SMTP simulator, judged by Python's own smtplib."""

from __future__ import annotations

import smtplib
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from urllib.parse import urlsplit

import pytest
import requests

from tests.simulators.smtp import Phone, SmtpSimulator, serve_inbox

SENDER = "optout-bridge@example.edu"
ANN, BEN = "ann@example.edu", "ben@example.edu"


@pytest.fixture
def smtp() -> Iterator[SmtpSimulator]:
    with SmtpSimulator().serve() as running:
        yield running


def mail(*recipients: str) -> EmailMessage:
    """A mail in text and HTML, with characters beyond ASCII in header and body."""
    message = EmailMessage()
    message["Subject"] = "Opt-out recorded – Schüler"
    message["From"] = SENDER
    message["To"] = ", ".join(recipients or (ANN,))
    message.set_content("Record 7 – opted out.\n")
    message.add_alternative("<p>Record 7 – opted out.</p>", subtype="html")
    return message


def connect(smtp: SmtpSimulator, *, timeout: float = 5) -> smtplib.SMTP:
    address = urlsplit(smtp.url)
    assert address.hostname
    assert address.port
    return smtplib.SMTP(address.hostname, address.port, timeout=timeout)


def send(smtp: SmtpSimulator, *recipients: str, timeout: float = 5) -> dict[str, tuple[int, bytes]]:
    with connect(smtp, timeout=timeout) as client:
        return client.send_message(mail(*recipients))


def test_a_mail_arrives_with_its_envelope_and_both_bodies(smtp: SmtpSimulator) -> None:
    send(smtp, ANN, BEN)

    (received,) = smtp.inbox
    assert (received.sender, received.recipients) == (SENDER, (ANN, BEN))
    assert received.subject == "Opt-out recorded – Schüler"
    assert received.text.strip() == "Record 7 – opted out."
    assert "<p>Record 7" in received.html
    assert isinstance(received.message, EmailMessage)


def test_several_mails_come_in_order_over_one_connection(smtp: SmtpSimulator) -> None:
    with connect(smtp) as client:
        client.sendmail(SENDER, [ANN], b"Subject: 1\r\n\r\n")
        client.sendmail(SENDER, [ANN], b"Subject: 2\r\n\r\n")

    assert [received.subject for received in smtp.wait_for(2)] == ["1", "2"]
    assert smtp.connections == 1


def test_waiting_for_a_mail_that_does_not_come_ends(smtp: SmtpSimulator) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 mails"):
        smtp.wait_for(1, seconds=0.01)


@pytest.mark.parametrize("code", [451, 550])
def test_a_mail_can_be_refused_once(smtp: SmtpSimulator, code: int) -> None:
    smtp.fail(str(code))

    with pytest.raises(smtplib.SMTPDataError) as refused:
        send(smtp)
    send(smtp)

    assert refused.value.smtp_code == code
    assert len(smtp.inbox) == 1


def test_one_recipient_can_be_refused_while_another_gets_the_mail(smtp: SmtpSimulator) -> None:
    smtp.fail("550", recipient=BEN)

    refused = send(smtp, ANN, BEN)

    assert refused[BEN][0] == 550
    assert smtp.inbox[0].recipients == (ANN,)


def test_a_persistent_refusal_lasts_until_it_is_mended(smtp: SmtpSimulator) -> None:
    smtp.fail("451", times=None)
    for _ in range(2):
        with pytest.raises(smtplib.SMTPDataError):
            send(smtp)

    smtp.mend()
    send(smtp)

    assert len(smtp.inbox) == 1


def test_a_lost_answer_leaves_the_mail_taken(smtp: SmtpSimulator) -> None:
    smtp.fail("lose_answer")

    with pytest.raises(smtplib.SMTPServerDisconnected):
        send(smtp)

    assert len(smtp.inbox) == 1


def test_a_hang_lasts_until_the_client_gives_up_and_the_mail_is_not_taken(smtp: SmtpSimulator) -> None:
    smtp.fail("hang")

    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        send(smtp, timeout=0.1)

    assert smtp.inbox == []


def test_authentication_is_demanded_and_checked() -> None:
    with SmtpSimulator(user="bridge", password="p@ss/word").serve() as smtp:
        assert urlsplit(smtp.url).username == "bridge"
        with connect(smtp) as client, pytest.raises(smtplib.SMTPSenderRefused):
            client.send_message(mail())
        with connect(smtp) as client, pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("bridge", "wrong")
        with connect(smtp) as client:
            client.login("bridge", "p@ss/word")
            client.send_message(mail())

    assert len(smtp.inbox) == 1


def test_it_offers_no_starttls(smtp: SmtpSimulator) -> None:
    with connect(smtp) as client:
        client.ehlo()
        assert not client.has_extn("starttls")


def test_nobody_listens_after_the_block() -> None:
    with SmtpSimulator().serve() as smtp, connect(smtp) as client:
        client.noop()

    with pytest.raises(ConnectionRefusedError):
        connect(smtp)


def test_the_inbox_is_read_and_emptied_over_http(smtp: SmtpSimulator) -> None:
    send(smtp)
    with serve_inbox(smtp) as url:
        (shown,) = requests.get(f"{url}/inbox", timeout=5).json()
        page = requests.get(f"{url}/", timeout=5).text
        assert requests.delete(f"{url}/inbox", timeout=5).status_code == 204
        assert requests.get(f"{url}/inbox", timeout=5).json() == []

    assert (shown["envelope_to"], shown["subject"]) == ([ANN], "Opt-out recorded – Schüler")
    assert "<h2>Opt-out recorded – Schüler</h2>" in page


def test_the_inbox_page_shows_a_mails_text_as_text(smtp: SmtpSimulator) -> None:
    with connect(smtp) as client:
        client.sendmail(SENDER, [ANN], b"Subject: <script>\r\n\r\n<b>bold</b>\r\n")
    with serve_inbox(smtp) as url:
        page = requests.get(f"{url}/", timeout=5).text

    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;bold" in page


def test_faults_are_made_and_mended_over_http(smtp: SmtpSimulator) -> None:
    with serve_inbox(smtp) as url:
        requests.post(f"{url}/faults", json={"kind": "451", "times": None}, timeout=5)
        with pytest.raises(smtplib.SMTPDataError):
            send(smtp)
        requests.post(f"{url}/faults", json={"kind": None}, timeout=5)
        send(smtp)

    assert len(smtp.inbox) == 1


def test_it_runs_on_its_own() -> None:
    command = [sys.executable, "-m", "tests.simulators.smtp", "--port", "0", "--http-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        host, _, port = words[2].strip(",").partition(":")
        with smtplib.SMTP(host, int(port), timeout=5) as client:
            client.send_message(mail())
        received = requests.get(f"{words[-1]}inbox", timeout=5).json()
        process.terminate()

    assert ([item["envelope_to"] for item in received], process.returncode) == ([[ANN]], 0)


def test_a_mail_is_shown_as_mail_programs_show_it(smtp: SmtpSimulator) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "bridge@example.edu", ANN, "look"
    message.set_content("plain")
    message.add_alternative("<h1>rich</h1>", subtype="html")
    with smtplib.SMTP("127.0.0.1", smtp.port) as client:
        client.send_message(message)
    with serve_inbox(smtp) as url:
        assert '<a href="/mails/1">' in requests.get(url, timeout=5).text
        shown = requests.get(f"{url}/mails/1", timeout=5)
        assert "<h1>rich</h1>" in shown.text
        assert "default-src 'none'" in shown.headers["Content-Security-Policy"]
        for other in ("0", "2", "x"):
            assert requests.get(f"{url}/mails/{other}", timeout=5).status_code == 404


def test_a_person_texts_from_the_page_of_the_phones(smtp: SmtpSimulator) -> None:
    sent: list[tuple[str, str]] = []

    def send(number: str, words: str) -> str:
        sent.append((number, words))
        return "<done>"

    phone = Phone({"+16505550101": "record 1"}, send)
    with serve_inbox(smtp, phone=phone) as url:
        assert '<a href="/phone">' in requests.get(url, timeout=5).text
        assert "record 1" in requests.get(f"{url}/phone", timeout=5).text
        form = {"from": "+16505550101", "body": "stop & go"}
        answer = requests.post(f"{url}/phone", data=form, timeout=5)
        assert "&lt;done&gt;" in answer.text
    assert sent == [("+16505550101", "stop & go")]
    with serve_inbox(smtp) as url:
        assert requests.get(f"{url}/phone", timeout=5).status_code == 404
