"""Removal of possible personal data from REDCap's messages (promise P5)."""

import html
import re
import unicodedata

MAX_SHOWN_LENGTH = 300
# Longer text is cut first: a megabyte would keep the expressions below busy for minutes.
MAX_REDACTED_LENGTH = 2_000

_MARK = "…"
_STRAIGHT_QUOTES = str.maketrans(dict.fromkeys("“”„‟«»″「」『』", '"') | dict.fromkeys("‘’‚‛‹›′`´", "'"))
PERSONAL_DATA = (
    re.compile(r"[0-9A-Fa-f]{32,}"),  # a token, also another project's
    re.compile(r'"[^"]*(?:"|$)'),
    re.compile(r"(?<!\w)'.*?(?:'(?!\w)|$)", re.DOTALL),  # not an apostrophe within or after a word
    re.compile(r"\S*@\S*"),
    re.compile(r"[+(]*\d(?:[\W_]{0,4}\d){6,}"),  # a phone number, whatever separates its digits
)


def redact(message: str) -> str:
    """Return a message of REDCap without quoted values, numbers and addresses, and cut to a readable length."""
    message = _normalize(message[:MAX_REDACTED_LENGTH])
    message = re.sub(r"<[^<>]*>", " ", message)
    for pattern in PERSONAL_DATA:
        message = pattern.sub(_MARK, message)
    return " ".join(message.split())[:MAX_SHOWN_LENGTH]


def _normalize(message: str) -> str:
    """Reduce spellings to one (Unicode Standard Annex 15, NFKC): wide digits, special spaces, curly quotes.

    NFKC would turn the mark of an earlier redaction into three dots, so it is left out.
    """
    straight = html.unescape(message).translate(_STRAIGHT_QUOTES)
    return _MARK.join(unicodedata.normalize("NFKC", part) for part in straight.split(_MARK))
