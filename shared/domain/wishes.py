"""What a participant's text asks for: to stop, perhaps to stop, "you have the wrong person", or anything else.

Rules on normalised words, so that the result is deterministic and every decision can be traced to a rule. Nobody who
reads a text may log it or keep it, nor the rule that matched (promise P5): `classify` returns the label only.

Since 11 April 2025 "stop", "quit", "end", "revoke", "opt out", "cancel" and "unsubscribe", and any wording that a
reasonable person understands as a request, revoke consent in the United States. Source: 47 CFR 64.1200(a)(10).
"""

import re
import unicodedata
from enum import StrEnum
from itertools import islice

from shared.domain.wording import (
    COURTESY,
    FILLERS,
    GUARDS,
    KEYWORDS,
    QUOTED_REACTION,
    RULES_BY_TRIGGER,
    SAFE_WORDS,
    SLIPPABLE,
    SUBSTRINGS,
    TAKES_COURTESY,
)


class Wish(StrEnum):
    """What a text asks for. The values are stable: tests and other programs compare them."""

    STOP_EXACT = "stop_exact"  # the keyword or phrase alone: write STOP
    SUSPECTED = "suspected"  # a reasonable person reads an opt-out, or may: a person decides
    WRONG_NUMBER = "wrong_number"  # another person, or the participant has died: a person decides
    ORDINARY = "ordinary"  # anything else


# A text has at most 1,600 characters; a wish stands at its beginning or end. The limits bound the time per text.
_HEAD, _TAIL = 260, 140
_INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufdfa\ufdfb\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e01ef]"
)
_ACCENTS = re.compile(r"[\u0300-\u036f\u064b-\u065f\u0670]")
_APOSTROPHE = re.compile(r"(?<=\w)['’‘`´ʼ](?=\w)")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_SIGNATURE = re.compile(r"\bsent from my \w+(?: \w+){0,2}$|\benviado desde mi \w+(?: \w+){0,2}$")
_LETTERS_APART = re.compile(r"\b(?:[a-z] ){2,}[a-z]\b")
_STOP_SIGN = "\U0001f6d1"
_NUMBER = re.compile(r"\d{1,6}")
_NUMBER_SIGN = re.compile(r"#(?!\d)")
_LETTER_BESIDE_DIGIT = re.compile(r"(?<=[a-z])(?=\d)|(?<=\d)(?=[a-z])")
_REPEATED = re.compile(r"(.)\1+")
# A name follows: "This isn't Maria". Capital letters show it only where not everything is in capitals.
_NOT_THE_NAME = re.compile(
    r"\b(?:(?:[Tt]his|[Tt]hat|[Ii]t) ?(?:isn.?t|is not|ain.?t|.s not)|(?:I.?m|I am) not|[Nn]o soy) [A-Z][a-zà-ÿ]{2,}"
    r"(?: [A-Z][a-zà-ÿ]+)?\s*[.!]*\s*$"
)
_MAX_FILLED = 9
# More than these bound the time per text; ordinary texts of 300 characters trigger about half as many.
_MAX_RULES = 32
_MAX_SLIP = 4


def classify(text: str) -> Wish:
    """What a text asks for. Pure; never raises, whatever the text holds."""
    plain = normalised(text)
    words = plain.split()
    if not words:
        return Wish.SUSPECTED if _STOP_SIGN in text else Wish.ORDINARY
    if _is_stop(words) and "?" not in text and "？" not in text and "؟" not in text:
        return Wish.STOP_EXACT
    if QUOTED_REACTION.match(text):
        return Wish.ORDINARY
    unsigned = _SIGNATURE.sub("", plain).strip()
    return _suspicion(f" {unsigned}", unsigned.split(), text)


