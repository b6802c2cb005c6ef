"""The e-mail about one event: composed from the event and its project, without any phone number. Pure."""

from email.message import EmailMessage
from email.utils import format_datetime
from zoneinfo import ZoneInfo

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from shared.config import Project
from shared.events import Change, Notice
from shared.ledger import Entry

_templates = Environment(
    loader=PackageLoader("worker"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def compose(entry: Entry, notice: Notice, project: Project, *, zone: ZoneInfo, sender: str) -> EmailMessage:
    """The message, with a plain and an HTML part."""
    facts = {
        "project": entry.project,
        "opted_out": entry.change is Change.STOP,
        "notice": notice,
        "records": list(entry.records),
        "when": entry.occurred_at.astimezone(zone).strftime("%A, %d %B %Y, %H:%M:%S %Z"),
        "reason": entry.reason,
        "event_id": entry.event_id,
        "field": project.opt_out_field,
        "checkbox": project.opt_out_checkbox or "",
    }
    message = EmailMessage()
    message["Subject"] = _subject(entry, notice)
    message["From"] = sender
    message["To"] = ", ".join(project.notify)
    message["Date"] = format_datetime(entry.finished_at or entry.received_at)
    # The same mail has the same id: should one be sent twice (a crash between the server's yes and our
    # note of it), mail programs show it once.
    domain = sender.rpartition("@")[2]
    message["Message-ID"] = f"<{entry.project}.{entry.event_id}.{notice}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office replies, please
    message["X-Opt-Out-Event"] = entry.event_id
    message.set_content(_templates.get_template("notice.txt").render(facts))
    message.add_alternative(_templates.get_template("notice.html").render(facts), subtype="html")
    return message


def _subject(entry: Entry, notice: Notice) -> str:
    change = "Opt-out (STOP)" if entry.change is Change.STOP else "Opt-in (START)"
    listed = ", ".join(entry.records[:5]) + (" …" if len(entry.records) > 5 else "")
    records = f": record{'s' if len(entry.records) > 1 else ''} {listed}" if entry.records else ""
    match notice:
        case Notice.SAVED:
            return f"[{entry.project}] {change} saved{records}"
        case Notice.UNSAVED:
            return f"[{entry.project}] {change} could NOT be saved{records}"
        case Notice.UNMATCHED:
            return f"[{entry.project}] {change} of a number that no record holds"
