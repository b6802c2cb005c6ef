"""Every error of this program, in one drawing.

OptOutError
├── ConfigError            the configuration is wrong; the message names each key and its fix
│   └── PublishedSecret    a secret of the demo in a deployment
├── Rejected               an HTTP request that is rejected
│   ├── Forged             not signed by a known account (403)
│   └── Malformed          signed, but not a readable message (400)
├── Transient              a later retry may succeed
│   ├── RedcapUnavailable  no answer, 5xx, HTML instead of JSON, banned
│   ├── TwilioUnavailable
│   └── MailDeferred       the mail server deferred the mail, or did not answer
└── Permanent              a retry would fail in the same way
    ├── RedcapRejected     bad token, no such field, validation
    ├── ProjectProblem     the REDCap project does not fit the configuration; changes are kept until it is fixed
    ├── TwilioRejected
    └── MailRejected

No message of these may contain a phone number, a message body, a token or a stored value.
"""

from collections.abc import Mapping


class OptOutError(Exception):
    """The base of all errors that this program raises deliberately."""


class ConfigError(OptOutError):
    """The configuration cannot be used. `problems` holds one "key: problem, fix" line each.

    `by_file` has them by the file in which they are; in `problems`, lines of other files than the first name theirs.
    """

    def __init__(
        self, source: str, problems: list[str], elsewhere: Mapping[str, list[str]] | None = None
    ) -> None:
        elsewhere = elsewhere or {}
        self.source = source
        self.by_file = {source: problems, **elsewhere}
        self.problems = problems + [f"{file}: {line}" for file, lines in elsewhere.items() for line in lines]
        super().__init__("\n".join([f"{source} cannot be used:", *(f"  {line}" for line in self.problems)]))


class PublishedSecret(ConfigError):
    """A secret of the demo, which anybody can read, is used in a deployment."""


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
    """The request may be Twilio's, but lacks required parts of a message."""


class Failure(OptOutError):
    """An external system failed. `code` is stable, `detail` is for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code}: {detail}" if detail else code)


class Transient(Failure):
    """A later retry may succeed."""


class Permanent(Failure):
    """A retry would fail in the same way until a person fixes something."""


class RedcapUnavailable(Transient):
    """REDCap gave no valid answer."""


class TwilioUnavailable(Transient):
    """Twilio's REST API gave no valid answer."""


class MailDeferred(Transient):
    """The mail server accepted nothing for now."""


class RedcapRejected(Permanent):
    """REDCap understood the request and rejected it."""


class ProjectProblem(Permanent):
    """A REDCap project that does not fit its configuration; `detail` says what was observed and the fix."""


class TwilioRejected(Permanent):
    """Twilio understood the request and rejected it. `status` is the HTTP status, or 0."""

    def __init__(self, code: str, detail: str = "", *, status: int = 0) -> None:
        self.status = status
        super().__init__(code, detail)


class MailRejected(Permanent):
    """The mail server rejects this mail."""
