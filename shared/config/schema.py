"""The tables and keys of the configuration file, with the checks of each value."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shared.config.secrets import Secret
from shared.domain.mailbox import Mailbox, without_repeated

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError('must be an IANA time zone such as "America/Chicago"') from None
    return name


def _known_region(name: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS  # only here: 2 MB in processes that read no numbers

    if name not in SUPPORTED_REGIONS:
        raise ValueError('must be a two-letter country code in capitals such as "US"')
    return name


def _web_address(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url):
        raise ValueError('must be an address such as "https://host/path", without user name or password')
    try:
        urlsplit(url).port  # noqa: B018  raises ValueError if the port is invalid
    except ValueError:
        raise ValueError("must have a port between 0 and 65535, or none") from None
    return url


def _api_address(url: str) -> str:
    # REDCap redirects a POST without the trailing slash, which turns it into a GET (REDCapR #166).
    return _web_address(url) + "/" if url.endswith("/api") else _web_address(url)


def _encrypted(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise ValueError("must be an https address (http only on this machine)")
    return url


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_secret(value: Any) -> Any:
    return Secret(value) if isinstance(value, str) else value


def _mailbox(value: Any) -> Any:
    try:
        return Mailbox.parse(value)
    except (TypeError, ValueError):
        form = (
            'Write "name@example.edu" or "Asthma study <name@example.edu>"; '
            "a name with punctuation, such as a comma, needs quotation marks."
        )
        raise PydanticCustomError("mailbox", form) from None


SecretReference = Annotated[Secret, BeforeValidator(_as_secret)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]
Region = Annotated[str, AfterValidator(_known_region)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
EventName = Annotated[str, StringConstraints(pattern=r"^\S+$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")]
MailAddress = Annotated[
    Mailbox, BeforeValidator(_mailbox), PlainSerializer(lambda mailbox: mailbox.written, return_type=str)
]
MailAddresses = Annotated[list[MailAddress], AfterValidator(without_repeated)]
Sender = Annotated[str, StringConstraints(pattern=r"^((rcs|whatsapp):)?\+?[A-Za-z0-9_]{3,64}$")]
Word = Annotated[str, StringConstraints(pattern=r"^\s*\S+\s*$", max_length=34)]
Phrase = Annotated[str, StringConstraints(pattern=r"\S", max_length=60)]
FilePattern = Annotated[str, StringConstraints(pattern=r"\S", max_length=1000)]
Channel = Annotated[str, StringConstraints(pattern=r"^(sms|rcs|whatsapp)$")]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[smh]$")]


class Table(BaseModel):
    """A table of the file: rejects unknown keys, is immutable, and does not repeat values in errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )

    @property
    def digest(self) -> str:
        """Identifies the values, whichever file they are in. Secrets are references."""
        content = json.dumps(self.model_dump(exclude={"include"}), sort_keys=True, default=repr)
        return hashlib.sha256(content.encode()).hexdigest()[:8]  # too short to look like a number


class Reconcile(Table):
    """`[reconcile]`: the nightly reconciliation with Twilio's message log."""

    at: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = Field(
        "02:30",
        description='Time of day of the nightly reconciliation, "HH:MM" in the deployment\'s time zone.',
    )


class Operator(Table):
    """`[operator]`: the people who run the platform."""

    notify: MailAddresses = Field(
        [],
        description="Recipients of e-mails about the platform: problems of projects, failed or missed "
        "reconciliations, processes that do not run, changes that wait for an hour, and a weekly report.",
    )
    ping_url: WebAddress | None = Field(
        None,
        description="Address that a worker requests every minute while it works, such as a check of Healthchecks, "
        "which raises an alarm when the requests stop.",
    )


