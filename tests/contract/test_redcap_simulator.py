"""The REDCap simulator, judged by PyCap, an independent client, and over bare HTTP for what PyCap hides."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree
from zoneinfo import ZoneInfo

import pytest
import requests
from redcap.project import Project as PyCapProject
from redcap.request import RedcapError

from tests.simulators.redcap import (
    Access,
    Event,
    Field,
    Project,
    RedcapSimulator,
    Repeating,
    classic_study,
    enrol,
    longitudinal_study,
    repeating_phone_study,
)

TOKEN = "FAKECONTRACTTOKEN000000000000000"
ENROLMENT = "enrolment_arm_1"
WEEK_1 = "week_1_arm_1"
NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOT_IN_FORMAT = (
    "The value you provided could not be validated because it does not follow the expected format."
)


@pytest.fixture
def server() -> Iterator[RedcapSimulator]:
    with RedcapSimulator({TOKEN: classic_study()}).serve() as running:
        yield running


@pytest.fixture
def classic(server: RedcapSimulator) -> Project:
    """Two records: 7 with a phone, 10 opted out."""
    project = server.projects[TOKEN]
    project.add_record("7", first_name="Ann", mobile="(650) 555-0100")
    project.add_record("10", mobile="650-555-0101", sms_opt_out_at="2026-02-01 10:00:00", sms_opt_out___1="1")
    return project


@pytest.fixture
def longitudinal(server: RedcapSimulator) -> Project:
    project = server.projects[TOKEN] = longitudinal_study()
    project.add_record("7", mobile="(650) 555-0100", hours_slept="6.5")
    return project


@pytest.fixture
def repeating(server: RedcapSimulator) -> Project:
    project = server.projects[TOKEN] = repeating_phone_study()
    project.add_record("7", first_name="Ann", mobile="(650) 555-0100")
    project.set_value("7", "mobile", "(650) 555-0101", instance=2)
    return project


def pycap(server: RedcapSimulator) -> Any:
    return PyCapProject(server.url, TOKEN)


def post(server: RedcapSimulator, content: str = "record", **params: str) -> requests.Response:
    form = {"token": TOKEN, "content": content, "format": "json", **params}
    return requests.post(server.url, data=form, timeout=10, allow_redirects=False)


def export(server: RedcapSimulator, fields: str = "", **params: str) -> Any:
    return post(server, fields=fields, **params).json()


def write(server: RedcapSimulator, *rows: dict[str, Any], **params: str) -> requests.Response:
    return post(server, data=json.dumps(rows), overwriteBehavior="overwrite", **params)


def problems(answer: requests.Response) -> list[list[str]]:
    assert answer.status_code == 400
    return list(csv.reader(io.StringIO(answer.json()["error"])))


# --- PyCap: reading ---------------------------------------------------------------------------------


def test_pycap_reads_the_dictionary(server: RedcapSimulator) -> None:
    metadata = {row["field_name"]: row for row in pycap(server).export_metadata()}
    assert len(metadata["mobile"]) == 18
    assert metadata["mobile"]["identifier"] == "y"
    assert metadata["mobile"]["text_validation_type_or_show_slider_number"] == "phone"
    assert metadata["sms_opt_out"]["select_choices_or_calculations"] == "1, Opted out"


def test_pycap_takes_the_first_field_for_the_record_id(server: RedcapSimulator) -> None:
    assert pycap(server).def_field == "record_id"


def test_pycap_reads_the_export_names_of_checkboxes_and_form_status(server: RedcapSimulator) -> None:
    names = [row["export_field_name"] for row in pycap(server).export_field_names()]
    assert "sms_opt_out___1" in names
    assert "texting_complete" in names


def test_pycap_reads_records_in_natural_order_with_text_values_only(
    server: RedcapSimulator, classic: Project
) -> None:
    rows = pycap(server).export_records(fields=["mobile", "sms_opt_out_at", "sms_opt_out"])
    assert rows == [
        {"record_id": "7", "mobile": "(650) 555-0100", "sms_opt_out_at": "", "sms_opt_out___1": "0"},
        {
            "record_id": "10",
            "mobile": "650-555-0101",
            "sms_opt_out_at": "2026-02-01 10:00:00",
            "sms_opt_out___1": "1",
        },
    ]


def test_pycap_reads_project_version_instruments_and_next_record(
    server: RedcapSimulator, classic: Project
) -> None:
    client = pycap(server)
    info = client.export_project_info()
    assert (info["project_id"], info["is_longitudinal"]) == (101, 0)
    assert str(client.export_version()) == server.version
    assert [row["instrument_name"] for row in client.export_instruments()] == ["enrolment", "texting"]
    assert client.generate_next_record_name() == "11"


def test_pycap_sees_events_and_mapping_of_a_longitudinal_study(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    client = pycap(server)
    assert client.is_longitudinal
    assert [row["unique_event_name"] for row in client.export_events()][:2] == [ENROLMENT, WEEK_1]
    assert client.export_arms() == [{"arm_num": 1, "name": "Arm 1"}]
    mapping = client.export_instrument_event_mappings()
    assert {"arm_num": 1, "unique_event_name": ENROLMENT, "form": "texting"} in mapping


def test_pycap_sees_the_repeating_form(server: RedcapSimulator, repeating: Project) -> None:
    rows = pycap(server).export_repeating_instruments_events()
    assert rows == [{"form_name": "contacts", "custom_form_label": ""}]


def test_pycap_reads_repeating_rows_with_a_number_as_instance(
    server: RedcapSimulator, repeating: Project
) -> None:
    rows = pycap(server).export_records(fields=["mobile"])
    places = [(row["redcap_repeat_instrument"], row["redcap_repeat_instance"], row["mobile"]) for row in rows]
    assert places == [
        ("", "", ""),
        ("contacts", 1, "(650) 555-0100"),
        ("contacts", 2, "(650) 555-0101"),
    ]


def test_pycap_reads_csv_xml_and_eav(server: RedcapSimulator, classic: Project) -> None:
    client = pycap(server)
    as_csv = client.export_records("csv", fields=["mobile"])
    assert as_csv == 'record_id,mobile\n7,"(650) 555-0100"\n10,650-555-0101\n'
    root = ElementTree.fromstring(client.export_records("xml", fields=["mobile"]))
    assert [item.findtext("mobile") for item in root] == ["(650) 555-0100", "650-555-0101"]
    eav = client.export_records(record_type="eav", records=["10"], fields=["mobile", "sms_opt_out"])
    assert {"record": "10", "field_name": "sms_opt_out", "value": "1"} in eav


def test_pycap_reads_labels(server: RedcapSimulator, classic: Project) -> None:
    client = pycap(server)
    row = client.export_records(records=["10"], fields=["sms_opt_out"], raw_or_label="label")[0]
    assert row["sms_opt_out___1"] == "Checked"
    as_csv = client.export_records("csv", fields=["mobile"], raw_or_label_headers="label")
    assert as_csv.startswith('"Record ID","Mobile phone"\n')


# --- PyCap: writing ---------------------------------------------------------------------------------


def test_pycap_writes_and_reads_back(server: RedcapSimulator, classic: Project) -> None:
    row = {"record_id": "7", "sms_opt_out_at": "2026-03-01 12:00:00", "sms_opt_out___1": "1"}
    assert pycap(server).import_records([row]) == {"count": 1}
    assert classic.value("7", "sms_opt_out_at") == "2026-03-01 12:00:00"
    assert classic.value("7", "first_name") == "Ann"


def test_pycap_sees_that_a_blank_clears_only_under_overwrite(
    server: RedcapSimulator, classic: Project
) -> None:
    client, row = pycap(server), {"record_id": "10", "sms_opt_out_at": ""}
    client.import_records([row], overwrite="normal")
    assert classic.value("10", "sms_opt_out_at") == "2026-02-01 10:00:00"
    client.import_records([row], overwrite="overwrite")
    assert classic.value("10", "sms_opt_out_at") == ""
    assert classic.value("10", "mobile") == "650-555-0101"


def test_pycap_writes_to_one_event(server: RedcapSimulator, longitudinal: Project) -> None:
    row = {"record_id": "7", "redcap_event_name": ENROLMENT, "sms_opt_out_at": "2026-03-01 12:00:00"}
    assert pycap(server).import_records([row], return_content="ids") == ["7"]
    assert longitudinal.value("7", "sms_opt_out_at") == "2026-03-01 12:00:00"


def test_pycap_writes_to_a_new_instance(server: RedcapSimulator, repeating: Project) -> None:
    row = {
        "record_id": "7",
        "redcap_repeat_instrument": "contacts",
        "redcap_repeat_instance": "new",
        "mobile": "(650) 555-0102",
    }
    pycap(server).import_records([row])
    assert repeating.value("7", "mobile", instance=3) == "(650) 555-0102"


def test_pycap_imports_csv(server: RedcapSimulator, classic: Project) -> None:
    answer = pycap(server).import_records("record_id,age\n7,42\n10,43\n", import_format="csv")
    assert answer == {"count": 2}
    assert classic.value("10", "age") == "43"


def test_pycap_deletes_a_record(server: RedcapSimulator, classic: Project) -> None:
    assert pycap(server).delete_records(["7"]) == 1
    assert list(classic.records) == ["10"]


def test_pycap_gets_numbers_for_new_records(server: RedcapSimulator, classic: Project) -> None:
    answer = pycap(server).import_records(
        [{"record_id": "a", "age": "50"}], force_auto_number=True, return_content="auto_ids"
    )
    assert answer == ["11,a"]


def test_pycap_raises_on_a_revoked_token(server: RedcapSimulator) -> None:
    server.revoked.add(TOKEN)
    with pytest.raises(RedcapError, match="You do not have permissions to use the API"):
        pycap(server).export_metadata()


def test_pycap_raises_on_a_bad_value(server: RedcapSimulator, classic: Project) -> None:
    with pytest.raises(RedcapError, match="does not follow the expected format"):
        pycap(server).import_records([{"record_id": "7", "age": "old"}])


def test_pycap_reads_the_log(server: RedcapSimulator, classic: Project) -> None:
    pycap(server).import_records([{"record_id": "7", "age": "42"}])
    newest = pycap(server).export_logging(record="7")[0]
    assert newest["action"] == "Update record (API) 7"
    assert "age = '42'" in newest["details"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", newest["timestamp"])


# --- transport and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data_format", "body"),
    [
        ("json", '{"error":"You do not have permissions to use the API"}'),
        ("csv", "ERROR: You do not have permissions to use the API"),
        (
            "xml",
            '<?xml version="1.0" encoding="UTF-8" ?>'
            "<hash><error>You do not have permissions to use the API</error></hash>",
        ),
    ],
)
def test_an_unknown_token_is_403_in_the_format_asked_for(
    server: RedcapSimulator, data_format: str, body: str
) -> None:
    answer = post(server, token="F" * 32, returnFormat=data_format)
    assert (answer.status_code, answer.text) == (403, body)


def test_errors_follow_the_data_format_and_else_are_xml(server: RedcapSimulator) -> None:
    assert post(server, "nonsense", format="csv").text.startswith("ERROR: ")
    assert post(server, "nonsense", format="").text.startswith("<?xml")


def test_a_get_is_501_and_a_wrong_path_is_the_web_servers_404(server: RedcapSimulator) -> None:
    assert requests.get(server.url, timeout=5).status_code == 501
    answer = requests.post(server.url + "v2", timeout=5)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"].startswith("text/html")


def test_without_the_last_slash_a_redirect_turns_the_post_into_a_get(server: RedcapSimulator) -> None:
    answer = requests.post(server.url.rstrip("/"), data={"token": TOKEN}, timeout=5)
    assert [each.status_code for each in answer.history] == [301]
    assert answer.status_code == 501


def test_a_multipart_form_works_too(server: RedcapSimulator) -> None:
    form = {"token": (None, TOKEN), "content": (None, "version")}
    assert requests.post(server.url, files=form, timeout=5).text == server.version


def test_connections_are_kept_alive(server: RedcapSimulator) -> None:
    with requests.Session() as session:
        for _ in range(2):
            answer = session.post(server.url, data={"token": TOKEN, "content": "version"}, timeout=5)
            assert answer.headers.get("Connection") != "close"


@pytest.mark.parametrize("content", ["event", "arm", "formEventMapping", "repeatingFormsEvents"])
def test_structure_that_is_not_there_is_400(server: RedcapSimulator, content: str) -> None:
    answer = post(server, content)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("You cannot export")


def test_variables_beyond_phps_limit_are_dropped(server: RedcapSimulator, classic: Project) -> None:
    fields = {f"records[{number}]": str(number) for number in range(1100)}
    assert len(export(server, **fields)) == 2
    server.max_input_vars = 5
    assert export(server, **fields) == []


# --- export: columns --------------------------------------------------------------------------------


def test_lists_are_taken_in_both_styles(server: RedcapSimulator, classic: Project) -> None:
    arrays = post(server, **{"fields[0]": "record_id", "fields[1]": "mobile", "records[0]": "7"}).json()
    assert arrays == export(server, "record_id,mobile", records="7")


def test_the_record_id_comes_only_on_request(server: RedcapSimulator, longitudinal: Project) -> None:
    assert list(export(server, "mobile")[0]) == ["mobile"]
    assert list(export(server, "record_id,mobile")[0]) == ["record_id", "redcap_event_name", "mobile"]


def test_columns_come_in_the_order_of_the_dictionary(server: RedcapSimulator, classic: Project) -> None:
    row = export(server, "sms_opt_out,mobile,record_id")[0]
    assert list(row) == ["record_id", "mobile", "sms_opt_out___1"]


def test_without_fields_all_columns_come_with_each_forms_status(
    server: RedcapSimulator, classic: Project
) -> None:
    names = list(export(server)[0])
    assert names[names.index("mobile") + 1] == "enrolment_complete"
    assert names[-1] == "texting_complete"


def test_a_form_brings_its_fields_and_its_status(server: RedcapSimulator, classic: Project) -> None:
    row = export(server, forms="texting")[0]
    assert list(row) == ["sms_opt_out_at", "sms_opt_out___1", "texting_notes", "texting_complete"]


@pytest.mark.parametrize("name", ["nonsense", "redcap_event_name", "redcap_repeat_instance", "mobile_old"])
def test_an_unknown_or_pseudo_field_is_400(server: RedcapSimulator, name: str) -> None:
    answer = post(server, fields=f"record_id,{name}")
    assert answer.status_code == 400
    expected = f"""The following values in the parameter "fields" are not valid: '{name}'"""
    assert answer.json()["error"] == expected


def test_a_renamed_field_makes_the_old_name_unknown(server: RedcapSimulator, classic: Project) -> None:
    classic.change_field("mobile", name="cell_phone")
    assert post(server, fields="mobile").status_code == 400


def test_columns_without_export_right_vanish_silently(server: RedcapSimulator, classic: Project) -> None:
    def names() -> set[str]:
        answer = post(server, fields="record_id,first_name,mobile,age,sms_opt_out_at,sms_opt_out")
        assert answer.status_code == 200
        return set(answer.json()[0])

    classic.rights.forms = {"enrolment": Access.REMOVE_IDENTIFIERS}
    assert names() == {"record_id", "age", "sms_opt_out_at", "sms_opt_out___1"}
    classic.rights.forms = {"texting": Access.DEIDENTIFIED}
    assert names() == {"record_id", "first_name", "mobile", "age", "sms_opt_out___1"}
    classic.rights.forms = {"texting": Access.NONE}
    assert names() == {"record_id", "first_name", "mobile", "age"}


def test_a_record_id_tagged_as_identifier_is_hashed(server: RedcapSimulator, classic: Project) -> None:
    classic.change_field("record_id", identifier=True)
    classic.rights.forms = {"enrolment": Access.REMOVE_IDENTIFIERS}
    assert re.fullmatch("[0-9a-f]{32}", export(server, "record_id")[0]["record_id"])


def test_survey_columns_come_only_where_there_are_surveys(server: RedcapSimulator, classic: Project) -> None:
    classic.survey_forms = frozenset({"texting"})
    row = export(server, "record_id,sms_opt_out_at", exportSurveyFields="true")[0]
    assert list(row) == ["record_id", "redcap_survey_identifier", "texting_timestamp", "sms_opt_out_at"]


def test_checkbox_codes_become_column_names() -> None:
    choices = (("-4", "Refused"), ("A b", "Other"))
    project = Project("Codes", (Field("record_id", "f"), Field("c", "f", kind="checkbox", choices=choices)))
    assert list(project.columns) == ["record_id", "c____4", "c___a_b", "f_complete"]


# --- export: rows -----------------------------------------------------------------------------------


def test_rows_of_a_longitudinal_repeating_project_come_in_redcaps_order(server: RedcapSimulator) -> None:
    """Non-repeating rows first, then by event, instrument and instance; foreign columns blank."""
    project = server.projects[TOKEN] = Project(
        "Golden",
        (
            Field("id", "baseline"),
            Field("phone", "baseline", validation="phone"),
            Field("phone2", "contacts", validation="phone"),
            Field("optout", "texting", kind="checkbox", choices=(("1", "Yes"),)),
            Field("weight", "visit"),
        ),
        events=(
            Event("baseline_arm_1", "Baseline", ("baseline", "contacts", "texting")),
            Event("visit_arm_1", "Visit", ("visit",)),
        ),
        repeating=(Repeating("contacts", "baseline_arm_1"), Repeating(event="visit_arm_1")),
    )
    project.set_value("7", "weight", "80", instance=2)
    project.add_record("7", phone="(615) 555-0142", phone2="(615) 555-0143")
    assert post(server, format="csv", fields="id,phone,phone2,optout").text == (
        "id,redcap_event_name,redcap_repeat_instrument,redcap_repeat_instance,phone,phone2,optout___1\n"
        '7,baseline_arm_1,,,"(615) 555-0142",,0\n'
        '7,baseline_arm_1,contacts,1,,"(615) 555-0143",\n'
        "7,visit_arm_1,,2,,,\n"
    )


def test_each_event_with_data_is_a_row_even_if_blank(server: RedcapSimulator, longitudinal: Project) -> None:
    rows = export(server, "record_id,mobile,sms_opt_out")
    assert [(row["redcap_event_name"], row["mobile"], row["sms_opt_out___1"]) for row in rows] == [
        (ENROLMENT, "(650) 555-0100", "0"),
        (WEEK_1, "", ""),
    ]


def test_events_narrow_the_rows_and_an_unknown_event_is_no_error(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    assert len(export(server, "record_id", events=WEEK_1)) == 1
    assert export(server, "record_id", events="nonsense_arm_1") == []


def test_rows_of_repeating_forms_that_were_not_asked_for_stay_out(
    server: RedcapSimulator, repeating: Project
) -> None:
    assert len(export(server, "record_id,sms_opt_out_at")) == 1
    assert len(export(server, "record_id,mobile")) == 3


def test_unknown_records_are_left_out(server: RedcapSimulator, classic: Project) -> None:
    assert [row["record_id"] for row in export(server, "record_id", records="10,99")] == ["10"]


def test_nothing_is_an_empty_list_in_json_and_an_empty_body_in_csv(server: RedcapSimulator) -> None:
    assert post(server).text == "[]"
    assert post(server, format="csv").text == ""


def test_record_ids_stay_text_in_natural_order(server: RedcapSimulator) -> None:
    for record_id in ("1017", "001017", "331-2", "331-10", "9"):
        server.projects[TOKEN].add_record(record_id)
    ids = [row["record_id"] for row in export(server, "record_id")]
    assert ids == ["9", "331-2", "331-10", "001017", "1017"]


def test_untouched_form_status_is_0_or_blank_on_request(server: RedcapSimulator, classic: Project) -> None:
    field = "texting_complete"
    assert export(server, field, records="7") == [{field: "0"}]
    assert export(server, field, records="7", exportBlankForGrayFormStatus="true") == [{field: ""}]


def test_eav_names_only_what_is_there(server: RedcapSimulator, repeating: Project) -> None:
    rows = export(server, "mobile,sms_opt_out", type="eav")
    assert rows == [
        {
            "record": "7",
            "redcap_repeat_instrument": "contacts",
            "redcap_repeat_instance": instance,
            "field_name": "mobile",
            "value": f"(650) 555-010{instance - 1}",
        }
        for instance in (1, 2)
    ]


# --- export: filters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logic", "ids"),
    [
        ("[sms_opt_out_at] = ''", ["7"]),
        ("[sms_opt_out(1)] = '1'", ["10"]),
        ('[mobile] = "650-555-0101" and [first_name] = ""', ["10"]),
        ("[first_name] = 'Ann' or ([sms_opt_out_at] <> '' and [mobile] = 'x')", ["7"]),
        ("[record_id] > 8", ["10"]),
    ],
)
def test_filter_logic(server: RedcapSimulator, classic: Project, logic: str, ids: list[str]) -> None:
    assert [row["record_id"] for row in export(server, "record_id", filterLogic=logic)] == ids


@pytest.mark.parametrize(
    "logic", ["[nonsense] = '1'", "[mobile]", "[mobile] = ", "[mobile] = '1' [age] = '2'"]
)
def test_bad_logic_is_400(server: RedcapSimulator, classic: Project, logic: str) -> None:
    assert post(server, filterLogic=logic).status_code == 400


def test_a_bare_field_filters_event_rows_and_a_prefixed_one_records(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    bare = export(server, "record_id", filterLogic="[mobile] <> ''")
    assert [row["redcap_event_name"] for row in bare] == [ENROLMENT]
    prefixed = export(server, "record_id", filterLogic=f"[{ENROLMENT}][mobile] <> ''")
    assert [row["redcap_event_name"] for row in prefixed] == [ENROLMENT, WEEK_1]


def test_the_date_range_is_the_servers_wall_time(server: RedcapSimulator, classic: Project) -> None:
    server.time_zone = ZoneInfo("America/Chicago")  # six hours behind
    classic.clock = lambda: NOON
    classic.set_value("7", "age", "30")
    assert export(server, "record_id", dateRangeEnd="2026-03-01 05:59:59") == []
    window = {"dateRangeBegin": "2026-03-01 06:00:00", "dateRangeEnd": "2026-03-01 06:00:00"}
    assert export(server, "record_id", **window) == [{"record_id": "7"}]


def test_a_change_shows_in_the_date_range_only_after_the_lag(
    server: RedcapSimulator, classic: Project
) -> None:
    server.visibility_lag = timedelta(seconds=60)
    classic.clock = lambda: NOON
    classic.set_value("7", "age", "30")
    window = {"dateRangeBegin": "2026-03-01 12:00:00", "dateRangeEnd": "2026-03-01 12:00:00"}
    assert export(server, "record_id", **window) == []
    classic.clock = lambda: NOON + timedelta(seconds=61)
    assert export(server, "record_id", **window) == [{"record_id": "7"}]


def test_a_bad_date_range_is_400(server: RedcapSimulator) -> None:
    assert post(server, dateRangeBegin="yesterday").status_code == 400


# --- data access groups and rights ------------------------------------------------------------------


def test_the_group_column_comes_only_where_there_are_groups(
    server: RedcapSimulator, classic: Project
) -> None:
    assert "redcap_data_access_group" not in export(server, exportDataAccessGroups="true")[0]
    classic.dags = ("north", "south")
    classic.add_record("20", dag="south")
    rows = export(server, "record_id", exportDataAccessGroups="true")
    assert [row["redcap_data_access_group"] for row in rows] == ["", "", "south"]
    assert [row["unique_group_name"] for row in post(server, "dag").json()] == ["north", "south"]


def test_a_user_in_a_group_sees_only_its_records_and_no_group_column(
    server: RedcapSimulator, classic: Project
) -> None:
    classic.dags, classic.rights.dag = ("north", "south"), "south"
    classic.add_record("20", dag="south")
    assert export(server, "record_id", exportDataAccessGroups="true") == [{"record_id": "20"}]
    refused = write(server, {"record_id": "20", "redcap_data_access_group": "north"})
    assert refused.json()["error"] == "Illegal use of 'redcap_data_access_group' field!"


def test_missing_rights_are_403(server: RedcapSimulator, classic: Project) -> None:
    classic.rights.api_import = classic.rights.record_delete = False
    answer = write(server, {"record_id": "7", "age": "30"})
    assert answer.json() == {"error": "You do not have API Import/Update privileges"}
    answer = post(server, action="delete", records="7")
    assert (answer.status_code, answer.json()["error"]) == (403, "You do not have Delete Record privileges")
    classic.rights.api_export = False
    assert post(server).status_code == 403
    assert post(server, "metadata").status_code == 403


def test_users_and_log_need_rights_of_their_own(server: RedcapSimulator, classic: Project) -> None:
    assert post(server, "user").status_code == 403
    classic.rights.user_rights = True
    assert post(server, "user").json()[0]["api_import"] == 1
    classic.rights.logging = False
    assert post(server, "log").status_code == 403


# --- import -----------------------------------------------------------------------------------------


def test_an_unknown_id_creates_a_record(server: RedcapSimulator, classic: Project) -> None:
    assert write(server, {"record_id": "99", "age": "30"}).json() == {"count": 1}
    assert classic.value("99", "age") == "30"


def test_without_the_right_no_record_is_created(server: RedcapSimulator, classic: Project) -> None:
    classic.rights.record_create = False
    assert write(server, {"record_id": "99", "age": "30"}).status_code == 403
    assert "99" not in classic.records


@pytest.mark.parametrize("data", ['{"record_id": "7", "age": "30"}', '"[{\\"record_id\\": \\"7\\"}]"'])
def test_json_that_is_no_array_counts_0_without_an_error(
    server: RedcapSimulator, classic: Project, data: str
) -> None:
    answer = post(server, data=data)
    assert (answer.status_code, answer.json()) == (200, {"count": 0})
    assert classic.value("7", "age") == ""


@pytest.mark.parametrize(("data_format", "data"), [("json", "[{"), ("xml", "<records>"), ("json", "[1]")])
def test_data_that_cannot_be_read_is_400(server: RedcapSimulator, data_format: str, data: str) -> None:
    answer = post(server, data=data, format=data_format, returnFormat="json")
    assert answer.status_code == 400
    assert answer.json()["error"] == "The data is not in the specified format."


def test_xml_and_eav_are_imported(server: RedcapSimulator, classic: Project) -> None:
    xml = "<records><item><record_id>7</record_id><age>30</age></item></records>"
    assert "<count>1</count>" in post(server, format="xml", data=xml).text
    eav = [{"record": "7", "field_name": "sms_opt_out", "value": "1"}]
    assert post(server, type="eav", data=json.dumps(eav)).json() == {"count": 1}
    assert (classic.value("7", "age"), classic.value("7", "sms_opt_out___1")) == ("30", "1")


def test_unknown_columns_are_400(server: RedcapSimulator, classic: Project) -> None:
    answer = write(server, {"record_id": "7", "x": "1", "y": "2"})
    assert answer.status_code == 400
    assert answer.json()["error"].endswith("not found in the project as real data fields: x, y")


def test_one_bad_cell_refuses_the_whole_import_and_is_echoed(
    server: RedcapSimulator, classic: Project
) -> None:
    answer = write(server, {"record_id": "10", "age": "30"}, {"record_id": "7", "age": 'old, "very"'})
    (cells,) = problems(answer)
    assert cells[:3] == ["7", "age", 'old, "very"']
    assert cells[3].startswith(NOT_IN_FORMAT)
    assert classic.value("10", "age") == ""


def test_csv_errors_have_the_prefix_and_one_line_per_cell(server: RedcapSimulator, classic: Project) -> None:
    rows = [{"record_id": "7", "age": "old", "sex": "3"}]
    answer = post(server, data=json.dumps(rows), returnFormat="csv")
    first, second = answer.text.removeprefix("ERROR: ").split("\n")
    assert first.startswith('"7","age","old","')
    assert second == '"7","sex","3","The value is not a valid category for sex"'


@pytest.mark.parametrize(
    ("validation", "value", "is_taken"),
    [
        ("datetime_seconds_ymd", "2026-03-01 12:00:00", True),
        ("datetime_seconds_dmy", "2026-03-01 12:00:00", True),
        ("datetime_seconds_ymd", "2026-03-01 12:00", False),
        ("datetime_seconds_ymd", "2026-03-01T12:00:00", False),
        ("datetime_seconds_ymd", "2026-02-30 12:00:00", False),
        ("datetime_ymd", "2026-03-01 12:00", True),
        ("datetime_mdy", "2026-03-01 12:00:00", False),
        ("datetime_ymd", "2026-3-1 12:00", False),
        ("date_ymd", "2026-03-01", True),
        ("date_ymd", "2026-03-01 12:00", False),
        ("integer", "12", True),
        ("integer", "1.5", False),
        ("number_1dp", "22", False),
        ("phone", "(650) 555-0100", True),
        ("phone", "+1 650 555 0100", False),
        ("phone", "555-0100", False),
        ("email", "ann@example.edu", True),
        ("email", "ann", False),
        ("", "2026-03-01T12:00:00Z", True),
    ],
)
def test_validation(
    server: RedcapSimulator, classic: Project, validation: str, value: str, is_taken: bool
) -> None:
    classic.change_field("sms_opt_out_at", validation=validation)
    answer = write(server, {"record_id": "7", "sms_opt_out_at": value})
    assert answer.status_code == (200 if is_taken else 400)
    assert classic.value("7", "sms_opt_out_at") == (value if is_taken else "")


def test_the_date_format_turns_dates_round(server: RedcapSimulator, classic: Project) -> None:
    write(server, {"record_id": "7", "sms_opt_out_at": "03/01/2026 12:00:00"}, dateFormat="MDY")
    assert classic.value("7", "sms_opt_out_at") == "2026-03-01 12:00:00"


@pytest.mark.parametrize(
    "changes",
    [{"kind": "calc"}, {"annotation": "@CALCTEXT('30')"}, {"annotation": "@HIDDEN @CALCDATE([a], 1, 'd')"}],
)
def test_what_is_imported_into_a_computed_field_is_dropped_without_an_error(
    server: RedcapSimulator, classic: Project, changes: dict[str, str]
) -> None:
    """PyCap's test_import_df_no_index sends the computed columns that it has exported, and gets their count."""
    before = classic.value("7", "age")
    classic.change_field("age", **changes)
    assert write(server, {"record_id": "7", "age": "30"}).json() == {"count": 1}
    assert write(server, {"record_id": "7", "age": ""}).status_code == 200
    assert classic.value("7", "age") == before


