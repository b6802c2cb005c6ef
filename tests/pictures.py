"""Takes the documentation's pictures of the running program: the demo's terminal, console, Flower, and e-mails.

python -m tests.pictures     (needs Chromium and chromedriver; writes docs/pictures/)
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from rich.console import Console
from selenium import webdriver

from tests.browser import chromium, wait_for_text
from tests.demo import STORY, Snapshot, World, show, the_world
from tests.processes import CONSOLE_LOGIN, ROOT
from tests.simulators.redcap import enrol, fictional_phone
from tests.simulators.twilio import SERVICE_SID

PICTURES = ROOT / "docs" / "pictures"
STORM = 41


def main() -> None:
    """Play the demo, then a small storm, and take the pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, the_world(Path(folder)) as world, chromium() as browser:
        terminal(world)
        storm(world)
        console_pages(world, browser)
        flower(world, browser)
        mails(world, browser, Path(folder))


def terminal(world: World) -> None:
    """The demo's first scenes as a terminal shows them."""
    console = Console(record=True, width=100, file=io.StringIO())
    for number, step in enumerate(STORY, 1):
        before = Snapshot.of(world)
        evidence = step.play(world)
        if number <= 3:
            console.rule(f"{number}. {step.title}", align="left")
            show(before, Snapshot.of(world), world, console)
            console.print(f"✓ {evidence}", style="green")
    console.save_svg(str(PICTURES / "demo.svg"), title="make demo")


def storm(world: World) -> None:
    """STOPs of many participants within a second, one of whose records is locked."""
    enrol(world.asthma, STORM, start=100)
    world.asthma.locked_records.add(str(99 + STORM))
    for number in range(100, 100 + STORM):
        world.twilio.text(
            from_=fictional_phone(number), service=SERVICE_SID, body="STOP", advanced_opt_out=True
        )
    records = [str(number) for number in range(100, 99 + STORM)]
    world.expect("the storm is over", lambda: world.opted_out(world.asthma, *records))
    world.expect("a mail about the lock", lambda: any("NOT" in each.subject for each in world.smtp.inbox))


def console_pages(world: World, browser: webdriver.Chrome) -> None:
    """All studies, and the one of the storm."""
    login = ":".join(CONSOLE_LOGIN)
    address = world.platform.console_url.replace("//", f"//{login}@")
    for name, path, size in (
        ("console", "/", (1100, 620)),
        ("console-study", "/studies/asthma", (1100, 1500)),
    ):
        browser.set_window_size(*size)
        browser.get(address + path)
        browser.save_screenshot(str(PICTURES / f"{name}.png"))


def flower(world: World, browser: webdriver.Chrome) -> None:
    """Flower's list of tasks."""
    browser.set_window_size(1400, 800)
    browser.get(f"{world.platform.flower_url}/tasks")
    wait_for_text(browser, "optout.update_records")
    browser.save_screenshot(str(PICTURES / "flower.png"))


def mails(world: World, browser: webdriver.Chrome, folder: Path) -> None:
    """The e-mails about a saved change and about one that REDCap rejected."""
    [locked] = world.asthma.locked_records
    for name, word in (("mail", "record 1"), ("mail-unsaved", f"record {locked}")):
        [html, *_] = [each.html for each in world.smtp.inbox if each.subject.endswith(word)]
        page = folder / f"{name}.html"
        page.write_text(html, encoding="utf-8")
        browser.set_window_size(700, 640)
        browser.get(page.as_uri())
        browser.save_screenshot(str(PICTURES / f"{name}.png"))


if __name__ == "__main__":
    main()
