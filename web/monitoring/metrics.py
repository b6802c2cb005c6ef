"""The metrics of `/metrics`. All come from Redis, so that every web process returns the same values."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.config import broker_url, redis_url
from shared.ledger import Ledger
from shared.ledger.platform.counters import Counters
from shared.ledger.platform.heartbeats import silent_processes
from shared.ledger.platform.loaded_configurations import invalid_files
from shared.ledger.projects.check_results import PLATFORM, finding_counts
from shared.ledger.projects.figures import ProjectFigures, age_seconds, project_figures
from shared.ledger.projects.problems import ProjectProblems
from shared.messaging.tasks import QUEUES

# What `Ledger.count` counts: name -> help, label names.
COUNTED = {
    "webhooks": ("Requests from Twilio by endpoint and outcome", ["endpoint", "outcome"]),
    "redcap_requests": ("Requests to REDCap's API", ["project", "content", "outcome"]),
    "mails": ("E-mails by kind and outcome", ["project", "notice", "outcome"]),
    "invalid_messages": ("Queue entries that are not task messages and were set aside", ["queue"]),
    "blocks": ("Requests to Twilio to block or unblock a number, by their result", ["project", "state"]),
    "swept": ("Tasks that sweep republished", ["kind"]),
}


Value = Callable[[ProjectFigures], float | None]
# Gauges per project: name, help, and value, or None where a project has nothing of that kind: with hundreds of
# projects, series that only say so would be most of the page. The first gauges are also of projects that were taken
# out of the configuration and still have data.
WAITING: list[tuple[str, str, Value]] = [
    ("optout_unfinished_events", "Events that have not ended", lambda each: each.unfinished),
    (
        "optout_oldest_unfinished_age_seconds",
        "Age of the oldest event that has not ended",
        lambda each: age_seconds(each.oldest_unfinished_ms),
    ),
    (
        "optout_pending_phones",
        "Phones whose status must still be written to REDCap",
        lambda each: each.pending,
    ),
    ("optout_due_mails", "E-mails that are due", lambda each: each.due_mails),
    (
        "optout_changes_awaiting_digest",
        "Changes waiting for a digest e-mail",
        lambda each: each.gathered or None,
    ),
]
CONFIGURED: list[tuple[str, str, Value]] = [
    (
        "optout_log_covered_ratio",
        "Share of the opt-out messages of webhooks and Event Streams that Twilio's log still had",
        lambda each: each.log_covered,
    ),
    ("optout_reviews", "Events that wait for a person's decision", lambda each: each.reviews),
    (
        "optout_oldest_review_age_seconds",
        "Age of the oldest of them",
        lambda each: age_seconds(each.oldest_review_ms) if each.reviews else None,
    ),
    ("optout_indexed_phones", "Phones in the index", lambda each: each.indexed_phones),
]
# Of projects with `block_at_twilio`.
BLOCKS: list[tuple[str, str, Value]] = [
    (
        "optout_blocks_waiting",
        "Opt-outs that Twilio has yet to be asked to block",
        lambda each: each.blocks_waiting,
    ),
    ("optout_blocks_failed", "Opt-outs that could not be blocked at Twilio", lambda each: each.blocks_failed),
    (
        "optout_block_faults",
        "Texts that Twilio delivered although it was asked to block, in the last reconciliation",
        lambda each: each.block_faults,
    ),
]


class LedgerCollector(Collector):
    """Reads the ledger at each scrape: of the configured projects, and of those that block at Twilio."""

    def __init__(self, ledger: Ledger, projects: list[str], blocking: Collection[str] = ()) -> None:
        self._redis = ledger.redis
        self._projects = projects
        self._blocking = blocking

    def collect(self) -> Iterator[Metric]:
        """All metrics. Raises redis.RedisError if Redis is unavailable."""
        figures = project_figures(self._redis, self._projects)
        configured = {name: figures[name] for name in self._projects}
        yield self._events()
        yield from (_gauge(*metric, dict(sorted(figures.items()))) for metric in WAITING)
        yield from self._counted()
        yield self._reconciled(configured)
        yield from (_gauge(*metric, configured) for metric in CONFIGURED)
        blocking = {name: each for name, each in configured.items() if name in self._blocking}
        yield from (_gauge(*metric, blocking) for metric in BLOCKS)
        yield self._texts_after_opt_out(configured)
        yield self._problems()
        yield self._configuration()
        yield self._checks()
        yield self._silent()
        yield self._queues()

    def _events(self) -> Metric:
        family = CounterMetricFamily(
            "optout_events", "Events that have ended", labels=["project", "source", "state"]
        )
        for labels, count in Counters(self._redis).ended().items():
            family.add_metric(labels, count)
        return family

    def _counted(self) -> Iterator[Metric]:
        counted = Counters(self._redis).others()
        for name, (text, labels) in COUNTED.items():
            family = CounterMetricFamily(f"optout_{name}", text, labels=labels)
            for values, count in counted.get(name, {}).items():
                if len(values) == len(labels):
                    family.add_metric(values, count)
            yield family

    def _reconciled(self, figures: Mapping[str, ProjectFigures]) -> Metric:
        last = GaugeMetricFamily(
            "optout_last_reconcile_timestamp_seconds",
            "When a project was last reconciled, by outcome",
            labels=["project", "outcome"],
        )
        for project, each in figures.items():
            for outcome, moment in (("success", each.success_ms), ("failure", each.failure_ms)):
                if moment:
                    last.add_metric([project, outcome], moment / 1000)
        return last

    def _texts_after_opt_out(self, figures: Mapping[str, ProjectFigures]) -> Metric:
        family = GaugeMetricFamily(
            "optout_texts_after_opt_out",
            "Texts to participants who had opted out, in the last reconciliation",
            labels=["project", "outcome"],
        )
        for project, each in figures.items():
            for outcome, texts in (("refused", each.refused), ("delivered", each.delivered)):
                if texts:
                    family.add_metric([project, outcome], texts)
        return family

    def _problems(self) -> Metric:
        family = GaugeMetricFamily(
            "optout_project_problem",
            "1 while a project has a problem that prevents writing to it",
            labels=["project"],
        )
        for project in sorted(ProjectProblems(self._redis).projects().intersection(self._projects)):
            family.add_metric([project], 1)
        return family

    def _checks(self) -> Metric:
        """What the last daily checks found; the platform's own findings have the scope "platform"."""
        family = GaugeMetricFamily(
            "optout_check_findings", "Findings of the last daily check", labels=["scope", "severity"]
        )
        counts = finding_counts(self._redis)
        counts[PLATFORM] = {"error": 0, "warning": 0, "note": 0} | counts.get(PLATFORM, {})
        for scope in (PLATFORM, *self._projects):
            for severity, number in counts.get(scope, {}).items():
                family.add_metric([scope or "platform", severity], number)
        return family

    def _configuration(self) -> Metric:
        family = GaugeMetricFamily(
            "optout_configuration_problem",
            "1 while a process keeps its last configuration, as this file is not valid; 0 without a file if all are",
            labels=["file"],
        )
        files = {each.file for each in invalid_files(self._redis, now_ms=time.time_ns() // 1_000_000)}
        for file in sorted(files) or [""]:
            family.add_metric([file], float(bool(file)))
        return family

    def _silent(self) -> Metric:
        family = GaugeMetricFamily(
            "optout_silent_processes",
            "Processes that publish no heartbeat, were not stopped, and have not been replaced",
            labels=["kind", "host"],
        )
        silent = silent_processes(self._redis, now_ms=time.time_ns() // 1_000_000)
        for (kind, host), number in sorted(Counter((each.kind, each.host) for each in silent).items()):
            family.add_metric([kind, host], number)
        return family

    def _queues(self) -> Metric:
        """Celery keeps each queue as a list in Redis; the length is unknown with another broker."""
        family = GaugeMetricFamily(
            "optout_queue_length",
            "Messages that wait for a worker, where Redis is the broker",
            labels=["queue"],
        )
        if broker_url() == redis_url():
            with self._redis.pipeline(transaction=False) as pipe:
                for queue in QUEUES.values():
                    pipe.llen(queue)
                for queue, length in zip(QUEUES.values(), pipe.execute(), strict=True):
                    family.add_metric([queue], length)
        return family


def _gauge(name: str, text: str, value: Value, figures: Mapping[str, ProjectFigures]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["project"])
    for project, each in figures.items():
        if (number := value(each)) is not None:
            family.add_metric([project], number)
    return family
