"""An institution's own certificate authority: one file, trusted besides the public ones, for every peer."""

import os
import ssl
from functools import lru_cache
from pathlib import Path

from shared.errors import ConfigError

CA_FILE = "OPTOUT_CA_FILE"


def ca_file() -> str:
    """Path of the file with further authorities that `OPTOUT_CA_FILE` names; "" without one, or if it is empty.

    Raises ConfigError if it cannot be read or holds something else than certificates.
    """
    path = Path(os.environ.get(CA_FILE) or "/")
    try:
        # A container engine makes a folder where the file to be mounted does not exist.
        if not path.is_file() or not path.read_bytes().strip():
            return ""
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise _problem(f"{path} cannot be read ({error.strerror}); make it readable by all") from None
    _require_certificates(str(path), modified)
    return str(path)


@lru_cache(maxsize=1)
def _require_certificates(path: str, _modified_ns: int) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (ssl.SSLError, OSError):
        raise _problem(f"{path} holds no certificates in PEM form; correct or empty it") from None


def _problem(text: str) -> ConfigError:
    return ConfigError(CA_FILE, [f"{CA_FILE}: {text}"])


def client_context() -> ssl.SSLContext:
    """How this program verifies a server: by the public authorities and those of `ca_file`. Raises ConfigError."""
    context = ssl.create_default_context()
    if path := ca_file():
        context.load_verify_locations(path)
    return context