class SmtpOAuth2(Table):
    """`[smtp.oauth2]`: tokens instead of a password (XOAUTH2)."""

    token_url: Annotated[WebAddress, AfterValidator(_encrypted)] = Field(
        description="The token endpoint of the authorization server, with https."
    )
    client_id: Annotated[str, StringConstraints(pattern=r"^[!-~]+$")] = Field(
        description="The client id of the app registration."
    )
    client_secret: SecretReference = Field(description="Reference to the client secret.")
    scope: Annotated[str, StringConstraints(pattern=r"^[ -~]+$")] | None = Field(
        None, description='What the token is for; Microsoft 365: "https://outlook.office365.com/.default".'
    )


class Smtp(Table):
    """`[smtp]`: the mail server."""

    url: SecretReference = Field(
        Secret("env:OPTOUT_SMTP_URL"),
        description='Reference to the mail server\'s address: "smtp://user:password@host:587?starttls=true", '
        'or "smtps://…" for TLS from the first byte. User and password are percent-encoded: / is %2F, # is %23.',
    )
    sender: MailAddress = Field(
        description='The sender address of notifications. With a name: "Opt-Out Bridge <bridge@example.edu>".'
    )
    helo: HostName | None = Field(
        None, description="The host name in the SMTP greeting (EHLO); the host of public_url if absent."
    )
    oauth2: SmtpOAuth2 | None = Field(
        None, description="The table [smtp.oauth2]: log in with OAuth 2.0 tokens instead of a password."
    )


class TwilioAccount(Table):
    """`[twilio.NAME]`: one per account or subaccount."""

    account_sid: Annotated[str, StringConstraints(pattern=r"^AC[0-9A-Za-z]{32}$")] = Field(
        description="The account's SID: AC and 32 characters."
    )
    auth_token: Annotated[list[SecretReference], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        description="Reference to the auth token that signs webhooks, or a list of two during a rotation."
    )
    api_key: SecretReference | None = Field(
        None,
        description="Reference to the SID (SK…) of an API key, restricted if you like, that the worker uses instead "
        "of the auth token; only web needs that then. Needs api_secret.",
    )
    api_secret: SecretReference | None = Field(None, description="Reference to the secret of api_key.")
    shared_key: Annotated[list[SecretReference], BeforeValidator(_one_or_more)] = Field(
        default_factory=list,
        description="Reference to the secret of a shared key, if a Webhook Rule at Twilio signs with one instead of "
        "the auth token; or a list of two during a rotation.",
    )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if (self.api_key is None) != (self.api_secret is None):
            raise ValueError("api_key and api_secret go together: write both, or neither")
        return self


