"""Addresses that hold a login: of Redis, of a broker, of a mail server."""

import re
from urllib.parse import SplitResult, urlsplit

from shared.errors import ConfigError

# kombu takes several brokers in one text, which it tries in turn. Source: Celery docs, broker_url.
_NEXT = re.compile(r";(?=[a-z+]+://)")
MEND = (
    "cannot be read as an address; percent-encode user and password (/ is %2F, # is %23, ? is %3F, @ is %40, "
    "% is %25), and let the port be a number up to 65535"
)


def address_parts(url: str, key: str) -> SplitResult:
    """An address in its parts. Raises ConfigError, without any text of it, where a login was not percent-encoded.

    A slash, a question mark or a number sign ends the part that holds the login (RFC 3986, 3.2): what follows the
    colon before it is then taken for a port, and Python's ValueError repeats that piece of the password.
    """
    parts = _parts(url)
    # An @ behind the host's part: the login was cut short before a piece that looked like a port.
    if parts is None or (parts.netloc and "@" in f"{parts.path}{parts.query}{parts.fragment}"):
        raise ConfigError(key, [f"{key}: {MEND}"])
    return parts


def _parts(url: str) -> SplitResult | None:
    """None where it has none: whoever raises on it does so without the ValueError as its context."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises where it is none
    except ValueError:
        return None
    return parts


def readable(url: str, key: str) -> str:
    """The address as it was given, of one server or several. Raises as `address_parts` does."""
    for each in _NEXT.split(url):
        address_parts(each, key)
    return url
