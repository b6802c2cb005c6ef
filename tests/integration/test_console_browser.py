"""The console in a real browser: each page empty, with data and with problems; wide, on a phone, and in the dark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import requests
from axe_core_python.selenium import Axe
from redis import Redis
from redis.exceptions import NoPermissionError
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from shared.domain.events import Change, OptOutEvent, Source, State, milliseconds
from shared.ledger import EventOutcome, Ledger, keys
from shared.ledger.platform.loaded_configurations import publish
from shared.ledger.projects.check_results import CheckResult, StoredFinding, store_result
from shared.ledger.projects.nights import NIGHTS_KEPT, Night, NightOutcome, Nights
from tests.browser import CHROMIUM, DRIVER, WHY_SKIPPED, chromium, page_text, wait_for_text
from tests.builders import opt_out_event
from tests.integration.privacy import Needles
from tests.integration.world import configuration
from tests.processes import CONSOLE_LOGIN, CONSOLE_PASSWORD, Platform, wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=WHY_SKIPPED),
]

PAGES = ("/", "/studies/asthma", "/studies/asthma/events", "/checks", "/platform")
PHONES = [f"+165055501{number:02d}" for number in range(60)]
WIDTHS = {"desk": 1280, "phone": 375}
# What axe checks that depends on colours: all else is the same in the dark.
COLOUR_RULES = ["color-contrast", "link-in-text-block"]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """The store and the console, which logs in to it as a user that can only read."""
    secrets = {"OPTOUT_HASH_KEY": "not-for-the-console", "TWILIO_AUTH_TOKEN": "not-for-the-console"}
    with Platform(
        tmp_path_factory.mktemp("console"), configuration("http://127.0.0.1:9/api/"), secrets
    ) as made:
        made.start("redis", "console")
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as made:
        yield made


class Story:
    """What the ledger holds."""

    def __init__(self, platform: Platform) -> None:
        self.redis: Any = platform.redis
        self.redis.flushdb()
        self.ledger = Ledger(self.redis)
        self.now = datetime.now(UTC)

    def event(self, number: int, state: State | None, ago: timedelta, **more: Any) -> OptOutEvent:
        reason = more.pop("reason", "")
        event = opt_out_event(PHONES[number], when=self.now - ago, **more)
        self.ledger.accept([event], now=event.occurred_at)
        if state is not None:
            outcome = EventOutcome(
                event_id=event.event_id, phone_hash=event.phone_hash, state=state, reason=reason,
                records=[str(number)],
            )  # fmt: skip
            self.ledger.complete_events("asthma", [outcome], now=event.occurred_at + timedelta(seconds=3))
        return event

    def with_data(self) -> OptOutEvent:
        """A study with a history, and nothing to do."""
        for kind in ("web", "worker", "beat"):
            publish(self.redis, f"{kind}|host|1", "0", now_ms=milliseconds(self.now))
            publish(
                self.redis, f"{kind}|gone|1", "0", now_ms=0
            )  # killed: others forget it, the console may not
        for number in range(40):
            last = self.event(number, State.UPDATED, timedelta(days=4 * number, hours=2))
        self.event(0, State.UPDATED, timedelta(hours=1), change=Change.START, source=Source.EVENT_STREAM)
        for number in range(NIGHTS_KEPT):
            day = self.now.date() - timedelta(days=number)
            Nights(self.redis).record("asthma", day, Night(outcome=NightOutcome.PROVED, ended_at=self.now))
        self.redis.hset(keys.reconciled("asthma"), "success_ms", milliseconds(self.now - timedelta(hours=5)))
        self.redis.hset(keys.written("asthma"), mapping={str(number): "0||x" for number in range(39)})
        store_result(self.redis, CheckResult(scope="asthma", checked_at=self.now))
        return last

    def with_problems(self) -> OptOutEvent:
        """A study about which everything is wrong, with long words."""
        self.with_data()
        failed = self.event(50, State.FAILED, timedelta(hours=3), reason="record 50: " + "unbroken" * 12)
        self.event(
            51, State.NEEDS_REVIEW, timedelta(hours=2), change=Change.UNCLEAR, reason="may be an opt-out"
        )
        self.event(52, None, timedelta(hours=5))
        problem = {
            "problem": "redcap_forbidden",
            "detail": "status 403: " + "long" * 20,
            "events_kept": False,
        }
        self.redis.hset(keys.PROBLEMS, "asthma", json.dumps(problem))
        outcomes = list(NightOutcome)
        for number in range(30):
            night = Night(outcome=outcomes[number % 4], ended_at=self.now, hidden=("messages are missing",))
            self.redis.hdel(keys.nights("asthma"), str(self.now.date() - timedelta(days=number)))
            if number % 5:
                Nights(self.redis).record("asthma", self.now.date() - timedelta(days=number), night)
        findings = tuple(
            StoredFinding(
                id="redcap-token-refused", severity=severity, subject="asthma", title="REDCap refuses the token",
                observed="status 403 " + "x" * 80, fix="Give the user API rights.", docs="docs/reference/checks.md#x",
            )
            for severity in ("error", "warning", "note")
        )  # fmt: skip
        store_result(self.redis, CheckResult(scope="asthma", checked_at=self.now, findings=findings))
        self.redis.set(keys.MAIL_REJECTION, "535 5.7.8 authentication failed")
        return failed


SCENES: dict[str, Callable[[Story], OptOutEvent | None]] = {
    "empty": lambda story: None,
    "data": Story.with_data,
    "problems": Story.with_problems,
}


def look(browser: Chrome, width: int, scheme: str) -> None:
    """Another window's width, and light or dark."""
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def visit(browser: Chrome, platform: Platform, path: str) -> str:
    """Open a page. Returns its text."""
    login = ":".join(CONSOLE_LOGIN)
    browser.get(platform.console_url.replace("//", f"//{login}@") + path)
    return page_text(browser)


