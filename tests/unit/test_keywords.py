"""Which words opt out and in."""

from __future__ import annotations

import pytest

from shared.domain.events import Change
from shared.domain.keywords import Keywords, learnable

DEFAULT = Keywords()


@pytest.mark.parametrize(
    "word", ["STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"]
)
def test_each_of_twilio_s_opt_out_words_counts_in_any_case_with_blanks_around(word: str) -> None:
    assert {DEFAULT.change(text) for text in (word, word.lower(), word.title(), f"  {word}\n")} == {
        Change.STOP
    }


@pytest.mark.parametrize("word", ["START", "UNSTOP"])
def test_each_of_twilio_s_opt_in_words_counts(word: str) -> None:
    assert {DEFAULT.change(text) for text in (word, word.lower(), f"\t{word} ")} == {Change.START}


@pytest.mark.parametrize(
    "body",
    [
        "STOP PLEASE",
        "please stop",
        "STOP.",
        "STOP!",
        "“STOP”",
        "STOP\u200b",
        "ＳＴＯＰ",
        "opt-out",
        "stop all",
    ],
)
def test_what_can_mean_nothing_else_opts_out(body: str) -> None:
    assert DEFAULT.change(body) is Change.STOP


@pytest.mark.parametrize(
    "body",
    [
        "",
        " ",
        "HELP",
        "ST0P",
        "Stopped",
        "no",
        "yes",
        "YES",
        "yes please",
        "start now",
    ],
)
def test_any_other_text_changes_nothing(body: str) -> None:
    assert DEFAULT.change(body) is None


@pytest.mark.parametrize(
    "body", ["STO P", "STOP?", "please cancel", "wrong number", "take me off your list", "alto"]
)
def test_what_may_be_an_opt_out_is_unclear_unless_the_project_wants_none_of_it(body: str) -> None:
    assert DEFAULT.change(body) is Change.UNCLEAR
    assert Keywords(suspects=False).change(body) is None


@pytest.mark.parametrize(
    ("opt_out_type", "body", "expected"),
    [
        ("STOP", "whatever", Change.STOP),
        ("START", "whatever", Change.START),
        ("HELP", "please stop texting me", None),
        ("OTHER", "STOP", Change.STOP),
    ],
)
def test_twilio_s_judgement_counts_before_the_words(
    opt_out_type: str, body: str, expected: Change | None
) -> None:
    assert DEFAULT.change(body, opt_out_type=opt_out_type) is expected


@pytest.mark.parametrize(("recipient", "expected"), [("+18005550123", None), ("+16505550123", Change.START)])
def test_on_toll_free_numbers_only_start_and_unstop_opt_in(recipient: str, expected: Change | None) -> None:
    words = Keywords(opt_in=("YES",))
    assert words.change("Yes", recipient=recipient) is expected
    assert words.change("Yes", opt_out_type="START", recipient=recipient) is expected
    assert words.change("UNSTOP", recipient=recipient) is Change.START
    assert words.change("STOP", recipient=recipient) is Change.STOP


@pytest.mark.parametrize(
    ("body", "word"),
    [(" PARAR ", "parar"), ("停止", "停止"), ("stop it", None), ("6505550123", None), ("", None)],
)
def test_only_a_word_is_learned(body: str, word: str | None) -> None:
    assert learnable(body) == word


def test_a_yes_opts_in_only_if_it_is_configured() -> None:
    assert Keywords(opt_in=("Yes",)).change(" yes ") is Change.START


@pytest.mark.parametrize("body", ["START?", "start!", "S T A R T", "restart", "start texting"])
def test_only_the_word_alone_opts_in(body: str) -> None:
    assert DEFAULT.change(body) is None


def test_ignored_words_alone_change_nothing() -> None:
    words = Keywords(ignored=("END", "start"))
    assert [words.change(text) for text in ("End.", "START", "stop")] == [None, None, Change.STOP]


def test_a_phrase_may_be_configured() -> None:
    assert Keywords(opt_out=("no más",)).change("No mas.") is Change.STOP


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
