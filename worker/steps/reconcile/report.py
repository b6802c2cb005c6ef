"""What a reconciliation saw and did."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Self

from shared.ledger.projects.nights import Night, NightOutcome
from worker.steps.reconcile.sends import BlockFault, TextsAfterOptOut

# The e-mail names so many records; the report counts them all.
MOST_RECORDS_NAMED = 50
MOST_REASONS_NAMED = 20


@dataclass(slots=True, kw_only=True)
class Report:
    """Counts, record ids and reasons; nothing personal, as the task's result shows it in Flower."""

    project: str
    since: str = ""
    dry_run: bool = False
    outcome: str = "success"  # or "failure", "skipped"
    messages_read: int = 0
    pages_read: int = 0
    inbound_texts: int = 0
    redacted_numbers: int = 0
    redacted_bodies: int = 0
    incomplete_messages: int = 0  # without any date, or without a SID
    changes_recovered: int = 0
    records_read: int = 0
    records_corrected: int = 0
    corrected: list[str] = field(default_factory=list)  # the first record ids, for the e-mail
    would_set: list[str] = field(default_factory=list)  # a dry run's record ids
    would_clear: list[str] = field(default_factory=list)
    kept_entries: list[str] = field(
        default_factory=list
    )  # records that show an opt-out although START came last
    newly_kept: list[str] = field(default_factory=list)  # those that the last report did not have
    entered_by_hand: int = 0  # opt-outs that no text explains
    messages_expected: int = 0  # that webhooks or Event Streams showed, and the log should have
    missing_from_log: list[dict[str, str | int]] = field(default_factory=list)  # by sender, with the time
    texts_after_opt_out: list[TextsAfterOptOut] = field(default_factory=list)
    blocks_confirmed: int = 0  # texts that Twilio refused after it was asked to block the number
    block_faults: list[BlockFault] = field(default_factory=list)  # delivered nevertheless, by record
    not_blocked: list[str] = field(default_factory=list)  # records with the reason why Twilio does not block
    newly_not_blocked: list[str] = field(default_factory=list)  # those that the last report did not have
    statuses: int = 0
    statuses_without_record: int = 0
    still_pending: int = 0
    refused: list[str] = field(default_factory=list)  # records that REDCap would not change, with its reason
    errors: list[str] = field(default_factory=list)  # what kept the run from its end

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return a report that was stored, perhaps by an older version with other fields."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    def fail(self, error: str) -> None:
        """Note what kept the run from its end."""
        self.errors.append(error)
        self.outcome = "failure"

    @property
    def hides_bodies(self) -> bool:
        """Whether no text of the log had a body: Twilio redacts them, and a STOP cannot be recognised."""
        return 0 < self.inbound_texts == self.redacted_bodies

    @property
    def has_corrections(self) -> bool:
        """Whether something differed: it is restored now, or would be but for the dry run."""
        return bool(self.changes_recovered or self.records_corrected)

    @property
    def hides_messages(self) -> bool:
        """Whether Twilio's log did not show everything that the proof needs."""
        return bool(
            self.redacted_numbers or self.hides_bodies or self.incomplete_messages or self.missing_from_log
        )

    @property
    def is_well(self) -> bool:
        """Nothing is wrong: nothing failed, nothing waits, nothing was hidden."""
        unfinished = self.errors or self.refused or self.still_pending
        return self.outcome == "success" and not (unfinished or self.hides_messages)

    def figures(self) -> dict[str, float]:
        """What `/metrics` shows of it, as `shared.ledger.projects.figures` reads it."""
        missing = sum(int(each["messages"]) for each in self.missing_from_log)
        covered = 1 - missing / self.messages_expected if self.messages_expected else 1.0
        refused = sum(each["refused"] for each in self.texts_after_opt_out)
        faults = sum(each["delivered"] for each in self.block_faults)
        return {
            "log_covered": covered, "refused": refused, "delivered": self.texts_delivered, "block_faults": faults,
        }  # fmt: skip

    @property
    def texts_delivered(self) -> int:
        """How many texts were delivered to participants who had opted out."""
        return sum(each["delivered"] for each in self.texts_after_opt_out)

    @property
    def has_news(self) -> bool:
        """Whether something changed, or was found for the first time."""
        blocks = self.block_faults or self.newly_not_blocked
        return bool(self.has_corrections or self.newly_kept or self.texts_after_opt_out or blocks)

    @property
    def is_worth_a_mail(self) -> bool:
        """Whether somebody should know."""
        return self.has_news or not self.is_well

    @property
    def concerns_study_team(self) -> bool:
        """Whether it is about participants, and not only about the platform."""
        return self.has_news or bool(self.refused)


def as_night(report: Report, now: datetime) -> Night:
    """What the calendar of reconciliations keeps of a report."""
    return Night(
        outcome=_night_outcome(report),
        ended_at=now,
        messages_read=report.messages_read,
        changes_recovered=report.changes_recovered,
        records_corrected=report.records_corrected,
        not_written=report.still_pending + len(report.refused),
        texts_delivered=report.texts_delivered,
        hidden=tuple(_hidden(report)),
        errors=tuple(report.errors),
    )


def _night_outcome(report: Report) -> NightOutcome:
    if report.outcome != "success":
        return NightOutcome.FAILED
    if report.hides_messages:
        return NightOutcome.PARTLY_BLIND
    return NightOutcome.PROVED if report.is_well else NightOutcome.OPEN


def _hidden(report: Report) -> Iterator[str]:
    for each in report.missing_from_log:
        yield f"{each['messages']} messages of {each['sender']} are missing from Twilio's log"
    if report.redacted_numbers:
        yield f"{report.redacted_numbers} STOPs or STARTs have redacted numbers"
    if report.hides_bodies:
        yield f"all {report.redacted_bodies} texts have no body"
    if report.incomplete_messages:
        yield f"{report.incomplete_messages} messages have no date or no SID"
