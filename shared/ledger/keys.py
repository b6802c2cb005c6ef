"""Every Redis key of this program. None of them, and nothing in them, holds a phone number (promise P5)."""

import shared.domain.events as domain

PREFIX = "optout"

DUE = f"{PREFIX}:due"  # sorted set: "kind|project|event id" by the ms at which sweep publishes it again
ATTEMPTS = f"{PREFIX}:attempts"  # hash: the same members, how often sweep has published them
BACKGROUND = (
    f"{PREFIX}:background"  # sorted set: JSON of [task, project, …] by the ms from which it is to be done
)
CHECKS = (
    f"{PREFIX}:checks"  # hash: project, or "" for the platform -> JSON of what the last daily check found
)
CHECK_COUNTS = (
    f"{PREFIX}:check-counts"  # hash: the same fields -> JSON of how many findings by severity, if any
)
CHECKS_DUE = f"{PREFIX}:checks-due"  # sorted set: the same fields by the ms at which they are checked next
COUNTS = f"{PREFIX}:counts"  # hash: "project|source|state" of ended events
CONFIGURATION = (
    f"{PREFIX}:configuration"  # string: the last valid configuration, signed; references, no secrets
)
# hash: "kind|host|process id" -> digest of its configuration, ms, and JSON of what keeps it from the files on disk
CONFIGURATIONS = f"{PREFIX}:configurations"
# hash: "kind|host|process id" -> ms of the last heartbeat, until the process is stopped or another takes its place
HEARTBEATS = f"{PREFIX}:heartbeats"
METRICS = f"{PREFIX}:metrics"  # hash: "name|label|…" of everything else that is counted
LAST_BACKUP = f"{PREFIX}:last-backup"  # string: ms of the last `make backup`
LEDGER_VERSION = f"{PREFIX}:ledger-version"  # string: the newest version of the stored data
OPERATOR = f"{PREFIX}:operator"  # hash: what is wrong with the platform -> JSON of text, since_ms and mailed
OPERATOR_WEEK = f"{PREFIX}:operator-week"  # string: the week of the last weekly e-mail to the operator
PROBLEMS = f"{PREFIX}:problems"  # hash: project -> JSON of what keeps it from being written
# hash: project -> "" while it is configured, else the ms since when it is missing
PROJECTS = f"{PREFIX}:projects"
INVALID_MESSAGES = f"{PREFIX}:invalid-messages"  # list: queue entries that are not task messages; expires
MAIL_REJECTION = f"{PREFIX}:mail-rejection"  # string: why the mail server rejected the last e-mail; expires
REDIS_SERVER = f"{PREFIX}:redis-server"  # hash: run_id of the server that a sweep found last, and seen_ms
SUMMARIES = f"{PREFIX}:summaries"  # hash: project -> the last month whose summary was mailed
VERIFIED = f"{PREFIX}:verified"  # hash: project -> ms of its last check against REDCap, digest of its table


def event(project: str, event_id: str) -> str:
    """Hash: one event; expires when its retention is over."""
    return f"{PREFIX}:event:{project}:{event_id}"


def events(project: str) -> str:
    """Sorted set: event ids by time of receipt in ms."""
    return f"{PREFIX}:events:{project}"


def ended(project: str, state: str) -> str:
    """Sorted set: ids of events that ended in a state other than `updated`, by time of receipt in ms."""
    return f"{PREFIX}:ended:{project}:{state}"


def unfinished(project: str) -> str:
    """Sorted set: ids of events that have not ended, by time of receipt in ms."""
    return f"{PREFIX}:unfinished:{project}"


def arrived(project: str) -> str:
    """List: ids of new events that no lookup has seen yet, where messages and events are stored in one step."""
    return f"{PREFIX}:arrived:{project}"


def mailing(project: str) -> str:
    """Sorted set: ids of events whose e-mail is due, by the ms since when."""
    return f"{PREFIX}:mailing:{project}"


def gathered(project: str) -> str:
    """Sorted set: ids of events that wait for their project's digest, by the ms since when."""
    return f"{PREFIX}:gathered:{project}"


def outbox(project: str) -> str:
    """List: ids of events whose e-mail is due and for which no message of their own was sent."""
    return f"{PREFIX}:outbox:{project}"


def status(project: str) -> str:
    """Hash: phone hash -> latest change."""
    return f"{PREFIX}:status:{project}"


def pending(project: str) -> str:
    """Sorted set: phone hashes whose status has to reach REDCap, by the ms since when."""
    return f"{PREFIX}:pending:{project}"


def intents(project: str) -> str:
    """Hash: phone hash -> id of the event whose write has begun and is not known to have ended."""
    return f"{PREFIX}:intents:{project}"


def index_phones(project: str) -> str:
    """Hash: phone hash -> record ids, a line each."""
    return f"{PREFIX}:index:{project}:phones"


def index_records(project: str) -> str:
    """Hash: record id -> generation of the index (six characters), directly followed by its phones, a line each."""
    return f"{PREFIX}:index:{project}:records"


def index_since(project: str) -> str:
    """Hash: "phone hash|record id" -> ms of the export that first showed the phone, where it was added later."""
    return f"{PREFIX}:index:{project}:since"


def index_state(project: str) -> str:
    """Hash: when the index was built and refreshed, and what was counted."""
    return f"{PREFIX}:index:{project}:state"


def structure(project: str) -> str:
    """String: JSON of what REDCap said about the project's fields; expires."""
    return f"{PREFIX}:structure:{project}"


