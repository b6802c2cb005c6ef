"""Writes the reference pages that follow from the code: configuration, environment, command line, checks, HTTP API.

    .venv/bin/python -m docs.generate

A test compares the pages with the output of this module (tests/unit/test_docs.py).
"""

import json
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click
import yaml  # type: ignore[import-untyped]
from pydantic_core import PydanticUndefined

from shared.config.schema import Config, Operator, Project, Reconcile, Smtp, SmtpOAuth2, Table, TwilioAccount
from shared.config.secrets import Secret
from shared.ledger.events.audit_trail import COLUMN_MEANINGS
from worker.checks.findings import CATALOGUE, Severity
from worker.cli import COMMANDS, load_command

DOCS = Path(__file__).parent

# One valid value for every key; the test parses them together.
EXAMPLES: dict[type[Table], dict[str, Any]] = {
    Config: {
        "include": "studies/*.toml",
        "public_url": "https://optout.example.edu",
        "time_zone": "America/Los_Angeles",
        "hash_key": "file:/run/secrets/hash_key",
        "retention_days": 400,
    },
    Reconcile: {"at": "02:30"},
    Operator: {
        "notify": ["research-it@example.edu"],
        "ping_url": "https://hc-ping.com/your-check",
    },
    Smtp: {
        "url": "file:/run/secrets/smtp_url",
        "sender": "optout-bridge@example.edu",
        "helo": "optout.example.edu",
    },
    SmtpOAuth2: {
        "token_url": "https://login.microsoftonline.com/TENANT/oauth2/v2.0/token",
        "client_id": "11111111-2222-3333-4444-555555555555",
        "client_secret": "file:/run/secrets/smtp/client_secret",
        "scope": "https://outlook.office365.com/.default",
    },
    TwilioAccount: {
        "account_sid": "ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "auth_token": ["file:/run/secrets/twilio_new", "file:/run/secrets/twilio_old"],
        "api_key": "file:/run/secrets/twilio_api_key",
        "api_secret": "file:/run/secrets/twilio_api_secret",
        "shared_key": "file:/run/secrets/twilio_shared_key",
    },
    Project: {
        "redcap_url": "https://redcap.example.edu/api/",
        "redcap_token": "file:/run/secrets/asthma_redcap_token",
        "redcap_project_id": 4711,
        "twilio": "main",
        "messaging_service_sid": "MGxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "senders": ["+16505550123"],
        "phone_field": "mobile",
        "phone_event": "enrolment_arm_1",
        "opt_out_field": "sms_opt_out_at",
        "opt_out_event": "enrolment_arm_1",
        "opt_out_checkbox": "sms_opt_out",
        "title": "Asthma study",
        "notify": ["coordinator@example.edu"],
        "reply_to": "asthma@example.edu",
        "summary": "monthly",
        "notify_digest": "10m",
        "templates": "/etc/optout-templates/asthma",
        "notify_unmatched": True,
        "default_region": "US",
        "time_zone": "America/Chicago",
        "keyword_fallback": True,
        "opt_out_keywords": ["ALTO"],
        "opt_in_keywords": ["ALTA"],
        "ignored_keywords": ["END"],
        "channels": ["sms", "rcs"],
        "redcap_requests_per_minute": 300,
        "forward_url": "https://redcap.example.edu/surveys/?s=EXAMPLE",
        "blocked_messages": True,
        "suspected_opt_outs": "notify",
        "suspected_digest_after": 5,
        "watch_sends": True,
        "block_at_twilio": True,
    },
}

