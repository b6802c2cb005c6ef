"""A stranger's first hour: the steps of docs/how-to/onboard-a-study.md, on real processes and the simulators."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT, Platform, free_port, wait_until
from tests.simulators.redcap import RedcapSimulator, classic_study, enrol, fictional_phone
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, SERVICE_SID, TwilioSimulator

NUMBER = "+16505550177"
TOKEN = "C" * 32
SECRETS = {
    "OPTOUT_HASH_KEY": "k" * 43,
    "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
    "ASTHMA_REDCAP_TOKEN": TOKEN,
}
PAGE = (ROOT / "docs/how-to/onboard-a-study.md").read_text()


class ConfigFile:
    """The stranger's file: the example, and only such edits as the page names."""

    def __init__(self) -> None:
        example = (ROOT / "config.example.toml").read_text()
        self.text = example[: example.index("[projects.sleep]")]  # "delete the study that you do not need"

    def edit(self, key: str, value: Any, *, instead_of: str | None = None) -> None:
        assert f"`{key}`" in PAGE or f"`{key} = " in PAGE or f".{key}`" in PAGE, (
            f"the page does not name {key}"
        )
        line = f"{key} = {json.dumps(value)}"
        if instead_of is None and not re.search(rf"(?m)^{key} =", self.text):
            self.text += line + "\n"
        else:
            self.text = re.sub(rf"(?m)^{instead_of or key} =.*$", lambda _: line, self.text)


@dataclass
class Stranger:
    """A terminal, with Twilio, REDCap and a mail server somewhere else."""

    platform: Platform
    file: ConfigFile
    redcap: RedcapSimulator
    twilio: TwilioSimulator
    smtp: SmtpSimulator

    @property
    def study(self) -> Any:
        return self.redcap.projects[TOKEN]

    def optout(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        self.platform.config.write_text(self.file.text)
        done = self.platform.run(*arguments, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def errors(self) -> set[str]:
        """The ids of what `optout check` shows in red."""
        self.platform.config.write_text(self.file.text)
        done = self.platform.run("check", "--json", check=False)
        report = json.loads(done.stdout)
        assert done.returncode == (0 if report["ok"] else 1)
        return {finding["id"] for finding in report["findings"] if finding["severity"] == "error"}

    def restart(self) -> None:
        self.platform.config.write_text(self.file.text)
        for name in ("web", "worker"):
            self.platform[name].stop()
        self.platform.start("web", "worker")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    study = classic_study(opt_out_validation="date_ymd")
    enrol(study, 5)
    port = free_port()
    with ExitStack() as stack:
        redcap = stack.enter_context(RedcapSimulator({TOKEN: study}).serve())
        smtp = stack.enter_context(SmtpSimulator().serve())
        twilio = TwilioSimulator(public_url=f"http://127.0.0.1:{port}")
        server = stack.enter_context(twilio.serve())
        del twilio.services[SERVICE_SID]
        twilio.add_sender(NUMBER)
        file = ConfigFile()
        secrets = {"OPTOUT_TWILIO_API_URL": server.url, "OPTOUT_SMTP_URL": smtp.url}
        platform = stack.enter_context(Platform(tmp_path, file.text, secrets, port=port))
        yield Stranger(platform, file, redcap, twilio, smtp)


@pytest.mark.timeout(600)
def test_from_an_empty_directory_to_production(stranger: Stranger) -> None:
    file, platform = stranger.file, stranger.platform
    # 2. REDCap: the test record
    stranger.study.add_record("TEST", mobile="(650) 555-0100")
    # 4. Configuration; with a slip, a REDCap address without its end
    file.edit("public_url", platform.web_url)
    file.edit("account_sid", ACCOUNT_SID)
    file.edit("redcap_url", stranger.redcap.url.removesuffix("api/"))
    file.edit("redcap_project_id", 101)
    file.edit("senders", [NUMBER], instead_of="messaging_service_sid")

    # 6. Check, red with the right ids, mended one by one
    assert stranger.errors() >= {"secret-missing", "redis-unreachable", "web-unreachable"}
    platform.env.update(SECRETS)
    for process in platform.processes.values():
        process._env.update(SECRETS)
    platform.config.write_text(file.text)
    platform.start("redis", "web", "worker")
    assert stranger.errors() >= {"redcap-wrong-address"}
    file.edit("redcap_url", stranger.redcap.url)
    assert stranger.errors() - {"web-not-ready"} == {
        "opt-out-field-unfit",
        "inbound-elsewhere",
    }
    stranger.study.change_field("sms_opt_out_at", validation="datetime_seconds_ymd")
    stranger.restart()
    wait_until(lambda: stranger.errors() == {"inbound-elsewhere"}, what="the field is mended")

    # 7. Connect Twilio
    said = stranger.optout("setup", "--yes").stdout
    (line,) = re.findall(r'messaging_service_sid = "(\w+)"', said)
    assert "Opt-Out Management" in said
    file.edit("messaging_service_sid", line)
    stranger.restart()
    assert stranger.errors() == set()

    # 8. Try it: through the address, to the record and back
    shown = stranger.optout("test-message", "--project", "asthma", "--yes").stdout
    assert "read back: record TEST shows the opt-out" in shown
    assert stranger.study.value("TEST", "sms_opt_out_at") == ""
    assert len(stranger.smtp.wait_for(2)) == 2

    # 9. The past: somebody opted out before Opt-Out Bridge was there
    stranger.twilio.text(
        from_=fictional_phone(3), to=NUMBER, deliver=False, at=datetime.now(UTC) - timedelta(days=20)
    )
    since = (datetime.now(UTC) - timedelta(days=30)).date().isoformat()
    stranger.optout("reconcile", "--project", "asthma", "--since", since)
    assert stranger.study.value("3", "sms_opt_out_at") != ""

    # Production
    texted = stranger.twilio.text(from_=fictional_phone(4), to=NUMBER, advanced_opt_out=True)
    assert texted.status == 200
    wait_until(lambda: stranger.study.value("4", "sms_opt_out_at"), what="the record shows it")
    subjects = [mail.message["Subject"] for mail in stranger.smtp.wait_for(5, seconds=30)]
    assert [
        sum(each in subject for subject in subjects)
        for each in ("TEST:", "restored", ": record 3", ": record 4")
    ] == [2, 1, 1, 1]
    stranger.optout("check")

    for name in ("web", "worker"):
        platform[name].stop()
        lines = platform[name].text().splitlines()
        # Celery's own words at start (as root) and end are all that is no JSON.
        words = ("privileges", "recommended", "--uid", "User information", "_warn_or_raise", "Warm shutdown")
        strange = [line for line in lines if line and not line.startswith("{")]
        assert [line for line in strange if not any(word in line for word in words)] == []
