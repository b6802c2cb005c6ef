"""A running process takes a valid change of its files, and keeps what it has for any other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shared.config import Config
from shared.config.live import LiveConfiguration
from shared.errors import ConfigError
from shared.ledger import keys
from shared.ledger.platform.kept_configuration import keep, last_valid
from shared.ledger.platform.loaded_configurations import Follower, invalid_files, loaded_configurations
from tests.builders import config, project_table
from tests.fakes import RecordingPublisher, fake_redis
from tests.unit.test_config_files import MAIN, study
from web.app import build_services
from worker.projects.problems import recheck_changed
from worker.services import Services

NOW_MS = 0  # nothing published has ended


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A valid configuration with one included study, which the environment names."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "asthma.toml").write_text(study("asthma"))
    (tmp_path / "config.toml").write_text(MAIN)
    (tmp_path / "key").write_text("k" * 40)
    monkeypatch.setenv("OPTOUT_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("OPTOUT_HASH_KEY", "k" * 40)
    monkeypatch.setenv("TEST_TOKEN", "token")
    return tmp_path


def live(**more: object) -> LiveConfiguration[Config]:
    return LiveConfiguration(lambda config, _: config, settle_seconds=0.0, **more)  # type: ignore[arg-type]


def replace_file(path: Path, text: str) -> None:
    """As most editors save: another file takes the name."""
    new = path.with_name("new")
    new.write_text(text)
    new.rename(path)


def write_in_place(path: Path, text: str) -> None:
    path.write_text(text)


class TestChanges:
    @pytest.mark.parametrize("save", [replace_file, write_in_place])
    @pytest.mark.parametrize("name", ["config.toml", "studies/asthma.toml"])
    def test_a_changed_file_counts_however_it_was_saved(self, folder: Path, name: str, save: object) -> None:
        followed = live()
        path = folder / name
        text = path.read_text().replace("optout.example.edu", "new.example.edu").replace("mobile", "phone")
        assert callable(save)
        save(path, text)
        followed.refresh()
        assert (followed.value.public_url, followed.value.projects["asthma"].phone_field) in {
            ("https://new.example.edu", "mobile"), ("https://optout.example.edu", "phone"),
        }  # fmt: skip

    def test_a_study_s_file_may_come_and_go(self, folder: Path) -> None:
        followed = live()
        path = folder / "studies" / "sleep.toml"
        path.write_text(study("sleep"))
        followed.refresh()
        assert set(followed.value.projects) == {"asthma", "sleep"}
        path.unlink()
        followed.refresh()
        assert set(followed.value.projects) == {"asthma"}

    def test_a_config_map_that_is_swapped_counts(self, folder: Path) -> None:
        studies = folder / "studies"
        (studies / "asthma.toml").unlink()
        for version, field in (("..one", "mobile"), ("..two", "phone")):
            (studies / version).mkdir()
            (studies / version / "asthma.toml").write_text(study("asthma", phone_field=f'"{field}"'))
        (studies / "..data").symlink_to("..one")
        (studies / "asthma.toml").symlink_to("..data/asthma.toml")
        followed = live()
        assert followed.value.projects["asthma"].phone_field == "mobile"
        (studies / "..data_tmp").symlink_to("..two")
        (studies / "..data_tmp").rename(studies / "..data")
        followed.refresh()
        assert followed.value.projects["asthma"].phone_field == "phone"

    def test_without_a_change_nothing_is_read(self, folder: Path) -> None:
        followed = live()
        before = followed.value
        followed.refresh()
        assert followed.value is before

    def test_an_old_time_on_a_new_file_does_not_hide_it(self, folder: Path) -> None:
        path = folder / "studies" / "asthma.toml"
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        followed = live()
        replace_file(path, path.read_text().replace("mobile", "mobilf"))
        os.utime(path, ns=times)
        followed.refresh()
        assert followed.value.projects["asthma"].phone_field == "mobilf"

    def test_a_change_that_is_not_finished_waits(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other half of the file is written during the pause."""
        path = folder / "studies" / "asthma.toml"
        followed = live()
        whole = study("asthma", phone_field='"phone"') + study("sleep")
        path.write_text(study("asthma", phone_field='"phone"'))
        monkeypatch.setattr("shared.config.live.time.sleep", lambda _seconds: path.write_text(whole))
        followed.refresh()
        assert set(followed.value.projects) == {"asthma", "sleep"}

    def test_a_secret_s_file_counts_as_the_configuration_that_names_it(self, folder: Path) -> None:
        token = folder / "token"
        token.write_text("one")
        (folder / "config.toml").write_text(MAIN.replace("env:TEST_TOKEN", f"file:{token}"))
        redis = fake_redis()
        followed = LiveConfiguration(
            lambda config, _: build_services(config, redis, RecordingPublisher()), settle_seconds=0.0
        )
        first = followed.value
        replace_file(token, "two")
        followed.refresh()
        assert followed.value.verifier is not first.verifier


