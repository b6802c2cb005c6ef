"""The configuration: one TOML file, checked as a whole, with errors that name the key and the mend.

Secrets are never in the file. It holds references, `env:NAME` or `file:/path`, and only the process
that needs a secret resolves it: parsing this file reads no secret.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import phonenumbers
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from shared.config.urls import readable
from shared.domain.keywords import Keywords
from shared.errors import ConfigError

DEFAULT_PATH = "config.toml"
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


# What stands where a name should: a token of REDCap or Twilio (32 hex digits), a key, or a whole address.
_LOOKS_SECRET = re.compile(r"[0-9A-Fa-f]{32,}|.*://.*", re.DOTALL)
# A file's name with NUL in it is none for any system call (Python raises ValueError).
_NAMES = {"env": re.compile(r"[A-Za-z_][A-Za-z0-9_]*"), "file": re.compile(r"[^\0]+")}


def _is_a_name(scheme: str, name: str) -> bool:
    form = _NAMES.get(scheme)
    return form is not None and form.fullmatch(name) is not None and not _LOOKS_SECRET.fullmatch(name)


class Secret:
    """A reference to a secret. `resolve()` reads it; nothing else ever shows it."""

    def __init__(self, reference: str) -> None:
        scheme, _, name = reference.partition(":")
        if not _is_a_name(scheme, name):
            # The text is not repeated: it may be the secret itself.
            raise ValueError('must be a reference, "env:NAME" or "file:/path", never the secret itself')
        self.reference = reference
        self._scheme, self._name = scheme, name

    def resolve(self) -> str:
        """The secret's text without surrounding white space. Raises ConfigError where there is none."""
        try:
            value = self._read().strip()
            value.encode()  # what is no UTF-8 in the environment comes as lone surrogates (PEP 383)
        except UnicodeError:  # whose text, and repr, hold the secret
            problem = f"{self.reference} is not UTF-8: save it as UTF-8, without a byte order mark"
            raise ConfigError(self.reference, [problem]) from None
        if not value:
            raise ConfigError(self.reference, [f"{self.reference} is empty: put the secret there"])
        return value

    def _read(self) -> str:
        if self._scheme == "env":
            return os.environ.get(self._name, "")
        try:
            return Path(self._name).read_text(encoding="utf-8")
        except OSError as error:
            problem = (
                f"{self.reference} cannot be read ({error.strerror}): create it, or give this user access"
            )
            raise ConfigError(self.reference, [problem]) from None

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})"


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ValueError('must be an IANA time zone such as "America/Chicago"') from None
    return name


def _known_region(name: str) -> str:
    if name not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError('must be a two-letter country code in capitals such as "US"')
    return name


