"""Phone numbers: spellings, regions, and the keyed hash."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain import phone
from shared.domain.phone import PhoneHasher, channel_and_address, numbers_in, sender_number


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
    st.sampled_from(["US", "CA", "GB", "MX", None]),
)
def test_the_quick_way_says_what_the_library_says(text: str, region: str | None) -> None:
    assert phone._e164(text, region) == phone._e164_by_library(text, region)
