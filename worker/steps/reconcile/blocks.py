"""Blocks at Twilio, as a night shows them: what is missing is asked for again, and later texts prove the others."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from shared.batches import batches
from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import milliseconds
from shared.domain.precedence import Decision, Status
from shared.domain.scopes import STAFF
from shared.ledger.opt_outs.blocks import BlockedNumber, Blocks, BlockState
from worker.redcap.opt_out_fields import RecordState
from worker.services import Services
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.block_at_twilio.consents import senders_of
from worker.steps.reconcile.recover import LedgerView
from worker.steps.reconcile.report import Report
from worker.steps.reconcile.sends import BlockFault, was_opted_out, with_changes
from worker.twilio.message_log import SentText

# A text that was on its way when Twilio was asked proves nothing.
GRACE_MS = 60_000
_BATCH = 500


class NightlyBlocks:
    """The blocks of one project in one run."""

    def __init__(self, report: Report, services: Services, view: LedgerView) -> None:
        self._report = report
        self._services = services
        self._view = view
        self._project = report.project
        self._config = services.config.projects[report.project]
        self._blocks = Blocks(report.project, services.redis)
        self._in_force = self._blocks.in_force()
        self._candidates: dict[str, None] = {}

    @cached_property
    def _senders(self) -> dict[str, str]:
        return senders_of(self._config, self._services)

    # --- what is missing ----------------------------------------------------------------------------

    def note(self, state: RecordState, decision: Decision, statuses: Mapping[str, Sequence[Status]]) -> None:
        """Note the opt-outs of a record that Twilio was not asked to block: of a new number, or from before."""
        if not self._config.block_at_twilio:
            return
        in_force = {stop.event_id for stop in decision.stops}
        for key in state.keys:
            for status in statuses.get(key, ()):
                if status.event_id in in_force and not self._is_blocked(key, status, state):
                    self._candidates[status.event_id] = None

    def _is_blocked(self, key: str, status: Status, state: RecordState) -> bool:
        """Whether Twilio was asked for it, or cannot be: of WhatsApp, or of a sender of earlier days."""
        senders = self._senders
        if status.scope == STAFF:
            wanted = {BlockedNumber(phone, scope) for phone in state.phones for scope in senders}
        else:
            wanted = {BlockedNumber(key, status.scope)} if status.scope in senders else set()
        return wanted <= self._in_force.keys()

    def ask(self) -> None:
        """Ask for what is missing or has failed, and report what Twilio does not block then."""
        if self._config.block_at_twilio and not self._report.dry_run:
            for event_id in [*self._missing(), *self._blocks.failed()]:
                self._blocks.end(event_id, BlockState.WAITING, now=self._services.now())
            block_at_twilio(self._project, self._services)
        self._report.not_blocked = [
            f"record {', '.join(entry.records)}: {entry.block.reason or 'Twilio was not asked yet'}"
            for entry in self._services.ledger.entries_of(
                self._project, [*self._blocks.waiting(), *self._blocks.failed()]
            )
        ]

    def _missing(self) -> list[str]:
        """The noted ones that Twilio does not block by itself."""
        return [
            entry.event_id
            for batch in batches(self._candidates, _BATCH)
            for entry in self._services.ledger.entries_of(self._project, batch)
            if not (entry.blocked or entry.event_id.startswith(TEST_SID_PREFIX))
        ]

    # --- what later texts prove ---------------------------------------------------------------------

    def explains(self, phone_hash: str, scope: str) -> bool:
        """Whether a rejected text shows only what this program asked for."""
        return BlockedNumber(phone_hash, scope) in self._in_force

    def prove(self, sent: Iterable[SentText]) -> None:
        """Compare texts that were sent after a block with what became of them."""
        after = list(filter(self._comes_after_block, sent))
        self._report.blocks_confirmed = sum(text.rejected for text in after)
        delivered = [text for text in after if text.delivered]
        faults: Counter[str] = Counter()
        for text, record, known in with_changes(delivered, self._view, self._services.index(self._project)):
            faults[record] += _is_fault(text, known, self._since(text))
        self._report.block_faults = [
            BlockFault(record=record, delivered=number) for record, number in sorted(faults.items()) if number
        ]

    def _since(self, text: SentText) -> int:
        return milliseconds(self._in_force[BlockedNumber(text.phone_hash, text.scope)])

    def _comes_after_block(self, text: SentText) -> bool:
        return self.explains(text.phone_hash, text.scope) and text.sent_ms > self._since(text) + GRACE_MS


def _is_fault(text: SentText, statuses: Sequence[Status], since_ms: int) -> bool:
    """Whether Twilio should have refused the text: a START that the participant texted ends the block there."""
    started = any(
        status.scope == text.scope and since_ms <= status.last_start_ms <= text.sent_ms for status in statuses
    )
    return not started and was_opted_out(statuses, text.sent_ms)
