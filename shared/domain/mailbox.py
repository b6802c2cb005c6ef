"""An e-mail address that may have a display name, as people write it (RFC 5322, section 3.4)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formataddr

_NAMED = re.compile(r"(?P<name>.*?)\s*<(?P<address>[^<>]*)>", re.DOTALL)
_BARE = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
# What separates addresses, or has a meaning of its own, outside quotation marks.
_SPECIAL = re.compile(r'[][\\<>@,:;"]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]")
# A line of a header has at most 78 characters (RFC 5322, 2.1.1); longer names become several encoded words.
_LONGEST_NAME = 60


class Mailbox(str):
    """An address, which as text is without its display name: envelopes, hashes and comparisons need the address."""

    name: str

    def __new__(cls, address: str, name: str = "") -> Mailbox:
        made = super().__new__(cls, address)
        made.name = name
        return made

    @classmethod
    def parse(cls, text: str) -> Mailbox:
        """Read `address` or `Name <address>`. Raises ValueError."""
        if isinstance(text, Mailbox):
            return text
        if not isinstance(text, str):
            raise TypeError
        named = _NAMED.fullmatch(text.strip())
        address = named["address"].strip() if named else text.strip()
        name = _unquoted(named["name"].strip()) if named else ""
        if not _BARE.fullmatch(address) or not _is_address(address) or _CONTROL.search(name):
            raise ValueError("not an e-mail address")
        return cls(address, name)

    @property
    def domain(self) -> str:
        """What follows the @."""
        return self.rpartition("@")[2]

    @property
    def written(self) -> str:
        """As `parse` reads it."""
        quoted = '"' + re.sub(r'(["\\])', r"\\\1", self.name) + '"'
        return f"{quoted} <{self}>" if self.name else str(self)

    @property
    def encoded(self) -> str:
        """As a header has it, in lines that are short enough; a name that is not ASCII as RFC 2047 says.

        Not left to the standard library: where it breaks a line in a name with a comma, the quotation marks are lost,
        and the name becomes further addresses (CPython issues 80222, 87720 and 121284).
        """
        if not self.name:
            return str(self)
        if self.name.isascii() and len(self.name) <= _LONGEST_NAME:
            return formataddr((self.name, "")).removesuffix(" <>") + f"\n <{self}>"
        return Header(self.name, "utf-8", header_name="Reply-To").encode() + f"\n <{self}>"


def set_addresses(message: EmailMessage, header: str, mailboxes: Iterable[str]) -> None:
    """Add a header with these addresses."""
    message.set_raw(header, ",\n ".join(Mailbox.parse(each).encoded for each in mailboxes))


def without_repeated(mailboxes: Iterable[Mailbox]) -> list[Mailbox]:
    """Each address once, as it stands first."""
    found: dict[str, Mailbox] = {}
    for each in mailboxes:
        found.setdefault(each.casefold(), each)
    return list(found.values())


def _unquoted(name: str) -> str:
    """A display name without its quotation marks. Raises ValueError if it needs some."""
    if quoted := _QUOTED.fullmatch(name):
        return re.sub(r"\\(.)", r"\1", quoted[1]).strip()
    if _SPECIAL.search(name):
        raise ValueError("a name that needs quotation marks")
    return name


def _is_address(address: str) -> bool:
    """Whether the standard library can put it into a header."""
    try:
        return Address(addr_spec=address).addr_spec == address
    except (MessageError, ValueError, IndexError):
        return False