TABLES: list[tuple[type[Table], str, str]] = [
    (Config, "Top-level keys", "These keys come before the first `[table]`."),
    (Reconcile, "[reconcile]", "The nightly reconciliation with Twilio's message log. Optional."),
    (
        Operator,
        "[operator]",
        "The people who run the platform: see [monitor](../how-to/monitor.md#tell-the-operator). Optional.",
    ),
    (Smtp, "[smtp]", "How e-mail is sent. Required if any project has `notify`."),
    (
        SmtpOAuth2,
        "[smtp.oauth2]",
        "`oauth2` in `[smtp]`: log in to the mail server with OAuth 2.0 tokens (XOAUTH2, client credentials) "
        "instead of a password; see [set up e-mail](../how-to/set-up-e-mail.md). The user in `smtp.url` "
        "is the mailbox. Optional.",
    ),
    (TwilioAccount, "[twilio.NAME]", "One table per account or subaccount. Projects refer to it by NAME."),
    (
        Project,
        "[projects.NAME]",
        "One table per REDCap project. NAME appears in logs, metrics and e-mails. It may contain letters, digits, "
        "`-` and `_`.",
    ),
]

ENVIRONMENT = [
    ("OPTOUT_CONFIG", "config.toml", "Path of the configuration file.", "all"),
    ("OPTOUT_REDIS_URL", "redis://127.0.0.1:6379/0", "The Redis that holds the ledger.", "all"),
    (
        "OPTOUT_BROKER_URL",
        "value of `OPTOUT_REDIS_URL`",
        "Another broker for the task queues, such as RabbitMQ.",
        "all",
    ),
    ("OPTOUT_HASH_KEY", "", "The key of the phone hashes, if `hash_key` has its default.", "web, worker"),
    ("OPTOUT_SMTP_URL", "", "The mail server, if `smtp.url` has its default.", "worker"),
    (
        "OPTOUT_USER",
        "",
        "Who decides in `optout record` and `optout review`, if `--by` is not given; `./optout` sets it.",
        "command line",
    ),
    ("OPTOUT_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR; see [logs](logs.md#levels).", "all"),
    (
        "OPTOUT_LOG_FORMAT",
        "text on a terminal, else json",
        "`text`: lines for people, as `make run` shows them; `json`: an object per line.",
        "all",
    ),
    (
        "OPTOUT_CA_FILE",
        "",
        "A file with certificate authorities (PEM) that are trusted besides the public ones, for REDCap, Twilio, "
        "mail server, Redis and broker. May be missing or empty. In the images: /etc/optout-ca/ca.pem, see "
        "[your own certificate authority](../how-to/install-docker.md#your-own-certificate-authority).",
        "all",
    ),
    (
        "OPTOUT_HEARTBEAT_FILE",
        "",
        "A file that worker and beat touch regularly, for health checks.",
        "worker, beat",
    ),
    ("OPTOUT_FLOWER_LOGIN", "", "`user:password` for Flower's pages.", "flower"),
    (
        "OPTOUT_CONSOLE_LOGIN",
        "",
        "`user:password` for the console, or `user:HASH` with a hash of `werkzeug.security`.",
        "console",
    ),
    (
        "OPTOUT_CONSOLE_USER_HEADER",
        "",
        "A header in which your proxy names the user whom it has authenticated, such as `X-Remote-User`. Without it, "
        "no header counts.",
        "console",
    ),
    (
        "OPTOUT_CONSOLE_TRUSTED_PROXIES",
        "",
        "The addresses or networks from which that header counts, separated by commas.",
        "console",
    ),
    (
        "OPTOUT_CONSOLE_FLOWER_URL",
        "http://127.0.0.1:5555",
        "Where the console links to for Flower.",
        "console",
    ),
    (
        "OPTOUT_DEMO",
        "",
        "Set in the demo's images only: there the demo's published secrets are accepted. Everywhere else a process "
        "refuses to start with them.",
        "all",
    ),
    (
        "OPTOUT_TWILIO_API_URL",
        "Twilio's",
        "Another base URL of Twilio's REST API; for tests only.",
        "worker",
    ),
]

