"""The metrics of `/metrics`. All come from Redis, so that every web process returns the same values."""

import json
import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.config import broker_url, redis_url
from shared.ledger import Ledger, keys
from shared.ledger.check_results import PLATFORM, check_results
from shared.messaging.celery_config import QUEUES

# Counters stored under keys.METRICS as "name|label value|…": name -> help, label names.
COUNTED = {
    "webhooks": ("Requests from Twilio by endpoint and outcome", ["endpoint", "outcome"]),
    "redcap_requests": ("Requests to REDCap's API", ["project", "content", "outcome"]),
    "mails": ("E-mails by kind and outcome", ["project", "notice", "outcome"]),
    "invalid_messages": ("Queue entries that are not task messages and were set aside", ["queue"]),
    "blocks": ("Requests to Twilio to block or unblock a number, by their result", ["project", "state"]),
    "swept": ("Tasks that sweep republished", ["kind"]),
}


class LedgerCollector(Collector):
    """Reads the ledger at each scrape."""

    def __init__(self, ledger: Ledger, projects: list[str]) -> None:
        self._redis = ledger.redis
        self._projects = projects

    def collect(self) -> Iterator[Metric]:
        """All metrics. Raises redis.RedisError if Redis is unavailable."""
        yield self._events()
        yield from self._unfinished()
        yield from self._counted()
        yield from self._reconciled()
        yield from self._last_report()
        yield from self._reviews()
        yield from self._blocks()
        yield self._problems()
        yield self._checks()
        yield self._index()
        yield self._queues()

    def _events(self) -> Metric:
        family = CounterMetricFamily(
            "optout_events", "Events that have ended", labels=["project", "source", "state"]
        )
        for field, count in sorted(self._redis.hgetall(keys.COUNTS).items()):
            family.add_metric(field.split("|"), int(count))
        return family

    def _unfinished(self) -> Iterator[Metric]:
        unfinished = GaugeMetricFamily(
            "optout_unfinished_events", "Events that have not ended", labels=["project"]
        )
        oldest = GaugeMetricFamily(
            "optout_oldest_unfinished_age_seconds",
            "Age of the oldest event that has not ended",
            labels=["project"],
        )
        pending = GaugeMetricFamily(
            "optout_pending_phones", "Phones whose status must still be written to REDCap", labels=["project"]
        )
        mailing = GaugeMetricFamily("optout_due_mails", "E-mails that are due", labels=["project"])
        gathered = GaugeMetricFamily(
            "optout_changes_awaiting_digest",
            "Changes waiting for a digest e-mail",
            labels=["project"],
        )
        # Includes projects that were removed from the configuration but still have data.
        for project in sorted({*self._projects, *self._redis.hkeys(keys.PROJECTS)}):
            unfinished.add_metric([project], self._redis.zcard(keys.unfinished(project)))
            first = self._redis.zrange(keys.unfinished(project), 0, 0, withscores=True)
            oldest.add_metric([project], max(0.0, time.time() - first[0][1] / 1000) if first else 0.0)
            pending.add_metric([project], self._redis.zcard(keys.pending(project)))
            waiting = self._redis.zcard(keys.gathered(project))
            # Mails in a digest are due from sweep's first attempt on.
            overdue = self._redis.hexists(keys.ATTEMPTS, f"digest|{project}|")
            mailing.add_metric(
                [project], self._redis.zcard(keys.mailing(project)) - (0 if overdue else waiting)
            )
            gathered.add_metric([project], waiting)
        yield from (unfinished, oldest, pending, mailing, gathered)

    def _counted(self) -> Iterator[Metric]:
        stored = sorted(self._redis.hgetall(keys.METRICS).items())
        for name, (text, labels) in COUNTED.items():
            family = CounterMetricFamily(f"optout_{name}", text, labels=labels)
            for field, count in stored:
                counter, *values = field.split("|")
                if counter == name and len(values) == len(labels):
                    family.add_metric(values, int(count))
            yield family

    def _reconciled(self) -> Iterator[Metric]:
        last = GaugeMetricFamily(
            "optout_last_reconcile_timestamp_seconds",
            "When a project was last reconciled, by outcome",
            labels=["project", "outcome"],
        )
        for project in self._projects:
            stored = self._redis.hgetall(keys.reconciled(project))
            for outcome in ("success", "failure"):
                if f"{outcome}_ms" in stored:
                    last.add_metric([project, outcome], int(stored[f"{outcome}_ms"]) / 1000)
        yield last

    def _last_report(self) -> Iterator[Metric]:
        """What the last reconciliation of each project saw."""
        covered = GaugeMetricFamily(
            "optout_log_covered_ratio",
            "Share of the opt-out messages of webhooks and Event Streams that Twilio's log still had",
            labels=["project"],
        )
        unwanted = GaugeMetricFamily(
            "optout_texts_after_opt_out",
            "Texts to participants who had opted out, in the last reconciliation",
            labels=["project", "outcome"],
        )
        for project in self._projects:
            report = json.loads(self._redis.hget(keys.reconciled(project), "report") or "{}")
            missing = sum(each["messages"] for each in report.get("missing_from_log", ()))
            expected = report.get("messages_expected", 0)
            covered.add_metric([project], 1 - missing / expected if expected else 1.0)
            for outcome in ("refused", "delivered"):
                texts = sum(each[outcome] for each in report.get("texts_after_opt_out", ()))
                unwanted.add_metric([project, outcome], texts)
        yield from (covered, unwanted)

    def _reviews(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "optout_reviews", "Events that wait for a person's decision", labels=["project"]
        )
        oldest = GaugeMetricFamily(
            "optout_oldest_review_age_seconds", "Age of the oldest of them", labels=["project"]
        )
        for project in self._projects:
            waiting.add_metric([project], self._redis.zcard(keys.reviews(project)))
            first = self._redis.zrange(keys.reviews(project), 0, 0, withscores=True)
            oldest.add_metric([project], max(0.0, time.time() - first[0][1] / 1000) if first else 0.0)
        yield from (waiting, oldest)

    def _blocks(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "optout_blocks_waiting", "Opt-outs that Twilio has yet to be asked to block", labels=["project"]
        )
        failed = GaugeMetricFamily(
            "optout_blocks_failed", "Opt-outs that could not be blocked at Twilio", labels=["project"]
        )
        for project in self._projects:
            waiting.add_metric([project], self._redis.zcard(keys.blocks_waiting(project)))
            failed.add_metric([project], self._redis.zcard(keys.blocks_failed(project)))
        yield from (waiting, failed)

    def _problems(self) -> Metric:
        family = GaugeMetricFamily(
            "optout_project_problem",
            "1 while a project has a problem that prevents writing to it",
            labels=["project"],
        )
        problems = self._redis.hkeys(keys.PROBLEMS)
        for project in self._projects:
            family.add_metric([project], float(project in problems))
        return family

    def _checks(self) -> Metric:
        """What the last daily checks found; the platform's own findings have the scope "platform"."""
        family = GaugeMetricFamily(
            "optout_check_findings", "Findings of the last daily check", labels=["scope", "severity"]
        )
        results = check_results(self._redis)
        for scope in (PLATFORM, *self._projects):
            result = results.get(scope)
            for severity in ("error", "warning", "note"):
                number = result.count(severity) if result else 0
                family.add_metric([scope or "platform", severity], number)
        return family

    def _index(self) -> Metric:
        family = GaugeMetricFamily("optout_indexed_phones", "Phones in the index", labels=["project"])
        for project in self._projects:
            family.add_metric([project], self._redis.hlen(keys.index_phones(project)))
        return family

    def _queues(self) -> Metric:
        """Celery keeps each queue as a list in Redis; the length is unknown with another broker."""
        family = GaugeMetricFamily(
            "optout_queue_length",
            "Messages that wait for a worker, where Redis is the broker",
            labels=["queue"],
        )
        if broker_url() == redis_url():
            for queue in QUEUES.values():
                family.add_metric([queue], self._redis.llen(queue))
        return family
