"""`include`: one file per study, with the tables and the checks of the main file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.config import load_config
from shared.errors import ConfigError

MAIN = """\
include = "studies/*.toml"
public_url = "https://optout.example.edu"

[twilio.main]
account_sid = "AC000000000000000000000000000000a1"
auth_token = "env:TEST_TOKEN"
"""


def study(name: str, **changes: str) -> str:
    """A study's file; changes are TOML values."""
    values = {
        "redcap_url": '"https://redcap.example.edu/api/"', "redcap_token": '"env:TEST_REDCAP"', "twilio": '"main"',
        "senders": '["+16505550177"]', "phone_field": '"mobile"', "opt_out_field": '"sms_opt_out_at"', **changes,
    }  # fmt: skip
    return "\n".join([f"[projects.{name}]", *(f"{key} = {value}" for key, value in values.items())]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration without studies yet."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "config.toml").write_text(MAIN)
    return tmp_path


def write(folder: Path, **studies: str) -> Path:
    """Write files of studies; the path of the main file."""
    for name, text in studies.items():
        (folder / "studies" / f"{name}.toml").write_text(text)
    return folder / "config.toml"


def problems(path: Path) -> dict[str, list[str]]:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert all(line in str(caught.value) for lines in caught.value.by_file.values() for line in lines)
    return {str(Path(file).relative_to(path.parent)): lines for file, lines in caught.value.by_file.items()}


def test_a_file_per_study_is_the_same_as_one_file(folder: Path) -> None:
    several = load_config(write(folder, asthma=study("asthma"), sleep=study("sleep")))
    (folder / "one.toml").write_text(MAIN.partition("\n")[2] + study("asthma") + study("sleep"))
    one = load_config(folder / "one.toml")
    assert several.projects == one.projects
    assert several.digest == one.digest


def test_tables_of_the_main_file_stay_beside_included_ones(folder: Path) -> None:
    path = write(folder, asthma=study("asthma"), others=study("sleep") + study("family"))
    path.write_text(MAIN + study("north"))
    assert set(load_config(path).projects) == {"asthma", "sleep", "family", "north"}


@pytest.mark.parametrize("pattern", ['"{}/studies/*.toml"', '["studies/[a-m]*.toml", "studies/s*.toml"]',
                                     '["studies/asthma.toml", "./studies/sleep.toml"]', '"**/*.toml"'])  # fmt: skip
def test_patterns_may_be_absolute_several_or_recursive(folder: Path, pattern: str) -> None:
    path = write(folder, asthma=study("asthma"), sleep=study("sleep"))
    path.write_text(MAIN.replace('"studies/*.toml"', pattern.replace("{}", str(folder))))
    assert set(load_config(path).projects) == {"asthma", "sleep"}


def test_a_file_that_several_patterns_name_is_read_once_and_the_main_file_is_none_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, asthma=study("asthma"))
    patterns = f'["*.toml", "{folder}/*.toml", "./studies/*.toml", "{folder}/studies/*.toml"]'
    (folder / "config.toml").write_text(MAIN.replace('"studies/*.toml"', patterns))
    monkeypatch.chdir(folder)
    for path in (Path("config.toml"), folder / "config.toml"):
        assert set(load_config(path).projects) == {"asthma"}


def test_names_are_relative_to_the_main_file_and_not_to_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, asthma=study("asthma"))
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("OPTOUT_CONFIG", f"{folder.name}/config.toml")
    assert set(load_config().projects) == {"asthma"}


def test_files_of_editors_and_other_files_are_not_read(folder: Path) -> None:
    path = write(folder, asthma=study("asthma"))
    for name in (".sleep.toml.swp", ".sleep.toml", "sleep.toml~", "sleep.toml.orig", "README"):
        (folder / "studies" / name).write_text(study("sleep"))
    (folder / "studies" / ".#asthma.toml").symlink_to("user@host.1234:5678")
    assert set(load_config(path).projects) == {"asthma"}


def test_a_config_map_s_links_are_followed(folder: Path) -> None:
    """Kubernetes mounts `NAME -> ..data/NAME` and `..data -> ..TIME`."""
    config_map = folder / "studies"
    (config_map / "..2026_05_04").mkdir()
    (config_map / "..2026_05_04" / "asthma.toml").write_text(study("asthma"))
    (config_map / "..data").symlink_to("..2026_05_04")
    (config_map / "asthma.toml").symlink_to("..data/asthma.toml")
    assert set(load_config(folder / "config.toml").projects) == {"asthma"}