def _web_address(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", url):
        raise ValueError('must be an address such as "https://host/path", without user name or password')
    try:
        urlsplit(url).port  # noqa: B018  raises where it is none
    except ValueError:
        raise ValueError("must have a port between 0 and 65535, or none") from None
    return url


def _api_address(url: str) -> str:
    # REDCap answers a POST without the trailing slash with a redirect, which turns it into a GET (REDCapR #166).
    return _web_address(url) + "/" if url.endswith("/api") else _web_address(url)


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _as_secret(value: Any) -> Any:
    return Secret(value) if isinstance(value, str) else value


SecretReference = Annotated[Secret, BeforeValidator(_as_secret)]
TimeZone = Annotated[str, AfterValidator(_known_zone)]
Region = Annotated[str, AfterValidator(_known_region)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
EventName = Annotated[str, StringConstraints(pattern=r"^\S+$")]
MailAddress = Annotated[str, StringConstraints(pattern=r"^[^@\s,;<>]+@[^@\s,;<>]+$")]
Sender = Annotated[str, StringConstraints(pattern=r"^((rcs|whatsapp):)?\+?[A-Za-z0-9_]{3,64}$")]
Word = Annotated[str, StringConstraints(pattern=r"^\s*\S+\s*$", max_length=34)]
Channel = Annotated[str, StringConstraints(pattern=r"^(sms|rcs|whatsapp)$")]
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]*[smh]$")]


class Table(BaseModel):
    """A table of the file: closed, immutable, and silent about the values it was given."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
        validate_default=True,
    )


class Reconcile(Table):
    """`[reconcile]`: the nightly comparison with Twilio's message log."""

    at: Annotated[str, StringConstraints(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = Field(
        "02:30", description='Time of day of the nightly run, "HH:MM" in the deployment\'s time zone.'
    )


class Smtp(Table):
    """`[smtp]`: how e-mail leaves."""

    url: SecretReference = Field(
        Secret("env:OPTOUT_SMTP_URL"),
        description='Reference to the mail server\'s address: "smtp://user:password@host:587?starttls=true", '
        'or "smtps://…" for TLS from the first byte. User and password are percent-encoded: / is %2F, # is %23.',
    )
    sender: MailAddress = Field(description="The address that notifications come from.")


class TwilioAccount(Table):
    """`[twilio.NAME]`: one per account or subaccount."""

    account_sid: Annotated[str, StringConstraints(pattern=r"^AC[0-9A-Za-z]{32}$")] = Field(
        description="The account's SID: AC and 32 characters."
    )
    auth_token: Annotated[list[SecretReference], BeforeValidator(_one_or_more), Field(min_length=1)] = Field(
        description="Reference to the auth token that signs webhooks, or a list of two while it is rotated."
    )


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
        description="REDCap's project id (pid); a token of another project is then refused.",
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
        description="The text field that gets the time of the STOP; free text, datetime_* or datetime_seconds_*."
    )
    opt_out_event: EventName | None = Field(
        None, description="Longitudinal projects: unique name of the event with the opt-out field."
    )
    opt_out_checkbox: FieldName | None = Field(
        None, description="A checkbox field whose code 1 is ticked while the participant is opted out."
    )
    notify: list[MailAddress] = Field([], description="Who gets the e-mails about this project's changes.")
    notify_digest: Duration | None = Field(
        None,
        description='Gather changes for this long, such as "10m" or "1h", and tell them in one e-mail; what could '
        "not be saved is told at once.",
    )
    templates: str | None = Field(
        None,
        description="A folder with e-mail texts of the study's own: notice.subject, notice.txt, notice.html.",
    )
    notify_unmatched: bool = Field(
        False, description="Also e-mail about a STOP or START of a number that no record holds."
    )
    default_region: Region = Field("US", description="Country of phone numbers that are stored without one.")
    time_zone: TimeZone | None = Field(
        None, description="Time zone of the opt-out field; the deployment's if absent."
    )
    keyword_fallback: bool = Field(
        False, description="Read the message's words where Twilio sends no OptOutType (no Advanced Opt-Out)."
    )
    opt_out_keywords: list[Word] = Field([], description="Opt-out words beside Twilio's defaults.")
    opt_in_keywords: list[Word] = Field([], description="Opt-in words beside Twilio's defaults.")
    ignored_keywords: list[Word] = Field(
        [],
        description="Words of Twilio's defaults that do not count: what was taken out in the Console's Advanced "
        "Opt-Out, and YES for a toll-free number.",
    )
    channels: list[Channel] = Field(
        ["sms", "rcs"], description="Channels whose changes count: sms (with MMS), rcs, whatsapp."
    )
    redcap_requests_per_minute: Annotated[int, Field(ge=1, le=6000)] = Field(
        300,
        description="Most requests per minute to this REDCap host, over all workers; REDCap bans above 600.",
    )
    forward_url: WebAddress | None = Field(
        None, description="Where Twilio is told to hand the message on to: REDCap's own survey address."
    )
    blocked_messages: bool = Field(
        False, description="The nightly run also takes texts refused with error 21610 as proof of an opt-out."
    )

    @property
    def digest_seconds(self) -> int:
        """For how long changes are gathered into one e-mail; 0 = each is told by itself."""
        if self.notify_digest is None:
            return 0
        return int(self.notify_digest[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.notify_digest[-1]]

    @property
    def keywords(self) -> Keywords:
        """The words that opt out and in."""
        return Keywords(
            opt_out=tuple(self.opt_out_keywords),
            opt_in=tuple(self.opt_in_keywords),
            ignored=tuple(self.ignored_keywords),
        )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.messaging_service_sid is None and not self.senders:
            raise ValueError(
                "needs messaging_service_sid or senders, or no message can be told to be its own"
            )
        fields = [self.phone_field, self.opt_out_field, self.opt_out_checkbox]
        named = [name for name in fields if name is not None]
        if len(set(named)) < len(named):
            raise ValueError("phone_field, opt_out_field and opt_out_checkbox must be different fields")
        return self


ProjectName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class Config(Table):
    """The whole file."""

    public_url: WebAddress = Field(
        description="The address that Twilio calls, without /twilio/…; every signature is computed over it."
    )
    time_zone: TimeZone = Field("UTC", description="Time zone of the nightly run, and the projects' default.")
    hash_key: SecretReference = Field(
        Secret("env:OPTOUT_HASH_KEY"),
        description="Reference to the key under which phone numbers are hashed.",
    )
    retention_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        400, description="How long finished events are kept; Twilio keeps its log for 400 days."
    )
    reconcile: Reconcile = Reconcile()
    smtp: Smtp | None = Field(None, description="Needed as soon as a project has notify.")
    twilio: Annotated[dict[str, TwilioAccount], Field(min_length=1)] = Field(
        description="At least one [twilio.NAME] table."
    )
    projects: Annotated[dict[ProjectName, Project], Field(min_length=1)] = Field(
        description="At least one [projects.NAME] table."
    )

    def zone(self, project: Project) -> ZoneInfo:
        """The time zone that the project's opt-out times are written in."""
        return ZoneInfo(project.time_zone or self.time_zone)

    def redcap_rate(self, project: Project) -> int:
        """Most requests per minute to a project's REDCap host, which all projects there share: the lowest counts."""
        host = urlsplit(project.redcap_url).netloc
        same_host = [other for other in self.projects.values() if urlsplit(other.redcap_url).netloc == host]
        return min(other.redcap_requests_per_minute for other in same_host)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._dangling_accounts(), *self._silent_notifications(), *self._split_forwards()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _dangling_accounts(self) -> Iterator[str]:
        for name, project in self.projects.items():
            if project.twilio not in self.twilio:
                yield (
                    f"projects.{name}.twilio: there is no [twilio.{project.twilio}] table; name one of: "
                    + (", ".join(self.twilio))
                )

    def _silent_notifications(self) -> Iterator[str]:
        notifying = [name for name, project in self.projects.items() if project.notify]
        if notifying and self.smtp is None:
            yield f"smtp: missing, but projects.{notifying[0]} has notify; add an [smtp] table with sender"

    def _split_forwards(self) -> Iterator[str]:
        seen: dict[tuple[str, str], tuple[str, str]] = {}
        for name, project in self.projects.items():
            for route in (project.messaging_service_sid, *project.senders):
                if route is None or project.forward_url is None:
                    continue
                other, url = seen.setdefault((project.twilio, route), (name, project.forward_url))
                if url != project.forward_url:
                    yield (
                        f"projects.{name}.forward_url: differs from that of projects.{other}, which shares {route}; "
                        "Twilio can hand a message on to one address only: keep one of the two"
                    )


def config_path() -> Path:
    """Where the configuration is: `OPTOUT_CONFIG`, else config.toml in the working directory."""
    return Path(os.environ.get("OPTOUT_CONFIG", DEFAULT_PATH))


def redis_url() -> str:
    """Where the ledger is: `OPTOUT_REDIS_URL`, or `OPTOUT_REDIS_URL_FILE` naming a file that holds it."""
    return readable(setting("OPTOUT_REDIS_URL") or DEFAULT_REDIS_URL, "OPTOUT_REDIS_URL")


def broker_url() -> str:
    """Where Celery's queues are: `OPTOUT_BROKER_URL`, else the ledger's Redis."""
    url = setting("OPTOUT_BROKER_URL")
    return readable(url, "OPTOUT_BROKER_URL") if url else redis_url()


def setting(name: str) -> str:
    """An environment variable, or the content of the file that NAME_FILE names; empty where neither is set."""
    path = os.environ.get(f"{name}_FILE")
    return Secret(f"file:{path}").resolve() if path else os.environ.get(name, "")


def load_config(path: Path | None = None) -> Config:
    """Read and check the configuration file. Raises ConfigError, which lists every problem at once."""
    path = path or config_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mend = "copy config.example.toml and edit it, or point OPTOUT_CONFIG at your file"
        raise ConfigError(str(path), [f"file: cannot be read ({error.strerror}); {mend}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"file: is not TOML ({error}); mend that line"]) from None
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], source: str = "the configuration") -> Config:
    """Check a parsed document. Raises ConfigError, which lists every problem at once."""
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise ConfigError(source, list(_problems(error))) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        # Pydantic marks where a dictionary's key, not its value, is wrong with a last part "[key]".
        path = [str(part) for part in problem["loc"] if not isinstance(part, int)]
        key = ".".join(part for part in path if part != "[key]")
        message = problem["msg"].removeprefix("Value error, ")
        match problem["type"]:
            case "missing":
                yield f"{key}: missing. {_description(path)}"
            case "extra_forbidden":
                yield f"{key}: unknown key. {_suggestion(path)}"
            case "string_pattern_mismatch":
                yield f"{key}: does not have the right form. {_description(path)}"
            case _ if not key:
                yield from message.split("\n")
            case "value_error":
                yield f"{key}: {message}"
            case _:
                yield f"{key}: {message[0].lower()}{message[1:]}. {_description(path)}"


def _table_of(path: list[str]) -> type[Table]:
    tables: dict[str, type[Table]] = {
        "projects": Project, "twilio": TwilioAccount, "smtp": Smtp, "reconcile": Reconcile,
    }  # fmt: skip
    return tables[path[0]] if len(path) > 1 and path[0] in tables else Config


def _description(path: list[str]) -> str:
    field = _table_of(path).model_fields.get(path[-1])
    return (field.description if field else None) or "Remove it, or see docs/configuration.md."


def _suggestion(path: list[str]) -> str:
    known: Iterable[str] = _table_of(path).model_fields
    close = difflib.get_close_matches(path[-1], list(known), n=1)
    return f'Did you mean "{close[0]}"?' if close else f"Remove it; known here: {', '.join(sorted(known))}."
