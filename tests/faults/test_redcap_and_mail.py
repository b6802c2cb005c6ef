"""REDCap and the mail server in trouble: changes arrive late, or fail visibly with the right reason."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from shared.domain.events import State
from tests.faults.scene import Scene, Told
from tests.integration.world import STUDIES
from tests.processes import wait_until

pytestmark = pytest.mark.timeout(600)  # one fault may be waited for longer than the usual three minutes

PASSING = [
    ("http_500", "any"), ("http_503", "any"), ("http_504", "import"), ("reset", "any"), ("tabs_page", "any"),
    ("memory_500", "export"), ("memory_200", "import"), ("login_page", "export"), ("empty_200", "import"),
    ("truncated", "export"), ("count_zero", "import"), ("cut_off", "export"), ("slow_drip", "export"),
    ("ban_page", "import"), ("firewall_page", "export"), ("http_429", "any"), ("maintenance_page", "any"),
    ("empty_302", "import"), ("too_much_400", "export"),
]  # fmt: skip


def text(scene: Scene, body: str = "STOP", project: str = "asthma") -> Told:
    who = scene.enrol(project)
    return Told(who, scene.text(who.phone, body, project))


def problems(scene: Scene) -> dict[str, Any]:
    answer = requests.get(f"{scene.platform.web_url}/readyz", timeout=5).json()
    found: dict[str, Any] = answer["projects"]
    return found


class TestPassingTrouble:
    @pytest.mark.parametrize(("name", "kind"), PASSING)
    def test_a_change_arrives_once_it_is_over(self, scene: Scene, name: str, kind: str) -> None:
        scene.redcap.faults.add(name, kind=kind, times=4)
        scene.expect_all_saved([text(scene)])

    @pytest.mark.parametrize("name", ["http_500", "reset", "hang"])
    def test_a_write_whose_answer_was_lost_is_told_once(self, scene: Scene, name: str) -> None:
        scene.redcap.faults.add(name, kind="import", after_commit=True, times=2)
        scene.expect_all_saved([text(scene)])

    def test_an_outage_in_a_burst_delays_all_and_loses_none(self, scene: Scene) -> None:
        fault = scene.redcap.faults.add("http_503", times=None)

        def outage() -> None:
            wait_until(lambda: fault.hits > 2, what="the outage is felt")

        told = scene.while_texting(30, outage)
        assert all(each.accepted for each in told)
        scene.redcap.faults.clear()
        scene.expect_all_saved(told)

    def test_a_silently_short_export_does_not_end_a_change_as_unmatched(self, scene: Scene) -> None:
        """Only the record's own export is short: it is asked for once more."""
        known = text(scene)
        scene.expect_all_saved([known])
        fault = scene.redcap.faults.add("missing_rows", kind="export", keep=0.0, times=1)
        start = Told(known.who, scene.text(known.who.phone, "START"))
        entry = scene.ended(start.texted, seconds=60)
        assert (fault.hits, entry.state, scene.value(known.who)) == (1, State.UPDATED, "")


class TestLastingTrouble:
    def test_a_revoked_token_fails_visibly_and_a_replay_mends(self, scene: Scene) -> None:
        scene.redcap.faults.add("token_revoked", kind="import")
        told = text(scene)
        scene.until(lambda: scene.ended(told.texted, seconds=1), what="the change has ended")
        entry = scene.ended(told.texted)
        assert (entry.state, "redcap_forbidden" in entry.reason) == (State.FAILED, True)
        assert problems(scene)["asthma"]["problem"] == "redcap_forbidden"
        assert ["could NOT be saved" in mail.subject for mail in scene.mails_about(told.texted)] == [True]
        scene.redcap.revoked.clear()
        scene.until(lambda: "asthma" not in problems(scene), what="the problem is lifted")
        scene.platform.run("replay", "--failed", check=False)
        scene.expect_all_saved([told], repeats=1)

    def test_one_locked_record_does_not_hold_up_the_others(self, scene: Scene) -> None:
        scene.platform["worker"].stop()
        told = scene.while_texting(12, lambda: None)
        locked = told[5]
        scene.study().lock_record(locked.who.record)
        scene.restart("worker")
        scene.expect_all_saved([each for each in told if each is not locked])
        entry = scene.ended(locked.texted)
        assert entry.state is State.FAILED
        assert locked.who.record in entry.reason
        assert ["could NOT be saved" in mail.subject for mail in scene.mails_about(locked.texted)] == [True]

    def test_stops_for_a_deleted_field_are_kept_until_it_is_back(self, scene: Scene) -> None:
        study = scene.study()
        scene.expect_all_saved([text(scene)])
        study.change_field("sms_opt_out_at", name="deleted_field")
        try:
            told = text(scene)
            scene.until(lambda: "asthma" in problems(scene), what="the problem shows")
            entry = scene.entry(told.texted)
            assert entry is not None
            assert entry.finished_at is None
            assert problems(scene)["asthma"]["problem"] == "redcap_no_such_field"
        finally:
            study.change_field("deleted_field", name="sms_opt_out_at")
        scene.until(lambda: "asthma" not in problems(scene), what="the problem is lifted")
        scene.expect_all_saved([told])

    def test_stops_for_a_date_only_field_are_kept_until_it_is_mended(self, scene: Scene) -> None:
        told = [text(scene, project="dateonly") for _ in range(3)]
        assert all(each.accepted for each in told)
        scene.until(lambda: "dateonly" in problems(scene), what="the problem shows")
        assert problems(scene)["dateonly"]["problem"] == "opt_out_field_holds_no_time"
        states = {str(entry.state) for each in told if (entry := scene.entry(each.texted, "dateonly"))}
        assert states <= {"received", "pending"}
        study = scene.redcap.projects[STUDIES["dateonly"][0]]
        study.change_field("sms_opt_out_at", validation="datetime_ymd")
        try:
            scene.expect_all_saved(told, project="dateonly")
            assert "dateonly" not in problems(scene)
        finally:
            study.change_field("sms_opt_out_at", validation="date_ymd")


class TestMail:
    def test_a_server_that_refuses_for_now_gets_the_mail_later_once(self, scene: Scene) -> None:
        scene.smtp.fail("451", times=3)
        scene.expect_all_saved([text(scene)])

    def test_a_server_that_refuses_for_good_is_not_asked_again_and_it_shows(self, scene: Scene) -> None:
        scene.smtp.fail("550", times=1)
        told = text(scene)
        scene.until(lambda: scene.ended(told.texted, seconds=1), what="the change has ended")
        assert (scene.value(told.who) != "", scene.ended(told.texted).mail.startswith("refused")) == (
            True,
            True,
        )
        assert scene.mails_about(told.texted) == []
        metrics = requests.get(f"{scene.platform.web_url}/metrics", timeout=5).text
        assert 'outcome="refused",project="asthma"' in metrics or 'outcome="refused"' in metrics

    def test_a_lost_answer_repeats_the_mail_once_and_with_the_same_id(self, scene: Scene) -> None:
        scene.smtp.fail("lose_answer", times=1)
        told = text(scene)
        scene.expect_all_saved([told], repeats=1)
        ids = [str(mail.message["Message-ID"]) for mail in scene.mails_about(told.texted)]
        assert (len(ids), len(set(ids))) == (2, 1)

    def test_a_hanging_server_holds_up_no_update(self, scene: Scene) -> None:
        scene.smtp.fail("hang", times=2, seconds=5)
        told = [text(scene) for _ in range(6)]
        wait_until(lambda: all(scene.value(each.who) for each in told), seconds=20, what="all is in REDCap")
        scene.expect_all_saved(told, repeats=2)
