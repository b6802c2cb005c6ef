"""Writes the reference pages that follow from the code: configuration.md, checks.md and env lines.

    .venv/bin/python -m docs.generate

A test compares the pages with what this module makes of the code (tests/unit/test_docs.py).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from shared.config.schema import Config, Project, Reconcile, Smtp, Table, TwilioAccount
from shared.config.secrets import Secret
from worker.checks.findings import CATALOGUE, Severity

DOCS = Path(__file__).parent

# One valid value for every key; the test parses them together.
EXAMPLES: dict[type[Table], dict[str, Any]] = {
    Config: {
        "public_url": "https://optout.example.edu",
        "time_zone": "America/Los_Angeles",
        "hash_key": "file:/run/secrets/hash_key",
        "retention_days": 400,
    },
    Reconcile: {"at": "02:30"},
    Smtp: {
        "url": "file:/run/secrets/smtp_url",
        "sender": "optout-bridge@example.edu",
        "helo": "optout.example.edu",
    },
    TwilioAccount: {
        "account_sid": "ACxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "auth_token": ["file:/run/secrets/twilio_new", "file:/run/secrets/twilio_old"],
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
        "notify": ["coordinator@example.edu"],
        "notify_digest": "10m",
        "templates": "/etc/optout-templates/asthma",
        "notify_unmatched": True,
        "default_region": "US",
        "time_zone": "America/Chicago",
        "keyword_fallback": True,
        "opt_out_keywords": ["ALTO"],
        "opt_in_keywords": ["ALTA"],
        "ignored_keywords": ["YES"],
        "channels": ["sms", "rcs"],
        "redcap_requests_per_minute": 300,
        "forward_url": "https://redcap.example.edu/surveys/?s=EXAMPLE",
        "blocked_messages": True,
    },
}

TABLES: list[tuple[type[Table], str, str]] = [
    (Config, "The file's first lines", "Before any `[table]`."),
    (Reconcile, "[reconcile]", "The nightly comparison with Twilio's message log. May be left out."),
    (Smtp, "[smtp]", "How e-mail leaves. Needed as soon as a project has `notify`."),
    (TwilioAccount, "[twilio.NAME]", "One table per account or subaccount; projects name it by NAME."),
    (
        Project,
        "[projects.NAME]",
        "One table per REDCap project. NAME stands in logs, metrics and e-mails: letters, digits, `-` and `_`.",
    ),
]

ENVIRONMENT = [
    ("OPTOUT_CONFIG", "config.toml", "Path of the configuration file.", "all"),
    ("OPTOUT_REDIS_URL", "redis://127.0.0.1:6379/0", "The Redis that holds everything.", "all"),
    ("OPTOUT_BROKER_URL", "that Redis", "Another broker for the task queues, such as RabbitMQ.", "all"),
    (
        "OPTOUT_HASH_KEY",
        "",
        "The key of the phone hashes, where hash_key is left at its default.",
        "web, worker",
    ),
    ("OPTOUT_SMTP_URL", "", "The mail server, where smtp.url is left at its default.", "worker"),
    ("OPTOUT_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR; see logs.md.", "all"),
    ("OPTOUT_HEARTBEAT_FILE", "", "A file that worker and beat touch while they live.", "worker, beat"),
    ("OPTOUT_FLOWER_LOGIN", "", "user:password of Flower's pages.", "flower"),
    ("OPTOUT_TWILIO_API_URL", "Twilio's", "Another base URL of Twilio's REST API; for tests only.", "worker"),
]

CONFIGURATION_INTRODUCTION = """\
# Configuration

<!-- Written by `python -m docs.generate` from shared/config/schema.py: edit there. -->

One TOML file, checked as a whole when a process starts; a process does not start with a file that it understands
only half, and says which key is wrong and how to mend it. `config.example.toml` is a place to start from, and
[optout check](checks.md) compares the file with the live REDCap and Twilio. After a change, restart web, worker and
beat.

Secrets are never in the file. It holds *references*: `"env:NAME"` is the environment variable NAME, `"file:/path"`
the content of a file. Each process resolves only what it needs: web never sees a REDCap token or the mail password,
beat and Flower see neither. White space around a secret is dropped.
"""

ENVIRONMENT_INTRODUCTION = """\
## Environment variables

