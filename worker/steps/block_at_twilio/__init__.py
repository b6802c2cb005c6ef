"""Have Twilio block the opt-outs that it does not block by itself, or deliver again where a person asked for that.

Due work like everything else: what did not succeed stays in the ledger, and sweep publishes it again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from shared.batches import batches
from shared.domain.events import UNFINISHED, Change
from shared.errors import ConfigError, Failure, Transient, TwilioRejected
from shared.ledger import StoredEvent
from shared.ledger.opt_outs.blocks import BlockedNumber, Blocks, BlockState
from shared.ledger.work.locks import try_lock
from shared.retry_policy import GIVE_UP_BLOCKS_AFTER
from worker.redcap.rate_limit import RateLimiter
from worker.services import Services
from worker.steps.block_at_twilio.consents import Impossible, NotNeeded, PlannedConsent, Planner
from worker.twilio.consents import MOST_PER_REQUEST, REQUESTS_PER_MINUTE, Result, submit, why_not

# Events per round: one export of REDCap, and a few requests to Twilio.
MOST_PER_ROUND = 100
SWITCHED_OFF = "block_at_twilio was switched off"

log = structlog.get_logger(__name__)


def block_at_twilio(project: str, services: Services, *, wait_seconds: float = 0.0) -> None:
    """Send all that waits for a project, unless another worker does for longer than `wait_seconds`."""
    services.deduplicator.release(f"block:{project}")
    if services.project_config(project) is None:
        return  # its work is paused: see worker/projects/removed.py
    with try_lock(services.redis, f"block:{project}", wait_seconds=wait_seconds) as acquired:
        if not acquired or not _Sender(project, services).run():
            services.schedule_quick_retry("block", project)


class _Sender:
    """One run for one project, which holds the lock."""

    def __init__(self, project: str, services: Services) -> None:
        self._project = project
        self._services = services
        self._config = services.config.projects[project]
        self._blocks = Blocks(project, services.redis)
        self._tried: set[str] = set()
        self._all_sent = True

    def run(self) -> bool:
        """Rounds until each waiting event was tried. Returns False if something has to be tried again soon."""
        while ids := self._untried():
            self._tried.update(ids)
            entries = self._services.ledger.entries_of(self._project, list(ids))
            for gone in ids.keys() - {entry.event_id for entry in entries}:
                self._blocks.end(gone, BlockState.NOT_NEEDED, now=self._services.now())
            if self._config.block_at_twilio:
                self._send(entries, ids)
            else:
                for entry in entries:
                    self._record(entry, BlockState.NOT_NEEDED, SWITCHED_OFF)
            self._services.request_mails(
                self._project, self._services.ledger.mails_due(self._project, list(ids))
            )
        return self._all_sent

    def _untried(self) -> dict[str, datetime]:
        waiting = self._blocks.waiting().items()
        return dict([each for each in waiting if each[0] not in self._tried][:MOST_PER_ROUND])

    def _send(self, entries: Sequence[StoredEvent], since: Mapping[str, datetime]) -> None:
        """One export, then as many requests as the consents need."""
        planner = Planner(self._project, self._services)
        try:
            numbers = planner.numbers(entries)
        except (Failure, ConfigError) as error:
            problem = self._note_failure(error)
            for entry in entries:
                self._defer(entry, problem, since[entry.event_id])
            return
        planned = {entry.event_id: self._plan(entry, planner, numbers, since) for entry in entries}
        results = self._submit([each for group in planned.values() for each in group])
        for entry in entries:
            if planned[entry.event_id]:
                self._conclude(entry, planned[entry.event_id], results, since[entry.event_id])
                self._block_again(entry, planner, numbers)

    def _plan(
        self,
        entry: StoredEvent,
        planner: Planner,
        numbers: Mapping[str, Mapping[str, str]],
        since: Mapping[str, datetime],
    ) -> list[PlannedConsent]:
        """The consents of an event; none if there is nothing to ask for, and the event's block has ended."""
        try:
            return planner.plan(entry, numbers)
        except NotNeeded as error:
            self._record(entry, BlockState.NOT_NEEDED, str(error))
        except Impossible as error:
            if entry.state in UNFINISHED:  # its records are not known yet
                self._all_sent = False
                self._defer(entry, str(error), since[entry.event_id])
            else:
                self._record(entry, BlockState.FAILED, str(error))
        return []

    # --- Twilio -------------------------------------------------------------------------------------

    def _submit(self, planned: Sequence[PlannedConsent]) -> dict[str, Result]:
        """Results by correlation id. After a request that failed, no further one is made."""
        account = self._services.config.twilio[self._config.twilio]
        limiter = RateLimiter(self._services.redis, f"consents.{account.account_sid}", REQUESTS_PER_MINUTE)
        results: dict[str, Result] = {}
        try:
            client = self._services.twilio(self._project) if planned else None
            for batch in batches(planned, MOST_PER_REQUEST):
                limiter.acquire()
                results |= submit(client, [each.consent for each in batch])
        except (Failure, ConfigError) as error:
            problem = self._note_failure(error)
            log.warning("block_put_off", project=self._project, error=problem)
            unsent = Result(problem, is_transient=True)
            return {each.consent.correlation_id: unsent for each in planned} | results
        return results

    def _conclude(
        self,
        entry: StoredEvent,
        planned: Sequence[PlannedConsent],
        results: Mapping[str, Result],
        since: datetime,
    ) -> None:
        found = {each.blocked: results[each.consent.correlation_id] for each in planned}
        stored = [number for number, result in found.items() if result.stored]
        result = Result.of_all(found.values())
        if result.stored:
            done = BlockState.BLOCKED if entry.change is Change.STOP else BlockState.UNBLOCKED
            self._record(entry, done, numbers=stored)
        elif result.is_transient:
            self._all_sent = False
            self._defer(entry, result.problem, since, stored)
        else:
            self._record(entry, BlockState.FAILED, result.problem, stored)

    def _block_again(
        self, entry: StoredEvent, planner: Planner, numbers: Mapping[str, Mapping[str, str]]
    ) -> None:
        """An opt-out that came while Twilio was asked to unblock: it may have been overridden there."""
        if entry.change is Change.START:
            for event_id in planner.opt_outs(entry, numbers):
                self._blocks.end(event_id, BlockState.WAITING, now=self._services.now())

    def _note_failure(self, error: Failure | ConfigError) -> str:
        """Have a transient failure tried again soon. Returns what went wrong, without line breaks."""
        self._all_sent = self._all_sent and not isinstance(error, Transient)
        return why_not(error) if isinstance(error, TwilioRejected) else " ".join(str(error).split())

    # --- the ledger ---------------------------------------------------------------------------------

    def _defer(
        self, entry: StoredEvent, problem: str, since: datetime, numbers: Sequence[BlockedNumber] = ()
    ) -> None:
        given_up = self._services.now() - since > GIVE_UP_BLOCKS_AFTER
        self._record(entry, BlockState.FAILED if given_up else BlockState.WAITING, problem, numbers)

    def _record(
        self,
        entry: StoredEvent,
        state: BlockState,
        reason: str = "",
        numbers: Sequence[BlockedNumber] = (),
    ) -> None:
        self._blocks.end(
            entry.event_id, state, reason=reason, numbers=numbers, unblocked=entry.change is Change.START,
            now=self._services.now(),
        )  # fmt: skip
        self._services.ledger.count("blocks", self._project, state)
        log.info("block_asked", project=self._project, event_id=entry.event_id, state=state, reason=reason)
