"""The API key that the worker uses instead of the auth token: is it accepted, and what may it not do?

Source: Twilio docs, "Restricted API keys"; Twilio error 70051.
"""

from collections.abc import Callable, Iterator

from twilio.rest import Client

from shared.config import Config
from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from worker.checks.findings import Finding, Passed
from worker.twilio.client import found_or_none, working_client
from worker.twilio.consents import probe

_NOBODY = "0" * 32
_REFUSALS = {401, 403}


def check_api_key(name: str, config: Config) -> Iterator[Finding | Passed]:
    """Try a harmless request for each permission that the worker needs. Nothing is changed at Twilio."""
    subject = f"twilio.{name}"
    try:
        client = working_client(config.twilio[name])
        needed = _requests(client, _services(name, config), _blocking_sender(name, config))
        lacking = [permission for permission, request in needed.items() if _is_refused(request)]
    except ConfigError:
        return  # reported as secret-missing
    except TwilioUnavailable as error:
        yield Finding(id="twilio-unreachable", subject=subject, observed=str(error))
        return
    if len(lacking) == len(needed):
        yield Finding(id="api-key-refused", subject=subject, observed="every request is refused")
    elif lacking:
        yield Finding(
            id="api-key-lacks-permission", subject=subject, observed=f"it may not: {', '.join(lacking)}"
        )
    else:
        yield Passed(subject, "api_key may do what the worker needs")


def _is_refused(request: Callable[[], object]) -> bool:
    """Whether Twilio refuses the request for its login; other rejections, such as 404, come after that."""
    try:
        found_or_none(request)
    except TwilioRejected as error:
        return error.status in _REFUSALS
    return False


def _services(name: str, config: Config) -> str:
    """A Messaging Service of the account, or one that does not exist."""
    used = [each.messaging_service_sid for each in config.projects.values() if each.twilio == name]
    return next(filter(None, used), f"MG{_NOBODY}")


def _blocking_sender(name: str, config: Config) -> str:
    """A sender of a project with block_at_twilio; "" without any."""
    blocking = [each for each in config.projects.values() if each.twilio == name and each.block_at_twilio]
    senders = [sender for each in blocking for sender in (each.messaging_service_sid, *each.senders)]
    return next(filter(None, senders), "")


def _requests(client: Client, service_sid: str, sender: str) -> dict[str, Callable[[], object]]:
    """A request for each permission, by the name of the resource in Twilio's API."""
    service, events = client.messaging.v1.services(service_sid), client.events.v1
    needed: dict[str, Callable[[], object]] = {
        "list Messages": lambda: client.messages.list(limit=1, page_size=1),
        "read Messages": client.messages(f"SM{_NOBODY}").fetch,
        "list IncomingPhoneNumbers": lambda: client.incoming_phone_numbers.list(limit=1, page_size=1),
        "list Messaging Services": lambda: client.messaging.v1.services.list(limit=1, page_size=1),
        "read Messaging Services": service.fetch,
        "list PhoneNumbers of a Messaging Service": lambda: service.phone_numbers.list(limit=1, page_size=1),
        "list ShortCodes of a Messaging Service": lambda: service.short_codes.list(limit=1, page_size=1),
        "list Event Streams Sinks": lambda: events.sinks.list(limit=1, page_size=1),
        "list Event Streams Subscriptions": lambda: events.subscriptions.list(limit=1, page_size=1),
    }
    return needed | ({"create Consents": lambda: probe(client, sender)} if sender else {})
