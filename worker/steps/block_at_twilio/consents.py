"""Which consents an event needs: the numbers, read from REDCap now, and the senders whose texts Twilio has to block.

The numbers live only as long as the request: nothing here is stored, logged or put into an exception.
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shared.config import Config, Project
from shared.domain.events import Change, Source
from shared.domain.keywords import is_toll_free
from shared.domain.precedence import Status, decide
from shared.domain.scopes import STAFF, UNKNOWN, record_of, scope_of, staff_key
from shared.errors import OptOutError
from shared.ledger import StoredEvent
from shared.ledger.opt_outs.blocks import BlockedNumber
from shared.ledger.platform.service_senders import ServiceSenders
from worker.services import Services
from worker.twilio.consents import Collected, Consent, Wish, is_covered
from worker.twilio.service_senders import service_senders

# Of correlation ids: the same event, number and sender have the same id in every retry.
_NAMESPACE = uuid.UUID("6f0d8d0e-3a53-4b6c-9d0b-6a5f6f1f2a61")

NO_NUMBER = "no record holds the number any more"
NO_PHONE = "the record holds no phone number"
WHATSAPP = "Twilio does not block WhatsApp"
NO_SENDER = "the number that was texted is not configured any more"
OVER = "the opt-out has ended in the meantime"
AGAIN = "there is an opt-out in the meantime"


class NotNeeded(OptOutError):
    """The event's change is over; the text says why."""


class Impossible(OptOutError):
    """Twilio cannot be asked for this, now or later; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PlannedConsent:
    """A consent for one event, and what the ledger remembers of it."""

    event_id: str
    blocked: BlockedNumber
    consent: Consent


def senders_of(config: Project, services: Services) -> dict[str, str]:
    """Return the senders of a project that Twilio can block, by scope: its service, and numbers outside it."""
    service = config.messaging_service_sid
    senders = {service: service} if service else {}
    known = ServiceSenders(services.redis, services.hasher)
    for sender in filter(is_covered, config.senders):
        if not (service and known.services_of(sender, [service])):
            senders[scope_of(None, [], sender, services.hasher)] = sender
    return senders


def toll_free_senders(project: str, services: Services) -> list[str]:
    """Return the toll-free numbers of a project, by their last digits. Raises as Twilio's client does."""
    config = services.config.projects[project]
    service = config.messaging_service_sid
    in_service = service_senders(services.twilio(project), service) if service else ()
    numbers = dict.fromkeys(filter(is_toll_free, [*config.senders, *in_service]))
    return [f"the number …{number[-4:]}" for number in numbers]


