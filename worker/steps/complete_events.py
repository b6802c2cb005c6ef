"""How events end: noted in the ledger, logged, and told where the project has somebody to tell."""

from collections.abc import Sequence
from dataclasses import replace

import structlog

from shared.ledger import Outcome
from worker.services import Services

log = structlog.get_logger(__name__)


def settle(project: str, outcomes: Sequence[Outcome], services: Services) -> None:
    """End events, and ask for their e-mails; also those of a project that is configured no more."""
    config = services.project_config(project)
    if config is None or not config.notify:
        outcomes = [replace(outcome, notice=None) for outcome in outcomes]
    digest_seconds = config.digest_seconds if config else 0
    due = services.ledger.settle(project, outcomes, now=services.now(), digest_seconds=digest_seconds)
    for outcome in outcomes:
        log.info(
            "event_ended", project=project, event_id=outcome.event_id, state=outcome.state,
            reason=outcome.reason, records=len(outcome.records),
        )  # fmt: skip
    services.request_mails(project, due)