@pytest.mark.parametrize("scene", SCENES)
def test_every_page_is_readable_and_accessible_in_every_look(
    platform: Platform, browser: Chrome, scene: str, tmp_path: Path
) -> None:
    event = SCENES[scene](Story(platform))
    paths = [*PAGES, *([f"/studies/asthma/events/{event.event_id}"] if event else [])]
    problems: list[str] = []
    for path, (name, width) in product(paths, WIDTHS.items()):
        look(browser, width, "light")
        visit(browser, platform, path)
        found = [*too_wide(browser, width), *violations(browser)]
        look(browser, width, "dark")
        found += [f"dark: {each}" for each in violations(browser, COLOUR_RULES)]
        if found:
            browser.save_screenshot(str(tmp_path / f"{scene} {name} {path.replace('/', '_')}.png"))
        problems += [f"{name} {path}: {each}" for each in found]
    assert problems == []
    logged: Any = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [entry for entry in logged if entry["level"] == "SEVERE"] == []


def too_wide(browser: Chrome, width: int) -> Iterator[str]:
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    if wide > width:
        yield f"{wide} px wide"


def violations(browser: Chrome, rules: Sequence[str] = ()) -> Iterator[str]:
    """What axe finds that is serious or critical, by all rules or some."""
    # What passes is not collected: it is nearly everything, with its HTML.
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    for found in Axe().run(browser, options=options)["violations"]:
        if found["impact"] in {"serious", "critical"}:
            yield f"{found['id']}: {[node['html'][:120] for node in found['nodes'][:3]]}"


def test_the_checker_would_notice(platform: Platform, browser: Chrome) -> None:
    Story(platform)
    look(browser, 1280, "light")
    visit(browser, platform, "/")
    browser.execute_script(
        "document.querySelector('h1').style.color = 'light-dark(#eee, #111)'; document.documentElement.lang = ''"
    )
    assert {found.split(":")[0] for found in violations(browser)} == {"color-contrast", "html-has-lang"}
    look(browser, 1280, "dark")
    assert {found.split(":")[0] for found in violations(browser, COLOUR_RULES)} == {"color-contrast"}


def test_a_study_lead_can_answer_from_the_console_alone(platform: Platform, browser: Chrome) -> None:
    """Who opted out, was anything missed, what needs me now: from the first page on, by links only."""
    failed = Story(platform).with_problems()
    look(browser, 1280, "light")
    first = visit(browser, platform, "/")
    assert "REDCap rejects the token" in first
    assert "1 change not saved" in first
    assert "put a new token into the study's secret" in first
    browser.find_element(By.LINK_TEXT, "asthma").click()
    study = wait_for_text(browser, "Was anything missed?")
    assert "Messages are missing." in study
    browser.find_element(By.CSS_SELECTOR, f"a[href$='{failed.event_id}']").click()
    event = wait_for_text(browser, "The change is not in REDCap.")
    assert f"optout replay {failed.event_id}" in event
    browser.find_element(By.LINK_TEXT, "Events").click()
    wait_for_text(browser, "Newest first")
    browser.find_element(By.ID, "record").send_keys("50", Keys.ENTER)
    wait_until(lambda: "record=50" in browser.current_url, what="the filter's answer")
    wait_for_text(browser, "Newest first")
    assert [row.text for row in browser.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(4)")] == ["50"]


def test_it_can_be_used_by_keyboard(platform: Platform, browser: Chrome) -> None:
    Story(platform).with_data()
    look(browser, 1280, "light")
    visit(browser, platform, "/")
    focused = []
    for _ in range(6):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused.append(browser.switch_to.active_element.text)
    assert focused[:5] == ["Skip to the content", "Opt-Out Bridge", "Studies", "Checks", "Platform"]


def test_no_page_holds_a_number_or_a_secret(platform: Platform, browser: Chrome) -> None:
    failed = Story(platform).with_problems()
    look(browser, 1280, "light")
    wanted = Needles.of(phones=PHONES, texts={"secret": ["not-for-the-console"], "hash": [failed.phone_hash]})
    sources = {}
    for path in (*PAGES, f"/studies/asthma/events/{failed.event_id}"):
        visit(browser, platform, path)
        sources[path] = browser.page_source
    sources["csv"] = requests.get(
        f"{platform.console_url}/studies/asthma/events.csv", auth=CONSOLE_LOGIN, timeout=20
    ).text
    assert [found for path, text in sources.items() for found in wanted.found_in(path, text)] == []
    assert list(wanted.found_in("log", platform["console"].text())) == []


def test_its_user_of_redis_can_only_read(platform: Platform) -> None:
    Story(platform).with_data()
    with Redis(
        port=platform.redis_port, username="console", password=CONSOLE_PASSWORD, decode_responses=True
    ) as redis:
        assert redis.hgetall(keys.CONFIGURATIONS)
        attempts: list[Callable[[], Any]] = [
            lambda: redis.set("optout:x", "1"),
            lambda: redis.delete(keys.CONFIGURATIONS),
            lambda: redis.hset(keys.PROBLEMS, "asthma", "x"),
            lambda: redis.eval("return redis.call('DEL', 'x')", 1, "optout:x"),
            lambda: redis.get("other"),
            lambda: redis.config_get("requirepass"),
            lambda: redis.keys("*"),
            lambda: redis.publish("x", "y"),
        ]
        for attempt in attempts:
            with pytest.raises(NoPermissionError):
                attempt()