def _suspicion(plain: str, words: list[str], text: str) -> Wish:
    if any(guard.matches(plain, words) for guard in GUARDS):
        return Wish.ORDINARY
    if label := _label_by_rules(plain, words):
        return Wish(label)
    if _NOT_THE_NAME.search(text[-60:]):
        return Wish.WRONG_NUMBER
    if _is_keyword_among_fillers(words) or _is_slip(words):
        return Wish.SUSPECTED
    return _wish_by_substrings(plain)


# --- normalisation -----------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """Lower-case words separated by single spaces: no accents, invisible characters, punctuation or symbols."""
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]} {text[-_TAIL:]}"
    text = text.casefold() if text.isascii() else _without_accents(text)
    text = _LETTER_BESIDE_DIGIT.sub(" ", _NUMBER_SIGN.sub(" number ", text))
    words = _BETWEEN_WORDS.sub(" ", _APOSTROPHE.sub("", text)).strip()
    joined = _LETTERS_APART.sub(lambda letters: letters[0].replace(" ", ""), words)
    return joined.replace("opt out", "optout").replace("opting out", "optout").replace("stop all", "stopall")


def _without_accents(text: str) -> str:
    folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", folded)))


# --- the keyword alone -------------------------------------------------------------------------------


def _is_stop(words: list[str]) -> bool:
    """Nothing but keywords; courtesy may stand with those that can mean nothing else."""
    present = set(words)
    found = present & KEYWORDS
    if not found or len(words) > 40:
        return False
    rest = present - found
    if not rest:
        return True
    courteous = COURTESY.fullmatch(" ".join(word for word in words if word not in KEYWORDS)) is not None
    return courteous and found <= TAKES_COURTESY


# --- keywords among words that add nothing, and slips of the finger -----------------------------------


def _is_keyword_among_fillers(words: list[str]) -> bool:
    return (
        len(words) <= _MAX_FILLED
        and not KEYWORDS.isdisjoint(words)
        and all(word in KEYWORDS or word in FILLERS or _NUMBER.fullmatch(word) for word in words)
    )


def _is_slip(words: list[str]) -> bool:
    """A short message in which one word is a misspelt keyword, and the others add nothing."""
    if len(words) > _MAX_SLIP:
        return False
    if len(words) == 2 and "".join(words) in KEYWORDS:
        return True
    others = [word for word in words if word not in FILLERS and word not in KEYWORDS]
    return len(others) == 1 and _is_misspelt_keyword(others[0])


def _is_misspelt_keyword(word: str) -> bool:
    if word in SAFE_WORDS or not 3 <= len(word) <= 24:
        return False
    shapes = {word, _REPEATED.sub(r"\1", word)}
    return any(_is_one_slip_apart(shape, keyword) for shape in shapes for keyword in SLIPPABLE)


def _is_one_slip_apart(word: str, keyword: str) -> bool:
    """One letter more, less or other, or two neighbours exchanged."""
    if abs(len(word) - len(keyword)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, keyword, strict=False)) if a != b), None)
    if start is None:
        return True
    rest, expected = word[start:], keyword[start:]
    exchanged = rest[1::-1] + rest[2:]
    return expected[1:] in (rest[1:], rest) or expected in (rest[1:], exchanged)


# --- rules -------------------------------------------------------------------------------------------


def _label_by_rules(plain: str, words: list[str]) -> str | None:
    """The label of the first matching rule; of a text with too many triggers, that a person should read it."""
    triggered = {rule.number: rule for word in words for rule in RULES_BY_TRIGGER.get(word, ())}
    rules = islice(triggered.values(), _MAX_RULES)
    found = next((rule.label for rule in rules if rule.pattern.search(plain)), None)
    return found or (Wish.SUSPECTED if len(triggered) > _MAX_RULES else None)


def _wish_by_substrings(plain: str) -> Wish:
    """The wish in languages that are written without spaces or with attached words."""
    if plain.isascii():
        return Wish.ORDINARY
    labels = (label for pieces, label in SUBSTRINGS if any(piece in plain for piece in pieces))
    return Wish(next(labels, Wish.ORDINARY))
