"""Floods against the real server: slow senders, huge senders, thousands of forgeries; genuine requests get through.

Bounded in number and time, and on loopback only. No time is asserted but Twilio's own: a genuine request has
to be answered while Twilio waits for it.
"""

from __future__ import annotations

import resource
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from shared.ledger import keys
from tests.benchmarks.load import closed_loop, webhook
from tests.builders import inbound_form
from tests.processes import Platform, wait_until
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, SERVICE_SID, sign_form

INBOUND = "/twilio/inbound"
TWILIO_WAITS_SECONDS = 15.0
SLOW = 400
IDLE = 1_500
MORE_THAN_THE_SERVER_KEEPS = 4_400
FORGED = 3_000
GENUINE = 25

CONFIG = f"""
public_url = "{PUBLIC_URL}"
[twilio.main]
account_sid = "{ACCOUNT_SID}"
auth_token = "env:TWILIO_AUTH_TOKEN"
[projects.asthma]
redcap_url = "https://redcap.example.edu/api/"
redcap_token = "env:REDCAP_TOKEN"
twilio = "main"
messaging_service_sid = "{SERVICE_SID}"
phone_field = "mobile"
opt_out_field = "sms_opt_out_at"
"""
HEAD = (
    f"POST {INBOUND} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    "X-Twilio-Signature: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n"
)
# What a slow sender sends at first, and then a byte of now and then.
SLOWLY = {
    "headers": f"{HEAD}X-More: ",
    "a body of known length": f"{HEAD}Content-Length: 60000\r\n\r\nBody=",
    "a body in chunks": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\nBody=\r\n",
    "nothing": "",
    "a large body": f"{HEAD}Content-Length: 1000000\r\n\r\n{'x' * 70_000}",
    "an announcement": f"{HEAD}Content-Length: 60000\r\nExpect: 100-continue\r\n\r\n",
}


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Iterator[None]:
    """As many open files for us, and for the server that we start, as this machine's hard limit lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 8_192) if hard == resource.RLIM_INFINITY else max(soft, min(hard, 8_192))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def needs_files(number: int) -> None:
    """Skip a test where so many files may not be open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < number + 100:
        pytest.skip(
            f"{number} connections need more open files than the hard limit of this machine ({allowed})"
        )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    secrets = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, "OPTOUT_HASH_KEY": "a-key-for-tests-only"}
    with Platform(tmp_path_factory.mktemp("floods"), CONFIG, secrets) as platform:
        platform.start("redis", "web")
        yield platform


@pytest.fixture
def platform(served: Platform) -> Platform:
    served.redis.flushall()
    return served


def text_stop(platform: Platform) -> str:
    """A genuine STOP as Twilio delivers it. Answers its message SID."""
    form = inbound_form()
    answer = requests.post(
        platform.web_url + INBOUND, data=form, timeout=TWILIO_WAITS_SECONDS,
        headers={"X-Twilio-Signature": sign_form(PUBLIC_URL + INBOUND, form, AUTH_TOKEN)},
    )  # fmt: skip
    assert answer.status_code == 200
    return form["MessageSid"]


def stored(platform: Platform) -> set[str]:
    return {str(each) for each in platform.redis.zrange(keys.events("asthma"), 0, -1)}


