"""Twilio's REST API: a client with timeouts, and its answers sorted into our two kinds of failure."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import requests
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from shared.config.schema import TwilioAccount
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable

Found = TypeVar("Found")

TIMEOUT_SECONDS = 30.0  # twilio-python has none by default
# What number redaction makes of the last four digits. Source: Twilio docs, message redaction.
REDACTED_DIGITS = "XXXX"
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


def rest_client(account: TwilioAccount, *, token: int = 0) -> Client:
    """A client for an account, with the token of that place in the list. Raises ConfigError without a secret.

    `OPTOUT_TWILIO_API_URL` points it at another base URL, for tests.
    """
    http = TwilioHttpClient(timeout=TIMEOUT_SECONDS)
    client = Client(account.account_sid, account.auth_token[token].resolve(), http_client=http)
    base_url = os.environ.get("OPTOUT_TWILIO_API_URL")
    if base_url:
        for domain in (client.api, client.messaging, client.events):
            domain.base_url = base_url.rstrip("/")
    return client


def working_client(account: TwilioAccount) -> Client:
    """A client with the first of the account's tokens that Twilio takes: one of two is old, or not there yet,
    during a rotation. A lone token is not tried: whatever is asked next shows whether it is taken.

    Raises what was wrong with the last one: TwilioRejected or ConfigError; or TwilioUnavailable.
    """
    *others, last = range(len(account.auth_token))
    for place in others:
        try:
            return _tried_client(account, place)
        except (TwilioRejected, ConfigError):
            continue
    return _tried_client(account, last) if others else rest_client(account, token=last)


def _tried_client(account: TwilioAccount, place: int) -> Client:
    client = rest_client(account, token=place)
    with translate_errors():
        client.api.v2010.accounts(account.account_sid).fetch()
    return client


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise TwilioUnavailable or TwilioRejected in place of what twilio-python raises.

    Their text repeats Twilio's answer, so nothing of it is passed on but status and code.
    """
    try:
        yield
    except TwilioException as error:
        raise _failure(status_of(error), getattr(error, "code", None)) from None
    except requests.RequestException as error:
        raise TwilioUnavailable("twilio_unreachable", type(error).__name__) from None
    except ValueError:  # a page that is no JSON
        raise TwilioUnavailable("twilio_strange_answer", "not JSON") from None
    except (AttributeError, LookupError, TypeError):  # or JSON in which twilio-python finds no list
        raise TwilioUnavailable("twilio_strange_answer", "not of the described form") from None


def found_or_none(request: Callable[[], Found]) -> Found | None:
    """What a request answers; None where Twilio knows no such resource (any more). Raises as `translate_errors`."""
    with translate_errors():
        try:
            return request()
        except TwilioException as error:
            if status_of(error) == 404:
                return None
            raise


def status_of(error: TwilioException) -> int:
    """The HTTP status of an error of twilio-python; 0 where there is none.

    A single resource raises one of two kinds, by the form of the answer (base/version.py); a list page raises
    the plain one, whose second argument is the response (base/page.py). Source: twilio-python 9.13.
    """
    if isinstance(error, TwilioRestException | TwilioServiceException):
        return _whole_number(error.status)
    response = error.args[1] if len(error.args) > 1 else None
    return _whole_number(getattr(response, "status_code", 0))


def _whole_number(status: object) -> int:
    """The second kind takes its status from the answer's body as it stands there, a text perhaps."""
    text = str(status)
    return int(text) if text.isascii() and text.isdigit() else 0


def _failure(status: int, code: object) -> TwilioUnavailable | TwilioRejected:
    number = _whole_number(code)
    detail = f"status {status}" + (f", code {number}" if number else "")
    if status in _TRANSIENT_STATUS or status == 0:
        return TwilioUnavailable("twilio_server_error", detail)
    if status == 401:
        return TwilioRejected("twilio_token_rejected", detail)
    return TwilioRejected("twilio_rejected", detail)
