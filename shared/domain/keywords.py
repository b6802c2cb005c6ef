"""Which words opt a participant out of a sender's texts, and in again."""

from shared.domain.events import Change

# Twilio's current defaults; REVOKE and OPTOUT came on 14 May 2025 with the FCC's rule on revocation.
# Source: Twilio docs, "Advanced Opt-Out", and Twilio's blog on the FCC's SMS opt-out keywords.
OPT_OUT_DEFAULTS = frozenset({"stop", "stopall", "unsubscribe", "cancel", "end", "quit", "revoke", "optout"})
OPT_IN_DEFAULTS = frozenset({"start", "yes", "unstop"})


class Keywords:
    """The opt-out and opt-in words of one project: Twilio's defaults, without `ignored`, and the configured ones."""

    def __init__(
        self, *, opt_out: tuple[str, ...] = (), opt_in: tuple[str, ...] = (), ignored: tuple[str, ...] = ()
    ) -> None:
        extra_out, extra_in, dropped = (
            {normalised(word) for word in kind} for kind in (opt_out, opt_in, ignored)
        )
        # A configured word wins over a default of the other kind.
        self._opt_out = (OPT_OUT_DEFAULTS - extra_in - dropped) | extra_out
        self._opt_in = (OPT_IN_DEFAULTS - extra_out - dropped) | extra_in

    def change(self, body: str) -> Change | None:
        """The change that a message asks for, or None.

        The whole body has to be one keyword, in any case: to Twilio "STOP PLEASE" is not an opt-out.
        Source: Twilio help article 223134027.
        """
        word = normalised(body)
        if word in self._opt_out:
            return Change.STOP
        return Change.START if word in self._opt_in else None


def normalised(word: str) -> str:
    """The form in which words are compared: trimmed and case-folded."""
    return word.strip().casefold()
