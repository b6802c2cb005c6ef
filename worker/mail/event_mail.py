"""The e-mail about one event: composed from the event and its project, without any phone number. Pure.

A study may supply its own texts as Jinja templates (`templates` in its table): any of `notice.subject`, `notice.txt`
and `notice.html`. They run in a sandbox. If one fails, the built-in template is used instead.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit
from zoneinfo import ZoneInfo

import structlog
from jinja2 import ChoiceLoader, FileSystemLoader, PackageLoader, PrefixLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shared.config import Project
from shared.domain.endpoints import MESSAGE_PAGE, TEST_SID_PREFIX
from shared.domain.events import Change, Notice, Source
from shared.domain.mailbox import Mailbox, set_addresses
from shared.ledger import StoredEvent
from shared.ledger.opt_outs.blocks import BlockState
from worker.redcap.schema import ProjectSchema

# In rendering order; a study's folder may contain any of them.
PARTS = ("notice.subject", "notice.txt", "notice.html")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecordLink:
    """A record in templates: its id, and its address in REDCap ("" if unknown)."""

    id: str
    link: str

    def __str__(self) -> str:
        return self.id


def compose(  # noqa: PLR0913  all that a mail may say
    entry: StoredEvent,
    notice: Notice,
    project: Project,
    *,
    zone: ZoneInfo,
    sender: str,
    schema: ProjectSchema | None = None,
    account_sid: str = "",
    operator_notified: bool = False,
) -> EmailMessage:
    """The message, with a plain and an HTML part. `schema` and `account_sid` are for links to REDCap and Twilio.

    With `operator_notified`, those who run the platform have the technical reason of an unsaved change.
    """
    facts = mail_facts(entry, notice, project, zone, schema, account_sid)
    if operator_notified and notice is Notice.UNSAVED:
        facts |= {"reason": "", "operator_notified": True}
    texts = [_render_with_fallback(part, facts, project.templates) for part in PARTS]
    if facts["is_test"]:
        texts[0] = f"TEST: {texts[0]}"  # whatever a study's own template says
    message = mail(texts, project, sender, entry.state_since, f"{entry.project}.{entry.event_id}.{notice}")
    if entry.records:
        # All mails about one record reply to the same fictitious message, so that mail programs group them.
        message["In-Reply-To"] = message["References"] = f"<{_thread(entry)}@{Mailbox.parse(sender).domain}>"
    message["X-Opt-Out-Event"] = entry.event_id
    return message


def mail(texts: Sequence[str], project: Project, sender: str, since: datetime, name: str) -> EmailMessage:
    """A mail of subject, plain and HTML text.

    The Message-ID is derived from the mail's name: if a mail is sent twice (a crash between the server's acceptance
    and recording it), mail programs show it once.
    """
    subject, text, html = texts
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    own = Mailbox.parse(sender)
    set_addresses(message, "From", [Mailbox(own, project.title or own.name)])
    set_addresses(message, "To", project.notify)
    if project.reply_to:
        set_addresses(message, "Reply-To", [project.reply_to])
    message["Date"] = format_datetime(since)
    message["Message-ID"] = f"<{name}@{own.domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: prevents out-of-office replies
    message["X-Auto-Response-Suppress"] = "All"  # Exchange's header for the same
    message.set_content(text, cte=encoding(text))
    message.add_alternative(html, subtype="html", cte=encoding(html))
    return message


def encoding(text: str) -> str | None:
    """Return quoted-printable unless ASCII: the standard library may choose 8bit, which not every server accepts."""
    return None if text.isascii() else "quoted-printable"


def mail_facts(
    entry: StoredEvent,
    notice: Notice,
    project: Project,
    zone: ZoneInfo,
    schema: ProjectSchema | None,
    account_sid: str = "",
) -> dict[str, Any]:
    """The variables of templates; docs/how-to/customise-mails.md lists them."""
    moment, region = entry.occurred_at.astimezone(zone), project.default_region
    since = {entry.block.state: _local(entry.block.at, zone, region)}
    return {
        "project": entry.project,
        "title": project.title or entry.project,
        "is_test": entry.event_id.startswith(TEST_SID_PREFIX),
        "opted_out": entry.change is Change.STOP,
        "notice": str(notice),
        "records": [RecordLink(record, _link(record, project, schema)) for record in entry.records],
        "when": _local(moment, zone, region),
        "day": _day(moment, region),
        "time": moment.strftime("%H:%M:%S %Z"),
        "reason": entry.reason,
        "operator_notified": False,
        "value": moment.strftime(_typed_format(schema)),
        "value_format": _for_people(_typed_format(schema)),
        "event_id": entry.event_id,
        "field": project.opt_out_field,
        "checkbox": project.opt_out_checkbox or "",
        "source": str(entry.source),
        "change": str(entry.change),
        "blocked": entry.blocked or entry.block.state is BlockState.BLOCKED,
        "blocked_since": since.get(BlockState.BLOCKED, ""),
        "not_blocked": _why_not_blocked(entry),
        "unblocked_since": since.get(BlockState.UNBLOCKED, ""),
        "by_staff": entry.source is Source.STAFF,
        "decided_by": entry.decided_by,
        "message_link": _message_link(account_sid, entry),
    }


def _local(moment: datetime | None, zone: ZoneInfo, region: str) -> str:
    if moment is None:
        return ""
    local = moment.astimezone(zone)
    return f"{_day(local, region)}, {local:%H:%M:%S %Z}"


def _why_not_blocked(entry: StoredEvent) -> str:
    """Why Twilio has not blocked (or unblocked) the number although it has to be asked; "" otherwise."""
    if entry.block.state is BlockState.WAITING:
        return f"{entry.block.reason or 'Twilio was not asked yet'}; it is tried again"
    return entry.block.reason if entry.block.state is BlockState.FAILED else ""


def _day(moment: datetime, region: str) -> str:
    """The date in words, in the order of the region."""
    if region == "US":
        return f"{moment:%A, %B} {moment.day}, {moment.year}"
    return moment.strftime("%A, %d %B %Y")


def _typed_format(schema: ProjectSchema | None) -> str:
    """How a person types the time into the opt-out field; ISO 8601's order if that is unknown."""
    return (schema and (schema.typed_format or schema.time_format)) or "%Y-%m-%d %H:%M:%S"


