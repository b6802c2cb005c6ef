"""How many connections each listener keeps is told in several places, which have to agree."""

from __future__ import annotations

import ast
import re

import pytest
import yaml  # type: ignore[import-untyped]

from tests.processes import ROOT, server_options

NGINX = ROOT / "deploy" / "nginx"
PROXIES = {"scale.conf": "docker-compose.scale.yml", "tls.conf": "docker-compose.tls.yml"}


def number(pattern: str, text: str) -> int:
    """The one number that a pattern finds."""
    [found] = re.findall(pattern, text, re.MULTILINE)
    return int(found)


def files_of(service: str, compose: str) -> int:
    """How many files a container's processes may open."""
    text = re.sub(r"!reset", "", (ROOT / compose).read_text())
    limit: dict[str, int] = yaml.safe_load(text)["services"][service]["ulimits"]["nofile"]
    assert limit["soft"] == limit["hard"]
    return limit["soft"]


def test_the_image_and_the_procfile_start_the_web_server_alike() -> None:
    [command] = re.findall(
        r'^CMD (\["granian".*?\])$', (ROOT / "Dockerfile").read_text(), re.MULTILINE | re.DOTALL
    )
    words = ast.literal_eval(command.replace("\\\n", ""))
    assert words[1 : words.index("--host")] == server_options()


def test_web_may_open_more_files_than_it_keeps_connections() -> None:
    options = server_options()
    connections = int(options[options.index("--backpressure") + 1])
    assert int(options[options.index("--backlog") + 1]) >= connections
    # Beside them: Redis for eight threads, and what Python has open.
    assert files_of("web", "docker-compose.yml") >= connections + 100


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_may_open_more_files_than_it_keeps_connections(name: str) -> None:
    text = (NGINX / name).read_text()
    files = number(r"^worker_rlimit_nofile (\d+);", text)
    assert files > number(r"worker_connections (\d+);", text)
    assert files_of("proxy", PROXIES[name]) >= files


def test_senders_are_counted_where_their_addresses_are_seen_and_nowhere_else() -> None:
    """Behind another proxy all of them have its address: a limit there would keep Twilio out."""
    limit = number(r"^ *limit_conn sender (\d+);", (NGINX / "tls.conf").read_text())
    assert "\n    limit_conn_zone $binary_remote_addr zone=sender:" in (NGINX / "tls.conf").read_text()
    for name in ("scale.conf", "basics.conf", "pass-on.conf"):
        assert "limit_conn " not in (NGINX / name).read_text()
    ingress = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "ingress.yaml").read_text())
    annotations = ingress["metadata"]["annotations"]
    assert annotations == {"nginx.ingress.kubernetes.io/limit-connections": str(limit)}
