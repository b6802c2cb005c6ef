"""The monthly summary of a study: counted from the ledger, mailed on the first of the next month."""

from collections.abc import Sequence
from datetime import date, timedelta
from statistics import median
from zoneinfo import ZoneInfo

import structlog

from shared.batches import batches
from shared.domain.events import Change, Source, State
from shared.domain.months import Month
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger import StoredEvent
from shared.ledger.mails.regular_mails import MonthlySummaries
from shared.ledger.projects.nights import NightOutcome, Nights
from shared.ledger.projects.overview import Overview
from shared.ledger.work.locks import try_lock
from shared.retry_policy import SUMMARY_AGAIN_SECONDS
from worker.mail.smtp import SENT, outcome_of
from worker.mail.summary_mail import Summary, Week, compose_summary
from worker.services import Services

# After the night's reconciliation, and before people begin to work.
MAILED_FROM_HOUR = 7
# A mail server that is away for longer has a larger problem than this e-mail.
MAILED_UNTIL_DAY = 8
MOST_AT_ONCE = 10

log = structlog.get_logger(__name__)


def last_month(project: str, services: Services) -> Month:
    """The last month that is over, in the project's time zone."""
    return Month.of(services.now().astimezone(services.zone(project)).date()).previous


# --- counting -----------------------------------------------------------------------------------------


def summarise(project: str, month: Month, services: Services) -> Summary:
    """Count a month of a project by the times of its texts."""
    events = _events(project, month, services)
    written = [event for event in events if event.state is State.UPDATED]
    proved, nights, texts = _nights(project, month, services)
    return Summary(
        project=project,
        month=month,
        opt_outs=_number(written, Change.STOP),
        opt_ins=_number(written, Change.START),
        not_saved=sum(event.state is State.FAILED for event in events),
        opted_out_now=Overview(services.redis).opted_out([project])[project],
        median_seconds=_median_seconds(written),
        nights_proved=proved,
        nights=nights,
        reviews_open=services.ledger.review_backlog(project).number,
        texts_after_opt_outs=texts,
        weeks=_weeks(month, written, services.zone(project)),
    )


def _events(project: str, month: Month, services: Services) -> list[StoredEvent]:
    """What was texted in the month and has ended. A replayed event was received later once more."""
    zone = services.zone(project)
    begin, end = month.begin(zone), month.following.begin(zone)
    received = services.ledger.entries_between(project, begin - timedelta(hours=1), services.now())
    ended = {State.UPDATED, State.FAILED}
    return [entry for entry in received if entry.state in ended and begin <= entry.occurred_at < end]


def _number(written: Sequence[StoredEvent], change: Change) -> int:
    return sum(event.change is change for event in written)


def _median_seconds(written: Sequence[StoredEvent]) -> float | None:
    """Of what participants texted."""
    took = [
        (event.finished_at - event.occurred_at).total_seconds()
        for event in written
        if event.finished_at and event.source is not Source.STAFF
    ]
    return round(max(0.0, median(took)), 1) if took else None


def _weeks(month: Month, written: Sequence[StoredEvent], zone: ZoneInfo) -> list[Week]:
    weeks = []
    for days in batches(month.days, 7):
        of_week = [event for event in written if event.occurred_at.astimezone(zone).date() in days]
        name = f"{days[0].day}-{days[-1].day}" if len(days) > 1 else str(days[0].day)
        weeks.append(Week(name, _number(of_week, Change.STOP), _number(of_week, Change.START)))
    return weeks


def _nights(project: str, month: Month, services: Services) -> tuple[int, int, int]:
    """Nights that were proved, nights that there were since the first known one, and texts after opt-outs."""
    known = Nights(services.redis).of(project)
    today = services.now().astimezone(ZoneInfo(services.config.time_zone)).date()
    first = min(known, default=today)
    nights = [day for day in month.days if first <= day < today or day in known]
    found = [known[day] for day in nights if day in known]
    proved = sum(night.outcome is NightOutcome.PROVED for night in found)
    return proved, len(nights), sum(night.texts_delivered for night in found)


# --- sending ------------------------------------------------------------------------------------------


def send_due_summaries(services: Services) -> None:
    """Mail the summaries of the last month that are due, a few at a time; beat's sweep calls this each minute."""
    for project in _due(services)[:MOST_AT_ONCE]:
        with try_lock(services.redis, f"summary:{project}") as acquired:
            if acquired and services.deduplicator.claim(f"summary:{project}", seconds=SUMMARY_AGAIN_SECONDS):
                _send(project, last_month(project, services), services)


def _due(services: Services) -> list[str]:
    wanted = [
        project for project, config in services.config.projects.items() if config.summary and config.notify
    ]
    if not wanted:
        return []
    mailed = MonthlySummaries(services.redis).last_months()
    return [project for project in wanted if _is_due(project, mailed.get(project), services)]


def _is_due(project: str, mailed: Month | None, services: Services) -> bool:
    month = last_month(project, services)
    if mailed is None:  # configured within the month: the first summary is that of a whole one
        MonthlySummaries(services.redis).note(project, month)
        return False
    local = services.now().astimezone(services.zone(project))
    is_time = date(local.year, local.month, MAILED_UNTIL_DAY) > local.date()
    return mailed != month and is_time and (local.day > 1 or local.hour >= MAILED_FROM_HOUR)


def _send(project: str, month: Month, services: Services) -> None:
    try:
        outcome = _outcome(project, month, services)
    except (MailDeferred, ConfigError) as error:
        log.warning("summary_put_off", project=project, error=" ".join(str(error).split()))
        return
    except MailRejected as error:
        outcome = f"refused: {error}"
    MonthlySummaries(services.redis).note(project, month)
    services.ledger.count("mails", project, "summary", outcome.partition(":")[0])
    level = log.info if outcome == SENT else log.error
    level("summary_done", project=project, month=str(month), outcome=outcome)


def _outcome(project: str, month: Month, services: Services) -> str:
    mailer = services.mailer
    if mailer is None:
        return "nobody to tell"
    summary = summarise(project, month, services)
    message = compose_summary(
        summary, services.config.projects[project], sender=mailer.sender, now=services.now()
    )
    return outcome_of(mailer.send(message), message)
