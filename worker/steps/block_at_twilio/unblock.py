"""Undo the block of `optout test-message --block`: the number is the one that was typed, not one of REDCap's."""

from collections.abc import Sequence
from uuid import uuid4

from shared.errors import TwilioRejected
from shared.ledger.opt_outs.blocks import BlockedNumber, Blocks, BlockState
from worker.services import Services
from worker.steps.block_at_twilio.consents import senders_of
from worker.twilio.consents import Collected, Consent, Wish, submit


def unblock_number(
    project: str, event_id: str, number: str, blocked: Sequence[BlockedNumber], services: Services
) -> None:
    """Have Twilio deliver to a test number again. Raises TwilioUnavailable, TwilioRejected or ConfigError."""
    senders = senders_of(services.config.projects[project], services)
    consents = [
        Consent(
            number=number,
            sender=senders.get(each.scope, each.scope),
            wish=Wish.OPT_IN,
            collected=Collected.OFFLINE,
            since=services.now(),
            correlation_id=uuid4().hex,
        )
        for each in blocked
    ]
    if not consents:
        return
    problems = [result.problem for result in submit(services.twilio(project), consents).values()]
    if any(problems):
        raise TwilioRejected("twilio_not_unblocked", "; ".join(filter(None, problems)))
    Blocks(project, services.redis).end(
        event_id, BlockState.UNBLOCKED, numbers=blocked, unblocked=True, now=services.now()
    )
