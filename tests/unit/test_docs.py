"""The documents are true: generated pages, links, names of metrics, alerts, findings and commands."""

from __future__ import annotations

import ast
import inspect
import json
import re
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from zoneinfo import ZoneInfo

import pytest
from prometheus_client import CollectorRegistry

from docs import generate
from shared.config import Project, parse_config
from shared.domain.events import Notice, Source, State
from shared.ledger import Ledger, keys
from tests import builders
from tests.unit.test_notice_templates import entry
from web.monitoring.metrics import LedgerCollector
from worker.checks.findings import CATALOGUE, FindingId
from worker.cli import COMMANDS, load_command
from worker.mail.event_mail import mail_facts
from worker.mail.template_check import template_problems

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MONITORING = ROOT / "deploy" / "monitoring"
LOGS = re.compile(r"(log|structlog\.get_logger\(__name__\))\.(debug|info|warning|error|critical)")
WRITTEN = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


# --- generated pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", generate.PAGES)
def test_generated_pages_are_what_the_code_makes_of_them(name: str) -> None:
    assert (DOCS / name).read_text() == generate.PAGES[name](), "run python -m docs.generate"


def test_every_key_has_an_example_and_all_examples_together_are_valid() -> None:
    tables = {table: dict(values) for table, values in generate.EXAMPLES.items()}
    config, reconcile, operator, smtp, oauth2, twilio, project = (
        tables[table] for table, _, _ in generate.TABLES
    )
    parse_config(
        {
            **config, "reconcile": reconcile, "operator": operator, "smtp": {**smtp, "oauth2": oauth2},
            "twilio": {"main": twilio}, "projects": {"asthma": project},
        }
    )  # fmt: skip
    nested = {"reconcile", "operator", "smtp", "oauth2", "twilio", "projects"}
    for table, values in generate.EXAMPLES.items():
        assert values.keys() == {key for key in table.model_fields if key not in nested or table is Project}


def test_every_key_says_what_it_means() -> None:
    for table in generate.EXAMPLES:
        for key, field in table.model_fields.items():
            assert field.description or key in {"reconcile", "operator"}


def test_examples_in_the_reference_are_toml() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / "reference/configuration.md").read_text(), re.DOTALL)
    assert len(blocks) >= len(generate.EXAMPLES)
    assert all(tomllib.loads(block) for block in blocks)


def test_every_environment_variable_of_the_code_is_in_the_reference() -> None:
    code = "".join(
        path.read_text()
        for folder in ("shared", "web", "worker", "deploy")
        for path in (ROOT / folder).rglob("*.py")
    )
    used = set(re.findall(r'"(OPTOUT_[A-Z_]+)"', code)) - {"OPTOUT_"}
    used |= set(re.findall(r"env:(OPTOUT_[A-Z_]+)", code))
    assert used <= {name for name, *_ in generate.ENVIRONMENT}


def test_every_finding_has_its_heading() -> None:
    headings = re.findall(r"^## (\S+)$", (DOCS / "reference/checks.md").read_text(), re.MULTILINE)
    assert headings == list(CATALOGUE)


def test_every_finding_has_an_id_that_mypy_knows() -> None:
    assert list(get_args(FindingId)) == list(CATALOGUE)


def test_the_data_model_lists_every_redis_key_and_every_state() -> None:
    page = (DOCS / "explanation/data-model.md").read_text()
    constants = {value for name, value in vars(keys).items() if name.isupper() and name != "PREFIX"}
    placeholders = {
        "project": "PROJECT",
        "event_id": "ID",
        "account_sid": "ACCOUNT",
        "service_sid": "SERVICE",
        "name": "NAME",
        "host": "HOST",
        "day": "DAY",
        "scope": "SCOPE",
        "state": "STATE",
    }
    functions = [
        value
        for value in vars(keys).values()
        if inspect.isfunction(value) and value.__name__ not in {"of_project", "ended_lists"}
    ]
    patterns = {
        each(**{name: placeholders[name] for name in inspect.signature(each).parameters})
        for each in functions
    }
    assert set(re.findall(r"`(optout:[\w:-]+)`", page)) == constants | patterns
    assert set(
        re.findall(r"^\| `(\w+)` \| .* \| .*(?:final|`lookup_records`|`update_records`)", page, re.MULTILINE)
    ) == set(State)


# --- links and names in prose ---------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", WRITTEN)
def test_links_between_pages_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (DOCS / name).read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        page = (DOCS / name).parent / file if file else DOCS / name
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


@pytest.mark.parametrize("name", [*WRITTEN, "../worker/checks/catalogue.toml"])
def test_commands_and_options_that_are_named_exist(name: str) -> None:
    text = (DOCS / name).read_text()
    for command, rest in re.findall(r"optout ([a-z]+(?:-[a-z]+)?)([ \w-]*)", text):
        if command not in COMMANDS:
            assert f"`optout {command}" not in text, command  # else it is a sentence
            continue
        options = {option for parameter in load_command(command).params for option in parameter.opts}
        for option in re.findall(r"--[a-z][a-z-]*", rest):
            assert option in options, f"optout {command} {option}"


def test_tests_that_the_documentation_names_exist() -> None:
    named = {name for page in WRITTEN for name in re.findall(r"(test_\w+)\.py", (DOCS / page).read_text())}
    assert named
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_page_about_logs_lists_every_event_of_the_code() -> None:
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| [\w, ]+ \|", (DOCS / "reference/logs.md").read_text(), re.MULTILINE
    )
    listed = {name for row in rows for name in re.findall(r"\w+", row)} - {"event"}
    logged, strings = set(), set()
    for path in [path for folder in ("shared", "web", "worker") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant):
                strings.add(node.value)
            if isinstance(node, ast.Call) and LOGS.fullmatch(ast.unparse(node.func)) and node.args:
                logged.add(getattr(node.args[0], "value", None))
    assert {name for name in logged if name and re.fullmatch(r"[a-z_]+", str(name))} <= listed
    assert listed <= strings


