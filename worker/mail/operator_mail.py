"""The e-mails to the people who run the platform: what is wrong, what is resolved, and once a week how it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

from shared.domain.mailbox import Mailbox, set_addresses
from shared.ledger.platform.open_conditions import OpenCondition

MOST_NAMED = 50
_SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Condition:
    """Something about the platform that somebody has to fix; `key` is the same while it lasts."""

    key: str
    text: str
    severity: str = "error"
    count: int = 0  # of what is affected, if that can grow
    found_daily: bool = False  # by the daily check, which is in no hurry

    def is_worse_than(self, known: OpenCondition) -> bool:
        """Whether it affects more than the last e-mail said; a note, twice as many."""
        grew = known.mailed and self.count > known.count
        return grew and (self.severity != "note" or self.count >= 2 * known.count)


@dataclass(frozen=True, slots=True)
class StudyWeek:
    """One study in the weekly e-mail."""

    project: str
    changes: int
    last_reconciled: str  # local time, or ""


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed since the last e-mail."""

    started: Sequence[Condition] = ()
    worse: Sequence[Condition] = ()
    resolved: Sequence[Condition] = ()

    def __bool__(self) -> bool:
        return bool(self.started or self.worse or self.resolved)


def changes_mail(changes: Changes, open_: Sequence[Condition], public_url: str) -> EmailMessage:
    """What started, grew and ended since the last e-mail. Pure."""
    parts = {"new": changes.started, "worse": changes.worse, "resolved": changes.resolved}
    counts = [f"{len(items)} {word}" for word, items in parts.items() if items]
    subject = f"[Opt-Out Bridge] Problems: {', '.join(counts)}, {len(open_)} open"
    named = {each.key for each in (*changes.started, *changes.worse)}
    lines = [
        *_listed("New:", changes.started),
        *_listed("Worse than before:", changes.worse),
        *_listed("Resolved:", changes.resolved),
        *_listed("Still open:", [each for each in open_ if each.key not in named]),
        "Run optout check for details and fixes; docs/how-to/troubleshoot.md explains them.",
        f"This is the deployment at {public_url}.",
    ]
    return _message(subject, lines)


def weekly_mail(
    open_: Sequence[Condition], studies: Sequence[StudyWeek], last_check: str, public_url: str
) -> EmailMessage:
    """How the platform stands, so that a missing e-mail is noticed, too. Pure."""
    problems = sum(each.severity != "note" for each in open_)
    verdict = f"{problems} problem{'s' * (problems != 1)} open" if problems else "all is well"
    lines = [
        *_listed("Open:", open_),
        "Study: opt-outs and opt-ins of the last seven days; last successful reconciliation",
        *(f"  {each.project}: {each.changes}; {each.last_reconciled or 'none'}" for each in studies),
        "",
        last_check,
        f"This is the deployment at {public_url}. The next e-mail of this kind comes in a week.",
    ]
    return _message(f"[Opt-Out Bridge] Weekly report: {verdict}", lines)


def addressed(message: EmailMessage, sender: str, recipients: Sequence[str], now: datetime) -> EmailMessage:
    """The message with its envelope's headers."""
    set_addresses(message, "From", [sender])
    set_addresses(message, "To", recipients)
    message["Date"] = format_datetime(now)
    message["Message-ID"] = make_msgid("operator", Mailbox.parse(sender).domain)
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
        yield from (f"  {condition.text}" for condition in sorted(conditions, key=_worst_first)[:MOST_NAMED])
        if len(conditions) > MOST_NAMED:
            yield f"  and {len(conditions) - MOST_NAMED} more"
        yield ""


def _worst_first(condition: Condition) -> int:
    return _SEVERITIES.index(condition.severity)
