"""Makes the documentation's pictures from the real thing: the demo's terminal, Flower, and an e-mail.

python -m tests.pictures     (needs Chromium and chromedriver; writes docs/pictures/)
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from rich.console import Console
from selenium import webdriver

from tests.browser import chromium, wait_for_text
from tests.demo import STORY, World, show, the_world
from tests.processes import ROOT
from tests.simulators.redcap import enrol, fictional_phone
from tests.simulators.twilio import SERVICE_SID

PICTURES = ROOT / "docs" / "pictures"
STORM = 40


def main() -> None:
    """Play the demo, then a small storm, and take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, the_world(Path(folder)) as world, chromium() as browser:
        terminal(world)
        storm(world)
        flower(world, browser)
        mail(world, browser, Path(folder))


def terminal(world: World) -> None:
    """The demo's first scenes as a terminal shows them."""
    console = Console(record=True, width=100, file=io.StringIO())
    for number, step in enumerate(STORY, 1):
        step.play(world)
        if number <= 3:
            console.rule(f"{number}. {step.title}", align="left")
            if number == 3:
                show(world, console)
            console.print("✓ as it should be", style="green")
    console.save_svg(str(PICTURES / "demo.svg"), title="make demo")


def storm(world: World) -> None:
    """STOPs of many participants within a second."""
    enrol(world.asthma, STORM, start=100)
    for number in range(100, 100 + STORM):
        world.twilio.text(
            from_=fictional_phone(number), service=SERVICE_SID, body="STOP", advanced_opt_out=True
        )
    records = [str(number) for number in range(100, 100 + STORM)]
    world.expect("the storm is over", lambda: world.opted_out(world.asthma, *records))


def flower(world: World, browser: webdriver.Chrome) -> None:
    """Flower's list of tasks."""
    browser.set_window_size(1400, 800)
    browser.get(f"{world.platform.flower_url}/tasks")
    wait_for_text(browser, "optout.update_records")
    browser.save_screenshot(str(PICTURES / "flower.png"))


def mail(world: World, browser: webdriver.Chrome, folder: Path) -> None:
    """The e-mail that a coordinator gets."""
    page = folder / "mail.html"
    page.write_text(world.smtp.inbox[0].html, encoding="utf-8")
    browser.set_window_size(700, 640)
    browser.get(page.as_uri())
    browser.save_screenshot(str(PICTURES / "mail.png"))


if __name__ == "__main__":
    main()
