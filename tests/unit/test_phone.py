"""Phone numbers: spellings, regions, and the keyed hash."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.addresses import PhoneHasher, channel_and_address
from shared.domain.phone import doubts_about, numbers_in, sender_number


def found(text: str, region: str = "US") -> list[str]:
    return list(numbers_in(text, region))


@pytest.mark.parametrize(
    "spelling",
    [
        "+16505550123",
        "16505550123",
        "6505550123",
        "(650) 555-0123",
        "650-555-0123",
        "650.555.0123",
        "650 555 0123",
        "1 (650) 555-0123",
        "+1 650-555-0123",
        "011 1 650 555 0123",
        " (650)555-0123 ",
        "tel:+1-650-555-0123",
        "650–555–0123",  # en dashes
        "６５０５５５０１２３",  # full-width digits
        "(650) 555-0123 ext. 7",
        "650-555-0123 x7",
        "cell: 650 555 0123",
    ],
)
def test_any_spelling_of_a_number_is_the_same_number(spelling: str) -> None:
    assert found(spelling) == ["+16505550123"]


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("020 7946 0123", "GB", "+442079460123"),
        ("+44 20 7946 0123", "US", "+442079460123"),
        ("030 901820", "DE", "+4930901820"),
        ("+49 (0)30 901820", "US", "+4930901820"),
        ("06 12 34 56 78", "FR", "+33612345678"),
        ("(650) 555-0123", "CA", "+16505550123"),
    ],
)
def test_a_number_without_country_is_of_the_project_s_region(text: str, region: str, expected: str) -> None:
    assert found(text, region) == [expected]


def test_two_numbers_in_one_field_are_both_found() -> None:
    assert found("650-555-0123 or 650-555-0124") == ["+16505550123", "+16505550124"]
    assert found("home (650) 555-0123 / mobile +44 20 7946 0123") == ["+16505550123", "+442079460123"]


@pytest.mark.parametrize("text", ["", " ", "none", "n/a", "12345", "refused", "650-55", "@", "+", "+1"])
def test_what_is_no_number_gives_none(text: str) -> None:
    assert found(text) == []


@given(st.text(max_size=60))
def test_no_text_whatever_breaks_the_reading(text: str) -> None:
    assert all(number.startswith("+") for number in found(text))


@given(
    st.from_regex(r"\A[2-9][0-9]{2}[2-9][0-9]{6}\Z"),
    st.sampled_from(["({}) {}-{}", "{}-{}-{}", "{}{}{}", "+1 {} {} {}", "1.{}.{}.{}"]),
)
def test_every_north_american_number_is_found_in_every_spelling(digits: str, style: str) -> None:
    assert found(style.format(digits[:3], digits[3:6], digits[6:])) == [f"+1{digits}"]


class TestSenders:
    def test_an_e164_sender_is_a_number(self) -> None:
        assert sender_number("+16505550123") == "+16505550123"

    @pytest.mark.parametrize(
        "address",
        ["266739", "16505550123", "Anonymous", "", "+", "+1", "+12345", "+1650555012345678"],
    )
    def test_a_short_code_or_raw_caller_id_is_none(self, address: str) -> None:
        assert sender_number(address) is None

    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("+16505550123", ("sms", "+16505550123")),
            ("whatsapp:+16505550123", ("whatsapp", "+16505550123")),
            ("RCS:+16505550123", ("rcs", "+16505550123")),
            ("rcs:agent_name", ("rcs", "agent_name")),
            ("messenger:123", ("messenger", "123")),
        ],
    )
    def test_the_channel_stands_before_the_colon(self, address: str, expected: tuple[str, str]) -> None:
        assert channel_and_address(address) == expected


class TestHash:
    def test_it_is_hmac_sha256_with_the_key_cut_to_128_bits(self) -> None:
        digest = hmac.digest(b"key", b"+16505550123", "sha256")[:16]
        text = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        assert PhoneHasher("key")("+16505550123") == text
        assert len(text) == 22

    def test_another_key_gives_another_hash(self) -> None:
        assert PhoneHasher("key")("+16505550123") != PhoneHasher("other key")("+16505550123")

    def test_another_number_gives_another_hash(self) -> None:
        hasher = PhoneHasher("key")
        assert len({hasher(f"+1650555{n:04d}") for n in range(10_000)}) == 10_000


@given(
    st.from_regex(r"\A[(+]?[0-9() .-]{0,3}[0-9]{1,4}[) .-]{0,3}[0-9]{2,4}[ .-]{0,2}[0-9]{2,5}\Z"),
    st.sampled_from(["US", "CA", "GB", "MX"]),
)
def test_the_quick_way_says_what_the_library_says(text: str, region: str) -> None:
    """A leading line break keeps the quick way from matching."""
    assert found(text, region) == found(f"\n{text}", region)


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("6505550123;6505550124", "US", ["+16505550123", "+16505550124"]),
        ("650-555-0123 x 650-555-0124", "US", ["+16505550123", "+16505550124"]),
        ("650 555 0123 650 555 0124", "US", ["+16505550123", "+16505550124"]),
        ("(650) 555-0123 (650) 555-0124", "US", ["+16505550123", "+16505550124"]),
        ("650.555.0123 - 650.555.0124", "US", ["+16505550123", "+16505550124"]),
        ("6505550123 6505550124 6505550125", "US", ["+16505550123", "+16505550124", "+16505550125"]),
        ("6505550123\n6505550124", "US", ["+16505550123", "+16505550124"]),
        ("+16505550123+16505550124", "US", ["+16505550123", "+16505550124"]),
        ("415 650 2123 415 650 2124", "US", ["+14156502123", "+14156502124"]),
        ("06 12 34 56 78 - 06 12 34 56 79", "FR", ["+33612345678", "+33612345679"]),
        ("06 12 34 56 78 / 07 52 34 56 79", "FR", ["+33612345678", "+33752345679"]),
        ("0151 23456789, 0151 23456780", "DE", ["+4915123456789", "+4915123456780"]),
        ("650-555-0123, 650-555-0123", "US", ["+16505550123"]),
        ("(650)5550123(650)5550124", "US", ["+16505550123", "+16505550124"]),
        ("089 12345678 0171/2345678", "DE", ["+498912345678", "+491712345678"]),
        ("07911 123456 07700 900123", "GB", ["+447911123456", "+447700900123"]),
        ("0412 345 678 0412 345 679", "AU", ["+61412345678", "+61412345679"]),
        ("9123 4567 9123 4568", "HK", ["+85291234567", "+85291234568"]),
    ],
)
def test_several_numbers_in_one_field_are_all_found(text: str, region: str, expected: list[str]) -> None:
    assert found(text, region) == expected


@pytest.mark.parametrize(
    "text",
    [
        "650-555-0123 01/02/2024",
        "650-555-0123 2024-01-02",
        "1/2/24 650-555-0123",
        "01.02.2024: 650-555-0123",
        "(650) 555-0123 9am-5pm",
        "(650) 555-0123 9:00 - 17:00",
        "(650) 555-0123 after 5 p.m.",
        "(650) 555-0123 09:30",
        "(650) 555-0123 24/7",
        "650.555.0123 as of 2024",
        "650.555.0123 2024",
        "650.555.0123 (2024)",
        "650 555 0123 ext 12",
        "650 555 0123 #4",
        "1. 650 555 0123",
        "650 555 0123 (mother, 2 children)",
    ],
)
def test_digits_of_dates_hours_and_years_are_no_part_of_a_number(text: str) -> None:
    assert found(text) == ["+16505550123"]


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("07700 900123 2024", "GB", "+447700900123"),
        ("07911 123456 0900-1700", "GB", "+447911123456"),
        ("650-555-0123 0900-1700", "US", "+16505550123"),
        ("id 12345 650.555.0126", "US", "+16505550126"),
        ("2024 089 12345678", "DE", "+498912345678"),
        ("089 12345678 (2)", "DE", "+498912345678"),
        ("089 12345678 9-17", "DE", "+498912345678"),
        ("0171/2345678, 20240102", "DE", "+491712345678"),
        ("0412 345 678 02/2024", "AU", "+61412345678"),
    ],
)
def test_other_digits_take_no_number_away(text: str, region: str, expected: str) -> None:
    assert found(text, region) == [expected]


@pytest.mark.parametrize("text", ["030 901820 01.02.2024", "030 901820 17:30", "030 9018201 2024"])
def test_a_plan_of_many_lengths_takes_no_digits_of_a_date(text: str) -> None:
    assert found(text, "DE") == [
        "+49" + text[1:].split(" 0")[0].split(" 1")[0].split(" 2")[0].replace(" ", "")
    ]


@pytest.mark.parametrize(
    "gap", ["\t", "\u2009", "\u202f", "\u200e", "\u200b", "_", "·", "•", "\u00a0", "‐", "⁃", " \u2060"]
)
def test_any_space_or_mark_may_stand_between_digits(gap: str) -> None:
    assert found(f"650{gap}555{gap}0123") == ["+16505550123"]
    assert found(f"+1{gap}650{gap}555{gap}0123", "GB") == ["+16505550123"]


@pytest.mark.parametrize(
    "text", ["+52 1 55 5555 0123", "044 55 5555 0123", "+525555550123", "55 5555 0123", "045 5555550123"]
)
def test_mexico_s_old_mobile_prefixes_are_the_same_number(text: str) -> None:
    assert found(text, "MX") == ["+525555550123"]
    assert sender_number("+5215555550123") == sender_number("+525555550123") == "+525555550123"


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("0044 7700 900123", "US", "+447700900123"),
        ("0044 7700 900123", "AU", "+447700900123"),
        ("00447700900123", "CA", "+447700900123"),
        ("011 44 7700 900123", "GB", "+447700900123"),
        ("011447700900123", "US", "+447700900123"),
        ("0011 44 7700 900123", "AU", "+447700900123"),
        ("4915123456789", "DE", "+4915123456789"),
        ("4915123456789", "US", "+4915123456789"),
        ("0919876543210", "IN", "+919876543210"),
        ("919876543210", "IN", "+919876543210"),
        ("09876543210", "IN", "+919876543210"),
        ("447700900123", "GB", "+447700900123"),
        ("07700 900123", "GB", "+447700900123"),
        ("33612345678", "FR", "+33612345678"),
        ("020 7946 0123", "GB", "+442079460123"),
    ],
)
def test_foreign_dial_out_prefixes_and_a_dropped_plus_are_read(text: str, region: str, expected: str) -> None:
    assert found(text, region) == [expected]


NUMBERS = {
    "US": ["650-555-0123", "(415) 650-2123", "+1 212 555 0188", "6505550124", "+44 7700 900123"],
    "GB": ["07700 900123", "+44 7700 900124", "020 7946 0123", "07700900125", "+1 650 555 0123"],
    "FR": ["06 12 34 56 78", "07.52.34.56.79", "+33 6 12 34 56 80", "0612345681"],
    "DE": ["0151 23456789", "030 901820", "+49 151 23456780", "0171/2345678", "089 12345678"],
    "AU": ["0412 345 678", "0412345679", "(02) 9374 4000", "+61 412 345 670"],
    "MX": ["55 5555 0123", "+52 1 55 5555 0124", "55-5555-0125"],
}
AROUND = [
    " ", "; ", ", ", " / ", " - ", " or ", "\n", "\t", " x ", " 01/02/2024 ", " 9am-5pm ", " (mother) ", " 24/7 ",
    " since 2023 ", " | ", " & ", " 10:30 ", " mobile: ", " #2 ", ", born 2001-05-04, ", " 2024 ", " (2024) ",
    " 2023/2024 ", " 02/2024 ", " 2024/05 ", " 9:00-17:00 ", " 9-5 pm ", " Jan 2, 2024 ", " 1) ", " age 34 ",
]  # fmt: skip


@given(st.data(), st.sampled_from(sorted(NUMBERS)))
def test_what_stands_around_numbers_loses_none_and_makes_none(data: st.DataObject, region: str) -> None:
    numbers = data.draw(st.lists(st.sampled_from(NUMBERS[region]), min_size=1, max_size=3))
    parts = [data.draw(st.sampled_from(["", *AROUND]))]
    for number in numbers:
        parts += [number, data.draw(st.sampled_from(AROUND))]
    expected = dict.fromkeys(each for number in numbers for each in found(number, region))
    assert found("".join(parts), region) == list(expected)


LOCAL = "without area code"
INVALID = "not valid in any numbering plan"
EXTENSION = "with an extension as long as a number"


@pytest.mark.parametrize(
    ("text", "region", "expected"),
    [
        ("650-555-0123", "US", []),
        ("+16505550123", "US", []),
        ("+44 7400 123456", "US", []),
        ("650-555-0123 x7", "US", []),
        ("650-555-0123 ext. 123456", "US", []),
        ("ext 12, 650-555-0123", "US", []),
        ("555-0123", "US", [LOCAL]),
        ("5550123", "US", [LOCAL]),
        ("650-055-0123", "US", [INVALID]),
        ("+49 30 1", "US", [LOCAL]),
        ("+1 123 456 7890", "US", [INVALID]),
        ("650-555-0123 x 5550124", "US", [EXTENSION]),
        ("650-555-0123x555-0124", "US", [EXTENSION]),
        ("650-555-0123 ext. 650-555-0124", "US", [EXTENSION]),
        ("650-555-0123 extension: 6505550124", "US", [EXTENSION]),
        ("650-555-0123 #5550124", "US", [EXTENSION]),
        ("fax 650-555-0124, cell 650-555-0123", "US", []),
        ("650-555-0123, 555-0124", "US", []),
    ],
)
def test_what_a_person_should_check(text: str, region: str, expected: list[str]) -> None:
    assert list(doubts_about(text, region)) == expected
