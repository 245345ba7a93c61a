"""The tree of manifests: what it consists of, and that Kubernetes knows every field."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# sidecars that end with their job came with 1.29; the schemas are the strict ones, which know no other fields
VERSIONS = ("1.29", "1.37")
CUSTOM = {"RayService", "PodMonitor"}

Manifests = list[dict[str, Any]]


def plans() -> dict[Path, dict[str, Any]]:
    return {file.parent: yaml.safe_load(file.read_text()) for file in DEPLOY.rglob("kustomization.yaml")}


@pytest.mark.parametrize("version", VERSIONS)
def test_schemas(trees: dict[str, Manifests], pods_of_all: Manifests, version: str) -> None:
    known = [each for tree in trees.values() for each in tree if each["kind"] not in CUSTOM]
    known += [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "each"}, "template": pod}
        for pod in pods_of_all
    ]
    for text in {json.dumps(each, sort_keys=True) for each in known}:
        kubernetes_validate.validate(json.loads(text), version, strict=True)


def test_schemas_refuse(trees: dict[str, Manifests]) -> None:
    job = copy.deepcopy(next(each for each in trees["tpu/prepare"] if each["kind"] == "Job"))
    job["spec"]["template"]["spec"]["initContainers"][1]["startupProbe"]["httpGet"]["part"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kubectl_agrees(trees: dict[str, Manifests]) -> None:
    """That the other tests see what would be applied."""

    def key(manifest: dict[str, Any]) -> tuple[str, str]:
        return manifest["kind"], manifest["metadata"]["name"]

    for name, tree in trees.items():
        command = ["kubectl", "kustomize", str(KUBERNETES / name)]
        built = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        without_hash = re.sub(r"\b(jaxl-model)-[a-z0-9]{10}\b", r"\1", built)
        assert sorted(yaml.safe_load_all(without_hash), key=key) == sorted(tree, key=key)


def test_names(tree: Manifests) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in tree]
    assert len(set(names)) == len(names)
    namespace = next(each for each in tree if each["kind"] == "Namespace")["metadata"]["name"]
    assert {each["metadata"].get("namespace", namespace) for each in tree} == {namespace}


def test_every_file_is_used() -> None:
    used = set()
    for folder, plan in plans().items():
        names = [*plan.get("resources", ()), *plan.get("components", ())]
        names += [patch["path"] for patch in plan.get("patches", ())]
        names += [name for each in plan.get("configMapGenerator", ()) for name in each.get("envs", each.get("files"))]
        for name in names:
            path = (folder / name).resolve()
            assert path.exists(), f"{folder}: no {name}"
            used.add(path / "kustomization.yaml" if path.is_dir() else path)
    applied = {folder / "kustomization.yaml" for folder in plans() if folder.parent.parent == KUBERNETES}
    there = {file for file in KUBERNETES.rglob("*") if file.is_file()} - {KUBERNETES / "prometheus-adapter.yaml"}
    assert there <= used | applied


def test_patches_have_targets(trees: dict[str, Manifests]) -> None:
    for platform in ("tpu", "gpu"):
        of_platform = [tree for name, tree in trees.items() if name.startswith(platform)]
        there = {(each["kind"], each["metadata"]["name"]) for tree in of_platform for each in tree}
        patches = plans()[KUBERNETES / "platforms" / platform]["patches"]
        assert len(patches) == 3
        for patch in patches:
            assert (patch["target"]["kind"], patch["target"]["name"]) in there


def test_images(boxes: Manifests) -> None:
    assert {box["image"] for box in boxes} <= {"REGISTRY/jaxl:tpu", "REGISTRY/jaxl:cuda", "REGISTRY/jaxl:cpu"}
    for tag in {box["image"].rpartition(":")[2] for box in boxes}:
        assert (DEPLOY / "docker" / f"{tag}.Dockerfile").exists()


def test_the_dashboard() -> None:
    (generated,) = plans()[DEPLOY]["configMapGenerator"]
    assert generated["files"] == ["grafana.json"]
    dashboard = yaml.safe_load((DEPLOY / "grafana.json").read_text())
    # the sidecar fills in no inputs, so what panels name must be a variable of the dashboard too
    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    for each in dashboard["__inputs"]:
        assert variables[each["name"]]["type"] == "datasource"
        assert variables[each["name"]]["query"] == each["pluginId"]
