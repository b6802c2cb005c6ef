"""How events end: recorded in the ledger, logged, and mailed if the project has recipients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType

import structlog

from shared.domain.endpoints import TEST_BLOCK_PREFIX, TEST_SID_PREFIX
from shared.domain.events import Notice, State
from shared.ledger import EventOutcome
from shared.ledger.opt_outs.blocks import Blocks
from worker.services import Services

log = structlog.get_logger(__name__)


def complete_events(
    project: str,
    outcomes: Sequence[EventOutcome],
    services: Services,
    *,
    written: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """End events, and request their e-mails; also those of a project that is no longer configured.

    `written`: see `Ledger.complete_events`.
    """
    config = services.project_config(project)
    outcomes = [_as_configured(project, outcome, services) for outcome in outcomes]
    due = services.ledger.complete_events(
        project, outcomes, now=services.now(), written=written,
        digest_seconds=config.digest_seconds if config else 0, zone=services.zone(project),
    )  # fmt: skip
    for outcome in outcomes:
        log.info(
            "event_ended", project=project, event_id=outcome.event_id, state=outcome.state,
            reason=outcome.reason, records=len(outcome.records),
        )  # fmt: skip
    services.request_mails(project, due)
    if any(outcome.ask_twilio for outcome in outcomes) and Blocks(project, services.redis).has_waiting():
        services.request_block(project)


# States in which the change counts, whether or not REDCap shows it.
_IN_FORCE = {State.UPDATED, State.ALREADY_CURRENT, State.NEEDS_REVIEW, State.FAILED}


def _may_need_block(outcome: EventOutcome) -> bool:
    """Whether the change may have to reach Twilio. The number is in the record; Twilio knows test messages not."""
    is_test = outcome.event_id.startswith(TEST_SID_PREFIX) and not outcome.event_id.startswith(
        TEST_BLOCK_PREFIX
    )
    return bool(outcome.records) and outcome.state in _IN_FORCE and not is_test


def _as_configured(project: str, outcome: EventOutcome, services: Services) -> EventOutcome:
    """With a mail if the project has recipients, and with a request to Twilio if it wants that."""
    config = services.project_config(project)
    if config is None or not config.notify:
        outcome = replace(outcome, notice=None)
    elif outcome.notice is Notice.REVIEW:
        outcome = _with_review_limits(project, outcome, services)
    asks_twilio = config is not None and config.block_at_twilio and _may_need_block(outcome)
    return replace(outcome, ask_twilio=asks_twilio)


def _with_review_limits(project: str, outcome: EventOutcome, services: Services) -> EventOutcome:
    """At most one review of a participant is mailed per day; what exceeds the project's number goes into one mail."""
    config = services.config.projects[project]
    now = services.now().astimezone(services.config.zone(config))
    day = now.strftime("%Y-%m-%d")
    place = services.ledger.place_of_review(project, day, outcome.phone_hash, outcome.event_id)
    if place is None:
        return replace(outcome, notice=None)
    if place > config.suspected_digest_after and not config.digest_seconds:
        return replace(outcome, gather_seconds=_seconds_left(now))
    return outcome


def _seconds_left(now: datetime) -> int:
    """Seconds until the day ends."""
    tomorrow = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return max(1, int(tomorrow.timestamp() - now.timestamp()))
