"""Who may read the console: HTTP Basic authentication, or a user whom the institution's proxy has authenticated."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import structlog
from werkzeug.datastructures import Authorization
from werkzeug.security import check_password_hash

from shared.config import setting
from shared.errors import ConfigError

LOGIN, USER_HEADER, TRUSTED_PROXIES = (
    "OPTOUT_CONSOLE_LOGIN",
    "OPTOUT_CONSOLE_USER_HEADER",
    "OPTOUT_CONSOLE_TRUSTED_PROXIES",
)
# Wrong logins of one address within a minute, after which its further ones are not checked.
MOST_ATTEMPTS = 10
WINDOW_SECONDS = 60.0
MOST_ADDRESSES = 1_000
# A hash of werkzeug.security.generate_password_hash in place of the password.
_HASHES = ("scrypt:", "pbkdf2:")

Network = IPv4Network | IPv6Network

log = structlog.get_logger(__name__)


class TooManyAttempts(Exception):
    """The address has sent too many wrong logins."""


class Login:
    """One user with a password, or with a hash of it."""

    def __init__(self, text: str) -> None:
        user, _, password = text.partition(":")
        if not user or not password:
            raise ConfigError(LOGIN, [f"{LOGIN}: must be user:password, or user:HASH"])
        self._user, self._password = user, password
        # A hash is slow on purpose: a login that was accepted is recognised without it. Neither is kept as it is.
        self._key = secrets.token_bytes(32)
        self._accepted = b""

    def is_known(self, authorization: Authorization) -> bool:
        """Whether this login was accepted before."""
        return hmac.compare_digest(self._digest(authorization), self._accepted)

    def accepts(self, authorization: Authorization) -> bool:
        """Whether user and password are right, in a time that does not depend on them."""
        user = _same(authorization.username or "", self._user)
        password = self._is_password(authorization.password or "")
        if user and password:
            self._accepted = self._digest(authorization)
        return user and password

    def _is_password(self, given: str) -> bool:
        if self._password.startswith(_HASHES):
            return check_password_hash(self._password, given)
        return _same(given, self._password)

    def _digest(self, authorization: Authorization) -> bytes:
        text = f"{authorization.username}\0{authorization.password}"
        return hmac.digest(self._key, text.encode(errors="surrogatepass"), hashlib.sha256)


def _same(given: str, expected: str) -> bool:
    """Compare digests, so that the time does not show the length either."""
    digests = (hashlib.sha256(text.encode(errors="surrogatepass")).digest() for text in (given, expected))
    return hmac.compare_digest(*digests)


class Attempts:
    """Wrong logins by address, in memory that is bounded."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def are_used_up(self, address: str) -> bool:
        """Whether the address has to wait."""
        with self._lock:
            begin = self._clock() - WINDOW_SECONDS
            return sum(each > begin for each in self._times.get(address, ())) >= MOST_ATTEMPTS

    def add(self, address: str) -> None:
        """Note a wrong login."""
        with self._lock:
            self._times.setdefault(address, deque(maxlen=MOST_ATTEMPTS)).append(self._clock())
            self._times.move_to_end(address)
            if len(self._times) > MOST_ADDRESSES:
                self._times.popitem(last=False)


@dataclass(frozen=True, slots=True)
class TrustedHeader:
    """The header in which the institution's proxy names the user, and the addresses that may send it."""

    name: str
    proxies: tuple[Network, ...]

    def user(self, header: str | None, address: str) -> str:
        """The user, or "" if the request does not come from a trusted proxy."""
        return header if header and self._is_trusted(address) else ""

    def _is_trusted(self, address: str) -> bool:
        try:
            sender = ip_address(address)
        except ValueError:  # such as a Unix socket
            return False
        if isinstance(sender, IPv6Address) and sender.ipv4_mapped:
            sender = sender.ipv4_mapped
        return any(sender in network for network in self.proxies)


class Gate:
    """Decides about each request."""

    def __init__(
        self, login: Login | None, header: TrustedHeader | None = None, attempts: Attempts | None = None
    ) -> None:
        if login is None and header is None:
            problem = f"{LOGIN}: set user:password, or name a file with it: {LOGIN}_FILE"
            raise ConfigError(LOGIN, [problem])
        self.header = header
        self._login = login
        self._attempts = attempts or Attempts()

    def admits(self, authorization: Authorization | None, header: str | None, address: str) -> bool:
        """Whether the request may be answered. Raises TooManyAttempts."""
        if self.header and self.header.user(header, address):
            return True
        if self._login is None or authorization is None or authorization.type != "basic":
            return False
        return self._login.is_known(authorization) or self._checks(self._login, authorization, address)

    def _checks(self, login: Login, authorization: Authorization, address: str) -> bool:
        if self._attempts.are_used_up(address):
            raise TooManyAttempts
        if login.accepts(authorization):
            return True
        self._attempts.add(address)
        # Further ones are neither checked nor logged.
        used_up = self._attempts.are_used_up(address)
        log.warning("console_login_refused", reason="too_many_attempts" if used_up else "wrong_login")
        return False


def gate_from_environment() -> Gate:
    """The gate that the environment describes. Raises ConfigError if nobody could pass it."""
    login, name = setting(LOGIN), setting(USER_HEADER)
    header = TrustedHeader(name, _networks(setting(TRUSTED_PROXIES))) if name else None
    return Gate(Login(login) if login else None, header)


def _networks(text: str) -> tuple[Network, ...]:
    try:
        networks = tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())
    except ValueError:
        networks = ()
    if not networks:
        problem = f"{TRUSTED_PROXIES}: list the proxy's addresses, such as 127.0.0.1, 10.0.0.0/8"
        raise ConfigError(TRUSTED_PROXIES, [problem])
    return networks
