"""`/_sim/`: a JSON interface for whoever runs the simulator in another process (demo, benchmarks)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from tests.simulators.redcap.answers import Answer, compact_json, text_answer
from tests.simulators.redcap.project import Project
from tests.simulators.redcap.structure import wall_minute

if TYPE_CHECKING:
    from tests.simulators.redcap.simulator import RedcapSimulator

Order = dict[str, object]
SETTINGS = frozenset(
    {"latency_seconds", "seconds_per_record_written", "requests_per_minute", "refuse_overlapping"}
)


def answer_control(simulator: RedcapSimulator, method: str, path: str, body: bytes) -> Answer:
    parts = urlsplit(path)
    action = ACTIONS.get((method, parts.path.removeprefix("/_sim/")))
    if action is None:
        return text_answer(compact_json({"error": "no such action"}), "json", status=404)
    order: Order = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    try:
        if body:
            order |= json.loads(body)
        return text_answer(compact_json(action(simulator, order)), "json")
    except (KeyError, TypeError, ValueError) as error:
        return text_answer(compact_json({"error": repr(error)}), "json", status=400)


def _project(simulator: RedcapSimulator, order: Order) -> Project:
    return simulator.project_named(str(order["project"]))


def health(simulator: RedcapSimulator, order: Order) -> object:
    return {"projects": [project.title for project in simulator.projects.values()]}


def get_records(simulator: RedcapSimulator, order: Order) -> object:
    """Stored values as one row per place; `record` narrows it to one record."""
    project, wanted = _project(simulator, order), order.get("record")
    with project.lock:
        return [
            {"record": record_id, **place._asdict(), "values": dict(project.records[record_id][place])}
            for record_id in project.ordered_ids()
            if wanted in {None, record_id}
            for place in project.ordered_places(record_id)
        ]


def set_record(simulator: RedcapSimulator, order: Order) -> object:
    """Adds the record, or changes the values of one that is there."""
    project, values = _project(simulator, order), order.get("values", {})
    if not isinstance(values, dict):
        raise TypeError("values must be an object")
    event, dag = order.get("event"), order.get("dag")
    project.add_record(
        str(order["record"]),
        event=None if event is None else str(event),
        dag=None if dag is None else str(dag),
        **{str(name): str(value) for name, value in values.items()},
    )
    return {"ok": True}


def delete_record(simulator: RedcapSimulator, order: Order) -> object:
    _project(simulator, order).delete_record(str(order["record"]))
    return {"ok": True}


def add_fault(simulator: RedcapSimulator, order: Order) -> object:
    name = str(order.pop("name"))
    simulator.faults.add(name, **order)  # type: ignore[arg-type]
    return {"waiting": len(simulator.faults)}


def get_requests(simulator: RedcapSimulator, order: Order) -> object:
    requests = list(simulator.requests)
    return {
        "total": len(requests),
        "by_kind": Counter(each.kind for each in requests),
        "by_content": Counter(each.content for each in requests),
        "by_status": Counter(str(each.status) for each in requests),
        "records_written": sum(
            each.records for each in requests if each.kind == "import" and each.status == 200
        ),
        "banned": bool(simulator.banned),
    }


def get_log(simulator: RedcapSimulator, order: Order) -> object:
    rows = _project(simulator, order).log
    return [
        {
            "timestamp": wall_minute(row.at, simulator.time_zone),
            "username": row.username,
            "action": row.action,
            "details": row.details,
            "record": row.record,
        }
        for row in reversed(rows)
    ]


def change_settings(simulator: RedcapSimulator, order: Order) -> object:
    for name, value in order.items():
        if name not in SETTINGS:
            raise ValueError(f"no setting {name!r}")
        setattr(simulator, name, value)
    return {"ok": True}


def clear(simulator: RedcapSimulator, order: Order) -> object:
    """Forgets faults, counters, bans and revoked tokens; the records stay."""
    simulator.faults.clear()
    simulator.requests.clear()
    simulator.revoked.clear()
    simulator.lift_ban()
    return {"ok": True}


ACTIONS: dict[tuple[str, str], Callable[[RedcapSimulator, Order], object]] = {
    ("GET", "health"): health,
    ("GET", "records"): get_records,
    ("POST", "records"): set_record,
    ("POST", "delete"): delete_record,
    ("POST", "faults"): add_fault,
    ("GET", "requests"): get_requests,
    ("GET", "log"): get_log,
    ("POST", "settings"): change_settings,
    ("POST", "clear"): clear,
}
