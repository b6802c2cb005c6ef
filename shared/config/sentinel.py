"""Addresses of a Redis primary that sentinels name: `redis+sentinel://user:password@h1:26379,h2:26379/NAME/0`."""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from shared.errors import ConfigError

TLS_SCHEME = "rediss+sentinel"
SCHEMES = ("redis+sentinel", TLS_SCHEME)
DEFAULT_PORT = 26379

_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_PATH = re.compile(r"/(?P<name>[^/]+)(/(?P<database>[0-9]{0,5}))?")
_LOGIN_OPTIONS = {"sentinel_username", "sentinel_password"}
_TLS_OPTIONS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_check_hostname", "ssl_certfile", "ssl_keyfile"}


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """The sentinels, and what they and the primary need. Secrets do not show in its repr."""

    sentinels: tuple[tuple[str, int], ...]
    name: str
    database: int
    login: dict[str, str] = field(repr=False)  # username and password of Redis, as far as given
    sentinel_login: dict[str, str] = field(repr=False)  # those of the sentinels
    tls: dict[str, Any]  # options of redis-py; empty without TLS

    @property
    def ssl(self) -> dict[str, Any]:
        """The options that make redis-py connect by TLS."""
        return {"ssl": True} | self.tls if self.tls else {}


def is_sentinel_url(url: str) -> bool:
    """Whether an address names sentinels."""
    return url.startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def sentinel_address(url: str, key: str = "OPTOUT_REDIS_URL") -> SentinelAddress:
    """The parts of an address. Raises ConfigError, which does not repeat the address."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    name, database = _name_and_database(parts, key)
    options = _options(parts, key)
    return SentinelAddress(
        sentinels=tuple(_sentinel(each, key) for each in hosts.split(",")),
        name=name,
        database=database,
        login=_login(*(unquote(each) for each in login.partition(":")[::2])),
        sentinel_login=_login(options.get("sentinel_username", ""), options.get("sentinel_password", "")),
        tls=_tls(options, key) if parts.scheme == TLS_SCHEME else {},
    )


def _login(username: str, password: str) -> dict[str, str]:
    return {name: value for name, value in (("username", username), ("password", password)) if value}


def _sentinel(host: str, key: str) -> tuple[str, int]:
    found = _HOST.fullmatch(host)
    port = int(found["port"] or DEFAULT_PORT) if found else 0
    if not found or not 0 < port < 65_536:
        raise _error(key, "must list the sentinels as host:port, separated by commas")
    return found["name"].strip("[]"), port


def _name_and_database(parts: SplitResult, key: str) -> tuple[str, int]:
    found = _PATH.fullmatch(parts.path)
    if not found:
        raise _error(
            key, "what follows the sentinels must be the name that they know the primary by, and the number "
            "of a database, such as /mymaster/0",
        )  # fmt: skip
    return unquote(found["name"]), int(found["database"] or 0)


def _options(parts: SplitResult, key: str) -> dict[str, str]:
    """What follows the question mark. A plus sign is itself, as in user and password."""
    pairs = [each.partition("=")[::2] for each in parts.query.split("&") if each]
    known = _LOGIN_OPTIONS | (_TLS_OPTIONS if parts.scheme == TLS_SCHEME else set())
    if parts.fragment or any(name not in known for name, _ in pairs):
        raise _error(key, f"has an unknown option; it takes {', '.join(sorted(known))}")
    return {name: unquote(value) for name, value in pairs}


def _tls(options: dict[str, str], key: str) -> dict[str, Any]:
    given: dict[str, Any] = {name: value for name, value in options.items() if name in _TLS_OPTIONS and value}
    if given.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise _error(key, "ssl_cert_reqs must be required, optional or none")
    if "ssl_check_hostname" in given:
        given["ssl_check_hostname"] = given["ssl_check_hostname"].lower() not in {"false", "0", "no", "n"}
    return {"ssl_cert_reqs": "required"} | given


def _error(key: str, problem: str) -> ConfigError:
    return ConfigError(key, [f"{key}: {problem}"])
