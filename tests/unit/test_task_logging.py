"""Lines of the worker: one that ends each step, and the same ids on all lines of a task."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from shared.errors import ConfigError, RedcapUnavailable
from shared.logs.redaction import mask_phone_numbers
from shared.messaging.tasks import TaskName
from tests import builders
from worker.mail.template_check import report_templates
from worker.runtime import safe_task, task_logging


@pytest.fixture(autouse=True)
def _no_ids_left() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()


def lines(task: str, *args: str, state: str = "SUCCESS") -> list[Any]:
    """What is logged while a task with these arguments runs and says "hello"."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logged:
        task_logging.begin(SimpleNamespace(name=task), args)  # type: ignore[arg-type]
        structlog.get_logger("step").info("hello")
        task_logging.end(state=state)
    return logged


@pytest.mark.parametrize("task", [TaskName.LOOKUP, TaskName.EMAIL])
def test_each_line_of_a_task_carries_its_step_project_and_event(task: TaskName) -> None:
    ids = {"step": task.removeprefix("optout."), "project": "asthma", "event_id": "SM1"}
    for line in lines(task, "asthma", "SM1"):
        assert line.items() >= ids.items()


@pytest.mark.parametrize("task", sorted(set(TaskName) - {TaskName.SWEEP}))
def test_each_line_of_a_project_s_task_names_the_project(task: TaskName) -> None:
    assert all(line["project"] == "asthma" for line in lines(task, "asthma"))


def test_a_step_ends_with_one_line_that_says_how_and_how_long() -> None:
    line = lines(TaskName.UPDATE, "asthma")[-1]
    assert (line["event"], line["outcome"], line["log_level"]) == ("step_ended", "done", "info")
    assert line["took_ms"] >= 0


def test_a_step_that_fails_ends_with_an_error() -> None:
    line = lines(TaskName.SWEEP, state="FAILURE")[-1]
    assert (line["outcome"], line["log_level"]) == ("failed", "error")


def test_the_next_task_does_not_inherit_the_ids() -> None:
    lines(TaskName.LOOKUP, "asthma", "SM1")
    assert "event_id" not in lines(TaskName.SWEEP)[0]
    assert structlog.contextvars.get_contextvars() == {}


def test_a_task_of_celerys_own_has_a_line_too() -> None:
    assert lines("celery.ping")[-1]["step"] == "celery.ping"


def test_numbers_are_masked_however_deep_they_are() -> None:
    fields = {"args": ("asthma", "+16505550100"), "problems": [{"seen": "call 650-555-0100"}]}
    masked = mask_phone_numbers(None, "info", fields)
    assert masked == {"args": ["asthma", "[number]"], "problems": [{"seen": "call [number]"}]}


def test_templates_that_do_not_work_are_reported_at_start() -> None:
    table = builders.project_table(templates="/nowhere")
    with capture_logs() as logged:
        report_templates(builders.config({"asthma": table}))
    assert [(line["event"], line["project"], line["error"]) for line in logged] == [
        ("template_failed", "asthma", "/nowhere is not a folder")
    ]


SECRET = "geheim-ü"
PASSING: list[BaseException] = [
    ConfigError("file", ["key: mend"]), RedcapUnavailable("redcap_page"), RedisConnectionError("away"), Ignore(),
    Reject("again"), Retry(), SoftTimeLimitExceeded(900), MemoryError(),
]  # fmt: skip


def left_of(error: BaseException) -> BaseException:
    """What leaves a task in which this is raised while an exception that holds a secret is being handled."""

    app = Celery("optout", set_as_current=False)

    @app.task(base=safe_task.SafeTask, name="a.step", shared=False)
    def step() -> None:
        try:
            SECRET.encode("ascii")
        except UnicodeError:
            raise error  # noqa: B904  as it happens

    try:
        step()
    except BaseException as left:
        return left
    pytest.fail("nothing was raised")


@pytest.mark.parametrize(
    "error", [UnicodeEncodeError("ascii", SECRET, 7, 8, "x"), ValueError(SECRET), KeyError(SECRET), OSError(SECRET)]
)  # fmt: skip
def test_an_exception_is_told_by_its_type_and_its_places(error: Exception) -> None:
    with capture_logs() as logged:
        left = left_of(error)
    (line,) = logged
    assert repr(left) == f"RuntimeError({type(error).__name__!r})"
    assert (line["event"], line["error"], line["log_level"]) == ("step_failed", type(error).__name__, "error")
    assert line["at"][-1].startswith(f"{__name__}:")
    assert "geheim" not in "".join(traceback.format_exception(left)) + str(line)


@pytest.mark.parametrize("error", [*PASSING, SystemExit(1)], ids=repr)
def test_what_is_ours_or_celery_s_passes_as_it_is(error: BaseException) -> None:
    with capture_logs() as logged:
        assert left_of(error) is error
    assert logged == []


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_passes_tells_nothing_of_what_it_came_from(error: BaseException) -> None:
    assert "geheim" not in repr(error)
    assert "UnicodeEncodeError" not in "".join(traceback.format_exception(left_of(error)))
