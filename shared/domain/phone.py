"""Phone numbers: text to E.164."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberType, ValidationResult

# Changes with the rules below: an index that was built by other rules is rebuilt.
READING_VERSION = "3"

# North American numbers in their usual spellings. A test compares with libphonenumber, which takes twenty times as
# long; with a hundred thousand records that matters.
_E164_OF_NORTH_AMERICA = re.compile(r"\+1[2-9][0-9]{9}")
_NORTH_AMERICAN = re.compile(r"\(?([2-9][0-9]{2})\)?[ .-]{0,2}([0-9]{3})[ .-]?([0-9]{4})")
# Valid, although the library may say otherwise: of North America, where neither area code nor exchange begins with 0
# or 1; and those that Ofcom reserves for drama, which British studies use for test records.
# Source: Ofcom, "Telephone numbers for use in TV and radio drama programmes".
_VALID_SHAPE = re.compile(r"\+1[2-9][0-9]{2}[2-9][0-9]{6}|\+447700900[0-9]{3}")
_NORTH_AMERICA = frozenset({"US", "CA"})

# Digits that belong to no phone number: dates with separators, times of day, opening hours, "24/7".
_DATE = (
    r"\d{1,2}([./-])\d{1,2}\1(?:\d{4}|\d{2})|(?:19|20)\d{2}([./-])\d{1,2}\2\d{1,2}"
    r"|(?:0?[1-9]|1[0-2])/(?:19|20)\d{2}|(?:19|20)\d{2}/(?:0[1-9]|1[0-2]|(?:19|20)\d{2})"
)
_TIME = r"\d{1,2}[:.]\d{2}(?::\d{2})? ?(?:[ap]\.?m\b\.?|h\b|uhr\b)?|\d{1,2} ?(?:[ap]\.?m\b\.?|h\b|uhr\b)"
_HOURS = r"\d{1,2}(?::\d{2})? ?[-–] ?\d{1,2}(?::\d{2})? ?(?:[ap]\.?m\b\.?|h\b|uhr\b)"
_NOT_A_NUMBER = re.compile(
    rf"(?<!\d)(?<!\d[./-])(?:{_DATE}|24/7)(?!\d|[./-]\d)|(?<![\d.])(?:{_HOURS}|\d{{1,2}}:\d{{2}}(?::\d{{2}})?)(?!\d)"
    rf"|(?<![\d.])(?:{_TIME})(?![\d.])",
    re.IGNORECASE,
)
# A year at the end of a number, apart from it: not part of the number if the rest is one.
_YEAR = re.compile(r" (?:19|20)\d{2}$")
# Between the digits of one number: white space, dots, dashes, slashes, brackets, underscores, bullets.
_SOFT = frozenset(" \t./\\()[]_·•‣⁃‧∙'~⁄−")
# No dialled number has more digits: E.164's 15 and an international prefix.
_MAX_DIGITS = 20
# How North American numbers are grouped; "1" is dialled first within North America.
_USUAL_GROUPS = re.compile(r"(?:1 ?)?\d{3} ?\d{3} ?\d{4}")
# So many digits are one number if they can be.
_ONE_NUMBER = 11
# Digits of a group at the end of a number; a shorter one may be followed by another.
_LONG_GROUP = 6
# Digits of a number that is accepted by its length alone.
_SHORTEST_ALONE = 9

_DIAL_OUT = re.compile(r"^(?:0011|011|00) ?(?=[1-9])")
_MOBILE = {PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE}
_MEXICO, _NORTH_AMERICAN_CODE = 52, 1


def sender_number(address: str) -> str | None:
    """E.164 of a message's sender, or None for a short code or a raw caller id.

    Twilio gives E.164 "if possible", otherwise the raw caller id, which does not show the country.
    Source: Twilio docs, "TwiML for Programmable Messaging".
    """
    if _E164_OF_NORTH_AMERICA.fullmatch(address):
        return address
    number = _parse(address, None) if address.startswith("+") else None
    return _e164(number) if number and phonenumbers.is_possible_number(number) else None


def numbers_in(text: str, region: str) -> Iterator[str]:
    """E.164 of every phone number in a REDCap field's text, each once; numbers without country are of `region`.

    A valid number takes precedence over a merely possible one (numbering plans grow faster than any library's
    tables), and digits of dates, times and other numbers are never joined.
    """
    quick = _north_american(text, region)
    yield from dict.fromkeys([quick] if quick else _numbers(text, region))


# An "extension" that is as long as a number: "x", "ext.", "extension", "#".
_LONG_EXTENSION = re.compile(r"(?:(?<![a-z])(?:x|ext(?:ensio)?n?)|#)[ .:=]*(?:\d[ .()/-]*){7}", re.IGNORECASE)


def doubts_about(text: str, region: str) -> Iterator[str]:
    """What a person should check in a field's text, although `numbers_in` finds numbers in it. Each doubt once."""
    unusual = (number for number in numbers_in(text, region) if not _VALID_SHAPE.fullmatch(number))
    parsed = list(map(phonenumbers.parse, unusual))
    complete = [number for number in parsed if not _lacks_area_code(number)]
    if len(complete) < len(parsed):
        yield "without area code"
    if not all(map(_is_valid, complete)):
        yield "not valid in any numbering plan"
    if _LONG_EXTENSION.search(_plain(text)):
        yield "with an extension as long as a number"


