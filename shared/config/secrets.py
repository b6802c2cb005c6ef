"""References to secrets: `env:NAME` or `file:/path`."""

import os
import re
from pathlib import Path

from shared.errors import ConfigError, PublishedSecret

# A secret in place of a name: a token of REDCap or Twilio (32 hex digits), a key, or an address with a login.
_LOOKS_SECRET = re.compile(r"[0-9A-Fa-f]{32,}|.*://.*", re.DOTALL)
# All secrets of deploy/demo contain the first, but for the second, which opens its Flower.
_OF_DEMO, DEMO_LOGIN = "demo-only-", "demo:demo"
# No system call accepts a file name with NUL (Python raises ValueError).
_NAMES = {"env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), "file": re.compile(r"[^\0]+")}


def _is_valid_name(scheme: str, name: str) -> bool:
    pattern = _NAMES.get(scheme)
    return pattern is not None and pattern.fullmatch(name) is not None and not _LOOKS_SECRET.fullmatch(name)


def refuse_published(value: str, name: str) -> None:
    """Raises PublishedSecret for a secret of the demo, except in the demo's own images (`OPTOUT_DEMO`)."""
    if not os.environ.get("OPTOUT_DEMO") and (_OF_DEMO in value or value == DEMO_LOGIN):
        problem = f"{name} is the demo's secret, which is published: make one of your own (make deployment)"
        raise PublishedSecret(name, [problem])


class Secret:
    """A reference to a secret. Only `resolve()` reads the secret; repr shows the reference."""

    def __init__(self, reference: str) -> None:
        scheme, _, name = reference.partition(":")
        if not _is_valid_name(scheme, name):
            # The message does not repeat the text, which may be the secret itself.
            raise ValueError('must be a reference, "env:NAME" or "file:/path", never the secret itself')
        self.reference = reference
        self._scheme, self._name = scheme, name

    @property
    def path(self) -> Path | None:
        """The file that holds the secret; None if the environment does."""
        return Path(self._name) if self._scheme == "file" else None

    def resolve(self) -> str:
        """The secret without surrounding white space. Raises ConfigError if it is missing, empty or not UTF-8."""
        try:
            value = self._read().strip()
            value.encode()  # bytes that are not UTF-8 arrive from the environment as lone surrogates (PEP 383)
        except UnicodeError:  # its text and repr contain the secret
            problem = f"{self.reference} is not UTF-8: save it as UTF-8"
            raise ConfigError(self.reference, [problem]) from None
        if not value:
            raise ConfigError(self.reference, [f"{self.reference} is empty: put the secret there"])
        refuse_published(value, self.reference)
        return value

    def _read(self) -> str:
        if self._scheme == "env":
            return os.environ.get(self._name, "")
        try:
            return Path(self._name).read_text(encoding="utf-8-sig")  # without a byte order mark
        except OSError as error:
            problem = (
                f"{self.reference} cannot be read ({error.strerror}): create it, or give this user access"
            )
            raise ConfigError(self.reference, [problem]) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})"
