"""The e-mail about several changes of one project (`notify_digest`). Pure."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from email.message import EmailMessage
from itertools import groupby
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from shared.config import Project
from shared.domain.events import Notice
from shared.ledger import StoredEvent
from worker.mail.event_mail import mail, mail_facts, render
from worker.redcap.schema import ProjectSchema

PARTS = ("digest.subject", "digest.txt", "digest.html")


def compose_digest(
    entries: Sequence[StoredEvent],
    project: Project,
    *,
    zone: ZoneInfo,
    sender: str,
    schema: ProjectSchema | None = None,
) -> EmailMessage:
    """The message, with a plain and an HTML part; events are listed in the order in which they occurred."""
    ordered = sorted(entries, key=lambda entry: (entry.occurred_at, entry.event_id))
    changes = [
        mail_facts(entry, entry.notice, project, zone, schema)
        for entry in ordered
        if entry.notice is not None
    ]
    facts = {
        "project": ordered[0].project,
        "title": project.title or ordered[0].project,
        "changes": changes,
        "days": [(day, list(group)) for day, group in groupby(changes, itemgetter("day"))],
        "field": project.opt_out_field,
        "checkbox": project.opt_out_checkbox or "",
    } | _totals(changes)
    texts = [render(part, facts, None) for part in PARTS]
    since = max(entry.state_since for entry in ordered)
    return mail(texts, project, sender, since, f"{ordered[0].project}.digest.{_fingerprint(ordered)}")


def _totals(changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    decided = Counter(change["change"] for change in changes if change["notice"] != Notice.REVIEW)
    return {
        "opt_outs": decided["STOP"],
        "opt_ins": decided["START"],
        "reviews": len(changes) - decided.total(),
        "all_blocked": all(change["blocked"] for change in changes if change["change"] == "STOP"),
    }


def _fingerprint(entries: Sequence[StoredEvent]) -> str:
    included = "\n".join(f"{entry.event_id} {entry.notice}" for entry in entries)
    return hashlib.sha256(included.encode()).hexdigest()[:24]
