"""The configuration: every mistake is named with its key and its mend, and no secret is ever shown."""

from __future__ import annotations

import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest
from redis import SSLConnection

from shared.config import broker_url, load_config, parse_config, redis_url
from shared.config.secrets import Secret
from shared.config.urls import verifies_certificate
from shared.errors import ConfigError, PublishedSecret
from shared.messaging.celery_config import make_celery
from shared.messaging.publisher import make_publisher
from shared.redis_client import connect
from tests import builders
from tests.builders import config, document, project_table
from tests.fakes import RecordingPublisher, fake_redis
from tests.processes import ROOT
from web.app import build_services
from worker.checks.configuration import require_own_secrets
from worker.services import Services


def problems(projects: dict[str, dict[str, Any]] | None = None, **changes: Any) -> list[str]:
    """What is wrong with a configuration."""
    with pytest.raises(ConfigError) as caught:
        parse_config(document(projects, **changes))
    return caught.value.problems


def project_problems(**changes: Any) -> list[str]:
    return problems({"asthma": project_table(**changes)})


class TestGoodFiles:
    def test_the_example_is_valid(self) -> None:
        example = load_config(ROOT / "config.example.toml")
        assert list(example.projects) == ["asthma", "sleep"]
        assert example.projects["sleep"].phone_event == "enrolment_arm_1"

    def test_the_smallest_file_has_the_documented_defaults(self) -> None:
        table = project_table(notify=None, redcap_requests_per_minute=None)
        smallest = parse_config(document({"asthma": table}, smtp=None, time_zone=None))
        project = smallest.projects["asthma"]
        assert (smallest.reconcile.at, smallest.time_zone, smallest.retention_days) == ("02:30", "UTC", 400)
        assert (project.channels, project.default_region) == (["sms", "rcs"], "US")
        assert (project.redcap_requests_per_minute, project.keyword_fallback) == (300, False)
        assert repr(smallest.hash_key) == "Secret('env:OPTOUT_HASH_KEY')"

    def test_an_api_address_without_its_slash_gets_it(self) -> None:
        table = project_table(redcap_url="https://redcap.example.edu/api")
        assert config({"a": table}).projects["a"].redcap_url == "https://redcap.example.edu/api/"

    def test_a_project_s_time_zone_is_its_own_or_the_deployment_s(self) -> None:
        both = config({"a": project_table(time_zone="America/Chicago"), "b": project_table()})
        assert [both.zone(project).key for project in both.projects.values()] == [
            "America/Chicago", "America/Los_Angeles",
        ]  # fmt: skip

    def test_two_auth_tokens_may_be_listed_during_a_rotation(self) -> None:
        account = {"account_sid": "AC" + "1" * 32, "auth_token": ["env:NEW", "file:/run/secrets/old"]}
        tokens = config(twilio={"main": account}).twilio["main"].auth_token
        assert [token.reference for token in tokens] == ["env:NEW", "file:/run/secrets/old"]

    def test_the_configuration_cannot_be_changed_by_accident(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            config().time_zone = "UTC"  # type: ignore[misc]


class TestMistakes:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"public_url": None}, "public_url: missing. The address that Twilio calls"),
            ({"public_url": "optout.example.edu"}, "public_url: must be an address such as"),
            ({"public_url": "https://user:pass@example.edu"}, "public_url: must be an address such as"),
            ({"public_url": "https://example.edu:99999"}, "public_url: must have a port between"),
            ({"time_zone": "Pacific"}, 'time_zone: must be an IANA time zone such as "America/Chicago"'),
            ({"retention_days": 0}, "retention_days: input should be greater than or equal to 1. How long"),
            ({"reconcile": {"at": "25:00"}}, "reconcile.at: does not have the right form. Time of day"),
            ({"reconcile": {"att": "02:30"}}, 'reconcile.att: unknown key. Did you mean "at"?'),
            ({"smtp": {}}, "smtp.sender: missing. The sender address of notifications."),
            ({"smtp": None}, "smtp: missing, but projects.asthma has notify; add an [smtp] table"),
            ({"twilio": None}, "twilio: missing. At least one [twilio.NAME] table."),
            ({"twilio": {"main": {"account_sid": "AC1", "auth_token": "env:X"}}},
             "twilio.main.account_sid: does not have the right form. The account's SID"),
            ({"twilio": {"main": {"account_sid": "AC" + "1" * 32}}}, "twilio.main.auth_token: missing."),
            ({"twilio": {"main": {"account_sid": "AC" + "1" * 32, "auth_token": []}}},
             "twilio.main.auth_token: value should have at least 1 item"),
            ({"hash_keys": "env:X"}, 'hash_keys: unknown key. Did you mean "hash_key"?'),
        ],
    )  # fmt: skip
    def test_the_key_and_the_mend_are_named(self, changes: dict[str, Any], expected: str) -> None:
        assert any(problem.startswith(expected) for problem in problems(**changes)), problems(**changes)

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"redcap_url": None}, "projects.asthma.redcap_url: missing. The address of REDCap's API"),
            ({"redcap_token": None}, "projects.asthma.redcap_token: missing. Reference to the API token"),
            ({"twilio": "other"}, "projects.asthma.twilio: there is no [twilio.other] table; name one of: main"),
            ({"messaging_service_sid": None}, "projects.asthma: needs messaging_service_sid or senders"),
            ({"messaging_service_sid": "SM1"}, "projects.asthma.messaging_service_sid: does not have the right"),
            ({"senders": ["call me"]}, "projects.asthma.senders: does not have the right form"),
            ({"phone_field": "Mobile Phone"}, "projects.asthma.phone_field: does not have the right form."),
            ({"phone_field": None}, "projects.asthma.phone_field: missing."),
            ({"opt_out_field": "mobile"}, "projects.asthma: phone_field, opt_out_field and opt_out_checkbox must"),
            ({"opt_out_fields": "x"}, 'projects.asthma.opt_out_fields: unknown key. Did you mean "opt_out_field"?'),
            ({"notify": ["coordinator"]}, "projects.asthma.notify: does not have the right form. Recipients"),
            ({"notify": "coordinator@example.edu"}, "projects.asthma.notify: input should be a valid list"),
            ({"default_region": "USA"}, "projects.asthma.default_region: must be a two-letter country code"),
            ({"time_zone": "CST6"}, "projects.asthma.time_zone: must be an IANA time zone"),
            ({"channels": ["email"]}, "projects.asthma.channels: does not have the right form. Channels whose"),
            ({"opt_out_keywords": [" "]}, "projects.asthma.opt_out_keywords: does not have the right form"),
            ({"redcap_requests_per_minute": 0}, "projects.asthma.redcap_requests_per_minute: input should be"),
            ({"keyword_fallback": "sometimes"}, "projects.asthma.keyword_fallback: input should be a valid boolean"),
            ({"forward_url": "redcap"}, "projects.asthma.forward_url: must be an address"),
        ],
    )  # fmt: skip
    def test_a_project_s_key_and_the_mend_are_named(self, changes: dict[str, Any], expected: str) -> None:
        found = project_problems(**changes)
        assert any(problem.startswith(expected) for problem in found), found

    def test_all_mistakes_are_listed_at_once(self) -> None:
        found = problems({"a": project_table(phone_field=None), "b": project_table(channels=["fax"])},
                         time_zone="nowhere")  # fmt: skip
        assert [problem.partition(":")[0] for problem in found] == [
            "time_zone", "projects.a.phone_field", "projects.b.channels",
        ]  # fmt: skip

    def test_a_project_name_that_could_not_stand_in_a_key_is_refused(self) -> None:
        for name in ("asthma|2", "", "a b", "x" * 65, "-a"):
            found = problems({name: project_table()})
            assert found, name
            assert all("projects" in problem for problem in found)

    def test_no_project_at_all_is_refused(self) -> None:
        assert [problem.partition(":")[0] for problem in problems({})] == ["projects"]

    def test_two_projects_on_one_service_cannot_forward_to_two_addresses(self) -> None:
        url = "https://redcap.example.edu/surveys/?s="
        found = problems(
            {"a": project_table(forward_url=url + "A"), "b": project_table(forward_url=url + "B")}
        )
        assert found[0].startswith("projects.b.forward_url: differs from that of projects.a, which shares MG")
        assert config({"a": project_table(forward_url=url), "b": project_table(forward_url=url)})
        assert config({"a": project_table(forward_url=url), "b": project_table()})

    def test_a_missing_file_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"copy config\.example\.toml"):
            load_config(tmp_path / "config.toml")

    def test_a_file_that_is_no_toml_says_where(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text('public_url = "x"\ntime_zone = \n')
        with pytest.raises(ConfigError, match="line 2"):
            load_config(path)

    def test_the_file_that_the_environment_names_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes((ROOT / "config.example.toml").read_bytes())
        monkeypatch.setenv("OPTOUT_CONFIG", str(path))
        assert list(load_config().projects) == ["asthma", "sleep"]


class TestSecrets:
    PLAIN = "0123456789ABCDEF0123456789ABCDEF"

    @pytest.mark.parametrize("place", ["hash_key", "smtp", "token", "auth"])
    def test_a_secret_in_the_file_is_refused_and_never_repeated(self, place: str) -> None:
        account = {"account_sid": "AC" + "1" * 32, "auth_token": self.PLAIN if place == "auth" else "env:X"}
        found = problems(
            {"asthma": project_table(redcap_token=self.PLAIN if place == "token" else "env:X")},
            hash_key=self.PLAIN if place == "hash_key" else "env:X",
            smtp={"sender": "a@example.edu", "url": self.PLAIN if place == "smtp" else "env:X"},
            twilio={"main": account},
        )
        assert len(found) == 1
        assert 'must be a reference, "env:NAME" or "file:/path", never the secret itself' in found[0]
        assert self.PLAIN not in "".join(found)

    @pytest.mark.parametrize("value", [7, {"a": 1}, True, "smtp://user:pass@host", "env:", "vault:x"])
    def test_what_is_no_reference_is_refused_without_being_repeated(self, value: object) -> None:
        found = problems(hash_key=value)
        assert found[0].startswith("hash_key: ")
        assert "pass" not in found[0]

    def test_a_reference_is_resolved_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_SECRET", " s3cret\n")
        assert Secret("env:A_SECRET").resolve() == "s3cret"

    def test_a_reference_is_resolved_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_text("s3cret\n")
        assert Secret(f"file:{path}").resolve() == "s3cret"

    def test_a_missing_or_empty_secret_is_named_by_its_reference(self, tmp_path: Path) -> None:
        empty = tmp_path / "empty"
        empty.write_text("\n")
        for reference in ("env:NOT_SET", f"file:{empty}", f"file:{tmp_path / 'missing'}"):
            with pytest.raises(ConfigError) as caught:
                Secret(reference).resolve()
            assert caught.value.problems[0].startswith(reference)

    @pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
    def test_a_file_that_is_no_utf_8_is_told_with_the_mend_and_not_repeated(
        self, encoding: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "secret"
        path.write_bytes("s3cr\u00e9t".encode(encoding))
        with pytest.raises(ConfigError, match="save it as UTF-8") as caught:
            Secret(f"file:{path}").resolve()
        told = "".join(traceback.format_exception(caught.value)).replace(__file__, "")
        assert caught.value.problems[0].startswith(f"file:{path} is not UTF-8")
        assert "s3cr" not in told
        assert "s\\x003" not in told

    def test_a_variable_that_is_no_utf_8_is_told_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_SECRET", "s3cr\udce9t")  # as Python reads the byte E9 (PEP 383)
        with pytest.raises(ConfigError, match="env:A_SECRET is not UTF-8"):
            Secret("env:A_SECRET").resolve()

    @pytest.mark.parametrize(
        "reference",
        [f"env:{PLAIN}", f"env:{PLAIN.lower()[10:]}0123456789", f"file:{PLAIN}", f"env:{'ab' * 32}", "env:pass word",
         "env:smtp://user:pass@mail.example.edu", "file:smtp://user:pass@mail.example.edu", "env:pass+word=="],
    )  # fmt: skip
    def test_a_secret_in_place_of_its_name_is_refused_and_never_repeated(self, reference: str) -> None:
        found = project_problems(redcap_token=reference)
        assert found == [
            'projects.asthma.redcap_token: must be a reference, "env:NAME" or "file:/path", never the secret itself'
        ]

    def test_reading_the_file_reads_no_secret(self, tmp_path: Path) -> None:
        text = (ROOT / "config.example.toml").read_text().replace("env:", "file:/nowhere/")
        path = tmp_path / "config.toml"
        path.write_text(text)
        assert load_config(path).projects

    def test_a_secret_never_shows_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_SECRET", "s3cret")
        secret = Secret("env:A_SECRET")
        secret.resolve()
        assert "s3cret" not in f"{secret!r}{secret}{vars(secret)}"


class TestEnvironment:
    def test_redis_and_broker_have_their_defaults(self) -> None:
        assert redis_url() == broker_url() == "redis://127.0.0.1:6379/0"

    def test_the_broker_is_the_ledger_s_redis_unless_it_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_REDIS_URL", "redis://elsewhere/1")
        assert broker_url() == "redis://elsewhere/1"
        monkeypatch.setenv("OPTOUT_BROKER_URL", "amqp://rabbit")
        assert (broker_url(), redis_url()) == ("amqp://rabbit", "redis://elsewhere/1")

    def test_an_address_may_come_from_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "url"
        path.write_text("redis://:password@elsewhere/0\n")
        monkeypatch.setenv("OPTOUT_REDIS_URL_FILE", str(path))
        assert redis_url() == "redis://:password@elsewhere/0"

    @pytest.mark.parametrize("sign", "/#?")
    @pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
    def test_a_login_that_was_not_encoded_is_told_by_name_and_not_repeated(
        self, monkeypatch: pytest.MonkeyPatch, name: str, sign: str
    ) -> None:
        for start in ("S3cr", "12"):
            monkeypatch.setenv(name, f"redis://user:{start}{sign}S3cret@elsewhere:6379/0")
            with pytest.raises(ConfigError, match=rf"{name}: .*\(/ is %2F, # is %23") as caught:
                broker_url()
            assert "S3cr" not in f"{caught.value}{caught.value.problems}"
            assert caught.value.__context__ is None

    @pytest.mark.parametrize("url", [
        "redis://:a%2Fb%23c@elsewhere:6379/0", "redis://:a;b@elsewhere/0", "unix:///run/redis.sock?db=1",
        "amqps://u:p@one:5671/v;amqps://u:p@two:5671/v", "rediss://h:6380/0?ssl_cert_reqs=none", "sentinel://:p@one:26379;sentinel://:p@two:26379",
        "memory://", "redis://[::1]:6379/0",
    ])  # fmt: skip
    def test_an_address_of_one_server_or_several_is_taken_as_it_is(
        self, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("OPTOUT_BROKER_URL", url)
        assert broker_url() == url

    def test_options_that_the_amqp_client_rejects_are_named_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_BROKER_URL", "amqps://u:p@h:5671/v?ssl_cert_reqs=none")
        with pytest.raises(ConfigError, match="OPTOUT_BROKER_URL: amqps:// takes no ssl options"):
            broker_url()

    @pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("rediss://:p@h:6380/0", "rediss://:p@h:6380/0?ssl_cert_reqs=required"),
            ("rediss://h/0?ssl_ca_certs=/ca.pem", "rediss://h/0?ssl_ca_certs=/ca.pem&ssl_cert_reqs=required"),
            ("rediss://h/0?ssl_cert_reqs=none", "rediss://h/0?ssl_cert_reqs=none"),
        ],
    )
    def test_tls_verifies_the_certificate_unless_the_address_says_otherwise(
        self, monkeypatch: pytest.MonkeyPatch, name: str, given: str, expected: str
    ) -> None:
        monkeypatch.setenv(name, given)
        assert broker_url() == expected

    @pytest.mark.parametrize(
        "url",
        [
            "unix:///run/redis.sock",
            "sentinel://h:26379",
            "valkey://h:6379",
            "127.0.0.1:6379",
            "localhost",
            "http://h",
            "valkeys://h",
            "h:6379/0",
        ],
    )
    def test_what_is_no_redis_address_is_rejected_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("OPTOUT_REDIS_URL", url)
        with pytest.raises(ConfigError, match="OPTOUT_REDIS_URL: must be redis://host:port") as caught:
            redis_url()
        assert len(caught.value.problems) == 1

    @pytest.mark.parametrize("url", ["redis://h/abc", "rediss://h:6380/0/1", "redis://h/-1", "redis://h/0/"])
    @pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
    def test_what_follows_the_host_of_redis_is_a_number(
        self, monkeypatch: pytest.MonkeyPatch, name: str, url: str
    ) -> None:
        monkeypatch.setenv(name, url)
        with pytest.raises(ConfigError, match=f"{name}: what follows host and port must be the number"):
            broker_url()

    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("redis+sentinel://h1:26379,h2:26379", "must be the name that they know the primary by"),
            ("redis+sentinel://h1:26379/", "must be the name that they know the primary by"),
            ("redis+sentinel://h1:26379/main/abc", "and the number of a database"),
            ("redis+sentinel://h1:26379,h2:x/main/0", "must list the sentinels as host:port"),
            ("redis+sentinel://h1:26379,/main/0", "must list the sentinels as host:port"),
            ("redis+sentinel://h1:0/main/0", "must list the sentinels as host:port"),
            ("redis+sentinel:///main/0", "must list the sentinels as host:port"),
            ("redis+sentinel://h1/main/0?db=1", "has an unknown option; it takes sentinel_password"),
            ("redis+sentinel://h1/main/0?ssl_cert_reqs=none", "has an unknown option"),
            ("rediss+sentinel://h1/main/0?ssl_cert_reqs=maybe", "ssl_cert_reqs must be"),
            ("redis+sentinel://h1/main/0;redis+sentinel://h2/main/0", "in one address, separated by commas"),
            ("redis+sentinel://u:S3cr/S3cret@h1/main/0", "percent-encode user and password"),
            ("redis+sentinel://u:12#S3cret@h1/main/0", "percent-encode user and password"),
        ],
    )
    @pytest.mark.parametrize("name", ["OPTOUT_REDIS_URL", "OPTOUT_BROKER_URL"])
    def test_an_invalid_address_of_sentinels_is_reported_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, name: str, url: str, problem: str
    ) -> None:
        monkeypatch.setenv(name, url)
        with pytest.raises(ConfigError, match=f"{name}: .*{problem}") as caught:
            broker_url()
        assert len(caught.value.problems) == 1
        assert "S3cr" not in f"{caught.value}{caught.value.__context__}"

    def test_ledger_and_broker_take_logins_and_database_from_the_address_of_sentinels(self) -> None:
        url = "redis+sentinel://us%40er:p%2Fw+@h1:26380,[::1]/main/3?sentinel_password=s%26+"
        pool = connect(url).connection_pool
        assert pool.service_name == "main"
        login = {name: pool.connection_kwargs[name] for name in ("username", "password", "db")}
        assert login == {"username": "us@er", "password": "p/w+", "db": 3}
        asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
        assert [(each["host"], each["port"], each["password"]) for each in asked] == [
            ("h1", 26380, "s&+"), ("::1", 26379, "s&+"),
        ]  # fmt: skip
        app = make_celery(url)
        broker = app.connection()
        assert (broker.userid, broker.password, broker.virtual_host) == ("us@er", "p/w+", "3")
        assert [each.rpartition("@")[2] for each in broker.alt] == ["h1:26380/3", "[::1]:26379/3"]
        assert app.conf.broker_transport_options["master_name"] == "main"
        assert app.conf.broker_transport_options["sentinel_kwargs"]["password"] == "s&+"

    def test_tls_with_sentinels_verifies_all_certificates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPTOUT_REDIS_URL", "rediss+sentinel://h1/main/0")
        assert redis_url() == "rediss+sentinel://h1/main/0?ssl_cert_reqs=required"
        pool = connect(redis_url()).connection_pool
        [sentinel] = pool.sentinel_manager.sentinels
        for each in (pool, sentinel.connection_pool):
            assert issubclass(each.connection_class, SSLConnection)
            assert each.connection_kwargs["ssl_cert_reqs"] == "required"
        assert make_celery(redis_url()).conf.broker_use_ssl == {"ssl_cert_reqs": "required"}
        assert not verifies_certificate("rediss+sentinel://h1/main/0?ssl_cert_reqs=none")

    @pytest.mark.parametrize(
        "url",
        [
            "127.0.0.1:5672", "rabbit", "http://h", "valkey://h:6379", "unix:///run/redis.sock", "qzxjv://S3cret@h",
            "amqp://S3cret@h?no_such_option=1", "redis://h/0?no_such_option=1", "rediss://h/0?ssl_cert_reqs=maybe",
            "redis://h/0?socket_timeout=5",
        ],
    )  # fmt: skip
    def test_an_address_that_celery_cannot_use_is_rejected_in_one_line(
        self, monkeypatch: pytest.MonkeyPatch, url: str
    ) -> None:
        monkeypatch.setenv("OPTOUT_BROKER_URL", url)
        with pytest.raises(ConfigError, match="OPTOUT_BROKER_URL: Celery cannot use this address") as caught:
            make_celery(broker_url())
        assert len(caught.value.problems) == 1
        assert "S3cret" not in f"{caught.value}{caught.value.__context__}"

    def test_web_rejects_an_option_of_redis_that_celery_does_not_know(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_REDIS_URL", "redis://h/0?socket_timeout=5")
        with pytest.raises(ConfigError, match="Celery cannot use this address"):
            make_publisher()

    @pytest.mark.parametrize(
        "url", ["redis://h:6379/0?no_such_option=1", "redis://h:6379/0?socket_timeout=soon"]
    )
    def test_an_unknown_option_of_the_redis_address_is_rejected_without_connecting(self, url: str) -> None:
        with pytest.raises(ConfigError, match="OPTOUT_REDIS_URL: has an unknown option"):
            connect(url)


class TestSecretsOfTheDemo:
    """They are published, so no deployment may use them."""

    DEMO = ROOT / "deploy" / "demo" / "secrets"

    NAMES = (
        "hash_key", "flower_login", "redis_url", "console_login", "console_redis_url", "twilio/main",
        "redcap/asthma", "redcap/sleep",
    )  # fmt: skip

    def test_every_secret_of_the_demo_is_among_the_tested(self) -> None:
        files = {str(path.relative_to(self.DEMO)) for path in self.DEMO.rglob("[!.]*") if path.is_file()}
        # The passwords of redis_url and console_redis_url; and an address without login.
        assert files == {*self.NAMES, "redis_auth.conf", "redis_console.conf", "smtp_url"}

    @pytest.mark.parametrize("name", NAMES)
    def test_a_file_with_one_is_refused_in_one_line(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(PublishedSecret, match="published") as raised:
            Secret(f"file:{self.DEMO / name}").resolve()
        assert len(raised.value.problems) == 1
        assert (self.DEMO / name).read_text().strip() not in str(raised.value)
        monkeypatch.setenv("OPTOUT_DEMO", "1")
        assert Secret(f"file:{self.DEMO / name}").resolve() == (self.DEMO / name).read_text().strip()

    @pytest.mark.parametrize("by_file", [True, False])
    def test_the_address_of_redis_with_its_password_is_refused(
        self, by_file: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if by_file:
            monkeypatch.setenv("OPTOUT_REDIS_URL_FILE", str(self.DEMO / "redis_url"))
        else:
            monkeypatch.setenv("OPTOUT_REDIS_URL", "redis://:demo-only-not-a-secret@redis.example.edu/0")
        with pytest.raises(PublishedSecret):
            redis_url()

    def test_web_and_worker_do_not_start_with_its_hash_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPTOUT_HASH_KEY", (self.DEMO / "hash_key").read_text())
        with pytest.raises(PublishedSecret):
            build_services(builders.config(), fake_redis(), RecordingPublisher())
        with pytest.raises(PublishedSecret):
            Services(  # noqa: B018
                config=builders.config(), redis=fake_redis(), publish=RecordingPublisher()
            ).hasher

    @pytest.mark.parametrize("name", NAMES)
    def test_the_worker_does_not_start_with_any_of_them(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_REDCAP_TOKEN", (self.DEMO / name).read_text().strip())
        with pytest.raises(PublishedSecret, match="redcap_token: env:TEST_REDCAP_TOKEN is the demo's secret"):
            require_own_secrets(builders.config())
        monkeypatch.setenv("TEST_REDCAP_TOKEN", "")  # missing: the other projects go on
        require_own_secrets(builders.config())

    def test_web_does_not_start_with_its_auth_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPTOUT_HASH_KEY", builders.HASH_KEY)
        monkeypatch.setenv("TEST_AUTH_TOKEN", (self.DEMO / "twilio/main").read_text())
        with pytest.raises(PublishedSecret):
            build_services(builders.config(), fake_redis(), RecordingPublisher())


def test_a_byte_order_mark_is_no_part_of_a_secret_or_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbfa-hash-key\n")
    assert Secret(f"file:{tmp_path / 'key'}").resolve() == "a-hash-key"
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbfpublic_url = 1")
    with pytest.raises(ConfigError, match="public_url: "):
        load_config(tmp_path / "config.toml")


def test_the_example_is_toml_that_names_no_secret() -> None:
    example = tomllib.loads((ROOT / "config.example.toml").read_text())
    references = [example["hash_key"], example["smtp"]["url"], example["twilio"]["main"]["auth_token"]]
    references += [project["redcap_token"] for project in example["projects"].values()]
    assert all(reference.startswith("env:") for reference in references)