What a process must know before it can read the file. `OPTOUT_REDIS_URL`, `OPTOUT_BROKER_URL` and
`OPTOUT_FLOWER_LOGIN` may hold a password: each may come as NAME`_FILE` instead, the path of a file that holds it.

In an address (`…_URL`), user and password are percent-encoded: `/` is `%2F`, `#` is `%23`, `?` is `%3F`, `@` is
`%40`, `%` is `%25`. No process starts with an address of Redis or the broker that it cannot read; none repeats it.
"""

CHECKS_INTRODUCTION = """\
# What `optout check` finds

<!-- Written by `python -m docs.generate` from worker/checks/findings.py: edit there. -->

`optout check` compares the configuration with the live REDCap, Twilio, Redis and mail server. It writes nothing
anywhere: at Twilio it only reads, and at REDCap its one import is an import without rows, which shows whether the
token may import. It asks all of them at once and never gives up because one is down: what does not answer within
`--patience` seconds is reported as [check-unfinished](#check-unfinished), and everything else is complete.

- **error**: changes are lost, refused or seen by others until this is mended. Exit code 1.
- **warning**: it works, and something is not as it should be. Exit code 0.
- **note**: good to know.

`--project P` looks at one project only, `--json` answers `{"ok": …, "findings": [{"id", "severity", "subject",
"seen", "mend", "more"}], "right": […]}`. Findings name record ids, SIDs and a sender's last four digits, never a
phone number or a secret. Where this machine cannot see its own public address, `--url` says where the web process
is reached from here.

What no check can see: whether Advanced Opt-Out is on (until the first real STOP), which words it takes as opt-out,
and whether your participants' carriers deliver. `optout test-message` and a text from your own phone show the rest.
"""


def configuration_page() -> str:
    """docs/configuration.md."""
    parts = [CONFIGURATION_INTRODUCTION, *map(_table_section, TABLES), ENVIRONMENT_INTRODUCTION]
    rows = ["| Variable | Default | | Read by |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {default} | {text} | {who} |" for name, default, text, who in ENVIRONMENT]
    return "\n".join([*parts, "\n".join(rows)]) + "\n"


def _table_section(section: tuple[type[Table], str, str]) -> str:
    table, heading, text = section
    rows = ["| Key | Default | Meaning |", "|---|---|---|"]
    rows += list(_rows(table))
    example = "\n".join(f"{key} = {toml(value)}" for key, value in EXAMPLES[table].items())
    title = heading if heading.startswith("The") else f"`{heading}`"
    return f"## {title}\n\n{text}\n\n" + "\n".join(rows) + f"\n\n```toml\n{example}\n```\n"


def _rows(table: type[Table]) -> Iterator[str]:
    for key, field in table.model_fields.items():
        if key in EXAMPLES[table]:
            yield f"| `{key}` | {_default(field.default)} | {field.description} |"


def _default(default: Any) -> str:
    if default is PydanticUndefined:
        return "**needed**"
    if default is None:
        return ""
    if isinstance(default, Secret):
        return f"`{toml(default.reference)}`"
    return f"`{toml(default)}`"


def toml(value: Any) -> str:
    """A value as the file has it; JSON's texts, numbers, truths and lists are TOML's."""
    return json.dumps(value, ensure_ascii=False)


def checks_page() -> str:
    """docs/checks.md."""
    rows = ["| id | severity | |", "|---|---|---|"]
    order = {severity: place for place, severity in enumerate(Severity)}
    for id_, kind in sorted(CATALOGUE.items(), key=lambda item: order[item[1].severity]):
        rows.append(f"| [{id_}](#{id_}) | {kind.severity} | {kind.title} |")
    sections = [
        f"## {id_}\n\n**{kind.title}** ({kind.severity})\n\n{kind.why}\n\n**Mend:** {kind.mend}.\n"
        for id_, kind in CATALOGUE.items()
    ]
    return "\n".join([CHECKS_INTRODUCTION, "\n".join(rows), "", *sections])


PAGES = {"configuration.md": configuration_page, "checks.md": checks_page}


def main() -> None:
    """Write all pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
