"""The e-mail that tells several changes of one project at once (`notify_digest`). Pure."""

import hashlib
from collections.abc import Sequence
from email.message import EmailMessage
from email.utils import format_datetime
from zoneinfo import ZoneInfo

from shared.config import Project
from shared.ledger import Entry
from worker.notice import mail_facts, render
from worker.project import Target

PARTS = ("digest.subject", "digest.txt", "digest.html")


def compose_digest(
    entries: Sequence[Entry], project: Project, *, zone: ZoneInfo, sender: str, target: Target | None = None
) -> EmailMessage:
    """The message, with a plain and an HTML part; entries are told in the order of their changes."""
    ordered = sorted(entries, key=lambda entry: (entry.occurred_at, entry.event_id))
    changes = [
        mail_facts(entry, entry.notice, project, zone, target)
        for entry in ordered
        if entry.notice is not None
    ]
    facts = {
        "project": ordered[0].project,
        "changes": changes,
        "opt_outs": sum(change["opted_out"] for change in changes),
        "opt_ins": sum(not change["opted_out"] for change in changes),
        "field": project.opt_out_field,
        "checkbox": project.opt_out_checkbox or "",
    }
    subject, text, html = (render(part, facts, None) for part in PARTS)
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    message["From"] = sender
    message["To"] = ", ".join(project.notify)
    message["Date"] = format_datetime(max(entry.finished_at or entry.received_at for entry in ordered))
    # The same changes make the same id, should they be sent twice: see notice.py.
    domain = sender.rpartition("@")[2]
    message["Message-ID"] = f"<{ordered[0].project}.digest.{_fingerprint(ordered)}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content(text)
    message.add_alternative(html, subtype="html")
    return message


def _fingerprint(entries: Sequence[Entry]) -> str:
    told = "\n".join(f"{entry.event_id} {entry.notice}" for entry in entries)
    return hashlib.sha256(told.encode()).hexdigest()[:24]