def _for_people(form: str) -> str:
    """A format as REDCap's pages show it."""
    for code, letters in {"%Y": "YYYY", "%m": "MM", "%d": "DD", "%H": "HH", "%M": "MM", "%S": "SS"}.items():
        form = form.replace(code, letters)
    return form


def _message_link(account_sid: str, entry: StoredEvent) -> str:
    """Address of a message in Twilio's console, where authorised staff can read it; "" for what is not a message."""
    if not account_sid or entry.source is Source.STAFF:
        return ""
    return MESSAGE_PAGE.format(account_sid=account_sid, message_sid=entry.event_id)


def _link(record: str, project: Project, schema: ProjectSchema | None) -> str:
    """Address of a record's home page in REDCap, which contains REDCap's version."""
    path = urlsplit(project.redcap_url).path
    if schema is None or not schema.version or not schema.project_id or not path.endswith("/api/"):
        return ""
    base = project.redcap_url.removesuffix("api/")
    page = f"redcap_v{schema.version}/DataEntry/record_home.php"
    return f"{base}{page}?pid={quote(schema.project_id)}&id={quote(record, safe='')}"


def _thread(entry: StoredEvent) -> str:
    """One thread per record (or group of records with one number): a hash, as ids may contain any character."""
    digest = hashlib.sha256("\n".join(sorted(entry.records)).encode()).hexdigest()[:16]
    return f"{entry.project}.record.{digest}"


@lru_cache(maxsize=64)
def _environment(folder: str | None) -> ImmutableSandboxedEnvironment:
    """A study's folder takes precedence over the built-in templates, which `extends` reaches as "built-in/…"."""
    built_in = PackageLoader("worker.mail")
    loaders = [built_in] if folder is None else [FileSystemLoader(folder, encoding="utf-8-sig"), built_in]
    return ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([*loaders, PrefixLoader({"built-in": built_in})]),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render_with_fallback(part: str, facts: dict[str, Any], folder: str | None) -> str:
    if folder is None:
        return render(part, facts, None)
    try:
        return render(part, facts, folder)
    except Exception as error:  # noqa: BLE001  the mail is sent whatever a study's template raises
        log.error(
            "template_failed", project=facts["project"], template=part, error=describe_template_error(error)
        )
        return render(part, facts, None)


def render(part: str, facts: dict[str, Any], folder: str | None) -> str:
    """Render one template. Raises whatever the template raises."""
    return _environment(folder).get_template(part).render(facts)


def describe_template_error(error: Exception) -> str:
    """What is wrong with a template, and in which line."""
    line = getattr(error, "lineno", None)
    return f"{type(error).__name__}{f', line {line}' if line else ''}: {error}"
