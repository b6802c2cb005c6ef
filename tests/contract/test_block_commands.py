"""What staff do about blocks at Twilio on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module

import pytest
from click.testing import CliRunner, Result

from tests import builders
from tests.contract.test_block_at_twilio import PAT, Scene, scenes
from tests.simulators.redcap import fictional_phone
from tests.simulators.twilio import SERVICE_SID
from worker.cli import main

pytestmark = pytest.mark.usefixtures("naps")
Run = Callable[..., Result]
TOLL_FREE = "+18885550123"
STOP = ("record", "asthma", "1", "stop", "--reason", "phoned")
START = ("record", "asthma", "1", "start", "--reason", "signed again")


@pytest.fixture
def scene() -> Iterator[Scene]:
    yield from scenes()


@pytest.fixture
def run(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `optout ARGS` over the study's services, then the tasks that it published."""
    for name in ("record", "review", "events"):
        module = import_module(f"worker.cli.{name}")
        monkeypatch.setattr(module, "make_services", lambda: scene.study.services)
    monkeypatch.setattr("worker.cli.configure_logging", lambda _level: None)

    def invoke(*args: str) -> Result:
        result = CliRunner().invoke(main, args)
        scene.study.work()
        return result

    return invoke


def test_an_opt_out_by_phone_is_blocked_before_the_command_ends(scene: Scene, run: Run) -> None:
    result = run(*STOP)
    assert result.exit_code == 0, result.output
    assert "blocked at Twilio since" in result.output
    assert len(scene.twilio.consents) == 1
    assert scene.is_refused()


def test_the_list_of_events_shows_the_block(scene: Scene, run: Run) -> None:
    run(*STOP)
    scene.study.text(fictional_phone(2))
    scene.study.work()
    flagged, staffs = json.loads(CliRunner().invoke(main, ["events", "--json"]).stdout)
    assert staffs["at_twilio"]["state"] == "blocked"
    assert staffs["at_twilio"]["since"]
    assert "at_twilio" not in flagged


def test_it_says_why_twilio_does_not_block_yet(scene: Scene, run: Run) -> None:
    scene.twilio.fail("503", resource="Consents")
    result = run(*STOP)
    assert result.exit_code == 0, result.output
    assert "Twilio is asked again soon: twilio_server_error" in result.output


def test_unblock_has_twilio_deliver_again(scene: Scene, run: Run) -> None:
    run(*STOP)
    result = run(*START, "--unblock")
    assert result.exit_code == 0, result.output
    assert "unblocked at Twilio since" in result.output
    assert "goes on blocking" not in result.output
    assert not scene.is_refused()


def test_start_alone_unblocks_nothing_and_says_so(scene: Scene, run: Run) -> None:
    run(*STOP)
    result = run(*START)
    assert "Twilio goes on blocking texts" in result.output
    assert scene.is_refused()


@pytest.mark.parametrize("where", ["in the service", "beside it"])
def test_unblock_is_refused_on_toll_free_with_the_reason(where: str) -> None:
    for scene in scenes(senders=[] if where == "in the service" else [TOLL_FREE]):
        service = scene.twilio.services[SERVICE_SID] if where == "in the service" else None
        scene.twilio.add_sender(TOLL_FREE, service=service)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                import_module("worker.cli.record"), "make_services", partial(getattr, scene.study, "services")
            )
            patch.setattr("worker.cli.configure_logging", lambda _level: None)
            assert CliRunner().invoke(main, STOP).exit_code == 0
            result = CliRunner().invoke(main, [*START, "--unblock"])
        assert result.exit_code == 2
        assert "…0123: it is toll-free" in result.output
        assert "texts START or UNSTOP" in result.output
        assert TOLL_FREE[2:] not in result.output
        assert [entry.change for entry in scene.study.ledger.entries("asthma")] == ["STOP"]
        assert {each.status for each in scene.twilio.consents} == {"opt-out"}


def test_unblock_is_refused_if_twilio_does_not_name_its_senders(scene: Scene, run: Run) -> None:
    run(*STOP)
    scene.twilio.fail("503", resource="Services/PhoneNumbers", times=None)
    result = run(*START, "--unblock")
    assert result.exit_code == 5  # Twilio is in the way
    assert "twilio_server_error" in result.output
    assert [entry.change for entry in scene.study.ledger.entries("asthma")] == ["STOP"]


def test_unblock_goes_with_start_and_with_block_at_twilio_alone(scene: Scene, run: Run) -> None:
    assert "goes with start" in run(*STOP, "--unblock").output
    scene.study.config = builders.config({"asthma": builders.project_table()})
    scene.study.services = scene.study.new_services()
    result = run(*START, "--unblock")
    assert result.exit_code == 2
    assert "needs block_at_twilio = true" in result.output


def test_a_confirmed_review_is_blocked_by_the_command(scene: Scene, run: Run) -> None:
    event = scene.phrase(change="")
    result = run("review", event.event_id, "stop", "--reason", "read in the console")
    assert result.exit_code == 0, result.output
    assert "blocked at Twilio since" in result.output
    assert scene.is_refused(PAT)
