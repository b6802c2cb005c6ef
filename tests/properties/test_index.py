"""The phone index as a property: after any exports it holds what the last one said, both ways round."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.ledger import keys
from tests.fakes import fake_redis
from worker.redcap.opt_out_fields import RecordState
from worker.redcap.phone_index import PhoneIndex

BEGIN = datetime(2026, 5, 4, tzinfo=UTC)
RECORDS = st.sampled_from(["1", "2", "10", "331-1", "a b"])
PHONES = st.frozensets(st.sampled_from(["P", "Q", "R"]), max_size=3)
# A record may come twice in one export, where its rows stand apart.
EXPORT = st.lists(st.tuples(RECORDS, PHONES), max_size=8)


def state(record: str, phones: frozenset[str]) -> RecordState:
    return RecordState(record_id=record, phones=phones, opt_out_value="", ticked=False)


@given(exports=st.lists(EXPORT, min_size=1, max_size=4), apart_ms=st.sampled_from([0, 1, 1000]))
def test_the_index_is_what_the_last_export_said(
    exports: list[list[tuple[str, frozenset[str]]]], apart_ms: int
) -> None:
    redis = fake_redis()
    index = PhoneIndex("asthma", redis)
    now = BEGIN
    for export in exports:
        # Two runs in one millisecond add up: neither is known to be the later one.
        now += timedelta(milliseconds=apart_ms)
        index.rebuild([state(record, phones) for record, phones in export], now=now)
    counted = exports[-1:] if apart_ms else exports
    wanted: dict[str, set[str]] = {}
    for record, phones in (pair for export in counted for pair in export):
        for phone in phones:
            wanted.setdefault(phone, set()).add(record)
    found = {phone: ids.split("\n") for phone, ids in redis.hgetall(keys.index_phones("asthma")).items()}
    assert {phone: set(ids) for phone, ids in found.items()} == wanted
    assert all(len(ids) == len(set(ids)) for ids in found.values())
    by_record = redis.hgetall(keys.index_records("asthma"))
    assert set(by_record) == {record for ids in wanted.values() for record in ids}


@given(export=st.lists(st.tuples(RECORDS, PHONES), max_size=5, unique_by=lambda pair: pair[0]))
def test_the_same_export_again_puts_nobody_into_the_pending_set(
    export: list[tuple[str, frozenset[str]]],
) -> None:
    redis = fake_redis()
    index = PhoneIndex("asthma", redis)
    states = [state(record, phones) for record, phones in export]
    index.rebuild(states, now=BEGIN)
    redis.hset(keys.status("asthma"), mapping=dict.fromkeys("PQR", "STOP|1|SM1|0"))
    index.rebuild(states, now=BEGIN + timedelta(seconds=1))
    assert redis.exists(keys.pending("asthma")) == 0
