"""Which words opt out and in."""

from __future__ import annotations

import pytest

from shared.domain.events import Change
from shared.domain.keywords import Keywords

DEFAULT = Keywords()


@pytest.mark.parametrize(
    "word", ["STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"]
)
def test_each_of_twilio_s_opt_out_words_counts_in_any_case_with_blanks_around(word: str) -> None:
    assert {DEFAULT.change(text) for text in (word, word.lower(), word.title(), f"  {word}\n")} == {
        Change.STOP
    }


@pytest.mark.parametrize("word", ["START", "YES", "UNSTOP"])
def test_each_of_twilio_s_opt_in_words_counts(word: str) -> None:
    assert {DEFAULT.change(text) for text in (word, word.lower(), f"\t{word} ")} == {Change.START}


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "HELP",
        "STOP PLEASE",
        "please stop",
        "STOP.",
        "STOP!",
        "STO P",
        "ST0P",
        "Stopped",
        "no",
        "yes please",
        "🛑",
    ],
)
def test_a_body_that_is_not_exactly_one_word_changes_nothing(body: str) -> None:
    assert DEFAULT.change(body) is None


def test_configured_words_count_beside_the_defaults() -> None:
    words = Keywords(opt_out=(" Alto ",), opt_in=("ALTA",))
    assert [words.change(text) for text in ("alto", "STOP", "alta", "START")] == [
        Change.STOP, Change.STOP, Change.START, Change.START,
    ]  # fmt: skip


def test_a_configured_word_wins_over_a_default_of_the_other_kind() -> None:
    words = Keywords(opt_out=("yes",), opt_in=("end",))
    assert (words.change("YES"), words.change("END")) == (Change.STOP, Change.START)


def test_words_are_compared_case_folded_in_every_language() -> None:
    words = Keywords(opt_out=("ARRÊT", "SCHLUSS", "СТОП"))
    assert [words.change(text) for text in ("arrêt", "schluß", "стоп")] == [Change.STOP] * 3
