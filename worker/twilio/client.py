"""Twilio's REST API: a client with timeouts, and its errors as TwilioUnavailable or TwilioRejected."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar

import requests
import tenacity
from twilio.base.exceptions import TwilioException, TwilioRestException, TwilioServiceException
from twilio.http.http_client import TwilioHttpClient
from twilio.rest import Client

from shared.config.schema import TwilioAccount
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from shared.retry_policy import TWILIO_TIMEOUT_SECONDS
from worker.http_session import failure_in_words, trusting

Found = TypeVar("Found")

# Number redaction replaces the last four digits by this. Source: Twilio docs, message redaction.
REDACTED_DIGITS = "XXXX"
# "Authorization failed": a restricted API key lacks a permission. Source: Twilio error 70051.
_NOT_PERMITTED = {70051}
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


def rest_client(account: TwilioAccount, *, token: int | None = None) -> Client:
    """Return a client for an account: with its API key if it has one, else with its first auth token.

    With `token`, the auth token at that place in the list is used. Raises ConfigError without the secret.

    `OPTOUT_TWILIO_API_URL` points it at another base URL, for tests.
    """
    http = TwilioHttpClient(timeout=TWILIO_TIMEOUT_SECONDS)
    trusting(http.session)
    client = Client(*_login(account, token), account.account_sid, http_client=http)
    base_url = os.environ.get("OPTOUT_TWILIO_API_URL")
    if base_url:
        for domain in (client.api, client.messaging, client.events, client.accounts):
            domain.base_url = base_url.rstrip("/")
    return client


def _login(account: TwilioAccount, token: int | None) -> tuple[str, str]:
    if token is None and account.api_key is not None and account.api_secret is not None:
        return account.api_key.resolve(), account.api_secret.resolve()
    return account.account_sid, account.auth_token[token or 0].resolve()


def working_client(account: TwilioAccount) -> Client:
    """Return a client with the account's API key; else with the first of its tokens that Twilio accepts.

    During a rotation, one of two tokens is old or not valid yet. A single token is not tried: the next request shows
    whether it is valid. Raises the problem of the last token: TwilioRejected or ConfigError; or TwilioUnavailable.
    """
    if account.api_key is not None:
        return rest_client(account)
    *others, last = range(len(account.auth_token))
    for place in others:
        with suppress(TwilioRejected, ConfigError):
            return _tried_client(account, place)
    return _tried_client(account, last) if others else rest_client(account, token=last)


def _tried_client(account: TwilioAccount, place: int) -> Client:
    client = rest_client(account, token=place)
    with translate_errors():
        client.api.v2010.accounts(account.account_sid).fetch()
    return client


def time_of_message(client: Client, message_sid: str) -> datetime:
    """Return when Twilio received a message. Raises TwilioUnavailable, or TwilioRejected (also without a time)."""
    with translate_errors():
        message = client.messages(message_sid).fetch()
    time: datetime | None = message_time(message)
    if time is None:
        raise TwilioRejected("twilio_no_time", "the message has no time")
    return time


def message_time(message: Any) -> Any:
    """Return when Twilio called the webhook, for an inbound message that has one; else its creation, or None."""
    return message.date_sent or message.date_created


@contextmanager
def translate_errors() -> Iterator[None]:
    """Replace the exceptions of twilio-python by TwilioUnavailable or TwilioRejected.

    Their text repeats Twilio's answer, so only status and code are kept.
    """
    try:
        yield
    except TwilioException as error:
        raise _failure(status_of(error), getattr(error, "code", None)) from None
    except requests.RequestException as error:
        cause = failure_in_words(error, timeout_seconds=TWILIO_TIMEOUT_SECONDS)
        raise TwilioUnavailable("twilio_unreachable", cause) from None
    except ValueError:  # a page that is not JSON
        raise TwilioUnavailable("twilio_strange_answer", "not JSON") from None
    except (AttributeError, LookupError, TypeError):  # JSON in which twilio-python finds no list
        raise TwilioUnavailable("twilio_strange_answer", "not of the described form") from None


def retry(request: Callable[[], Found]) -> Found:
    """Retry a few times: 429 means that nothing was done, and to retry later. Source: Twilio error 20429.

    Raises as `translate_errors`.
    """

    def attempt() -> Found:
        with translate_errors():
            return request()

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TwilioUnavailable),
        wait=tenacity.wait_exponential_jitter(multiplier=0.5, max=20),
        stop=tenacity.stop_after_attempt(5),
        reraise=True,
    )(attempt)


def found_or_none(request: Callable[[], Found]) -> Found | None:
    """Return the answer to a request, or None if the resource does not exist. Raises as `translate_errors`."""
    with translate_errors():
        try:
            return request()
        except TwilioException as error:
            if status_of(error) != 404:
                raise
            return None


def status_of(error: TwilioException) -> int:
    """Return the HTTP status of an error of twilio-python, or 0.

    A single resource raises one of two kinds, depending on the form of the answer (base/version.py). A list page
    raises the plain one, whose second argument is the response (base/page.py). Source: twilio-python 9.13.
    """
    if isinstance(error, TwilioRestException | TwilioServiceException):
        return _whole_number(error.status)
    response = error.args[1] if len(error.args) > 1 else None
    return _whole_number(getattr(response, "status_code", 0))


def _whole_number(status: object) -> int:
    """The second kind copies its status from the answer's body, where it may be text."""
    text = str(status)
    return int(text) if text.isascii() and text.isdigit() else 0


def _failure(status: int, code: object) -> TwilioUnavailable | TwilioRejected:
    number = _whole_number(code)
    detail = f"status {status}" + (f", code {number}" if number else "")
    if status in _TRANSIENT_STATUS or status == 0:
        return TwilioUnavailable("twilio_server_error", detail)
    if number in _NOT_PERMITTED:
        return TwilioRejected("twilio_not_permitted", detail, status=status)
    if status == 401:
        return TwilioRejected("twilio_token_rejected", detail, status=status)
    return TwilioRejected("twilio_rejected", detail, status=status)
