"""Builds the ingress: configuration and connections in, a Flask application out."""

from collections.abc import Callable
from typing import Literal

from flask import Flask, Request
from werkzeug.routing import MapAdapter

from shared.config import Config
from shared.config.secrets import Secret
from shared.domain.addresses import PhoneHasher
from shared.errors import ConfigError
from shared.ledger import Ledger
from shared.ledger.platform.learned_words import LearnedWords
from shared.ledger.platform.service_senders import ServiceSenders
from shared.messaging.tasks import Publisher
from shared.redis_client import RedisClient
from web.context import Services, init_app, leave_event_loop
from web.monitoring.health import health
from web.monitoring.request_counter import RequestCounter, Scheduler, after_one_second
from web.twilio.routing import Router
from web.twilio.signature import SignatureVerifier
from web.twilio.views import twilio_webhooks


def build_services(
    config: Config,
    redis: RedisClient,
    publish: Publisher,
    schedule: Scheduler = after_one_second,
    hasher: PhoneHasher | None = None,
) -> Services:
    """Resolve the two kinds of secret that the ingress needs: auth tokens and the hash key (unless `hasher` has it).

    Raises ConfigError if one is missing. `schedule` runs the deferred counting of rejected requests.
    """
    ledger = Ledger(redis, retention_days=config.retention_days)
    hasher = hasher or PhoneHasher(config.hash_key.resolve())
    return Services(
        config=config,
        hasher=hasher,
        ledger=ledger,
        publish=publish,
        verifier=SignatureVerifier(
            _secrets(config, "auth_token"),
            _secrets(config, "shared_key"),
        ),
        router=Router(config, hasher, ServiceSenders(redis, hasher, before_read=leave_event_loop)),
        request_counter=RequestCounter(ledger, schedule),
        learned_words=LearnedWords(ledger.redis),
    )


def _secrets(config: Config, key: Literal["auth_token", "shared_key"]) -> dict[str, list[str]]:
    """Secrets by account SID; two tables may name the same account. Raises ConfigError."""
    found: dict[str, list[str]] = {}
    for name, account in config.twilio.items():
        secrets: list[Secret] = getattr(account, key)
        try:
            found.setdefault(account.account_sid, []).extend(secret.resolve() for secret in secrets)
        except ConfigError as error:
            raise type(error)(error.source, [f"twilio.{name}.{key}: {error.problems[0]}"]) from None
    return found


class _Ingress(Flask):
    """Twilio signs the address in the configuration: the host that a client names is not even parsed."""

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        # As PEP 3333 has it: bytes of UTF-8, each as one character.
        path = request.environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
        return self.url_map.bind("ingress", path_info=path, default_method=request.method)


def create_app(services: Services | Callable[[], Services]) -> Flask:
    """The WSGI application, with fixed services or what provides those of each request."""
    app = _Ingress("web", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # browsers do not call these routes
    # Twilio does not follow the 308 that werkzeug returns for a doubled or missing slash.
    # Source: Twilio error 11216.
    app.url_map.merge_slashes = False
    init_app(app, services)
    app.register_blueprint(twilio_webhooks)
    app.register_blueprint(health)
    return app
