"""The rules of `shared/domain/precedence.py` and those of `accept.lua` are the same: a differential test."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fakeredis import FakeRedis
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.domain.precedence import Status, comes_after, replaced, with_older
from shared.ledger import Ledger

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
PHONE = "phone"
# Close together, so that ties within a second and a millisecond are frequent.
TIMES = st.integers(0, 5_000) | st.sampled_from([0, 1, 999, 1000, 1001, 2000])
EVENTS = st.lists(
    st.tuples(
        st.sampled_from([Change.STOP, Change.START]),
        TIMES,
        st.sampled_from([Source.EVENT_STREAM, Source.MESSAGE_LOG]),
        st.sampled_from(["MG1", "number:2"]),
    ),
    min_size=1,
    max_size=8,
)


def by_the_rules(events: list[OptOutEvent]) -> dict[str, Status]:
    """The statuses by scope after these events, in the order of their arrival."""
    lines: dict[str, Status] = {}
    for event in events:
        new = Status(
            scope=event.scope,
            change=event.change,
            occurred_ms=milliseconds(event.occurred_at),
            event_id=event.event_id,
            exact=event.is_exact,
        )
        old = lines.get(event.scope)
        newest_first = event.source is Source.MESSAGE_LOG
        if old is None or comes_after(new, old, newest_first=newest_first):
            lines[event.scope] = replaced(new, old)
        else:
            lines[event.scope] = with_older(old, new)
    return lines


@given(EVENTS)
def test_the_script_and_the_pure_rules_agree(made: list[tuple[Change, int, Source, str]]) -> None:
    events = [
        OptOutEvent(
            project="asthma",
            event_id=f"SM{number:032}",
            change=change,
            occurred_at=NOON + timedelta(milliseconds=time),
            source=source,
            phone_hash=PHONE,
            scope=scope,
        )
        for number, (change, time, source, scope) in enumerate(made)
    ]
    redis: Any = FakeRedis(decode_responses=True)
    ledger = Ledger(redis)
    for event in events:
        ledger.accept([event], now=NOON + timedelta(minutes=1))
    assert {status.scope: status for status in ledger.status("asthma", PHONE)} == by_the_rules(events)


@given(EVENTS)
def test_whatever_the_order_of_arrival_an_opt_out_in_force_is_in_force(
    made: list[tuple[Change, int, Source, str]],
) -> None:
    """Safety: the latest change by time decides, and a STOP is never lost to a START that is not after it."""
    redis: Any = FakeRedis(decode_responses=True)
    ledger = Ledger(redis)
    for number, (change, time, _, scope) in enumerate(made):
        event = OptOutEvent(
            project="asthma",
            event_id=f"SM{number:032}",
            change=change,
            occurred_at=NOON + timedelta(milliseconds=time),
            source=Source.EVENT_STREAM,
            phone_hash=PHONE,
            scope=scope,
        )
        ledger.accept([event], now=NOON + timedelta(minutes=1))
    for status in ledger.status("asthma", PHONE):
        mine = [(time, change is Change.STOP) for change, time, _, scope in made if scope == status.scope]
        assert (status.change is Change.STOP) == max(mine)[1]