class Project(Table):
    """`[projects.NAME]`: one REDCap project."""

    redcap_url: Annotated[str, AfterValidator(_api_address)] = Field(
        description='The address of REDCap\'s API, such as "https://redcap.example.edu/api/".'
    )
    redcap_token: SecretReference = Field(
        description="Reference to the API token of a REDCap user with API export and import rights."
    )
    redcap_project_id: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="REDCap's project id (pid); a token of another project is then rejected.",
    )
    twilio: str = Field(description="Which [twilio.NAME] table the study's texts belong to.")
    messaging_service_sid: Annotated[str, StringConstraints(pattern=r"^MG[0-9A-Za-z]{32}$")] | None = Field(
        None, description="The study's Messaging Service; this or senders is needed."
    )
    senders: list[Sender] = Field([], description='The study\'s own numbers, such as ["+16505550123"].')
    phone_field: FieldName = Field(description="The field that holds the participant's phone number.")
    phone_event: EventName | None = Field(
        None,
        description="Longitudinal projects: unique name of the event with the phone field (else any event); in the "
        "same arm as opt_out_event.",
    )
    opt_out_field: FieldName = Field(
        description="The text field that receives the time of the STOP; free text, datetime_* or datetime_seconds_*."
    )
    opt_out_event: EventName | None = Field(
        None, description="Longitudinal projects: unique name of the event with the opt-out field."
    )
    opt_out_checkbox: FieldName | None = Field(
        None, description="A checkbox field whose code 1 is ticked while the participant is opted out."
    )
    title: Annotated[str, StringConstraints(pattern=r"^[^\r\n\x00-\x1f]{1,80}$")] | None = Field(
        None,
        description='The study\'s name in e-mails, such as "Asthma study"; the name of the table if absent.',
    )
    notify: MailAddresses = Field(
        [],
        description='Recipients of e-mails about this project\'s changes. With a name: "Team <team@example.edu>".',
    )
    reply_to: MailAddress | None = Field(
        None,
        description="Where replies to this project's e-mails go; the sender if absent.",
    )
    summary: Literal["monthly"] | None = Field(
        None, description='"monthly": a summary to notify on the first of each month (`optout summary`).'
    )
    notify_digest: Duration | None = Field(
        None,
        description='Collect changes for this long, such as "10m" or "1h", into one e-mail; '
        "changes that could not be saved are mailed immediately.",
    )
    templates: str | None = Field(
        None,
        description="A folder with the study's own e-mail texts: notice.subject, notice.txt, notice.html.",
    )
    notify_unmatched: bool = Field(
        False, description="Also e-mail about a STOP or START from a number that no record holds."
    )
    default_region: Region = Field("US", description="Country of phone numbers that are stored without one.")
    time_zone: TimeZone | None = Field(
        None, description="Time zone of the opt-out field; the deployment's if absent."
    )
    keyword_fallback: bool = Field(
        False,
        description="Without effect, as keywords always count: remove it.",
    )
    opt_out_keywords: list[Phrase] = Field(
        [], description='Opt-out keywords and phrases in addition to Twilio\'s defaults, such as "no mas".'
    )
    opt_in_keywords: list[Word] = Field(
        [],
        description='Opt-in keywords in addition to "start" and "unstop"; not on toll-free numbers, which only those '
        "two unblock.",
    )
    ignored_keywords: list[Word] = Field(
        [],
        description="Twilio's default keywords that do not count, because they were removed in the Console's "
        "Advanced Opt-Out.",
    )
    suspected_opt_outs: Annotated[str, StringConstraints(pattern=r"^(notify|off)$")] = Field(
        "notify",
        description='What happens to texts that may be an opt-out: "notify" (staff decide: `optout review`) or '
        '"off".',
    )
    suspected_digest_after: Annotated[int, Field(ge=0, le=1000)] = Field(
        5,
        description="How many reviews of a day are mailed singly; the others go into one e-mail at the end of the "
        "day.",
    )
    watch_sends: bool = Field(
        True,
        description="The nightly reconciliation also reports texts that the study sent after an opt-out.",
    )
    block_at_twilio: bool = Field(
        False,
        description="Have Twilio block opt-outs that it does not block by itself: those that staff recorded, phrases "
        "and confirmed reviews. Sends the participant's number to Twilio's Consent Management API.",
    )
    channels: list[Channel] = Field(
        ["sms", "rcs"], description="Channels whose changes count: sms (with MMS), rcs, whatsapp."
    )
    redcap_requests_per_minute: Annotated[int, Field(ge=1, le=6000)] = Field(
        300,
        description="Maximum requests per minute to this REDCap host, over all workers; REDCap bans above 600.",
    )
    forward_url: WebAddress | None = Field(
        None,
        description="Address that Twilio is asked to forward the message to: REDCap's own survey address.",
    )
    blocked_messages: bool = Field(
        False,
        description="The nightly reconciliation also treats texts rejected with error 21610 as proof of an opt-out.",
    )

    @property
    def redcap_host(self) -> str:
        """Name and port of its REDCap server."""
        return urlsplit(self.redcap_url).netloc

    @property
    def scopes(self) -> frozenset[str]:
        """The Messaging Service and the numbers whose texts are the project's."""
        service = [self.messaging_service_sid] if self.messaging_service_sid else []
        return frozenset([*service, *self.senders])

    @property
    def digest_seconds(self) -> int:
        """How long changes are collected into one e-mail; 0 = one e-mail for each."""
        if self.notify_digest is None:
            return 0
        return int(self.notify_digest[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.notify_digest[-1]]

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.messaging_service_sid is None and not self.senders:
            raise ValueError("needs messaging_service_sid or senders, or no message can be assigned to it")
        fields = [self.phone_field, self.opt_out_field, self.opt_out_checkbox]
        named = [name for name in fields if name is not None]
        if len(set(named)) < len(named):
            raise ValueError("phone_field, opt_out_field and opt_out_checkbox must be different fields")
        return self


ProjectName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Config(Table):
    """The whole file, with what it includes."""

    include: Annotated[list[FilePattern], BeforeValidator(_one_or_more)] = Field(
        [],
        description='Further files with [projects.NAME] tables, such as "studies/*.toml", relative to this file; or '
        "a list of such patterns.",
    )
    public_url: WebAddress = Field(
        description="The address that Twilio calls, without /twilio/…; signatures are computed over it."
    )
    time_zone: TimeZone = Field(
        "UTC", description="Time zone of the nightly reconciliation; default for projects."
    )
    hash_key: SecretReference = Field(
        Secret("env:OPTOUT_HASH_KEY"),
        description="Reference to the key that phone numbers are hashed with.",
    )
    retention_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        400, description="How long finished events are kept; Twilio keeps its log for 400 days."
    )
    reconcile: Reconcile = Reconcile()
    operator: Operator = Operator()
    smtp: Smtp | None = Field(None, description="Needed as soon as a project has notify.")
    twilio: Annotated[dict[str, TwilioAccount], Field(min_length=1)] = Field(
        description="At least one [twilio.NAME] table."
    )
    projects: Annotated[dict[ProjectName, Project], Field(min_length=1)] = Field(
        description="At least one [projects.NAME] table."
    )

    def sharing(self, name: str) -> list[str]:
        """The other projects that receive the texts of a project's Messaging Service or of its numbers, too."""
        own = self.projects[name].scopes
        return [other for other, project in self.projects.items() if other != name and own & project.scopes]

    @property
    def helo(self) -> str | None:
        """The host name in the SMTP greeting."""
        configured = self.smtp.helo if self.smtp else None
        return configured or urlsplit(self.public_url).hostname

    def zone(self, project: Project) -> ZoneInfo:
        """The time zone that the project's opt-out times are written in."""
        return ZoneInfo(project.time_zone or self.time_zone)

    @property
    def redcap_rates(self) -> dict[str, int]:
        """Maximum requests per minute by REDCap host: the lowest limit of all projects on that host."""
        limits: dict[str, int] = {}
        for project in self.projects.values():
            host, limit = project.redcap_host, project.redcap_requests_per_minute
            limits[host] = min(limit, limits.get(host, limit))
        return limits

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        problems = [
            *self._unknown_accounts(),
            *self._notifications_without_smtp(),
            *self._conflicting_forwards(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unknown_accounts(self) -> Iterator[str]:
        for name, project in self.projects.items():
            if project.twilio not in self.twilio:
                yield (
                    f"projects.{name}.twilio: there is no [twilio.{project.twilio}] table; name one of: "
                    + (", ".join(self.twilio))
                )

    def _notifications_without_smtp(self) -> Iterator[str]:
        notifying = [f"projects.{name}" for name, project in self.projects.items() if project.notify]
        notifying += ["operator"] if self.operator.notify else []
        if notifying and self.smtp is None:
            yield f"smtp: missing, but {notifying[0]} has notify; add an [smtp] table with sender"

    def _conflicting_forwards(self) -> Iterator[str]:
        seen: dict[tuple[str, str], tuple[str, str]] = {}
        for name, project in self.projects.items():
            for route in (project.messaging_service_sid, *project.senders):
                if route is None or project.forward_url is None:
                    continue
                other, url = seen.setdefault((project.twilio, route), (name, project.forward_url))
                if url != project.forward_url:
                    yield (
                        f"projects.{name}.forward_url: differs from that of projects.{other}, which shares {route}; "
                        "Twilio can forward a message to one address only: keep one of the two"
                    )