@contextmanager
def open_connections(platform: Platform, number: int, first: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        sockets = []
        for _ in range(number):
            each = stack.enter_context(socket.create_connection(("127.0.0.1", platform.web_port), timeout=10))
            with suppress(OSError):  # refused already, such as for its size
                each.sendall(first)
            sockets.append(each)
        yield sockets


def still_open(connection: socket.socket) -> bool:
    """Whether the other side has neither closed it nor said anything."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def meanwhile(step: Callable[[], None], *, pause: float) -> Iterator[None]:
    """Repeat a step in a thread."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(pause):
            step()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class TestSlowSenders:
    @pytest.mark.parametrize("what", SLOWLY)
    def test_genuine_requests_are_answered_while_hundreds_send_slowly(
        self, platform: Platform, what: str
    ) -> None:
        with open_connections(platform, SLOW, SLOWLY[what].encode()) as slow:

            def send_a_byte_each() -> None:
                for each in slow:
                    with suppress(OSError):
                        each.send(b"x")

            with meanwhile(send_a_byte_each, pause=0.5):
                sent = {text_stop(platform) for _ in range(GENUINE)}
                assert requests.get(f"{platform.web_url}/healthz", timeout=TWILIO_WAITS_SECONDS).ok
        assert stored(platform) == sent

    def test_a_genuine_request_is_answered_while_over_a_thousand_connections_say_nothing(
        self, platform: Platform
    ) -> None:
        """Not after some of them were given up: it needs no place of theirs."""
        needs_files(IDLE)
        with open_connections(platform, IDLE, b"") as idle:
            sent = text_stop(platform)
            assert sum(still_open(each) for each in idle) == IDLE
        assert stored(platform) == {sent}

    def test_more_slow_senders_than_the_server_keeps_hold_genuine_requests_up_for_seconds_only(
        self, platform: Platform
    ) -> None:
        """It keeps 4,096 connections, idle ones included; each of these is given up after five seconds."""
        needs_files(MORE_THAN_THE_SERVER_KEEPS)
        slowly = SLOWLY["a body of known length"].encode()
        with open_connections(platform, MORE_THAN_THE_SERVER_KEEPS, slowly):
            sent = {text_stop(platform) for _ in range(GENUINE)}
        assert stored(platform) == sent

    def test_a_slow_sender_is_told_and_left(self, platform: Platform) -> None:
        with open_connections(platform, 1, SLOWLY["a body of known length"].encode()) as (slow,):
            slow.settimeout(30)
            answer = b""
            while received := slow.recv(4096):
                answer += received
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert answer.endswith(b"<Response />")

    def test_slow_headers_are_left_without_a_word(self, platform: Platform) -> None:
        with open_connections(platform, 1, SLOWLY["headers"].encode()) as (slow,):
            slow.settimeout(30)
            with suppress(ConnectionResetError):
                assert b"HTTP/1.1 200" not in slow.recv(4096)

    def test_headers_without_end_are_refused(self, platform: Platform) -> None:
        with open_connections(platform, 1, f"{HEAD}X-More: {'x' * 100_000}".encode()) as (endless,):
            endless.settimeout(30)
            with suppress(ConnectionResetError):
                assert endless.recv(4096)[:13] in {b"", b"HTTP/1.1 431 ", b"HTTP/1.1 400 "}
        text_stop(platform)


class TestForgeries:
    def test_thousands_of_forged_requests_store_nothing_and_keep_no_genuine_one_out(
        self, platform: Platform
    ) -> None:
        forged = [webhook(number).replace(b"Body=STOP", b"Body=STOQ") for number in range(FORGED)]
        with ThreadPoolExecutor(1) as flood:
            load = flood.submit(closed_loop, platform.web_url, forged, connections=64)
            sent = {text_stop(platform) for _ in range(GENUINE)}
            assert load.result().statuses == Counter({403: FORGED})
        assert stored(platform) == sent
        # Refusals are counted together, a second later.
        wait_until(
            lambda: self.counted(platform) == {"wrong_signature": FORGED, "accepted": GENUINE},
            what="all are counted",
        )

    def test_thousands_of_replays_store_one_event(self, platform: Platform) -> None:
        load = closed_loop(platform.web_url, [webhook(1)] * 1_000, connections=64)
        assert load.statuses == Counter({200: 1_000})
        assert stored(platform) == {f"SM{1:032x}"}

    def test_what_no_http_is_does_not_end_the_server(self, platform: Platform) -> None:
        nonsense = [
            b"\x00" * 500, b"GET", b"\r\n" * 500, b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST /twilio/inbound HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /twilio/inbound HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "GET /ü HTTP/1.1\r\nHost: ü\r\n\r\n".encode(),
        ]  # fmt: skip
        for each in nonsense:
            with open_connections(platform, 1, each) as (connection,):
                connection.settimeout(0.2)
                with suppress(OSError):
                    assert b"500" not in connection.recv(4096)[:16]
        sent = text_stop(platform)
        assert stored(platform) == {sent}
        assert "Traceback" not in platform["web"].text()

    @staticmethod
    def counted(platform: Platform) -> dict[str, int]:
        """Requests to the webhook by outcome, as /metrics tells."""
        lines = requests.get(f"{platform.web_url}/metrics", timeout=10).text.splitlines()
        prefix = 'optout_webhooks_total{endpoint="inbound",outcome="'
        return {
            line.removeprefix(prefix).partition('"')[0]: int(float(line.rpartition(" ")[2]))
            for line in lines
            if line.startswith(prefix)
        }


def test_what_is_under_way_when_the_server_is_stopped_is_answered(platform: Platform) -> None:
    platform.redis.execute_command("CLIENT", "PAUSE", "1500", "ALL")
    with ThreadPoolExecutor(12) as twilio:
        sent = [twilio.submit(text_stop, platform) for _ in range(12)]
        wait_until(lambda: len(established(platform)) >= 12, what="all are under way")
        assert platform["web"].stop() == 0
        try:
            assert stored(platform) == {each.result() for each in sent}
        finally:
            platform.start("web")


def established(platform: Platform) -> list[str]:
    """The server's open connections, as the kernel lists them."""
    ours = f":{platform.web_port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[1].endswith(ours) and row[3] == "01"]


def test_the_log_of_a_flood_names_reasons_and_nothing_that_was_sent(served: Platform, tmp_path: Path) -> None:
    before = len(served["web"].text())
    closed_loop(served.web_url, [webhook(1).replace(b"Body=STOP", b"Body=a-secret-text")], connections=1)
    # Rejections are counted for a second before they are logged.
    wait_until(
        lambda: "wrong_signature" in served["web"].text()[before:],
        seconds=10,
        what="the log names the reason",
    )
    assert "a-secret-text" not in served["web"].text()