def _north_american(text: str, region: str) -> str | None:
    if _E164_OF_NORTH_AMERICA.fullmatch(text):
        return text
    if region in _NORTH_AMERICA and (parts := _NORTH_AMERICAN.fullmatch(text)):
        return "+1" + "".join(parts.groups())
    return None


def _numbers(text: str, region: str) -> list[str]:
    segments = _segments(text)
    found = [number for segment in segments for number in _numbers_in_segment(segment, region)]
    for reading in (_possible, _local_number):  # only if the text contains nothing else
        found = found or [number for segment in segments if (number := reading(segment, region))]
    return found


# --- segments: what may hold the digits of one number or several -----------------------------------


def _segments(text: str) -> list[str]:
    """Pieces that no number reaches beyond: digit groups separated by single spaces, "+" only in front."""
    kept = _NOT_A_NUMBER.sub("|", _plain(text))
    marked = "".join(_class_of(character) for character in kept)
    return [
        " ".join(piece.split()) for piece in re.split(r"\||(?=\+)", marked) if any(map(str.isdigit, piece))
    ]


def _plain(text: str) -> str:
    """ASCII digits and ordinary spaces in place of their Unicode variants; invisible characters removed."""
    return "".join(_plain_character(character) for character in text)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    match unicodedata.category(character):
        case "Nd":
            return str(unicodedata.decimal(character))
        case "Cf" | "Mn":
            return ""
        case "Zs":
            return " "
        case "Pd":
            return "-"
    return "+" if character == "＋" else character


def _class_of(character: str) -> str:
    if (character.isdigit() and character.isascii()) or character == "+":
        return character
    return " " if character in _SOFT or unicodedata.category(character) == "Pd" else "|"


# --- numbers in a segment: the division into runs of digit groups that covers most digits -----------


class _Division(NamedTuple):
    """A way to divide groups of digits into numbers.

    The best has most digits in valid numbers of the usual form, then in valid numbers, then in possible ones, then
    most years in no number, then fewest numbers.
    """

    usual_digits: int = 0
    valid_digits: int = 0
    possible_digits: int = 0
    years_outside: int = 0
    fewer: int = 0
    numbers: tuple[str, ...] = ()

    def with_number(self, number: str, *, valid: bool, usual: bool) -> "_Division":
        """This division and one further number."""
        digits = len(number)
        return self._replace(
            usual_digits=self.usual_digits + (digits if valid and usual else 0),
            valid_digits=self.valid_digits + (digits if valid else 0),
            possible_digits=self.possible_digits + (0 if valid else digits),
            fewer=self.fewer - 1,
            numbers=(*self.numbers, number),
        )

    def without(self, group: str) -> "_Division":
        """This division and a group of digits in no number."""
        return self._replace(years_outside=self.years_outside + bool(_YEAR.fullmatch(f" {group}")))


