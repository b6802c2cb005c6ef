"""Keywords, and the block list that Twilio keeps because of them."""

from __future__ import annotations

from tests.simulators.twilio.accounts import Service
from tests.simulators.twilio.messages import Message

# Twilio docs: Advanced Opt-Out (default keywords; REVOKE and OPTOUT since 14 May 2025).
STOP_WORDS = frozenset({"STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"})
START_WORDS = frozenset({"START", "YES", "UNSTOP"})
HELP_WORDS = frozenset({"HELP", "INFO"})
TOLL_FREE = ("+1800", "+1833", "+1844", "+1855", "+1866", "+1877", "+1888")
UNSUBSCRIBED = 21610  # Twilio error 21610: the recipient has opted out of this sender or service


class MessageRefused(Exception):
    """Twilio refused to send at once: HTTP 400 with `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def keyword_of(body: str, service: Service | None = None) -> str | None:
    """STOP, START, HELP or None: the whole message is one word, whatever its case.

    Blanks around the word are trimmed here; Twilio does not document whether it does.
    """
    word = body.strip().upper()
    if word in STOP_WORDS or (service and word in service.more_stop_words):
        return "STOP"
    if word in START_WORDS or (service and word in service.more_start_words):
        return "START"
    return "HELP" if word in HELP_WORDS else None


class BlockList:
    """Who is opted out of which service (MG…) or sender.

    Only sending can reveal it; it has no API (Twilio docs: Advanced Opt-Out).
    """

    def __init__(self) -> None:
        self._pairs: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, scope: str, participant: str) -> None:
        self._pairs.add((scope, participant.removeprefix("rcs:")))

    def discard(self, scope: str, participant: str) -> None:
        self._pairs.discard((scope, participant.removeprefix("rcs:")))

    def holds(self, scope: str, participant: str) -> bool:
        return (scope, participant.removeprefix("rcs:")) in self._pairs

    def apply(self, message: Message, keyword: str | None, *, advanced_opt_out: bool) -> None:
        """What Twilio does by itself when a participant texts a keyword."""
        short_code = message.to.isdigit() and not message.messaging_service_sid
        whatsapp = message.from_.startswith("whatsapp:") and not advanced_opt_out
        if short_code or whatsapp:  # Twilio handles no keywords for these
            return
        yes = message.body.strip().upper() == "YES" and message.to.startswith(TOLL_FREE)
        if keyword == "STOP":
            self.add(message.messaging_service_sid or message.to, message.from_)
        elif keyword == "START" and not yes:  # toll-free: the network's own block ignores YES
            self.discard(message.messaging_service_sid or message.to, message.from_)
