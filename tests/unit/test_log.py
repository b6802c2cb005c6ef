"""Logs: one line per step, and no phone number, whatever is logged."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from shared.logs.redaction import mask_phone_numbers
from shared.logs.setup import configure_logging


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
     "+1 650 555 0123", "+44 20 7946 0123", "+49 (0)30 901820", "(650)555-0123", "650 5550123", "650-5550123",
     "1-650-555-0123", "1 (650) 555-0123", "650/555/0123", "650\u2013555\u20130123", "+1\u2011650\u2011555\u20110123",
     "650\u00a0555\u00a00123", "(650)\u202f555\u22120123", r"650\xa0555\xa00123", r"650\u2013555\u20130123",
     "%2B16505550123", "%252B16505550123", "%2b1%20650%20555%200123", "+1+650+555+0123", "650%20555%2D0123",
     "%2B1%20%28650%29%20555-0123", "020 7946 0958", "(020) 7946 0958", "01632 960001", "030/901820-12",
         "06 12 34 56 78", "0044 20 7946 0958", "00442079460958", "442079460958", "0151 23456789", "۶۵۰ ۵۵۵ ۰۱۲۳"],
)  # fmt: skip
def test_whatever_looks_like_a_number_is_masked(number: str) -> None:
    fields = mask_phone_numbers(None, "info", {"event": f"from {number}, twice {number}."})
    assert fields["event"] == "from [number], twice [number]."


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("From=%2B16505550123&To=%2B16505550100", "From=[number]&To=[number]"),
        ("whatsapp:+16505550123", "whatsapp:[number]"),
        ("tel_6505550123, tel:650-555-0123;ext=7", "tel_[number], tel:[number];ext=7"),
        ("'6505550123'", "'[number]'"),
        ("rcs:+1650555012312 took", "rcs:[number] took"),
    ],
)
def test_a_number_is_masked_within_what_programs_write(text: str, masked: str) -> None:
    assert mask_phone_numbers(None, "info", {"event": text})["event"] == masked


@pytest.mark.parametrize(
    "text",
    ["SM0123456789abcdef0123456789abcdef", "2026-05-04T12:00:00.123456Z", "2026-05-04 12:00:00", "record 12345",
     "took 0.123456 s", "0sJwrRYbhfJvIAy3x6HsBA", "a1b2-6505550123x", "SM00000000000000000000000012345678",
     "MG01234567890123456789012345678901", "2026-05-04T12:00:00+00:00", "2026-05-04T12:00:00.123456+0200",
     "04/05/2026 12:00:00", "04.05.2026 12:00", "4-5-2026 10:11:12", "05/04/26 12:13:14", "02:30", "2026-05-04 00:15",
     "1767225600123", "1767225600.123456", "took 12345.678901234 s", "0.6505550123", "1e+10", "share 0.0123456789",
     "127.0.0.1:6379", "192.168.100.200:50123", "10.100.200.255", "[::1]:8000", "fe80::1234:5678:9012:3456",
     "15.10.2", "Python 3.11.14", "2.0.0rc1", "redcap 15.7.2+20260504", "celery@host-01.example.edu",
     "01234567-89ab-4cde-8123-456789abcdef", "12345678-1234-4123-8123-123456789012", "status 400, 500 bytes of 1200",
     "9f8e7d6c5b4a39281706f5e4d3c2b1a0", "00112233445566778899aabbccddeeff", "records 450 of 100000",
     "worker.redcap.client:372", "line 372\n  5550123", "shown 0 of 2026", "took_ms 100 2000 300",
     "HTTP/1.1 200 1234", "pid 12345, 67890", "optout.update_records[3e5d7c1a-0123-4567-8901-234567890123]"],
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