def _numbers_in_segment(segment: str, region: str) -> Sequence[str]:
    groups = segment.split(" ")
    if number := _only_number(groups, segment, region):
        return [number]
    best = [_Division()]
    for end in range(1, len(groups) + 1):
        best.append(max(_divisions(groups, end, best, region), key=lambda division: division[:5]))
    return best[-1].numbers


def _only_number(groups: Sequence[str], segment: str, region: str) -> str | None:
    """The number if it takes all groups: a short way for the most frequent case."""
    if _digits(segment) > _ONE_NUMBER or not _is_usual(segment, region) or _goes_on_too_long(groups, region):
        return None
    return _valid(segment, region)


def _divisions(
    groups: Sequence[str], end: int, best: Sequence[_Division], region: str
) -> Iterator[_Division]:
    """Every way to treat the last groups before `end`: as part of no number, or as a number."""
    yield best[end - 1].without(groups[end - 1])
    for start in range(end - 1, -1, -1):
        run = " ".join(groups[start:end])
        if _digits(run) > _MAX_DIGITS:
            return
        if _goes_on_too_long(groups[start:end], region):
            continue
        valid = _valid_in_context(run, region)
        if number := valid or (_possible(run, region) if _looks_complete(run, region) else None):
            usual = _is_usual(run, region) and not _is_service(number)
            yield best[start].with_number(number, valid=valid is not None, usual=usual)


def _valid_in_context(run: str, region: str) -> str | None:
    """E.164 of a valid reading; None if its end is a year, or if it is short and does not begin as usual."""
    if _ends_in_a_year(run, region) or (_digits(run) < _SHORTEST_ALONE and not _is_usual(run, region)):
        return None
    return _valid(run, region)


def _looks_complete(run: str, region: str) -> bool:
    """Whether a run that is not known to be valid begins, or stands alone, as only a whole number does."""
    if _digits(run) < _SHORTEST_ALONE:
        return False
    begins = (
        "+" in run or bool(_DIAL_OUT.match(run)) or (run.startswith("0") and not _is_north_american(region))
    )
    return begins or " " not in run


def _digits(run: str) -> int:
    return sum(map(str.isdigit, run))


def _is_usual(run: str, region: str) -> bool:
    """Whether a run begins as national numbers usually do; in North America also whether it is grouped so."""
    if "+" in run or _DIAL_OUT.match(run):
        return True
    if _is_north_american(region):
        return bool(_USUAL_GROUPS.fullmatch(run))
    return run.startswith("0") or not _dials_zero_first(region)


def _is_service(number: str) -> bool:
    """Whether nobody texts from such a number: it is more likely made of other digits."""
    return phonenumbers.number_type(phonenumbers.parse(number)) == PhoneNumberType.PREMIUM_RATE


def _dials_zero_first(region: str) -> bool:
    """Whether national numbers are written with a 0 in front."""
    plan = phonenumbers.PhoneMetadata.metadata_for_region(region)
    return plan is not None and plan.national_prefix == "0"


def _is_north_american(region: str) -> bool:
    return bool(phonenumbers.country_code_for_region(region) == _NORTH_AMERICAN_CODE)


def _goes_on_too_long(groups: Sequence[str], region: str) -> bool:
    """Whether a number has ended before the last group: one that is valid, and ends in a long group.

    Plans with numbers of many lengths would include whatever follows, such as hours.
    """
    shorter = (" ".join(groups[:end]) for end in range(1, len(groups)) if len(groups[end - 1]) >= _LONG_GROUP)
    return any(
        _digits(run) >= _SHORTEST_ALONE and _is_usual(run, region) and _valid(run, region) for run in shorter
    )


