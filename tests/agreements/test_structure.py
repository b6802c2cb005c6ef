"""Agreements that no single module can keep: who imports whom, what is registered where, names for others."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from shared import retry_policy
from shared.config.schema import Config, Operator, Project, Reconcile, Smtp, SmtpOAuth2, TwilioAccount
from shared.domain.endpoints import EVENTS_PATH, INBOUND_EVENT, INBOUND_PATH
from shared.ledger import Ledger
from shared.messaging.tasks import QUEUES, TaskName
from tests.builders import config
from tests.fakes import RecordingPublisher, at_once, fake_redis
from tests.measure import Function, complexity
from tests.processes import ROOT
from web.app import build_services, create_app
from web.console.app import create_console
from web.console.context import ConsoleServices
from web.console.login import Gate, Login
from worker.runtime.safe_task import SafeTask
from worker.twilio.client import REDACTED_DIGITS

PACKAGES = ("shared", "web", "worker")
# What may connect or read the environment when it is imported: it is what a process starts with.
ENTRY_POINTS = {
    "web.wsgi", "web.asgi", "web.console.wsgi", "web.console.__main__", "worker.celery_app", "worker.beat_app",
}  # fmt: skip


@cache
def modules() -> list[tuple[str, Path]]:
    """Every module of the program, by its dotted name."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The syntax tree of a file, node by node."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[str]:
    """The dotted names of all modules that a file imports, wherever in it."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module or ""


# What opens keys of its own outside the ledger: module -> keys that nobody else opens. All others ask the ledger.
OWN_KEYS = {
    "shared.redis_rights": {"PREFIX"},
    "worker.mail.login_pacing": {"mail_login", "mail_login_refusals"},
    "worker.mail.server_guard": {"mail_pause", "mail_probe"},
    "worker.mail.smtp": {"MAIL_REJECTION"},
    "worker.redcap.circuit_breaker": {"circuit"},
    "worker.redcap.gateway": {"structure", "last_structure"},
    "worker.redcap.phone_index": {"index_phones", "index_records", "index_since", "index_state"},
    "worker.redcap.rate_limit": {"rate", "background_pause"},
    "worker.runtime.invalid_messages": {"INVALID_MESSAGES"},
    "worker.twilio.setup.saved_settings": {"twilio_setup"},
}


def imported_names(path: Path) -> Iterator[str]:
    """The modules that a file imports; `from package import module` names the module."""
    known = {name for name, _ in modules()}
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else str(node.module) for name in inside)


class TestImports:
    @pytest.mark.parametrize(
        ("package", "forbidden"),
        [("shared", {"web", "worker", "tests"}), ("web", {"worker", "tests"}), ("worker", {"web", "tests"})],
    )
    def test_the_data_flows_one_way(self, package: str, forbidden: set[str]) -> None:
        wrong = [
            (name, imported)
            for name, path in modules()
            if name.split(".")[0] == package
            for imported in imports(path)
            if imported.split(".")[0] in forbidden
        ]
        assert wrong == []

    def test_no_modules_import_each_other_in_a_circle(self) -> None:
        """Counting also what is imported for type checking or inside functions."""
        known = {name for name, _ in modules()}
        graph = {
            name: {each for each in imported_names(path) if each in known} - {name}
            for name, path in modules()
        }
        TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle

    @pytest.mark.parametrize(
        ("room", "may_import"),
        [
            ("shared.domain", {"shared.errors"}),
            ("shared.config", {"shared.errors", "shared.domain"}),
            ("worker.http_session", {"shared"}),
            ("worker.redcap", {"shared", "worker.http_session"}),
            ("worker.twilio", {"shared", "worker.http_session"}),
            ("worker.mail", {"shared", "worker.redcap", "worker.http_session"}),
            ("worker.projects", {"shared", "worker.services"}),
        ],
    )
    def test_rooms_are_built_on_each_other_in_one_direction(self, room: str, may_import: set[str]) -> None:
        wrong = [
            (name, imported)
            for name, path in modules()
            if name.startswith(room)
            for imported in imports(path)
            if imported.split(".")[0] in PACKAGES
            and not any(f"{imported}.".startswith(f"{each}.") for each in {room, *may_import})
        ]
        assert wrong == []

    @pytest.mark.parametrize(
        "text", [INBOUND_PATH, EVENTS_PATH, INBOUND_EVENT, REDACTED_DIGITS], ids=lambda text: text[-8:]
    )
    def test_what_twilio_knows_us_by_is_written_once(self, text: str) -> None:
        """Else web would answer to one address, and worker write another down at Twilio."""
        constants = [
            name
            for name, path in modules()
            for node in nodes(path)
            if isinstance(node, ast.Constant) and node.value == text
        ]
        assert len(constants) == 1

    def test_steps_know_no_celery(self) -> None:
        steps = [(name, path) for name, path in modules() if name.startswith("worker.steps.")]
        assert steps
        wrong = [name for name, path in steps if any(i.split(".")[0] == "celery" for i in imports(path))]
        assert wrong == []

    def test_only_the_gateway_speaks_http_to_redcap_and_only_the_mailer_smtp(self) -> None:
        importers = {
            library: {name for name, path in modules() if library in {i.split(".")[0] for i in imports(path)}}
            for library in ("requests", "smtplib", "twilio")
        }
        assert importers["smtplib"] == {"worker.mail.smtp", "worker.mail.verdicts"}
        assert not any(name.startswith(("web", "shared")) for name in importers["requests"])

    def test_importing_a_module_opens_no_socket_and_reads_no_setting(self) -> None:
        """So that tests and tools may import anything, and a process fails where it says why."""
        names = [name for name, _ in modules() if name not in ENTRY_POINTS]
        result = subprocess.run(
            [sys.executable, "-c", WATCHED_IMPORTS, json.dumps(names)],
            cwd=ROOT, env=os.environ | {"OPTOUT_REDIS_URL": "redis://127.0.0.1:9/0"},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout) == []

    def test_the_watch_over_imports_sees_what_it_is_for(self, tmp_path: Path) -> None:
        (tmp_path / "bad.py").write_text(
            "import os, socket\nos.environ.get('OPTOUT_X')\nsocket.socket().connect_ex(('127.0.0.1', 9))\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", WATCHED_IMPORTS, '["bad"]'],
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        seen = json.loads(result.stdout)
        assert "bad: reads OPTOUT_X" in seen
        assert any(line.startswith("bad: socket.connect") for line in seen)


WATCHED_IMPORTS = """
import importlib, json, os, sys
sys.path.insert(0, "")
seen, current = [], ""

