"""Who reaches whom: ports, selectors, routes and metrics are those that there are."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxl.engine import Engine
from jaxl.engine.fake import FakeBackend
from jaxl.server.app import create_app
from jaxl.server.metrics import Metrics
from jaxl.server.service import Service
from jaxl.server.settings import Settings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
# what KubeRay writes on its pods besides
OF_KUBERAY = {"ray.io/is-ray-node": {"yes"}, "ray.io/node-type": {"head", "worker"}}

Manifests = list[dict[str, Any]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(FakeBackend())


@pytest.fixture(scope="module")
def routes(engine: Engine) -> set[str]:
    return set(create_app(Service(engine, Settings())).openapi()["paths"])


def selectors(tree: Manifests) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Manifests that choose pods, with the labels that these must have."""
    found = []
    for manifest in tree:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Service":
                found.append((manifest, spec["selector"]))
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor":
                found.append((manifest, spec["selector"]["matchLabels"]))
            case "NetworkPolicy":
                found.append((manifest, spec["podSelector"]["matchLabels"]))
    return found


def chosen(pods: Manifests, labels: dict[str, str]) -> Manifests:
    ours = {name: value for name, value in labels.items() if name not in OF_KUBERAY}
    assert all(labels[name] in OF_KUBERAY[name] for name in set(labels) - set(ours))
    return [pod for pod in pods if ours.items() <= pod["metadata"]["labels"].items()]


def ports(pod: dict[str, Any]) -> dict[str, int]:
    everybody = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
    return {port["name"]: port["containerPort"] for each in everybody for port in each.get("ports", ())}


def test_selectors(tree: Manifests, pods: Manifests) -> None:
    assert selectors(tree)
    for manifest, labels in selectors(tree):
        assert labels
        assert chosen(pods, labels), f"{manifest['kind']} {manifest['metadata']['name']} chooses nothing"


def test_ports(tree: Manifests, pods: Manifests) -> None:
    for manifest, labels in selectors(tree):
        spec = manifest["spec"]
        wanted = [port["targetPort"] for port in spec.get("ports", ())] if manifest["kind"] == "Service" else []
        wanted += [each["port"] for each in spec.get("podMetricsEndpoints", ())]
        wanted += [port["port"] for each in spec.get("ingress", ()) for port in each.get("ports", ())]
        for port in wanted:
            known = [ports(pod) for pod in chosen(pods, labels)]
            assert any(port in each or port in each.values() for each in known), (manifest["metadata"]["name"], port)


def test_the_port_is_that_of_the_command(trees: dict[str, Manifests]) -> None:
    from jaxl.cli.serve import serve

    default = inspect.signature(serve).parameters["port"].default
    for name in ("tpu/server", "gpu/server", "tpu/prepare", "gpu/prepare"):
        for manifest in trees[name]:
            if manifest["kind"] in ("Deployment", "Job"):
                assert ports(manifest["spec"]["template"]) == {"http": default}


def test_probes(boxes: Manifests, routes: set[str]) -> None:
    for box in boxes:
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            if name in box:
                asked = box[name]["httpGet"]
                assert asked["path"] == ("/health/live" if name == "livenessProbe" else "/health/ready")
                assert asked["path"] in routes
                assert asked["port"] in {port["name"] for port in box["ports"]}


def test_monitors(trees: dict[str, Manifests], routes: set[str]) -> None:
    for name, tree in trees.items():
        found = [each for each in tree if each["kind"] == "PodMonitor"]
        assert len(found) == (not name.endswith("prepare"))
        for monitor in found:
            assert set(monitor["spec"]) == {"selector", "podMetricsEndpoints"}
            (asked,) = monitor["spec"]["podMetricsEndpoints"]
            assert set(asked) == {"port", "path", "interval"}
            assert asked["path"] in routes


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_the_autoscaler_asks_for_metrics_that_there_are(
    trees: dict[str, Manifests], engine: Engine, platform: str
) -> None:
    tree = trees[f"{platform}/server"]
    autoscaler = next(each for each in tree if each["kind"] == "HorizontalPodAutoscaler")["spec"]
    target = autoscaler["scaleTargetRef"]
    assert any((each["kind"], each["metadata"]["name"]) == (target["kind"], target["name"]) for each in tree)
    assert "replicas" not in next(each for each in tree if each["kind"] == target["kind"])["spec"]
    ours = set(re.findall(r"^(jaxl:\w+)", Metrics(engine).render().decode(), re.MULTILINE))
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    pattern = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert pattern is not None
    renamed = rule["name"]["as"].replace("${1}", r"\1")
    offered = {re.sub(rule["name"]["matches"], renamed, name): name for name in ours if re.fullmatch(pattern[1], name)}
    asked = {each["pods"]["metric"]["name"] for each in autoscaler["metrics"]}
    assert set(offered) == asked
    assert "jaxl:num_images_waiting" in offered.values()


def test_servers_call_nobody(trees: dict[str, Manifests]) -> None:
    for name in ("tpu/server", "gpu/server"):
        (policy,) = [each["spec"] for each in trees[name] if each["kind"] == "NetworkPolicy"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        assert "egress" not in policy