class TestProblems:
    def test_a_mistake_is_named_with_file_key_value_and_fix(self, folder: Path) -> None:
        path = write(
            folder,
            asthma=study("asthma", default_region='"Us"', channels='"sms"'),
            sleep=study("sleep", phone_feild='"mobile"'),
        )
        found = problems(path)
        assert set(found) == {"studies/asthma.toml", "studies/sleep.toml"}
        assert any(
            line.startswith("projects.asthma.default_region: must be a two-letter country code")
            and line.endswith('(now: "Us")')
            for line in found["studies/asthma.toml"]
        )
        assert found["studies/sleep.toml"] == [
            'projects.sleep.phone_feild: unknown key. Did you mean "phone_field"?'
        ]

    def test_the_main_file_s_mistakes_are_named_beside_them(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma", twilio="7"))
        path.write_text(MAIN.replace("public_url", "public_urls"))
        assert set(problems(path)) == {"config.toml", "studies/asthma.toml"}

    def test_what_concerns_two_tables_is_named_in_the_file_of_the_second(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma", twilio='"mian"'))
        assert problems(path) == {
            "studies/asthma.toml": [
                "projects.asthma.twilio: there is no [twilio.mian] table; name one of: main"
            ]
        }

    def test_a_study_that_two_files_describe_is_named_with_both(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma"), copy=study("asthma"))
        [(file, [line])] = problems(path).items()
        assert file == "studies/copy.toml"
        assert line.startswith("projects.asthma: ")
        assert str(folder / "studies" / "asthma.toml") in line

    def test_a_study_that_the_main_file_describes_too_is_named_with_both(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma"))
        path.write_text(MAIN + study("asthma"))
        [(file, [line])] = problems(path).items()
        assert file == "studies/asthma.toml"
        assert str(path) in line

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[projects.asthma", "file: is not TOML"),
            ("", "projects: there is no [projects.NAME] table"),
            ("projects = 1", "projects: there is no [projects.NAME] table"),
            (study("sleep") + '[smtp]\nsender = "a@example.edu"', "smtp: only [projects.NAME] tables can be here"),
            ('include = "more/*.toml"\n' + study("sleep"), "include: only [projects.NAME] tables can be here"),
        ],
    )  # fmt: skip
    def test_a_file_that_is_not_a_study_s_is_named(self, folder: Path, text: str, expected: str) -> None:
        found = problems(write(folder, asthma=study("asthma"), other=text))
        assert set(found) == {"studies/other.toml"}
        assert found["studies/other.toml"][0].startswith(expected)

    @pytest.mark.skipif(os.getuid() == 0, reason="root reads every file")
    def test_a_file_that_cannot_be_read_is_named(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma"))
        (folder / "studies" / "asthma.toml").chmod(0)
        assert problems(path)["studies/asthma.toml"][0].startswith("file: cannot be read (Permission denied)")

    def test_a_link_that_leads_nowhere_is_named(self, folder: Path) -> None:
        path = write(folder, asthma=study("asthma"))
        (folder / "studies" / "sleep.toml").symlink_to("missing")
        assert problems(path)["studies/sleep.toml"][0].startswith("file: cannot be read (No such file")

    @pytest.mark.parametrize("pattern", ["studeis/*.toml", "studies/none.toml"])
    def test_a_folder_or_file_that_is_missing_does_not_pass_for_an_empty_one(
        self, folder: Path, pattern: str
    ) -> None:
        path = folder / "config.toml"
        path.write_text(MAIN.replace("studies/*.toml", pattern) + study("asthma"))
        [line] = problems(path)["config.toml"]
        assert line.startswith("include: ")
        assert "does not exist" in line

    def test_an_empty_folder_is_valid_beside_a_study_and_not_alone(self, folder: Path) -> None:
        path = folder / "config.toml"
        assert problems(path)["config.toml"][0].startswith("projects: ")
        path.write_text(MAIN + study("asthma"))
        assert set(load_config(path).projects) == {"asthma"}

    @pytest.mark.parametrize("value", ["7", '{a = "b"}', "[7]", '[""]'])
    def test_an_include_that_is_not_a_pattern_is_named(self, folder: Path, value: str) -> None:
        path = folder / "config.toml"
        path.write_text(MAIN.replace('"studies/*.toml"', value) + study("asthma"))
        assert problems(path)["config.toml"][0].startswith("include: ")

    @pytest.mark.parametrize("secret", ["0123456789abcdef0123456789abcdef", "+16505550100", "smtp://u:p@h/x",
                                        "correct-horse-battery-staple"])  # fmt: skip
    def test_no_value_that_may_be_secret_is_repeated(self, folder: Path, secret: str) -> None:
        keys = ("redcap_token", "default_region", "notify", "redcap_url", "phone_field", "unknown")
        path = write(folder, asthma=study("asthma", **dict.fromkeys(keys, f'"{secret}"')))
        path.write_text(MAIN.replace("env:TEST_TOKEN", secret))
        assert secret not in str(problems(path))