def test_a_delete_with_an_event_keeps_the_other_events(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    client = pycap(server)
    first, second = longitudinal.event_names[:2]
    rows = [{"record_id": "900", "redcap_event_name": event} for event in (first, second)]
    assert client.import_records(rows) == {"count": 1}
    assert client.delete_records(["900"], event=second) == 1
    assert [row["redcap_event_name"] for row in client.export_records(records=["900"])] == [first]
    with pytest.raises(RedcapError):
        client.delete_records(["900"], event="no_such_event")
    assert client.delete_records(["900"]) == 1
    assert "900" not in longitudinal.records


def test_the_log_begins_with_the_design_of_the_project(server: RedcapSimulator, classic: Project) -> None:
    classic.change_field("age", label="Age")
    rows = pycap(server).export_logging(log_type="manage")
    assert {row["action"] for row in rows} == {"Manage/Design"}
    assert rows[0]["details"] == "Edit project field"
    assert rows[-1]["details"] == "Create project"


def test_labels_of_instruments_are_always_quoted_in_csv(server: RedcapSimulator, classic: Project) -> None:
    text = post(server, content="instrument", format="csv").text
    assert text == 'instrument_name,instrument_label\nenrolment,"Enrolment"\ntexting,"Texting"'


def test_the_purpose_is_the_project_s(server: RedcapSimulator, classic: Project) -> None:
    assert pycap(server).export_project_info()["purpose"] == 0
    classic.purpose = 2
    assert pycap(server).export_project_info()["purpose"] == 2


def test_a_checkbox_takes_0_and_1_and_a_0_unchecks_even_with_normal(
    server: RedcapSimulator, classic: Project
) -> None:
    ((*_, message),) = problems(write(server, {"record_id": "7", "sms_opt_out___1": "x"}))
    assert message.startswith("The value is not a valid category")
    post(server, data=json.dumps([{"record_id": "10", "sms_opt_out___1": "0"}]))
    assert classic.value("10", "sms_opt_out___1") == "0"


def test_the_first_value_makes_a_form_incomplete(server: RedcapSimulator, classic: Project) -> None:
    grey = {"records": "7", "exportBlankForGrayFormStatus": "true"}
    write(server, {"record_id": "7", "sms_opt_out___1": "1"})
    assert export(server, "texting_complete", **grey) == [{"texting_complete": "0"}]


def test_the_count_is_of_distinct_records(server: RedcapSimulator, longitudinal: Project) -> None:
    answer = write(
        server,
        {"record_id": "7", "redcap_event_name": ENROLMENT, "age": "30"},
        {"record_id": "7", "redcap_event_name": WEEK_1, "hours_slept": "8"},
    )
    assert answer.json() == {"count": 1}


@pytest.mark.parametrize(
    ("return_format", "content", "body"),
    [
        ("json", "count", '{"count":2}'),
        ("json", "ids", '["7","10"]'),
        ("csv", "count", "2"),
        ("csv", "ids", "id\n7\n10\n"),
        ("xml", "count", '<?xml version="1.0" encoding="UTF-8" ?><count>2</count>'),
        ("json", "nothing", ""),
    ],
)
def test_the_answer_to_an_import(
    server: RedcapSimulator, classic: Project, return_format: str, content: str, body: str
) -> None:
    rows = ({"record_id": "7", "age": "30"}, {"record_id": "10", "age": "31"})
    assert write(server, *rows, returnFormat=return_format, returnContent=content).text == body


def test_an_unchanged_value_is_counted_but_not_logged(server: RedcapSimulator, classic: Project) -> None:
    before = len(classic.log)
    answer = write(server, {"record_id": "7", "first_name": "Ann", "sms_opt_out___1": "0"})
    assert answer.json() == {"count": 1}
    assert len(classic.log) == before


def test_locked_records_and_forms_are_refused(server: RedcapSimulator, classic: Project) -> None:
    classic.lock_record("7")
    classic.lock_form("10", "texting")
    ((*_, record_locked),) = problems(write(server, {"record_id": "7", "age": "30"}))
    assert record_locked.startswith("This record has been locked at the record level.")
    ((*_, form_locked),) = problems(
        write(server, {"record_id": "10", "sms_opt_out_at": "2026-03-01 12:00:00"})
    )
    assert form_locked.startswith("This field is located on a form that is locked.")
    assert write(server, {"record_id": "10", "age": "30"}).status_code == 200


# --- import: events and repeats ---------------------------------------------------------------------


@pytest.mark.parametrize("event", ["", WEEK_1])
def test_a_field_without_its_event_is_refused(
    server: RedcapSimulator, longitudinal: Project, event: str
) -> None:
    row = {"record_id": "7", "redcap_event_name": event, "sms_opt_out_at": "2026-03-01 12:00:00"}
    ((record, field, _, message),) = problems(write(server, row))
    assert (record, field) == ("7", "sms_opt_out_at")
    assert message.startswith("This field ('sms_opt_out_at') exists on an instrument that is not designated")
    assert ("Week 1 (Arm 1: Arm 1)" if event else "Enrolment (Arm 1: Arm 1)") in message


def test_an_error_may_name_the_event_beside_the_record(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    longitudinal.errors_name_event = True
    ((record, *_),) = problems(
        write(server, {"record_id": "7", "redcap_event_name": ENROLMENT, "age": "old"})
    )
    assert record == f"7 ({ENROLMENT})"


def test_a_renamed_event_is_refused_and_keeps_its_data(
    server: RedcapSimulator, longitudinal: Project
) -> None:
    longitudinal.rename_event(ENROLMENT, "start_arm_1")
    row = {"record_id": "7", "redcap_event_name": ENROLMENT, "age": "30"}
    assert problems(write(server, row))[0][:2] == ["7", "redcap_event_name"]
    assert longitudinal.value("7", "mobile", event="start_arm_1") == "(650) 555-0100"


@pytest.mark.parametrize(
    ("instrument", "instance", "message"),
    [
        ("", "", "This field ('mobile') exists on a Repeating Instrument named 'contacts'."),
        ("contacts", "", "This field ('mobile') exists on a Repeating Instrument named 'contacts'."),
        ("", "1", "redcap_repeat_instance cannot have a value"),
        ("texting", "1", "redcap_repeat_instrument must be the unique form name"),
        ("contacts", "first", "The instance is not valid."),
    ],
)
def test_wrong_repeat_columns_are_refused(
    server: RedcapSimulator, repeating: Project, instrument: str, instance: str, message: str
) -> None:
    row = {
        "record_id": "7",
        "redcap_repeat_instrument": instrument,
        "redcap_repeat_instance": instance,
        "mobile": "(650) 555-0102",
    }
    assert any(cells[3].startswith(message) for cells in problems(write(server, row)))


def test_a_field_of_the_base_row_is_refused_in_an_instance(
    server: RedcapSimulator, repeating: Project
) -> None:
    row = {
        "record_id": "7",
        "redcap_repeat_instrument": "contacts",
        "redcap_repeat_instance": "1",
        "sms_opt_out___1": "1",
    }
    assert problems(write(server, row))[0][1] == "sms_opt_out___1"


# --- the log of requests, latency, rate limit -------------------------------------------------------


def test_every_request_is_counted_by_kind(server: RedcapSimulator, classic: Project) -> None:
    export(server, records="7,10")
    write(server, {"record_id": "7", "age": "30"}, {"record_id": "10", "age": "old"})
    post(server, "metadata")
    seen = [(each.kind, each.content, each.records, each.status) for each in server.requests]
    assert seen == [
        ("export", "record", 2, 200),
        ("import", "record", 2, 400),
        ("metadata", "metadata", 0, 200),
    ]
    assert (server.count("import"), server.count(content="record"), server.count(status=200)) == (1, 2, 2)
    assert not {"token", "data"} & set(server.requests[1].params)


def test_latency_is_per_call(server: RedcapSimulator) -> None:
    server.latency_seconds = 0.1
    started = time.monotonic()
    post(server)
    assert time.monotonic() - started >= 0.1
    assert server.requests[0].seconds >= 0.1


def test_writes_to_one_project_take_turns_and_reads_do_not_wait(
    server: RedcapSimulator, classic: Project
) -> None:
    server.seconds_per_record_written = 1.0
    started = time.monotonic()
    writers = [
        threading.Thread(target=write, args=(server, {"record_id": record_id, "age": "30"}))
        for record_id in ("7", "10")
    ]
    for writer in writers:
        writer.start()
    export(server)
    assert all(writer.is_alive() for writer in writers), "the export waited for a write"
    for writer in writers:
        writer.join()
    assert time.monotonic() - started >= 2.0


def test_too_many_requests_ban_the_address_until_it_is_lifted(server: RedcapSimulator) -> None:
    server.requests_per_minute = 2
    statuses = [post(server).status_code for _ in range(4)]
    assert statuses == [200, 200, 403, 403]
    server.requests_per_minute = None
    banned = post(server)
    assert banned.status_code == 403
    assert banned.headers["Content-Type"].startswith("text/html")
    assert "banned" in banned.text
    server.lift_ban()
    assert post(server).status_code == 200


def test_overlapping_identical_requests_get_the_tabs_page(server: RedcapSimulator, classic: Project) -> None:
    server.refuse_overlapping = True
    server.faults.add("hang", seconds=0.5)
    slow = threading.Thread(target=post, args=(server,))
    slow.start()
    while not server.requests:
        time.sleep(0.005)
    time.sleep(0.02)
    assert "multiple browser tabs" in post(server).text
    slow.join()
    assert post(server).json()


def test_too_many_named_records_meet_a_firewall(server: RedcapSimulator, classic: Project) -> None:
    server.most_records_named = 1
    assert post(server, records="7,10").status_code == 403
    assert post(server, records="7").status_code == 200


# --- faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "content_type", "text"),
    [
        ("http_403", 403, "application/json", "You do not have permissions"),
        ("http_429", 429, "text/html", "429"),
        ("http_500", 500, "text/html", ""),
        ("http_502", 502, "text/html", "502"),
        ("http_503", 503, "text/html", "503"),
        ("http_504", 504, "text/html", "504"),
        ("empty_200", 200, "text/html", ""),
        ("empty_302", 302, "text/html", ""),
        ("empty_520", 520, "text/html", ""),
        ("tabs_page", 200, "text/html", "multiple browser tabs"),
        ("login_page", 200, "text/html", "password"),
        ("maintenance_page", 200, "text/html", "offline"),
        ("ban_page", 403, "text/html", "banned"),
        ("firewall_page", 403, "text/html", "Forbidden"),
        ("memory_200", 200, "text/html", '{"error":"REDCap ran out of server memory.'),
        ("memory_400", 400, "application/json", '{"error":"REDCap ran out of server memory.'),
        ("memory_500", 500, "application/json", '{"error":"REDCap ran out of server memory.'),
        ("too_much_text", 200, "application/json", "too much data"),
        ("too_much_400", 400, "application/json", '{"error":"We are sorry'),
        ("error_200", 200, "application/json", '{"error":"You do not have'),
        ("count_zero", 200, "application/json", '{"count":0}'),
    ],
)
def test_a_fault_replaces_one_answer_and_nothing_is_written(
    server: RedcapSimulator, classic: Project, name: str, status: int, content_type: str, text: str
) -> None:
    server.faults.add(name, kind="import")
    answer = write(server, {"record_id": "7", "age": "30"})
    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith(content_type)
    assert text in answer.text
    assert bool(text) == bool(answer.text)
    assert classic.value("7", "age") == ""
    assert write(server, {"record_id": "7", "age": "30"}).json() == {"count": 1}


def test_faults_strike_only_their_kind_and_as_often_as_told(
    server: RedcapSimulator, classic: Project
) -> None:
    fault = server.faults.add("http_503", kind="import", times=2)
    assert post(server).status_code == 200
    statuses = [write(server, {"record_id": "7", "age": "30"}).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    assert (fault.hits, len(server.faults)) == (2, 0)


def test_a_persistent_fault_strikes_until_cleared(server: RedcapSimulator) -> None:
    server.faults.add("http_504", times=None)
    assert {post(server).status_code for _ in range(3)} == {504}
    server.faults.clear()
    assert post(server).status_code == 200


def test_an_unknown_fault_is_named(server: RedcapSimulator) -> None:
    with pytest.raises(ValueError, match="no fault 'http_418'; there are"):
        server.faults.add("http_418")


def test_a_gateway_may_time_out_after_the_import_was_done(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("http_504", kind="import", after_commit=True)
    assert write(server, {"record_id": "7", "age": "30"}).status_code == 504
    assert classic.value("7", "age") == "30"


@pytest.mark.parametrize(("after_commit", "age"), [(False, ""), (True, "30")])
def test_the_connection_is_reset_before_or_after_the_commit(
    server: RedcapSimulator, classic: Project, after_commit: bool, age: str
) -> None:
    server.faults.add("reset", after_commit=after_commit)
    with pytest.raises(requests.ConnectionError):
        write(server, {"record_id": "7", "age": "30"})
    assert classic.value("7", "age") == age
    assert server.requests[0].status == 0


def test_truncated_json_is_a_complete_http_answer(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("truncated")
    answer = post(server)
    assert answer.status_code == 200
    with pytest.raises(requests.JSONDecodeError):
        answer.json()


def test_a_cut_off_answer_ends_before_its_length(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("cut_off")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        post(server)


def test_a_byte_order_mark_goes_before_the_answer(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("byte_order_mark")
    assert post(server).content.startswith(b"\xef\xbb\xbf[")


def test_values_of_another_encoding_are_no_utf_8(server: RedcapSimulator, classic: Project) -> None:
    classic.add_record("ü", age="30")
    server.faults.add("windows_1252")
    assert b'"\xfc"' in post(server).content


def test_missing_rows_leave_a_well_formed_export(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("missing_rows", keep=0.5)
    assert export(server, "record_id") == [{"record_id": "7"}]


def test_a_slow_drip_keeps_the_read_timeout_from_striking(server: RedcapSimulator, classic: Project) -> None:
    server.faults.add("slow_drip", seconds=0.4)
    form = {"token": TOKEN, "content": "record", "format": "json"}
    started = time.monotonic()
    assert len(requests.post(server.url, data=form, timeout=0.2).json()) == 2
    assert time.monotonic() - started > 0.3


@pytest.mark.parametrize(("after_commit", "age"), [(False, ""), (True, "30")])
def test_a_hang_outlasts_the_client_with_or_without_the_import_done(
    server: RedcapSimulator, classic: Project, after_commit: bool, age: str
) -> None:
    server.faults.add("hang", seconds=30, after_commit=after_commit)
    form = {"token": TOKEN, "content": "record", "data": '[{"record_id":"7","age":"30"}]', "format": "json"}
    with pytest.raises(requests.ReadTimeout):
        requests.post(server.url, data=form, timeout=0.2)
    assert classic.value("7", "age") == age


def test_a_server_that_stops_drops_what_hangs(classic: Project) -> None:
    simulator = RedcapSimulator({TOKEN: classic})
    failures: list[Exception] = []

    def hanging() -> None:
        try:
            write(simulator, {"record_id": "7", "age": "30"})
        except requests.ConnectionError as error:
            failures.append(error)

    with simulator.serve():
        simulator.faults.add("hang", seconds=30)
        client = threading.Thread(target=hanging)
        client.start()
        while not simulator.requests:
            time.sleep(0.005)
    client.join(timeout=5)
    assert len(failures) == 1
    assert classic.value("7", "age") == ""


def test_a_revoked_token_stays_revoked(server: RedcapSimulator) -> None:
    server.faults.add("token_revoked")
    assert [post(server).status_code for _ in range(2)] == [403, 403]


def test_the_same_port_can_be_served_again(classic: Project) -> None:
    simulator = RedcapSimulator({TOKEN: classic})
    with simulator.serve():
        port = int(simulator.url.split(":")[2].split("/")[0])
    with pytest.raises(requests.ConnectionError):
        post(simulator)
    with simulator.serve(port):
        assert post(simulator).status_code == 200


# --- from outside -----------------------------------------------------------------------------------


def control(server: RedcapSimulator, action: str, order: dict[str, Any] | None = None) -> Any:
    url = server.url.replace("/api/", f"/_sim/{action}")
    answer = requests.get(url, timeout=5) if order is None else requests.post(url, json=order, timeout=5)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_control_interface_reads_and_changes_records(server: RedcapSimulator, classic: Project) -> None:
    control(server, "records", {"project": "Asthma diary", "record": "11", "values": {"age": "50"}})
    (row,) = control(server, f"records?project={TOKEN}&record=11")
    assert (row["record"], row["event"], row["values"]["age"]) == ("11", "", "50")
    control(server, "delete", {"project": "101", "record": "11"})
    assert {row["record"] for row in control(server, "records?project=101")} == {"7", "10"}
    assert control(server, "log?project=101")[0]["action"] == "Delete record 11"


def test_the_control_interface_adds_faults_counts_and_clears(server: RedcapSimulator) -> None:
    control(server, "faults", {"name": "http_503", "kind": "export", "times": 1})
    control(server, "settings", {"requests_per_minute": 1})
    assert [post(server).status_code for _ in range(2)] == [503, 403]
    counted = control(server, "requests")
    assert (counted["total"], counted["by_status"], counted["banned"]) == (2, {"503": 1, "403": 1}, True)
    control(server, "settings", {"requests_per_minute": None})
    control(server, "clear", {})
    assert post(server).status_code == 200


def test_a_wrong_order_is_explained(server: RedcapSimulator) -> None:
    url = server.url.replace("/api/", "/_sim/faults")
    answer = requests.post(url, json={"name": "nonsense"}, timeout=5)
    assert (answer.status_code, "no fault" in answer.json()["error"]) == (400, True)


def test_it_runs_as_a_program_with_the_demos_two_studies() -> None:
    command = [sys.executable, "-m", "tests.simulators.redcap", "--port", "0", "--records", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        health = requests.get(url.replace("/api/", "/_sim/health"), timeout=5).json()
        form = {"token": "FAKESLEEPTOKEN000000000000000000", "content": "record", "format": "json"}
        rows = requests.post(url, data=form, timeout=5).json()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    assert health == {"projects": ["Asthma diary", "Sleep and light"]}
    assert [row["record_id"] for row in rows] == ["1", "2", "3"]


def test_a_hundred_thousand_records_are_exported_whole(server: RedcapSimulator) -> None:
    enrol(server.projects[TOKEN], 100_000)
    answer = post(server, fields="record_id,mobile,sms_opt_out_at")
    assert answer.text.count('"record_id"') == 100_000
