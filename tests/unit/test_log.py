"""Logs: one line per step, and no phone number, whatever is logged."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from shared.log import configure_logging, mask_phone_numbers


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "number",
    ["+16505550123", "16505550123", "6505550123", "(650) 555-0123", "650-555-0123", "650.555.0123",
     "+1 650 555 0123", "+44 20 7946 0123", "+49 (0)30 901820"],
)  # fmt: skip
def test_whatever_looks_like_a_number_is_masked(number: str) -> None:
    fields = mask_phone_numbers(None, "info", {"event": f"from {number}, twice {number}."})
    assert fields["event"] == "from [number], twice [number]."


@pytest.mark.parametrize(
    "text",
    ["SM0123456789abcdef0123456789abcdef", "2026-05-04T12:00:00.123456Z", "2026-05-04 12:00:00", "record 12345",
     "took 0.123456 s", "0sJwrRYbhfJvIAy3x6HsBA", "a1b2-6505550123x"],
)  # fmt: skip
def test_what_is_no_number_is_left_as_it_is(text: str) -> None:
    assert mask_phone_numbers(None, "info", {"event": text})["event"] == text


def test_a_line_is_json_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    structlog.get_logger("worker").warning("mail_put_off", project="asthma")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["project"], line["level"], line["logger"]) == (
        "mail_put_off", "asthma", "warning", "worker",
    )  # fmt: skip
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "value",
    [
        6505550100,
        {"+16505550100": 1},
        {("nested", b"650-555-0100")},
        ValueError("650-555-0100"),
        [{"deep": ("650-555-0100",)}],
    ],
)
def test_a_number_is_masked_in_whatever_a_line_holds(
    value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging()
    structlog.get_logger("web").info("event", value=value, took_ms=12345, share=0.25, none=None)
    line = capsys.readouterr().err
    assert re.search(r"650.?555", line) is None
    assert {"took_ms": 12345, "share": 0.25, "none": None}.items() <= json.loads(line).items()


def test_a_library_s_line_is_masked_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("some.library").warning("calling %s", "+16505550123")
    line = json.loads(capsys.readouterr().err)
    assert line["event"] == "calling [number]"


def test_an_exception_s_text_is_masked_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        raise ValueError("no such number: +16505550123")
    except ValueError:
        logging.getLogger("some.library").exception("failed")
    text = capsys.readouterr().err
    assert "ValueError" in text
    assert "6505550123" not in text


@pytest.mark.parametrize("name", ["twilio.http_client", "urllib3.connectionpool", "kombu", "amqp", "asyncio"])
def test_libraries_that_repeat_addresses_are_silent_even_at_debug(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("DEBUG")
    logging.getLogger(name).debug("From=+16505550123")
    logging.getLogger(name).info("From=+16505550123")
    assert capsys.readouterr().err == ""


def test_the_level_comes_from_the_environment_and_nonsense_means_info(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for given, level in (("DEBUG", logging.DEBUG), ("warning", logging.WARNING), ("loud", logging.INFO)):
        monkeypatch.setenv("OPTOUT_LOG_LEVEL", given)
        configure_logging()
        assert logging.getLogger().level == level
