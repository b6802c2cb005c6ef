"""The e-mails to the people who run the platform: what is wrong, what is resolved, and once a week how it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

MOST_NAMED = 50


@dataclass(frozen=True, slots=True)
class Condition:
    """Something about the platform that somebody has to fix; `key` is the same while it lasts."""

    key: str
    text: str


@dataclass(frozen=True, slots=True)
class StudyWeek:
    """One study in the weekly e-mail."""

    project: str
    changes: int
    last_reconciled: str  # local time, or ""


def changes_mail(
    started: Sequence[Condition], resolved: Sequence[Condition], open_: Sequence[Condition], public_url: str
) -> EmailMessage:
    """What started and ended since the last e-mail. Pure."""
    counts = [f"{len(items)} {word}" for items, word in ((started, "new"), (resolved, "resolved")) if items]
    subject = f"[Opt-Out Bridge] Problems: {', '.join(counts)}, {len(open_)} open"
    lines = [
        *_listed("New:", started),
        *_listed("Resolved:", resolved),
        *_listed("Still open:", [each for each in open_ if each not in started]),
        "Run optout check for details and fixes; docs/how-to/troubleshoot.md explains them.",
        f"This is the deployment at {public_url}.",
    ]
    return _message(subject, lines)


def weekly_mail(open_: Sequence[Condition], studies: Sequence[StudyWeek], public_url: str) -> EmailMessage:
    """How the platform stands, so that a missing e-mail is noticed, too. Pure."""
    verdict = f"{len(open_)} problem{'s' * (len(open_) != 1)} open" if open_ else "all is well"
    lines = [
        *_listed("Open:", open_),
        "Study: opt-outs and opt-ins of the last seven days; last successful reconciliation",
        *(f"  {each.project}: {each.changes}; {each.last_reconciled or 'none'}" for each in studies),
        "",
        f"This is the deployment at {public_url}. The next e-mail of this kind comes in a week.",
    ]
    return _message(f"[Opt-Out Bridge] Weekly report: {verdict}", lines)


def addressed(message: EmailMessage, sender: str, recipients: Sequence[str], now: datetime) -> EmailMessage:
    """The message with its envelope's headers."""
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid("operator", sender.rpartition("@")[2])
    return message


def _message(subject: str, lines: Sequence[str]) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = subject
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(lines) + "\n")
    return message


def _listed(heading: str, conditions: Sequence[Condition]) -> Iterator[str]:
    if conditions:
        yield heading
        yield from (f"  {condition.text}" for condition in conditions[:MOST_NAMED])
        if len(conditions) > MOST_NAMED:
            yield f"  and {len(conditions) - MOST_NAMED} more"
        yield ""
