"""A Redis user with exactly the documented rights carries the whole pipeline; one with less is reported at start."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import requests

from shared.redis_rights import broker_calls, ledger_calls
from tests.integration.world import STUDIES, World, configuration, sender_of, service_sid
from tests.processes import ROOT, Platform, wait_until
from tests.simulators.redcap import RedcapSimulator
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import AUTH_TOKEN, Account, TwilioSimulator

PAGE = (ROOT / "docs" / "how-to" / "restrict-redis.md").read_text()
DOCUMENTED = {
    name: rules.split() for name, rules in re.findall(r"^user (\w+) on >PASSWORD (.*)$", PAGE, re.MULTILINE)
}


def set_user(platform: Platform, name: str, *rules: str) -> str:
    """Give a user these rights. Returns its address."""
    redis: Any = platform.redis
    redis.execute_command("ACL", "SETUSER", name, "reset", "on", ">S3cret", *rules)
    return f"redis://{name}:S3cret@127.0.0.1:{platform.redis_port}/0"


def use(platform: Platform, **addresses: str) -> None:
    """All processes but Redis start with these addresses from now on."""
    platform.env.update(addresses)
    for name, process in platform.processes.items():
        if name != "redis":
            platform.processes[name] = platform._process(name, process.command)


@pytest.fixture(scope="module", params=["one_user", "two_users"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    twilio = TwilioSimulator([Account()])
    with redcap.serve(), SmtpSimulator().serve() as smtp, twilio.serve() as api:
        secrets = {f"{name.upper()}_TOKEN": token for name, (token, *_) in STUDIES.items()} | {
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "OPTOUT_HASH_KEY": "an-integration-hash-key-of-length",
            "OPTOUT_SMTP_URL": smtp.url,
            "OPTOUT_TWILIO_API_URL": api.url,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        with Platform(tmp_path_factory.mktemp("platform"), configuration(redcap.url), secrets) as platform:
            platform.start("redis")
            if request.param == "one_user":
                use(platform, OPTOUT_REDIS_URL=set_user(platform, "optout", *DOCUMENTED["optout"]))
            else:
                use(
                    platform,
                    OPTOUT_REDIS_URL=set_user(platform, "ledger", *DOCUMENTED["ledger"]),
                    OPTOUT_BROKER_URL=set_user(platform, "broker", *DOCUMENTED["broker"]),
                )
            platform.start("web", "worker", "beat", "flower")
            twilio.deliver_to(platform.web_url)
            for number in {service for _, service, _, _ in STUDIES.values()}:
                twilio.add_service(sid=service_sid(number), senders=[sender_of(number)])
            yield World(platform, redcap, smtp, twilio)


def logged(platform: Platform, name: str, event: str) -> bool:
    return event in platform[name].text()


def commands_used(world: World) -> set[str]:
    """Every command that a process has called, but for those of the connection and of this test."""
    stats: Any = world.platform.redis.info("commandstats")
    own = (
        "acl",
        "auth",
        "client",
        "hello",
        "select",
        "multi",
        "exec",
        "info",
        "config",
        "discard",
        "watch",
        "unwatch",
    )
    return {name for name in (key.removeprefix("cmdstat_") for key in stats) if not name.startswith(own)}


def commands_tested() -> set[str]:
    calls = [*ledger_calls(), *broker_calls(0)]
    return {"|".join(call[:2] if call[0] == "SCRIPT" else call[:1]).lower() for call in calls}


def refusals(world: World) -> list[Any]:
    """What Redis refused since its start, but for users of a test's own."""
    redis: Any = world.platform.redis
    log: list[Any] = redis.execute_command("ACL", "LOG")
    return [(entry["username"], entry["reason"], entry["object"]) for entry in log]


def test_the_documented_rights_are_enough(world: World) -> None:
    participant = world.enrol()
    for body, state in (("STOP", "updated"), ("START", "updated"), ("STOP", "updated")):
        assert world.ended(world.text(participant.phone, body)).state == state
    report = json.loads(world.platform.run("check", "--json", check=False).stdout)
    assert {
        each["id"] for each in report["findings"] if each["subject"] in ("redis", "broker", "worker")
    } <= {"redis-fsync-late"}
    for command in (
        ["events"], ["status", participant.phone], ["top", "--once"], ["replay", "--failed"],
        ["reconcile", "--project", "asthma"], ["review"],
        ["record", "asthma", participant.record, "start", "--reason", "by phone", "--yes"],
        ["record", "asthma", participant.record, "stop", "--reason", "by phone"],
        ["forget", participant.phone, "--yes"],
    ):  # fmt: skip
        ended = world.platform.run(*command, check=False)
        assert "lacks a right" not in ended.stderr, command
    for path in ("/workers", "/broker", "/api/queues/length", "/api/workers?refresh=1"):
        assert requests.get(world.platform.flower_url + path, timeout=20).ok
    assert requests.get(f"{world.platform.web_url}/metrics", timeout=5).ok
    assert refusals(world) == []
    assert commands_used(world) - commands_tested() == set(), "shared/redis_rights.py does not test them"


def test_a_missing_right_is_logged_at_start_and_the_worker_ends(world: World) -> None:
    platform = world.platform
    redis: Any = platform.redis
    platform["web"].stop()
    platform["worker"].stop()
    for name in ("optout", "ledger", "broker"):
        redis.execute_command("ACL", "SETUSER", name, "resetchannels", "-hincrby", "-brpop")
    platform["web"].start()
    platform["worker"].start()
    wait_until(lambda: not platform["worker"].running, what="the worker ends")
    for name in ("web", "worker"):
        wait_until(partial(logged, platform, name, "redis_rights_missing"), what=f"{name} logs it")
        assert "+hincrby" in platform[name].text()
        assert "S3cret" not in platform[name].text()
    assert "&/0.celery.pidbox" in platform["worker"].text()
    assert "Traceback" not in platform["worker"].text()
