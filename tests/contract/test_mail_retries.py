"""Recipients that the mail server defers are tried again alone, over a real socket: event mails and digests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from shared.domain.events import Notice, OptOutEvent, State
from shared.ledger import EventOutcome, keys
from tests.builders import config, project_table
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.simulators.smtp import Mail, SmtpSimulator
from worker.mail.smtp import Mailer
from worker.mail.verdicts import Recipients

HEADERS = ("From", "To", "Reply-To")
A, B, C = "a@example.edu", "b@example.edu", "c@example.edu"


@dataclass
class Scene:
    """A study that notifies two people through a mail server."""

    study: Study
    smtp: SmtpSimulator

    def stop(self, number: int) -> OptOutEvent:
        event = self.study.text(fictional_phone(number))
        self.study.work()
        return event

    def received(self) -> list[tuple[str, ...]]:
        """The recipients of each mail."""
        return [mail.recipients for mail in self.smtp.inbox]

    def configure(self, **changes: Any) -> None:
        """Change the study's table, as a restarted worker sees it."""
        self.study.config = config({"asthma": project_table(**changes)})
        self.study.services = self.study.new_services()


@pytest.fixture
def smtp() -> Iterator[SmtpSimulator]:
    with SmtpSimulator().serve() as server:
        yield server


def scene(smtp: SmtpSimulator, **changes: Any) -> Scene:
    project = classic_study()
    enrol(project, 9)
    asthma = study(project, **{"notify": [A, B], **changes})
    asthma.mailer = Mailer(smtp.url, "optout-bridge@example.edu")  # type: ignore[assignment]
    asthma.services = asthma.new_services()
    return Scene(asthma, smtp)


def test_a_deferred_recipient_is_tried_again_alone(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    assert asthma.received() == [(A,)]
    assert asthma.study.entry(event).notice == "saved"
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (B,)]
    first, second = smtp.inbox
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert first.message["To"] == second.message["To"] == f"{A}, {B}"
    assert asthma.study.entry(event).mail == "sent"


def test_display_names_are_in_headers_and_nowhere_else(smtp: SmtpSimulator) -> None:
    notify = [A, f'"Müller, Jörg" <{B}>', f'"Coordinators, adults" <{C}>', B]
    asthma = scene(smtp, notify=notify, reply_to=f"Asthma study <{A}>")
    asthma.study.mailer = Mailer(smtp.url, '"Brücke, Uni" <optout-bridge@example.edu>')  # type: ignore[assignment]
    asthma.study.services = asthma.study.new_services()
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    asthma.study.sweep_later()
    assert asthma.received() == [(A, C), (B,)]
    assert {mail.sender for mail in smtp.inbox} == {"optout-bridge@example.edu"}
    message = smtp.inbox[1].message
    names = {header: [each.display_name for each in message[header].addresses] for header in HEADERS}
    assert names == {
        "From": ["Brücke, Uni"], "To": ["", "Müller, Jörg", "Coordinators, adults"], "Reply-To": ["Asthma study"],
    }  # fmt: skip
    assert asthma.study.entry(event).mail == "sent"


def test_nobody_receives_a_mail_twice_however_long_another_recipient_is_deferred(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "452 4.2.2 Mailbox full", recipient=B, times=None)
    event = asthma.stop(1)
    for _ in range(6):
        asthma.study.sweep_later(days=1)
    assert asthma.received() == [(A,)]
    assert asthma.study.entry(event).mail == ""
    asthma.study.sweep_later(days=1, minutes=1)
    assert asthma.study.entry(event).mail == "partly given up: smtp_deferred: code 452 4.2.2 at RCPT"
    smtp.mend()
    asthma.study.sweep_later()
    assert asthma.received() == [(A,)]


