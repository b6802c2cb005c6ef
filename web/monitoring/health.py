"""What monitoring asks: is the process up, can it do its work, and the figures."""

import json
from typing import TYPE_CHECKING, cast

from flask import Blueprint, Response, current_app, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from redis.exceptions import RedisError

from shared.ledger import keys
from web.monitoring.metrics import LedgerCollector

if TYPE_CHECKING:
    from web.app import Services

health = Blueprint("health", __name__)


def _services() -> "Services":
    return cast("Services", current_app.extensions["optout"])


@health.get("/healthz", strict_slashes=False)
def healthz() -> Response:
    """The process is up."""
    return jsonify(status="ok")


@health.get("/readyz", strict_slashes=False)
def readyz() -> tuple[Response, int]:
    """Redis answers, and no project's configuration is known to be wrong; else 503 with what and the mend.

    The ingress takes and keeps events even while a project has a problem: alert on this, do not route on it.
    """
    try:
        problems = _services().ledger.redis.hgetall(keys.PROBLEMS)
    except RedisError as error:
        return jsonify(status="not ready", redis=type(error).__name__), 503
    known = _services().config.projects
    found = {name: json.loads(text) for name, text in problems.items() if name in known}
    if found:
        return jsonify(status="not ready", redis="ok", projects=found), 503
    return jsonify(status="ready", redis="ok", projects={}), 200


@health.get("/metrics", strict_slashes=False)
def metrics() -> Response:
    """The figures for Prometheus; 503 without a store, as a wrong zero would be worse than a gap."""
    services = _services()
    registry = CollectorRegistry()
    registry.register(LedgerCollector(services.ledger, list(services.config.projects)))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