def _ends_in_a_year(run: str, region: str) -> bool:
    shorter = _YEAR.sub("", run)
    return (
        shorter != run
        and len(shorter.replace(" ", "")) >= _SHORTEST_ALONE
        and _valid(shorter, region) is not None
    )


# --- readings of one run of digits -------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _valid(run: str, region: str) -> str | None:
    """E.164 of a valid reading: a mobile number first, then the first of `_readings`."""
    valid = [number for number in _readings(run, region) if _is_valid(number)]
    mobile = (number for number in valid if phonenumbers.number_type(number) in _MOBILE)
    number = next(mobile, valid[0] if valid else None)
    return _e164(number) if number else None


@lru_cache(maxsize=4096)
def _possible(run: str, region: str) -> str | None:
    """E.164 of the first reading whose length is right."""
    possible = (number for number in _readings(run, region) if _has_right_length(number))
    number = next(possible, None)
    return _e164(number) if number else None


def _has_right_length(number: PhoneNumber) -> bool:
    return bool(phonenumbers.is_possible_number_with_reason(number) == ValidationResult.IS_POSSIBLE)


def _lacks_area_code(number: PhoneNumber) -> bool:
    reason = phonenumbers.is_possible_number_with_reason(number)
    return bool(reason == ValidationResult.IS_POSSIBLE_LOCAL_ONLY)


def _readings(run: str, region: str) -> Iterator[PhoneNumber]:
    """As it is written; after another country's dial-out prefix; with a dropped plus."""
    if national := _parse(run, region):
        yield national
    if run.startswith("+"):
        return
    international = _DIAL_OUT.sub("+", run, count=1)
    other = _parse(international, None) if international != run else None
    if other := other or _with_dropped_plus(run, region):
        yield other


def _with_dropped_plus(run: str, region: str) -> PhoneNumber | None:
    """Of the region's own country, also after a 0; of another country only if all digits are one group."""
    number = _parse("+" + (run if _is_north_american(region) else run.removeprefix("0")), None)
    own = number is not None and number.country_code == phonenumbers.country_code_for_region(region)
    return number if own or (" " not in run and not run.startswith("0")) else None


def _is_valid(number: PhoneNumber) -> bool:
    """By the library, which may not know an area code yet, or by its shape."""
    return phonenumbers.is_valid_number(number) or bool(_VALID_SHAPE.fullmatch(_e164(number)))


def _local_number(segment: str, region: str) -> str | None:
    """E.164 of a number without area code (`optout check` names these)."""
    number = _parse(segment, region)
    return _e164(number) if number and phonenumbers.is_possible_number(number) else None


def _parse(text: str, region: str | None) -> PhoneNumber | None:
    try:
        number = phonenumbers.parse(_without_mexican_prefix(text, region), region)
    except phonenumbers.NumberParseException:
        return None
    return _without_mexican_one(number)


def _without_mexican_prefix(text: str, region: str | None) -> str:
    """044 and 045 preceded mobile numbers within Mexico until 2019.

    Source: Instituto Federal de Telecomunicaciones, dialling rules since 3 August 2019.
    """
    return re.sub(r"^04[45] ?(?=(?:\d ?){10}$)", "", text) if region == "MX" else text


def _without_mexican_one(number: PhoneNumber) -> PhoneNumber:
    """+52 1 preceded mobile numbers until 2019; networks still send it, so both forms are one number."""
    national = str(number.national_number)
    if number.country_code == _MEXICO and len(national) == 11 and national.startswith("1"):
        return PhoneNumber(country_code=_MEXICO, national_number=int(national[1:]))
    return number


def _e164(number: PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