CONFIGURATION_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m docs.generate` from shared/config/schema.py: edit there. -->

Opt-Out Bridge reads a TOML file, and the files that it includes. Each process validates all of them when it starts.
If a key is wrong, it names file, key and fix.

Running processes take a **valid change within a minute**, without a restart; web answers every webhook in between. A
task that runs keeps the configuration with which it began. **Invalid files change nothing**: every process keeps the
last valid configuration, also one that starts in the meantime. `/readyz`, the log, `optout_configuration_problem` and
`optout check` name file and key. Files with secrets are read again, too. Only the addresses of Redis and broker and
the hash key need a restart: `optout check` says so (`configuration-needs-restart`).

With `include`, each study can have a file of its own. Such a file holds `[projects.NAME]` tables only; everything
else stays in the main file. A study may be described once. A pattern that names no file yet is valid as long as its
folder exists.

Start from `config.example.toml`. [`optout check`](checks.md) compares the file with the live REDCap and Twilio.
After a change, run `make apply`, which validates the files, restarts only what needs it, and waits until every
process has taken the change. Without Docker, run `optout check --config-only`.

The file never contains secrets, only *references* to them. `"env:NAME"` refers to the environment variable NAME,
`"file:/path"` to the content of a file. Each process resolves only the secrets that it needs. web never reads a
REDCap token or the mail password; beat and Flower read neither. White space around a secret is removed.
"""

ENVIRONMENT_INTRODUCTION = """\
# Environment variables

<!-- Written by `python -m docs.generate`: edit docs/generate.py. -->

These variables hold what a process needs before it can read the [configuration file](configuration.md).

`OPTOUT_REDIS_URL`, `OPTOUT_BROKER_URL`, `OPTOUT_FLOWER_LOGIN` and `OPTOUT_CONSOLE_LOGIN` may contain a password. Each
can be given as NAME`_FILE` instead: the path of a file that holds the value.

In a URL, percent-encode user and password: `/` is `%2F`, `#` is `%23`, `?` is `%3F`, `@` is `%40`, `%` is `%25`. A
process does not start if it cannot parse the URL of Redis or the broker. The error message does not repeat the URL.

URLs of Redis, for the ledger and for the broker:

| URL | Meaning |
|---|---|
| `redis://USER:PASSWORD@HOST:6379/0` | One server. What follows the port is the number of a database. |
| `rediss://…` | The same with TLS. |
| `redis+sentinel://USER:PASSWORD@H1:26379,H2:26379/NAME/0` | The primary that the sentinels know by NAME. |
| `rediss+sentinel://…` | The same with TLS to Redis and to the sentinels. |

