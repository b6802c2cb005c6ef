"""`optout test-message --block`: Twilio blocks the test number, and unblocks it, whatever happens between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shared.domain.events import Change
from shared.ledger.opt_outs.blocks import Blocks
from tests.fakes import study
from tests.simulators.redcap import classic_study
from tests.simulators.twilio import SERVICE_SID, TwilioSimulator
from tests.unit.cli.test_rehearsal import AS_TYPED, Bench, _bench, value
from worker.checks.end_to_end import TEST_NUMBER, EndToEndTestFailed, EndToEndTestRefused, Via

pytestmark = pytest.mark.usefixtures("naps")


@pytest.fixture
def twilio(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwilioSimulator]:
    simulator = TwilioSimulator()
    with simulator.serve() as server:
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield simulator


@pytest.fixture
def bench(twilio: TwilioSimulator) -> Iterator[Bench]:
    project = classic_study()
    project.add_record("TEST", mobile=AS_TYPED)
    yield from _bench(study(project, block_at_twilio=True))


@pytest.mark.parametrize("via", Via)
def test_the_number_is_blocked_and_unblocked(bench: Bench, twilio: TwilioSimulator, via: Via) -> None:
    bench.run(block=True, via=via)
    assert (Change.STOP, "blocked at Twilio") in bench.stages
    assert bench.stages[-1] == (Change.START, "unblocked at Twilio")
    assert [each.status for each in twilio.consents] == ["opt-out", "opt-in"]
    assert not twilio.is_blocked(SERVICE_SID, TEST_NUMBER)
    assert Blocks("asthma", bench.study.redis).in_force() == {}
    assert value(bench) == ""


def test_without_the_option_twilio_takes_no_part(bench: Bench, twilio: TwilioSimulator) -> None:
    bench.run(via=Via.EVENTS)
    assert twilio.consents == []


def test_an_error_of_twilios_is_shown(bench: Bench, twilio: TwilioSimulator) -> None:
    twilio.consent_errors[TEST_NUMBER] = ["INVALID_CONTACT_ID"]
    with pytest.raises(EndToEndTestFailed, match="does not block the number: Twilio error 30646"):
        bench.run(block=True)
    assert value(bench) == ""


def test_it_is_unblocked_although_a_later_stage_fails(bench: Bench, twilio: TwilioSimulator) -> None:
    rehearsal = bench.rehearsal(block=True)
    rehearsal.prepare()
    rehearsal._see_mail = lambda *_: (_ for _ in ()).throw(EndToEndTestFailed("no mail"))  # type: ignore[method-assign]
    with pytest.raises(EndToEndTestFailed, match="no mail"):
        rehearsal.run()
    assert not twilio.is_blocked(SERVICE_SID, TEST_NUMBER)


def test_what_could_not_be_unblocked_is_not_blocked(bench: Bench, twilio: TwilioSimulator) -> None:
    twilio.add_sender("+18885550123", service=twilio.services[SERVICE_SID])
    with pytest.raises(EndToEndTestRefused, match="toll-free"):
        bench.rehearsal(block=True).prepare()


def test_it_needs_block_at_twilio(twilio: TwilioSimulator) -> None:
    project = classic_study()
    project.add_record("TEST", mobile=AS_TYPED)
    for bench in _bench(study(project)):
        with pytest.raises(EndToEndTestRefused, match="needs block_at_twilio"):
            bench.rehearsal(block=True).prepare()


def test_a_number_that_is_opted_out_stays_so(bench: Bench, twilio: TwilioSimulator) -> None:
    bench.study.text(TEST_NUMBER, blocked=False)
    bench.study.work()
    with pytest.raises(EndToEndTestRefused, match="blocks the number already"):
        bench.rehearsal(block=True).prepare(force=True)
    assert twilio.is_blocked(SERVICE_SID, TEST_NUMBER)
