"""The e-mail about one event: composed from the event and its project, without any phone number. Pure.

A study may bring texts of its own (`templates` in its table): `notice.subject`, `notice.txt` and
`notice.html`, any of them, in Jinja. They run in a sandbox, and where one fails, ours is sent in its place.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

import structlog
from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, PrefixLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.config import Config, Project
from shared.domain.events import Change, Notice
from shared.ledger import Entry
from worker.redcap.schema import ProjectSchema

# In the order in which they are rendered; a study's folder may hold any of them.
PARTS = ("notice.subject", "notice.txt", "notice.html")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecordLink:
    """A record as templates see it: its id, and where REDCap shows it ("" where that is not known)."""

    id: str
    link: str

    def __str__(self) -> str:
        return self.id


def compose(
    entry: Entry,
    notice: Notice,
    project: Project,
    *,
    zone: ZoneInfo,
    sender: str,
    schema: ProjectSchema | None = None,
) -> EmailMessage:
    """The message, with a plain and an HTML part. `schema` is what is known of the REDCap project, for links."""
    facts = mail_facts(entry, notice, project, zone, schema)
    texts = [_rendered(part, facts, project.templates) for part in PARTS]
    since = entry.finished_at or entry.received_at
    message = mail(texts, project, sender, since, f"{entry.project}.{entry.event_id}.{notice}")
    if entry.records:
        # All mails about one record are replies to a first one that nobody sent: mail programs group them.
        message["In-Reply-To"] = message["References"] = f"<{_thread(entry)}@{_domain(sender)}>"
    message["X-Opt-Out-Event"] = entry.event_id
    return message


def mail(texts: Sequence[str], project: Project, sender: str, since: datetime, name: str) -> EmailMessage:
    """A mail of subject, plain and HTML text.

    The same mail has the same id, made of its name: should one be sent twice (a crash between the server's yes and
    our note of it), mail programs show it once.
    """
    subject, text, html = texts
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = sender
    message["To"] = ", ".join(project.notify)
    message["Date"] = format_datetime(since)
    message["Message-ID"] = f"<{name}@{_domain(sender)}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
    message["X-Auto-Response-Suppress"] = "All"  # the same to Exchange, which has its own word for it
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def _domain(address: str) -> str:
    return address.rpartition("@")[2]


def mail_facts(
    entry: Entry, notice: Notice, project: Project, zone: ZoneInfo, schema: ProjectSchema | None
) -> dict[str, Any]:
    """All that templates may use; docs/redcap-teams.md lists it."""
    return {
        "project": entry.project,
        "opted_out": entry.change is Change.STOP,
        "notice": str(notice),
        "records": [RecordLink(record, _link(record, project, schema)) for record in entry.records],
        "when": entry.occurred_at.astimezone(zone).strftime("%A, %d %B %Y, %H:%M:%S %Z"),
        "reason": entry.reason,
        "event_id": entry.event_id,
        "field": project.opt_out_field,
        "checkbox": project.opt_out_checkbox or "",
        "source": str(entry.source),
    }


def _link(record: str, project: Project, schema: ProjectSchema | None) -> str:
    """Where REDCap shows a record: its "record home page", under the path of its version."""
    path = urlsplit(project.redcap_url).path
    if schema is None or not schema.version or not schema.project_id or not path.endswith("/api/"):
        return ""
    base = project.redcap_url.removesuffix("api/")
    page = f"redcap_v{schema.version}/DataEntry/record_home.php"
    return f"{base}{page}?pid={quote(schema.project_id)}&id={quote(record, safe='')}"


def _thread(entry: Entry) -> str:
    """One thread for each record (or group of records with one number): a hash, as ids may hold anything."""
    digest = hashlib.sha256("\n".join(sorted(entry.records)).encode()).hexdigest()[:16]
    return f"{entry.project}.record.{digest}"


# --- templates ------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _environment(folder: str | None) -> ImmutableSandboxedEnvironment:
    """Ours, or a study's folder before ours; "ours/notice.html" names ours to `extends`."""
    ours = PackageLoader("worker.mail")
    loaders = [ours] if folder is None else [FileSystemLoader(folder), ours]
    return ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([*loaders, PrefixLoader({"ours": ours})]),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _rendered(part: str, facts: dict[str, Any], folder: str | None) -> str:
    if folder is None:
        return render(part, facts, None)
    try:
        return render(part, facts, folder)
    except Exception as error:  # whatever a study's template does, the mail is sent
        log.error("template_failed", project=facts["project"], template=part, error=_said(error))
        return render(part, facts, None)


def render(part: str, facts: dict[str, Any], folder: str | None) -> str:
    return _environment(folder).get_template(part).render(facts)


def _said(error: Exception) -> str:
    """What is wrong with a template, and where."""
    line = getattr(error, "lineno", None)
    return f"{type(error).__name__}{f', line {line}' if line else ''}: {error}"


def template_problems(folder: str) -> Iterator[str]:
    """What is wrong with a study's templates: each is rendered for each kind of mail. A line per template."""
    if not Path(folder).is_dir():
        yield f"{folder} is not a folder"
        return
    brought = [part for part in PARTS if (Path(folder) / part).is_file()]
    if not brought:
        yield f"{folder} holds none of {', '.join(PARTS)}"
    for part in brought:
        problem = _first_problem(part, folder)
        if problem:
            yield f"{part}: {problem}"


def report_templates(config: Config) -> None:
    """Log what is wrong with the studies' templates; their mails are sent with our texts."""
    for name, project in config.projects.items():
        for problem in template_problems(project.templates) if project.templates else ():
            log.error("template_failed", project=name, error=problem)


def _first_problem(part: str, folder: str) -> str:
    for facts in _examples():
        try:
            render(part, facts, folder)
        except Exception as error:
            return _said(error)
    return ""


def _examples() -> Iterator[dict[str, Any]]:
    """Every kind of mail, with and without what may be missing."""
    for notice in Notice:
        for opted_out in (True, False):
            links = [RecordLink("17", "https://redcap.example.edu/"), RecordLink("18", "")]
            for records in ([], links[:1], links) if notice is not Notice.UNMATCHED else ([],):
                yield {
                    "project": "example",
                    "opted_out": opted_out,
                    "notice": str(notice),
                    "records": records,
                    "when": "Monday, 04 May 2026, 10:20:30 PDT",
                    "reason": "record 17: a reason",
                    "event_id": "SM" + "0" * 32,
                    "field": "sms_opt_out_at",
                    "checkbox": "sms_opt_out",
                    "source": "webhook",
                }