class TestInvalidFiles:
    @pytest.mark.parametrize(
        ("name", "text", "key"),
        [
            ("config.toml", "public_url = ", "file"),
            ("config.toml", MAIN.replace("public_url", "public_urls"), "public_urls"),
            ("studies/asthma.toml", study("asthma").replace("phone_field", "phone_feild"), "projects.asthma"),
            ("studies/asthma.toml", "", "projects"),
            ("studies/sleep.toml", study("asthma"), "projects.asthma"),
        ],
    )
    def test_the_last_valid_configuration_stays_until_the_file_is_fixed(
        self, folder: Path, name: str, text: str, key: str
    ) -> None:
        followed = live()
        before, path = followed.value, folder / name
        right = path.read_text() if path.exists() else None
        replace_file(path, text)
        followed.refresh()
        assert followed.value is before
        assert followed.problem is not None
        assert followed.problem.file == str(path)
        assert followed.problem.text.startswith(key)
        path.unlink()
        if right is not None:
            path.write_text(right)
        followed.refresh()
        assert followed.problem is None
        assert followed.value.digest == before.digest

    def test_a_file_that_disappears_changes_nothing(self, folder: Path) -> None:
        followed = live()
        (folder / "config.toml").unlink()
        followed.refresh()
        assert set(followed.value.projects) == {"asthma"}
        assert followed.problem is not None

    def test_a_folder_that_disappears_changes_nothing(self, folder: Path) -> None:
        followed = live()
        (folder / "studies").rename(folder / "gone")
        followed.refresh()
        assert set(followed.value.projects) == {"asthma"}
        assert followed.problem is not None
        assert "does not exist" in followed.problem.text

    def test_what_was_fixed_without_a_trace_in_the_files_counts_after_a_while(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = folder / "config.toml"
        path.write_text(MAIN.replace("studies/", "more/") + study("asthma"))
        with pytest.raises(ConfigError):
            live()
        path.write_text(MAIN)
        followed = live()
        path.write_text(MAIN.replace("studies/", "more/") + study("sleep"))
        followed.refresh()
        assert followed.problem is not None
        (folder / "more").mkdir()
        monkeypatch.setattr("shared.config.live.RETRY_SECONDS", 0.0)
        followed.refresh()
        assert followed.problem is None
        assert set(followed.value.projects) == {"sleep"}

    def test_a_missing_secret_that_the_process_needs_changes_nothing(self, folder: Path) -> None:
        redis = fake_redis()
        followed = LiveConfiguration(
            lambda config, _: build_services(config, redis, RecordingPublisher()), settle_seconds=0.0
        )
        before = followed.value
        (folder / "config.toml").write_text(MAIN.replace("env:TEST_TOKEN", "env:NOT_SET"))
        followed.refresh()
        assert followed.value is before
        assert followed.problem is not None
        assert followed.problem.text.startswith("twilio.main.auth_token: env:NOT_SET is empty")

    def test_an_unexpected_error_is_named_by_its_type_alone(self, folder: Path) -> None:
        def build(config: Config, before: Config | None) -> Config:
            if before:
                raise RuntimeError("secret")
            return config

        followed = LiveConfiguration(build, settle_seconds=0.0)
        (folder / "studies" / "sleep.toml").write_text(study("sleep"))
        followed.refresh()
        assert followed.problem is not None
        assert followed.problem.text == "configuration: RuntimeError"


class TestWhatNeedsARestart:
    def test_the_address_of_redis_is_named_and_everything_else_is_taken(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = folder / "redis_url"
        url.write_text("redis://127.0.0.1:6379/0")
        monkeypatch.setenv("OPTOUT_REDIS_URL_FILE", str(url))
        followed = live()
        url.write_text("redis://127.0.0.1:6380/0")
        (folder / "studies" / "sleep.toml").write_text(study("sleep"))
        followed.refresh()
        assert set(followed.value.projects) == {"asthma", "sleep"}
        assert followed.needs_restart == ("OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL")
        url.write_text("redis://127.0.0.1:6379/0")
        followed.refresh()
        assert not followed.needs_restart

    def test_the_hash_key_stays_in_web_and_worker(self, folder: Path) -> None:
        """With another key the ledger would know no participant: STARTs and STOPs would not meet."""
        (folder / "config.toml").write_text(f'hash_key = "file:{folder / "key"}"\n{MAIN}')
        redis, publish = fake_redis(), RecordingPublisher()
        worker: LiveConfiguration[Services] = LiveConfiguration(
            lambda config, before: (
                before.with_config(config)
                if before
                else Services(config=config, redis=redis, publish=publish)
            ),
            settle_seconds=0.0,
        )
        web = LiveConfiguration(
            lambda config, before: build_services(
                config, redis, publish, hasher=getattr(before, "hasher", None)
            ),
            settle_seconds=0.0,
        )
        hashed = worker.value.hasher("+16505550100")
        (folder / "key").write_text("another-key" * 4)
        (folder / "studies" / "sleep.toml").write_text(study("sleep"))
        worker.refresh()
        web.refresh()
        assert worker.value.hasher("+16505550100") == web.value.hasher("+16505550100") == hashed
        assert set(worker.value.config.projects) == set(web.value.config.projects) == {"asthma", "sleep"}
        assert worker.needs_restart == web.needs_restart == ("hash_key",)


class TestTasks:
    def test_a_running_task_keeps_the_configuration_with_which_it_began(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("shared.config.live.CHECK_EVERY_SECONDS", 0.0)
        followed = live()
        task = followed.current()
        (folder / "studies" / "sleep.toml").write_text(study("sleep"))
        assert set(followed.current().projects) == {"asthma", "sleep"}
        assert set(task.projects) == {"asthma"}

    def test_the_files_are_not_checked_for_every_task(self, folder: Path) -> None:
        followed = live()
        (folder / "studies" / "sleep.toml").write_text(study("sleep"))
        assert set(followed.current().projects) == {"asthma"}


class TestStart:
    def test_with_invalid_files_a_process_starts_with_the_configuration_that_was_kept(
        self, folder: Path
    ) -> None:
        redis = fake_redis()
        keep(redis, live().value)
        (folder / "studies" / "asthma.toml").write_text("[projects.")
        started = live(last_valid=lambda: last_valid(redis))
        assert set(started.value.projects) == {"asthma"}
        assert started.problem is not None
        (folder / "studies" / "asthma.toml").write_text(study("asthma", phone_field='"phone"'))
        started.refresh()
        assert started.problem is None
        assert started.value.projects["asthma"].phone_field == "phone"

    def test_without_one_it_refuses_to_start(self, folder: Path) -> None:
        (folder / "studies" / "asthma.toml").write_text("[projects.")
        with pytest.raises(ConfigError, match="is not TOML"):
            live(last_valid=lambda: last_valid(fake_redis()))

    def test_what_was_kept_is_the_same_and_has_no_secret(self, folder: Path) -> None:
        redis, config = fake_redis(), live().value
        keep(redis, config)
        kept = last_valid(redis)
        assert kept is not None
        assert (kept.digest, kept.projects) == (config.digest, config.projects)

    @pytest.mark.parametrize("broken", ["", "x", "00 eJyr", "{} e30="])
    def test_what_somebody_else_has_written_to_redis_is_not_used(self, folder: Path, broken: str) -> None:
        """Else whoever can write to Redis could have tokens sent to an address of their choice."""
        redis = fake_redis()
        keep(redis, live().value)
        signature, _, packed = redis.get(keys.CONFIGURATION).partition(" ")
        for text in (broken, f"{'0' * len(signature)} {packed}", f"{signature} {packed[:-8]}{packed[-4:]}"):
            redis.set(keys.CONFIGURATION, text)
            assert last_valid(redis) is None

    def test_the_key_of_the_signature_is_the_one_that_the_file_names(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        redis, path = fake_redis(), folder / "config.toml"
        path.write_text(f'hash_key = "file:{folder / "key"}"\n{MAIN}')
        keep(redis, live().value)
        monkeypatch.setenv("OPTOUT_HASH_KEY", "another")
        path.write_text(path.read_text().replace("public_url", "public_urls"))
        assert last_valid(redis) is not None
        path.write_text("[")
        assert last_valid(redis) is None
        assert last_valid(redis, signed=False) is not None


class TestPublishing:
    def test_problem_and_settings_are_published_logged_and_withdrawn(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = folder / "redis_url"
        url.write_text("redis://127.0.0.1:6379/0")
        monkeypatch.setenv("OPTOUT_REDIS_URL_FILE", str(url))
        changes: list[Config] = []
        redis, followed = fake_redis(), live()
        follower = Follower(redis, "web|host|7", followed, changes.append)
        before = followed.config
        follower.step()
        assert invalid_files(redis, now_ms=NOW_MS) == []
        path = folder / "studies" / "asthma.toml"
        path.write_text(study("asthma").replace("phone_field", "phone_feild"))
        url.write_text("redis://127.0.0.1:6380/0")
        for _ in range(2):
            follower.step()
        [invalid] = invalid_files(redis, now_ms=NOW_MS)
        assert (invalid.file, invalid.processes) == (str(path), ("web on host",))
        assert invalid.key == "projects.asthma.phone_feild"
        [loaded] = loaded_configurations(redis, now_ms=NOW_MS)
        assert loaded.digest == before.digest
        assert "OPTOUT_REDIS_URL" in loaded.trouble.needs_restart
        said = capsys.readouterr()
        logged = said.out + said.err
        assert logged.count("configuration_problem") == logged.count("configuration_needs_restart") == 1
        path.write_text(study("asthma", phone_field='"phone"'))
        follower.step()
        assert changes == [before]
        assert invalid_files(redis, now_ms=NOW_MS) == []
        kept = last_valid(redis)
        assert kept is not None
        assert kept.projects["asthma"].phone_field == "phone"


def test_projects_that_changed_are_read_again(redis: Any) -> None:
    tables = {name: project_table() for name in ("asthma", "sleep", "north")}
    before = config(tables)
    some = Services(
        config=config({**tables, "asthma": project_table(phone_field="phone"), "new": project_table()}),
        redis=redis, publish=RecordingPublisher(),
    )  # fmt: skip
    for name in tables:
        redis.set(keys.structure(name), "{}")
        redis.hset(keys.index_state(name), "refreshed_ms", 1)
    recheck_changed(before, some)
    assert [name for name in tables if redis.get(keys.structure(name)) is None] == ["asthma"]
    assert [name for name in tables if not redis.hexists(keys.index_state(name), "refreshed_ms")] == [
        "asthma"
    ]
