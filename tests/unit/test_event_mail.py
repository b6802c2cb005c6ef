"""The e-mail's words: what a coordinator reads, and what must never be in it."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Change, Notice, Source, State
from shared.ledger import StoredEvent
from tests.builders import at, config, hashed, project_table, sid
from worker.mail.event_mail import compose
from worker.redcap.schema import ProjectSchema

PHONE_HASH = hashed("+16505550100")
EVENT = sid(1)


def entry(**changes: Any) -> StoredEvent:
    whole: dict[str, Any] = {
        "project": "asthma", "event_id": EVENT, "change": Change.STOP, "state": State.UPDATED, "reason": "",
        "source": Source.WEBHOOK, "occurred_at": at("2026-05-04T19:00:00"),
        "received_at": at("2026-05-04T19:00:01"), "phone_hash": PHONE_HASH, "records": ("7",), "notice": None,
        "mail": "", "finished_at": at("2026-05-04T19:00:02"),
    }  # fmt: skip
    return StoredEvent(**(whole | changes))


def mail(
    notice: Notice = Notice.SAVED, *, table: dict[str, Any] | None = None, **changes: Any
) -> EmailMessage:
    project = config({"asthma": table or project_table()}).projects["asthma"]
    names = ("schema", "account_sid", "operator_notified")
    options = {name: changes.pop(name) for name in names if name in changes}
    return compose(
        entry(**changes),
        notice,
        project,
        zone=ZoneInfo("America/Chicago"),
        sender="bridge@example.edu",
        **options,
    )


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body(preferencelist=(kind,))
    assert body is not None
    return str(body.get_content())


@pytest.mark.parametrize(
    ("notice", "changes", "subject"),
    [
        (Notice.SAVED, {}, "[asthma] Opt-out (STOP) saved: record 7"),
        (Notice.SAVED, {"change": Change.START}, "[asthma] Opt-in (START) saved: record 7"),
        (Notice.SAVED, {"records": ("7", "12")}, "[asthma] Opt-out (STOP) saved: records 7, 12"),
        (
            Notice.SAVED,
            {"records": tuple("123456")},
            "[asthma] Opt-out (STOP) saved: records 1, 2, 3, 4, 5 …",
        ),
        (Notice.UNSAVED, {}, "[asthma] Opt-out (STOP) could NOT be saved: record 7"),
        (Notice.UNSAVED, {"records": ()}, "[asthma] Opt-out (STOP) could NOT be saved"),
        (Notice.UNMATCHED, {"records": ()}, "[asthma] Opt-out (STOP) from a number that no record holds"),
    ],
)
def test_the_subject_says_what_happened_to_which_records(
    notice: Notice, changes: dict[str, Any], subject: str
) -> None:
    assert mail(notice, **changes)["Subject"] == subject


@pytest.mark.parametrize("kind", ["plain", "html"])
class TestBothParts:
    def test_a_saved_change_names_record_time_and_fields(self, kind: str) -> None:
        text = part(mail(table=project_table(opt_out_checkbox="sms_opt_out")), kind)
        assert "Monday, May 4, 2026, 14:00:00 CDT" in text
        elsewhere = project_table(default_region="GB", opt_out_checkbox="sms_opt_out")
        assert "Monday, 04 May 2026, 14:00:00 CDT" in part(mail(table=elsewhere), kind)
        for expected in ("sms_opt_out_at", "sms_opt_out", "7", EVENT, "STOP"):
            assert expected in text

    def test_a_change_that_could_not_be_saved_says_why_and_what_to_do(self, kind: str) -> None:
        text = part(mail(Notice.UNSAVED, reason="record 7: sms_opt_out_at: the record is locked"), kind)
        for expected in (
            "the record is locked",
            "What to do:",
            "enter the opt-out by hand",
            "nightly reconciliation",
        ):
            assert expected in " ".join(text.split())

    @pytest.mark.parametrize(
        ("typed_format", "value", "shown"),
        [
            ("%m-%d-%Y %H:%M", "05-04-2026 14:00", "MM-DD-YYYY HH:MM"),
            ("%Y-%m-%d %H:%M:%S", "2026-05-04 14:00:00", "YYYY-MM-DD HH:MM:SS"),
        ],
    )
    def test_an_opt_out_that_could_not_be_saved_says_what_to_type(
        self, kind: str, typed_format: str, value: str, shown: str
    ) -> None:
        schema = ProjectSchema(
            id_field="record_id", longitudinal=False, time_format="%Y-%m-%d %H:%M", typed_format=typed_format,
            version="14.5.5", project_id="12",
        )  # fmt: skip
        table = project_table(opt_out_checkbox="sms_opt_out")
        text = " ".join(part(mail(Notice.UNSAVED, table=table, schema=schema, reason="no"), kind).split())
        for expected in (value, f"({shown})", "sms_opt_out_at", "tick", "record_home.php", "pid=12"):
            assert expected in text

    def test_the_technical_reason_is_left_to_the_operator(self, kind: str) -> None:
        text = part(mail(Notice.UNSAVED, reason="http 500: strange", operator_notified=True), kind)
        assert "strange" not in text
        assert "notified of the technical reason" in " ".join(text.split())
        text = part(mail(Notice.UNSAVED, reason="http 500: strange"), kind)
        assert "strange" in text
        assert "REDCap support" in text

    def test_an_unmatched_number_can_be_found_by_somebody_authorised(self, kind: str) -> None:
        text = part(mail(Notice.UNMATCHED, records=(), account_sid="AC1"), kind)
        assert f"https://www.twilio.com/console/sms/logs/AC1/{EVENT}" in text
        assert "as the sender, to somebody who may read texts there" in " ".join(text.split())
        text = " ".join(part(mail(Notice.UNMATCHED, records=()), kind).split())
        assert f"Message {EVENT} in Twilio's console" in text

    def test_a_test_message_says_so(self, kind: str) -> None:
        message = mail(event_id=f"{TEST_SID_PREFIX}1234")
        assert message["Subject"].startswith("TEST: [asthma]")
        assert "TEST: sent by optout test-message" in part(message, kind)
        assert "TEST" not in part(mail(), kind)

    def test_a_study_has_its_title(self, kind: str) -> None:
        message = mail(table=project_table(title="Asthma study"))
        assert message["Subject"].startswith("[Asthma study] ")
        assert "Asthma study" in part(message, kind)

    def test_an_opt_in_that_could_not_be_saved_asks_to_clear_the_field(self, kind: str) -> None:
        text = part(mail(Notice.UNSAVED, change=Change.START, reason="no"), kind)
        assert "ask the participant whether they want texts again" in " ".join(text.split())

    def test_an_unmatched_number_is_told_by_its_message_alone(self, kind: str) -> None:
        text = part(mail(Notice.UNMATCHED, records=()), kind)
        assert "holds the number" in " ".join(text.split())
        assert EVENT in text

    def test_all_records_are_listed(self, kind: str) -> None:
        text = part(mail(records=("7", "12", "A-3")), kind)
        assert all(record in text for record in ("7", "12", "A-3"))

    def test_there_is_no_phone_number_and_no_hash_of_one(self, kind: str) -> None:
        for notice in Notice:
            text = part(mail(notice), kind)
            assert PHONE_HASH not in text
            assert "5550100" not in text


def test_title_and_reply_address_are_in_the_headers() -> None:
    table = project_table(title="Étude “Asthme”, phase 2", reply_to="asthma@example.edu")
    message = message_from_bytes(mail(table=table).as_bytes(), policy=policy.default)
    [sender] = message["From"].addresses
    assert (sender.display_name, sender.addr_spec) == ("Étude “Asthme”, phase 2", "bridge@example.edu")
    assert message["Reply-To"] == "asthma@example.edu"
    assert mail()["Reply-To"] is None


def test_what_comes_from_outside_is_escaped_in_html_alone() -> None:
    message = mail(Notice.UNSAVED, reason="<b>no</b> & never", records=("<1>",))
    assert "&lt;b&gt;no&lt;/b&gt; &amp; never" in part(message, "html")
    assert "<b>no</b> & never" in part(message, "plain")


def test_a_record_id_with_a_line_break_cannot_add_a_header() -> None:
    message = mail(records=("7\nBcc: everybody@example.com",))
    assert message["Bcc"] is None


def test_the_headers_are_those_of_an_automatic_mail() -> None:
    message = mail()
    assert (message["From"], message["To"]) == ("bridge@example.edu", "coordinator@example.edu")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["X-Opt-Out-Event"] == EVENT
    assert message["Date"] == "Mon, 04 May 2026 19:00:02 +0000"
    assert [some.get_content_type() for some in message.iter_parts()] == ["text/plain", "text/html"]


def test_the_same_mail_has_the_same_id_and_another_kind_another() -> None:
    assert mail()["Message-ID"] == mail()["Message-ID"] == f"<asthma.{EVENT}.saved@example.edu>"
    assert mail(Notice.UNSAVED)["Message-ID"] != mail()["Message-ID"]
