"""After a refused login all processes together wait before the next one, so that no account is locked."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import Any

import pytest

from shared.errors import MailDeferred
from shared.ledger import keys
from tests.fakes import fake_redis, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from tests.simulators.smtp import SmtpSimulator
from worker.mail import login_pacing
from worker.mail.smtp import Mailer

SENDER = "optout-bridge@example.edu"


@pytest.fixture
def smtp() -> Iterator[SmtpSimulator]:
    with SmtpSimulator(user="bridge", password="right").serve() as server:
        yield server


@pytest.fixture
def redis() -> Any:
    return fake_redis()


def mail() -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"] = SENDER, "coordinator@example.edu"
    message.set_content("Saved.\n")
    return message


def mailer(smtp: SmtpSimulator, redis: Any, password: str = "right") -> Mailer:
    """The mailer of one process."""
    return Mailer(smtp.url.replace("right", password), SENDER, redis=redis)


def refuse(smtp: SmtpSimulator, redis: Any) -> str:
    """Try to send with a wrong password. Returns the error."""
    with pytest.raises(MailDeferred) as caught:
        mailer(smtp, redis, "wrong").send(mail())
    return str(caught.value)


def end_pause(smtp: SmtpSimulator, redis: Any) -> None:
    redis.delete(keys.mail_login(f"127.0.0.1:{smtp.port}:"))


def pause(smtp: SmtpSimulator, redis: Any) -> int:
    return int(redis.ttl(keys.mail_login(f"127.0.0.1:{smtp.port}:")))


@pytest.mark.parametrize(
    "reply",
    [
        "535 5.7.8 Authentication credentials invalid",
        "535 5.7.139 Authentication unsuccessful, the user credentials were incorrect",
        "534 5.7.9 Please log in with your web browser",
        "530 5.7.0 Must issue a STARTTLS command first",
        "550 5.7.30 Basic authentication is not supported",
        "454 4.7.0 Temporary authentication failure",
    ],
)
def test_a_refused_login_is_the_only_one_for_a_minute(smtp: SmtpSimulator, redis: Any, reply: str) -> None:
    smtp.reply("AUTH", reply)
    with pytest.raises(MailDeferred, match=reply[:3]):
        mailer(smtp, redis).send(mail())
    for _ in range(3):
        with pytest.raises(MailDeferred, match=rf"smtp_login_paused: no login for \d+ s; .*code {reply[:9]}"):
            mailer(smtp, redis).send(mail())
    assert smtp.logins == 1
    assert 55 <= pause(smtp, redis) <= 60


def test_after_five_refusals_the_pause_is_five_minutes(smtp: SmtpSimulator, redis: Any) -> None:
    pauses = []
    for _ in range(7):
        refuse(smtp, redis)
        pauses.append(pause(smtp, redis))
        end_pause(smtp, redis)
    assert [round(each, -1) for each in pauses] == [60, 60, 60, 60, 60, 300, 300]
    assert smtp.logins == 7


def test_a_login_that_succeeds_ends_all_pauses(smtp: SmtpSimulator, redis: Any) -> None:
    for _ in range(6):
        refuse(smtp, redis)
        end_pause(smtp, redis)
    for _ in range(3):
        mailer(smtp, redis).send(mail())
    assert len(smtp.inbox) == 3
    refuse(smtp, redis)
    assert 55 <= pause(smtp, redis) <= 60


def test_a_password_that_expires_between_two_mails_is_tried_once(smtp: SmtpSimulator, redis: Any) -> None:
    mailer(smtp, redis).send(mail())
    smtp.password = "changed"
    assert "smtp_login_rejected" in refuse(smtp, redis)
    assert "smtp_login_paused" in refuse(smtp, redis)
    assert smtp.logins == 2


def test_many_processes_at_once_try_a_wrong_password_once(smtp: SmtpSimulator, redis: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        errors = list(pool.map(lambda _: refuse(smtp, redis), range(8)))
    assert smtp.logins == 1
    assert sorted(error.partition(":")[0] for error in errors) == ["smtp_login_paused"] * 7 + [
        "smtp_login_rejected"
    ]


def test_many_processes_at_once_send_with_the_right_password(smtp: SmtpSimulator, redis: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: mailer(smtp, redis).send(mail()), range(24)))
    assert len(smtp.wait_for(24)) == 24


def test_one_login_uses_one_mechanism(smtp: SmtpSimulator) -> None:
    """smtplib's own login tries PLAIN, then LOGIN: two failures for one mail."""
    with pytest.raises(MailDeferred):
        Mailer(smtp.url.replace("right", "wrong"), SENDER).send(mail())
    assert smtp.logins == 1


def test_a_process_that_dies_while_it_logs_in_holds_up_the_others_for_a_minute_at_most(
    smtp: SmtpSimulator, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login_pacing, "MAIL_LOGIN_WAIT_SECONDS", 0.2)
    redis.set(keys.mail_login(f"127.0.0.1:{smtp.port}:"), "a login is under way", ex=60)
    with pytest.raises(MailDeferred, match=r"smtp_login_paused: .*under way"):
        mailer(smtp, redis).send(mail())
    end_pause(smtp, redis)
    mailer(smtp, redis).send(mail())


def test_a_server_without_login_causes_no_pause(redis: Any) -> None:
    with SmtpSimulator().serve() as server:
        server.reply("EHLO", "250 simulator", times=None)
        for _ in range(2):
            with pytest.raises(MailDeferred, match="smtp_not_supported"):
                Mailer(server.url.replace("//", "//bridge:right@"), SENDER, redis=redis).send(mail())


def test_no_login_needs_no_permission(redis: Any) -> None:
    with SmtpSimulator().serve() as server:
        Mailer(server.url, SENDER, redis=redis).send(mail())
        assert redis.keys("*") == []


def test_mails_wait_while_logins_pause_and_none_is_lost(smtp: SmtpSimulator) -> None:
    project = classic_study()
    enrol(project, 5)
    asthma = study(project)
    asthma.mailer = mailer(smtp, asthma.redis)  # type: ignore[assignment]
    asthma.services = asthma.new_services()
    smtp.password = "changed"
    events = [asthma.text(fictional_phone(number)) for number in (1, 2, 3)]
    asthma.work()
    for _ in range(3):
        asthma.sweep_later()
    assert smtp.logins == 1
    assert {asthma.entry(event).notice for event in events} == {"saved"}
    smtp.password = "right"
    end_pause(smtp, asthma.redis)
    for _ in range(3):
        asthma.sweep_later(minutes=6)
    assert {asthma.entry(event).mail for event in events} == {"sent"}
    assert len(smtp.inbox) == 3


def test_redis_holds_neither_user_nor_password(smtp: SmtpSimulator, redis: Any) -> None:
    refuse(smtp, redis)
    stored = str([(key, redis.get(key)) for key in redis.keys("*")])
    assert "bridge" not in stored
    assert "wrong" not in stored
