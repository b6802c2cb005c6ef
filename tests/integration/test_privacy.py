"""No phone number, message, name or token is kept, logged, shown or mailed; and the search for them finds."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from shared.messaging.tasks import TaskName
from tests.integration.privacy import Needles, console_texts, flower_texts, log_texts, redis_texts, scan
from tests.integration.world import HASH_KEY, STUDIES, World
from tests.processes import wait_until
from tests.simulators.twilio import AUTH_TOKEN

STRANGE = (
    "Hi, this is Maria Fictional, my number is (415) 555-7777, please call",
    "stop texting me at once!!",
    "STOP",
    "My new e-mail is maria.fictional@example.org",
)
STYLES = ("({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "{}{}{}", "+1 {} {} {}")


ONLY_STOPPED = 8


@pytest.fixture(scope="module")
def story(world: World) -> World:
    """Many numbers, words, failures and outages, so that every path has been gone."""
    people = [world.enrol(style=STYLES[n % len(STYLES)]) for n in range(12)]
    texted = [world.text(person.phone, STRANGE[n % len(STRANGE)]) for n, person in enumerate(people)]
    stops = [world.text(person.phone, via="both") for person in people]
    stops.append(world.text(world.new_phone()[-1]))  # no record holds it
    world.study().lock_record(people[0].record)
    starts = [world.text(person.phone, "START") for person in people[:-ONLY_STOPPED]]
    forged = replace(texted[0].request, body=texted[0].request.body + b"x")
    assert world.twilio.send(forged).status == 403
    for path in ("/twilio/inbound", "/twilio/events"):
        broken = replace(texted[0].request, url=f"https://optout.example.edu{path}", body=b"\xff\xfe%zz")
        assert world.twilio.send(broken).status in {400, 403}
    for stop in stops + starts:
        world.ended(stop, seconds=60)
    world.study().locked_records.clear()
    world.redcap.faults.add("http_503", times=2)
    world.redcap.faults.add("reset", times=1)
    world.ended(world.text(world.enrol().phone), seconds=60)
    world.redcap.faults.clear()
    world.platform.run("status", people[0].phone)
    return world


def needles(world: World) -> Needles:
    """Everything personal or secret that this session has used."""
    return Needles.of(
        phones=[*(person.phone for person in world.participants), "+14155557777",
                *(message.participant for message in world.twilio.messages())],
        texts={
            "body": {body for body in world.bodies if " " in body},
            "name": {person.name for person in world.participants} | {"Maria Fictional"},
            "token": {AUTH_TOKEN, HASH_KEY, *(token for token, *_ in STUDIES.values())},
        },
    )  # fmt: skip


def mail_texts(world: World) -> dict[str, str]:
    return {f"mail {number}": mail.message.as_string() + mail.text + mail.html
            for number, mail in enumerate(world.smtp.inbox)}  # fmt: skip


def test_nothing_personal_is_kept_logged_shown_or_mailed(story: World) -> None:
    found = scan(story.platform, needles(story), more=mail_texts(story))
    assert found == []


def test_the_search_looked_where_something_could_have_been(story: World) -> None:
    platform = story.platform
    assert sum(place.startswith("redis optout:event:") for place, _ in redis_texts(platform.redis)) > 20
    levels = {json.loads(line).get("level") for _, line in log_texts(platform) if line.startswith("{")}
    assert {"debug", "info", "warning"} <= levels
    console = [place for place, _ in console_texts(platform)]
    assert (
        sum(re.fullmatch(r"console /studies/\w+/events/SM\w+", place) is not None for place in console) > 10
    )
    assert {"console /platform", "console /checks", "console /studies/asthma/events.csv"} <= set(console)
    pages = dict(flower_texts(platform.flower_url))
    assert sum(place.startswith("flower task") for place in pages) > 10
    assert all(
        task.value in pages["flower /api/tasks?limit=10000"] for task in (TaskName.LOOKUP, TaskName.EMAIL)
    )
    # At least one for each participant who only stopped; how many STOPs a START supersedes depends on the load.
    wait_until(lambda: len(mail_texts(story)) >= ONLY_STOPPED, what="the mails of those who only stopped")


class TestTheSearchItself:
    """It can fail: each thing that is planted is found."""

    PHONE = "+14155550123"
    TOKEN = "0123456789ABCDEF0123456789ABCDEF"

    def find(self, text: str) -> list[str]:
        wanted = Needles.of(phones=[self.PHONE], texts={"token": [self.TOKEN], "name": ["Pat Example"]})
        return [finding.kind for finding in wanted.found_in("here", text)]

    @pytest.mark.parametrize(
        "text",
        ["+14155550123", "from 4155550123.", "(415) 555-0123", "415-555-0123", "call 415.555.0123 now",
         "555-0123", '{"from": "+14155550123"}', "From=%2B14155550123&To=", "1 415 555 0123", "415–555–0123",
         base64.b64encode(b'[["asthma", "+14155550123"], {}]').decode()],
    )  # fmt: skip
    def test_a_number_is_found_in_any_spelling(self, text: str) -> None:
        assert "phone number" in self.find(text)

    @pytest.mark.parametrize(
        "text",
        ["SM5550123abcdef0123456789abcdef0123", "1777890030456", "2026-05-04T12:00:00.5550123Z", "x5550123"],
    )
    def test_what_only_contains_the_digits_is_no_number(self, text: str) -> None:
        assert self.find(text) == []

    @pytest.mark.parametrize(
        "text", [f"token={'0123456789ABCDEF' * 2}&x", "name=Pat+Example", "Dear Pat Example,"]
    )
    def test_a_text_is_found_also_in_an_address(self, text: str) -> None:
        assert self.find(text) != []

    @pytest.fixture
    def planted(self, world: World) -> Iterator[str]:
        """One number among all that the platform keeps."""
        key = "optout:planted"
        yield key
        world.platform.redis.delete(key)

    @pytest.mark.parametrize("kind", ["string", "hash", "list", "set", "zset"])
    def test_one_number_planted_in_redis_is_found(self, world: World, planted: str, kind: str) -> None:
        redis = world.platform.redis
        plant: dict[str, Callable[[], object]] = {
            "string": lambda: redis.set(planted, "(415) 555-0123"),
            "hash": lambda: redis.hset(planted, "415-555-0123", "x"),
            "list": lambda: redis.rpush(planted, '{"args": ["+14155550123"]}'),
            "set": lambda: redis.sadd(planted, "+14155550123"),
            "zset": lambda: redis.zadd(planted, {"+14155550123": 1}),
        }
        plant[kind]()
        wanted = Needles.of(phones=[self.PHONE], texts={})
        found = [finding for place, text in redis_texts(redis) for finding in wanted.found_in(place, text)]
        assert [finding.place for finding in found] == [f"redis {planted}"]

    def test_one_number_in_a_task_s_arguments_is_found_in_flower(self, world: World) -> None:
        """An event id that is none ends at once; to Flower and the worker it is an argument like others."""
        world.publish(TaskName.LOOKUP, "asthma", self.PHONE)
        wanted = Needles.of(phones=[self.PHONE], texts={})

        def found() -> bool:
            pages = flower_texts(world.platform.flower_url)
            return any(True for place, text in pages for _ in wanted.found_in(place, text))

        wait_until(found, seconds=30, what="the number is found in Flower")
