"""What a text asks for: exact keywords, suspected opt-outs, wrong persons, and what only looks so."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.wishes import Wish, classify
from shared.domain.wording import KEYWORDS, RULES_BY_TRIGGER, SAFE_WORDS

ROWS = [
    (Wish(row["label"]), row["language"], row["text"])
    for row in csv.DictReader(
        Path(__file__).with_suffix(".tsv").with_stem("wishes").read_text(encoding="utf-8").splitlines(),
        delimiter="\t",
        quoting=csv.QUOTE_NONE,
    )
]
FLAGGED = {Wish.SUSPECTED, Wish.WRONG_NUMBER}


def share_flagged(*labels: Wish, language: str | None = None) -> float:
    texts = [text for label, of, text in ROWS if label in labels and language in {None, of}]
    return sum(classify(text) in FLAGGED for text in texts) / len(texts)


def test_every_exact_wording_is_a_stop_and_no_other_wording_is() -> None:
    wrong = [
        text for label, _, text in ROWS if (classify(text) is Wish.STOP_EXACT) != (label is Wish.STOP_EXACT)
    ]
    assert wrong == []


def test_most_suspected_wordings_and_wrong_persons_are_flagged() -> None:
    assert share_flagged(Wish.SUSPECTED, Wish.WRONG_NUMBER) >= 0.95
    assert share_flagged(Wish.SUSPECTED, Wish.WRONG_NUMBER, language="es") >= 0.95


def test_few_ordinary_texts_are_flagged() -> None:
    assert share_flagged(Wish.ORDINARY) <= 0.01


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("STOP", Wish.STOP_EXACT),
        ("please stop. thank you!", Wish.STOP_EXACT),
        ("STOP\u200b", Wish.STOP_EXACT),
        ("ＳＴＯＰ", Wish.STOP_EXACT),
        ("S T O P", Wish.STOP_EXACT),
        ("opt-out", Wish.STOP_EXACT),
        ("🛑 stop 🛑", Wish.STOP_EXACT),
        ("STOP?", Wish.SUSPECTED),
        ("please cancel", Wish.SUSPECTED),
        ("STOP NOW", Wish.SUSPECTED),
        ("6\nSTOP", Wish.SUSPECTED),
        ("stop2end", Wish.SUSPECTED),
        ("🛑", Wish.SUSPECTED),
        ("stop\n\nSent from my iPhone", Wish.SUSPECTED),
        ("ALTO", Wish.SUSPECTED),
        ("don't stop", Wish.ORDINARY),
        ("please don't stop the texts, they help me", Wish.ORDINARY),
        ("Liked “Reply STOP to opt out.”", Wish.ORDINARY),
        ("START", Wish.ORDINARY),
        ("YES", Wish.ORDINARY),
        ("HELP", Wish.ORDINARY),
        ("", Wish.ORDINARY),
        ("This isn't Maria", Wish.WRONG_NUMBER),
        ("this isn't working", Wish.ORDINARY),
    ],
)
def test_what_the_policy_says_of_single_texts(text: str, wish: Wish) -> None:
    assert classify(text) is wish


INVISIBLE = st.text('\u200b\u200d\u00ad\ufe0f\u2060!.,;:*"“”()[] \n\t', max_size=4)


@given(st.sampled_from(sorted(KEYWORDS)), INVISIBLE, INVISIBLE, st.booleans())
def test_case_punctuation_and_invisible_characters_change_no_keyword(
    keyword: str, before: str, after: str, upper: bool
) -> None:
    assert classify(f"{before}{keyword.upper() if upper else keyword}{after}") is Wish.STOP_EXACT


@given(st.sampled_from(sorted(KEYWORDS)), st.from_regex(r"[a-z]{2,9}", fullmatch=True), st.booleans())
def test_a_keyword_beside_another_word_is_no_exact_stop(keyword: str, word: str, first: bool) -> None:
    if word in KEYWORDS | {"please", "pls", "plz", "thanks", "thx", "ty", "gracias", "porfa", "all", "out"}:
        return
    assert classify(f"{word} {keyword}" if first else f"{keyword} {word}") is not Wish.STOP_EXACT


@given(st.text(max_size=400))
def test_any_text_has_a_wish_and_always_the_same(text: str) -> None:
    assert classify(text) is classify(text)


def test_a_wish_at_the_end_of_a_long_text_is_found() -> None:
    story = "my knee felt better on tuesday and the walk was fine " * 20
    assert classify(story) is Wish.ORDINARY
    assert classify(f"{story} please take me off your list") is Wish.SUSPECTED
    assert classify(f"please stop texting me {story}") is Wish.SUSPECTED


def test_a_text_full_of_words_that_ask_to_stop_is_read_by_a_person() -> None:
    words = " ".join(sorted(RULES_BY_TRIGGER))[:240]
    assert classify(words) in FLAGGED


def test_words_near_a_keyword_are_no_slips() -> None:
    assert [word for word in SAFE_WORDS - KEYWORDS if classify(word) is Wish.STOP_EXACT] == []
    assert {classify(word) for word in ("shop", "step", "top", "quiet", "cancer", "stoop")} == {Wish.ORDINARY}
