"""The pages about the platform: the last daily check, processes, queues, budgets, mail and Redis."""

from collections.abc import Mapping, Sequence
from zoneinfo import ZoneInfo

from flask import Blueprint, render_template

from shared.domain.events import milliseconds
from shared.ledger.platform.loaded_configurations import program_version
from shared.ledger.platform.platform_status import PlatformStatus
from shared.ledger.projects.check_results import CheckResult, StoredFinding, check_results
from shared.ledger.projects.overview import Overview
from shared.messaging.tasks import QUEUES
from web.console.context import console, now
from web.console.platform_troubles import platform_troubles
from web.console.verdict import Level, Verdict
from web.console.words import number_of

SEVERITIES = ("error", "warning", "note")
MOST_FINDINGS = 200

platform = Blueprint("platform", __name__)


@platform.get("/platform")
def status() -> str:
    """The platform now."""
    config, ledger = console().config, console().ledger
    read, now_ms, troubles = PlatformStatus(ledger.redis), milliseconds(now()), platform_troubles()
    studies = Overview(ledger.redis).of(list(config.projects))
    oldest = min((study.oldest_ms for study in studies if study.oldest_ms), default=0)
    return render_template(
        "platform.html",
        verdict=_verdict([each.text for each in troubles]),
        troubles=troubles,
        digest=config.digest,
        version=program_version(),
        processes=read.processes(now_ms),
        queues=read.queues(list(QUEUES.values())),
        unfinished=sum(study.unfinished for study in studies),
        oldest_minutes=(now_ms - oldest) // 60_000 if oldest else 0,
        budgets=read.budgets(config.redcap_rates),
        mail=read.mail(),
        due_mails=Overview(ledger.redis).due_mails(list(config.projects)),
        redis=read.redis(),
        now_ms=now_ms,
        zone=ZoneInfo(config.time_zone),
        flower_url=console().flower_url,
    )


def _verdict(troubles: list[str]) -> Verdict:
    if troubles:
        text = "; ".join(troubles)
        return Verdict(Level.PROBLEM, f"{text[0].upper()}{text[1:]}.")
    return Verdict(
        Level.FINE, "The platform is fine: web, worker and beat run, and Redis stores every change."
    )


@platform.get("/checks")
def checks() -> str:
    """The findings of the last daily checks, worst first."""
    results = check_results(console().ledger.redis)
    found = sorted(
        (finding for result in results.values() for finding in result.findings),
        key=lambda finding: (SEVERITIES.index(finding.severity), finding.subject),
    )
    return render_template(
        "checks.html",
        verdict=_findings_verdict(results, found),
        findings=found[:MOST_FINDINGS],
        omitted=max(0, len(found) - MOST_FINDINGS) + sum(result.omitted for result in results.values()),
        results=results,
        oldest=min((result.checked_at for result in results.values()), default=None),
        passed=sum(len(result.passed) for result in results.values()),
        unchecked=[name for name in console().config.projects if name not in results],
        zone=ZoneInfo(console().config.time_zone),
    )


def _findings_verdict(results: Mapping[str, CheckResult], found: Sequence[StoredFinding]) -> Verdict:
    if not results:
        return Verdict(
            Level.ATTENTION,
            "No daily check has been kept yet. The first one runs 15 minutes after the start.",
        )
    if not found:
        return Verdict(Level.FINE, "The daily checks have found nothing.")
    errors = sum(finding.severity == SEVERITIES[0] for finding in found)
    warnings = sum(finding.severity == SEVERITIES[1] for finding in found)
    level = Level.PROBLEM if errors else Level.ATTENTION if warnings else Level.FINE
    parts = (
        number_of(errors, "error"),
        number_of(warnings, "warning"),
        number_of(len(found) - errors - warnings, "note"),
    )
    return Verdict(level, f"The daily checks have found {', '.join(parts)}.")
