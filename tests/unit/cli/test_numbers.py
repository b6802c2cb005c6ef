"""A phone number that a person typed: in any spelling, read as the project reads its records."""

from __future__ import annotations

import io

import click
import pytest

from tests import builders
from tests.fakes import RecordingPublisher, fake_redis
from tests.processes import ROOT
from worker.cli.phone_argument import one_number, readings, typed
from worker.services import Services


@pytest.fixture
def services() -> Services:
    tables = {
        "asthma": builders.project_table(),
        "schlaf": builders.project_table(default_region="DE", redcap_token="env:OTHER_TOKEN"),
    }
    return Services(config=builders.config(tables), redis=fake_redis(), publish=RecordingPublisher())


@pytest.mark.parametrize(
    ("text", "project", "e164"),
    [
        ("(650) 555-0100", "asthma", "+16505550100"),
        ("+1 650 555 0100", "schlaf", "+16505550100"),
        ("030 23125 0100", "schlaf", "+4930231250100"),
    ],
)
def test_any_spelling_is_read_as_the_project_reads_it(
    services: Services, text: str, project: str, e164: str
) -> None:
    assert one_number(text, project, services) == e164


@pytest.mark.parametrize("text", ["", "nobody", "650 555 0100, 650 555 0101"])
def test_none_and_two_are_refused_without_being_repeated(services: Services, text: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        one_number(text, "asthma", services, hint="--number")
    assert caught.value.format_message() == "Invalid value for --number: is not one phone number"


def test_where_several_regions_are_possible_each_reading_counts_once() -> None:
    assert readings("+1 650 555 0100", {"US", "DE"}) == ["+16505550100"]
    assert readings("650 555 0100", ["US", "DE"]) == ["+16505550100", "+496505550100"]
    assert readings("(030) 2312 5010", ["US", "DE"]) == ["+493023125010"]


def test_no_other_command_reads_numbers_by_itself() -> None:
    modules = sorted((ROOT / "worker/cli").glob("*.py"))
    assert [path.name for path in modules if "numbers_in" in path.read_text()] == ["phone_argument.py"]


def test_a_dash_reads_it_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" +16505550100\nmore\n"))
    assert typed("-") == "+16505550100"
    assert typed("+16505550101") == "+16505550101"
