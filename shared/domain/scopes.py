"""How far an opt-out reaches: a START ends the opt-outs of its own scope only.

At Twilio, an opt-out belongs to a Messaging Service with all its senders, or to one number outside a service.
WhatsApp senders are separate. Source: Twilio help article 223134027; Twilio docs, "Advanced Opt-Out".
"""

from collections.abc import Collection

from shared.domain.addresses import PhoneHasher, channel_and_address

# The scope of a decision by staff. It concerns a record, whatever numbers that record holds.
STAFF = "staff"
# An opt-out that was recorded before scopes were kept: no START is known to end it.
UNKNOWN = ""

_RECORD = "record:"


def scope_of(
    service: str | None, message_services: Collection[str], recipient: str, hasher: PhoneHasher
) -> str:
    """Return the scope of a message to `recipient`, of the project's Messaging Service and those of the message.

    The service's SID, or a keyed hash of the number or sender texted: the ledger holds no numbers.
    """
    channel, address = channel_and_address(recipient)
    if channel == "whatsapp":
        return f"whatsapp:{hasher(address)}"
    return service if service and service in message_services else f"number:{hasher(address)}"


def staff_key(record: str) -> str:
    """Return what stands in the place of a phone hash where staff decided about a record."""
    return _RECORD + record


def record_of(key: str) -> str | None:
    """Return the record of a `staff_key`; None for a phone hash."""
    return key.removeprefix(_RECORD) if key.startswith(_RECORD) else None
