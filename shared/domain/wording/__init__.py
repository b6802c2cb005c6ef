"""Tables of `shared.domain.wishes`: keywords, words that add nothing, rules per language (the TOML files here)."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

# Twilio's default opt-out keywords and "opt out", normalised.
# Source: Twilio docs, "Advanced Opt-Out"; FCC, 47 CFR 64.1200(a)(10).
KEYWORDS = frozenset({"stop", "stopall", "unsubscribe", "cancel", "end", "quit", "revoke", "optout"})
# "please cancel" may answer an appointment reminder; these cannot.
TAKES_COURTESY = frozenset({"stop", "stopall", "unsubscribe", "optout", "revoke"})
COURTESY = re.compile(
    r"(?:(?:please|pls|plz|thanks|thank you|thx|ty|por favor|porfavor|porfa|muchas gracias|gracias)(?: |$))+"
)
# "end" is left out: too many words are one letter away.
SLIPPABLE = KEYWORDS - {"end"} | {"unsub", "stahp"}
# A phone's reaction repeats our own text, which may say "Reply STOP": Liked “…”, 👍 to “…”.
QUOTED_REACTION = re.compile(
    r"\s*(?:(?:un)?(?:liked?|loved?|disliked?|questioned|emphasized|emphasised|laughed at|reacted \S+ to)"
    r"|removed an? .{1,30} from"
    r"|(?:le |me )?(?:gusto|gustó|encantó|encanto|dio|enfatizó|se rió de|reaccionó)(?: a| \S+ a)?"
    r"|a (?:aimé|adoré)|[^\w\s“\"«]{1,8} (?:to|a|à))\s*[“\"«„]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern on normalised text behind a space, tried only if one of its trigger words is present."""

    number: int
    label: str
    triggers: frozenset[str]
    pattern: re.Pattern[str]

    def matches(self, plain: str, words: Iterable[str]) -> bool:
        """Whether a trigger word is present and the pattern matches."""
        return not self.triggers.isdisjoint(words) and self.pattern.search(plain) is not None


def _load(language: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / f"{language}.toml").read_text(encoding="utf-8"))


def _compiled(patterns: Iterable[str], fragments: dict[str, str]) -> re.Pattern[str]:
    """Patterns begin at a word. The text begins with a space, so that a search skips quickly from word to word."""
    either = "|".join(patterns).replace("^", "(?<=^ )")
    return re.compile(rf" (?:{re.sub('{([A-Z]+)}', lambda name: fragments[name[1]], either)})(?: |$)")


def _rules(kind: str, first: int) -> tuple[Rule, ...]:
    tables = [(rule, table.get("fragments", {})) for table in _TABLES for rule in table.get(kind, ())]
    return tuple(
        Rule(
            number,
            rule.get("label", "ordinary"),
            frozenset(rule["triggers"].split()),
            _compiled(rule["patterns"], fragments),
        )
        for number, (rule, fragments) in enumerate(tables, first)
    )


def _words(key: str) -> frozenset[str]:
    return frozenset(chain.from_iterable(table.get(key, "").split() for table in _TABLES))


_TABLES = [_load(language) for language in ("english", "spanish", "other_languages")]
FILLERS = _words("fillers")
SAFE_WORDS = _words("safe_words")
# Pieces of text in languages that are written without spaces or with attached words, and their label.
SUBSTRINGS = tuple(
    (tuple(each["pieces"]), str(each["label"])) for table in _TABLES for each in table.get("substrings", ())
)
GUARDS = _rules("guards", 0)
RULES_BY_TRIGGER: dict[str, list[Rule]] = {}
for _rule in _rules("rules", len(GUARDS)):
    for _trigger in _rule.triggers:
        RULES_BY_TRIGGER.setdefault(_trigger, []).append(_rule)
