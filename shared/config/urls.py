"""Addresses that may contain a login: of Redis, a broker or a mail server."""

import re
from urllib.parse import SplitResult, urlsplit

from shared.errors import ConfigError

# kombu accepts several brokers in one string and tries them in turn. Source: Celery docs, broker_url.
_SEPARATOR = re.compile(r";(?=[a-z+]+://)")
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
        parts.port  # noqa: B018  raises ValueError if the port is invalid
    except ValueError:
        return None
    return parts


def checked_url(url: str, key: str) -> str:
    """The unchanged address of one server or several. Raises ConfigError as `address_parts` does."""
    for each in _SEPARATOR.split(url):
        address_parts(each, key)
    return url
