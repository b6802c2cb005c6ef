"""What docs/how-to/rotate-secrets.md says of a new hash key: what it voids, and how the deployment gets it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from shared.domain.addresses import PhoneHasher
from tests.builders import hashed
from tests.unit.test_reconcile import PAT, Night, Nights, seconds, shown

pytestmark = pytest.mark.usefixtures("naps")

NEW_KEY = "another-key-for-tests-only"
new_hash = PhoneHasher(NEW_KEY)


@pytest.fixture
def night(monkeypatch: pytest.MonkeyPatch) -> Iterator[Night]:
    """A STOP that came, was written and told, and a nightly run after it."""
    with ExitStack() as opened:
        night = Nights(opened, monkeypatch)()
        night.received("STOP", at=0)
        night.run()
        night.study.mailer.sent.clear()
        yield night


def restart(night: Night, monkeypatch: pytest.MonkeyPatch, *, empty: bool) -> None:
    """Start again with a new key; with an empty ledger, too, if the volume was removed."""
    monkeypatch.setenv("OPTOUT_HASH_KEY", NEW_KEY)
    if empty:
        night.study.redis.flushall()
    night.study.services = night.study.new_services()


def test_with_an_empty_ledger_one_run_brings_every_status_back_and_tells_nobody_again(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = night.value()
    restart(night, monkeypatch, empty=True)
    report = night.run()
    assert (report.outcome, report.changes_recovered, report.records_corrected) == ("success", 1, 0)
    assert night.value() == before == shown(seconds(0))
    assert night.study.ledger.status("asthma", new_hash(PAT)) != ()
    assert night.changes_told == []


def test_after_that_a_start_clears_what_the_old_key_s_stop_had_set(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart(night, monkeypatch, empty=True)
    night.run()
    night.study.text(PAT, "START", phone_hash=new_hash(PAT))
    night.study.work()
    assert night.value() == ""


def test_over_the_old_ledger_statuses_stay_lost_as_their_messages_are_known_already(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is why the ledger has to be emptied."""
    restart(night, monkeypatch, empty=False)
    report = night.run()
    assert report.changes_recovered == 0
    assert night.study.ledger.status("asthma", new_hash(PAT)) == ()
    assert night.study.ledger.status("asthma", hashed(PAT)) != ()


def test_nothing_under_the_old_key_is_left_in_an_emptied_ledger(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart(night, monkeypatch, empty=True)
    night.run()
    assert night.study.services.index("asthma").records([hashed(PAT)]) == {}
    assert night.study.services.index("asthma").records([new_hash(PAT)]) == {new_hash(PAT): ["1"]}
