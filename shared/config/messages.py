"""Pydantic's errors as lines of the form "key: what is wrong, and how to fix it"."""

import difflib
from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from shared.config.schema import Config, Operator, Project, Reconcile, Smtp, SmtpOAuth2, Table, TwilioAccount


def describe_errors(error: ValidationError) -> Iterator[str]:
    """One line per problem: "key: what is wrong, and how to fix it"."""
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        # Pydantic appends "[key]" to the path if a dictionary's key, not its value, is wrong.
        path = [str(part) for part in problem["loc"] if not isinstance(part, int)]
        key = ".".join(part for part in path if part != "[key]")
        message = problem["msg"].removeprefix("Value error, ")
        match problem["type"]:
            case "missing":
                yield f"{key}: missing. {_description(path)}"
            case "extra_forbidden":
                yield f"{key}: unknown key. {_suggestion(path)}"
            case "string_pattern_mismatch":
                yield f"{key}: does not have the right form. {_description(path)}"
            case _ if not key:
                yield from message.split("\n")
            case "value_error":
                yield f"{key}: {message}"
            case _:
                yield f"{key}: {message[0].lower()}{message[1:]}. {_description(path)}"


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
