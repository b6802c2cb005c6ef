"""Puts the ingress together: configuration and services in, a Flask application out."""

from dataclasses import dataclass

from flask import Flask

from shared.config import Config
from shared.domain.phone import PhoneHasher
from shared.ledger import Ledger
from shared.messaging.queue import Publisher
from shared.redis_client import RedisClient
from web.monitoring.health import health
from web.monitoring.request_counter import Later, Tally, in_a_second
from web.twilio.routing import Router
from web.twilio.signature import SignatureVerifier
from web.twilio.views import webhook


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes use; found under `app.extensions["optout"]`."""

    config: Config
    ledger: Ledger
    publish: Publisher
    verifier: SignatureVerifier
    router: Router
    tally: Tally


def build_services(
    config: Config, redis: RedisClient, publish: Publisher, later: Later = in_a_second
) -> Services:
    """Resolve the two kinds of secret that the ingress needs: auth tokens and the hash key.

    Raises ConfigError where one is missing. `later` does what can wait for a second.
    """
    tokens: dict[str, list[str]] = {}
    for account in config.twilio.values():
        secrets = [reference.resolve() for reference in account.auth_token]
        tokens.setdefault(account.account_sid, []).extend(secrets)
    ledger = Ledger(redis, retention_days=config.retention_days)
    return Services(
        config=config,
        ledger=ledger,
        publish=publish,
        verifier=SignatureVerifier(tokens),
        router=Router(config, PhoneHasher(config.hash_key.resolve())),
        tally=Tally(ledger, later),
    )


def create_app(services: Services) -> Flask:
    """The WSGI application."""
    app = Flask("web", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False  # no browser asks here
    # Twilio does not follow 308, which werkzeug would answer to a doubled or missing slash.
    # Source: Twilio error 11216.
    app.url_map.merge_slashes = False
    app.extensions["optout"] = services
    app.register_blueprint(webhook)
    app.register_blueprint(health)
    return app