def test_a_rejection_of_the_last_recipient_leaves_the_others_served(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    smtp.reply("RCPT", "550 5.1.1 No such user", recipient=B, times=None)
    event = asthma.stop(1)
    asthma.study.sweep_later()
    assert asthma.received() == [(A,)]
    assert asthma.study.entry(event).mail == "partly rejected: 1 of 2 addresses"


def test_a_rejected_recipient_is_not_tried_again_with_a_deferred_one(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp, notify=[A, B, C])
    smtp.reply("RCPT", "550 5.1.1 No such user", recipient=C)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (B,)]
    assert asthma.study.entry(event).mail == "partly rejected: 1 of 3 addresses"


def test_an_outage_between_tries_changes_nothing(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    smtp.fail("451")
    asthma.study.sweep_later()
    assert asthma.received() == [(A,)]
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (B,)]
    assert asthma.study.entry(event).mail == "sent"


def test_recipients_that_change_in_between_are_served_as_configured(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    asthma.configure(notify=[A.upper(), C])
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (C,)]
    assert asthma.study.entry(event).mail == "sent"


def test_a_deferred_recipient_that_is_removed_ends_the_mail(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    asthma.configure(notify=[A])
    asthma.study.sweep_later()
    assert (asthma.received(), asthma.study.entry(event).mail) == ([(A,)], "sent")


def test_the_ledger_keeps_no_address(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    stored = asthma.study.redis.hgetall(keys.event("asthma", event.event_id))
    assert len(stored["mail_accepted"].split()) == 2
    assert "example.edu" not in str(stored)
    asthma.study.sweep_later()
    assert "mail_accepted" not in asthma.study.redis.hgetall(keys.event("asthma", event.event_id))


def test_a_digest_goes_again_to_the_deferred_recipient_alone(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp, notify_digest="10m")
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    events = [asthma.stop(number) for number in (1, 2)]
    asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A,)]
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (B,)]
    assert smtp.inbox[0].text == smtp.inbox[1].text
    assert {asthma.study.entry(event).mail for event in events} == {"sent"}
    asthma.study.sweep_later(minutes=11)
    assert len(asthma.received()) == 2


def test_changes_after_a_partly_deferred_digest_go_to_all(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp, notify_digest="10m")
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B, times=3)
    old = asthma.stop(1)
    asthma.study.sweep_later(minutes=11)
    new = asthma.stop(2)
    for _ in range(4):
        asthma.study.sweep_later(minutes=11)
    told = [(mail.recipients, "record 1," in mail.text, "record 2," in mail.text) for mail in smtp.inbox]
    assert told == [((A,), True, False), ((A,), False, True), ((B,), True, True)]
    assert {asthma.study.entry(event).mail for event in (old, new)} == {"sent"}


def test_many_changes_for_a_deferred_recipient_do_not_hold_up_later_ones(
    smtp: SmtpSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.steps.send_email.MOST_PER_DIGEST", 3)
    asthma = scene(smtp, notify_digest="10m")
    smtp.reply("RCPT", "452 4.2.2 Mailbox full", recipient=B, times=None)
    for number in (1, 2, 3, 4):
        asthma.stop(number)
    asthma.study.sweep_later(minutes=11)
    asthma.stop(5)
    asthma.study.sweep_later(minutes=11)
    text = "".join(mail.text for mail in smtp.inbox)
    assert [text.count(f"record {number},") for number in (1, 2, 3, 4, 5)] == [1] * 5
    smtp.mend()
    asthma.study.sweep_later(minutes=11)
    asthma.study.sweep_later(minutes=11)
    text = "".join(mail.text for mail in smtp.inbox if mail.recipients == (B,))
    assert [text.count(f"record {number},") for number in (1, 2, 3, 4, 5)] == [1] * 5


def test_only_changes_that_waited_a_week_are_abandoned(smtp: SmtpSimulator) -> None:
    asthma = scene(smtp, notify_digest="10m")
    smtp.fail("451", times=None)
    old = asthma.stop(1)
    asthma.study.sweep_later(days=6)
    new = asthma.stop(2)
    asthma.study.sweep_later(days=1, minutes=1)
    assert asthma.study.entry(old).mail == "given up: smtp_deferred: code 451 4.3.0 at DATA"
    assert (asthma.study.entry(new).mail, asthma.study.entry(new).notice) == ("", "saved")
    smtp.mend()
    asthma.study.sweep_later(minutes=11)
    assert asthma.study.entry(new).mail == "sent"
    assert ["record 1," in mail.text for mail in smtp.inbox] == [False]


def test_a_recipient_of_a_saved_mail_receives_the_later_unsaved_one(smtp: SmtpSimulator) -> None:
    """Recipients are remembered for one kind of notice."""
    asthma = scene(smtp)
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B, times=None)
    event = asthma.stop(1)
    asthma.study.redis.hset(keys.event("asthma", event.event_id), "notice", "unsaved")
    asthma.study.sweep_later()
    assert asthma.received() == [(A,), (A,)]


