"""What the REST API reads and refuses: parameters by name and kind, and Twilio's own form of an error."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from flask import Response, jsonify, request
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import JsonObject
from tests.simulators.twilio.delivery import parse_overrides

# Method, path, resource name as in the request log, handler.
Route = tuple[str, str, str, Callable[..., ResponseReturnValue]]

PAGING = ("PageSize", "Page", "PageToken")
ADDRESS = re.compile(r"\+\d{2,15}|\d{3,15}|[a-z]+:\S+|[A-Za-z0-9][A-Za-z0-9 ]{0,10}")


class ApiError(Exception):
    """An error: HTTP status, Twilio's code, text."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def response(self, *, as_problem: bool = False) -> Response:
        """In Twilio's own form, or as problem details (RFC 9457), which twilio-python 9.13 tells by `type`."""
        more = f"https://www.twilio.com/docs/errors/{self.code}"
        own = {"code": self.code, "message": self.message, "more_info": more, "status": self.status}
        problem = {"type": more, "title": self.message, "status": self.status, "code": self.code}
        answer = jsonify(problem if as_problem else own)
        answer.status_code = self.status
        if self.status == 401:
            answer.headers["WWW-Authenticate"] = 'Basic realm="Twilio API"'
        return answer


def bad_request(message: str, code: int = 20001) -> ApiError:
    return ApiError(400, code, message)


def not_found() -> ApiError:
    return ApiError(404, 20404, f"The requested resource {request.path} was not found")


def arguments(
    source: Iterable[tuple[str, str]], allowed: Iterable[str], repeatable: str = ""
) -> dict[str, str]:
    """Parameters by name. Unknown and repeated ones are refused, where Twilio would ignore them: a typing
    error in a filter must not pass for an answer."""
    known = set(allowed)
    found: dict[str, str] = {}
    for name, value in source:
        if name not in known:
            raise bad_request(f"Unknown parameter {name}: Twilio's API description does not have it")
        if name in found and name != repeatable:
            raise bad_request(f"Parameter {name} was given twice")
        found[name] = value
    return found


def query(*allowed: str) -> dict[str, str]:
    return arguments(request.args.items(multi=True), (*allowed, *PAGING))


def form(*allowed: str, repeatable: str = "") -> dict[str, str]:
    if request.args:
        raise bad_request("A POST takes its parameters in the form, not in the query")
    return arguments(request.form.items(multi=True), allowed, repeatable)


def required(values: Mapping[str, str], *names: str) -> None:
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise bad_request(f"Missing required parameter {missing[0]}")


def read_whole_number(name: str, value: object) -> int:
    if not str(value).isdigit():
        raise bad_request(f"{name} must be a whole number")
    return int(str(value))


def read_boolean(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        raise bad_request(f"{name} must be true or false")
    return value.lower() == "true"


def read_time(name: str, value: str) -> datetime:
    """YYYY-MM-DD (midnight GMT), YYYY-MM-DDTHH:MM:SSZ, or RFC 2822 with a zone."""
    for pattern in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"):
        with contextlib.suppress(ValueError):
            return datetime.strptime(value, pattern).replace(tzinfo=UTC)
    with contextlib.suppress(ValueError):
        when = parsedate_to_datetime(value)
        if when.tzinfo is not None:
            return when.astimezone(UTC)
    raise bad_request(f"{name} is no date that Twilio reads")


def read_address(name: str, value: str) -> str:
    """A + that was not percent-encoded arrives as a blank, and is refused."""
    if not ADDRESS.fullmatch(value):
        raise bad_request(f"{name} is not a valid phone number or channel address", 21211)
    return value


def read_json_object(name: str, text: str) -> JsonObject:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise bad_request(f"{name} is not JSON") from error
    if not isinstance(value, dict):
        raise bad_request(f"{name} is not a JSON object")
    return value


def check_hooks(values: Mapping[str, str]) -> None:
    """URLs must be http(s), methods GET or POST.

    A wrong connection override is refused here; Twilio may show it (11243) only when it calls the URL.
    """
    for name, value in values.items():
        if name.endswith("Method") and value not in {"GET", "POST"}:
            raise bad_request(f"{name} must be GET or POST")
        if value and name.endswith(("Url", "StatusCallback")):
            if urlsplit(value).scheme not in {"http", "https"}:
                raise bad_request(f"{name} is not a valid URL", 21402)
            try:
                parse_overrides(value)
            except ValueError as error:
                raise bad_request(f"{name}: {error}", 11243) from error
