"""What needs somebody, in words: of one study, and of all."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.ledger.projects.overview import StudyOverview
from shared.ledger.projects.reconciliations import Reconciled, reconciled, waits_too_long
from web.console.words import FIXES, number_of, problem_words

# The sentence at the top names so many; the list below has all.
MOST_NAMED = 3

TimeText = Callable[[int], str]


class Level(StrEnum):
    """How urgent something is."""

    FINE = "fine"
    ATTENTION = "attention"  # a person should decide something
    PROBLEM = "problem"  # an opt-out may not be in REDCap, or nothing proves that it is


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that needs somebody, with what to do."""

    text: str
    fix: str
    level: Level = Level.PROBLEM
    command: str = ""


@dataclass(frozen=True, slots=True)
class StudyVerdict:
    """A study with what needs somebody, worst first."""

    study: StudyOverview
    troubles: tuple[Trouble, ...]

    @property
    def level(self) -> Level:
        """The worst."""
        return self.troubles[0].level if self.troubles else Level.FINE

    @property
    def text(self) -> str:
        """All of it in one sentence, without a full stop."""
        return "; ".join(trouble.text for trouble in self.troubles) or "fine"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence at the top of a page."""

    level: Level
    text: str


def study_verdict(study: StudyOverview, now_ms: int, time_text: TimeText) -> StudyVerdict:
    """Judge one study."""
    found = [
        *_problem(study),
        *_failures(study),
        *_reconciliation(study, now_ms, time_text),
        *_waiting(study, now_ms, time_text),
        *_reviews(study),
    ]
    return StudyVerdict(study, tuple(found))


def _problem(study: StudyOverview) -> Iterator[Trouble]:
    if problem := study.problem:
        kept = " Changes are kept until then." if problem.events_kept else ""
        yield Trouble(
            f"{problem_words(problem.code)} ({problem.detail.rstrip('.')})",
            FIXES.get(problem.code, "Correct what it says in REDCap or in the configuration.") + kept,
            command=f"optout check --project {study.project}",
        )


def _failures(study: StudyOverview) -> Iterator[Trouble]:
    if study.failures:
        yield Trouble(
            f"{number_of(study.failures, 'change')} not saved",
            "See the study's list of failures for REDCap's reason. Correct it, then replay.",
            command=f"optout replay --failed --project {study.project}",
        )


def _reconciliation(study: StudyOverview, now_ms: int, time_text: TimeText) -> Iterator[Trouble]:
    state = reconciled(study.success_ms, study.failure_ms, now_ms)
    if state is Reconciled.FAILED:
        reason = "; ".join(study.errors[:2]) or "see the worker's log"
        yield Trouble(f"the last reconciliation failed: {reason}", "It is tried again every hour.")
    elif state is Reconciled.OVERDUE:
        yield Trouble(
            f"no reconciliation since {time_text(study.success_ms)}",
            "See on the page Platform whether beat and a worker run.",
        )


def _waiting(study: StudyOverview, now_ms: int, time_text: TimeText) -> Iterator[Trouble]:
    if study.unfinished and waits_too_long(study.oldest_ms, now_ms):
        wait = number_of(study.unfinished, "change waits", "changes wait")
        yield Trouble(
            f"{wait} for REDCap, the oldest since {time_text(study.oldest_ms)}",
            "See on the page Platform whether a worker runs, and whether REDCap answers.",
            command=f"optout check --project {study.project}",
        )


def _reviews(study: StudyOverview) -> Iterator[Trouble]:
    if study.reviews:
        yield Trouble(
            f"{number_of(study.reviews, 'text waits', 'texts wait')} for a decision",
            "Read the text in Twilio's console, then decide.",
            Level.ATTENTION,
            command=f"optout review --project {study.project}",
        )


def overall(studies: Sequence[StudyVerdict], platform: Sequence[Trouble] = ()) -> Verdict:
    """The sentence about all studies and the platform."""
    levels = [*(each.level for each in studies), *(each.level for each in platform)]
    worst = next((level for level in (Level.PROBLEM, Level.ATTENTION) if level in levels), Level.FINE)
    about_platform = f" Platform: {'; '.join(each.text for each in platform)}." if platform else ""
    return Verdict(worst, _about_studies(studies) + about_platform)


_ALL_FINE = {0: "No study is configured.", 1: "The study is fine."}


def _about_studies(studies: Sequence[StudyVerdict]) -> str:
    troubled = [each for each in studies if each.level is not Level.FINE]
    if not troubled:
        return _ALL_FINE.get(len(studies), f"All {len(studies):,} studies are fine.")
    named = " ".join(f"{each.study.project}: {each.text}." for each in troubled[:MOST_NAMED])
    need = "needs" if len(troubled) == 1 else "need"
    more = "" if len(troubled) <= MOST_NAMED else f" And {len(troubled) - MOST_NAMED:,} more."
    return (
        f"{len(troubled):,} of {number_of(len(studies), 'study', 'studies')} {need} somebody. {named}{more}"
    )


def about(study: StudyVerdict, opted_out: int) -> Verdict:
    """The sentence about one study, in which so many records show an opt-out."""
    name = study.study.project
    if study.troubles:
        return Verdict(study.level, f"{name}: {study.text}.")
    records_show = number_of(opted_out, "record shows", "records show")
    proof = "the last reconciliation succeeded" if study.study.success_ms else "no reconciliation has run yet"
    text = f"{name} is fine: {records_show} an opt-out, every change is in REDCap, and {proof}."
    return Verdict(Level.FINE, text)
