"""How long it takes to see what a text asks for, beside a lookup of the keyword alone."""

from __future__ import annotations

import csv
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.domain.wishes import Wish, classify
from shared.domain.wording import KEYWORDS, RULES_BY_TRIGGER
from tests.benchmarks.report import Section, verdict

TEXTS = Path(__file__).parents[1] / "unit" / "wishes.tsv"
LONGEST = 1_600


def measure(_folder: Path, *, full: bool) -> Section:
    """Time per text: the tests' texts, and hostile ones of the greatest length."""
    section = Section("7. What a text asks for")
    rows = list(csv.DictReader(TEXTS.open(encoding="utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE))
    ordinary, hostile = [row["text"] for row in rows], _hostile(200 if full else 60)
    measured = {
        "rules on normalised words": (_times(classify, ordinary), _times(classify, hostile)),
        "the keyword alone": (_times(_keyword, ordinary), _times(_keyword, hostile)),
    }
    section.table(
        ["", "median µs", "p99 µs", "hostile: median µs", "hostile: p99 µs"],
        [
            [name, *(f"{value:.1f}" for times in both for value in (statistics.median(times), _p99(times)))]
            for name, both in measured.items()
        ],
    )
    own, worst = measured["rules on normalised words"]
    met = statistics.median(own) < 50 and _p99(worst) < 300
    section.say(verdict(met, "median below 50 µs, p99 of hostile texts of 1,600 characters below 300 µs"))
    return section


def _keyword(text: str) -> Wish:
    return Wish.STOP_EXACT if text.strip().casefold() in KEYWORDS else Wish.ORDINARY


def _hostile(number: int) -> list[str]:
    """Long texts: repeated words and characters, and random words that each trigger rules."""
    dice, words = random.Random(1), sorted(RULES_BY_TRIGGER)
    repeated = ["stop ", "dont want ", "s t o p ", "a ", "\u200b", "\ufdfa", "é", "😡", "停", "x"]
    texts = [(piece * LONGEST)[:LONGEST] for piece in repeated]
    return texts + [" ".join(dice.choices(words, k=LONGEST))[:LONGEST] for _ in range(number)]


def _times(function: Callable[[str], Wish], texts: Sequence[str]) -> list[float]:
    """Microseconds per text, the best of five."""
    return [min(_time(function, text) for _ in range(5)) for text in texts]


def _time(function: Callable[[str], Wish], text: str) -> float:
    began = time.perf_counter()
    function(text)
    return (time.perf_counter() - began) * 1e6


def _p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]
