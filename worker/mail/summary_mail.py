"""The e-mail with a study's monthly summary; its chart is a table, which every mail program shows. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage

from shared.config import Project
from shared.domain.months import Month
from worker.mail.event_mail import mail, render

PARTS = ("summary.subject", "summary.txt", "summary.html")
# Of the chart, in characters.
LONGEST_BAR = 40


@dataclass(frozen=True, slots=True)
class Week:
    """The changes of some days that are in REDCap."""

    days: str
    opt_outs: int
    opt_ins: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A month of a study, or the part of it that is over; `opted_out_now` and `reviews_open` are of this moment."""

    project: str
    month: Month
    opt_outs: int
    opt_ins: int
    not_saved: int
    opted_out_now: int
    median_seconds: float | None  # from text to REDCap
    nights_proved: int
    nights: int  # 0 if nothing is known of them any more
    reviews_open: int
    texts_after_opt_outs: int  # delivered
    weeks: Sequence[Week]

    @property
    def needs_somebody(self) -> bool:
        """Whether a person has something to do."""
        return bool(self.not_saved or self.reviews_open or self.texts_after_opt_outs)


def compose_summary(summary: Summary, project: Project, *, sender: str, now: datetime) -> EmailMessage:
    """The message, with a plain and an HTML part."""
    texts = [render(part, summary_facts(summary, project), None) for part in PARTS]
    return mail(texts, project, sender, now, f"{summary.project}.summary.{summary.month}")


def summary_text(summary: Summary, project: Project | None, part: str = "summary.txt") -> str:
    """One part of the e-mail, also of a project that is not configured any more."""
    return render(part, summary_facts(summary, project), None)


def summary_facts(summary: Summary, project: Project | None) -> dict[str, object]:
    """The variables of the templates."""
    most = max([1, *(number for week in summary.weeks for number in (week.opt_outs, week.opt_ins))])
    return {
        "project": summary.project,
        "title": (project and project.title) or summary.project,
        "month": summary.month.name,
        "summary": summary,
        "rows": list(_rows(summary)),
        "most": most,
        "longest": LONGEST_BAR,
    }


def _rows(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "Opt-outs", str(summary.opt_outs)
    yield "Opt-ins", str(summary.opt_ins)
    yield "Opted out now", _of("record", summary.opted_out_now)
    if summary.median_seconds is not None:
        yield "From text to REDCap", f"{_span(summary.median_seconds)} (median)"
    if summary.nights:
        yield "Nights proved", f"{summary.nights_proved} of {summary.nights}"
    else:
        yield "Nights proved", "nothing is known of these nights"
    yield "Changes that are not in REDCap", str(summary.not_saved)
    yield "Reviews that wait", str(summary.reviews_open)
    yield "Texts after an opt-out", f"{summary.texts_after_opt_outs} delivered"


def _of(noun: str, number: int) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.0f} hours"
