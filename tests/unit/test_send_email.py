"""E-mails: once each, put off while the server is away, given up in the end."""

from __future__ import annotations

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from shared.domain.events import OptOutEvent
from shared.errors import MailDeferred, MailRejected
from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.builders import config, project_table
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.steps.send_email import send_email


def with_mail_due() -> tuple[Study, OptOutEvent]:
    """A study in which one mail is due."""
    project = classic_study()
    enrol(project, 2)
    asthma = study(project)
    event = asthma.text(fictional_phone(1))
    for task in (TaskName.LOOKUP, TaskName.UPDATE):
        message = asthma.published.messages.popleft()
        assert message.task is task
        asthma.run(message)
    assert asthma.published.of(TaskName.EMAIL) == [("asthma", event.event_id)]
    return asthma, event


def mails_counted(asthma: Study) -> dict[str, str]:
    figures = asthma.redis.hgetall(keys.METRICS)
    return {name: number for name, number in figures.items() if name.startswith("mails|")}


def test_a_mail_is_sent_once_however_often_its_message_comes() -> None:
    asthma, event = with_mail_due()
    for _ in range(3):
        send_email("asthma", event.event_id, asthma.services)
    assert len(asthma.mailer.sent) == 1
    assert (asthma.entry(event).mail, asthma.entry(event).notice) == ("sent", None)
    assert mails_counted(asthma) == {"mails|asthma|saved|sent": "1"}
    assert asthma.redis.zcard(keys.mailing("asthma")) == 0


def test_two_workers_with_the_same_message_send_one_mail() -> None:
    asthma, event = with_mail_due()
    asthma.redis.set(keys.lock(f"email:asthma:{event.event_id}"), "another worker")
    send_email("asthma", event.event_id, asthma.services)
    assert asthma.mailer.sent == []
    assert asthma.entry(event).notice is not None


def test_a_mail_that_was_deferred_is_sent_later() -> None:
    asthma, event = with_mail_due()
    asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
    asthma.work()
    assert asthma.entry(event).notice is not None
    assert asthma.redis.zcard(keys.mailing("asthma")) == 1
    asthma.sweep_later()
    assert len(asthma.mailer.sent) == 1
    assert asthma.entry(event).mail == "sent"


def test_a_mail_that_was_deferred_for_a_week_is_given_up_visibly() -> None:
    asthma, event = with_mail_due()
    asthma.mailer.errors.append(MailDeferred("smtp_unreachable", "ConnectionRefusedError"))
    asthma.clock.ahead += timedelta(days=7, minutes=1)
    asthma.work()
    assert asthma.entry(event).mail == "given up: smtp_unreachable: ConnectionRefusedError"
    assert mails_counted(asthma) == {"mails|asthma|saved|given up": "1"}


def test_a_mail_that_was_refused_is_not_tried_again() -> None:
    asthma, event = with_mail_due()
    asthma.mailer.errors.append(MailRejected("smtp_refused", "code 550"))
    asthma.work()
    asthma.sweep_later()
    assert asthma.mailer.sent == []
    assert asthma.entry(event).mail == "refused: smtp_refused: code 550"
    assert mails_counted(asthma) == {"mails|asthma|saved|refused": "1"}


@pytest.mark.parametrize("url", ["", "mail.example.edu", "smtp://user:S3cr/et@mail.example.edu"])
def test_a_mail_whose_server_cannot_be_told_is_sent_when_it_can(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    asthma, event = with_mail_due()
    asthma.lose_mail_server(monkeypatch, url)
    with capture_logs() as logs:
        asthma.work()
        asthma.sweep_later()
    assert {line["event"] for line in logs if "mail" in line["event"]} == {"mail_put_off"}
    assert "S3cr" not in str(logs)
    assert asthma.entry(event).notice is not None
    asthma.find_mail_server(monkeypatch)
    asthma.sweep_later()
    assert len(asthma.mailer.sent) == 1
    assert mails_counted(asthma) == {"mails|asthma|saved|sent": "1"}


def test_a_mail_whose_server_cannot_be_told_for_a_week_is_given_up_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asthma, event = with_mail_due()
    asthma.lose_mail_server(monkeypatch)
    asthma.clock.ahead += timedelta(days=7, minutes=1)
    asthma.work()
    assert asthma.entry(event).mail.startswith("given up: env:OPTOUT_SMTP_URL cannot be used")
    assert "\n" not in asthma.entry(event).mail


def test_a_mail_that_some_addresses_refused_is_no_success() -> None:
    asthma, event = with_mail_due()
    asthma.mailer.refuses = ["gone@example.edu"]
    with capture_logs() as logs:
        asthma.work()
        asthma.sweep_later()
    assert len(asthma.mailer.sent) == 1
    assert asthma.entry(event).mail == "partly rejected: 1 of 1 addresses"
    assert mails_counted(asthma) == {"mails|asthma|saved|partly rejected": "1"}
    assert [line["log_level"] for line in logs if line["event"] == "mail_done"] == ["error"]


def test_a_mail_of_a_project_that_was_taken_out_waits_until_it_is_back() -> None:
    asthma, event = with_mail_due()
    before, asthma.config = asthma.config, config({"sleep": project_table()})
    asthma.services = asthma.new_services()
    asthma.work()
    asthma.sweep_later()
    assert (asthma.mailer.sent, asthma.entry(event).notice) == ([], "saved")
    asthma.config = before
    asthma.services = asthma.new_services()
    for _ in range(2):
        asthma.sweep_later()
    assert (len(asthma.mailer.sent), asthma.entry(event).mail) == (1, "sent")


def test_an_event_without_a_due_mail_sends_none() -> None:
    asthma, event = with_mail_due()
    asthma.redis.hdel(keys.event("asthma", event.event_id), "notice")
    send_email("asthma", event.event_id, asthma.services)
    send_email("asthma", "SM" + "9" * 32, asthma.services)
    assert asthma.mailer.sent == []


def test_where_no_mail_server_is_configured_nobody_is_told() -> None:
    asthma, event = with_mail_due()
    asthma.services.__dict__["mailer"] = None
    asthma.work()
    assert asthma.entry(event).mail == "nobody to tell"
