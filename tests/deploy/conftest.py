"""What `kubectl apply -k` would send, as far as deploy/ goes: the features of kustomize that it uses, in few lines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
# those that are applied: by platform, and what runs
TREES = [f"{platform}/{what}" for platform in ("tpu", "gpu") for what in ("prepare", "server", "ray")]
FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "images", "patches"}

Manifest = dict[str, Any]


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def build(folder: Path, before: list[Manifest] | None = None) -> list[Manifest]:
    """The manifests of a folder; of a component, those `before` with its changes. Names get no hash."""
    plan = read(folder / "kustomization.yaml")
    assert set(plan) <= FIELDS, f"{folder}: teach this function {set(plan) - FIELDS}"
    found = list(before or ())
    for name in plan.get("resources", ()):
        path = folder / name
        found += build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    for each in plan.get("configMapGenerator", ()):
        found.append(config_map(folder, each))
    for name in plan.get("components", ()):
        found = build(folder / name, found)
    found = copy.deepcopy(found)
    for manifest in found:
        if "namespace" in plan and manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = plan["namespace"]
        for container in containers(manifest):
            for image in plan.get("images", ()):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    for patch in plan.get("patches", ()):
        for manifest in found:
            if targets(patch, manifest):
                for operation in read(folder / patch["path"]):
                    apply(manifest, operation)
    return found


def config_map(folder: Path, plan: dict[str, Any]) -> Manifest:
    data = {Path(name).name: (folder / name).read_text(encoding="utf-8") for name in plan.get("files", ())}
    for name in plan.get("envs", ()):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        data |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    metadata = {"name": plan["name"]}
    if labels := plan.get("options", {}).get("labels"):
        metadata["labels"] = labels
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def targets(patch: dict[str, Any], manifest: Manifest) -> bool:
    return patch["target"] == {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}


def apply(manifest: Manifest, operation: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902) on maps; numbers are places in lists."""
    *way, last = operation["path"].strip("/").split("/")
    at: Any = manifest
    for part in way:
        at = at[int(part)] if isinstance(at, list) else at[part]
    assert operation["op"] == "add" or (operation["op"] == "replace" and last in at), operation
    at[last] = operation["value"]


def pod_templates(manifest: Manifest) -> list[Manifest]:
    spec = manifest.get("spec", {})
    if manifest["kind"] in ("Deployment", "Job"):
        return [spec["template"]]
    if manifest["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return []


def containers(manifest: Manifest) -> list[dict[str, Any]]:
    """With those that run before or beside."""
    return [
        each
        for template in pod_templates(manifest)
        for each in (*template["spec"].get("initContainers", ()), *template["spec"]["containers"])
    ]


@pytest.fixture(scope="session")
def trees() -> dict[str, list[Manifest]]:
    """What is applied, by the folder below deploy/kubernetes."""
    return {name: build(KUBERNETES / name) for name in TREES}


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, trees: dict[str, list[Manifest]]) -> list[Manifest]:
    return trees[request.param]


@pytest.fixture
def pods(tree: list[Manifest]) -> list[Manifest]:
    """The templates of pods in `tree`."""
    return [template for manifest in tree for template in pod_templates(manifest)]


@pytest.fixture(scope="session")
def pods_of_all(trees: dict[str, list[Manifest]]) -> list[Manifest]:
    return [template for tree in trees.values() for manifest in tree for template in pod_templates(manifest)]


@pytest.fixture
def boxes(tree: list[Manifest]) -> list[dict[str, Any]]:
    """The containers in `tree`."""
    return [container for manifest in tree for container in containers(manifest)]
