"""Which recipients of an event's e-mail are done: the others are tried again alone."""

from dataclasses import dataclass

from shared.domain.events import Notice


@dataclass(frozen=True, slots=True)
class Delivery:
    """Keyed hashes of the addresses that the mail server accepted, and of those that it rejected for good."""

    accepted: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()

    @classmethod
    def decode(cls, stored: dict[str, str], notice: Notice | None) -> "Delivery":
        """Read an event's fields; they count for the mail that they name, and no other."""
        name = f"{notice}.{stored.get('notice_number', '')}"
        parts = [stored.get(f"mail_{kind}", "").split() for kind in ("accepted", "rejected")]
        return cls(*(frozenset(part[1:] if part[:1] == [name] else ()) for part in parts))

    def encode(self, notice: Notice, number: str) -> tuple[str, str]:
        """The two fields."""
        name = f"{notice}.{number}"
        return " ".join([name, *sorted(self.accepted)]), " ".join([name, *sorted(self.rejected)])

    def is_done(self, address_hash: str) -> bool:
        """Whether an address must not be tried again."""
        return address_hash in self.accepted or address_hash in self.rejected
