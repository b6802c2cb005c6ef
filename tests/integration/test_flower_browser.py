"""Flower in a real browser: it shows the tasks of a STOP, and no phone number on any page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from shared.messaging.tasks import TaskName
from tests.integration.privacy import Needles
from tests.integration.world import World

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,900",
)  # fmt: skip

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="Chromium and chromedriver are not installed: apt-get install chromium chromium-driver",
    ),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = Chrome(options=options, service=Service(executable_path=str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def body_once_it_shows(browser: Chrome, *texts: str) -> str:
    """The page's text as soon as all of these stand in it; its tables fill themselves by script."""

    def shown(driver: Chrome) -> str:
        body = driver.find_element(By.TAG_NAME, "body").text
        return body if all(text in body for text in texts) else ""

    return WebDriverWait(browser, 30, poll_frequency=0.2).until(shown)


def test_flower_shows_the_tasks_of_a_real_stop_and_no_phone_number(
    world: World, browser: Chrome, tmp_path: Path
) -> None:
    someone = world.enrol()
    stop = world.text(someone.phone)
    assert world.ended(stop).mail == "sent"
    wanted = Needles.of(phones=[participant.phone for participant in world.participants], texts={})
    url = world.platform.flower_url
    sid = stop.message.sid

    # Newest first, so that what other tests did is on later pages.
    browser.get(f"{url}/tasks")
    names = (TaskName.LOOKUP.value, TaskName.UPDATE.value, TaskName.EMAIL.value)
    pages = {"/tasks": body_once_it_shows(browser, *names, sid)}
    assert "SUCCESS" in pages["/tasks"]
    browser.save_screenshot(str(tmp_path / "flower-tasks.png"))
    print(f"screenshot: {tmp_path / 'flower-tasks.png'}")

    links = [
        str(link.get_attribute("href"))
        for link in browser.find_elements(By.CSS_SELECTOR, "a[href*='/task/']")
    ]
    assert len(links) >= 3
    for link in links[:6]:
        browser.get(link)
        pages[link] = body_once_it_shows(browser, "optout.")
    for path in ("/workers", "/broker"):
        browser.get(url + path)
        pages[path] = body_once_it_shows(browser, "celery@" if path == "/workers" else "optout.update")
    # Source and text: what is in the page without being shown counts, too.
    pages["source"] = browser.page_source
    found = [finding for place, text in pages.items() for finding in wanted.found_in(place, text)]
    assert found == []
    assert someone.phone[-7:] not in "".join(pages.values())