def by_ourselves():
    # Whether the program's own code asks: libraries copy the whole environment.
    frame = sys._getframe(2)
    while "frozen" in frame.f_code.co_filename or frame.f_code.co_filename == os.__file__:
        frame = frame.f_back
    return frame.f_code.co_filename.startswith(os.getcwd()) and "site-packages" not in frame.f_code.co_filename

class Watched(type(os.environ)):
    def __getitem__(self, name):
        if str(name).startswith("OPTOUT_") and by_ourselves():
            seen.append(f"{current}: reads {name}")
        return super().__getitem__(name)

os.environ.__class__ = Watched

def hook(event, args):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:  # urllib3 binds to look for IPv6
        seen.append(f"{current}: {event}")

sys.addaudithook(hook)
for current in json.loads(sys.argv[1]):
    importlib.import_module(current)
print(json.dumps(seen))
"""


@cache
def celery_app() -> Any:
    """The workers' application: an entry point, so it is imported only where it is needed."""
    return importlib.import_module("worker.celery_app").app


def opened_keys(path: Path) -> set[str]:
    """The names that a file uses of `shared.ledger.keys`."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    module = {"keys", "shared.ledger.keys"}
    used = {
        node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) in module
    }
    imported = (node.names for node in nodes if isinstance(node, ast.ImportFrom) and node.module in module)
    return used.union(alias.name for names in imported for alias in names)


class TestReadability:
    HIGHEST_COMPLEXITY = 8

    def test_no_function_is_more_complex_than_a_reader_keeps_in_mind(self) -> None:
        """As `make measure` counts: branches, loops, handlers, conditions, comprehensions, boolean operators."""
        complex_ones = [
            f"{name}.{node.name} ({number})"
            for name, path in modules()
            for node in nodes(path)
            if isinstance(node, Function) and (number := complexity(node)) > self.HIGHEST_COMPLEXITY
        ]
        advice = (
            "use a table, a small dataclass whose property names the condition or a helper that exists already, "
            "or extract a function with a telling name"
        )
        assert not complex_ones, (
            f"complexity above {self.HIGHEST_COMPLEXITY}: {', '.join(complex_ones)}; {advice}"
        )


class TestTasks:
    @pytest.fixture
    def app(self) -> Any:
        return celery_app()

    def test_every_task_is_registered_by_the_name_that_others_rely_on(self, app: Any) -> None:
        registered = {name for name in app.tasks if name.startswith("optout.")}
        assert registered == {name.value for name in TaskName}

    def test_every_task_has_a_queue_that_the_workers_consume(self, app: Any) -> None:
        consumed = {queue.name for queue in app.conf.task_queues}
        assert set(QUEUES) == set(TaskName)
        assert set(QUEUES.values()) == consumed
        for name in TaskName:
            assert app.amqp.router.route({}, name.value)["queue"].name == QUEUES[name]
            assert app.tasks[name.value].time_limit

    def test_what_makes_a_lost_worker_harmless_is_set(self, app: Any) -> None:
        conf = app.conf
        assert conf.task_acks_late
        assert conf.task_reject_on_worker_lost
        assert conf.worker_prefetch_multiplier == 1
        longest = max(app.tasks[name.value].time_limit for name in TaskName)
        assert conf.broker_transport_options["visibility_timeout"] > longest

    def test_what_fails_is_told_by_its_type_in_every_task(self, app: Any) -> None:
        assert all(isinstance(app.tasks[name.value], SafeTask) for name in TaskName)

    def test_each_task_has_a_step_of_its_name(self) -> None:
        for name in TaskName:
            step = name.value.removeprefix("optout.")
            module = importlib.import_module(f"worker.steps.{step}")
            assert callable(getattr(module, step))


class TestRoutes:
    # Every route with who may call it: "signed" proves Twilio's signature, "open" tells nothing personal.
    ROUTES = {  # noqa: RUF012
        "/twilio/inbound": ({"POST"}, "signed"),
        "/twilio/events": ({"POST"}, "signed"),
        "/healthz": ({"GET"}, "open"),
        "/readyz": ({"GET"}, "open"),
        "/metrics": ({"GET"}, "open"),
    }

    def test_every_route_is_listed_with_its_decision(self) -> None:
        app = create_app(build_services(config(), fake_redis(), RecordingPublisher(), schedule=at_once))
        found = {
            str(rule): set(rule.methods or ()) - {"HEAD", "OPTIONS"} for rule in app.url_map.iter_rules()
        }
        assert found == {path: methods for path, (methods, _) in self.ROUTES.items()}

    def test_a_signed_route_refuses_an_unsigned_request_and_an_open_one_does_not(self) -> None:
        app = create_app(build_services(config(), fake_redis(), RecordingPublisher(), schedule=at_once))
        client = app.test_client()
        for path, (methods, decision) in self.ROUTES.items():
            method = methods.copy().pop()
            if decision == "signed":
                kind = "application/x-www-form-urlencoded" if path.endswith("inbound") else "application/json"
                assert client.open(path, method=method, data=b"", content_type=kind).status_code == 403
            else:
                assert client.open(path, method=method).status_code == 200


class TestConsole:
    # Every route of the console; all but the last two need the login.
    ROUTES = (
        "/", "/checks", "/platform", "/studies/<project>", "/studies/<project>/events",
        "/studies/<project>/events.csv", "/studies/<project>/events/<event_id>", "/healthz",
        "/static/<path:filename>",
    )  # fmt: skip

    def test_it_only_reads(self) -> None:
        services = ConsoleServices(config, Ledger(fake_redis()), Gate(Login("operator:password")))
        rules = list(create_console(services).url_map.iter_rules())
        assert sorted(map(str, rules)) == sorted(self.ROUTES)
        assert {method for rule in rules for method in rule.methods or ()} <= {"GET", "HEAD", "OPTIONS"}

    def test_it_never_has_the_hash_key_a_token_or_a_message(self) -> None:
        known = {name for name, _ in modules()}
        reached, waiting = set(), ["web.console.__main__", "web.console.wsgi"]
        while waiting:
            name = waiting.pop()
            reached.add(name)
            path = dict(modules())[name]
            waiting += [each for each in imported_names(path) if each in known and each not in reached]
        assert not any(name.startswith(("worker", "web.twilio")) for name in reached)


class TestKeys:
    def test_redis_keys_are_named_in_one_place(self) -> None:
        wrong = [
            name
            for name, path in modules()
            if name != "shared.ledger.keys" and re.search(r"""["']f?optout:""", path.read_text())
        ]
        assert wrong == []

    def test_only_the_ledger_opens_its_keys(self) -> None:
        found = {
            name: opened_keys(path)
            for name, path in modules()
            if not name.startswith("shared.ledger") and "shared.ledger.keys" in imported_names(path)
        }
        assert found == OWN_KEYS

    def test_no_key_has_two_owners(self) -> None:
        every = [key for names in OWN_KEYS.values() for key in names]
        assert len(every) == len(set(every))

    @pytest.mark.parametrize(
        "text",
        [
            "from shared.ledger import Ledger, keys\nkeys.DUE",
            "from shared.ledger.keys import DUE",
            "import shared.ledger.keys\nshared.ledger.keys.DUE",
        ],
    )
    def test_a_key_is_found_however_it_is_imported(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "example.py"
        path.write_text(text)
        assert "shared.ledger.keys" in imported_names(path)
        assert opened_keys(path) == {"DUE"}

    def test_lua_scripts_are_files(self) -> None:
        assert [name for name, path in modules() if "redis.call(" in path.read_text()] == []

    def test_every_key_has_the_prefix(self) -> None:
        from shared.ledger import keys

        for name, value in vars(keys).items():
            if name.isupper() and name != "PREFIX":
                assert str(value).startswith("optout:"), name


class TestRetryPolicy:
    NAMES = re.compile(r"^(GIVE_UP_\w+|\w*(PAUSE|PAUSES|TIMEOUT|BACKOFF|LEASE|RETRY_AFTER)(_MS|_SECONDS)?)$")

    def test_pauses_deadlines_and_give_up_times_are_in_one_table(self) -> None:
        """shared.config is built without the rest of the program, so its own are there."""
        defined = {
            name
            for name, path in modules()
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and self.NAMES.match(target.id)
        }
        assert defined - {"shared.config.live"} == {"shared.retry_policy"}

    def test_the_architecture_page_has_the_times_of_the_table(self) -> None:
        page = (ROOT / "docs/explanation/architecture.md").read_text()
        *quick, last = (f"{seconds:.0f}" for seconds in retry_policy.QUICK_PAUSES_SECONDS)
        assert f"after {', '.join(quick)} and {last} seconds" in page
        assert retry_policy.LONGEST_PAUSE_MS == 5 * 60_000
        assert "up to five minutes" in page
        assert timedelta(days=1) == retry_policy.GIVE_UP_LOOKUPS_AFTER
        assert "After a day the event ends as `failed`" in page


class TestDocuments:
    def documents(self) -> str:
        paths = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        return "\n".join(path.read_text() for path in paths if path.exists())

    def test_every_make_target_that_a_document_names_exists(self) -> None:
        targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = set(re.findall(r"(?:`|^|\s\s)make ([a-z][a-z-]*)", self.documents(), re.MULTILINE))
        assert named >= {"demo", "test"}
        assert named <= targets

    def test_the_makefile_lists_every_target_as_phony_and_with_a_text(self) -> None:
        text = (ROOT / "Makefile").read_text()
        targets = re.findall(r"^([a-z][a-z-]*):.*", text, re.MULTILINE)
        phony = set(" ".join(re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE)).split())
        assert set(targets) == phony
        without = [name for name in targets if not re.search(rf"^{name}:.*## \S", text, re.MULTILINE)]
        assert without == []

    def test_the_images_are_labelled_with_the_version(self) -> None:
        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        assert f'image.version="{version}"' in (ROOT / "Dockerfile").read_text()

    def test_every_configuration_key_is_described_where_the_example_points_to(self) -> None:
        document = (ROOT / "docs/reference/configuration.md").read_text()
        tables = set(Config.model_fields) - {"reconcile", "operator", "smtp", "twilio", "projects"}
        keys = tables.union(
            *(table.model_fields for table in (Reconcile, Operator, Smtp, SmtpOAuth2, TwilioAccount, Project))
        )
        assert sorted(key for key in keys if f"`{key}`" not in document) == []

    def test_every_key_says_what_it_is(self) -> None:
        for table in (Reconcile, Operator, Smtp, SmtpOAuth2, TwilioAccount, Project):
            assert [key for key, field in table.model_fields.items() if not field.description] == []
