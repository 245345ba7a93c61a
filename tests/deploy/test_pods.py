"""What runs in the pods, and with which rights; compared with the command, the images and each other."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import typer
import yaml

from jaxl.cli.app import app
from jaxl.server.supervisor import GRACE

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"

Manifests = list[dict[str, Any]]


def of_kind(tree: Manifests, kind: str) -> dict[str, Any]:
    return next(each for each in tree if each["kind"] == kind)


def model(tree: Manifests) -> dict[str, str]:
    return of_kind(tree, "ConfigMap")["data"]


def parsed(arguments: list[str], values: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """The name of a command of jaxl and its options, read as it reads them."""
    name, *rest = [re.sub(r"\$\((\w+)\)", lambda match: values[match[1]], text) for text in arguments]
    group = typer.main.get_command(app)
    command = group.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    return name, command.make_context(name, rest).params


def server_of(tree: Manifests) -> dict[str, Any]:
    """The container of a server, or of the one that the job starts."""
    for manifest in tree:
        if manifest["kind"] in ("Deployment", "Job"):
            spec = manifest["spec"]["template"]["spec"]
            everybody = (*spec.get("initContainers", ()), *spec["containers"])
            return next(each for each in everybody if each["args"][0] == "serve")
    raise AssertionError("no server")


def test_rights(pods: Manifests) -> None:
    for pod in pods:
        spec = pod["spec"]
        user = spec["securityContext"]
        assert user["runAsNonRoot"]
        assert user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == 10001
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert {next(iter(set(volume) - {"name"})) for volume in spec.get("volumes", ())} <= {
            "emptyDir",
            "persistentVolumeClaim",
        }
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_only_rays_autoscaler_may_call_kubernetes(pods: Manifests) -> None:
    for pod in pods:
        is_head = pod["metadata"]["labels"].get("app.kubernetes.io/component") == "ray-head"
        assert is_head or pod["spec"]["automountServiceAccountToken"] is False
        assert is_head == ("serviceAccountName" not in pod["spec"])


def test_resources(boxes: Manifests) -> None:
    for box in boxes:
        needed = box["resources"]
        assert set(needed["requests"]) >= {"cpu", "memory"}
        assert "memory" in needed["limits"]
        for device in set(needed["requests"]) - {"cpu", "memory"}:
            assert needed["requests"][device] == needed["limits"][device], "devices are not shared"


def test_hosts_of_four_chips(pods_of_all: Manifests) -> None:
    topology = "cloud.google.com/gke-tpu-topology"
    pods = [pod for pod in pods_of_all if topology in pod["spec"].get("nodeSelector", {})]
    assert len(pods) == 3
    for pod in pods:
        place = pod["spec"]["nodeSelector"]
        assert place["cloud.google.com/gke-tpu-accelerator"] == "tpu-v5-lite-podslice"
        height, width = map(int, place[topology].split("x"))
        containers = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
        chips = [each["resources"]["limits"].get("google.com/tpu") for each in containers]
        assert [each for each in chips if each] == [str(height * width)] == ["4"]


def test_commands(tree: Manifests, boxes: Manifests) -> None:
    for box in boxes:
        if "args" in box and box["args"] != ["--version"]:
            name, options = parsed(box["args"], model(tree))
            assert name in ("serve", "inspect")
            own = model(tree)["MODEL"]
            assert options["model"] == ([own] if name == "serve" else own)
            assert (options["revision"], options["variant"]) == (model(tree)["REVISION"], model(tree)["VARIANT"])


def test_servers_draw_what_was_prepared(trees: dict[str, Manifests]) -> None:
    for platform in ("tpu", "gpu"):
        found = []
        for what in ("prepare", "server"):
            tree = trees[f"{platform}/{what}"]
            _, options = parsed(server_of(tree)["args"], model(tree))
            assert options["host"] == "0.0.0.0"
            assert options["local_files_only"]
            found.append({key: value for key, value in options.items() if key not in ("drain_timeout", "keep_alive")})
        assert found[0] == found[1]


def test_time_to_stop(trees: dict[str, Manifests]) -> None:
    for name, tree in trees.items():
        if not name.endswith("ray"):
            manifest = of_kind(tree, "Job" if name.endswith("prepare") else "Deployment")
            _, options = parsed(server_of(tree)["args"], model(tree))
            given = manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            assert given >= options["drain_timeout"] + 2 * GRACE


def test_time_to_start(trees: dict[str, Manifests]) -> None:
    """A cold start compiles, which takes minutes; nothing may give up before the startup probe does."""
    for platform in ("tpu", "gpu"):
        for what, kind in (("prepare", "Job"), ("server", "Deployment")):
            tree = trees[f"{platform}/{what}"]
            spec = of_kind(tree, kind)["spec"]
            probe = server_of(tree)["startupProbe"]
            seconds = probe["periodSeconds"] * probe["failureThreshold"]
            assert seconds >= 1800
            assert spec["activeDeadlineSeconds" if kind == "Job" else "progressDeadlineSeconds"] > seconds


def test_variables(boxes: Manifests) -> None:
    source = "".join(file.read_text() for file in (ROOT / "src" / "jaxl").rglob("*.py"))
    folder = Path(huggingface_hub.__file__).parent
    hub = "".join((folder / name).read_text() for name in ("constants.py", "utils/_auth.py"))
    files = [file.read_text() for file in (ROOT / "deploy" / "docker").glob("*.Dockerfile")]
    names = {each["name"] for box in boxes for each in box.get("env", ())}
    names |= {name for text in files for name in re.findall(r"\b((?:JAXL|HF)_\w+)=", text)}
    assert {"JAXL_CACHE_DIR", "HF_HOME"} < names
    for name in names:
        assert f'"{name}"' in (hub if name.startswith("HF_") else source), name


def test_keys_come_from_a_secret(tree: Manifests, boxes: Manifests) -> None:
    keys = [
        each["valueFrom"]["secretKeyRef"]
        for box in boxes
        for each in box.get("env", ())
        if each["name"] == "JAXL_API_KEYS"
    ]
    # it is not optional: without the secret no server starts
    prepares = any(each["kind"] == "Job" for each in tree)
    assert keys == ([] if prepares else [{"name": "jaxl-keys", "key": "keys"}])


def test_the_volume(tree: Manifests, pods: Manifests) -> None:
    claim = of_kind(tree, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    image = (ROOT / "deploy" / "docker" / "cpu.Dockerfile").read_text()
    folders = re.findall(r"\b(?:JAXL_CACHE_DIR|HF_HOME)=(\S+)", image)
    assert len(folders) == 2
    writes = of_kind(tree, "Job") if any(each["kind"] == "Job" for each in tree) else None
    for pod in pods:
        claims = {
            each["name"]: each.get("persistentVolumeClaim", {}).get("claimName") for each in pod["spec"]["volumes"]
        }
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]):
            for mount in container.get("volumeMounts", ()):
                if claims[mount["name"]] is None:
                    continue
                assert claims[mount["name"]] == claim["metadata"]["name"]
                assert all(folder.startswith(f"{mount['mountPath']}/") for folder in folders)
                assert mount.get("readOnly", False) == (writes is None)


def test_the_model_is_named_once() -> None:
    values = dict(line.split("=") for line in (KUBERNETES / "shared" / "model.env").read_text().splitlines())
    assert set(values) == {"MODEL", "REVISION", "VARIANT", "SIZE"}
    for platform in ("tpu", "gpu"):
        patch = yaml.safe_load((KUBERNETES / "platforms" / platform / "ray.yaml").read_text())
        config = next(each["value"] for each in patch if each["path"] == "/spec/serveConfigV2")
        (application,) = yaml.safe_load(config)["applications"]
        assert {name.upper(): application["args"][name] for name in ("model", "revision", "variant", "size")} == values
