"""Pydantic's errors as lines of the form "key: what is wrong, and how to fix it"."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from shared.config.schema import Config, Operator, Project, Reconcile, Smtp, SmtpOAuth2, Table, TwilioAccount

# What may be shown of a value: a secret in the wrong place does not look like this, and neither does a phone number.
_HARMLESS = re.compile(r"(?!.*\d{5})[\w .,:/+*-]{0,24}")
# The same of an e-mail address: the address of a mail server, which contains a password, has a colon and slashes.
_HARMLESS_MAILBOX = re.compile(r"(?!.*\d{5})(?=.*[@<])[^:/]{1,80}", re.DOTALL)


# By pydantic's type of the error.
_LINES = {
    "missing": "{key}: missing. {description}",
    "extra_forbidden": "{key}: unknown key. {suggestion}",
    "string_pattern_mismatch": "{key}: does not have the right form. {description}{value}",
    "mailbox": "{key}: does not have the right form. {description} {message}{value}",
    "value_error": "{key}: {message}{value}",
}
_ANY_OTHER_LINE = "{key}: {message_in_lower_case}. {description}{value}"


def describe_errors(error: ValidationError) -> Iterator[str]:
    """One line per problem: "key: what is wrong, and how to fix it", with the value unless it may be a secret."""
    problems = error.errors(include_url=False, include_context=False)
    # A misspelt key explains why another is missing.
    for problem in sorted(problems, key=lambda each: each["type"] != "extra_forbidden"):
        message = problem["msg"].removeprefix("Value error, ")
        # Pydantic appends "[key]" to the path if a dictionary's key, not its value, is wrong.
        if path := [str(part) for part in problem["loc"] if not isinstance(part, int) and part != "[key]"]:
            yield _LINES.get(problem["type"], _ANY_OTHER_LINE).format(
                key=".".join(path),
                description=_description(path),
                suggestion=_suggestion(path),
                message=message,
                message_in_lower_case=message[:1].lower() + message[1:],
                value=_shown(path, problem["input"]),
            )
        else:
            yield from message.split("\n")


def _shown(path: list[str], value: Any) -> str:
    """The value as a part of a message; nothing for a secret, and what may be one."""
    field = _table_of(path).model_fields.get(path[-1])
    if field is None or "Secret" in repr(field.annotation) or not isinstance(value, str | int | float):
        return ""
    text = str(value)
    mailbox = "Mailbox" in repr(field.annotation) and _HARMLESS_MAILBOX.fullmatch(text)
    shown = json.dumps(value, ensure_ascii=False)
    return f" (now: {shown})" if mailbox or _HARMLESS.fullmatch(text) else ""


def _table_of(path: list[str]) -> type[Table]:
    tables: dict[str, type[Table]] = {
        "projects": Project, "twilio": TwilioAccount, "smtp": Smtp, "reconcile": Reconcile, "operator": Operator,
    }  # fmt: skip
    if path[:2] == ["smtp", "oauth2"] and len(path) > 2:
        return SmtpOAuth2
    return tables[path[0]] if len(path) > 1 and path[0] in tables else Config


def _description(path: list[str]) -> str:
    field = _table_of(path).model_fields.get(path[-1])
    return (field.description if field else None) or "Remove it, or see docs/reference/configuration.md."


def _suggestion(path: list[str]) -> str:
    known: Iterable[str] = _table_of(path).model_fields
    close = difflib.get_close_matches(path[-1], list(known), n=1)
    return f'Did you mean "{close[0]}"?' if close else f"Remove it; known here: {', '.join(sorted(known))}."
