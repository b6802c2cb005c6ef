"""Routes for monitoring: liveness, readiness and metrics."""

import time
from dataclasses import asdict

from flask import Blueprint, Response, jsonify
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from redis.exceptions import RedisError

from shared.ledger.platform.loaded_configurations import invalid_files, program_version
from shared.ledger.projects.problems import ProjectProblems
from shared.redis_client import redis_cause
from web.context import leave_event_loop, services
from web.monitoring.metrics import LedgerCollector

health = Blueprint("health", __name__)


@health.get("/healthz", strict_slashes=False)
def healthz() -> Response:
    """The process is up, and which version it is."""
    version = program_version()
    return jsonify(status="ok", **({"version": version} if version else {}))


@health.get("/readyz", strict_slashes=False)
def readyz() -> tuple[Response, int]:
    """Redis answers, and neither a project nor the configuration has a problem; otherwise 503 with each and its fix.

    The ingress accepts and stores events even while a project has a problem: alert on this, do not route by it.
    """
    leave_event_loop()
    try:
        problems = ProjectProblems(services().ledger.redis).as_json()
        files = invalid_files(services().ledger.redis, now_ms=time.time_ns() // 1_000_000)
    except RedisError as error:
        return jsonify(status="not ready", redis=redis_cause(error)), 503
    known = services().config.projects
    found = {name: problem for name, problem in problems.items() if name in known}
    if files:
        described = [{**asdict(each), "key": each.key} for each in files]
        return jsonify(status="not ready", redis="ok", projects=found, configuration=described), 503
    if found:
        return jsonify(status="not ready", redis="ok", projects=found), 503
    return jsonify(status="ready", redis="ok", projects={}), 200


@health.get("/metrics", strict_slashes=False)
def metrics() -> Response:
    """Metrics for Prometheus; 503 without Redis, as a wrong zero would be worse than a gap."""
    leave_event_loop()
    registry = CollectorRegistry()
    projects = services().config.projects
    blocking = {name for name, project in projects.items() if project.block_at_twilio}
    registry.register(LedgerCollector(services().ledger, list(projects), blocking))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
