"""The deployment as an operator lives with it, in this order: first STOP, faults, scaling, upgrade, backup, end."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlencode

import pytest
import requests

from shared.ledger.keys import PREFIX
from shared.ledger.platform.heartbeats import ENDED_AFTER_MS
from tests.browser import CHROMIUM, DRIVER, WHY_SKIPPED, chromium
from tests.compose.stack import BASE, PLATFORM, TLS, Stack
from tests.processes import wait_until
from tests.simulators.redcap import fictional_phone
from tests.simulators.twilio import AUTH_TOKEN, PUBLIC_URL, SERVICE_SID, form_request, inbound_parameters

pytestmark = pytest.mark.timeout(900)

HOST = PUBLIC_URL.removeprefix("https://")


def test_a_signed_stop_at_the_published_port_reaches_redcap(stack: Stack) -> None:
    [record] = stack.enrol(1)
    assert stack.text(record).status == 200
    stack.expect_opted_out([record])
    time.sleep(2)  # Twilio's times are whole seconds, and within one the STOP wins
    stack.text_start(record)
    wait_until(lambda: record not in stack.opted_out(), what="START clears it")


def test_a_forged_stop_changes_nothing(stack: Stack) -> None:
    [record] = stack.enrol(1)
    headers = {"X-Twilio-Signature": "Zm9yZ2VkIGZvcmdlZCBmb3JnZWQ="}
    message, _ = stack.twilio.inbound(from_="+16505550105")
    form = {
        "MessageSid": message.sid,
        "AccountSid": message.account_sid,
        "From": message.from_,
        "Body": "STOP",
    }
    answer = requests.post(f"{stack.web_url}/twilio/inbound", data=form, headers=headers, timeout=10)
    assert answer.status_code == 403
    assert message.sid not in stack.optout("events", "--json")
    assert record not in stack.opted_out()


@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/api/workers", "/api/tasks"])
def test_flower_asks_for_a_login_on_pages_and_api(stack: Stack, path: str) -> None:
    assert requests.get(stack.flower_url + path, timeout=10).status_code == 401
    assert (
        requests.get(stack.flower_url + path, auth=(stack.flower_login[0], "wrong"), timeout=10).status_code
        == 401
    )
    assert requests.get(stack.flower_url + path, auth=stack.flower_login, timeout=10).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthcheck"])
def test_flower_asks_for_none_elsewhere_which_is_why_it_stays_on_loopback(stack: Stack, path: str) -> None:
    assert requests.get(stack.flower_url + path, timeout=10).status_code == 200


def test_flower_looks_and_does_not_touch(stack: Stack) -> None:
    """Read-only: even with the login nobody can stop a worker or start a task."""
    for path in ("/api/worker/shutdown/celery@worker", "/api/task/async-apply/optout.sweep"):
        answer = requests.post(
            stack.flower_url + path, auth=stack.flower_login, json={"args": []}, timeout=10
        )
        assert answer.status_code == 403, path


@pytest.mark.browser
@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=WHY_SKIPPED)
def test_flower_shows_the_tasks_of_a_stop_behind_its_login(stack: Stack) -> None:
    [record] = stack.enrol(1)
    texted = stack.text(record)
    stack.expect_opted_out([record])
    with chromium() as browser:
        address = stack.flower_url.replace("http://", f"http://{':'.join(stack.flower_login)}@")
        browser.get(f"{address}/tasks?limit=200")
        wait_until(
            lambda: "optout.update_records" in browser.page_source, seconds=30, what="tasks are listed"
        )
        browser.get(f"{address}/tasks?limit=1000&search={texted.message.sid}")
        wait_until(lambda: texted.message.sid in browser.page_source, seconds=30, what="this STOP is listed")
        page = browser.page_source
    assert "optout.lookup_records" in page
    assert texted.message.from_ not in page
    assert texted.message.from_[2:] not in page


def test_a_worker_killed_during_a_burst_loses_nothing(stack: Stack) -> None:
    with stack.burst(150):
        stack.compose("kill", "--signal", "KILL", "worker")
        stack.compose("up", "--detach", "--wait", "worker")


def test_a_worker_that_dies_by_itself_is_started_again(stack: Stack) -> None:
    [before] = stack.containers("worker")
    subprocess.run(["kill", "-9", str(before["State"]["Pid"])], check=True)

    def back() -> bool:
        [now] = stack.containers("worker")
        return bool(
            now["State"]["Pid"] != before["State"]["Pid"] and now["State"]["Health"]["Status"] == "healthy"
        )

    wait_until(back, seconds=60, what="the engine starts it again")
    [record] = stack.enrol(1)
    stack.text(record)
    stack.expect_opted_out([record])


def test_redis_restarted_during_a_burst_loses_nothing(stack: Stack) -> None:
    with stack.burst(150):
        stack.compose("restart", "redis")


def test_workers_added_during_a_burst_lose_nothing(stack: Stack) -> None:
    with stack.burst(150):
        stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "worker=3", "worker")
        assert len(stack.containers("worker")) == 3
    with stack.burst(150):
        stack.compose("up", "--detach", "--wait", "--no-recreate", "--scale", "worker=1", "worker")
    assert len(stack.containers("worker")) == 1


def answers_as_scaled(stack: Stack) -> None:
    """Two web containers behind the proxy, two workers, and every webhook is answered."""
    assert (len(stack.containers("web")), len(stack.containers("worker"))) == (2, 2)
    for record in (records := stack.enrol(6)):
        assert [exchange.status for exchange in stack.text(record).attempts] == [200]
    stack.expect_opted_out(records)


def test_several_web_containers_share_one_port(stack: Stack) -> None:
    stack.run("make", "scale", "WORKERS=2", "WEB=2")
    answers_as_scaled(stack)
    addresses = {
        container["NetworkSettings"]["Networks"][f"{stack.project}_public"]["IPAddress"]
        for container in stack.containers("web")
    }
    assert len(addresses) == 2

    def all_are_used() -> bool:
        """The proxy takes one at random for each request."""
        requests.get(f"{stack.web_url}/healthz", timeout=10)
        log = stack.compose("logs", "--no-log-prefix", "proxy")
        return all(f'"upstream":"{address}:8000"' in log for address in addresses)

    wait_until(all_are_used, what="the proxy uses both containers")


@pytest.mark.parametrize("command", ["make up", "docker compose up --detach --wait", "make scale WORKERS=2"])
def test_what_is_scaled_stays_scaled(stack: Stack, command: str) -> None:
    stack.run(*command.split())
    answers_as_scaled(stack)


def test_an_upgrade_under_load_refuses_no_webhook_and_loses_none(stack: Stack) -> None:
    """Every webhook is answered 200 at the first attempt, while all containers but Redis are replaced."""
    services = ("web", "worker", "beat", "flower", "console")
    before = {container["Id"] for service in services for container in stack.containers(service)}
    stack.extra["OPTOUT_LOG_LEVEL"] = "DEBUG"  # a change that every service has to be replaced for
    upgrade = subprocess.Popen(
        ["make", "upgrade"], env=stack.env, cwd=stack.root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    records, attempts = [], []
    while upgrade.poll() is None:
        [record] = stack.enrol(1)
        attempts.append([exchange.status for exchange in stack.text(record).attempts])
        records.append(record)
    output = upgrade.communicate()[0]
    after = {container["Id"] for service in services for container in stack.containers(service)}
    assert upgrade.returncode == 0, output
    assert len(after) == len(before), output
    assert not before & after
    assert attempts == [[200]] * len(records)
    stack.expect_opted_out(records)
    answers_as_scaled(stack)


def silent(stack: Stack) -> list[str]:
    """The processes that are missing, as monitoring sees them."""
    lines = requests.get(f"{stack.web_url}/metrics", timeout=10).text.splitlines()
    return [line for line in lines if line.startswith("optout_silent_processes{")]


def test_scaling_and_upgrades_leave_no_process_missing(stack: Stack) -> None:
    """All that was replaced or removed has withdrawn its heartbeat."""
    stack.run("make", "scale", "WORKERS=1", "WEB=2")
    stack.run("make", "scale", "WORKERS=2", "WEB=2")
    time.sleep(ENDED_AFTER_MS / 1000 + 5)
    assert silent(stack) == []


def test_a_killed_worker_is_missing_until_another_takes_its_place(stack: Stack) -> None:
    killed, _ = stack.containers("worker")
    stack.run("docker", "kill", killed["Id"])
    wait_until(lambda: silent(stack), seconds=90, what="it is noticed")
    [line] = silent(stack)
    assert f'host="{killed["Config"]["Hostname"]}",kind="worker"' in line
    stack.run("docker", "rm", killed["Id"])
    stack.run("make", "up")
    assert len(stack.containers("worker")) == 2
    wait_until(lambda: not silent(stack), seconds=90, what="the new container takes its place")


def over_tls(
    stack: Stack, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
) -> int:
    """The status of a request to the public host, as the proxy's certificate names it, on this machine's port."""
    trust = ssl.create_default_context(cafile=str(stack.deployment / "tls" / "fullchain.pem"))
    with socket.create_connection(("127.0.0.1", stack.ports["OPTOUT_TLS"]), 10) as plain:
        connection = http.client.HTTPConnection(HOST, timeout=20)
        connection.sock = trust.wrap_socket(plain, server_hostname=HOST)
        connection.request(method, path, body or None, dict(headers))
        status = connection.getresponse().status
        connection.close()
    return status


def test_tls_ends_at_the_proxy_and_signatures_still_verify(stack: Stack) -> None:
    [record] = stack.enrol(1)
    number = fictional_phone(int(record))
    message, _ = stack.twilio.inbound(from_=number, service=SERVICE_SID)
    message.opt_out_type = "STOP"
    signed = form_request(f"{PUBLIC_URL}/twilio/inbound", inbound_parameters(message), AUTH_TOKEN)
    misleading = {
        "Host": "evil.example.net",
        "X-Forwarded-Host": "evil.example.net",
        "X-Forwarded-Proto": "http",
    }
    with stack.with_files(BASE, TLS):
        stack.compose("up", "--detach", "--wait", "--scale", "web=2")
        post = partial(over_tls, stack, "POST", "/twilio/inbound")
        assert post(signed.body, signed.headers) == 200
        assert post(signed.body, {**signed.headers, **misleading}) == 200
        assert post(signed.body.replace(b"STOP", b"START"), signed.headers) == 403
        assert over_tls(stack, "GET", f"/twilio/inbound?{urlencode({'From': number})}") == 405
        assert [over_tls(stack, "GET", path) for path in ("/healthz", "/readyz", "/metrics")] == [
            200,
            404,
            404,
        ]
        log = stack.compose("logs", "--no-log-prefix", "proxy")
    assert "/twilio/inbound" in log
    assert number[1:] not in log
    stack.expect_opted_out([record])


# For a container, whose address is not this machine's: requests whose bodies do not end. Tells how many are refused.
SENDS_SLOWLY = """
import socket, ssl, sys, time
trust = ssl.create_default_context()
trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
head = b"POST /twilio/inbound HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 60000\\r\\n\\r\\na"
sending, refused = [], 0
def send_a_byte_each():
    global refused
    for each in list(sending):
        try:
            each.send(b"b")
            answer = each.recv(100)
        except ssl.SSLWantReadError:
            continue
        except OSError:
            answer = b""
        sending.remove(each)
        refused += b" 503 " in answer
