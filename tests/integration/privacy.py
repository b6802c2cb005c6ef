"""A search for what must be nowhere (promise P5): in Redis, logs, Flower, metrics, mails and command output.

    needles = Needles.of(phones=["+14155550001"], texts={"body": ["STOP it"], "token": [TOKEN]})
    findings = scan(platform, needles, more={"mail 1": mail.text})

Reusable by the demo and by acceptance tests: it needs a platform, and nothing of a test.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_plus

import requests

from tests.processes import CONSOLE_LOGIN, Platform

# Shorter texts than this would be found in anything.
SHORTEST = 6
# What people and programs put between the parts of a North American number; JSON and addresses escape some of it.
_GAP = r"(?:[\s().\-–/+]|%20|%28|%29|%2B|\\u00a0|\\u2013){0,3}"
# Country and area may be missing. Letters and digits around it would make it part of a hash or a time.
_NUMBER = re.compile(
    rf"(?<![0-9A-Za-z])(?:(?:%2B|\+)?\d{{0,3}}{_GAP}(\d{{3}}){_GAP})?(\d{{3}}){_GAP}(\d{{4}})(?![0-9A-Za-z])"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be there."""

    place: str
    kind: str
    around: str


@dataclass(frozen=True, slots=True)
class Needles:
    """What is looked for: numbers in any spelling, also without their area code, and texts as they are."""

    phones: frozenset[str]  # ten digits each
    texts: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, *, phones: Iterable[str], texts: Mapping[str, Iterable[str]]) -> Needles:
        """From E.164 numbers of North America, and texts by their kind (too short ones are left out)."""
        return cls(
            frozenset(phone[-10:] for phone in phones),
            {kind: frozenset(text for text in some if len(text) >= SHORTEST) for kind, some in texts.items()},
        )

    def found_in(self, place: str, text: str) -> Iterator[Finding]:
        """Every needle in a text, also in what stands there in base64, as in Celery's messages."""
        for form in (text, *_decoded(text)):
            yield from self._numbers(place, form)
            yield from self._texts(place, form)

    def _numbers(self, place: str, text: str) -> Iterator[Finding]:
        for match in _NUMBER.finditer(text):
            area, exchange, line = match.groups()
            local = exchange + line
            if any(phone == area + local if area else phone[3:] == local for phone in self.phones):
                yield Finding(place, "phone number", _around(text, match.start()))

    def _texts(self, place: str, text: str) -> Iterator[Finding]:
        for kind, needles in self.texts.items():
            for form in {form for needle in needles for form in (needle, quote(needle), quote_plus(needle))}:
                at = text.find(form)
                if at >= 0:
                    yield Finding(place, kind, _around(text, at))


def _around(text: str, at: int) -> str:
    return text[max(0, at - 40) : at + 60]


def _decoded(text: str) -> Iterator[str]:
    for match in _BASE64.finditer(text):
        packed = match.group()
        try:
            yield base64.b64decode(packed + "=" * (-len(packed) % 4), altchars=b"-_").decode()
        except ValueError:
            continue


def redis_texts(redis: Any) -> Iterator[tuple[str, str]]:
    """Everything in Redis: each key's name with all that it holds, of whatever type, also queued messages."""
    for key in redis.scan_iter(count=1000):
        yield f"redis {key}", f"{key} {_content(redis, key)}"


def _content(redis: Any, key: str) -> Any:
    match redis.type(key):
        case "string":
            return redis.get(key)
        case "hash":
            return redis.hgetall(key)
        case "list":
            return redis.lrange(key, 0, -1)
        case "set":
            return redis.smembers(key)
        case "zset":
            return redis.zrange(key, 0, -1, withscores=False)
        case "stream":
            return redis.xrange(key)
        case "none":  # taken or expired since it was listed
            return ""
        case other:
            raise AssertionError(f"{key} has type {other}, which this scan cannot read")


def flower_texts(url: str) -> Iterator[tuple[str, str]]:
    """Flower's pages and what its API tells of every task."""
    for path in ("/workers", "/tasks", "/broker", "/api/workers", "/api/tasks?limit=10000", "/metrics"):
        yield f"flower {path}", _page(url + path)
    for uuid in requests.get(f"{url}/api/tasks?limit=10000", timeout=20).json():
        yield f"flower task {uuid}", _page(f"{url}/task/{uuid}")


def _page(url: str) -> str:
    answer = requests.get(url, timeout=20)
    answer.raise_for_status()
    return answer.text


def console_texts(platform: Platform) -> Iterator[tuple[str, str]]:
    """Every page of the console that a link leads to, the audit trails included."""
    seen, waiting = {"/"}, ["/"]
    with requests.Session() as session:
        session.auth = CONSOLE_LOGIN
        while waiting:
            path = waiting.pop()
            page = session.get(platform.console_url + path, timeout=20)
            page.raise_for_status()
            yield f"console {path}", page.text
            found = [html.unescape(link) for link in re.findall(r'href="(/[^"]*)"', page.text)]
            waiting += (new := [link for link in dict.fromkeys(found) if link not in seen])
            seen.update(new)


def log_texts(platform: Platform) -> Iterator[tuple[str, str]]:
    """Every process's log, line by line; Redis' own does not repeat data."""
    for name, process in platform.processes.items():
        for number, line in enumerate(process.text().splitlines(), 1):
            yield f"{name}.log line {number}", line


def web_texts(platform: Platform) -> Iterator[tuple[str, str]]:
    """What the ingress tells of itself."""
    for path in ("/metrics", "/readyz", "/healthz"):
        yield f"web {path}", requests.get(platform.web_url + path, timeout=20).text


def command_texts(platform: Platform) -> Iterator[tuple[str, str]]:
    """What the command line shows of events."""
    for args in (("events",), ("events", "--json")):
        result = platform.run(*args)
        yield f"optout {' '.join(args)}", result.stdout + result.stderr


def scan(platform: Platform, needles: Needles, *, more: Mapping[str, str] | None = None) -> list[Finding]:
    """Search everything that the platform keeps, writes and shows, and `more` texts by their place."""
    texts = [
        *redis_texts(platform.redis),
        *log_texts(platform),
        *web_texts(platform),
        *command_texts(platform),
        *((more or {}).items()),
    ]
    if platform["console"].running:
        texts += console_texts(platform)
    if platform["flower"].running:
        texts += flower_texts(platform.flower_url)
    return [finding for place, text in texts for finding in needles.found_in(place, text)]
