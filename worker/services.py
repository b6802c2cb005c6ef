"""What the steps work with, put together once per process: the composition root of the worker."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from zoneinfo import ZoneInfo

import requests
from twilio.rest import Client

from shared.config import Config, Project
from shared.domain.addresses import PhoneHasher
from shared.domain.events import Notice
from shared.errors import ConfigError, ProjectProblem
from shared.ledger import Kind, Ledger
from shared.ledger.work.deduplication import MessageDeduplicator
from shared.ledger.work.locks import count_held
from shared.messaging.record_events import publish_many_or_leave, publish_or_leave
from shared.messaging.tasks import Publisher, TaskName
from shared.redis_client import RedisClient
from shared.retry_policy import SWEEP_SLOT_SECONDS
from worker.mail.smtp import Mailer, make_mailer
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.redcap.client import RedcapClient, new_session
from worker.redcap.gateway import RedcapProject, SchemaCache
from worker.redcap.phone_index import PhoneIndex
from worker.redcap.rate_limit import RateLimiter
from worker.twilio.client import time_of_message, working_client

# A message costs the worker as much as the mail itself; more in one would keep the other processes waiting.
MAILS_PER_MESSAGE = 25


def utc_now() -> datetime:
    """The time; passed in where a test sets it."""
    return datetime.now(UTC)


@dataclass(kw_only=True)
class Services:
    """Configuration, ledger, publisher and clock; secrets are resolved by what needs them, when it does."""

    config: Config
    redis: RedisClient
    publish: Publisher
    now: Callable[[], datetime] = utc_now
    background: bool = False

    def with_config(self, config: Config) -> Services:
        """The services for another configuration, with the hash key of this one: two keys would be two ledgers.

        Raises ConfigError.
        """
        changed = replace(self, config=config)
        changed.hasher = self.hasher
        return changed

    @cached_property
    def ledger(self) -> Ledger:
        """The record of what happened."""
        return Ledger(self.redis, retention_days=self.config.retention_days)

    @cached_property
    def hasher(self) -> PhoneHasher:
        """Phone numbers to hashes. Raises ConfigError where the hash key is missing."""
        return PhoneHasher(self.config.hash_key.resolve())

    def address_hash(self, address: str) -> str:
        """What the ledger keeps instead of a mail address."""
        return self.hasher(f"mail:{address.casefold()}")

    @cached_property
    def deduplicator(self) -> MessageDeduplicator:
        """Keeps one message where many would say the same."""
        return MessageDeduplicator(self.redis)

    @cached_property
    def mailer(self) -> Mailer | None:
        """Sends mail, or None where no [smtp] is configured."""
        smtp = self.config.smtp
        if smtp is None:
            return None
        return make_mailer(self.config, smtp, self.redis)

    @cached_property
    def _session(self) -> requests.Session:
        return new_session()

    @property
    def http(self) -> requests.Session:
        """For requests that are neither REDCap's nor Twilio's."""
        return self._session

    def project_config(self, name: str) -> Project | None:
        """A project's configuration, or None where it has been taken out of the file."""
        return self.config.projects.get(name)

    def zone(self, name: str) -> ZoneInfo:
        """The time zone of a project; the deployment's where it is no longer configured."""
        config = self.project_config(name)
        return self.config.zone(config) if config else ZoneInfo(self.config.time_zone)

    def in_background(self) -> Services:
        """The same, for work that nobody waits for: its requests to REDCap take part of the budget only."""
        other = copy.copy(self)
        other.background = True
        return other

    def project(self, name: str) -> RedcapProject:
        """A project's gateway; made anew for each task, so that what it knows of REDCap is fresh.

        Raises ProjectProblem where its token is missing: the other projects go on.
        """
        config = self.config.projects[name]
        try:
            token = config.redcap_token.resolve()
        except ConfigError as error:
            raise ProjectProblem("secret_missing", f"redcap_token: {error.problems[0]}") from None
        client = RedcapClient(
            config.redcap_url,
            token,
            rate_limiter=self.rate_limiter(config),
            circuit_breaker=CircuitBreaker(self.redis, config.redcap_host),
            count=lambda content, outcome: self.ledger.count("redcap_requests", name, content, outcome),
            session=self._session,
        )
        zone = self.config.zone(config)
        return RedcapProject(name, config, zone, client=client, redis=self.redis, hasher=self.hasher)

    def rate_limiter(self, config: Project) -> RateLimiter:
        """The request budget of a project's REDCap host, which all projects on that host share."""
        host = config.redcap_host
        return RateLimiter(self.redis, host, self.config.redcap_rates[host], background=self.background)

    def schema_cache(self, name: str) -> SchemaCache:
        """What is known of a project's schema."""
        return SchemaCache(self.redis, name)

    def index(self, name: str) -> PhoneIndex:
        """A project's phone index."""
        return PhoneIndex(name, self.redis)

    def time_of_text(self, project: str, message_sid: str) -> datetime:
        """When Twilio received a text. Raises TwilioUnavailable, TwilioRejected (also if unknown) or ConfigError."""
        return time_of_message(self.twilio(project), message_sid)

    def twilio(self, project: str) -> Client:
        """A client for a project's Twilio account. Raises TwilioUnavailable, TwilioRejected or ConfigError."""
        return working_client(self.config.twilio[self.config.projects[project].twilio])

    def unmatched_notice(self, project: str) -> Notice | None:
        """What to tell about a number that no record holds: nothing, unless the project asked for it."""
        config = self.config.projects[project]
        return Notice.UNMATCHED if config.notify_unmatched and config.notify else None

    def is_updating(self, project: str) -> bool:
        """Whether a worker is writing to the project."""
        return bool(count_held(self.redis, f"update:{project}"))

    def request_update(self, project: str) -> None:
        """Ask for the project's pending statuses to be written; one message in the queue is enough."""
        if self.deduplicator.claim(f"update:{project}", seconds=30):
            publish_or_leave(self.publish, TaskName.UPDATE, project)

    def request_block(self, project: str) -> None:
        """Ask for the project's waiting blocks to be sent to Twilio; one message in the queue is enough."""
        if self.deduplicator.claim(f"block:{project}", seconds=30):
            publish_or_leave(self.publish, TaskName.BLOCK, project)

    def request_mails(self, project: str, event_ids: Iterable[str]) -> None:
        """Ask for the e-mails about events to be sent; in a storm one message stands for some of them."""
        ids = list(event_ids)
        leading = ids[::MAILS_PER_MESSAGE]
        along = [event_id for place, event_id in enumerate(ids) if place % MAILS_PER_MESSAGE]
        if along:
            self.ledger.queue_mails(project, along)
        publish_many_or_leave(self.publish, TaskName.EMAIL, [(project, event_id) for event_id in leading])

    def schedule_quick_retry(self, kind: Kind, project: str, event_id: str = "") -> None:
        """Have failed work tried again within seconds, the first few times; then it is sweep's."""
        now = self.now()
        pause = self.ledger.schedule_quick_retry(kind, project, event_id, now=now)
        if pause is None:
            return
        # One sweep for all that becomes due within the same two seconds, at their end: an earlier one that is
        # on its way already would come too soon for this work, and the next is a minute away.
        slot = int((now.timestamp() + pause) // SWEEP_SLOT_SECONDS) + 1
        wait = slot * SWEEP_SLOT_SECONDS - now.timestamp() + 0.2
        if self.deduplicator.claim(f"sweep:{slot}", seconds=wait):
            publish_or_leave(self.publish, TaskName.SWEEP, delay_seconds=wait)
