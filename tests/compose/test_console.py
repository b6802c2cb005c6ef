"""The console in its container: behind its login, with a user of Redis that can only read."""

from __future__ import annotations

import pytest
import requests

from tests.compose.stack import Stack
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", autouse=True)
def _running(stack: Stack) -> None:
    """Tests of another file may have taken the containers down."""
    stack.up()


def page(stack: Stack, path: str) -> str:
    """What somebody with the login sees."""
    answer = requests.get(stack.console_url + path, auth=stack.console_login, timeout=10)
    answer.raise_for_status()
    return answer.text


@pytest.mark.parametrize("path", ["/", "/studies/asthma", "/checks", "/platform"])
def test_it_asks_for_its_login(stack: Stack, path: str) -> None:
    url, (user, _) = stack.console_url + path, stack.console_login
    assert requests.get(url, timeout=10).status_code == 401
    assert requests.get(url, auth=(user, "wrong"), timeout=10).status_code == 401
    assert requests.get(url, auth=stack.console_login, timeout=10).status_code == 200


def test_it_shows_a_stop_that_was_written(stack: Stack) -> None:
    [record] = stack.enrol(1)
    sid = stack.text(record).message.sid
    wait_until(
        lambda: "In REDCap" in page(stack, f"/studies/asthma/events/{sid}"), seconds=60, what="it is saved"
    )
    event = page(stack, f"/studies/asthma/events/{sid}")
    assert f"record {record}" in event
    assert record in page(stack, "/studies/asthma/events.csv")


def test_it_sees_the_processes_the_queues_and_redis(stack: Stack) -> None:
    shown = page(stack, "/platform")
    for words in (
        "The platform is fine",
        "as on disk",
        "optout.update",
        "every change is written to disk",
        "0.2.0",
    ):
        assert words in shown


def test_its_user_of_redis_can_only_read(stack: Stack) -> None:
    code = (
        "from shared.config import redis_url; from shared.redis_client import connect; "
        "connect(redis_url()).set('optout:x', '1')"
    )
    said = stack.compose("exec", "-T", "console", "sh", "-c", f'python -c "{code}" 2>&1 || true')
    assert "NoPermissionError" in said