USER and PASSWORD belong to Redis. If the sentinels have a password of their own, append `?sentinel_password=`, and
`&sentinel_username=` if they have users. Their default port is 26379.
See [Sentinel](../how-to/scale-out.md#sentinel).

With TLS, the certificate and its host name are verified. Sentinels must then name the servers by host name
(`resolve-hostnames` and `announce-hostnames` in `sentinel.conf`), or the certificates must contain the IP addresses.
Options:
`ssl_cert_reqs`, `ssl_ca_certs`, `ssl_check_hostname`, `ssl_certfile`, `ssl_keyfile`.

The variables of Docker Compose are listed in [install with Docker](../how-to/install-docker.md#variables-in-env).
"""

COMMAND_LINE_INTRODUCTION = """\
# Command line

<!-- Written by `python -m docs.generate` from worker/cli/: edit there. -->

Run `./optout …` in the clone. With Docker Compose it uses a worker's container, else what `make run` has installed.
The command reads the same [configuration](configuration.md) and [environment variables](environment.md) as the
worker.

Every command also has `--help`. In pipes, lists have a line per row with tabs between the fields; with
`optout --headings events` they begin with a line of headings. `--json` is for programs.

| Exit code | Cause |
|---|---|
| 0 | The command did what it says. |
| 1 | It found something, or could not do all of it: see the command. |
| 2 | It could not start: wrong arguments, an unusable configuration, or no Redis. |
| 3 | `optout check --config-only` only: all processes would start; a study or the mail server lacks a secret. |
| 4 | REDCap does not answer, or rejects the request. |
| 5 | Twilio does not answer, or rejects the request. |
| 6 | The mail server does not answer, or rejects the e-mail. |
"""

HTTP_API_INTRODUCTION = """\
# HTTP API

<!-- Written by `python -m docs.generate` from docs/reference/openapi.yaml: edit there. -->

The machine-readable description is [openapi.yaml](openapi.yaml). Tests compare it with the code. Twilio calls the
first two endpoints; [monitoring](../how-to/monitor.md) uses the others.
"""

CHECKS_INTRODUCTION = """\
# Checks

<!-- Written by `python -m docs.generate` from worker/checks/catalogue.toml: edit there. -->

`optout check` compares the configuration with the live REDCap, Twilio, Redis and mail server. It changes nothing. At
Twilio it only reads. At REDCap its only import has no rows; it shows whether the token may import.

All services are checked at the same time. If a service does not answer within `--timeout` seconds, the command
reports [check-unfinished](#check-unfinished) for it. The other results are complete.

| Severity | Meaning | Exit code |
|---|---|---|
| error | Changes are lost, rejected or visible to others until this is fixed. | 1 |
| warning | The system works, but something is wrong. | 0 |
| note | Information. | 0 |

`--project P` checks one project only. `--json` prints `{"ok": …, "findings": [{"id", "severity", "subject",
"observed", "fix", "docs"}], "passed": […]}`. If this machine cannot reach its own public URL, `--url` sets another
URL of the web process. Findings contain record ids, SIDs and a sender's last four digits, never a phone number or a
secret.

Some things cannot be checked: whether Advanced Opt-Out is on (until the first real STOP), which words it accepts, and
whether the carriers of your participants deliver. `optout test-message` and a text from your own phone test these.
"""


def configuration_page() -> str:
    """docs/reference/configuration.md."""
    return "\n".join([CONFIGURATION_INTRODUCTION, *map(_table_section, TABLES)])


def environment_page() -> str:
    """docs/reference/environment.md."""
    rows = ["| Variable | Default | Meaning | Read by |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {default} | {text} | {who} |" for name, default, text, who in ENVIRONMENT]
    return "\n".join([ENVIRONMENT_INTRODUCTION, *rows]) + "\n"


def _table_section(section: tuple[type[Table], str, str]) -> str:
    table, heading, text = section
    rows = ["| Key | Default | Meaning |", "|---|---|---|"]
    rows += list(_rows(table))
    example = "\n".join(f"{key} = {toml(value)}" for key, value in EXAMPLES[table].items())
    title = f"`{heading}`" if heading.startswith("[") else heading
    return f"## {title}\n\n{text}\n\n" + "\n".join(rows) + f"\n\n```toml\n{example}\n```\n"


def _rows(table: type[Table]) -> Iterator[str]:
    for key, field in table.model_fields.items():
        if key in EXAMPLES[table]:
            yield f"| `{key}` | {_default(field.default)} | {field.description} |"


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "**required**"
    if default is None:
        return ""
    if isinstance(default, Secret):
        return f"`{toml(default.reference)}`"
    return f"`{toml(default)}`"


def toml(value: Any) -> str:
    """Format a value as TOML; JSON's strings, numbers, booleans and lists are valid TOML."""
    return json.dumps(value, ensure_ascii=False)


def checks_page() -> str:
    """docs/reference/checks.md."""
    rows = ["| Id | Severity | Finding |", "|---|---|---|"]
    order = {severity: place for place, severity in enumerate(Severity)}
    for id_, kind in sorted(CATALOGUE.items(), key=lambda item: order[item[1].severity]):
        rows.append(f"| [{id_}](#{id_}) | {kind.severity} | {kind.title} |")
    sections = [
        f"## {id_}\n\n**{kind.title}** ({kind.severity})\n\n{kind.why}\n\n**Fix:** {kind.fix}.\n"
        for id_, kind in CATALOGUE.items()
    ]
    return "\n".join([CHECKS_INTRODUCTION, "\n".join(rows), "", *sections])


def command_line_page() -> str:
    """docs/reference/command-line.md."""
    sections = (_command_section(name, load_command(name)) for name in sorted(COMMANDS))
    return "\n".join([COMMAND_LINE_INTRODUCTION, *sections])


def _command_section(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"optout {name}")
    rows = ["| Option | Meaning |", "|---|---|"]
    rows += [
        f"| `{_cell(names)}` | {_cell(text)} |"
        for parameter in command.params
        for names, text in [parameter.get_help_record(context) or ("", "")]
        if names
    ]
    usage = command.get_usage(context).removeprefix("Usage: ")
    return (
        f"## optout {name}\n\n```\n{usage}\n```\n\n{cleandoc(command.help or '')}\n\n"
        + "\n".join(rows)
        + "\n"
    )


def _cell(text: str) -> str:
    return text.replace("  [", " [").replace("|", "\\|")


def http_api_page() -> str:
    """docs/reference/http-api.md."""
    api = yaml.safe_load((DOCS / "reference" / "openapi.yaml").read_text())
    sections = [
        _operation_section(api, path, method, operation)
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    ]
    return "\n".join([HTTP_API_INTRODUCTION, api["info"]["description"], "", *sections])


def _operation_section(api: dict[str, Any], path: str, method: str, operation: dict[str, Any]) -> str:
    signed = "a valid `X-Twilio-Signature`" if operation["security"] else "none"
    lines = [f"## {method.upper()} {path}", "", operation["summary"], "", f"Authentication: {signed}.", ""]
    if body := operation.get("requestBody"):
        [kind] = body["content"]
        lines += [f"Request body: `{kind}`. {body['description']}", ""]
    lines += [*_fields(operation), "| Status | Content type | Meaning |", "|---|---|---|"]
    lines += [_response_row(api, status, each) for status, each in operation["responses"].items()]
    return "\n".join(lines) + "\n"


def _fields(operation: dict[str, Any]) -> list[str]:
    """A table of query parameters and form fields, if there are any."""
    rows = [
        f"| `{each['name']}` | {each['in']} | yes | {each['description']} |"
        for each in operation.get("parameters", [])
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        rows += [
            f"| `{name}` | body | {'yes' if name in schema['required'] else 'no'} | {value.get('description', '')} |"
            for name, value in schema.get("properties", {}).items()
        ]
    return ["| Parameter | In | Required | Meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _response_row(api: dict[str, Any], status: str, response: dict[str, Any]) -> str:
    if reference := response.get("$ref"):
        response = api["components"]["responses"][reference.rpartition("/")[2]]
    return f"| {status} | `{', '.join(response['content'])}` | {response['description']} |"


def audit_trail_page() -> str:
    """The columns of `optout export`."""
    rows = "\n".join(f"| `{column}` | {meaning} |" for column, meaning in COLUMN_MEANINGS.items())
    return f"""# Audit trail

<!-- Written by `python -m docs.generate` from shared/ledger/events/audit_trail.py: edit there. -->

`optout export --project P` prints every change of a project that is still kept, oldest first: a row per event and
record, and one per replay. `--since 2026-11-01` begins with that day, in the project's time zone. Times are ISO 8601
in UTC. It contains no phone number and no text. It prints while it reads: a million events need little memory.

| `--format` | |
|---|---|
| `csv` (default) | With a heading. An apostrophe precedes what a spreadsheet program would take for a formula. |
| `json` | One array of objects. |
| `jsonl` | An object a line. |

| Column | Meaning |
|---|---|
{rows}

A replay of many events (`optout replay --failed`) has a row for each. Replays are kept as long as events
(`retention_days`), and `optout forget` removes those of a participant. Each row of a replay repeats the records and
the change of its event.
"""


PAGES = {
    "reference/configuration.md": configuration_page,
    "reference/environment.md": environment_page,
    "reference/command-line.md": command_line_page,
    "reference/checks.md": checks_page,
    "reference/audit-trail.md": audit_trail_page,
    "reference/http-api.md": http_api_page,
}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
