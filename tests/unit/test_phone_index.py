"""The phone index: hashes only, fresh, and careful with strange exports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.domain.events import from_milliseconds, milliseconds
from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.ledger.generations import PERIOD_MS, generation_text, milliseconds_later
from tests.builders import REDCAP_TOKEN, at, hashed
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.redcap import phone_index as module
from worker.redcap.opt_out_fields import RecordState
from worker.redcap.phone_index import PhoneIndex

pytestmark = pytest.mark.usefixtures("naps")

NOON = at("2026-05-04T12:00:00")
LATER = NOON + timedelta(minutes=1)
ONE, TWO, THREE = (hashed(f"+1650555000{n}") for n in (1, 2, 3))


def record(record_id: str, *phones: str) -> RecordState:
    return RecordState(record_id=record_id, phones=frozenset(phones), opt_out_value="", ticked=False)


@pytest.fixture
def index(redis: Any) -> PhoneIndex:
    return PhoneIndex("asthma", redis)


def holders(index: PhoneIndex, *phones: str) -> list[list[str]]:
    found = index.records(phones)
    return [sorted(found.get(phone, [])) for phone in phones]


def know(redis: Any, *phones: str) -> None:
    """Phones with a known status."""
    for phone in phones:
        redis.hset(keys.status("asthma"), phone, f"STOP|1|SM{'0' * 32}|0")


class TestPut:
    def test_a_phone_leads_to_every_record_that_holds_it(self, index: PhoneIndex) -> None:
        index.put([record("1", ONE), record("2", ONE, TWO), record("3")], now=NOON)
        assert holders(index, ONE, TWO, THREE) == [["1", "2"], ["2"], []]

    def test_a_changed_number_leaves_its_old_place(self, index: PhoneIndex) -> None:
        index.put([record("1", ONE), record("2", ONE)], now=NOON)
        index.put([record("1", TWO)], now=LATER)
        assert holders(index, ONE, TWO) == [["2"], ["1"]]

    def test_a_record_that_lost_its_number_leaves_nothing_behind(self, index: PhoneIndex, redis: Any) -> None:
        index.put([record("1", ONE)], now=NOON)
        index.put([record("1")], now=LATER)
        assert holders(index, ONE) == [[]]
        assert redis.keys("*") == []

    def test_a_record_that_comes_twice_in_one_export_keeps_the_numbers_of_both(
        self, index: PhoneIndex
    ) -> None:
        index.put([record("1", ONE), record("2", THREE), record("1", TWO)], now=NOON)
        assert holders(index, ONE, TWO, THREE) == [["1"], ["1"], ["2"]]

    def test_the_numbers_of_the_previous_export_do_not_stay_with_those_of_the_next(
        self, index: PhoneIndex
    ) -> None:
        index.put([record("1", ONE), record("1", TWO)], now=NOON)
        index.put([record("1", TWO), record("1", THREE)], now=LATER)
        assert holders(index, ONE, TWO, THREE) == [[], ["1"], ["1"]]

    def test_the_same_export_again_changes_nothing(self, index: PhoneIndex) -> None:
        for moment in (NOON, LATER):
            index.put([record("1", ONE), record("2", ONE)], now=moment)
        assert holders(index, ONE) == [["1", "2"]]

    def test_record_ids_of_any_form_are_kept_apart(self, index: PhoneIndex) -> None:
        ids = ["1", "11", "001", "1-1", "A, B", "ü", "1|2", "%", "STUDY.*"]
        index.put([record(name, ONE) for name in ids], now=NOON)
        index.put([record("1")], now=LATER)
        assert holders(index, ONE) == [sorted(set(ids) - {"1"})]

    def test_more_records_than_one_script_takes_are_put_in_portions(
        self, index: PhoneIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "RECORDS_PER_SCRIPT", 3)
        assert index.put((record(str(n), ONE) for n in range(10)), now=NOON) == 10
        assert len(index.records([ONE])[ONE]) == 10

    def test_no_phones_are_asked_for_without_a_question(self, index: PhoneIndex) -> None:
        assert index.records([]) == {}


class TestKnownStatuses:
    def test_a_record_that_is_added_after_its_participant_opted_out_becomes_pending(
        self, index: PhoneIndex, redis: Any
    ) -> None:
        know(redis, ONE)
        index.put([record("1", ONE), record("2", TWO)], now=NOON)
        assert redis.zrange(keys.pending("asthma"), 0, -1) == [ONE]
        assert redis.zrange(keys.DUE, 0, -1) == ["update|asthma|"]

    def test_a_record_that_gets_the_number_of_one_who_opted_out_becomes_pending(
        self, index: PhoneIndex, redis: Any
    ) -> None:
        know(redis, TWO)
        index.put([record("1", ONE)], now=NOON)
        assert not redis.exists(keys.pending("asthma"))
        index.put([record("1", ONE, TWO)], now=LATER)
        assert redis.zrange(keys.pending("asthma"), 0, -1) == [TWO]

    def test_a_record_that_was_known_already_is_not_pending_again(
        self, index: PhoneIndex, redis: Any
    ) -> None:
        index.put([record("1", ONE)], now=NOON)
        know(redis, ONE)
        index.put([record("1", ONE)], now=LATER)
        assert not redis.exists(keys.pending("asthma"))
        assert not redis.exists(keys.DUE)


class TestRebuild:
    def test_records_that_are_gone_are_forgotten(self, index: PhoneIndex) -> None:
        assert index.rebuild([record("1", ONE), record("2", TWO)], now=NOON) == 2
        index.rebuild([record("2", TWO)], now=LATER)
        assert holders(index, ONE, TWO) == [[], ["2"]]

    def test_the_old_entries_serve_until_the_export_has_ended(self, index: PhoneIndex) -> None:
        index.rebuild([record("1", ONE), record("2", TWO)], now=NOON)

        def broken_off() -> Any:
            yield record("1", ONE)
            assert holders(index, TWO) == [["2"]]
            raise RedcapUnavailable("redcap_truncated")

        with pytest.raises(RedcapUnavailable):
            index.rebuild(broken_off(), now=LATER)
        assert holders(index, ONE, TWO) == [["1"], ["2"]]
        assert index.refreshed_at() == NOON

    def test_half_of_the_records_gone_is_believed_only_when_a_second_export_agrees(
        self, index: PhoneIndex
    ) -> None:
        many = [record(str(n), hashed(f"+1650555{n:04d}")) for n in range(40)]
        index.rebuild(many, now=NOON)
        with pytest.raises(RedcapUnavailable, match="15 records, 40 before"):
            index.rebuild(many[:15], now=NOON + timedelta(minutes=1))
        with pytest.raises(RedcapUnavailable, match="14 records"):
            index.rebuild(many[:14], now=NOON + timedelta(minutes=2))
        last = hashed("+16505550039")
        assert holders(index, last) == [["39"]]
        assert index.rebuild(many[:14], now=NOON + timedelta(minutes=3)) == 14
        assert holders(index, last) == [[]]

    def test_an_empty_answer_does_not_empty_the_index(self, index: PhoneIndex) -> None:
        many = [record(str(n), hashed(f"+1650555{n:04d}")) for n in range(20)]
        index.rebuild(many, now=NOON)
        with pytest.raises(RedcapUnavailable):
            index.rebuild([], now=LATER)
        assert holders(index, hashed("+16505550003")) == [["3"]]

    def test_a_small_project_may_shrink(self, index: PhoneIndex) -> None:
        index.rebuild([record(str(n), ONE) for n in range(5)], now=NOON)
        assert index.rebuild([], now=LATER) == 0
        assert index.any_record() is None

    def test_some_record_is_known_once_there_is_one(self, index: PhoneIndex) -> None:
        assert index.any_record() is None
        index.rebuild([record("7", ONE), record("8")], now=NOON)
        assert index.any_record() == "7"


class TestTwoExportsAtOnce:
    """The nightly run's takes minutes; a lookup's refresh begins after it, and ends before it."""

    def test_what_the_later_export_shows_stays_when_the_earlier_one_ends(self, index: PhoneIndex) -> None:
        index.rebuild([record("1", ONE), record("2", TWO)], now=NOON)

        def nightly() -> Iterator[RecordState]:
            yield record("1", ONE)
            index.put([record("2", THREE), record("3", THREE)], now=LATER + timedelta(seconds=30))
            yield record("2", TWO)

        index.rebuild(nightly(), now=LATER)
        assert holders(index, ONE, TWO, THREE) == [["1"], [], ["2", "3"]]

    def test_one_that_began_earlier_and_ends_later_takes_nothing_back(self, index: PhoneIndex) -> None:
        index.rebuild([record("1", TWO)], now=LATER)
        index.put([record("1", ONE), record("2", ONE)], now=NOON)
        assert holders(index, ONE, TWO) == [["2"], ["1"]]

    def test_a_record_that_is_put_in_between_the_look_and_the_removal_stays(
        self, index: PhoneIndex, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        index.rebuild([record("1", ONE)], now=NOON)
        forget = index.forget

        def late(records: Iterable[str], *, generation: int) -> None:
            index.put([record("1", ONE)], now=LATER + timedelta(seconds=30))
            forget(records, generation=generation)

        monkeypatch.setattr(index, "forget", late)
        index.rebuild([], now=LATER)
        assert holders(index, ONE) == [["1"]]

    def test_a_clock_that_was_ahead_does_not_freeze_the_index(self, index: PhoneIndex) -> None:
        index.rebuild([record("1", ONE), record("2", ONE)], now=NOON + timedelta(days=365))
        index.rebuild([record("1", TWO)], now=NOON)
        assert holders(index, ONE, TWO) == [[], ["1"]]

    def test_where_generations_begin_anew_the_later_export_still_takes_precedence(
        self, index: PhoneIndex
    ) -> None:
        turn = from_milliseconds(PERIOD_MS)
        index.rebuild([record("1", TWO)], now=turn + timedelta(seconds=1))
        index.put([record("1", ONE), record("2", ONE)], now=turn - timedelta(seconds=1))
        assert holders(index, ONE, TWO) == [["2"], ["1"]]
        index.rebuild([record("1", THREE)], now=turn + timedelta(seconds=2))
        assert holders(index, ONE, TWO, THREE) == [[], [], ["1"]]

    def test_a_deleted_record_is_taken_out_whatever_an_export_said(self, index: PhoneIndex) -> None:
        index.rebuild([record("1", ONE)], now=LATER)
        index.forget(["1"])
        assert holders(index, ONE) == [[]]


@pytest.mark.parametrize("between", [0, 1, 64, 3_600_000, PERIOD_MS - 1])
@pytest.mark.parametrize("moment", [1, milliseconds(NOON), PERIOD_MS - 1, 5 * PERIOD_MS])
def test_a_generation_has_six_characters_and_tells_which_is_later(moment: int, between: int) -> None:
    earlier, later = generation_text(moment), generation_text(moment + between)
    assert (len(earlier), milliseconds_later(later, earlier)) == (6, between)


class TestForget:
    def test_a_deleted_record_is_taken_out(self, index: PhoneIndex) -> None:
        index.put([record("1", ONE), record("2", ONE)], now=NOON)
        index.forget(["1"])
        assert holders(index, ONE) == [["2"]]

    def test_a_forgotten_phone_leaves_the_others_of_its_records(self, index: PhoneIndex) -> None:
        index.put([record("1", ONE, TWO), record("2", ONE)], now=NOON)
        assert sorted(index.forget_phone(ONE)) == ["1", "2"]
        assert holders(index, ONE, TWO) == [[], ["1"]]
        assert (index.knows("1"), index.knows("2")) == (True, False)

    def test_a_record_that_leaves_the_index_in_the_meantime_gets_no_empty_entry(
        self, index: PhoneIndex, redis: Any
    ) -> None:
        index.put([record("1", ONE)], now=NOON)
        redis.hdel(keys.index_records("asthma"), "1")
        assert index.forget_phone(ONE) == ["1"]
        assert not index.knows("1")

    def test_forgetting_nothing_or_an_unknown_record_is_harmless(self, index: PhoneIndex) -> None:
        index.put([record("1", ONE)], now=NOON)
        index.forget([])
        index.forget(["9"])
        assert holders(index, ONE) == [["1"]]


class TestFreshness:
    def test_a_believed_index_wants_a_refresh(self, index: PhoneIndex) -> None:
        index.mark_used(NOON)
        assert not index.needs_refresh()  # there is none yet
        index.rebuild([record("1", ONE)], now=NOON)
        assert not index.needs_refresh()
        index.mark_used(LATER)
        assert index.needs_refresh()

    def test_it_is_fresh_since_the_refresh_began(self, index: PhoneIndex) -> None:
        assert not index.is_fresh(NOON)
        index.rebuild([record("1", ONE)], now=NOON)
        assert index.is_fresh(NOON)
        assert not index.is_fresh(LATER)


class TestRefresh:
    @pytest.fixture
    def asthma(self) -> Study:
        project = classic_study()
        enrol(project, 5)
        return study(project)

    def refresh(self, asthma: Study, **more: Any) -> None:
        since = more.pop("since", None) or datetime.now(UTC)
        asthma.services.index("asthma").refresh(asthma.services.project("asthma"), since=since, **more)

    def test_an_index_built_by_other_rules_is_rebuilt(self, asthma: Study) -> None:
        index = asthma.services.index("asthma")
        other = hashed("+16505559999")
        index.rebuild([record("1", other)], now=NOON)
        asthma.redis.hset(keys.index_state("asthma"), "reading", "1")
        assert index.refreshed_at() is None
        index.refresh(asthma.services.project("asthma"), since=NOON)
        assert holders(index, other) == [[]]
        assert index.is_fresh(since=NOON)

    def test_the_first_refresh_reads_the_whole_project(self, asthma: Study) -> None:
        self.refresh(asthma)
        index = asthma.services.index("asthma")
        assert holders(index, hashed(fictional_phone(3))) == [["3"]]
        assert asthma.exports() == 1

    def test_a_refresh_that_another_worker_has_just_done_is_not_done_again(self, asthma: Study) -> None:
        since = datetime.now(UTC)
        self.refresh(asthma)
        self.refresh(asthma, since=since)
        assert asthma.exports() == 1

    def test_a_large_project_is_asked_only_for_what_changed_with_an_overlap(
        self, asthma: Study, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SMALL_PROJECT", 2)
        self.refresh(asthma)
        before = asthma.services.index("asthma").refreshed_at()
        assert before is not None
        asthma.project.set_value("1", "mobile", "650-555-0777")
        asthma.project.add_record("6", mobile="650-555-0888")
        self.refresh(asthma)
        index = asthma.services.index("asthma")
        assert holders(index, hashed("+16505550777"), hashed("+16505550888")) == [["1"], ["6"]]
        since = asthma.redcap.requests[-1].params["dateRangeBegin"]
        assert since == (before - module.OVERLAP).strftime("%Y-%m-%d %H:%M:%S")

    def test_a_broken_export_leaves_the_index_as_it_was(self, asthma: Study) -> None:
        self.refresh(asthma)
        before = asthma.redis.hgetall(keys.index_phones("asthma"))
        asthma.redcap.faults.add("truncated", kind="export", times=None)
        with pytest.raises(RedcapUnavailable):
            self.refresh(asthma)
        assert asthma.redis.hgetall(keys.index_phones("asthma")) == before

    def test_who_waits_for_another_worker_s_refresh_too_long_gives_up(self, asthma: Study) -> None:
        asthma.redis.set(keys.lock("index:asthma"), "another worker")
        with pytest.raises(RedcapUnavailable, match="index_busy"):
            self.refresh(asthma, wait_seconds=0)

    def test_no_phone_number_and_no_name_is_in_the_index(self, asthma: Study) -> None:
        self.refresh(asthma)
        everything = "".join(str(asthma.redis.hgetall(key)) for key in asthma.redis.keys("optout:index:*"))
        assert hashed(fictional_phone(3)) in everything
        assert all(text not in everything for text in ("5550003", "555-0003", "Participant", REDCAP_TOKEN))

    def test_the_watermark_is_the_time_before_the_export(self, asthma: Study) -> None:
        before = datetime.now(UTC)
        self.refresh(asthma)
        refreshed = asthma.services.index("asthma").refreshed_at()
        assert refreshed is not None
        assert milliseconds(before) <= milliseconds(refreshed) <= milliseconds(datetime.now(UTC))