@pytest.mark.parametrize("digest", [None, "10m"])
def test_a_crash_after_a_partial_acceptance_repeats_the_mail_and_forgets_nobody(
    smtp: SmtpSimulator, monkeypatch: pytest.MonkeyPatch, digest: str | None
) -> None:
    asthma = scene(smtp, **({"notify_digest": digest} if digest else {}))
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    asthma.study.text(fictional_phone(1))
    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr("shared.ledger.Ledger.note_delivery", killed)
        asthma.study.work()
        asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A,)]
    asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A,), (A, B)]
    first, second = smtp.inbox
    assert first.message["Message-ID"] == second.message["Message-ID"]
    asthma.study.sweep_later(minutes=11)
    assert len(asthma.received()) == 2


def write_further_record(asthma: Scene, event: OptOutEvent) -> None:
    """Another record with the number is found and written."""
    outcome = EventOutcome(
        event_id=event.event_id, phone_hash=event.phone_hash, state=State.UPDATED, records=("1", "2"),
        notice=Notice.SAVED, written=("1", "2"),
    )  # fmt: skip
    services = asthma.study.services
    seconds = services.config.projects["asthma"].digest_seconds
    services.ledger.complete_events("asthma", [outcome], now=asthma.study.clock(), digest_seconds=seconds)


def names_second(mail: Mail) -> bool:
    """Whether a mail links to record 2."""
    return "id=2" in mail.html


@pytest.mark.parametrize("digest", [None, "10m"])
def test_a_recipient_of_the_first_mail_receives_the_one_about_a_further_record(
    smtp: SmtpSimulator, digest: str | None
) -> None:
    asthma = scene(smtp, **({"notify_digest": digest} if digest else {}))
    smtp.reply("RCPT", "451 4.7.1 Greylisted", recipient=B)
    event = asthma.stop(1)
    if digest:
        asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A,)]
    write_further_record(asthma, event)
    for _ in range(3):
        asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A,), (A, B)]
    assert [names_second(mail) for mail in smtp.inbox] == [False, True]
    assert asthma.study.entry(event).mail == "sent"


@pytest.mark.parametrize("digest", [None, "10m"])
def test_a_further_record_that_is_written_while_the_mail_is_sent_is_mailed(
    smtp: SmtpSimulator, monkeypatch: pytest.MonkeyPatch, digest: str | None
) -> None:
    asthma = scene(smtp, **({"notify_digest": digest} if digest else {}))
    send, event = Mailer.send, asthma.study.text(fictional_phone(1))

    def send_while_written(mailer: Mailer, *args: Any, **more: Any) -> Recipients:
        if not smtp.inbox:
            write_further_record(asthma, event)
        return send(mailer, *args, **more)

    monkeypatch.setattr(Mailer, "send", send_while_written)
    asthma.study.work()
    for _ in range(3):
        asthma.study.sweep_later(minutes=11)
    assert asthma.received() == [(A, B), (A, B)]
    assert [names_second(mail) for mail in smtp.inbox] == [False, True]
    assert asthma.study.redis.zcard(keys.gathered("asthma")) == 0
