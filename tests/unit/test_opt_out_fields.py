"""What has to happen to a record's opt-out fields, by the pure plan."""

from zoneinfo import ZoneInfo

import pytest

from shared.domain.events import Change
from shared.domain.precedence import Status, decide
from shared.ledger.opt_outs.written_values import WrittenValue
from worker.redcap.opt_out_fields import Act, FieldForm, RecordState, plan

START_MS = 1_795_829_196_000
FIRST_STOP_MS = START_MS - 4_000  # found after the START was handled
WEBHOOK_STOP_MS = START_MS + 3_228_000


def _stop(since_ms: int) -> Status:
    return Status(
        change=Change.STOP, event_id="SM1", scope="MG1",
        occurred_ms=since_ms, last_start_ms=START_MS, since_ms=since_ms, stop_ms=since_ms,
    )  # fmt: skip


@pytest.mark.parametrize("time_format", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M"])
def test_an_opt_out_that_was_found_after_a_later_start_was_handled_is_written_once(time_format: str) -> None:
    form = FieldForm(zone=ZoneInfo("America/Los_Angeles"), time_format=time_format)
    stop, written = _stop(FIRST_STOP_MS), WrittenValue(time_ms=WEBHOOK_STOP_MS, scope="MG1", event_id="SM1")
    shown = RecordState(
        record_id="1",
        phones=frozenset({"a"}),
        opt_out_value=form.text(WEBHOOK_STOP_MS),
        ticked=False,
    )
    moved = plan(shown, decide([stop]), [stop], form=form, written=written)
    assert (moved.act, moved.value) == (Act.MOVE, form.text(FIRST_STOP_MS))

    after = RecordState(record_id="1", phones=shown.phones, opt_out_value=moved.value or "", ticked=False)
    again = plan(
        after,
        decide([stop]),
        [stop],
        form=form,
        written=WrittenValue(time_ms=FIRST_STOP_MS, scope="MG1", event_id="SM1"),
    )
    assert (again.act, again.writes) == (Act.NONE, False)
