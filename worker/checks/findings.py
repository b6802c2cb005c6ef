"""Findings: what can be wrong, how bad it is, and the fix. No finding contains a number or a secret."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args

# The ids of the catalogue, so that mypy finds a wrong one.
FindingId = Literal[
    "config-unusable", "secret-missing", "secret-published", "hash-key-short", "public-url-not-https",
    "redcap-not-https", "redcap-rates-differ", "redcap-rate-near-ban", "keyword-fallback-needless",
    "nobody-notified", "configuration-stale", "configuration-invalid", "configuration-needs-restart",
    "templates-broken", "redis-unreachable", "redis-right-missing", "redis-info-hidden",
    "redis-not-append-only", "redis-fsync-late", "redis-may-evict", "redis-writes-fail",
    "redis-settings-hidden", "redis-is-cluster", "redis-tls-unverified", "broker-unreachable",
    "clock-differs", "smtp-unreachable", "smtp-refused", "smtp-deferred", "smtp-helo-rejected",
    "smtp-login-rejected", "smtp-token-endpoint-unreachable", "smtp-client-rejected", "smtp-token-rejected",
    "smtp-sender-rejected", "smtp-relay-denied", "smtp-recipient-rejected", "smtp-message-rejected",
    "smtp-in-the-clear", "web-unreachable", "web-certificate", "web-is-another", "web-not-ready",
    "no-worker", "events-wait", "reviews-wait", "log-erased", "messages-of-no-project", "events-failed",
    "reconcile-late", "reconcile-never", "redcap-unreachable", "redcap-wrong-address", "redcap-banned",
    "redcap-token-refused", "redcap-no-import-right", "redcap-wrong-project", "redcap-field-missing",
    "redcap-event-missing", "redcap-event-needless", "redcap-field-not-on-event",
    "redcap-events-in-two-arms", "opt-out-field-unfit", "phone-field-unfit", "opt-out-checkbox-unfit",
    "opt-out-field-repeats", "redcap-hides-field", "redcap-hashes-record-ids",
    "redcap-records-in-another-arm", "redcap-one-group-only", "phones-none", "phones-unreadable",
    "phones-doubtful", "phones-shared", "opt-out-values-foreign", "twilio-unreachable",
    "twilio-token-refused", "twilio-token-stale", "twilio-token-not-signing", "twilio-account-inactive",
    "twilio-refused", "auth-token-not-here", "api-key-refused", "api-key-lacks-permission",
    "block-not-enabled", "block-sender-refused", "block-wrong-scope", "block-covers-nothing",
    "block-concerns-others", "blocks-failed", "service-missing", "service-without-senders",
    "service-drops-messages", "number-unknown", "number-in-service", "number-has-application",
    "inbound-elsewhere", "inbound-by-get", "webhook-without-retry", "webhook-without-fallback",
    "forwarding-differs", "replies-not-forwarded", "sink-failed", "sink-not-subscribed",
    "advanced-opt-out-unseen", "campaign-unverified", "numbers-redacted", "bodies-redacted",
    "check-unfinished",
]  # fmt: skip


class Severity(StrEnum):
    """An error makes `optout check` exit with 1; the others are shown."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding: the text of its heading in docs/reference/checks.md, and of every occurrence."""

    severity: Severity
    title: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One occurrence. `subject` is a project, "twilio.NAME", "redis", "smtp", "web" or "configuration"."""

    id: FindingId
    subject: str
    observed: str
    fix: str = ""
    count: int = 0  # of what is affected, if that can grow: the daily check reports when it does

    @property
    def kind(self) -> Kind:
        """The catalogue's entry."""
        return CATALOGUE[self.id]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return self.kind.severity

    def as_json(self) -> dict[str, Any]:
        """The object in `optout check --json`."""
        return {
            "id": self.id,
            "severity": self.severity.value,
            "subject": self.subject,
            "observed": self.observed,
            "fix": self.fix or self.kind.fix,
            "docs": f"docs/reference/checks.md#{self.id}",
        }


@dataclass(frozen=True, slots=True)
class Passed:
    """Something that was checked and is correct."""

    subject: str
    text: str


# At most this many record ids are named; the rest are counted.
MAX_NAMED = 20


def format_records(records: Sequence[str]) -> str:
    """The number of records, and their ids."""
    more = f" and {len(records) - MAX_NAMED} more" if len(records) > MAX_NAMED else ""
    plural = "s" if len(records) != 1 else ""
    return f"{len(records)} record{plural} ({', '.join(records[:MAX_NAMED])}{more})"


def _load() -> dict[str, Kind]:
    entries = tomllib.loads((Path(__file__).parent / "catalogue.toml").read_text(encoding="utf-8"))
    return {id_: Kind(**entry | {"severity": Severity(entry["severity"])}) for id_, entry in entries.items()}


CATALOGUE = _load()


def finding_id(text: str) -> FindingId:
    """Return the id that a text is. Raises KeyError if the catalogue has none."""
    ids: dict[str, FindingId] = {id_: id_ for id_ in get_args(FindingId)}
    return ids[text]
