"""The nightly proof that nothing was missed: Twilio's message log against the ledger, the ledger against REDCap.

1. Every STOP, START and unclear text of the log that the ledger lacks is recorded by the same code path as a webhook.
2. One export of the project rebuilds the phone index and is compared with every known opt-out; what is missing goes
   into the pending set, and the updater writes it. The comparison itself never clears anything.
3. The study's own texts are compared with the opt-outs that were in force when they were sent.
4. A report says what was read, recovered, restored and left, and what could not be seen.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo

import structlog
from redis.exceptions import RedisError

from shared.causes import cause_in_words
from shared.errors import ConfigError, Failure, ProjectProblem, RedcapRejected
from shared.ledger.projects.nights import Nights
from shared.ledger.projects.reconciliations import Reconciliations
from shared.ledger.work.locks import try_lock
from shared.retry_policy import RECONCILE_JUST_RAN
from worker.projects.problems import note_checked, note_problem
from worker.services import Services
from worker.steps.reconcile.blocks import NightlyBlocks
from worker.steps.reconcile.compare import Comparison
from worker.steps.reconcile.read_log import LogReading
from worker.steps.reconcile.recover import DryRunLedger, LedgerView
from worker.steps.reconcile.report import Report, as_night
from worker.steps.reconcile.report_mail import send_report

# Each run reads again what came shortly before the last one: the log may show a message late.
OVERLAP = timedelta(days=2)
# The first run reads all that Twilio keeps.
TWILIO_KEEPS = timedelta(days=400)
# Lists that may be long.
_NOT_LOGGED = {
    "corrected", "kept_entries", "would_set", "would_clear", "texts_after_opt_out", "block_faults", "not_blocked",
    "newly_not_blocked",
}  # fmt: skip
Progress = Callable[[str, int], None]

log = structlog.get_logger(__name__)


def reconcile(
    project: str,
    services: Services,
    *,
    since: datetime | None = None,
    dry_run: bool = False,
    nightly: bool = False,
    progress: Progress = lambda _stage, _number: None,
) -> Report:
    """Reconcile one project, one run at a time. Never raises for what Twilio or REDCap did: the report says it."""
    report = Report(project=project, dry_run=dry_run)
    with try_lock(services.redis, f"reconcile:{project}") as acquired:
        if not acquired or (nightly and _just_ran(project, services)):
            report.outcome = "skipped"
            return report
        _run_and_conclude(report, services, since, progress)
    log.info(
        "reconciled", **{name: value for name, value in asdict(report).items() if name not in _NOT_LOGGED}
    )
    return report


def _run_and_conclude(report: Report, services: Services, since: datetime | None, progress: Progress) -> None:
    """Run, and record how it ended, also if it broke off for a reason that nobody foresaw."""
    needed, began = _needed(report.project, services), services.now()
    since = since or needed
    report.since = since.isoformat(timespec="seconds")
    watermark = began if since <= needed else None  # a run that left a gap moves nothing
    try:
        _run(report, services, since, progress)
    except Exception as error:
        # Such as Celery's time limit. Without its text, which may hold anything.
        report.fail(f"the run broke off: {cause_in_words(error)}")
        with suppress(RedisError):
            _conclude(report, watermark, services)
        raise
    _conclude(report, watermark, services)


def _run(report: Report, services: Services, since: datetime, progress: Progress) -> None:
    """All stages; if Twilio is unavailable, REDCap is still compared."""
    project = report.project
    view = DryRunLedger(project, services) if report.dry_run else LedgerView(project, services)
    blocks = NightlyBlocks(report, services, view)
    reading = LogReading(report, services, view, progress, blocks)
    comparison = Comparison(report, services, view, progress, blocks)
    stages: list[Callable[[], None]] = [
        partial(reading.run, since), comparison.run, blocks.ask, reading.report_sends,
    ]  # fmt: skip
    for stage in stages:
        try:
            stage()
        except (Failure, ConfigError) as error:
            if isinstance(error, RedcapRejected | ProjectProblem) and not report.dry_run:
                note_problem(project, error, services)
            report.fail(str(error))


def _just_ran(project: str, services: Services) -> bool:
    ended = Reconciliations(services.redis, project).succeeded_at()
    return ended is not None and services.now() - ended < RECONCILE_JUST_RAN


def _needed(project: str, services: Services) -> datetime:
    """From when the log has to be read: the beginning of the last run that succeeded, and some before."""
    watermark = Reconciliations(services.redis, project).watermark()
    return services.now() - TWILIO_KEEPS if watermark is None else watermark - OVERLAP


def _conclude(report: Report, watermark: datetime | None, services: Services) -> None:
    """Note outcome and report; the watermark moves only after a success."""
    if report.dry_run:
        return
    reconciliations = Reconciliations(services.redis, report.project)
    before = reconciliations.report()
    report.newly_not_blocked = sorted(set(report.not_blocked) - set(before.get("not_blocked", [])))
    report.newly_kept = sorted(set(report.kept_entries) - set(before.get("kept_entries", [])))
    succeeded = report.outcome == "success"
    if succeeded:
        note_checked(report.project, services)
    reconciliations.conclude(
        asdict(report), report.figures(), watermark=watermark if succeeded else None, now=services.now()
    )
    if watermark is not None:
        today = services.now().astimezone(ZoneInfo(services.config.time_zone)).date()
        Nights(services.redis).record(report.project, today, as_night(report, services.now()))
    send_report(report, services)
