"""The pages of all studies, and of one."""

from collections.abc import Sequence
from datetime import date
from functools import partial

from flask import Blueprint, abort, render_template, request

from shared.domain.events import milliseconds
from shared.ledger import StoredEvent
from shared.ledger.events.event_pages import EventFilter, EventPages
from shared.ledger.events.failures import failed_ids
from shared.ledger.projects.change_counts import ChangeCounts
from shared.ledger.projects.check_results import StoredFinding, check_result
from shared.ledger.projects.nights import Nights
from shared.ledger.projects.overview import Overview
from shared.ledger.projects.tracked import TrackedProjects
from web.console import charts
from web.console.context import console, local_text, now
from web.console.platform_troubles import platform_troubles
from web.console.verdict import Level, StudyVerdict, about, overall, study_verdict

studies = Blueprint("studies", __name__)

STUDIES_PER_PAGE = 50
SPARK_DAYS = 30
MOST_LISTED = 20
_ORDER = {Level.PROBLEM: 0, Level.ATTENTION: 1, Level.FINE: 2}


@studies.get("/healthz")
def healthz() -> str:
    """The process is up."""
    return "ok\n"


@studies.get("/")
def index() -> str:
    """All studies; those that need somebody come first."""
    judged = judge(list(console().config.projects))
    troubles = platform_troubles()
    wanted = request.args.get("q", "").strip()
    found = [each for each in judged if wanted.lower() in each.study.project.lower()]
    page = max(1, request.args.get("page", 1, type=int))
    shown = found[(page - 1) * STUDIES_PER_PAGE : page * STUDIES_PER_PAGE]
    return render_template(
        "studies.html",
        verdict=overall(judged, troubles),
        troubles=troubles,
        rows=_with_changes(shown),
        wanted=wanted,
        page=page,
        found=len(found),
        pages=-(-len(found) // STUDIES_PER_PAGE),
        removed=TrackedProjects(console().ledger.redis).removed(console().config.projects),
    )


def judge(projects: Sequence[str]) -> list[StudyVerdict]:
    """The verdicts about studies, worst first."""
    found = Overview(console().ledger.redis).of(projects)
    now_ms = milliseconds(now())
    verdicts = [study_verdict(study, now_ms, partial(_local, study.project)) for study in found]
    return sorted(verdicts, key=lambda each: (_ORDER[each.level], each.study.project.lower()))


def _local(project: str, moment_ms: int) -> str:
    return local_text(moment_ms, console().zone(project))


def _with_changes(shown: Sequence[StudyVerdict]) -> list[dict[str, object]]:
    days = {each.study.project: _today(each.study.project) for each in shown}
    opted_out = Overview(console().ledger.redis).opted_out(list(days))
    counts = ChangeCounts(console().ledger.redis).of_projects(days, SPARK_DAYS)
    rows = []
    for each in shown:
        changes = counts[each.study.project]
        rows.append(
            {
                "verdict": each,
                "study": each.study,
                "opted_out": opted_out[each.study.project],
                "zone": console().zone(each.study.project),
                "opt_outs": sum(day.opt_outs for day in changes),
                "opt_ins": sum(day.opt_ins for day in changes),
                "spark": charts.sparkline([day.opt_outs + day.opt_ins for day in changes]),
            }
        )
    return rows


def _today(project: str) -> date:
    return now().astimezone(console().zone(project)).date()


@studies.get("/studies/<project>")
def study(project: str) -> str:
    """One study."""
    require_known(project)
    ledger, [verdict] = console().ledger, judge([project])
    opted_out = Overview(ledger.redis).opted_out([project])[project]
    counts, nights = ChangeCounts(ledger.redis), Nights(ledger.redis).of(project)
    today = _today(project)
    days_counted, latencies = counts.of_days(project, today), counts.latencies(project)
    days = charts.calendar(nights, now().astimezone(console().zone("")).date())
    return render_template(
        "study.html",
        project=project,
        verdict=about(verdict, opted_out),
        opted_out=opted_out,
        study=verdict.study,
        troubles=verdict.troubles,
        zone=console().zone(project),
        weeks=charts.week_chart(days_counted),
        month_begins=today.replace(day=1),
        this_month=sum(day.opt_outs for day in days_counted if day.day >= today.replace(day=1)),
        latencies=charts.latency_rows(latencies),
        half_within=charts.half_within(latencies),
        days=days,
        proved=sum(day.outcome in {"proved", "open"} for day in days),
        due=sum(day.outcome != charts.NOT_YET for day in days),
        reviews=ledger.reviews(project, MOST_LISTED),
        failures=_failures(project),
        findings=_findings(project),
        latest=EventPages(project, ledger).page(EventFilter()).entries[:10],
        is_configured=project in console().config.projects,
    )


def _failures(project: str) -> list[StoredEvent]:
    ledger = console().ledger
    ids = failed_ids(project, ledger.redis)[:MOST_LISTED]
    return sorted(ledger.entries_of(project, ids), key=lambda entry: entry.received_at)


def _findings(project: str) -> Sequence[StoredFinding]:
    result = check_result(console().ledger.redis, project)
    return result.findings if result else ()


def require_known(project: str) -> None:
    """404 for a study that is neither configured nor known to the ledger."""
    config = console().config
    if project not in config.projects and project not in TrackedProjects(console().ledger.redis).removed(
        config.projects
    ):
        abort(404)