for number in range(300):
    each = trust.wrap_socket(socket.create_connection(("proxy", 8443), 30))
    each.send(head)
    each.setblocking(False)
    sending.append(each)
    if number % 20 == 0:
        send_a_byte_each()
for _ in range(30):
    send_a_byte_each()
    if refused >= 150:
        break
    time.sleep(1)
print(refused, flush=True)
sys.stdin.read()
"""


def test_slow_senders_at_the_tls_proxy_are_refused_and_keep_no_genuine_request_out(stack: Stack) -> None:
    """300 of one address, of which 128 may: nginx would wait for each as long as a byte comes now and then."""
    [record] = stack.enrol(1)
    message, _ = stack.twilio.inbound(from_=fictional_phone(int(record)), service=SERVICE_SID)
    message.opt_out_type = "STOP"
    signed = form_request(f"{PUBLIC_URL}/twilio/inbound", inbound_parameters(message), AUTH_TOKEN)
    with stack.with_files(BASE, TLS):
        stack.compose("up", "--detach", "--wait", "--scale", "web=2")
        slow = subprocess.Popen(
            ["docker", "compose", "run", "--rm", "--no-deps", "-T", "simulators", "python", "-c", SENDS_SLOWLY],
            env=stack.env, cwd=stack.root, text=True, stdout=subprocess.PIPE, stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert slow.stdout
            assert int(slow.stdout.readline()) >= 150
            answers = [
                over_tls(stack, "POST", "/twilio/inbound", signed.body, signed.headers) for _ in range(5)
            ]
        finally:
            slow.communicate()  # closes its input, which ends it
    assert answers == [200] * 5
    stack.expect_opted_out([record])


def test_a_backup_brings_back_what_was_lost(stack: Stack) -> None:
    """The drill of docs/how-to/back-up-and-restore.md: back up, lose everything, restore, and go on."""
    stack.compose("up", "--detach", "--wait", "--remove-orphans")
    wait_until(lambda: stack.unfinished() == 0, seconds=150, what="all events have ended")
    known = stack.events()
    backups = stack.folder / "backups"
    path = stack.run("make", "--no-print-directory", "backup", f"TO={backups}").stdout.strip()
    assert Path(path).stat().st_mode & 0o077 == 0
    stack.compose("stop", "web", "worker", "beat", "flower", "redis")
    stack.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "redis", "-c", "rm -r /data/appendonlydir"
    )
    stack.compose("up", "--detach", "--wait")
    assert not stack.events()
    stack.run("make", "restore", f"FILE={path}")
    assert stack.events() == known
    answers_as_scaled(stack)


def test_what_is_no_backup_is_not_restored(stack: Stack) -> None:
    wrong = stack.folder / "wrong.rdb.gz"
    wrong.write_bytes(gzip.compress(b"no snapshot"))
    done = stack.run("make", "restore", f"FILE={wrong}", check=False)
    assert done.returncode != 0
    assert "no snapshot of Redis" in done.stderr
    assert stack.containers("redis")[0]["State"]["Health"]["Status"] == "healthy"


def test_all_events_have_ended_and_no_container_was_killed_for_memory(stack: Stack) -> None:
    wait_until(lambda: stack.unfinished() == 0, seconds=150, what="all events have ended")
    assert [s for s in PLATFORM for each in stack.containers(s) if each["State"]["OOMKilled"]] == []


def test_logs_and_redis_hold_no_phone_number(stack: Stack) -> None:
    logs = stack.compose("logs", "--no-log-prefix", *PLATFORM)
    dump = stack.compose("exec", "-T", "redis", "sh", "-c", "cat /data/appendonlydir/*")
    assert f"{PREFIX}:" in dump
    numbers = [fictional_phone(record)[1:] for record in range(1000, stack.next_record)]
    assert [number for number in numbers if number in logs or number in dump] == []


def test_everything_stops_by_itself_and_comes_down_clean(stack: Stack) -> None:
    """SIGTERM is enough: each process ends with 0 within its grace period."""
    stack.compose("stop")
    ids = stack.compose("ps", "--all", "--quiet").split()
    ended = json.loads(stack.run("docker", "inspect", *ids).stdout)
    assert {each["Name"]: each["State"]["ExitCode"] for each in ended if each["State"]["ExitCode"]} == {}
    stack.run("make", "down")
    stack.compose("--profile", "*", "down", "--volumes")
    label = f"label=com.docker.compose.project={stack.project}"
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        assert stack.run("docker", *kind, "--quiet", "--filter", label).stdout == "", kind
