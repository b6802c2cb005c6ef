"""Checks a study's own e-mail templates by rendering each for every kind of mail."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from shared.config import Config
from shared.domain.events import Notice
from worker.mail.event_mail import PARTS, RecordLink, describe_template_error, render

_WHEN = "Monday, 04 May 2026, 10:20:30 PDT"

log = structlog.get_logger(__name__)


def template_problems(folder: str) -> Iterator[str]:
    """Problems of a study's templates, one line per template."""
    if not Path(folder).is_dir():
        yield f"{folder} is not a folder"
        return
    supplied = [part for part in PARTS if (Path(folder) / part).is_file()]
    if not supplied:
        yield f"{folder} contains none of {', '.join(PARTS)}"
    for part in supplied:
        problem = _first_problem(part, folder)
        if problem:
            yield f"{part}: {problem}"


def report_templates(config: Config) -> None:
    """Log problems of the studies' templates; their mails use the built-in templates instead."""
    for name, project in config.projects.items():
        for problem in template_problems(project.templates) if project.templates else ():
            log.error("template_failed", project=name, error=problem)


def _first_problem(part: str, folder: str) -> str:
    for facts in _examples():
        try:
            render(part, facts, folder)
        except Exception as error:  # noqa: BLE001  a template may raise anything
            return describe_template_error(error)
    return ""


def _examples() -> Iterator[dict[str, Any]]:
    """Variables of every kind of mail, with and without optional parts."""
    for facts in _kinds():
        for twilio in ({}, {"blocked_since": _WHEN}, {"not_blocked": "a reason"}, {"unblocked_since": _WHEN}):
            yield facts | twilio


def _kinds() -> Iterator[dict[str, Any]]:
    for notice in Notice:
        for change in (
            ("STOP", "START", "") if notice in {Notice.REVIEW, Notice.UNMATCHED} else ("STOP", "START")
        ):
            opted_out = change == "STOP"
            links = [RecordLink("17", "https://redcap.example.edu/"), RecordLink("18", "")]
            for records in ([], links[:1], links) if notice is not Notice.UNMATCHED else ([],):
                yield {
                    "project": "example",
                    "title": "Example study",
                    "is_test": False,
                    "opted_out": opted_out,
                    "notice": str(notice),
                    "records": records,
                    "when": _WHEN,
                    "day": "Monday, May 4, 2026",
                    "time": "10:20:30 PDT",
                    "reason": "record 17: a reason",
                    "operator_notified": False,
                    "value": "2026-05-04 10:20:30",
                    "value_format": "YYYY-MM-DD HH:MM:SS",
                    "event_id": "SM" + "0" * 32,
                    "field": "sms_opt_out_at",
                    "checkbox": "sms_opt_out",
                    "source": "webhook",
                    "change": change,
                    "blocked": opted_out,
                    "blocked_since": "",
                    "not_blocked": "",
                    "unblocked_since": "",
                    "by_staff": False,
                    "decided_by": "",
                    "message_link": "https://www.twilio.com/console/",
                }
