"""E-mail texts of a study's own: they replace ours, cannot harm, and where they fail ours is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from shared.domain.events import Change, Notice, State
from shared.ledger import StoredEvent
from tests import builders
from tests.fakes import study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.mail.event_mail import compose
from worker.mail.template_check import template_problems
from worker.redcap.schema import ProjectSchema

SCHEMA = ProjectSchema(
    id_field="record_id", longitudinal=False, time_format="%Y-%m-%d", project_id="101", version="15.5.0"
)


def entry(*records: str, **changes: Any) -> StoredEvent:
    settings = {
        "project": "asthma",
        "event_id": builders.sid(7),
        "change": Change.STOP,
        "state": State.UPDATED,
        "reason": "",
        "source": "webhook",
        "occurred_at": builders.at("2026-05-04 17:20:30"),
        "received_at": builders.at("2026-05-04 17:20:30"),
        "phone_hash": "hash",
        "records": records or ("17",),
        "notice": Notice.SAVED,
        "mail": "",
        "finished_at": None,
        **changes,
    }
    return StoredEvent(**settings)


def mail(
    *records: str,
    templates: str | None = None,
    schema: ProjectSchema | None = SCHEMA,
    notice: Notice = Notice.SAVED,
    **table: Any,
) -> Any:
    project = builders.config({"asthma": builders.project_table(templates=templates, **table)}).projects[
        "asthma"
    ]
    return compose(
        entry(*records),
        notice,
        project,
        zone=ZoneInfo("America/Chicago"),
        sender="o@example.edu",
        schema=schema,
    )


def parts(message: Any) -> tuple[str, str]:
    return tuple(message.get_body((kind,)).get_content() for kind in ("plain", "html"))


class TestLinks:
    def test_each_record_links_to_its_page_in_redcap(self) -> None:
        link = "https://redcap.example.edu/redcap_v15.5.0/DataEntry/record_home.php?pid=101&id=17"
        text, html = parts(mail("17"))
        assert link in text
        assert f'href="{link.replace("&", "&amp;")}"' in html

    def test_a_record_id_is_quoted_in_its_link(self) -> None:
        text, _ = parts(mail("7/a & b"))
        assert "id=7%2Fa%20%26%20b" in text

    def test_below_a_path_redcap_is_found_too(self) -> None:
        text, _ = parts(mail("17", redcap_url="https://www.example.edu/redcap/api/"))
        assert "https://www.example.edu/redcap/redcap_v15.5.0/DataEntry/" in text

    @pytest.mark.parametrize(
        "schema", [None, ProjectSchema(id_field="id", longitudinal=False, time_format="")]
    )
    def test_without_knowledge_of_redcap_there_is_no_link(self, schema: ProjectSchema | None) -> None:
        text, html = parts(mail("17", schema=schema))
        assert "http" not in text
        assert "href" not in html
        assert "17" in text

    def test_the_worker_knows_version_and_project_when_it_sends(self) -> None:
        project = classic_study()
        enrol(project, 1)
        asthma = study(project)
        asthma.text(fictional_phone(1))
        asthma.work()
        text, _ = parts(asthma.mailer.sent[0])
        assert f"redcap_v{asthma.redcap.version}/DataEntry/record_home.php?pid=101&id=1" in text


class TestThreads:
    def test_mails_about_the_same_record_are_one_thread(self) -> None:
        first, second = mail("17"), mail("17", notice=Notice.UNSAVED)
        assert first["References"] == first["In-Reply-To"] == second["References"]
        assert first["Message-ID"] != second["Message-ID"]

    def test_mails_about_different_records_are_not(self) -> None:
        assert mail("17")["References"] != mail("18")["References"]

    def test_mails_without_a_record_start_no_thread(self) -> None:
        project = builders.config().projects["asthma"]
        nobody = entry(records=(), state=State.NO_MATCHING_RECORD)
        message = compose(nobody, Notice.UNMATCHED, project, zone=ZoneInfo("UTC"), sender="o@example.edu")
        assert message["References"] is None

    def test_no_machine_answers_it(self) -> None:
        assert mail("17")["Auto-Submitted"] == "auto-generated"
        assert mail("17")["X-Auto-Response-Suppress"] == "All"


class TestOwnTexts:
    @pytest.mark.parametrize("name", ["notice.txt", "notice.html"])
    def test_other_letters_are_sent_in_seven_bits(self, tmp_path: Path, name: str) -> None:
        """A server without 8BITMIME rejects or damages anything else."""
        (tmp_path / name).write_text("<p>Grüße aus Zürich</p>\n", encoding="utf-8")
        message = mail("17", templates=str(tmp_path))
        assert message.as_bytes().isascii()
        assert "Grüße aus Zürich" in "".join(parts(message))
        assert b"quoted-printable" in message.as_bytes()

    def test_a_byte_order_mark_is_no_part_of_a_template(self, tmp_path: Path) -> None:
        (tmp_path / "notice.subject").write_bytes(b"\xef\xbb\xbfSTOP in {{ project }}")
        assert mail("17", templates=str(tmp_path))["Subject"] == "STOP in asthma"

    def test_any_of_the_three_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "notice.subject").write_text("{{ project }}:\n {{ records|join('+') }}")
        message = mail("17", "18", templates=str(tmp_path))
        assert message["Subject"] == "asthma: 17+18"
        assert "has opted out" in parts(message)[0]

    def test_one_block_of_the_built_in_text_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "notice.txt").write_text(
            '{% extends "built-in/notice.txt" %}{% block advice %}Call the study nurse.{% endblock %}'
        )
        text, _ = parts(mail("17", templates=str(tmp_path)))
        assert "Call the study nurse." in text
        assert "has opted out" in text
        assert "What to do" not in text

    def test_html_is_escaped_in_html_only(self, tmp_path: Path) -> None:
        for name in ("notice.txt", "notice.html"):
            (tmp_path / name).write_text("{{ records[0] }}")
        text, html = parts(mail("<b>", templates=str(tmp_path)))
        assert (text.strip(), html.strip()) == ("<b>", "&lt;b&gt;")

    @pytest.mark.parametrize(
        "broken",
        [
            "{{ no_such_name }}",
            "{% if %}",
            "{{ 1 / 0 }}",
            "{{ records.__class__.__mro__ }}",
            "{{ records.append(1) }}",
            "{% include '/etc/passwd' %}",
            "{% include '../secret' %}",
        ],
    )
    def test_if_one_fails_the_built_in_text_is_sent_and_it_is_logged(
        self, tmp_path: Path, broken: str
    ) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "secret").write_text("a secret")
        (tmp_path / "folder" / "notice.txt").write_text(broken)
        text, _ = parts(mail("17", templates=str(tmp_path / "folder")))
        assert "A participant of asthma has opted out of text messages." in text
        (problem,) = template_problems(str(tmp_path / "folder"))
        assert problem.startswith("notice.txt: ")

    def test_a_header_cannot_be_smuggled_in(self, tmp_path: Path) -> None:
        (tmp_path / "notice.subject").write_text("one\r\nBcc: everybody@example.edu")
        message = mail("17", templates=str(tmp_path))
        assert message["Bcc"] is None
        assert message["Subject"] == "one Bcc: everybody@example.edu"

    def test_the_built_in_texts_render_for_every_kind_of_mail(self) -> None:
        ours = Path(__file__).parents[2] / "worker" / "mail" / "templates"
        assert list(template_problems(str(ours))) == []

    def test_a_missing_or_empty_folder_is_a_problem(self, tmp_path: Path) -> None:
        assert list(template_problems(str(tmp_path / "none"))) == [f"{tmp_path / 'none'} is not a folder"]
        assert "contains none of" in next(template_problems(str(tmp_path)))

    def test_a_template_that_fails_for_one_kind_of_mail_only_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "notice.txt").write_text("{{ records[0].id }}")
        (problem,) = template_problems(str(tmp_path))
        assert "UndefinedError" in problem
