"""Celery's settings, which web and worker share."""

from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from shared.config.sentinel import SentinelAddress, is_sentinel_url, sentinel_address
from shared.errors import ConfigError
from shared.messaging.tasks import QUEUES, TaskName
from shared.redis_client import sentinel_options
from shared.retry_policy import VISIBILITY_TIMEOUT_SECONDS

TRANSPORT_ALIASES["amqps"] = "shared.messaging.amqps:Transport"


def broker_connection(url: str, **options: Any) -> Connection:
    """A connection of kombu to the broker, which connects on first use."""
    return Connection(
        broker_address(url),
        transport_options=_sentinel_transport(url),
        ssl=_broker_tls(url) or False,
        **options,
    )


def broker_address(url: str) -> str:
    """The broker's address as kombu takes it: one per sentinel, with the login of Redis.

    Source: kombu docs, "Redis Transport": `sentinel://one:26379;sentinel://two:26379`, option master_name.
    """
    if not is_sentinel_url(url):
        return url
    address = sentinel_address(url)
    return ";".join(
        f"sentinel://{_login(address)}{f'[{host}]' if ':' in host else host}:{port}/{address.database}"
        for host, port in address.sentinels
    )


def _login(address: SentinelAddress) -> str:
    user, password = (quote(address.login.get(name, ""), safe="") for name in ("username", "password"))
    return f"{user}:{password}@" if address.login else ""


def _sentinel_transport(url: str) -> dict[str, Any]:
    if not is_sentinel_url(url):
        return {}
    address = sentinel_address(url)
    return {"master_name": address.name, "sentinel_kwargs": sentinel_options(address)}


def _broker_tls(url: str) -> dict[str, Any]:
    """The options of TLS with sentinels; any other address holds its own."""
    return sentinel_address(url).tls if is_sentinel_url(url) else {}


def require_usable(url: str) -> None:
    """Raise ConfigError if Celery cannot use the broker's address; does not connect."""
    try:
        with broker_connection(url) as connection:
            usable = "://" in url and connection.transport is not None
    except Exception:  # noqa: BLE001  each transport raises its own, whose text may repeat the address
        usable = False
    if not usable:
        problem = (
            "Celery cannot use this address (or OPTOUT_REDIS_URL, its default); correct scheme and options"
        )
        raise ConfigError("OPTOUT_BROKER_URL", [f"OPTOUT_BROKER_URL: {problem}"])


def make_celery(url: str) -> Celery:
    """A Celery application with the broker's settings; it connects on first use. Raises ConfigError."""
    require_usable(url)
    app = Celery("optout", broker=broker_address(url), set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUES[TaskName.SWEEP],
        # One exchange each: queues that share exchange and routing key would all receive each message.
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES.values()],
        task_routes={task.value: {"queue": queue} for task, queue in QUEUES.items()},
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        # No result backend: the ledger records what happened.
        task_ignore_result=True,
        # These events feed Flower's list. "sent" is left out: it would also show waiting tasks, but costs more
        # than the publish itself, one at a time per process (docs/explanation/benchmarks.md). Waiting tasks are
        # counted in `/metrics` and on Flower's broker page.
        task_send_sent_event=False,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Also if Redis returns an error (full, or read-only during a failover): by default such an error on an
        # acknowledgement ends the worker. Source: Celery docs, broker_channel_error_retry.
        broker_channel_error_retry=True,
        broker_transport_options=_transport_options(url) | _sentinel_transport(url),
        broker_use_ssl=_broker_tls(url) or False,
        # The web process stores before it publishes, and sweep republishes: answering Twilio is more urgent.
        task_publish_retry=False,
        broker_connection_timeout=3,
    )
    return app


def _transport_options(url: str) -> dict[str, Any]:
    if not url.startswith(("redis", "sentinel")):
        # RabbitMQ unavailable: give up within a fraction of a second (kombu's default takes six), because a webhook
        # waits on servers without an event loop. Sweep republishes. Hence no publisher confirms either.
        return {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        # Without socket_timeout a publish on a half-open connection waits indefinitely, and the health check of the
        # BRPOP connection (kombu 5.7) never runs. Source: kombu's Redis transport docs.
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }
