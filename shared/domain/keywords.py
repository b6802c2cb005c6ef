"""Which texts opt a participant out, and in again, for one project."""

from functools import lru_cache

import phonenumbers

from shared.domain.events import Change
from shared.domain.wishes import Wish, classify, normalised

# "Yes" is left out: it also answers surveys. A project may configure it, except on toll-free numbers, which only
# these two unblock. Source: Twilio docs, "Advanced Opt-Out" and "Toll-free opt-out".
OPT_IN_DEFAULTS = frozenset({"start", "unstop"})
_SUSPECTED = frozenset({Wish.SUSPECTED, Wish.WRONG_NUMBER})


class Keywords:
    """The opt-out and opt-in words of one project: the defaults without `ignored`, and the configured ones.

    With `suspects`, texts that may be an opt-out, or come from another person, are `Change.UNCLEAR`.
    """

    def __init__(
        self,
        *,
        opt_out: tuple[str, ...] = (),
        opt_in: tuple[str, ...] = (),
        ignored: tuple[str, ...] = (),
        suspects: bool = True,
    ) -> None:
        self._opt_out, self._ignored = (frozenset(map(normalised, words)) for words in (opt_out, ignored))
        self._opt_in = frozenset(map(_exact, opt_in))
        self._suspected = _SUSPECTED if suspects else frozenset()

    def change(self, body: str, *, opt_out_type: str = "", recipient: str = "") -> Change | None:
        """Return the change that a message to `recipient` asks for, or None.

        Twilio's OptOutType decides if it is set (Advanced Opt-Out is on). Otherwise a text that asks to stop counts:
        an opt-out too many contacts nobody.
        """
        if opt_out_type == "HELP":
            return None
        if opt_out_type == Change.STOP:
            return Change.STOP
        change = Change.START if opt_out_type == Change.START else self._asked_by(body)
        if change is Change.START and is_toll_free(recipient):
            return None if body and _exact(body) not in OPT_IN_DEFAULTS else change
        return change

    def _asked_by(self, body: str) -> Change | None:
        """A configured word wins over a default of the other kind.

        Opting in takes the word alone, without any punctuation ("Start?" is a question). Opting out also takes what
        can mean nothing else, such as "Stop, please."
        """
        text = normalised(body)
        if text in self._opt_out:
            return Change.STOP
        if _exact(body) in self._opt_in:
            return Change.START
        if not text or self._ignored.issuperset(text.split()):
            return None
        if _exact(body) in OPT_IN_DEFAULTS:
            return Change.START
        wish = classify(body)
        if wish is Wish.STOP_EXACT:
            return Change.STOP
        return Change.UNCLEAR if wish in self._suspected else None


def learnable(body: str) -> str | None:
    """Return a text as a keyword of Twilio's, which is one word of at most 34 characters; None if it is not one.

    Source: twilio-oai, messaging_v3, OptOuts keywords. Words with digits are left out: they may say more than a wish.
    """
    word = _exact(body)
    return word if 0 < len(word) <= 34 and word.isalpha() else None


@lru_cache(maxsize=4096)
def is_toll_free(recipient: str) -> bool:
    """Return whether a study's number is toll-free; not so short codes and other senders."""
    if not recipient.startswith("+"):
        return False
    try:
        number = phonenumbers.parse(recipient)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.TOLL_FREE


def _exact(word: str) -> str:
    """The form in which opt-in words are compared: trimmed and case-folded."""
    return word.strip().casefold()
