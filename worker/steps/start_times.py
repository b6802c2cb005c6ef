"""When was a START sent? A webhook does not say, and before it clears an opt-out its time has to be certain.

So Twilio is asked for that message; STARTs are rare. Source: Twilio docs, "Twilio's request to your incoming message
webhook URL" (no time), and Messages resource (date_sent of an inbound message: when its webhook was called).
"""

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from shared.domain.events import Change, OptOutEvent, Source
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from shared.ledger import Accepted, StoredEvent
from worker.services import Services

# A START whose time Twilio does not confirm counts only if no STOP of the phone is nearer than this.
DOUBTFUL = timedelta(minutes=15)


class TimeUnknown(Exception):
    """Twilio did not confirm the time of a START that came near a STOP."""


def is_time_unconfirmed(entry: StoredEvent) -> bool:
    """Return whether an event is a START that came by webhook, and Twilio has not been asked yet."""
    event = entry.as_event()
    return (
        entry.change is Change.START
        and entry.source is Source.WEBHOOK
        and not (entry.timed or event.is_exact)
    )


def with_confirmed_time(entry: StoredEvent, services: Services) -> StoredEvent | None:
    """Return the event with Twilio's time; None if a newer change counts, and the event has ended.

    Raises TimeUnknown.
    """
    event = replace(entry.as_event(), occurred_at=_time(entry, services))
    _confirm_stops_after(event, services)
    [accepted] = services.ledger.accept([event], now=services.now(), confirmed=True)
    if accepted is Accepted.STALE:
        services.request_update(entry.project)  # the time that the field has to show may be another one now
        return None
    return services.ledger.load(entry.project, entry.event_id)


def _confirm_stops_after(start: OptOutEvent, services: Services) -> None:
    """Correct the times of STOPs that seem to come after a START: theirs are times of receipt, too."""
    for status in services.ledger.status(start.project, start.phone_hash):
        known = services.ledger.load(start.project, status.event_id)
        is_after = status.change is Change.STOP and status.occurred_at >= start.occurred_at
        if status.scope != start.scope or not is_after or known is None or known.source is not Source.WEBHOOK:
            continue
        with suppress(TwilioUnavailable, TwilioRejected, ConfigError):
            time = services.time_of_text(start.project, status.event_id)
            stop = replace(known.as_event(), occurred_at=time, source=Source.MESSAGE_LOG)
            services.ledger.accept([stop], now=services.now())


def _time(entry: StoredEvent, services: Services) -> datetime:
    try:
        return services.time_of_text(entry.project, entry.event_id)
    except (TwilioUnavailable, TwilioRejected, ConfigError) as error:
        if _is_doubtful(entry, services):
            raise TimeUnknown(str(error)) from None
        return entry.received_at


def _is_doubtful(entry: StoredEvent, services: Services) -> bool:
    statuses = services.ledger.status(entry.project, entry.phone_hash)
    stops = [status.occurred_at for status in statuses if status.change is Change.STOP]
    return any(abs(entry.received_at - stop) < DOUBTFUL for stop in stops)
