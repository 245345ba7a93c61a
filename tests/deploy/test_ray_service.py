"""RayServices: no schema of theirs is at hand, so what is in them is compared with Ray, jaxl and each other."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

with warnings.catch_warnings():  # Ray's own, of what it imports
    warnings.simplefilter("ignore")
    from ray.serve.schema import ServeDeploySchema

    from jaxl.server.ray.application import Arguments, app

# fields of KubeRay 1.6 (ray-operator/apis/ray/v1), those that are used
OF_SERVICE = {"serveConfigV2", "rayClusterDeletionDelaySeconds", "rayClusterConfig"}
OF_CLUSTER = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
}
OF_HEAD = {"rayStartParams", "template"}
OF_WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
DEVICES = {"tpu": ("google.com/tpu", "tpus"), "gpu": ("nvidia.com/gpu", "gpus")}


@pytest.fixture(params=["tpu", "gpu"])
def platform(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def service(trees: dict[str, Any], platform: str) -> dict[str, Any]:
    (found,) = [each for each in trees[f"{platform}/ray"] if each["kind"] == "RayService"]
    assert found["apiVersion"] == "ray.io/v1"
    return found["spec"]


@pytest.fixture
def application(service: dict[str, Any]) -> dict[str, Any]:
    (found,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    return found


def test_fields(service: dict[str, Any]) -> None:
    cluster = service["rayClusterConfig"]
    assert set(service) == OF_SERVICE
    assert set(cluster) == OF_CLUSTER
    assert set(cluster["headGroupSpec"]) == OF_HEAD
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == OF_WORKERS
    assert cluster["authOptions"] == {"mode": "token"}
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_ray_reads_the_application(service: dict[str, Any], application: dict[str, Any]) -> None:
    read = ServeDeploySchema.model_validate(yaml.safe_load(service["serveConfigV2"]))
    assert read.applications[0].import_path == "jaxl.server.ray:app"
    ingress = app(application["args"])._bound_deployment
    replica = ingress.init_args[0]._bound_deployment
    ours = {deployment.name: deployment for deployment in (ingress, replica)}
    for changed in application["deployments"]:
        # options given here take the place of all of the application's own
        own = ours[changed["name"]].ray_actor_options
        assert {key: changed["ray_actor_options"][key] for key in own} == own


def test_servers_fit_their_hosts(service: dict[str, Any], application: dict[str, Any], platform: str) -> None:
    given = Arguments(**application["args"])
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    device, name = DEVICES[platform]
    assert getattr(given, name) == int(container["resources"]["limits"][device])
    assert given.cpus <= int(container["resources"]["requests"]["cpu"])
    assert (workers["minReplicas"], workers["replicas"], workers["maxReplicas"]) == (
        given.least,
        given.replicas,
        given.most,
    )
    assert given.local_files_only
    assert service["rayClusterDeletionDelaySeconds"] > given.deadline


def test_the_ingress_fits_the_head(service: dict[str, Any], application: dict[str, Any]) -> None:
    (head,) = service["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"]
    (ingress,) = application["deployments"]
    assert ingress["ray_actor_options"]["num_cpus"] < int(head["resources"]["limits"]["cpu"])
    assert "node:__internal_head__" in ingress["ray_actor_options"]["resources"]


def test_one_version_of_ray(service: dict[str, Any]) -> None:
    files = list((Path(__file__).parents[2] / "deploy" / "docker").glob("*.Dockerfile"))
    assert len(files) == 3
    for file in files:
        assert f"ARG RAY={service['rayClusterConfig']['rayVersion']}\n" in file.read_text()
