"""Every error of this program, in one drawing.

OptOutError
├── ConfigError            the configuration is wrong; the message names each key and its mend
├── Rejected               an HTTP request that is turned away
│   ├── Forged             not signed by a known account (403)
│   └── Malformed          signed, but not a message that we can read (400)
├── Transient              worth another try, later
│   ├── RedcapUnavailable  no answer, 5xx, HTML instead of JSON, banned
│   ├── TwilioUnavailable
│   └── MailDeferred       the mail server refused for now, or did not answer
└── Permanent              another try would end the same way
    ├── RedcapRejected      bad token, no such field, validation
    ├── ProjectProblem     the REDCap project does not fit the configuration; changes are kept until mended
    ├── TwilioRejected
    └── MailRejected

No message of these may hold a phone number, a message body, a token or a stored value.
"""


class OptOutError(Exception):
    """The root: whatever this program raises on purpose."""


class ConfigError(OptOutError):
    """The configuration cannot be used. `problems` holds one "key: what, mend" line each."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        super().__init__("\n".join([f"{source} cannot be used:", *(f"  {line}" for line in problems)]))


class Rejected(OptOutError):
    """An HTTP request that stores nothing. `reason` is a fixed word for logs and metrics."""

    status = 400

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Forged(Rejected):
    """The request does not prove that Twilio sent it."""

    status = 403


class Malformed(Rejected):
    """The request is Twilio's (or could be), but lacks what makes it a message."""


class Failure(OptOutError):
    """Something outside did not do its part. `code` is a stable word, `detail` is for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}" if detail else code)


class Transient(Failure):
    """Worth another try, later."""


class Permanent(Failure):
    """Another try would end the same way until a person mends something."""


class RedcapUnavailable(Transient):
    """REDCap gave no answer that can be believed."""


class TwilioUnavailable(Transient):
    """Twilio's REST API gave no answer that can be believed."""


class MailDeferred(Transient):
    """The mail server took nothing, for now."""


class RedcapRejected(Permanent):
    """REDCap understood the request and said no."""


class ProjectProblem(Permanent):
    """A REDCap project that does not fit its configuration; `detail` says what was seen and the mend."""


class TwilioRejected(Permanent):
    """Twilio understood the request and said no."""


class MailRejected(Permanent):
    """The mail server will not take this mail."""
