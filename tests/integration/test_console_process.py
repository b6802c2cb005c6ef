"""The console as a process: it follows the files of the configuration."""

from __future__ import annotations

import time
from pathlib import Path

import requests

from tests.integration.world import configuration
from tests.processes import CONSOLE_LOGIN, Platform, wait_until


def studies(platform: Platform) -> str:
    answer = requests.get(platform.console_url, auth=CONSOLE_LOGIN, timeout=10)
    answer.raise_for_status()
    return answer.text


def test_a_new_study_appears_without_a_restart_and_an_invalid_file_changes_nothing(tmp_path: Path) -> None:
    text = configuration("http://127.0.0.1:9/api/")
    with Platform(tmp_path, text, {}) as platform:
        platform.start("redis", "console")
        assert "/studies/asthma" in studies(platform)
        platform.config.write_text(text.replace("[projects.asthma]", "[projects.added]"))
        wait_until(lambda: "/studies/added" in studies(platform), what="the new study is shown")
        assert "/studies/asthma" not in studies(platform)
        platform.config.write_text("no = toml = at all")
        for _ in range(8):  # it checks the files every five seconds
            time.sleep(1)
            assert "/studies/added" in studies(platform)
