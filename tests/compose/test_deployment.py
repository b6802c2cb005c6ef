"""The deployment as an operator lives with it, in this order: first STOP, faults, scaling, upgrade, backup, end."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import requests

from shared.keys import PREFIX
from tests.compose.browser import chromium
from tests.compose.stack import BASE, PLATFORM, SCALE, TLS, Stack
from tests.processes import wait_until
from tests.simulators.twilio import PUBLIC_URL

pytestmark = pytest.mark.timeout(900)

PROXIED = (BASE, SCALE)


def test_the_demo_plays_its_story_to_the_end(stack: Stack) -> None:
    def told() -> str:
        return stack.compose("logs", "--no-log-prefix", "simulators")

    wait_until(lambda: "whole story" in told() or "✗" in told(), seconds=120, what="the story ends")
    assert "The whole story went as it should" in told()
    assert "✗" not in told()


def test_a_signed_stop_at_the_published_port_reaches_redcap(stack: Stack) -> None:
    [record] = stack.enrol(1)
    assert stack.text(record).status == 200
    stack.expect_opted_out([record])
    assert stack.text(record, "START").status == 200
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
    assert requests.get(stack.flower_url + path, auth=("demo", "wrong"), timeout=10).status_code == 401
    assert requests.get(stack.flower_url + path, auth=("demo", "demo"), timeout=10).status_code == 200


def test_flower_looks_and_does_not_touch(stack: Stack) -> None:
    """Read-only: even with the login nobody can stop a worker or start a task."""
    for path in ("/api/worker/shutdown/celery@worker", "/api/task/async-apply/optout.sweep"):
        answer = requests.post(stack.flower_url + path, auth=("demo", "demo"), json={"args": []}, timeout=10)
        assert answer.status_code == 403, path


@pytest.mark.browser
def test_flower_shows_the_tasks_of_a_stop_behind_its_login(stack: Stack, tmp_path: Path) -> None:
    [record] = stack.enrol(1)
    texted = stack.text(record)
    stack.expect_opted_out([record])
    with chromium(tmp_path) as browser:
        address = stack.flower_url.replace("http://", "http://demo:demo@")
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


def test_several_web_containers_share_one_port(stack: Stack) -> None:
    stack.run("make", "scale", "WORKERS=2", "WEB=2")
    with stack.with_files(*PROXIED):
        for record in (records := stack.enrol(12)):
            assert stack.text(record).status == 200
        stack.expect_opted_out(records)
        log = stack.compose("logs", "--no-log-prefix", "proxy")
    addresses = {
        container["NetworkSettings"]["Networks"][f"{stack.project}_public"]["IPAddress"]
        for container in stack.containers("web")
    }
    assert len(addresses) == 2
    assert all(f'"upstream":"{address}:8000"' in log for address in addresses)


def test_an_upgrade_under_load_refuses_no_webhook_and_loses_none(stack: Stack) -> None:
    """Every webhook is answered 200 at the first attempt, while all containers but Redis are replaced."""
    services = ("web", "worker", "beat", "flower")
    with stack.with_files(*PROXIED):
        before = {container["Id"] for service in services for container in stack.containers(service)}
        stack.extra["OPTOUT_LOG_LEVEL"] = "DEBUG"  # a change that every service has to be replaced for
        upgrade = subprocess.Popen(
            ["make", "upgrade"], env=stack.env, cwd=stack.folder.parent and Path.cwd(), text=True,
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
        assert len(after) == len(before)
        assert not before & after
        assert attempts == [[200]] * len(records)
        stack.expect_opted_out(records)


def test_tls_ends_at_the_proxy_and_signatures_still_verify(stack: Stack) -> None:
    certificate = str(stack.deployment / "tls" / "fullchain.pem")
    host, port = PUBLIC_URL.removeprefix("https://"), stack.ports["OPTOUT_TLS"]
    with stack.with_files(BASE, TLS):
        stack.compose("up", "--detach", "--wait", "--scale", "web=2")
        [record] = stack.enrol(1)
        signed = stack.twilio.text(
            from_=f"+1650555{int(record):04d}", service=None, advanced_opt_out=True, deliver=False
        )
        hook = stack.twilio.hook_for(signed.message)
        assert hook is not None
        # curl, as it takes the address of a name by option: Twilio's view of the public URL.
        stack.twilio.deliver_to("http://127.0.0.1:9")
        request = stack.twilio.call_webhook(signed.message, hook).attempts[0].request
        stack.twilio.deliver_to(stack.web_url)
        assert request.url == f"{PUBLIC_URL}/twilio/inbound"
        curl = [
            "curl", "--silent", "--show-error", "--cacert", certificate, "--resolve", f"{host}:{port}:127.0.0.1",
            "--write-out", "\n%{http_code}", "--max-time", "20",
        ]  # fmt: skip
        headers = [
            part for name, value in request.headers.items() for part in ("--header", f"{name}: {value}")
        ]
        answer = stack.run(
            *curl, *headers, "--data-binary", request.body.decode(), f"https://{host}:{port}/twilio/inbound"
        )
        forged = stack.run(
            *curl, *headers, "--header", "X-Forwarded-Host: evil.example.net", "--header", "Host: evil.example.net",
            "--data-binary", request.body.decode() + "&x=1", f"https://{host}:{port}/twilio/inbound",
        )  # fmt: skip
        figures = stack.run(*curl, f"https://{host}:{port}/metrics")
        log = stack.compose("logs", "--no-log-prefix", "proxy")
    assert answer.stdout.endswith("200")
    assert forged.stdout.endswith("403")
    assert figures.stdout.endswith("404")
    assert "2026" not in log.replace('"time"', "") or f"1650555{int(record):04d}" not in log
    stack.expect_opted_out([record])


def test_a_backup_brings_back_what_was_lost(stack: Stack) -> None:
    """The drill of docs/operations.md: back up, lose everything, restore, and go on."""
    stack.compose("--profile", "demo", "up", "--detach", "--wait", "--remove-orphans")
    wait_until(lambda: stack.unfinished() == 0, seconds=150, what="all events have ended")
    known = stack.optout("events", "--json")
    backups = stack.folder / "backups"
    path = stack.run("make", "--no-print-directory", "backup", f"TO={backups}").stdout.strip()
    assert Path(path).stat().st_mode & 0o077 == 0
    stack.compose("stop", "web", "worker", "beat", "flower", "redis")
    stack.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "sh", "redis", "-c", "rm -r /data/appendonlydir"
    )
    stack.compose("up", "--detach", "--wait")
    assert stack.optout("events", "--json") != known
    stack.run("make", "restore", f"FILE={path}")
    assert stack.optout("events", "--json") == known
    [record] = stack.enrol(1)
    assert stack.text(record).status == 200
    stack.expect_opted_out([record])


def test_what_is_no_backup_is_not_restored(stack: Stack) -> None:
    wrong = stack.folder / "wrong.rdb.gz"
    subprocess.run(["gzip", "--stdout"], input=b"no snapshot", stdout=wrong.open("wb"), check=True)
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
    for number in (f"1650555{record:04d}" for record in range(1000, stack.next_record)):
        assert number not in logs
        assert number not in dump


def test_everything_stops_by_itself_and_comes_down_clean(stack: Stack) -> None:
    began = time.monotonic()
    stack.compose("--profile", "demo", "stop")
    took = time.monotonic() - began
    ids = stack.compose("--profile", "demo", "ps", "--all", "--quiet").split()
    codes = stack.run("docker", "inspect", "--format", "{{.Name}} {{.State.ExitCode}}", *ids).stdout.split()
    stack.run("make", "down")
    stack.compose("--profile", "*", "down", "--volumes")
    label = f"label=com.docker.compose.project={stack.project}"
    left = [
        stack.run("docker", kind, "ls", "--quiet", "--filter", label).stdout for kind in ("network", "volume")
    ]
    assert set(codes[1::2]) == {"0"}, (codes, took)
    assert left == ["", ""]
    assert stack.run("docker", "ps", "--all", "--quiet", "--filter", label).stdout == ""
