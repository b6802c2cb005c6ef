"""The generation of an index entry: when the export began that showed it last, in seven characters.

Milliseconds to base 36, without what is above seven digits: they repeat after two and a half years, and only those of
about the same time are compared. An index of a million records takes 8 MB less than with all digits.
"""

LENGTH = 7
BASE = 36
PERIOD_MS: int = BASE**LENGTH

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def generation_text(moment_ms: int) -> str:
    """Return the generation of exports that began at this time."""
    text, rest = "", moment_ms
    for _ in range(LENGTH):
        rest, digit = divmod(rest, BASE)
        text = _DIGITS[digit] + text
    return text


def milliseconds_later(generation: str, other: str) -> int:
    """Return by how much a generation is later than another; one that is earlier seems to be years later."""
    return (int(generation, BASE) - int(other, BASE)) % PERIOD_MS
