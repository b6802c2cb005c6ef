"""Whether a project fits its configuration: the gateway and `optout check` share these rules."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config.schema import Project
from shared.errors import RedcapRejected
from tests.builders import config, project_table
from worker.checks.findings import CATALOGUE
from worker.redcap.schema import PROBLEMS, ProjectInfo, inspect

FIELDS = [
    {"field_name": "record_id", "field_type": "text", "form_name": "enrolment"},
    {"field_name": "mobile", "field_type": "text", "form_name": "enrolment"},
    {"field_name": "sms_opt_out_at", "field_type": "text", "form_name": "texting"},
]


class FakeRedcap:
    """Answers structure requests, and counts them."""

    def __init__(self, project: dict[str, Any], **lists: list[dict[str, Any]]) -> None:
        self.project, self.lists = project, {"metadata": FIELDS, **lists}
        self.requests: list[str] = []

    def get_object(self, content: str) -> dict[str, Any]:
        self.requests.append(content)
        return self.project

    def get_list(self, content: str, *_names: str, may_be_empty: bool = False) -> list[dict[str, Any]]:
        self.requests.append(content)
        if content not in self.lists:
            raise RedcapRejected("redcap_rejected", f"status 400: You cannot export {content}")
        assert self.lists[content] or may_be_empty
        return self.lists[content]


def project(**changes: Any) -> Project:
    return config({"asthma": project_table(**changes)}).projects["asthma"]


def codes(redcap: Any, *, blocking_only: bool = False, **changes: Any) -> list[str]:
    problems = inspect(project(**changes), ProjectInfo(redcap), blocking_only=blocking_only)
    return [problem.code for problem in problems]


def longitudinal(*arms: str) -> FakeRedcap:
    return FakeRedcap(
        {"project_id": 7, "is_longitudinal": 1},
        event=[{"unique_event_name": f"event_{number}", "arm_num": arm} for number, arm in enumerate(arms)],
        formEventMapping=[{"unique_event_name": "event_0", "form": "enrolment"}],
    )


def test_a_fitting_project_has_no_problem_and_costs_two_requests() -> None:
    redcap = FakeRedcap({"project_id": 7})
    assert codes(redcap) == []
    assert redcap.requests == ["project", "metadata"]


def test_all_problems_are_returned_together() -> None:
    found = codes(
        FakeRedcap({"project_id": 7}), redcap_project_id=8, phone_field="telephone",
        opt_out_checkbox="mobile", opt_out_event="week_1",
    )  # fmt: skip
    assert found == [
        "redcap_wrong_project",
        "redcap_no_such_field",
        "opt_out_checkbox_unfit",
        "event_needless",
    ]


def test_what_only_a_check_asks_for_costs_the_gateway_no_request() -> None:
    redcap = longitudinal("1", "1")
    assert codes(redcap, blocking_only=True, opt_out_event="event_1") == []
    assert "formEventMapping" not in redcap.requests
    assert codes(redcap, opt_out_event="event_1") == ["field_not_on_event"]


@pytest.mark.parametrize(
    ("arms", "events", "expected"),
    [
        (("1", "1"), {}, ["opt_out_event_missing"]),
        (("1", "1"), {"opt_out_event": "event_9"}, ["no_such_event"]),
        (("1", "1"), {"opt_out_event": "event_0", "phone_event": "event_1"}, []),
        (("1", "2"), {"opt_out_event": "event_0", "phone_event": "event_1"}, ["events_in_two_arms"]),
    ],
)
def test_events_have_to_exist_in_one_arm(
    arms: tuple[str, str], events: dict[str, str], expected: list[str]
) -> None:
    assert codes(longitudinal(*arms), blocking_only=True, **events) == expected


def test_every_problem_has_a_finding_in_the_catalogue() -> None:
    assert {finding for finding, _ in PROBLEMS.values()} <= set(CATALOGUE)


def changed_field(name: str, **changes: str) -> FakeRedcap:
    fields = [row | changes if row["field_name"] == name else row for row in FIELDS]
    return FakeRedcap({"project_id": 7}, metadata=fields)


@pytest.mark.parametrize(
    "annotation",
    [
        "@CALCTEXT(if([a]='1','x',''))",
        "@HIDDEN @CALCDATE([a], 7, 'd')",
        "@calctext ( [a] )",
        "texts\n@CALCTEXT([a])",
    ],
)
@pytest.mark.parametrize("validation", ["", "datetime_seconds_ymd"])
def test_an_opt_out_field_that_redcap_computes_is_a_problem(annotation: str, validation: str) -> None:
    redcap = changed_field(
        "sms_opt_out_at",
        field_annotation=annotation,
        text_validation_type_or_show_slider_number=validation,
    )
    assert codes(redcap, blocking_only=True) == ["opt_out_field_is_computed"]


@pytest.mark.parametrize("annotation", ["@HIDDEN-SURVEY", "@DEFAULT='x'", "@CALCULATOR", "CALCTEXT"])
def test_other_action_tags_are_no_problem(annotation: str) -> None:
    assert codes(changed_field("sms_opt_out_at", field_annotation=annotation)) == []


@pytest.mark.parametrize(
    "kind", ["checkbox", "radio", "dropdown", "yesno", "truefalse", "file", "slider", "descriptive"]
)
def test_a_phone_field_of_an_unfit_kind_is_named_with_its_kind(kind: str) -> None:
    redcap: Any = changed_field("mobile", field_type=kind)
    [problem] = inspect(project(), ProjectInfo(redcap), blocking_only=True)
    assert problem.code == "phone_field_unfit"
    assert problem.observed == f"phone_field: mobile is a {kind} field and cannot hold a number"


@pytest.mark.parametrize("kind", ["text", "notes", "calc", "sql"])
def test_a_phone_field_that_holds_text_fits(kind: str) -> None:
    assert codes(changed_field("mobile", field_type=kind)) == []


@pytest.mark.parametrize("lists", [{}, {"repeatingFormsEvents": []}])
def test_a_repeating_flag_without_anything_that_repeats_is_no_problem(lists: dict[str, Any]) -> None:
    redcap = FakeRedcap({"project_id": 7, "has_repeating_instruments_or_events": 1}, **lists)
    assert codes(redcap) == []
    assert "repeatingFormsEvents" in redcap.requests