class Planner:
    """Plans the consents of one project's events."""

    def __init__(self, project: str, services: Services) -> None:
        self._project = project
        self._services = services
        self._config = services.config.projects[project]
        self._senders = senders_of(self._config, services)

    def numbers(self, entries: Iterable[StoredEvent]) -> dict[str, dict[str, str]]:
        """Read the numbers of the records that the events concern: by record, then by hash. Raises as REDCap does."""
        records = dict.fromkeys(record for entry in entries for record in self._records(entry))
        return self._services.project(self._project).numbers(list(records)) if records else {}

    def plan(self, entry: StoredEvent, numbers: Mapping[str, Mapping[str, str]]) -> list[PlannedConsent]:
        """Return the consents of one event. Raises NotNeeded or Impossible."""
        held = {record: numbers.get(record, {}) for record in self._records(entry)}
        wanted = self._own_numbers(entry, held)
        self._raise_if_over(entry, held)
        return [
            self._planned(entry, phone, number, scope, sender)
            for phone, number in wanted.items()
            for scope, sender in self._scopes(entry).items()
        ]

    def opt_outs(self, entry: StoredEvent, numbers: Mapping[str, Mapping[str, str]]) -> list[str]:
        """Return the ids of the opt-outs that are in force for the records of an event."""
        held = {record: numbers.get(record, {}) for record in self._records(entry)}
        decided = [decide(self._statuses(record, phones)) for record, phones in held.items()]
        return [stop.event_id for each in decided for stop in each.stops]

    def _records(self, entry: StoredEvent) -> list[str]:
        if (record := record_of(entry.phone_hash)) is not None:
            return [record]
        indexed = self._services.index(self._project).records([entry.phone_hash]).get(entry.phone_hash, [])
        return list(dict.fromkeys([*indexed, *entry.records]))

    @staticmethod
    def _own_numbers(entry: StoredEvent, held: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
        """The numbers of a record for a staff decision; else the number that texted, if a record still holds it."""
        found = {phone: number for numbers in held.values() for phone, number in numbers.items()}
        if record_of(entry.phone_hash) is None:
            found = {phone: number for phone, number in found.items() if phone == entry.phone_hash}
        if not found:
            raise Impossible(NO_NUMBER if record_of(entry.phone_hash) is None else NO_PHONE)
        return found

    # --- is it still wanted? ------------------------------------------------------------------------

    def _raise_if_over(self, entry: StoredEvent, held: Mapping[str, Mapping[str, str]]) -> None:
        if entry.change is Change.START:
            self._raise_if_opted_out(held)
        elif not any(self._is_in_force(entry, record) for record in held):
            raise NotNeeded(OVER)

    def _is_in_force(self, entry: StoredEvent, record: str) -> bool:
        known = self._services.ledger.statuses_of(self._project, {entry.phone_hash, staff_key(record)})
        return any(stop.scope == entry.scope for stop in decide(known).stops)

    def _raise_if_opted_out(self, held: Mapping[str, Mapping[str, str]]) -> None:
        if any(decide(self._statuses(record, phones)).opted_out for record, phones in held.items()):
            raise NotNeeded(AGAIN)
        phones = {phone for numbers in held.values() for phone in numbers}
        for project in sharing_projects(self._project, self._services.config):
            if self._has_opt_out(project, phones):
                raise Impossible(f"{project}, which shares the sender, has an opt-out of this number")

    def _statuses(self, record: str, phones: Iterable[str]) -> list[Status]:
        return self._services.ledger.statuses_of(self._project, {*phones, staff_key(record)})

    def _has_opt_out(self, project: str, phones: Iterable[str]) -> bool:
        for phone in phones:
            records = self._services.index(project).records([phone]).get(phone, [])
            keys = [{phone, staff_key(record)} for record in records] or [{phone}]
            ledger = self._services.ledger
            if any(decide(ledger.statuses_of(project, group)).opted_out for group in keys):
                return True
        return False

    # --- consents -----------------------------------------------------------------------------------

    def _scopes(self, entry: StoredEvent) -> Mapping[str, str]:
        """The senders to block, by scope: those of the text; all of the study's for a decision by staff."""
        if entry.scope in {STAFF, UNKNOWN}:
            if not self._senders:
                raise Impossible(WHATSAPP)
            return self._senders
        if entry.scope.startswith("whatsapp:"):
            raise Impossible(WHATSAPP)
        if entry.scope.startswith("MG"):
            return {entry.scope: entry.scope}
        if entry.scope not in self._senders:
            raise Impossible(NO_SENDER)
        return {entry.scope: self._senders[entry.scope]}

    def _planned(
        self, entry: StoredEvent, phone: str, number: str, scope: str, sender: str
    ) -> PlannedConsent:
        wish = Wish.OPT_OUT if entry.change is Change.STOP else Wish.OPT_IN
        consent = Consent(
            number=number,
            sender=sender,
            wish=wish,
            collected=Collected.OFFLINE if entry.source is Source.STAFF else Collected.TEXT,
            since=entry.occurred_at,
            correlation_id=_correlation_id(self._project, entry.event_id, wish, phone, scope),
        )
        return PlannedConsent(event_id=entry.event_id, blocked=BlockedNumber(phone, scope), consent=consent)


def sharing_projects(project: str, config: Config) -> list[str]:
    """Return the other projects that share a sender with this one: at Twilio, a block concerns all of them."""
    own = config.projects[project]
    senders = {own.messaging_service_sid, *own.senders} - {None}
    return [
        name
        for name, other in config.projects.items()
        if name != project
        and other.twilio == own.twilio
        and senders & {other.messaging_service_sid, *other.senders}
    ]


def _correlation_id(*parts: str) -> str:
    return uuid.uuid5(_NAMESPACE, "|".join(parts)).hex
