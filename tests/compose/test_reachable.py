"""The reverse proxies of docs/how-to/make-it-reachable.md: nginx takes its example."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.compose.stack import a_certificate, said
from tests.processes import ROOT


def example(language: str) -> str:
    page = (ROOT / "docs/how-to/make-it-reachable.md").read_text()
    [found] = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return str(found)


def nginx_image() -> str:
    """The image of the overlay for TLS."""
    [image] = re.findall(r"image: \$\{NGINX_IMAGE:-(.+)\}", (ROOT / "docker-compose.tls.yml").read_text())
    return os.environ.get("NGINX_IMAGE", str(image))


def test_nginx_takes_the_documented_server(tmp_path: Path) -> None:
    a_certificate(tmp_path / "tls")
    (tmp_path / "server.conf").write_text(example("nginx"))
    mounts = {"tls": "/etc/ssl/optout", "server.conf": "/etc/nginx/conf.d/default.conf"}
    volumes = [f"--volume={tmp_path / source}:{target}:ro" for source, target in mounts.items()]
    tested = said(
        "docker", "run", "--rm", *volumes, nginx_image(), "nginx", "-t", cwd=ROOT, env=dict(os.environ)
    )
    assert "test is successful" in tested.stderr