def test_findings_that_troubleshooting_names_exist() -> None:
    named = re.findall(r"`([a-z]+(?:-[a-z]+)+)`", (DOCS / "how-to/troubleshoot.md").read_text())
    assert named
    assert set(named) <= CATALOGUE.keys()


def test_the_page_about_mails_lists_all_variables_of_templates() -> None:
    config = builders.config()
    facts = mail_facts(entry(), Notice.SAVED, config.projects["asthma"], ZoneInfo("UTC"), None)
    table = (DOCS / "how-to/customise-mails.md").read_text().split("| Name | Holds |")[1].split("\n\n")[0]
    listed = {
        name
        for row in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == facts.keys()


def test_the_example_template_works(tmp_path: Path) -> None:
    page = (DOCS / "how-to/customise-mails.md").read_text()
    [example] = re.findall(r"```\n(\{% extends.*?)```", page, re.DOTALL)
    (tmp_path / "notice.txt").write_text(example)
    assert list(template_problems(str(tmp_path))) == []


# --- metrics, alerts, dashboard ---------------------------------------------------------------------------


@pytest.fixture
def exposed(redis: Any) -> dict[str, set[str]]:
    """Names of `/metrics` with their labels, of a ledger in which everything has happened."""
    redis.hset(keys.COUNTS, f"asthma|{Source.WEBHOOK}|{State.UPDATED}", 1)
    for figure in ("webhooks|inbound|accepted", "redcap_requests|asthma|record|ok", "mails|asthma|saved|sent",
                   "swept|lookup", "blocks|asthma|blocked", "invalid_messages|optout.lookup"):  # fmt: skip
        redis.hset(keys.METRICS, figure, 1)
    last = {"success_ms": 1, "failure_ms": 1, "log_covered": "1.0", "refused": 1, "delivered": 1}
    redis.hset(keys.reconciled("asthma"), mapping=last)
    redis.hset(keys.PROBLEMS, "asthma", "{}")
    for waiting in (keys.gathered("asthma"), keys.reviews("asthma")):
        redis.zadd(waiting, {"SM1": 1})
    redis.hset(keys.HEARTBEATS, "worker|host|7", time.time_ns() // 1_000_000 - 60_000)
    registry = CollectorRegistry()
    registry.register(LedgerCollector(Ledger(redis), ["asthma"], {"asthma"}))
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_monitoring_page_lists_exactly_the_metrics_that_there_are(exposed: dict[str, set[str]]) -> None:
    rows = re.findall(
        r"^\| `(optout_\w+)` \| ([\w, ]+) \|", (DOCS / "reference/metrics.md").read_text(), re.MULTILINE
    )
    assert {name: set(labels.split(", ")) for name, labels in rows} == exposed


def rules() -> list[dict[str, Any]]:
    """The alerts. The file keeps to the little of YAML that is read here: no parser comes with the project."""
    found: list[dict[str, Any]] = []
    section = ""
    for line in (MONITORING / "alerts.yml").read_text().splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text or text.startswith("#") or indent < 6:
            continue
        key, _, value = text.removeprefix("- ").partition(": ")
        if text.startswith("- alert: "):
            found.append({"alert": value, "labels": {}, "annotations": {}})
        elif indent == 8 and text.endswith(":"):
            section = text[:-1]
        elif indent == 8:
            found[-1][key] = value
        else:
            found[-1][section][key] = json.loads(value) if value.startswith('"') else value
    return found


RULES = {rule["alert"]: rule for rule in rules()}


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metric names of an expression, each with the labels that its selector names."""
    for name, selector in re.findall(r"\b(optout_\w+)(?:\{([^}]*)\})?", expression):
        yield name, set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector or ""))


def test_the_alert_file_was_read_whole() -> None:
    text = (MONITORING / "alerts.yml").read_text()
    assert len(RULES) == text.count("- alert:") > 10
    for rule in RULES.values():
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}


@pytest.mark.parametrize("name", RULES)
def test_an_alert_asks_for_metrics_and_labels_that_there_are(name: str, exposed: dict[str, set[str]]) -> None:
    expression = RULES[name]["expr"]
    for metric, labels in selectors(expression):
        assert labels <= exposed[metric], metric
    for grouped in re.findall(r"(?:by|on) \(([\w, ]+)\)", expression):
        known = set.union(*(exposed[metric] for metric, _ in selectors(expression)))
        assert set(grouped.split(", ")) <= known
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_it_is_and_where_to_read_on(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert re.fullmatch(r"\d+[mh]", rule.get("for", "1m"))
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == name.lower()
    assert anchor in anchors(ROOT / file)
    shown = "".join(rule["annotations"].values())
    if "$labels.project" in shown:
        assert "project" in rule["expr"] or "optout_due_mails" in rule["expr"]


def test_every_alert_of_the_page_exists() -> None:
    assert set(
        re.findall(r"^## (OptOut\w+)", (DOCS / "reference/alerts.md").read_text(), re.MULTILINE)
    ) == set(RULES)


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(exposed: dict[str, set[str]]) -> None:
    dashboard = json.loads((MONITORING / "grafana" / "optout.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = [found for expression in expressions for found in selectors(expression)]
    for metric, labels in asked:
        assert labels <= exposed[metric], metric
    assert {metric for metric, _ in asked} == exposed.keys()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in set.union(*(exposed[metric] for metric, _ in selectors(target["expr"])))


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    dashboard = json.loads((MONITORING / "grafana" / "optout.json").read_text())
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