def last_structure(project: str) -> str:
    """String: JSON of what REDCap said last about the project's fields; for links in e-mails."""
    return f"{structure(project)}:last"


def reconciled(project: str) -> str:
    """Hash: watermark and report of the nightly run."""
    return f"{PREFIX}:reconciled:{project}"


def nights(project: str) -> str:
    """Hash: local day -> JSON of that day's reconciliation; 90 days, expires."""
    return f"{PREFIX}:nights:{project}"


def change_counts(project: str) -> str:
    """Hash: "day since 1970|change" -> how many were written to REDCap by local day; 182 days, expires."""
    return f"{PREFIX}:change-counts:{project}"


def latencies(project: str) -> str:
    """Hash: "week since 1970|ms" -> how many changes were in REDCap within that time; 13 weeks, expires."""
    return f"{PREFIX}:latencies:{project}"


def failures(project: str) -> str:
    """Hash: phone hash -> id of the participant's last event that ended as failed, until a later one is saved."""
    return f"{PREFIX}:failures:{project}"


def report_mails(project: str) -> str:
    """Hash: name of a reconciliation's report whose e-mail is due -> JSON of it and of who has received it."""
    return f"{PREFIX}:report-mails:{project}"


def written(project: str) -> str:
    """Hash: record id -> what the program wrote last: the opt-out's time in ms, its scope and event id."""
    return f"{PREFIX}:written:{project}"


def seen_starts(project: str) -> str:
    """Sorted set: ids of all STARTs, by time of receipt in ms; kept for good, so that none counts twice."""
    return f"{PREFIX}:seen-starts:{project}"


def reviews(project: str) -> str:
    """Sorted set: ids of events that wait for a person's decision, by the ms since when."""
    return f"{PREFIX}:reviews:{project}"


def reviews_mailed(project: str, day: str) -> str:
    """Hash: phone hash -> id of the event whose review was mailed on that day, and their number; expires."""
    return f"{PREFIX}:reviews-mailed:{project}:{day}"


def staff_actions(project: str) -> str:
    """Sorted set: JSON of each replay (event id, who, why) by its time in ms; expires."""
    return f"{PREFIX}:staff-actions:{project}"


def blocks(project: str) -> str:
    """Hash: "phone hash|scope" -> since when Twilio blocks it at the program's request, in ms."""
    return f"{PREFIX}:blocks:{project}"


def blocks_waiting(project: str) -> str:
    """Sorted set: ids of events for which Twilio has to be asked to block or unblock, by the ms since when."""
    return f"{PREFIX}:blocks-waiting:{project}"


def blocks_failed(project: str) -> str:
    """Sorted set: ids of events whose block failed, by the ms since when."""
    return f"{PREFIX}:blocks-failed:{project}"


def words(scope: str) -> str:
    """Hash: word -> the change that Twilio (OptOutType) said it asks for, per Messaging Service."""
    return f"{PREFIX}:words:{scope}"


def of_project(project: str) -> list[str]:
    """All keys of a project, but for those of its single events."""
    kinds = [
        events, unfinished, arrived, mailing, gathered, outbox, status, pending, intents,
        index_phones, index_records, index_since, index_state, structure, last_structure, reconciled,
        report_mails,
        written, seen_starts, reviews, staff_actions, nights, change_counts, latencies, failures,
        blocks, blocks_waiting, blocks_failed,
    ]  # fmt: skip
    return [*(kind(project) for kind in kinds), *ended_lists(project)]


def ended_lists(project: str) -> list[str]:
    """The lists of events by state."""
    return [ended(project, state) for state in sorted(domain.LISTED)]


def twilio_setup(account_sid: str) -> str:
    """Hash: SID of a Twilio resource -> JSON of its settings before `optout setup` changed them."""
    return f"{PREFIX}:twilio-setup:{account_sid}"


def service_senders(service_sid: str) -> str:
    """Set: keyed hashes of the senders of a Messaging Service; expires."""
    return f"{PREFIX}:service-senders:{service_sid}"


def lock(name: str) -> str:
    """String: held by one process at a time; expires."""
    return f"{PREFIX}:lock:{name}"


def queued(name: str) -> str:
    """String: that such a message is in the queue already; expires."""
    return f"{PREFIX}:queued:{name}"


def mail_login(host: str) -> str:
    """String: how the last login to a mail server ended; expires when the next one is allowed."""
    return f"{PREFIX}:mail-login:{host}"


def mail_login_refusals(host: str) -> str:
    """String: consecutive refused logins to a mail server; expires."""
    return f"{PREFIX}:mail-login-refusals:{host}"


def mail_pause(host: str) -> str:
    """Hash: how often a mail server did not answer, and until when it is left alone; expires."""
    return f"{PREFIX}:mail-pause:{host}"


def mail_probe(host: str) -> str:
    """String: that one process tries whether a mail server answers again; expires."""
    return f"{PREFIX}:mail-probe:{host}"


def rate(host: str) -> str:
    """Sorted set: the last minute's requests to a REDCap host, or to a Twilio account's Consent Management API."""
    return f"{PREFIX}:rate:{host}"


def background_pause(host: str) -> str:
    """String: that the next background request to a REDCap host has to wait; expires."""
    return f"{rate(host)}:pause"


def circuit(host: str) -> str:
    """Hash: failures in a row of a REDCap host, and until when it is left alone; expires."""
    return f"{PREFIX}:circuit:{host}"
