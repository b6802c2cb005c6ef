"""Which texts opt a participant out, and in again, for one project."""

from shared.domain.events import Change
from shared.domain.wishes import Wish, classify, normalised

# "Yes" is left out: it also answers surveys. A project may configure it, except on toll-free numbers, which Twilio
# never unblocks by it. Source: Twilio docs, "Advanced Opt-Out" and "Toll-free opt-out".
OPT_IN_DEFAULTS = frozenset({"start", "unstop"})


class Keywords:
    """The opt-out and opt-in words of one project: the defaults without `ignored`, and the configured ones."""

    def __init__(
        self, *, opt_out: tuple[str, ...] = (), opt_in: tuple[str, ...] = (), ignored: tuple[str, ...] = ()
    ) -> None:
        self._opt_out, self._ignored = (frozenset(map(normalised, words)) for words in (opt_out, ignored))
        self._opt_in = frozenset(map(_exact, opt_in))

    def change(self, body: str) -> Change | None:
        """The change that a message asks for, or None. A configured word wins over a default of the other kind.

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
        if classify(body) is Wish.STOP_EXACT:
            return Change.STOP
        return Change.START if _exact(body) in OPT_IN_DEFAULTS else None


def _exact(word: str) -> str:
    """The form in which opt-in words are compared: trimmed and case-folded."""
    return word.strip().casefold()
