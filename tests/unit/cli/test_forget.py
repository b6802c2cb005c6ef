"""`optout forget`: afterwards nothing of the number is left, and everything else is."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shared.ledger import keys
from tests.builders import config, hashed, project_table
from tests.fakes import Study, study
from tests.simulators.redcap import classic_study, enrol, fictional_phone
from worker.steps.sweep import sweep

command = importlib.import_module("worker.cli.forget")
GONE, OTHER = fictional_phone(1), fictional_phone(2)


@pytest.fixture
def asthma(monkeypatch: pytest.MonkeyPatch) -> Study:
    project = classic_study()
    enrol(project, 3)
    asthma = study(project)
    monkeypatch.setattr(command, "make_services", lambda: asthma.services)
    return asthma


def forget(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(command.forget, list(arguments), input=typed)


def everything(redis: Any) -> dict[str, str]:
    """All that Redis holds, as text by key."""
    found = {}
    for key in redis.keys("*"):
        match redis.type(key):
            case "hash":
                found[key] = str(redis.hgetall(key))
            case "zset":
                found[key] = str(redis.zrange(key, 0, -1))
            case "list":
                found[key] = str(redis.lrange(key, 0, -1))
            case _:
                found[key] = str(redis.get(key))
    return found


def mentions(asthma: Study, *texts: str) -> list[str]:
    stored = everything(asthma.redis).items()
    return [key for key, text in stored if any(part in key + text for part in texts)]


def test_no_trace_of_the_number_is_left_and_other_numbers_are_untouched(asthma: Study) -> None:
    done, waiting = asthma.text(GONE), asthma.text(GONE, "START")
    other = asthma.text(OTHER)
    asthma.work()
    late = asthma.text(GONE)  # not worked on yet
    before = mentions(asthma, hashed(OTHER))
    assert forget(GONE, "--yes").exit_code == 0
    assert mentions(asthma, hashed(GONE), done.event_id, waiting.event_id, late.event_id) == []
    assert mentions(asthma, hashed(OTHER)) == before
    assert asthma.state(other) == "updated"


def test_ids_in_every_list_of_what_is_still_to_do_are_removed(asthma: Study) -> None:
    event, other = asthma.text(GONE), asthma.text(OTHER)
    for event_id in (event.event_id, other.event_id):
        asthma.redis.lpush(keys.outbox("asthma"), event_id)
        asthma.redis.zadd(keys.gathered("asthma"), {event_id: 1})
    forget(GONE, "--yes")
    assert mentions(asthma, event.event_id) == []
    assert asthma.redis.lrange(keys.arrived("asthma"), 0, -1) == [other.event_id]


def test_what_was_on_its_way_does_no_harm_afterwards(asthma: Study) -> None:
    asthma.text(GONE)
    forget(GONE, "--yes")
    asthma.work()
    asthma.sweep_later()
    assert asthma.value("1") == ""
    assert asthma.redis.zcard(keys.unfinished("asthma")) == 0
    assert asthma.redis.zcard(keys.DUE) == 0


def test_between_lookup_and_update_it_does_no_harm_either(asthma: Study) -> None:
    asthma.text(GONE)
    asthma.run(asthma.published.messages.popleft())
    assert asthma.pending() == 1
    forget(GONE, "--yes")
    asthma.work()
    assert asthma.value("1") == ""
    assert asthma.pending() == 0


def test_it_says_what_was_removed_and_that_redcap_still_holds_the_number(asthma: Study) -> None:
    asthma.text(GONE)
    asthma.work()
    result = forget(GONE, "--yes")
    assert result.stdout.splitlines()[0] == "asthma\t1 status\t0 waiting\t1 events\t1 index entries"
    assert "record 1 held the number" in result.stdout
    assert asthma.value("1") != ""  # REDCap is the study's


def test_a_record_with_two_numbers_keeps_the_other_one(asthma: Study) -> None:
    asthma.project.set_value("1", "mobile", f"{GONE} or {OTHER}")
    asthma.text(GONE)
    asthma.work()
    forget(GONE, "--yes")
    assert asthma.services.index("asthma").records([hashed(GONE), hashed(OTHER)]) == {
        hashed(OTHER): ["1", "2"]
    }


def test_it_asks_first(asthma: Study) -> None:
    asthma.text(GONE)
    result = forget(GONE, typed="n\n")
    assert result.exit_code == 1
    assert "nothing was removed" in result.stdout
    assert mentions(asthma, hashed(GONE))


def test_a_dash_reads_the_number_from_standard_input(asthma: Study) -> None:
    asthma.text(GONE)
    assert forget("-", "--yes", typed=f"{GONE}\n").exit_code == 0
    assert mentions(asthma, hashed(GONE)) == []


def test_for_machines_it_answers_an_object_per_project(asthma: Study) -> None:
    asthma.text(GONE)
    (answer,) = json.loads(forget(GONE, "--json").stdout)
    assert answer == {
        "project": "asthma", "status": 1, "pending": 0, "intents": 0, "events": 1, "records": [],
    }  # fmt: skip


def test_the_number_is_not_repeated_in_what_it_prints(asthma: Study) -> None:
    asthma.text(GONE)
    result = forget(GONE, "--yes")
    assert GONE[2:] not in result.output


def test_what_is_no_number_is_refused(asthma: Study) -> None:
    result = forget("nobody", "--yes")
    assert result.exit_code == 2
    assert "is not one phone number" in result.output


@pytest.fixture
def taken_out(asthma: Study) -> Study:
    """The project had an event, and is no longer configured; another one is."""
    asthma.text(GONE)
    asthma.work()
    asthma.text(OTHER)
    sweep(asthma.services)
    asthma.config = config({"sleep": project_table(default_region="DE")})
    asthma.services = asthma.new_services()
    return asthma


def test_a_number_is_also_forgotten_in_a_project_that_was_taken_out(taken_out: Study) -> None:
    """In which country it counts there is not known any more."""
    result = forget(GONE, "--yes")
    assert [line.split("\t")[0] for line in result.stdout.splitlines()][:2] == ["sleep", "asthma"]
    assert mentions(taken_out, hashed(GONE)) == []
    assert mentions(taken_out, hashed(OTHER))


def test_a_project_that_was_taken_out_is_forgotten_as_a_whole(taken_out: Study) -> None:
    result = forget("--project", "asthma", "--all", typed="y\n")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "asthma\t2 statuses\t2 events"
    assert mentions(taken_out, hashed(GONE), hashed(OTHER)) == []
    assert not taken_out.redis.exists(*keys.of_project("asthma"))
    assert forget("--project", "asthma", "--all", "--yes").exit_code == 2


def test_it_asks_before_a_project_is_forgotten(taken_out: Study) -> None:
    before = everything(taken_out.redis)
    assert forget("--project", "asthma", "--all", typed="n\n").exit_code == 1
    assert everything(taken_out.redis) == before


def test_for_machines_it_says_what_was_removed_of_a_project(taken_out: Study) -> None:
    (answer,) = json.loads(forget("--project", "asthma", "--all", "--json").stdout)
    assert answer == {"project": "asthma", "status": 2, "events": 2}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--project", "asthma", "--all"], "is still configured"),
        (["--project", "nobody", "--all"], "no project 'nobody'"),
        (["--all"], "give either"),
        ([], "give either"),
        ([GONE, "--project", "asthma", "--all"], "give either"),
    ],
)
def test_nothing_else_is_forgotten_as_a_whole(asthma: Study, arguments: list[str], text: str) -> None:
    asthma.text(GONE)
    before = everything(asthma.redis)
    result = forget(*arguments, "--yes")
    assert (result.exit_code, text in result.output) == (2, True)
    assert everything(asthma.redis) == before
