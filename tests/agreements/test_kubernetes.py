"""The Kubernetes manifests are valid, and say what the compose file says: checked without a cluster."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from tests.processes import REDIS_CONF, ROOT

MANIFESTS = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.30.0", "1.37.0")
PLATFORM = ("redis", "web", "worker", "beat", "flower", "console")
# Secrets that compose mounts as folders; the others are single files.
FOLDERS = {"twilio", "redcap", "smtp"}
# The studies' own e-mail texts, a folder each.
TEMPLATES = "/etc/optout-templates"
UNITS = {"m": "Mi"}


@cache
def documents() -> list[tuple[str, dict[str, Any]]]:
    """Every object of every manifest, with its file's name."""
    return [
        (path.name, document)
        for path in sorted(MANIFESTS.glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for document in yaml.safe_load_all(path.read_text())
    ]


def kustomization() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
    return loaded


@cache
def compose_service(name: str) -> dict[str, Any]:
    """A service of docker-compose.yml, with the defaults of its variables."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    service: dict[str, Any] = yaml.safe_load(text)["services"][name]
    return service


def workload(name: str) -> dict[str, Any]:
    """The Deployment or StatefulSet of a service."""
    return next(
        d
        for _, d in documents()
        if d["kind"] in {"Deployment", "StatefulSet"} and d["metadata"]["name"] == name
    )


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = workload(name)["spec"]["template"]["spec"]
    return spec


def container(name: str) -> dict[str, Any]:
    [only] = pod(name)["containers"]
    found: dict[str, Any] = only
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schema_of_kubernetes(version: str) -> None:
    for _, document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_would_notice_a_misspelt_field() -> None:
    document = workload("web")
    document["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_kustomize_takes_every_manifest() -> None:
    assert {name for name, _ in documents()} == set(kustomization()["resources"])


def test_every_object_that_a_pod_names_is_generated() -> None:
    made = {
        entry["name"] for kind in ("configMapGenerator", "secretGenerator") for entry in kustomization()[kind]
    }
    named = set()
    for name in PLATFORM:
        for volume in pod(name)["volumes"]:
            files = volume.get("configMap", {})
            optional = files.get("optional", False)
            named |= {None if optional else files.get("name"), volume.get("secret", {}).get("secretName")}
    assert named - {None} == made


def test_a_worker_sees_the_studies_own_texts_under_the_same_path_and_starts_without_them() -> None:
    [compose] = [v for v in compose_service("worker")["volumes"] if v["target"] == TEMPLATES]
    assert (compose["source"], compose["read_only"]) == ("./deployment/templates", True)
    assert compose["bind"] == {"create_host_path": True}
    mounts = [m for m in container("worker")["volumeMounts"] if m["mountPath"].startswith(f"{TEMPLATES}/")]
    volumes = {volume["name"]: volume for volume in pod("worker")["volumes"]}
    assert mounts
    for mount in mounts:
        study = Path(mount["mountPath"]).name
        files = {"name": f"optout-templates-{study}", "optional": True}
        assert (mount["readOnly"], volumes[mount["name"]]["configMap"]) == (True, files)
        assert f"- {{name: {files['name']}, " in (MANIFESTS / "kustomization.yaml").read_text()


def test_redis_is_configured_as_under_compose() -> None:
    assert (MANIFESTS / "redis.conf").read_text() == REDIS_CONF.read_text()


@pytest.mark.parametrize("name", PLATFORM)
def test_a_pod_runs_the_same_command_in_the_same_memory(name: str) -> None:
    service, ours = compose_service(name), container(name)
    if name == "redis":
        assert ours["args"] == service["command"]
    else:
        assert ours.get("command") == service.get("command")
    limit = service["mem_limit"]
    assert ours["resources"]["limits"]["memory"] == limit[:-1] + UNITS[limit[-1]]


@pytest.mark.parametrize("name", PLATFORM)
def test_a_pod_sees_the_same_secrets(name: str) -> None:
    service = compose_service(name)
    volumes = [v["target"] for v in service.get("volumes", []) if isinstance(v, dict)]
    expected = {f"/run/secrets/{secret}" for secret in service["secrets"]}
    expected |= {target for target in volumes if Path(target).name in FOLDERS}
    mounted = {
        m["mountPath"] for m in container(name)["volumeMounts"] if m["mountPath"].startswith("/run/secrets/")
    }
    assert mounted == expected


@pytest.mark.parametrize("name", PLATFORM[1:])
def test_a_pod_has_the_environment_that_points_to_its_secrets(name: str) -> None:
    ours = {entry["name"]: entry["value"] for entry in container(name)["env"]}
    theirs = {key: value for key, value in compose_service(name)["environment"].items() if value}
    assert ours == theirs


@pytest.mark.parametrize("name", PLATFORM)
def test_a_pod_has_no_more_rights_than_it_needs(name: str) -> None:
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["securityContext"]["runAsNonRoot"]
    assert pod(name)["automountServiceAccountToken"] is False
    assert {"startupProbe", "livenessProbe"} <= set(container(name))
    assert container(name)["resources"]["requests"]


def test_there_is_one_beat_never_two() -> None:
    assert workload("beat")["spec"]["replicas"] == 1
    assert workload("beat")["spec"]["strategy"] == {"type": "Recreate"}


def test_a_pod_gets_as_long_to_stop_as_a_container() -> None:
    seconds = {name: pod(name)["terminationGracePeriodSeconds"] for name in PLATFORM}
    # Web waits five seconds more, until the balancers have heard.
    assert seconds == {"redis": 30, "web": 45, "worker": 120, "beat": 15, "flower": 15, "console": 15}


def test_nothing_may_talk_unless_a_policy_says_so() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for _, d in documents() if d["kind"] == "NetworkPolicy"}
    assert policies["nothing-unless-allowed"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [to_web] = policies["web"]["ingress"]
    assert [port["port"] for port in to_web["ports"]] == [8000]
    # The sentinels' port, too: processes ask them for the primary.
    for rule in (*policies["redis"]["ingress"], *policies["to-redis"]["egress"]):
        assert [port["port"] for port in rule["ports"]] == [6379, 26379]
    everywhere = [
        name for name, spec in policies.items() for rule in spec.get("egress", []) if "to" not in rule
    ]
    assert everywhere == ["worker"]


def test_the_worker_may_go_out_by_the_ports_that_the_page_for_reviewers_lists() -> None:
    rows = re.findall(
        r"^\| worker \| .+? \| ([^|]+) \|", (ROOT / "docs/explanation/security.md").read_text(), re.MULTILINE
    )
    listed = {int(port) for row in rows for port in re.findall(r"\d+", row)}
    [policy] = [
        d["spec"]
        for _, d in documents()
        if d["kind"] == "NetworkPolicy" and d["metadata"]["name"] == "worker"
    ]
    [rule] = policy["egress"]
    assert {port["port"] for port in rule["ports"]} == listed


def test_our_own_images_are_named_by_a_version() -> None:
    ours = [each for each in kustomization()["images"] if each["name"].startswith("optout-")]
    assert len(ours) == 2
    assert all(re.fullmatch(r"\d[\w.]+", each["newTag"]) for each in ours)
