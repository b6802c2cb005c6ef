"""`notify_digest`: changes are gathered and told in one mail, and every promise about mails still holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

import pytest

from shared.domain.events import OptOutEvent
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger import keys
from shared.messaging.tasks import TaskName
from tests.builders import config, project_table
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from web.monitoring.metrics import LedgerCollector
from worker.mail.verdicts import Recipients
from worker.steps.send_email import MOST_PER_DIGEST, send_email

pytestmark = pytest.mark.usefixtures("naps")


def gathering(records: int = 5, **changes: Any) -> Study:
    """A study that gathers its mails for ten minutes."""
    project = classic_study()
    enrol(project, records)
    return study(project, notify_digest="10m", **changes)


DAY_NAMES = {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"}


def stops(asthma: Study, *numbers: int) -> list[OptOutEvent]:
    """Participants text STOP, and it is written."""
    events = [asthma.text(fictional_phone(number)) for number in numbers]
    asthma.work()
    return events


def figures(asthma: Study) -> dict[str, int]:
    """What /metrics tells about mails that were not sent yet."""
    found = {each.name: each for each in LedgerCollector(asthma.ledger, ["asthma"]).collect()}
    return {
        name: sum(int(sample.value) for sample in found[f"optout_{name}"].samples)
        for name in ("due_mails", "changes_awaiting_digest")
    }


def texts(asthma: Study) -> list[str]:
    """The plain parts of the mails."""
    bodies = [mail.get_body(("plain",)) for mail in asthma.mailer.sent]
    return [str(body.get_content()) for body in bodies if body is not None]


def test_changes_are_written_at_once_and_told_later() -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    assert asthma.state(event) == "updated"
    assert asthma.mailer.sent == []
    assert figures(asthma) == {"due_mails": 0, "changes_awaiting_digest": 1}


def test_gathered_mails_are_due_mails_once_their_time_has_come_and_the_server_is_away() -> None:
    asthma = gathering()
    stops(asthma, 1, 2)
    asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
    asthma.sweep_later(minutes=11)
    assert figures(asthma) == {"due_mails": 2, "changes_awaiting_digest": 2}
    asthma.sweep_later()
    assert figures(asthma) == {"due_mails": 0, "changes_awaiting_digest": 0}


def test_one_mail_tells_all_that_came_within_the_time() -> None:
    asthma = gathering()
    stops(asthma, 1, 2)
    asthma.clock.ahead += timedelta(minutes=5)
    stops(asthma, 3)
    asthma.sweep_later(minutes=6)
    assert asthma.mailer.subjects == ["[asthma] 3 opt-outs (STOP)"]
    for record in (1, 2, 3):
        assert f"STOP   record {record}, saved" in texts(asthma)[0]


def test_nothing_is_told_before_the_time_however_often_is_swept() -> None:
    asthma = gathering()
    stops(asthma, 1)
    for _ in range(4):
        asthma.sweep_later(minutes=2)
    assert asthma.mailer.sent == []
    asthma.sweep_later(minutes=3)
    assert len(asthma.mailer.sent) == 1


def test_what_was_told_is_not_told_again() -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    asthma.sweep_later(minutes=11)
    for _ in range(3):
        send_email("asthma", "", asthma.services)
        asthma.sweep_later(minutes=11)
    assert len(asthma.mailer.sent) == 1
    assert (asthma.entry(event).mail, asthma.entry(event).notice) == ("sent", None)
    assert asthma.redis.zcard(keys.mailing("asthma")) == 0
    assert asthma.redis.zrange(keys.DUE, 0, -1) == []


def test_the_next_change_begins_another_ten_minutes() -> None:
    asthma = gathering()
    stops(asthma, 1)
    asthma.sweep_later(minutes=11)
    stops(asthma, 2)
    asthma.sweep_later(minutes=8)
    assert len(asthma.mailer.sent) == 1
    asthma.sweep_later(minutes=3)
    assert "record 2, saved" in texts(asthma)[1]


def test_a_change_that_comes_while_the_digest_is_sent_waits_for_the_next() -> None:
    asthma = gathering()
    stops(asthma, 1)
    send = asthma.mailer.send

    def send_while_another_comes(message: EmailMessage, *, to: Sequence[str] = ()) -> Recipients:
        if not asthma.mailer.sent:
            send(message, to=to)
            stops(asthma, 2)
            return Recipients()
        return send(message, to=to)

    asthma.mailer.send = send_while_another_comes  # type: ignore[method-assign]
    asthma.clock.ahead += timedelta(minutes=11)
    send_email("asthma", "", asthma.services)
    told = texts(asthma)
    assert "record 1, saved" in told[0]
    assert "record 2" not in told[0]
    asthma.sweep_later(minutes=11)
    assert "record 2, saved" in "".join(texts(asthma)[1:])
    assert "".join(texts(asthma)).count("record 1, saved") == 1


def test_what_could_not_be_saved_is_told_at_once() -> None:
    asthma = gathering()
    asthma.project.locked_records.add("1")
    refused, saved = stops(asthma, 1, 2)
    assert (asthma.state(refused), asthma.state(saved)) == ("failed", "updated")
    assert asthma.mailer.subjects == ["[asthma] Opt-out (STOP) could NOT be saved: record 1"]
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.subjects[1:] == ["[asthma] 1 opt-out (STOP)"]
    assert "record 1," not in texts(asthma)[1]


def test_a_digest_tells_stops_starts_and_unknown_numbers_apart() -> None:
    asthma = gathering(notify_unmatched=True)
    stops(asthma, 1)
    asthma.text(fictional_phone(1), "START")
    asthma.text("+16505559999")
    asthma.work()
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.subjects == ["[asthma] 2 opt-outs (STOP) and 1 opt-in (START)"]
    told = texts(asthma)[0]
    assert "START  record 1, saved" in told
    assert "STOP   from a number that no record holds" in told
    assert "555" not in told  # no phone number


def test_a_deferred_digest_is_sent_later_and_loses_nothing() -> None:
    asthma = gathering()
    stops(asthma, 1)
    asthma.mailer.errors.append(MailDeferred("smtp_deferred", "code 451"))
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.sent == []
    stops(asthma, 2)
    asthma.sweep_later(minutes=2)
    assert asthma.mailer.subjects == ["[asthma] 2 opt-outs (STOP)"]


def test_a_digest_that_is_deferred_for_a_week_is_given_up_visibly() -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    asthma.mailer.errors.append(MailDeferred("smtp_unreachable", "ConnectionRefusedError"))
    asthma.sweep_later(days=7, minutes=1)
    assert asthma.entry(event).mail == "given up: smtp_unreachable: ConnectionRefusedError"
    assert asthma.redis.hget(keys.METRICS, "mails|asthma|digest|given up") == "1"


def test_a_refused_digest_is_not_tried_again() -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    asthma.mailer.errors.append(MailRejected("smtp_refused", "code 550"))
    for _ in range(2):
        asthma.sweep_later(minutes=11)
    assert asthma.mailer.sent == []
    assert asthma.entry(event).mail == "refused: smtp_refused: code 550"


def test_a_digest_whose_server_cannot_be_told_is_sent_when_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    asthma.lose_mail_server(monkeypatch)
    for _ in range(2):
        asthma.sweep_later(minutes=11)
    assert asthma.redis.zcard(keys.gathered("asthma")) == 1
    asthma.find_mail_server(monkeypatch)
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.subjects == ["[asthma] 1 opt-out (STOP)"]
    assert asthma.entry(event).mail == "sent"


def test_a_digest_that_some_addresses_refused_is_no_success() -> None:
    asthma = gathering()
    (event,) = stops(asthma, 1)
    asthma.mailer.refuses = ["gone@example.edu"]
    for _ in range(2):
        asthma.sweep_later(minutes=11)
    assert len(asthma.mailer.sent) == 1
    assert asthma.entry(event).mail == "partly rejected: 1 of 1 addresses"
    assert asthma.redis.hget(keys.METRICS, "mails|asthma|digest|partly rejected") == "1"


def test_a_crash_after_the_servers_yes_repeats_the_same_mail() -> None:
    """Once more, never not at all; the same Message-ID lets mail programs show it once."""
    asthma = gathering()
    stops(asthma, 1, 2)
    asthma.clock.ahead += timedelta(minutes=11)
    asthma.mailer.errors.append(KeyboardInterrupt())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        send_email("asthma", "", asthma.services)
    send_email("asthma", "", asthma.services)
    assert asthma.mailer.subjects == ["[asthma] 2 opt-outs (STOP)"]


def test_the_same_changes_make_the_same_message_id() -> None:
    ids = []
    for _ in range(2):
        asthma = gathering()
        event = asthma.text(fictional_phone(1), event_id="SM" + "7" * 32)
        asthma.work()
        asthma.sweep_later(minutes=11)
        assert asthma.entry(event).mail == "sent"
        ids.append(asthma.mailer.sent[0]["Message-ID"])
    assert ids[0] == ids[1]


def test_two_workers_with_the_same_message_send_one_digest() -> None:
    asthma = gathering()
    stops(asthma, 1)
    asthma.clock.ahead += timedelta(minutes=11)
    asthma.redis.set(keys.lock("digest:asthma"), "another worker")
    send_email("asthma", "", asthma.services)
    assert asthma.mailer.sent == []
    assert asthma.redis.zcard(keys.gathered("asthma")) == 1


def test_more_than_fits_one_mail_is_told_in_several() -> None:
    asthma = gathering(MOST_PER_DIGEST + 3)
    stops(asthma, *range(1, MOST_PER_DIGEST + 4))
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.subjects == [
        f"[asthma] {MOST_PER_DIGEST} opt-outs (STOP)",
        "[asthma] 3 opt-outs (STOP)",
    ]


def test_what_was_gathered_is_told_even_when_gathering_was_switched_off() -> None:
    asthma = gathering()
    stops(asthma, 1)
    asthma.config = config({"asthma": project_table()})
    asthma.services = asthma.new_services()
    asthma.sweep_later(minutes=11)
    assert asthma.mailer.subjects == ["[asthma] 1 opt-out (STOP)"]


def test_a_project_that_tells_nobody_gathers_nothing() -> None:
    asthma = gathering(notify=[])
    (event,) = stops(asthma, 1)
    assert asthma.state(event) == "updated"
    assert asthma.redis.zcard(keys.gathered("asthma")) == 0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("2h", 7200)])
def test_the_time_is_a_number_with_its_unit(text: str, seconds: int) -> None:
    projects = {"asthma": project_table(notify_digest=text)}
    assert config(projects).projects["asthma"].digest_seconds == seconds


@pytest.mark.parametrize("text", ["10", "0m", "m", "1d", "-5m"])
def test_another_form_of_time_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError, match="notify_digest"):
        config({"asthma": project_table(notify_digest=text)})


class TestManyMails:
    """Without a digest: one mail per change, of which one message carries several."""

    def test_one_message_stands_for_several_mails_and_each_is_sent_once(self) -> None:
        project = classic_study()
        enrol(project, 60)
        asthma = study(project)
        events = [asthma.text(fictional_phone(number)) for number in range(1, 61)]
        while asthma.published.messages[0].task is not TaskName.EMAIL:
            asthma.run(asthma.published.messages.popleft())
        assert 3 <= len(asthma.published.of(TaskName.EMAIL)) < 10
        asthma.work()
        assert len(asthma.mailer.sent) == 60
        assert {asthma.entry(event).mail for event in events} == {"sent"}
        assert len(set(asthma.mailer.subjects)) == 60

    def test_mails_whose_message_was_lost_are_found_by_sweep(self) -> None:
        project = classic_study()
        enrol(project, 30)
        asthma = study(project)
        for number in range(1, 31):
            asthma.text(fictional_phone(number))
        while asthma.published.messages[0].task is not TaskName.EMAIL:
            asthma.run(asthma.published.messages.popleft())
        asthma.published.messages.clear()
        asthma.redis.delete(keys.outbox("asthma"))
        asthma.sweep_later()
        assert len(asthma.mailer.sent) == 30


def test_changes_are_grouped_by_day() -> None:
    asthma = gathering()
    stops(asthma, 1)
    asthma.clock.ahead += timedelta(days=1)
    stops(asthma, 2, 3)
    send_email("asthma", "", asthma.services)
    lines = texts(asthma)[0].splitlines()
    days = [line for line in lines if line and line.split(",")[0] in DAY_NAMES]
    assert len(days) == 2
    assert lines.index(days[0]) < lines.index(next(line for line in lines if "record 1," in line))
    assert lines.index(days[1]) < lines.index(next(line for line in lines if "record 2," in line))
