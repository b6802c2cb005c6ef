"""What a mail server's reply means for a mail: try again, or give up.

Only a verdict on a recipient or on the content is final. Everything else that a server rejects concerns this program
(login, sender, relaying, quota, greeting); it is deferred like an outage, because somebody can fix it.
Sources: RFC 5321 section 4.2 (reply codes), RFC 3463 (enhanced status codes).
"""

import re
import smtplib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from shared.errors import MailDeferred, MailRejected

# At the start of a reply (RFC 2034), also after # (Cisco), or at its end as qmail writes it.
_ENHANCED = re.compile(r"#?([245]\.\d{1,3}\.\d{1,3})\b|.*\(#([245]\.\d{1,3}\.\d{1,3})\)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply, without its text, which may contain addresses. `enhanced` is "" if the reply has none."""

    stage: str
    code: int
    enhanced: str

    @classmethod
    def parse(cls, stage: str, code: int, text: bytes | str) -> Self:
        """Read the enhanced status code in the text."""
        found = _ENHANCED.match(text if isinstance(text, str) else text.decode("ascii", "replace"))
        return cls(stage, code, (found[1] or found[2]) if found else "")

    def __str__(self) -> str:
        return f"code {' '.join(filter(None, (str(self.code), self.enhanced)))} at {self.stage}"


# Final verdicts: stage, code with enhanced status code, and what is judged. Stages are SMTP commands; DATA is the
# reply after the content.
_FINAL = (
    (
        "RCPT|DATA",
        r"5\d\d 5\.1\.(?!(?:[78]|90)$)\d+",
        "the recipient's address (5.1.7, 5.1.8 and Exchange Online's daily limit 5.1.90 are about the sender)",
    ),
    ("MAIL|RCPT|DATA", r"5\d\d 5\.3\.4", "the message's size"),
    ("RCPT|DATA", r"5\d\d 5\.6\.\d+", "the content"),
    ("DATA", r"55[024] ", "the content, by a server without enhanced status codes"),
)
# They concern this program whatever follows: no login, a refused login or a refused greeting.
_ALWAYS_OURS = {504, 530, 534, 535, 538}


class DataCommandError(smtplib.SMTPDataError):
    """A server's reply to DATA before the content; smtplib raises the same error for the reply after it."""


# Rejections that concern this program, by stage: the error's code.
_OURS = {
    "EHLO": "smtp_greeting_rejected",
    "STARTTLS": "smtp_starttls_rejected",
    "AUTH": "smtp_login_rejected",
    "MAIL": "smtp_sender_rejected",
    "RCPT": "smtp_relay_rejected",
    "DATA": "smtp_message_rejected",
    "DATA command": "smtp_rejected",
}

_STAGES = (
    (smtplib.SMTPHeloError, "EHLO"),
    (smtplib.SMTPAuthenticationError, "AUTH"),
    (smtplib.SMTPSenderRefused, "MAIL"),
    (DataCommandError, "DATA command"),
    (smtplib.SMTPDataError, "DATA"),
    (smtplib.SMTPConnectError, "connection"),
    (smtplib.SMTPResponseException, "STARTTLS"),
)


def is_final(reply: Reply) -> bool:
    """Whether the reply is a permanent verdict on a recipient or the content."""
    codes = f"{reply.code} {reply.enhanced}"
    return reply.code not in _ALWAYS_OURS and any(
        re.fullmatch(stages, reply.stage) and re.fullmatch(pattern, codes) for stages, pattern, _ in _FINAL
    )


def failure(reply: Reply) -> MailDeferred | MailRejected:
    """The error for a reply that concerns the whole mail."""
    if is_final(reply):
        return MailRejected("smtp_rejected", str(reply))
    if reply.code >= 500:
        return MailDeferred(_OURS.get(reply.stage, "smtp_rejected"), str(reply))
    return MailDeferred("smtp_deferred", str(reply))


def failure_of(error: smtplib.SMTPResponseException) -> MailDeferred | MailRejected:
    """The error for an exception of smtplib, whose class tells the stage."""
    stage = next(stage for kind, stage in _STAGES if isinstance(error, kind))
    return failure(Reply.parse(stage, error.smtp_code, error.smtp_error))


@dataclass(frozen=True, slots=True)
class Recipients:
    """Recipients that the server did not accept: for good, or for now (`reason` is the reply to one of these)."""

    rejected: tuple[str, ...] = ()
    deferred: tuple[str, ...] = ()
    reason: str = field(default="", compare=False)


def judge_recipients(refused: Mapping[str, tuple[int, bytes]], accepted: int) -> Recipients:
    """Sort the recipients that a server did not accept; `accepted` is the number that it did accept.

    A 550 without enhanced status code is a verdict on the recipient only if another recipient was accepted.
    """
    rejected = tuple(address for address, reply in refused.items() if _is_rejected(reply, accepted))
    deferred = tuple(address for address in refused if address not in rejected)
    reason = str(Reply.parse("RCPT", *refused[deferred[0]])) if deferred else ""
    return Recipients(rejected, deferred, reason)


def _is_rejected(reply: tuple[int, bytes], accepted: int) -> bool:
    parsed = Reply.parse("RCPT", *reply)
    return is_final(parsed) or (parsed.code == 550 and not parsed.enhanced and accepted > 0)


def failure_of_all(refused: Mapping[str, tuple[int, bytes]]) -> MailDeferred | MailRejected:
    """The error if no recipient was accepted: final only if it is for each of them."""
    replies = [Reply.parse("RCPT", *reply) for reply in refused.values()]
    return failure(next((reply for reply in replies if not is_final(reply)), replies[0]))
