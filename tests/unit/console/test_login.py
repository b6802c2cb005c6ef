"""Who gets past the console's gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from werkzeug.datastructures import Authorization
from werkzeug.security import generate_password_hash

from shared.errors import ConfigError, PublishedSecret
from tests.unit.console.world import LOGIN, Console
from web.console.login import (
    MOST_ADDRESSES,
    MOST_ATTEMPTS,
    WINDOW_SECONDS,
    Attempts,
    Gate,
    Login,
    TooManyAttempts,
    gate_from_environment,
)

PAGES = (
    "/",
    "/studies/asthma",
    "/studies/asthma/events",
    "/studies/asthma/events.csv",
    "/checks",
    "/platform",
    "/x",
)


def basic(user: str, password: str) -> Authorization:
    return Authorization("basic", {"username": user, "password": password})


class TestPages:
    @pytest.mark.parametrize("path", PAGES)
    def test_every_page_needs_the_login(self, path: str) -> None:
        answer = Console().client.get(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")

    @pytest.mark.parametrize(
        "login",
        [("operator", "wrong"), ("wrong", LOGIN[1]), ("", ""), ("operator", LOGIN[1] + " "), ("ö", "ü\0")],
    )
    def test_a_wrong_login_is_refused(self, login: tuple[str, str]) -> None:
        assert Console().get("/", auth=login).status_code == 401

    @pytest.mark.parametrize(
        "header", ["Basic", "Basic !!!", "Bearer operator", "Basic b3BlcmF0b3I=", "\xff"]
    )
    def test_a_broken_header_is_refused(self, header: str) -> None:
        assert Console().client.get("/", headers={"Authorization": header}).status_code == 401

    def test_the_health_check_and_the_style_need_none_and_show_nothing(self) -> None:
        client = Console().client
        assert client.get("/healthz").text == "ok\n"
        for path in ("/static/console.css", "/static/icon.svg"):
            with client.get(path) as answer:
                assert answer.status_code == 200

    def test_no_cookie_is_set(self) -> None:
        console = Console()
        assert all("Set-Cookie" not in console.get(path).headers for path in PAGES)

    @pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "options"])
    def test_nothing_but_reading_is_allowed(self, method: str) -> None:
        answer = getattr(Console().client, method)("/", auth=LOGIN)
        assert answer.status_code == 405

    def test_every_answer_forbids_scripts_frames_and_copies(self) -> None:
        console = Console()
        for answer in (
            console.get("/"),
            console.client.get("/"),
            console.get("/x"),
            console.client.get("/healthz"),
        ):
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src" not in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["Cache-Control"] == "no-store"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"


class TestAttempts:
    def test_after_ten_wrong_logins_an_address_has_to_wait_also_with_the_right_one(self) -> None:
        console = Console()
        for _ in range(MOST_ATTEMPTS):
            assert console.get("/", auth=("operator", "wrong")).status_code == 401
        answer = console.get("/")
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")

    def test_who_is_logged_in_already_is_not_kept_out_by_others(self) -> None:
        console = Console()
        assert console.get("/").status_code == 200
        for _ in range(MOST_ATTEMPTS + 1):
            console.get("/", auth=("operator", "wrong"))
        assert console.get("/").status_code == 200

    def test_a_flood_of_wrong_logins_is_logged_ten_times(self) -> None:
        console = Console()
        with capture_logs() as lines:
            for _ in range(3 * MOST_ATTEMPTS):
                console.get("/", auth=("operator", "wrong"))
        reasons = [line["reason"] for line in lines if line["event"] == "console_login_refused"]
        assert reasons == ["wrong_login"] * (MOST_ATTEMPTS - 1) + ["too_many_attempts"]

    def test_another_address_may_log_in(self) -> None:
        gate = Gate(Login(":".join(LOGIN)))
        for _ in range(MOST_ATTEMPTS):
            assert not gate.admits(basic("operator", "wrong"), None, "10.0.0.1")
        with pytest.raises(TooManyAttempts):
            gate.admits(basic(*LOGIN), None, "10.0.0.1")
        assert gate.admits(basic(*LOGIN), None, "10.0.0.2")

    def test_a_minute_later_it_may_try_again(self) -> None:
        time = [0.0]
        attempts = Attempts(lambda: time[0])
        for _ in range(MOST_ATTEMPTS):
            attempts.add("10.0.0.1")
        assert attempts.are_used_up("10.0.0.1")
        time[0] = WINDOW_SECONDS
        assert not attempts.are_used_up("10.0.0.1")

    def test_many_addresses_do_not_fill_the_memory(self) -> None:
        attempts = Attempts()
        for number in range(MOST_ADDRESSES + 100):
            attempts.add(f"address {number}")
        assert len(attempts._times) == MOST_ADDRESSES


class TestPasswords:
    def test_a_hash_in_place_of_the_password_accepts_the_password_alone(self) -> None:
        hashed = generate_password_hash("right", method="scrypt:1024:8:1")
        login = Login(f"operator:{hashed}")
        assert login.accepts(basic("operator", "right"))
        assert not login.accepts(basic("operator", "wrong"))
        assert not login.accepts(basic("operator", hashed))

    def test_a_login_that_was_accepted_is_known_without_the_slow_hash(self) -> None:
        login = Login(f"operator:{generate_password_hash('right', method='scrypt:1024:8:1')}")
        assert not login.is_known(basic("operator", "right"))
        login.accepts(basic("operator", "right"))
        assert login.is_known(basic("operator", "right"))
        assert not login.is_known(basic("operator", "wrong"))

    def test_a_password_may_contain_colons(self) -> None:
        assert Login("operator:a:b").accepts(basic("operator", "a:b"))

    @pytest.mark.parametrize("text", ["", "operator", "operator:", ":password"])
    def test_half_a_login_is_an_error_that_does_not_repeat_it(self, text: str) -> None:
        with pytest.raises(ConfigError, match="must be user:password") as caught:
            Login(text)
        assert not text or f" {text}" not in str(caught.value)


class TestEnvironment:
    def test_the_login_comes_from_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "login").write_text("operator:from-a-file\n")
        monkeypatch.setenv("OPTOUT_CONSOLE_LOGIN_FILE", str(tmp_path / "login"))
        assert gate_from_environment().admits(basic("operator", "from-a-file"), None, "127.0.0.1")

    def test_without_a_login_it_does_not_start(self) -> None:
        with pytest.raises(ConfigError, match="OPTOUT_CONSOLE_LOGIN"):
            gate_from_environment()

    def test_the_demos_login_is_refused_in_a_deployment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPTOUT_CONSOLE_LOGIN", "demo:demo")
        with pytest.raises(PublishedSecret):
            gate_from_environment()

    @pytest.mark.parametrize("proxies", ["", "proxy.example.edu", ","])
    def test_a_user_header_needs_the_addresses_that_may_send_it(
        self, proxies: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPTOUT_CONSOLE_USER_HEADER", "X-Remote-User")
        monkeypatch.setenv("OPTOUT_CONSOLE_TRUSTED_PROXIES", proxies)
        with pytest.raises(ConfigError, match="TRUSTED_PROXIES"):
            gate_from_environment()


class TestTrustedHeader:
    @pytest.fixture
    def console(self, monkeypatch: pytest.MonkeyPatch) -> Console:
        monkeypatch.setenv("OPTOUT_CONSOLE_USER_HEADER", "X-Remote-User")
        monkeypatch.setenv("OPTOUT_CONSOLE_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1")
        return Console(gate=gate_from_environment())

    @pytest.mark.parametrize(
        ("address", "user", "status"),
        [
            ("127.0.0.1", "pi", 200),
            ("10.1.2.3", "pi", 200),
            ("::ffff:10.1.2.3", "pi", 200),
            ("192.0.2.1", "pi", 401),
            ("::1", "pi", 401),
            ("", "pi", 401),
            ("unix", "pi", 401),
            ("127.0.0.1", "", 401),
        ],
    )
    def test_only_a_trusted_proxy_names_the_user(
        self, console: Console, address: str, user: str, status: int
    ) -> None:
        answer = console.client.get(
            "/", headers={"X-Remote-User": user}, environ_base={"REMOTE_ADDR": address}
        )
        assert answer.status_code == status

    def test_by_default_no_header_counts(self) -> None:
        headers = {"X-Remote-User": "pi", "Remote-User": "pi"}
        assert Console().client.get("/", headers=headers).status_code == 401
