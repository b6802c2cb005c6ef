"""The REDCap client and project gateway against the simulator, over a real socket."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse

from shared.domain.events import Change, milliseconds
from shared.domain.precedence import Status, decide
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import keys
from tests.builders import REDCAP_TOKEN, at, config, hashed, project_table
from tests.simulators.redcap import (
    Access,
    Project,
    RedcapSimulator,
    classic_study,
    enrol,
    fictional_phone,
    longitudinal_study,
    repeating_phone_study,
)
from worker.redcap import client as module
from worker.redcap import redaction
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.redcap.client import RedcapClient
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import Plan, RecordState, plan
from worker.redcap.redaction import redact
from worker.redcap.responses import ExportTooLarge, RowsRejected

pytestmark = pytest.mark.usefixtures("naps")

NOON = at("2026-05-04T19:00:00")
SHOWN = "2026-05-04 12:00:00"
FIELDS = ["record_id", "mobile", "sms_opt_out_at"]
TOO_MUCH_AT_ONCE = [
    "memory_200", "memory_400", "memory_500", "too_much_text", "too_much_200", "too_much_400", "too_much_500",
]  # fmt: skip


class Limiter:
    """Lets every request through, and records the calls."""

    def __init__(self) -> None:
        self.turns = 0
        self.recorded: list[str] = []

    def acquire(self) -> None:
        self.turns += 1

    def check(self) -> None:
        """Let everything through."""

    def record_failure(self, *, banned: bool = False) -> None:
        self.recorded.append("banned" if banned else "failed")

    def record_success(self) -> None:
        self.recorded.append("succeeded")


class Gateway:
    """A project on the simulator, with a client of its own."""

    def __init__(self, simulator: RedcapSimulator, project: Project, redis: Any, **changes: Any) -> None:
        self.simulator, self.study = simulator, project
        self.limiter: Any = Limiter()
        self.sessions: list[requests.Session] = []
        self.counted: list[tuple[str, str]] = []
        self.client = self.client_with(REDCAP_TOKEN)
        table = project_table(redcap_url=simulator.url, **changes)
        configured = config({"asthma": table}).projects["asthma"]
        zone = config().zone(configured)
        self.project = RedcapProject(
            "asthma", configured, zone, client=self.client, redis=redis, hasher=hashed
        )

    def client_with(
        self, token: str, url: str = "", *, circuit_breaker: CircuitBreaker | None = None
    ) -> RedcapClient:
        return RedcapClient(
            url or self.simulator.url, token, rate_limiter=self.limiter,
            circuit_breaker=circuit_breaker or self.limiter,
            count=lambda content, outcome: self.counted.append((content, outcome)), session=self.session(),
        )  # fmt: skip

    def session(self) -> requests.Session:
        self.sessions.append(module.new_session())
        return self.sessions[-1]


@pytest.fixture(scope="module")
def server() -> Iterator[RedcapSimulator]:
    with RedcapSimulator().serve() as running:
        yield running


@pytest.fixture
def made(server: RedcapSimulator, redis: Any) -> Iterator[Any]:
    """Makes a gateway to a project with some participants; the sessions are closed afterwards."""
    gateways: list[Gateway] = []

    def make(project: Project | None = None, *, count: int = 5, **changes: Any) -> Gateway:
        project = project or classic_study()
        enrol(project, count)
        server.projects = {REDCAP_TOKEN: project}
        gateways.append(Gateway(server, project, redis, **changes))
        return gateways[-1]

    yield make
    for session in [session for gateway in gateways for session in gateway.sessions]:
        session.close()
    server.faults.clear()
    server.lift_ban()
    server.revoked.clear()
    server.requests.clear()
    server.requests_per_minute = server.most_records_named = None


@pytest.fixture
def scripted() -> Iterator[Any]:
    """Makes a client that gets this body, with this status."""
    sessions: list[requests.Session] = []

    def make(body: str | bytes, status: int = 200, *, token: str = REDCAP_TOKEN) -> RedcapClient:
        limiter: Any = Limiter()
        sessions.append(requests.Session())
        sessions[-1].mount("https://", _Scripted(body if isinstance(body, bytes) else body.encode(), status))
        return RedcapClient(
            "https://redcap.example.edu/api/", token, rate_limiter=limiter, circuit_breaker=limiter,
            session=sessions[-1],
        )  # fmt: skip

    yield make
    for session in sessions:
        session.close()


class _Scripted(BaseAdapter):
    def __init__(self, body: bytes, status: int) -> None:
        super().__init__()
        self._body, self._status = body, status

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        raw = HTTPResponse(io.BytesIO(self._body), status=self._status, preload_content=False)
        return HTTPAdapter().build_response(request, raw)

    def close(self) -> None:
        """Nothing is open."""


def planned(project: RedcapProject, state: RecordState, change: str = "STOP") -> tuple[RecordState, Plan]:
    """What a STOP at noon, or the START after it, changes in a record."""
    noon = milliseconds(NOON)
    status = Status(change=Change(change), occurred_ms=noon, event_id="SM1", since_ms=noon, stop_ms=noon)
    starts = [status] if status.change is Change.START else []
    return state, plan(state, decide([status]), [status], form=project.form, starts=starts)


class TestReading:
    def test_named_records_come_with_their_fields(self, made: Any) -> None:
        rows = made().client.export(FIELDS, records=["2", "4", "99"])
        assert [row["record_id"] for row in rows] == ["2", "4"]
        assert set(rows[0]) == {"record_id", "mobile", "sms_opt_out_at"}

    def test_an_export_of_all_is_streamed(self, made: Any) -> None:
        rows = made(count=2000).client.export_all(FIELDS)
        assert iter(rows) is rows
        assert sum(1 for _ in rows) == 2000

    def test_a_stream_that_is_closed_early_releases_its_connection(self, made: Any) -> None:
        client = made(count=2000).client
        rows = client.export_all(FIELDS)
        next(rows)
        rows.close()
        assert len(client.export(FIELDS, records=["1"])) == 1

    def test_ids_with_commas_quotes_and_accents_are_sent_one_by_one(self, made: Any) -> None:
        gateway = made(count=0)
        ids = ["A, B", 'say "hi"', "ü-1", "1 2", "a&b=c"]
        for number, record in enumerate(ids):
            gateway.study.add_record(record, mobile=f"650-555-02{number:02d}")
        assert set(gateway.project.read(ids)) == set(ids)

    def test_a_project_state_holds_hashes_and_opt_out_fields(self, made: Any) -> None:
        gateway = made(opt_out_checkbox="sms_opt_out")
        gateway.study.set_value("2", "sms_opt_out_at", SHOWN)
        gateway.study.set_value("2", "sms_opt_out___1", "1")
        state = gateway.project.read(["2"])["2"]
        assert state.phones == {hashed(fictional_phone(2))}
        assert (state.opt_out_value, state.ticked) == (SHOWN, True)

    def test_a_record_that_is_missing_from_an_answer_is_requested_once_more(self, made: Any) -> None:
        gateway = made(count=10)
        gateway.simulator.faults.add("missing_rows", kind="export", keep=0.5)
        found = gateway.project.read([str(n) for n in range(1, 11)])
        assert len(found) == 10

    def test_an_export_that_the_server_cannot_prepare_is_read_in_batches(
        self, made: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.redcap.gateway.MAX_RECORDS_PER_REQUEST", 20)
        gateway = made(count=50)
        gateway.simulator.most_records_named = 20
        gateway.simulator.faults.add("memory_200", kind="export", times=1)
        assert len(list(gateway.project.read_all())) == 50

    def test_an_incomplete_export_is_completed_in_batches(self, made: Any) -> None:
        gateway = made(count=300)
        gateway.simulator.faults.add("truncated", kind="export", times=1)
        records = [state.record_id for state in gateway.project.read_all()]
        assert sorted(records, key=int) == [str(n) for n in range(1, 301)]
        assert len(records) == len(set(records))

    def test_a_longitudinal_project_is_read_at_its_events(self, made: Any) -> None:
        gateway = made(
            longitudinal_study(opt_out_event="week_1_arm_1"),
            phone_event="enrolment_arm_1", opt_out_event="week_1_arm_1",
        )  # fmt: skip
        gateway.study.set_value("1", "sms_opt_out_at", SHOWN, event="week_1_arm_1")
        states = {state.record_id: state for state in gateway.project.read_all()}
        assert states["1"].phones == {hashed(fictional_phone(1))}
        assert (states["1"].opt_out_value, states["2"].opt_out_value) == (SHOWN, "")

    def test_every_row_of_a_repeating_form_counts_for_the_phone(self, made: Any) -> None:
        gateway = made(repeating_phone_study(), count=0)
        gateway.study.add_record("1", first_name="Participant 1")
        for instance in (1, 2, 3):
            gateway.study.set_value("1", "mobile", f"650-555-010{instance}", instance=instance)
        [state] = gateway.project.read_all()
        assert state.phones == {hashed(f"+1650555010{n}") for n in (1, 2, 3)}

    def test_only_changed_records_are_returned_on_request(self, made: Any) -> None:
        study = classic_study()
        study.clock = lambda: at("2026-01-01T00:00:00")
        gateway = made(study, count=3)
        study.clock = lambda: at("2026-05-04T12:00:00")
        study.set_value("2", "mobile", "650-555-0777")
        found = [state.record_id for state in gateway.project.read_all(at("2026-05-04T11:00:00"))]
        assert found == ["2"]

    @pytest.mark.parametrize("fault", ["byte_order_mark", "windows_1252"])
    def test_bytes_that_are_not_json_break_neither_an_export_nor_its_other_records(
        self, made: Any, fault: str
    ) -> None:
        gateway = made()
        gateway.study.set_value("2", "mobile", "415\xa0555–0111 (Zoë)")
        gateway.simulator.faults.add(fault, kind="export", times=None)
        for states in (list(gateway.project.read_all()), gateway.project.read(["1", "2", "3"]).values()):
            phones = {state.record_id: state.phones for state in states}
            assert phones["1"] == {hashed(fictional_phone(1))}
            assert phones["2"] == {hashed("+14155550111")}
        assert gateway.simulator.count("export") == 2  # at once, not in portions

    def test_a_character_at_the_end_of_a_chunk_stays_complete(self, scripted: Any) -> None:
        rows = [{"record_id": str(n), "note": "aä€😀"[n % 4 :] * 7} for n in range(20_000)]
        text = json.dumps(rows, ensure_ascii=False)
        assert list(scripted("\ufeff" + text).export_all(FIELDS)) == rows

    @pytest.mark.parametrize("bad", [b"\xa0", b"\x81", b"\xe2\x82", b"\xed\xa0\x80", b"\xff\xfe"])
    def test_any_bytes_can_be_read(self, scripted: Any, bad: bytes) -> None:
        body = b'[{"record_id": "1", "mobile": "%s"}, {"record_id": "2", "mobile": ""}]' % bad
        client = scripted(body)
        whole, streamed = client.export(FIELDS), list(client.export_all(FIELDS))
        assert [row["record_id"] for row in streamed] == ["1", "2"]
        assert whole == streamed

    def test_an_export_that_ends_within_a_character_is_incomplete(self, scripted: Any) -> None:
        body = '[{"record_id": "1"}, {"record_id": "ü'.encode()[:-1]
        with pytest.raises(ExportTooLarge):
            list(scripted(body).export_all(FIELDS))


class TestWriting:
    def write(self, gateway: Gateway, *records: str, change: str = "STOP") -> None:
        states = gateway.project.read(records)
        wanted = {record: planned(gateway.project, states[record], change) for record in records}
        for rows in gateway.project.rows(wanted):
            gateway.project.write(rows)

    def test_a_stop_is_written_and_a_start_clears_it(self, made: Any) -> None:
        gateway = made(opt_out_checkbox="sms_opt_out")
        self.write(gateway, "1", "2")
        assert gateway.study.value("1", "sms_opt_out_at") == SHOWN
        assert gateway.study.value("2", "sms_opt_out___1") == "1"
        self.write(gateway, "1", change="START")
        assert gateway.study.value("1", "sms_opt_out_at") == ""
        assert gateway.study.value("1", "sms_opt_out___1") == "0"
        assert gateway.study.value("2", "sms_opt_out_at") == SHOWN

    def test_rows_with_the_same_columns_go_together(self, made: Any) -> None:
        gateway = made(opt_out_checkbox="sms_opt_out")
        gateway.study.set_value("2", "sms_opt_out___1", "1")
        states = gateway.project.read(["1", "2", "3"])
        wanted = {record: planned(gateway.project, state) for record, state in states.items()}
        groups = gateway.project.rows(wanted)
        assert [[row["record_id"] for row in rows] for rows in groups] == [["1", "3"], ["2"]]
        assert set(groups[1][0]) == {"record_id", "sms_opt_out_at"}

    def test_a_rejected_row_is_named_with_its_reason_and_nothing_is_written(self, made: Any) -> None:
        gateway = made()
        gateway.study.lock_record("2")
        with pytest.raises(RowsRejected) as caught:
            self.write(gateway, "1", "2", "3")
        assert set(caught.value.reasons) == {"2"}
        assert SHOWN not in str(caught.value.reasons)
        assert gateway.study.value("1", "sms_opt_out_at") == ""

    def test_a_rejected_row_is_named_also_if_redcap_adds_its_event(self, made: Any) -> None:
        sleep = longitudinal_study()
        sleep.errors_name_event = True
        gateway = made(sleep, phone_event="enrolment_arm_1", opt_out_event="enrolment_arm_1")
        sleep.lock_record("2")
        with pytest.raises(RowsRejected) as caught:
            self.write(gateway, "1", "2")
        assert set(caught.value.reasons) == {"2"}

    @pytest.mark.parametrize(
        "answer", ['["1","2"]', "[1, 2]", '{"count": 2}', '{"count": "2"}', "2", '"2"', "\ufeff2"]
    )
    def test_an_answer_that_names_or_counts_all_records_is_a_success(
        self, scripted: Any, answer: str
    ) -> None:
        scripted(answer).import_rows([{"record_id": "1"}, {"record_id": "2"}], "record_id")

    @pytest.mark.parametrize(
        "answer", ["", "[]", '["1"]', '{"count": 0}', '{"count": 1}', "1", '"1"', "0", "null", "true", "{}"]
    )
    def test_any_other_answer_is_a_failure(self, scripted: Any, answer: str) -> None:
        with pytest.raises(RedcapUnavailable):
            scripted(answer).import_rows([{"record_id": "1"}, {"record_id": "2"}], "record_id")

    def test_an_answer_without_the_written_ids_is_not_a_success(self, made: Any) -> None:
        gateway = made()
        gateway.project.schema  # noqa: B018
        gateway.simulator.faults.add("count_zero", kind="import", times=None)
        with pytest.raises(RedcapUnavailable, match="redcap_not_written"):
            self.write(gateway, "1")


class TestFailures:
    @pytest.mark.parametrize(
        ("fault", "code"),
        [
            ("http_429", "redcap_server_error"),
            ("http_500", "redcap_server_error"),
            ("http_502", "redcap_server_error"),
            ("http_503", "redcap_server_error"),
            ("http_504", "redcap_server_error"),
            ("login_page", "redcap_page"),
            ("maintenance_page", "redcap_page"),
            ("tabs_page", "redcap_tabs_page"),
            ("ban_page", "redcap_banned"),
            ("firewall_page", "redcap_banned"),
            ("empty_200", "redcap_strange_answer"),
            *((f"empty_{status}", "redcap_redirects") for status in (301, 302, 307)),
            *((f"empty_{status}", "redcap_server_error") for status in (501, 507, 509, 520, 522, 530)),
            *((f"empty_{status}", "redcap_page") for status in (204, 401, 404)),
            ("empty_403", "redcap_banned"),
            ("reset", "redcap_unreachable"),
            ("cut_off", "redcap_unreachable"),
            *((name, "redcap_out_of_memory") for name in TOO_MUCH_AT_ONCE),
            ("truncated", "redcap_strange_answer"),
        ],
    )
    def test_each_failure_has_its_code_and_is_transient(self, made: Any, fault: str, code: str) -> None:
        gateway = made()
        gateway.simulator.faults.add(fault, times=None)
        with pytest.raises(RedcapUnavailable) as caught:
            gateway.client.export(FIELDS, records=["1"])
        assert caught.value.code == code

    @pytest.mark.parametrize("fault", [f"empty_{status}" for status in (302, 404, 501, 520)])
    def test_an_import_without_redcaps_own_error_is_not_rejected(self, made: Any, fault: str) -> None:
        gateway = made()
        gateway.simulator.faults.add(fault, kind="import", times=None)
        with pytest.raises(RedcapUnavailable):
            gateway.client.import_rows([{"record_id": "1", "sms_opt_out_at": SHOWN}], "record_id")

    @pytest.mark.parametrize("fault", ["http_503", "tabs_page", "reset"])
    def test_a_brief_failure_is_retried_immediately(self, made: Any, naps: list[float], fault: str) -> None:
        gateway = made()
        gateway.simulator.faults.add(fault, times=2)
        assert len(gateway.client.export(FIELDS, records=["1"])) == 1
        assert len(naps) == 2
        assert gateway.limiter.turns == 3
        assert gateway.limiter.recorded == ["succeeded"]

    def test_a_ban_is_recorded_and_not_retried(self, made: Any) -> None:
        gateway = made()
        gateway.simulator.faults.add("ban_page", times=None)
        with pytest.raises(RedcapUnavailable):
            gateway.client.export(FIELDS, records=["1"])
        assert (gateway.limiter.turns, gateway.limiter.recorded) == (1, ["banned"])

    def test_a_server_that_does_not_listen_is_unreachable(self, made: Any) -> None:
        gateway = made()
        client = gateway.client_with(REDCAP_TOKEN, "http://127.0.0.1:9/api/")
        with pytest.raises(RedcapUnavailable, match=r"redcap_unreachable: 127\.0\.0\.1:9: refused"):
            client.export(FIELDS)

    def test_a_slow_server_times_out(self, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "REDCAP_READ_TIMEOUT_SECONDS", 0.1)
        gateway = made()
        gateway.simulator.faults.add("hang", seconds=1.5, times=1)
        with pytest.raises(RedcapUnavailable, match="redcap_timeout"):
            gateway.client.export(FIELDS, records=["1"])

    def test_a_redirect_is_reported(self, made: Any) -> None:
        gateway = made()
        client = gateway.client_with(REDCAP_TOKEN, gateway.simulator.url.rstrip("/"))
        with pytest.raises(RedcapUnavailable, match="redcap_redirects: status 301"):
            client.export(FIELDS)

    def test_a_page_is_not_an_export(self, made: Any) -> None:
        gateway = made()
        gateway.simulator.faults.add("login_page", times=None)
        with pytest.raises(RedcapUnavailable):
            list(gateway.client.export_all(FIELDS))

    @pytest.mark.parametrize("fault", TOO_MUCH_AT_ONCE)
    def test_a_stream_that_the_server_could_not_prepare_is_too_large(self, made: Any, fault: str) -> None:
        gateway = made()
        gateway.simulator.faults.add(fault, times=None)
        with pytest.raises(ExportTooLarge):
            list(gateway.client.export_all(FIELDS))


@pytest.mark.parametrize("character", [chr(code) for code in range(0x20)])
def test_raw_control_characters_in_labels_and_values_are_read(scripted: Any, character: str) -> None:
    body = f'[{{"field_name": "mobile", "field_label": "a{character}b",\r\n\t"mobile": "650-555{character}0123"}}]'
    client = scripted(body)
    assert client.get_list("metadata", "field_name")[0]["field_label"] == f"a{character}b"
    for rows in (client.export(["mobile"]), list(client.export_all(["mobile"]))):
        assert rows[0]["field_name"] == "mobile"
        assert rows[0]["mobile"].replace(character, " ") == "650-555 0123"


def test_a_rejection_with_a_raw_control_character_is_a_rejection(scripted: Any) -> None:
    with pytest.raises(RedcapRejected, match=r"is.* odd"):
        scripted('{"error": "the field is\x01 odd"}', 400).get_list("metadata")


@pytest.mark.parametrize(
    ("body", "ask"),
    [
        ('[{"record_id": "1"}, null]', lambda client: list(client.export_all(FIELDS))),
        ("[" * 200_000, lambda client: client.export(FIELDS)),
        ('{"error"' + "[" * 200_000, lambda client: client.get_list("metadata")),
        ('[{"field_name": "record_id"}]',
         lambda client: client.get_list("metadata", "field_name", "field_type")),
        ('[{"field_name": ["record_id"]}]', lambda client: client.get_list("metadata", "field_name")),
        ('[{"field_name": null}]', lambda client: client.get_list("metadata", "field_name")),
        ("no version", lambda client: client.version()),
    ],
    ids=["null among rows", "brackets", "brackets of an error", "lacking", "list", "null", "version"],
)  # fmt: skip
def test_an_answer_of_a_wrong_shape_is_a_failure(scripted: Any, body: str, ask: Any) -> None:
    with pytest.raises(RedcapUnavailable) as caught:
        ask(scripted(body))
    assert caught.value.code == "redcap_strange_answer"


EACH_WAY = [
    lambda client: client.get_object("project"), lambda client: client.export(FIELDS),
    lambda client: list(client.export_all(FIELDS)), lambda client: client.version(),
    lambda client: client.import_rows([{"record_id": "1"}], "record_id"),
]  # fmt: skip


class TestRejections:
    @pytest.mark.parametrize("status", [200, 400, 403])
    @pytest.mark.parametrize("ask", EACH_WAY)
    def test_a_token_in_an_error_is_removed(self, scripted: Any, status: int, ask: Any) -> None:
        answer = json.dumps({"error": "Blocked: token=t0ken-of-our-own&format=json"})
        client = scripted(answer, status, token="T0KEN-of-our-own")
        with pytest.raises(RedcapRejected, match="token=…&format=json") as caught:
            ask(client)
        assert "own" not in str(caught.value)

    def test_a_reason_with_a_lone_cr_is_read(self, scripted: Any) -> None:
        lines = '"1","sms_opt_out_at","x","Line one\rline two"\r"2","sms_opt_out_at","y","Locked"'
        with pytest.raises(RowsRejected) as caught:
            scripted(json.dumps({"error": lines}), 400).import_rows(
                [{"record_id": "1"}, {"record_id": "2"}], "record_id"
            )
        assert caught.value.reasons == {
            "1": "sms_opt_out_at: Line one line two", "2": "sms_opt_out_at: Locked",
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("message", "shown"),
        [("Error in record\rPlease try", "in record Please"), ('"' + "y" * 140_000, "…")],
    )
    def test_a_rejection_that_is_not_csv_names_no_row(self, scripted: Any, message: str, shown: str) -> None:
        with pytest.raises(RedcapRejected, match=shown) as caught:
            scripted(json.dumps({"error": message}), 400).import_rows([{"record_id": "1"}], "record_id")
        assert caught.value.code == "redcap_rejected"

    def test_a_wrong_token_is_forbidden_and_never_repeated(self, made: Any) -> None:
        gateway = made()
        client = gateway.client_with("F" * 32)
        with pytest.raises(RedcapRejected) as caught:
            client.export(FIELDS)
        assert caught.value.code == "redcap_forbidden"
        assert "FFFF" not in f"{caught.value}{client!r}"
        assert gateway.limiter.turns == 1

    @pytest.mark.parametrize("ask", EACH_WAY)
    def test_an_error_is_a_rejection_with_any_status(self, made: Any, ask: Any) -> None:
        gateway = made()
        gateway.simulator.faults.add("error_200", times=None)
        with pytest.raises(RedcapRejected, match="You do not have the right"):
            ask(gateway.client)

    def test_rejected_rows_are_named_with_any_status(self, scripted: Any) -> None:
        lines = json.dumps({"error": '"1","sms_opt_out_at","x","too much data in the field"'})
        with pytest.raises(RowsRejected) as caught:
            scripted(lines).import_rows([{"record_id": "1"}], "record_id")
        assert set(caught.value.reasons) == {"1"}

    def test_an_unknown_field_has_its_own_code(self, made: Any) -> None:
        with pytest.raises(RedcapRejected) as caught:
            made().client.import_rows([{"record_id": "1", "no_such_field": "x"}], "record_id")
        assert caught.value.code == "redcap_no_such_field"

    def test_a_token_without_import_right_is_rejected(self, made: Any) -> None:
        gateway = made()
        gateway.study.rights.api_import = False
        with pytest.raises(RedcapRejected):
            gateway.client.import_rows([{"record_id": "1", "sms_opt_out_at": SHOWN}], "record_id")

    def test_each_call_is_counted_by_content_and_outcome(self, made: Any) -> None:
        gateway = made()
        gateway.client.export(FIELDS)
        gateway.simulator.faults.add("http_503", times=None)
        with pytest.raises(RedcapUnavailable):
            gateway.client.export(FIELDS)
        assert gateway.counted == [("record", "ok"), ("record", "redcap_server_error")]

    def test_with_an_open_circuit_nothing_is_requested_or_counted(self, made: Any, redis: Any) -> None:
        gateway = made()
        breaker = CircuitBreaker(redis, "redcap.example.edu")
        breaker.record_failure()
        client = gateway.client_with(REDCAP_TOKEN, circuit_breaker=breaker)
        with pytest.raises(RedcapUnavailable, match="redcap_circuit_open"):
            client.export(FIELDS)
        assert (gateway.counted, gateway.simulator.requests) == ([], [])
        assert redis.hget(keys.circuit("redcap.example.edu"), "failures") == "1"


class TestSchema:
    @pytest.mark.parametrize(
        ("project", "changes", "code"),
        [
            (classic_study(opt_out_validation="date_ymd"), {}, "opt_out_field_holds_no_time"),
            (classic_study(opt_out_validation="email"), {}, "opt_out_field_holds_no_time"),
            (classic_study(), {"opt_out_field": "texting_notes"}, "opt_out_field_is_no_text"),
            (classic_study(), {"opt_out_field": "sex"}, "opt_out_field_is_no_text"),
            (classic_study(), {"opt_out_checkbox": "sex"}, "opt_out_checkbox_unfit"),
            (longitudinal_study(), {}, "opt_out_event_missing"),
            (longitudinal_study(), {"opt_out_event": "week_9_arm_1"}, "no_such_event"),
            (longitudinal_study(), {"opt_out_event": "enrolment_arm_1", "phone_event": "x"}, "no_such_event"),
            (repeating_phone_study(opt_out_form="contacts"), {}, "opt_out_field_repeats"),
        ],
    )
    def test_a_project_that_does_not_fit_is_a_problem_with_a_fix(
        self, made: Any, project: Project, changes: dict[str, str], code: str
    ) -> None:
        gateway = made(project, count=0, **changes)
        with pytest.raises(ProjectProblem) as caught:
            gateway.project.schema  # noqa: B018
        assert caught.value.code == code
        assert ";" in caught.value.detail  # what was observed; the fix

    def test_a_field_that_is_missing_names_its_key(self, made: Any) -> None:
        gateway = made(opt_out_field="no_such_field")
        with pytest.raises(ProjectProblem, match="opt_out_field: the project has no field no_such_field"):
            gateway.project.schema  # noqa: B018

    def test_all_workers_read_it_once_until_it_is_invalidated(self, made: Any, redis: Any) -> None:
        gateway = made()
        gateway.project.schema  # noqa: B018
        asked = gateway.simulator.count(content="metadata")
        other = Gateway(gateway.simulator, gateway.study, redis)
        other.project.schema  # noqa: B018
        assert gateway.simulator.count(content="metadata") == asked
        other.project.invalidate_schema()
        other.project.schema  # noqa: B018
        assert gateway.simulator.count(content="metadata") == asked + 1
        other.sessions[0].close()

    @pytest.mark.parametrize("access", [Access.NONE, Access.REMOVE_IDENTIFIERS, Access.DEIDENTIFIED])
    def test_a_phone_field_that_the_token_may_not_export_is_a_problem(
        self, made: Any, access: Access
    ) -> None:
        gateway = made()
        gateway.study.rights.forms["enrolment"] = access
        with pytest.raises((ProjectProblem, RedcapRejected)):
            gateway.project.read(["1"])

    def test_the_record_id_is_the_first_field_of_the_dictionary(self, made: Any) -> None:
        gateway = made(count=0)
        gateway.study.change_field("record_id", name="study_id")
        gateway.study.add_record("S-1", mobile="650-555-0001")
        assert gateway.project.schema.id_field == "study_id"
        assert set(gateway.project.read(["S-1"])) == {"S-1"}


class TestRedaction:
    @pytest.mark.parametrize(
        ("message", "shown"),
        [
            ('The value "2026-05-04" is not valid', "The value … is not valid"),
            ("call +1 (650) 555-0123 now", "call … now"),
            ("write to pat@example.org please", "write to … please"),
            ("<b>no</b>", "no"),
            ("Record is locked", "Record is locked"),
            (
                "This record has been locked, and can't be changed",
                "This record has been locked, and can't be changed",
            ),
            ("The users' rights don't suffice for record 7", "The users' rights don't suffice for record 7"),
            ("The value 'Pat Example' is not valid", "The value … is not valid"),
            ("The value 'Pat O'Brien' is not valid", "The value … is not valid"),
            ("“Pat”, „Pat“, «Pat», ‘Pat’, ‚Pat‘ and ‹Pat› are not", "…, …, …, …, … and … are not"),
            ("&quot;Pat&quot; and &#39;Pat&#39; are not", "… and … are not"),
            ('It begins "Pat Exam', "It begins …"),
            ("It begins 'Pat Exam", "It begins …"),
            ("The token 9f8e7d6c5b4a39281706f5e4d3c2b1a0 is gone", "The token … is gone"),
            ("with 415–555–0199 it", "with … it"),
            ("with 415\u00a0555\u00a00199 it", "with … it"),
            ("with (415)&nbsp;555&#8209;0199 it", "with … it"),
            ("with +1 (415)\u00a0555-0199 it", "with … it"),
            ("with 415'555'0199 it", "with … it"),
            ("with 415<i>555</i>0199 it", "with … it"),
            ("with ４１５５５５０１９９ it", "with … it"),
            ("with 555-0199 it", "with … it"),
        ],
    )
    def test_possible_personal_data_is_removed(self, message: str, shown: str) -> None:
        assert redact(message) == shown

    def test_a_long_message_is_cut(self) -> None:
        assert len(redact("no " * 500)) == 300

    def test_a_megabyte_is_cut_before_anything_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looked_at: list[str] = []

        def look(_mark: str, text: str) -> str:
            looked_at.append(text)
            return text

        monkeypatch.setattr(redaction, "PERSONAL_DATA", [SimpleNamespace(sub=look)])
        redact("a" * 1_000_000)
        assert [len(text) for text in looked_at] == [redaction.MAX_REDACTED_LENGTH]
