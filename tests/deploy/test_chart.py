"""The Helm chart: rendered by Go's own templates, for helm itself is not at hand."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.containers import ROOT

CHART = ROOT / "deploy" / "helm" / "fedstill-aggregator"
VALUES = {"publicName": "aggregator.example.org"}
Render = Callable[[dict[str, Any]], dict[str, dict[str, Any]]]


def values(changes: dict[str, Any]) -> dict[str, Any]:
    """The chart's own with changes, merged as helm does."""

    def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        return base | {
            key: merge(base[key], value) if isinstance(base.get(key), dict) else value
            for key, value in over.items()
        }

    return merge(yaml.safe_load((CHART / "values.yaml").read_text()), changes)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    go = shutil.which("go")
    if go is None:
        pytest.skip("go (Debian's golang-go) is not installed")
    folder = tmp_path_factory.mktemp("chart")
    built = folder / "render"
    quiet = {
        "GO111MODULE": "off",
        "GOCACHE": str(folder / "cache"),
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
    }
    source = Path(__file__).with_name("chart") / "main.go"
    done = subprocess.run(
        [go, "build", "-o", built, source],
        env={**os.environ, **quiet},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return built


def rendered(renderer: Path, changes: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    given = {
        "templates": {path.name: path.read_text() for path in (CHART / "templates").iterdir()},
        "files": {f"files/{path.name}": path.read_text() for path in (CHART / "files").iterdir()},
        "data": {
            "Values": values(changes),
            "Release": {"Name": "study", "Service": "Helm", "Namespace": "default"},
            "Chart": {key[0].upper() + key[1:]: value for key, value in chart.items()},
        },
    }
    return subprocess.run(
        [renderer], input=json.dumps(given), capture_output=True, text=True, check=False
    )


@pytest.fixture
def render(renderer: Path) -> Render:
    def render(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
        done = rendered(renderer, changes)
        assert done.returncode == 0, done.stderr
        texts: dict[str, str] = json.loads(done.stdout)
        documents = [one for text in texts.values() for one in yaml.safe_load_all(text) if one]
        return {document["kind"]: document for document in documents}

    return render


def test_the_charts_files_are_those_of_the_edge() -> None:
    for copy in (CHART / "files").iterdir():
        assert copy.read_bytes() == (ROOT / "deploy" / "edge" / copy.name).read_bytes()


def test_values_are_checked() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    assert set(schema["properties"]) - {"global"} == set(values({}))
    validator.validate(values(VALUES))
    wrong: list[dict[str, Any]] = [
        {"publicName": ""},
        {"publicName": "https://aggregator.example.org"},
        {"publicPort": 0},
        {"image": {"tag": "latest"}},
        {"image": {"digest": "sha256:1"}},
        {"desk": {"enabled": True}},
        {"desk": {"enabled": True, "allow": ["all; } location / {"]}},
        {"replicas": 2},
        {"service": {"type": "ExternalName"}},
    ]
    for changes in wrong:
        assert not validator.is_valid(values({**VALUES, **changes})), changes


def test_without_a_name_nothing_is_installed(renderer: Path) -> None:
    done = rendered(renderer, {})
    assert done.returncode != 0
    assert "say under which name the aggregator is reached" in done.stderr


def test_pods_are_confined(render: Render) -> None:
    pod = render(VALUES)["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    common = pod["securityContext"]
    assert common["runAsNonRoot"] and common["runAsUser"] == common["runAsGroup"] == 10001
    assert common["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    every = pod["initContainers"] + pod["containers"]
    assert [one["name"] for one in every] == ["init", "aggregator", "edge"]
    for container in every:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert not container["image"].endswith(":latest")
        names = {volume["name"] for volume in pod["volumes"]} | {"home"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= names
    for container in pod["containers"]:
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
    edge = {mount["mountPath"]: mount for mount in pod["containers"][1]["volumeMounts"]}
    # What faces the world cannot read what signs.
    home = {path: mount for path, mount in edge.items() if mount["name"] == "home"}
    assert {path: mount["subPath"] for path, mount in home.items()} == {
        "/aggregator/tls": "tls",
        "/aggregator/blobs": "blobs",
    }
    assert all(mount["readOnly"] for mount in home.values())


def test_the_pod_does_what_the_compose_file_does(render: Render) -> None:
    services = yaml.safe_load((ROOT / "deploy" / "aggregator" / "compose.yml").read_text())[
        "services"
    ]
    pod = render(VALUES)["StatefulSet"]["spec"]["template"]["spec"]
    init, (aggregator, edge) = pod["initContainers"][0], pod["containers"]
    assert init["command"] == services["init"]["entrypoint"]
    assert init["args"] == [services["init"]["command"][0].replace("$$", "$")]
    assert {one["name"]: one["value"] for one in init["env"]} == {
        "NAME": "aggregator.example.org",
        "PORT": "443",
    }
    assert aggregator["args"] == services["aggregator"]["command"]
    assert edge["command"] == services["edge"]["entrypoint"]
    assert edge["image"] == services["edge"]["image"]


def test_the_edge_alone_can_be_reached(render: Render) -> None:
    made = render(VALUES)
    assert set(made) == {"ConfigMap", "StatefulSet", "Service", "NetworkPolicy"}
    (port,) = made["Service"]["spec"]["ports"]
    assert port == {"name": "edge", "port": 443, "targetPort": "edge"}
    pod = made["StatefulSet"]["spec"]["template"]
    ports = [one for c in pod["spec"]["containers"] for one in c.get("ports", [])]
    assert ports == [{"name": "edge", "containerPort": 8443}]
    (rule,) = made["NetworkPolicy"]["spec"]["ingress"]
    assert rule == {"ports": [{"protocol": "TCP", "port": 8443}]}
    for selector in (
        made["Service"]["spec"]["selector"],
        made["StatefulSet"]["spec"]["selector"]["matchLabels"],
        made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= pod["metadata"]["labels"].items() and selector
    assert set(made["ConfigMap"]["data"]) == {"nginx.conf", "edge.conf"}
    shipped = (ROOT / "deploy" / "edge" / "edge.conf").read_text()
    assert made["ConfigMap"]["data"]["edge.conf"].strip() == shipped.strip()


def test_what_is_turned_on_is_there(render: Render) -> None:
    given = {
        **VALUES,
        "desk": {"enabled": True, "allow": ["10.1.2.0/24"]},
        "ingress": {"enabled": True},
        "image": {"repository": "registry.example.org/fedstill", "digest": "sha256:" + "a" * 64},
        "storage": {"className": "fast"},
        "extraEnvFrom": [{"secretRef": {"name": "bucket"}}],
        "nodeSelector": {"gpu": "yes"},
    }
    made, plain = render(given), render(VALUES)
    desk = made["ConfigMap"]["data"]["desk.conf"]
    shipped = (ROOT / "deploy" / "edge" / "desk.conf").read_text()
    shipped = shipped.replace("allow 127.0.0.1;", "allow 10.1.2.0/24;")
    lines = [line.split("#")[0].strip() for line in shipped.splitlines()]
    assert [line.strip() for line in desk.splitlines()] == [line for line in lines if line]
    pod = made["StatefulSet"]["spec"]["template"]
    (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "edge"]
    assert {"key": "desk.conf", "path": "enabled/desk.conf"} in volume["configMap"]["items"]
    before = plain["StatefulSet"]["spec"]["template"]["metadata"]["annotations"]
    assert pod["metadata"]["annotations"] != before, "nginx is started anew"
    assert made["Ingress"]["spec"]["rules"][0]["host"] == "aggregator.example.org"
    assert made["Ingress"]["metadata"]["annotations"]["nginx.ingress.kubernetes.io/ssl-passthrough"]
    container = pod["spec"]["containers"][0]
    assert container["image"] == "registry.example.org/fedstill@sha256:" + "a" * 64
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    (claim,) = made["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert pod["spec"]["nodeSelector"] == {"gpu": "yes"}
