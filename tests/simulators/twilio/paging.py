"""Pages of a list, in the form of the 2010-04-01 API and in that of the v1 APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

from flask import jsonify, request
from flask.typing import ResponseReturnValue

from tests.simulators.twilio.accounts import JsonObject
from tests.simulators.twilio.parameters import PAGING, bad_request

MAX_PAGE_SIZE = 1000  # twilio-oai: PageSize minimum 1, maximum 1000, default 50


def page_size(values: Mapping[str, str]) -> int:
    value = values.get("PageSize", "50")
    # The API description's limit is refused here rather than clamped: what Twilio does is not documented.
    if not value.isdigit() or not 1 <= int(value) <= MAX_PAGE_SIZE:
        raise bad_request(f"PageSize must be within 1..{MAX_PAGE_SIZE}")
    return int(value)


def page_number(values: Mapping[str, str]) -> int:
    value = values.get("Page", "0")
    if not value.isdigit():
        raise bad_request("Page must be a number from 0")
    if int(value) and "PageToken" not in values:
        raise bad_request("Paged requests must include a PageToken", 70002)
    return int(value)


def window(
    rows: Sequence[JsonObject], values: Mapping[str, str], *, prefix: str
) -> tuple[Sequence[JsonObject], int, int, str | None]:
    """One page of a short list: its rows, number, size, and the token of the next page."""
    size, number = page_size(values), page_number(values)
    token = values.get("PageToken", f"{prefix}0").removeprefix(prefix)
    if not token.isdigit():
        raise bad_request("Invalid PageToken")
    end = int(token) + size
    return rows[int(token) : end], number, size, f"{prefix}{end}" if end < len(rows) else None


def page_link(number: int, size: int, token: str | None) -> str:
    """The path and query of another page of the request at hand, filters included."""
    filters = [(name, value) for name, value in request.args.items(multi=True) if name not in PAGING]
    paging = [("PageSize", str(size)), ("Page", str(number))]
    if token:
        paging.append(("PageToken", token))
    return f"{quote(request.path)}?{urlencode(filters + paging)}"


def old_page(key: str, rows: Sequence[JsonObject]) -> ResponseReturnValue:
    values = {name: request.args[name] for name in PAGING if name in request.args}
    part, number, size, token = window(rows, values, prefix="PA")
    return old_frame(key, part, number, size, token)


def old_frame(
    key: str, rows: Sequence[JsonObject], number: int, size: int, token: str | None
) -> ResponseReturnValue:
    """The paging fields of 2010-04-01; links are relative to the API's host, and lead onward only."""
    start = number * size
    return jsonify(
        {
            key: rows,
            "page": number,
            "page_size": size,
            "start": start,
            "end": max(start + len(rows) - 1, 0),
            "uri": page_link(number, size, request.args.get("PageToken", "")),
            "first_page_uri": page_link(0, size, ""),
            "previous_page_uri": None,
            "next_page_uri": page_link(number + 1, size, token) if token else None,
        }
    )


def v1_base(path: str) -> str:
    """Absolute, on the simulator's own host: v1 clients follow meta.next_page_url as it stands."""
    return f"{request.host_url}v1/{path}"


def v1_page(key: str, rows: Sequence[JsonObject]) -> ResponseReturnValue:
    values = {name: request.args[name] for name in PAGING if name in request.args}
    part, number, size, token = window(rows, values, prefix="PT")
    host = request.host_url.rstrip("/")
    meta = {
        "key": key,
        "page": number,
        "page_size": size,
        "url": host + page_link(number, size, values.get("PageToken", "")),
        "first_page_url": host + page_link(0, size, ""),
        "previous_page_url": None,
        "next_page_url": host + page_link(number + 1, size, token) if token else None,
    }
    return jsonify({key: part, "meta": meta})
