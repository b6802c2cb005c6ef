"""Findings as data: what can be wrong, its severity, and the fix. No finding contains a number or a secret."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


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

    id: str
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


def _error(title: str, why: str, fix: str) -> Kind:
    return Kind(Severity.ERROR, title, why, fix)


def _warning(title: str, why: str, fix: str) -> Kind:
    return Kind(Severity.WARNING, title, why, fix)


def _note(title: str, why: str, fix: str) -> Kind:
    return Kind(Severity.NOTE, title, why, fix)


CATALOGUE: dict[str, Kind] = {
    # --- configuration ----------------------------------------------------------------------------
    "config-unusable": _error(
        "The configuration file cannot be used",
        "Every process reads this file at its start and refuses to run with one that it only half understands. "
        "What is seen names the key; there is one finding per problem, and nothing else can be checked until "
        "all of them are fixed.",
        "correct that key in the configuration file, or that environment variable; docs/reference/configuration.md "
        "explains every one",
    ),
    "secret-missing": _error(
        "A secret is not where the configuration says",
        "The configuration holds references, `env:NAME` or `file:/path`; the secret itself was not found there. "
        "In a container, look whether the variable or file reaches this process: each process gets only the "
        "secrets that it needs, and `optout check` needs all of them.",
        "store the secret there, or correct the reference",
    ),
    "secret-published": _error(
        "A secret of the demo is used in a deployment",
        "The demo's secrets are in the public repository. With its hash key anybody can compute which numbers the "
        "ledger holds; with its Redis password or Flower login anybody in the network can get in. Processes refuse "
        "to start with them; the demo's own images set OPTOUT_DEMO.",
        "make secrets of your own (make deployment); for the hash key see docs/how-to/rotate-secrets.md",
    ),
    "hash-key-short": _error(
        "The hash key is shorter than 32 characters",
        "Phone numbers are kept as keyed hashes only. There are few enough phone numbers to try them all, so "
        "what protects them is the key: anyone who obtains the stored hashes must not be able to guess it.",
        'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"; '
        "a new key empties the phone index and the known statuses, see docs/how-to/rotate-secrets.md",
    ),
    "public-url-not-https": _error(
        "The public address is not https",
        "Phone numbers and message texts would cross the internet in the clear, and anybody on the way could "
        "read and repeat them.",
        "give the web process an https address (a reverse proxy with a certificate) and write it in public_url",
    ),
    "redcap-not-https": _error(
        "REDCap's address is not https",
        "The API token and participants' numbers would cross the network in the clear.",
        "write REDCap's https address in redcap_url",
    ),
    "redcap-rates-differ": _warning(
        "Projects on one REDCap host have different request rates",
        "All projects on a host share one budget, because REDCap counts by address and not by project. The "
        "lowest of the configured rates is the one that holds for all of them.",
        "write the same redcap_requests_per_minute in all projects of that host",
    ),
    "redcap-rate-near-ban": _warning(
        "The request rate is close to REDCap's own limit",
        "REDCap bans an address that makes more than 600 requests in a minute (the default; an administrator "
        "may have changed it), until an administrator lifts the ban. Everything else behind the same address, "
        "such as people's browsers behind one firewall, counts too.",
        "write at most 400 in redcap_requests_per_minute, or ask the REDCap administrator to except this address",
    ),
    "keyword-fallback-needless": _note(
        "keyword_fallback has no effect",
        "STOP, START and the configured words always count, whether Twilio sends OptOutType or not. (`optout setup` "
        "still reads it: numbers of such a project stay outside a Messaging Service.)",
        "remove keyword_fallback from the project",
    ),
    "nobody-notified": _note(
        "Nobody is notified of this project's changes",
        "The project has no `notify`: REDCap shows the opt-out, but no e-mail says so, not even when it could "
        "not be saved.",
        'add notify = ["…"] to the project if somebody should know',
    ),
    "configuration-stale": _warning(
        "A process runs with another configuration than the file's",
        "Processes take a valid change within a minute. This one has not taken the last edit yet, reads another "
        "file, or ended a few seconds ago.",
        "wait a minute; if it remains, run make apply; without Docker, restart the process",
    ),
    "configuration-invalid": _error(
        "A process keeps its last valid configuration",
        "The process found the files invalid, or lacks a secret that it needs, and goes on with what it had. It "
        "reads them again as soon as one changes.",
        "correct what is named; optout check --config-only names every mistake",
    ),
    "configuration-needs-restart": _warning(
        "A changed setting needs a restart",
        "The addresses of Redis and of the broker, and the hash key, are read at the start only. The process goes on "
        "with the old ones; everything else in the configuration has been taken.",
        "restart the process (with Docker: make apply); for the hash key see docs/how-to/rotate-secrets.md first",
    ),
    "templates-broken": _error(
        "A project's own e-mail template cannot be used",
        "The project names a folder of templates, and one of them does not work. The built-in text is sent in "
        "its place, so that no mail is lost.",
        "correct the template; docs/how-to/customise-mails.md lists what templates may use",
    ),
    # --- redis ------------------------------------------------------------------------------------
    "redis-unreachable": _error(
        "Redis does not answer",
        "Nothing can be stored: the web process answers 503 to Twilio, and no task runs.",
        "start Redis, or correct OPTOUT_REDIS_URL",
    ),
    "redis-right-missing": _error(
        "A Redis user lacks a right",
        "The user in that address may not run a command, or use a key or channel, that this program needs. Without a "
        "right on the ledger, opt-outs cannot be stored; without one on the broker, the worker does not run. The "
        "rights are named as `ACL SETUSER` writes them.",
        "give the user that right; docs/how-to/restrict-redis.md has all of them",
    ),
    "redis-info-hidden": _warning(
        "The Redis user may not run INFO",
        "INFO is in Redis' category @dangerous. Everything else works, but whether Redis stores each change on disk "
        "and its disk is full cannot be checked.",
        "ACL SETUSER (the user) +info; docs/how-to/restrict-redis.md has all rights",
    ),
    "redis-not-append-only": _error(
        "Redis does not keep an append-only file",
        "A change is durable only if it is on the disk before Twilio is answered. Without the append-only file, "
        "a restart loses everything since the last snapshot.",
        "set appendonly yes (deploy/redis.conf shows all settings)",
    ),
    "redis-fsync-late": _warning(
        "Redis writes to the disk late",
        "With any `appendfsync` but `always`, a power cut loses up to a second (everysec) or more (no) of "
        "opt-outs that Twilio believes delivered. The nightly run finds them again in Twilio's log.",
        "set appendfsync always",
    ),
    "redis-may-evict": _error(
        "Redis may throw stored data away",
        "With any `maxmemory-policy` but `noeviction`, a full Redis silently drops keys: opt-outs, or the queue.",
        "set maxmemory-policy noeviction",
    ),
    "redis-writes-fail": _error(
        "Redis cannot write its append-only file",
        "The last write to the disk failed, most often because the disk is full. Redis refuses changes until it "
        "works again, and Twilio is answered 503.",
        "make room on Redis' disk, and look into its log",
    ),
    "redis-settings-hidden": _note(
        "Redis does not show all its settings",
        "Managed services often forbid CONFIG. Whether the append-only file is on was still seen; how soon it "
        "reaches the disk was not.",
        "look up in the service's console that every write reaches the disk (appendfsync always), and note it",
    ),
    "redis-is-cluster": _error(
        "Redis runs as a cluster",
        "Each step is one script over several keys, which a cluster spreads over several servers and refuses.",
        "use one Redis (with a replica or Sentinel for availability); one is enough for millions of events",
    ),
    "redis-tls-unverified": _warning(
        "The certificate of Redis is not verified",
        "The address says so (`ssl_cert_reqs`, `ssl_check_hostname`). Who can redirect the connection can pose "
        "as Redis, and read its password and the ledger.",
        "remove these options; for your own certificate authority use ca.pem, see docs/how-to/install-docker.md",
    ),
    "broker-unreachable": _error(
        "The broker does not answer",
        "OPTOUT_BROKER_URL names another server than Redis for the task queues, and it was not reached. Changes "
        "are stored, but nothing works on them until the broker is back.",
        "start the broker, or correct OPTOUT_BROKER_URL",
    ),
    "clock-differs": _warning(
        "Two clocks differ",
        "The time of a STOP is this machine's time of receipt, and the nightly run compares it with Twilio's. "
        "A clock that is wrong by more than the time between a STOP and a START can swap them.",
        "let NTP (chrony, systemd-timesyncd) set the clock of the machine that is wrong",
    ),
    # --- mail -------------------------------------------------------------------------------------
    "smtp-unreachable": _error(
        "The mail server does not answer",
        "E-mails wait and are tried again for a week; the opt-outs themselves are not held up.",
        "correct the address that smtp.url refers to, or let this host through the firewall",
    ),
    "smtp-refused": _error(
        "The mail server and this program do not agree on how to talk",
        "The address cannot be read, or the server offers no STARTTLS, no login or another kind of login, or it "
        "rejects the connection.",
        "correct user, password (percent-encoded) or ?starttls=true in what smtp.url refers to; "
        "docs/how-to/set-up-e-mail.md has addresses for common mail servers",
    ),
    "smtp-deferred": _warning(
        "The mail server defers e-mails for now",
        "It answered with a temporary error (4xx). E-mails wait and are retried for a week.",
        "run optout check again in a few minutes; if it lasts, ask the mail team about the code shown",
    ),
    "smtp-helo-rejected": _error(
        "The mail server rejects the greeting",
        "A mail client greets with a host name (EHLO). Some servers demand a name with a domain, or one that is in "
        "DNS.",
        "set helo in [smtp] to a host name that resolves",
    ),
    "smtp-login-rejected": _error(
        "The mail server rejects the login",
        "User or password is wrong, the account is locked or disabled, password logins are switched off "
        "(Exchange Online: 550 5.7.30 or 535 5.7.139), or the server demands a login and the address has none. "
        "The same login is tried again after one to five minutes only, so that the account is not locked.",
        "correct user and password (percent-encoded) in what smtp.url refers to; for Microsoft 365 use OAuth or a "
        "connector, see docs/how-to/set-up-e-mail.md; then optout replay --mails",
    ),
    "smtp-token-endpoint-unreachable": _error(
        "The token endpoint gives no answer that can be used",
        "The address in smtp.oauth2.token_url was not reached, or its response is not that of a token endpoint. "
        "E-mails wait and are retried for a week.",
        "correct token_url, or let the worker reach it by HTTPS (firewall, HTTPS_PROXY, ca.pem); "
        "see docs/how-to/set-up-e-mail.md",
    ),
    "smtp-client-rejected": _error(
        "The token endpoint rejects the client",
        "Client id, client secret, tenant or scope is wrong, or the secret has expired. Microsoft's number (AADSTS…) "
        "says which.",
        "correct client_id, client_secret, token_url or scope in [smtp.oauth2]; docs/how-to/set-up-e-mail.md "
        "explains Microsoft's numbers; then optout replay --mails",
    ),
    "smtp-token-rejected": _error(
        "The mailbox rejects the access token",
        "The token endpoint issued a token, but the mail server does not accept it for the mailbox in smtp.url. On "
        "Microsoft 365 the application lacks SMTP.SendAsApp or consent, its service principal or the mailbox "
        "permission is missing, or SMTP is disabled for the mailbox.",
        "follow docs/how-to/set-up-e-mail.md, steps 1 to 3, and check the mailbox in the address; changes may take "
        "half an hour; then optout replay --mails",
    ),
    "smtp-sender-rejected": _error(
        "The mail server rejects the sender",
        "This login, or this host, may not send as the address in [smtp] sender.",
        "correct sender, or let the account send as that address (Microsoft 365: SendAs); then optout replay --mails",
    ),
    "smtp-relay-denied": _error(
        "The mail server does not relay to the recipients",
        "It accepts this program, but not for the addresses in notify. Often it relays only for known IP addresses "
        "or logins, or only inside the institution.",
        "ask the mail team to let this host relay, or log in; docs/how-to/set-up-e-mail.md lists the ways; then "
        "optout replay --mails",
    ),
    "smtp-recipient-rejected": _error(
        "The mail server rejects a recipient",
        "An address in notify does not exist. Nothing was sent; the server was asked about the addresses only.",
        "correct the address in notify; then optout replay --mails",
    ),
    "smtp-message-rejected": _error(
        "The mail server rejects the messages",
        "It accepts sender and recipients, but rejected the last e-mail after its content: a sending quota, or a "
        "policy. E-mails wait and are retried for a week.",
        "ask the mail team about the code shown",
    ),
    "smtp-in-the-clear": _warning(
        "The mail password crosses the network in the clear",
        "smtp.url has a user and a password, but neither smtps:// nor starttls=true.",
        "use smtps://… or add ?starttls=true",
    ),
    # --- web, worker, what waits ------------------------------------------------------------------
    "web-unreachable": _error(
        "The public address cannot be reached",
        "Twilio calls public_url. From here nothing answered. Where this machine cannot see its own public "
        "address (some firewalls), give the address that works from here with --url, and test the public one "
        "from outside.",
        "start the web process, and look at DNS, certificate, proxy and firewall on the way to it",
    ),
    "web-certificate": _error(
        "The public address has a certificate that nobody trusts",
        "Twilio refuses self-signed and expired certificates, and certificates without their chain.",
        "install a certificate of a public authority, with its chain",
    ),
    "web-is-another": _error(
        "Something else answers at the public address",
        "GET /healthz was answered, but not by this program: a proxy's error or login page, or another service.",
        "let the proxy pass /twilio/, /healthz and /readyz to the web process, without a login",
    ),
    "web-not-ready": _error(
        "The web process says that it is not ready",
        "GET /readyz names what keeps it, or a project, from working. What was stored waits and is written when "
        "that is fixed.",
        "correct what it names",
    ),
    "no-worker": _warning(
        "No worker answers",
        "Changes are stored, but nobody works on them. Right after a start, ask again in a few seconds.",
        "start the worker: python -m worker worker",
    ),
    "events-wait": _warning(
        "Events have been waiting for long",
        "An event normally ends within a second. What waits for longer than ten minutes waits for REDCap, for a "
        "worker, or for someone to fix the project.",
        "fix this project's other findings; optout events --state pending lists them",
    ),
    "reviews-wait": _warning(
        "Texts or entries wait for a person's decision",
        "A text may be an opt-out, or a START came where a person had entered an opt-out. Until somebody decides, "
        "nothing is written.",
        "list them with optout review; optout review EVENT stop or dismiss decides one",
    ),
    "log-erased": _warning(
        "Messages are missing from Twilio's log",
        "REDCap deletes the messages that it has handled from Twilio's log. For that sender and time, the nightly "
        "reconciliation cannot find an opt-out whose webhook was missed.",
        "use both a webhook and Event Streams for that sender (optout setup --mode both), so that two independent "
        "deliveries have to fail before an opt-out is missed",
    ),
    "messages-of-no-project": _warning(
        "Messages came to senders that no project names",
        "A STOP to such a sender is not recorded anywhere.",
        "look for message_of_no_project in web's log, and add the sender or service to its project",
    ),
    "events-failed": _warning(
        "Events have failed",
        "These changes are not in REDCap: it rejected them, or was unavailable for a day. The study team was "
        "notified by e-mail, if the project has notify.",
        "see optout events --state failed for the reasons; after the fix, optout replay --failed",
    ),
    "reconcile-late": _warning(
        "The nightly comparison with Twilio has not succeeded for long",
        "It proves that no webhook was missed. The last success is more than 26 hours ago.",
        "look for reconcile in the worker's log; run optout reconcile by hand to see what is in its way",
    ),
    "reconcile-never": _note(
        "The project has not been compared with Twilio's message log yet",
        "A new project: opt-outs from before its start are in Twilio's log only (it is kept for 400 days).",
        "run optout reconcile --project P --since YYYY-MM-DD once, from the first text on",
    ),
    # --- redcap -----------------------------------------------------------------------------------
    "redcap-unreachable": _error(
        "REDCap gives no answer that can be believed",
        "It was not reached, took too long, or answered with an error of its own. Changes are kept and written "
        "when it is back.",
        "look whether REDCap is up and whether this host may reach it",
    ),
    "redcap-wrong-address": _error(
        "Something else answers where REDCap's API was expected",
        "A login or maintenance page, a redirect, an answer without content, or an address that is not the API's.",
        "write the API's address in redcap_url as REDCap's API page shows it; it ends in /api/",
    ),
    "redcap-banned": _error(
        "REDCap turns this address away",
        "Status 403 came without a refusal in REDCap's own form: REDCap bans addresses that ask too often, and "
        "firewalls look the same.",
        "ask the REDCap administrator to lift the ban (Control Center, Rate Limiter) and to except this address",
    ),
    "redcap-token-refused": _error(
        "REDCap refuses the token",
        "It is wrong or revoked, or its user has lost the API right or the project.",
        "make a new token for the API user (REDCap: API), and put it where redcap_token refers to",
    ),
    "redcap-no-import-right": _error(
        "The token may not import",
        "Every read works, but no opt-out can be written. This is seen without writing: an import without rows. "
        "Where a server only stumbles over that, nothing is said.",
        'give the API user the right "API Import/Update"',
    ),
    "redcap-wrong-project": _error(
        "The token belongs to another project",
        "redcap_project_id names a project, and the token opens another: opt-outs would be looked for, and "
        "written, in the wrong study.",
        "use the token of the right project, or correct redcap_project_id",
    ),
    "redcap-field-missing": _error(
        "A configured field does not exist",
        "Field names are case-sensitive variable names, not labels. A field that exists only in draft mode does "
        "not exist for the API yet.",
        "correct the name in the configuration, or add the field in the Online Designer",
    ),
    "redcap-event-missing": _error(
        "An event is missing or does not exist",
        "In a longitudinal project every field lives in events. Unique event names derive from their labels, "
        "and change when an event is renamed.",
        "write the unique event name (Project Setup, Define My Events) in phone_event and opt_out_event",
    ),
    "redcap-event-needless": _warning(
        "An event is configured for a project without events",
        "The project is not longitudinal: phone_event and opt_out_event are not used.",
        "take phone_event and opt_out_event out of the configuration",
    ),
    "redcap-field-not-on-event": _error(
        "A field is not on the configured event",
        "The field's instrument is not designated for that event, so that there is no place to write.",
        "designate the instrument (Project Setup, Designate Instruments for My Events), or name another event",
    ),
    "redcap-events-in-two-arms": _error(
        "phone_event and opt_out_event are in different arms",
        "A participant is in one arm, as a rule: to write into the other would create the record there. STOPs are "
        "kept until it is fixed.",
        "name two events of one arm; a second arm gets a [projects.NAME] table of its own, with its own two events",
    ),
    "opt-out-field-unfit": _error(
        "The opt-out field cannot hold date and time",
        "The time of the STOP is written there: a text field, with validation datetime_seconds_* or datetime_*, "
        "or without any. A field that REDCap computes (calc, @CALCTEXT, @CALCDATE) drops what is imported. "
        "STOPs are kept until it is corrected.",
        "set the field's validation to datetime_seconds_ymd in the Online Designer, and remove such an action tag",
    ),
    "phone-field-unfit": _error(
        "The phone field is of a kind that cannot hold a number",
        "Numbers are read from text, notes, calculated and SQL fields. A checkbox, a choice or a file holds none, so "
        "no STOP could be matched. STOPs are kept until it is corrected.",
        "name the field with the number in phone_field",
    ),
    "opt-out-checkbox-unfit": _error(
        "The opt-out checkbox has no choice coded 1",
        "A STOP ticks the choice with code 1 of a checkbox field.",
        "make it a checkbox field with a choice coded 1, or take opt_out_checkbox out of the configuration",
    ),
    "opt-out-field-repeats": _error(
        "The opt-out field is on a repeating instrument",
        "There is one opt-out per participant, and a repeating instrument has many places for it. The same goes for "
        "the checkbox. STOPs are kept until it is fixed.",
        "move the field to an instrument, or an event, that does not repeat",
    ),
    "redcap-hides-field": _error(
        "REDCap hides a field from the token",
        "Without full export rights on an instrument REDCap leaves fields out of its answer without a word; "
        'phone numbers are identifiers, which "De-identified" and "Remove identifiers" also leave out.',
        'give the API user the export right "Full Data Set" on the instruments of all configured fields',
    ),
    "redcap-hashes-record-ids": _error(
        "REDCap hides the record ids from the token",
        "The record id field is tagged as an identifier, and without full export rights REDCap gives hashes of 32 "
        "digits in place of identifiers: no record is found again by a hash. STOPs are kept until it is fixed.",
        'give the API user the export right "Full Data Set" on the instrument of the record id, or take the tag off',
    ),
    "redcap-records-in-another-arm": _warning(
        "Records with a phone number are not in the arm of opt_out_event",
        "Without phone_event the number counts in all arms, but the opt-out can be written in one arm only: in "
        "another, the write would create the record there. A STOP of these participants ends as failed, and the "
        "team is notified.",
        "give each arm a [projects.NAME] table of its own, with a phone_event and an opt_out_event of that arm",
    ),
    "redcap-one-group-only": _error(
        "The token sees one Data Access Group only",
        "Its user is in a group: participants of all other groups would not be found, and their STOPs would end "
        "as no_matching_record.",
        "take the API user out of its group (REDCap: DAGs, Assign user to no assignment)",
    ),
    "phones-none": _warning(
        "No record holds a phone number",
        "The project is empty, or phone_field or phone_event is not where the numbers are.",
        "enter a test record, or correct phone_field and phone_event",
    ),
    "phones-unreadable": _warning(
        "Phone fields hold text that is no phone number",
        "A STOP from these participants cannot be matched: it ends as no_matching_record.",
        "correct them in REDCap; numbers of other countries need their + and country code (or default_region)",
    ),
    "phones-doubtful": _warning(
        "Phone fields hold numbers that may be incomplete or wrong",
        "They were read, but a STOP may come from another number: one without area code, one that no numbering plan "
        "has, or one that is written as another's extension and has seven digits or more.",
        "compare them with what the participants gave, and write each number complete",
    ),
    "phones-shared": _note(
        "Several records hold the same phone number",
        "All of them get the opt-out: it is the number that opted out. Right for siblings or a parent's phone; "
        "a duplicate record shows in the same way.",
        "merge duplicates, if they are any",
    ),
    "opt-out-values-foreign": _warning(
        "The opt-out field holds something that is no time",
        "A value that is not written as date and time is the study's own: a STOP leaves it as it is, a START "
        "clears it. (The project's missing data codes are no such values: a STOP is written over them, a START "
        "leaves them.)",
        "if the field is used for something else, name a field of its own in opt_out_field",
    ),
    # --- twilio -----------------------------------------------------------------------------------
    "twilio-unreachable": _error(
        "Twilio's REST API does not answer",
        "Webhooks still come in. The nightly comparison and optout setup need the API.",
        "let this host reach api.twilio.com, messaging.twilio.com and events.twilio.com, or ask again later",
    ),
    "twilio-token-refused": _error(
        "Twilio refuses every auth token of the account",
        "Webhooks are signed with the account's auth token: with a wrong one all of them are turned away (403).",
        "copy the account SID and its primary auth token from the Twilio console; a subaccount has its own",
    ),
    "twilio-token-stale": _warning(
        "One of the auth tokens is refused",
        "While a token is rotated two are listed. One of them no longer opens the account.",
        "take it out of auth_token once the new one signs",
    ),
    "twilio-token-not-signing": _error(
        "None of the auth tokens is the primary one",
        "The token opens the API, but Twilio signs webhooks with the primary auth token only: all webhooks "
        "would be turned away (403).",
        "put the primary auth token first in auth_token; keep the other one beside it while you promote it",
    ),
    "twilio-account-inactive": _error(
        "The Twilio account is not active",
        "A suspended or closed account neither sends nor receives.",
        "see the Twilio console: most often it is the billing",
    ),
    "twilio-refused": _error(
        "Twilio refuses a question",
        "The account may not read what this check looks at.",
        "look at the code in Twilio's documentation of errors; if the login is a restricted API key, the finding "
        "api-key-lacks-permission names what it lacks",
    ),
    "auth-token-not-here": _note(
        "The auth token is not readable here",
        "The worker uses api_key, so that only web needs the auth token, which signs webhooks. Whether it is right "
        "is not checked here, and optout test-message cannot sign its messages.",
        "nothing, if web can read it; optout check in web's environment checks it",
    ),
    "api-key-refused": _error(
        "Twilio refuses the API key",
        "Workers can neither read the message log nor ask for the time of a START, and the nightly reconciliation "
        "fails. Webhooks are not affected.",
        "make a new API key in the Twilio console (Account, API keys and tokens), in this account, and put its SID "
        "and secret where api_key and api_secret refer to",
    ),
    "api-key-lacks-permission": _error(
        "The API key lacks permissions",
        "A restricted API key may do only what was ticked when it was made. docs/how-to/least-privilege.md lists "
        "what the worker needs.",
        "add the permissions that are named to the key in the Twilio console (Account, API keys and tokens)",
    ),
    "block-not-enabled": _error(
        "Twilio does not accept requests to block",
        "block_at_twilio uses the Consent Management API, which Twilio's support has to enable for each account, and "
        "which a restricted API key has to be permitted to use. Opt-outs wait for a day, and are reported as not "
        "blocked then. This is seen with a consent for an invalid number, which cannot be stored.",
        "ask Twilio's support to enable the Consent Management API for this account; or switch block_at_twilio off",
    ),
    "block-sender-refused": _error(
        "Twilio does not accept a sender in requests to block",
        "The Consent Management API takes Messaging Services and numbers of the same account.",
        "correct messaging_service_sid or senders",
    ),
    "block-wrong-scope": _error(
        "A block of this number would not concern the study's texts",
        "The number is in a Messaging Service, and a block of the number alone is not one of the service.",
        "name the service in messaging_service_sid, so that the service is blocked",
    ),
    "block-covers-nothing": _error(
        "None of the study's senders can be blocked",
        "The Consent Management API covers SMS, MMS and RCS of a Messaging Service, a number or a short code. It "
        "does not cover WhatsApp, or alphanumeric senders.",
        "name the Messaging Service or number; or switch block_at_twilio off",
    ),
    "block-concerns-others": _note(
        "A block concerns other studies, too",
        "These projects share the Messaging Service or number. Twilio then blocks their texts to the participant as "
        "well, and an unblock is refused as long as one of them has an opt-out of the number.",
        "nothing, if that is intended; else give each study a Messaging Service of its own",
    ),
    "blocks-failed": _warning(
        "Opt-outs are not blocked at Twilio",
        "REDCap shows these opt-outs, but Twilio was not asked successfully to block the numbers, and may go on "
        "delivering texts. The nightly reconciliation tries again.",
        "optout events shows them; look for block_asked in the worker's log for the reasons",
    ),
    "service-missing": _error(
        "The Messaging Service does not exist in this account",
        "Messages name their service: with a wrong SID none of them is recognised as this project's.",
        "copy messaging_service_sid from the Twilio console (Messaging, Services), or let optout setup create one",
    ),
    "service-without-senders": _error(
        "The Messaging Service has no sender",
        "Nobody can text a service without a number.",
        "attach the study's number: optout setup, or the Twilio console (Sender Pool)",
    ),
    "service-drops-messages": _error(
        "The Messaging Service drops what comes in",
        "Its incoming-message setting is “Drop the message”: a STOP is neither delivered nor in Twilio's "
        "message log, so that nothing can find it.",
        "optout setup, or choose “Send a webhook” or “Defer to sender's webhook” in the service's Integration",
    ),
    "number-unknown": _error(
        "A configured number is not in this account",
        "Replies to it belong to another account, or the number is written wrongly.",
        "correct senders, or the account in twilio; numbers are written in full, with + and country code",
    ),
    "number-in-service": _warning(
        "A configured number belongs to a Messaging Service that is not configured",
        "An opt-out then covers the whole service, and the service may decide where replies go.",
        "name the service in messaging_service_sid",
    ),
    "number-has-application": _error(
        "A TwiML application takes the number's messages",
        "While a number has a messaging application, Twilio ignores its webhook addresses.",
        "take the application off the number, or let optout setup use Event Streams",
    ),
    "inbound-elsewhere": _error(
        "Replies do not come here",
        "Neither does an Event Streams sink bring incoming messages to public_url, nor does Twilio call "
        "public_url/twilio/inbound.",
        "run optout setup --project P, which shows its plan first",
    ),
    "inbound-by-get": _error(
        "Twilio calls the webhook by GET",
        "The webhook takes POST only; a GET would put phone numbers into addresses and proxies' logs.",
        "optout setup, or set the method to HTTP POST",
    ),
    "webhook-without-retry": _warning(
        "Twilio will not repeat a webhook that fails",
        "By default Twilio does not retry a 5xx or a timeout at all. The address's fragment asks for it. "
        "Without it, an opt-out that comes during a restart is found by the nightly run only.",
        "optout setup, or add #rc=5&rp=5xx,ct,rt&ct=1500&rt=3000 to the address",
    ),
    "webhook-without-fallback": _warning(
        "The webhook has no fallback address",
        "It is what Twilio calls when all attempts have failed.",
        "optout setup names one: the address that replies are handed on to, or ours once more",
    ),
    "forwarding-differs": _warning(
        "Messages are not forwarded to where they went before",
        "`optout setup` saved the address that Twilio called before this program: REDCap's, perhaps. The "
        "configuration forwards to another address, or to none.",
        "write that address in forward_url and run make apply; if it no longer needs the messages, run optout setup "
        "--undo and optout setup again",
    ),
    "replies-not-forwarded": _warning(
        "The number's own address gets no replies any more",
        "The Messaging Service sends everything here, and the number still names an address of its own, such as "
        "REDCap's: its features (SMS surveys, replies) no longer see what participants text.",
        "write that address in forward_url if it still needs the replies",
    ),
    "sink-failed": _error(
        "The Event Streams sink has failed",
        "Twilio gives a sink up that fails for four hours, and delivers nothing to it any more.",
        "correct what public_url lacks, then run optout setup, which replaces the sink",
    ),
    "sink-not-subscribed": _error(
        "The Event Streams sink gets no incoming messages",
        "A sink for public_url exists, but no subscription sends it "
        "com.twilio.messaging.inbound-message.received.",
        "run optout setup --mode events",
    ),
    "advanced-opt-out-unseen": _note(
        "Whether Advanced Opt-Out is on has not been seen yet",
        "No API shows it. Without it, Twilio's webhook does not say how Twilio handled a text: keywords of other "
        "languages are recognized only if opt_out_keywords names them. The first real STOP proves it, and this note "
        "disappears; `optout test-message` does not prove it, as it sets OptOutType itself.",
        "Twilio console: Messaging, Services, the service, Opt-Out Management, enable; then text STOP and START "
        "from your own phone",
    ),
    "campaign-unverified": _warning(
        "The service's US numbers have no verified A2P 10DLC campaign",
        "US carriers block texts from ordinary numbers without one: participants get nothing, not even the "
        "confirmation of their STOP.",
        "register the campaign in the Twilio console (Messaging, Regulatory Compliance); it takes days",
    ),
    "numbers-redacted": _error(
        "Twilio redacts phone numbers in this account",
        "The message log shows no whole numbers, so that the nightly run cannot recover anything; and Twilio "
        "excludes number redaction from its own handling of STOP.",
        "have number redaction turned off for this account",
    ),
    "bodies-redacted": _warning(
        "Twilio redacts message bodies in this account",
        "The message log shows no words, so that the nightly run cannot see which messages were STOP.",
        "turn body redaction off, or rely on webhooks with retries and write blocked_messages = true",
    ),
    # --- the check itself -------------------------------------------------------------------------
    "check-unfinished": _error(
        "A part of the check did not end",
        "It took longer than --timeout, or ended with an error that should not happen. All other parts are "
        "complete.",
        "ask again; if it stays, report it with the name of the error",
    ),
}
