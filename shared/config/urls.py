"""Addresses that may contain a login: of Redis, a broker or a mail server."""

import re
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from shared.config.certificates import ca_file
from shared.config.sentinel import SCHEMES, TLS_SCHEME, sentinel_address
from shared.errors import ConfigError

# kombu accepts several brokers in one string and tries them in turn. Source: Celery docs, broker_url.
SEPARATOR = re.compile(r";(?=[a-z+]+://)")
FIX = (
    "is not a valid address; percent-encode user and password (/ is %2F, # is %23, ? is %3F, @ is %40, "
    "% is %25), and let the port be a number up to 65535"
)


def address_parts(url: str, key: str) -> SplitResult:
    """The parts of an address. Raises ConfigError, without quoting the address, if the login is not percent-encoded.

    A slash, question mark or number sign ends the part with the login (RFC 3986, 3.2). Python then takes what
    follows the preceding colon for a port, and its ValueError repeats that part of the password.
    """
    parts = _parts(url)
    # An @ after the host: the login ended early, before a piece that looked like a port.
    if parts is None or (parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}"):
        raise ConfigError(key, [f"{key}: {FIX}"])
    return parts


def _parts(url: str) -> SplitResult | None:
    """None if invalid, so that the caller raises without the ValueError as its context."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            parts.port  # noqa: B018  raises ValueError if the port is invalid
    except ValueError:
        return None
    return parts


def checked_url(url: str, key: str) -> str:
    """The address of one server or several. Raises ConfigError as `address_parts` and `ca_file` do.

    `rediss` and `amqps` addresses trust `ca_file`, too. A `rediss` address verifies the certificate unless it says
    otherwise: kombu accepts any certificate by default. Source: kombu/utils/url.py and kombu/transport/redis.py.
    """
    addresses = SEPARATOR.split(url)
    if len(addresses) > 1 and any(each.startswith(SCHEMES) for each in addresses):
        raise ConfigError(key, [f"{key}: list the sentinels in one address, separated by commas"])
    return ";".join(_checked_address(each, key) for each in addresses)


def _checked_address(url: str, key: str) -> str:
    parts = address_parts(url, key)
    if parts.scheme == "amqps":
        _refuse_tls_options(parts, key)
    if parts.scheme in {"redis", "rediss"}:
        _require_database_number(parts, key)
    if parts.scheme in SCHEMES:
        sentinel_address(url, key)
    return _verifying(url, parts) if parts.scheme in {"rediss", TLS_SCHEME} else url


def _verifying(url: str, parts: SplitResult) -> str:
    """The address with those options of the certificate's verification that it does not give itself."""
    options = {"ssl_cert_reqs": "required", "ssl_ca_certs": quote(ca_file())}
    given = parse_qs(parts.query)
    added = "&".join(f"{name}={value}" for name, value in options.items() if value and name not in given)
    return f"{url}{'&' if parts.query else '?'}{added}" if added else url


def _require_database_number(parts: SplitResult, key: str) -> None:
    """Raises ConfigError: redis-py would use database 0 instead, and kombu would end when it connects."""
    if not re.fullmatch(r"(/[0-9]{0,5})?", parts.path):
        raise ConfigError(
            key, [f"{key}: what follows host and port must be the number of a database, such as /0"]
        )


def verifies_certificate(url: str) -> bool:
    """Whether no server in an address escapes the verification of its certificate and host name."""
    options = [
        parse_qs(urlsplit(each).query)
        for each in SEPARATOR.split(url)
        if each.startswith(("rediss:", f"{TLS_SCHEME}:"))
    ]
    return all(
        each.get("ssl_cert_reqs", ["required"])[-1].lower().removeprefix("cert_") == "required"
        and each.get("ssl_check_hostname", ["true"])[-1].lower() not in {"false", "0", "no", "n"}
        for each in options
    )


def _refuse_tls_options(parts: SplitResult, key: str) -> None:
    """Raises ConfigError: py-amqp would raise a TypeError when it connects."""
    ca_file()
    if any(name.startswith("ssl") for name in parse_qs(parts.query)):
        problem = (
            "amqps:// takes no ssl options: the certificate is verified by the public authorities and ca.pem"
        )
        raise ConfigError(key, [f"{key}: {problem}"])


def redis_address(url: str, key: str) -> str:
    """The address of the ledger. Raises ConfigError as `checked_url` does, or if it is not a Redis address."""
    if address_parts(url, key).scheme not in {"redis", "rediss", *SCHEMES}:
        problem = f"{key}: must be redis://host:port/number, rediss:// for TLS, or redis+sentinel://"
        raise ConfigError(key, [problem])
    return checked_url(url, key)
