"""Models on a hub: what is asked of it, what is taken from the cache, and what is said when it fails.

The hub is a small server of this process that speaks the protocol of huggingface_hub, whose settings are read when it
is imported: each client is a process of its own.
"""

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import forks
import ip_adapters
import numpy as np
import pytest
from evaluation import SMALL as UNET
from safetensors.numpy import save

from jaxl.weights.source import EMBEDDED, open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
COMPONENTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"} | dict.fromkeys(
    ("text_encoder", "text_encoder_2"), "model"
)


@dataclass
class Repo:
    """A model on the hub: its files by commit, and who may have them."""

    commits: dict[str, dict[str, bytes]]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    gated: bool = False
    broken: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    token: str | None


class Hub(ThreadingHTTPServer):
    """`requests` grows by each request about a model, in the order in which they arrive."""

    def __init__(self, repos: dict[str, Repo]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos = repos
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self) -> list[str]:
        """The files that were downloaded; of two with the same bytes, huggingface_hub asks for one."""
        paths = [request.path for request in self.requests if request.method == "GET" and "/api/" not in request.path]
        return [path.split(f"/{COMMIT}/")[-1] for path in paths]


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Tests are quiet."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if "/test/" in path:  # huggingface_hub asks of itself, too
            self.server.requests.append(Request(self.command, path, token))
        parts = path.removeprefix("/api/models").removeprefix("/cdn").strip("/").split("/")
        repo = self.server.repos.get("/".join(parts[:2]))
        if repo is None or (repo.token and token != repo.token):
            return self.answer(404 if token else 401, X_Error_Code="RepoNotFound", X_Error_Message="Not found")
        if repo.broken:
            return self.answer(403, b"<html>not today</html>")
        kind, revision = parts[2:4]
        commit = repo.revisions.get(revision, revision)
        if commit not in repo.commits:
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message=f"Invalid rev id: {revision}")
        files = repo.commits[commit]
        if kind == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self.send_json({"id": "/".join(parts[:2]), "sha": commit, "private": False, "siblings": siblings})
        if kind == "tree":
            return self.send_json([tree_entry(name, content) for name, content in files.items()])
        if repo.gated:
            return self.answer(403 if token else 401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        name = "/".join(parts[4:])
        content = files[name]
        sha = hashlib.sha256(content).hexdigest()
        if kind == "resolve" and name.endswith(".safetensors"):  # large files are elsewhere
            place = f"{self.server.url}/cdn/{'/'.join(parts[:2])}/blob/{commit}/{name}"
            linked = {"X_Linked_ETag": f'"{sha}"', "X_Linked_Size": str(len(content))}
            return self.answer(302, Location=place, X_Repo_Commit=commit, **linked)
        return self.answer(200, content, ETag=f'"{sha}"', X_Repo_Commit=commit)

    def send_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")


def tree_entry(name: str, content: bytes) -> dict[str, Any]:
    sha = hashlib.sha256(content).hexdigest()
    large = {"lfs": {"oid": sha, "size": len(content), "pointerSize": 134}} if name.endswith(".safetensors") else {}
    return {"type": "file", "path": name, "size": len(content), "oid": sha[:40], **large}


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# what comes with tiny beside the model is not on a hub
BESIDE = ("loras/", "controlnets/")
TINY = {".gitattributes": b""}
TINY |= {name: content for name, content in read_files(EMBEDDED["tiny"]).items() if not name.startswith(BESIDE)}
NEEDED = sorted(set(TINY) - {"README.md"})
SMALL = sorted(name for name in NEEDED if not name.endswith(".safetensors"))
WEIGHTS = sorted(f"{component}/{stem}.safetensors" for component, stem in COMPONENTS.items())
DECOYS = {
    "sd_xl_base_1.0.safetensors": b"7 GB",
    "01.png": b"",
    "unet/model.onnx": b"",
    "unet/diffusion_flax_model.msgpack": b"",
    "vae_1_0/diffusion_pytorch_model.safetensors": b"",
    "text_encoder/flax_model.msgpack": b"",
    **{f"{component}/{stem}.bin": b"\x80\x02}." for component, stem in COMPONENTS.items()},
    **{f"{component}/{stem}.fp16.bin": b"\x80\x02}." for component, stem in COMPONENTS.items()},
}


DECOYS_OF_LORA = {".gitattributes": b"", "pytorch_lora_weights.bin": b"\x80\x02}.", "01.png": b"", "optimizer.pt": b""}


def encoder(**config: Any) -> dict[str, bytes]:
    """An image encoder's files; no test reads its tensors."""
    config = {"architectures": ["CLIPVisionModelWithProjection"], "hidden_size": 32, **config}
    config |= {"num_attention_heads": 2, "patch_size": 32}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save({"a": np.zeros(1)}),
        "pytorch_model.bin": b"",
    }


# as the published repository has them: the encoder that a file reads is beside it, or in another folder
IP_ADAPTERS = {
    ".gitattributes": b"",
    "sdxl_models/plain.safetensors": save(ip_adapters.tensors(UNET, 1)),
    "sdxl_models/plus.safetensors": save(ip_adapters.tensors(UNET, 2, plus=True)),
    "sdxl_models/lora.safetensors": save({"lora_unet_x.lora_down.weight": np.zeros(1)}),
    **{f"sdxl_models/image_encoder/{name}": own for name, own in encoder(projection_dim=20, hidden_size=64).items()},
    **{f"models/image_encoder/{name}": own for name, own in encoder(projection_dim=24).items()},
}
IP_CLIENT = """
import json, sys
from evaluation import SMALL
from jaxl.errors import CheckpointError
from jaxl.weights.ip_adapter import open_ip_adapter

answers = []
for name, options in json.load(sys.stdin):
    try:
        opened = open_ip_adapter(name, SMALL, **options)
        answers.append({"encoder": opened.encoder_source, "width": opened.config.encoder.width})
    except CheckpointError as error:
        answers.append({"error": str(error)})
json.dump(answers, sys.stdout)
"""


def of_variant(variant: str) -> dict[str, bytes]:
    return {
        f"{component}/{stem}.{variant}.safetensors": save({variant: np.full(3, i, np.float16)})
        for i, (component, stem) in enumerate(COMPONENTS.items())
    }


def in_parts() -> dict[str, bytes]:
    """TINY with a U-Net in two parts; another variant and another model are in parts too."""
    files = {name: content for name, content in TINY.items() if name != "unet/diffusion_pytorch_model.safetensors"}
    for middle in ("", ".fp16"):
        names = [f"diffusion_pytorch_model{middle}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        files |= {f"unet/{name}": save({f"{i}.weight": np.zeros(1)}) for i, name in enumerate(names)}
        places = {f"{i}.weight": name for i, name in enumerate(names)}
        index = f"unet/diffusion_pytorch_model.safetensors.index{middle}.json"
        files[index] = json.dumps({"weight_map": places}).encode()
    return files


@pytest.fixture
def hub() -> Iterator[Hub]:
    everything = TINY | DECOYS | of_variant("fp16")
    older = TINY | {"scheduler/scheduler_config.json": b'{"_class_name": "DDIMScheduler"}'}
    server = Hub(
        {
            "test/tiny": Repo({COMMIT: everything, OLDER_COMMIT: older}, {"main": COMMIT, "v0.9": OLDER_COMMIT}),
            "test/parts": Repo({COMMIT: in_parts()}),
            "test/some": Repo({COMMIT: in_parts() | {n: c for n, c in of_variant("fp16").items() if "vae" in n}}),
            "test/private": Repo({COMMIT: TINY}, token="hf_secret"),
            "test/gated": Repo({COMMIT: TINY}, gated=True),
            "test/broken": Repo({COMMIT: TINY}, broken=True),
            "test/pickles": Repo({COMMIT: {n: c for n, c in (TINY | DECOYS).items() if n not in WEIGHTS}}),
            "test/weights": Repo({COMMIT: {".gitattributes": b"", "model.safetensors": b""}}),
            "test/lora": Repo({COMMIT: DECOYS_OF_LORA | {"pytorch_lora_weights.safetensors": b"the one"}}),
            "test/steps": Repo({COMMIT: DECOYS_OF_LORA | {f"{n}step.safetensors": b"%d" % n for n in (2, 4)}}),
            "test/single": Repo({COMMIT: {".gitattributes": b"", "deep/style.safetensors": b"deep"}}),
            "test/ip": Repo({COMMIT: IP_ADAPTERS}),
            "test/flux": Repo({COMMIT: {"model_index.json": b'{"_class_name": "FluxPipeline"}', WEIGHTS[0]: b""}}),
        }
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


CLIENT = """
import json, sys
from jaxl.errors import CheckpointError
from jaxl.weights.contents import components
from jaxl.weights.source import open_checkpoint

answers = []
for model, options in json.load(sys.stdin):
    try:
        checkpoint = open_checkpoint(model, **options)
    except CheckpointError as error:
        answers.append({"error": str(error)})
    else:
        files = {name: component.files for name, component in zip(checkpoint.tensors, components(checkpoint))}
        answers.append({"files": files, "scheduler": checkpoint.configs["scheduler"]["_class_name"]})
json.dump(answers, sys.stdout)
"""


ADAPTERS = """
import json, sys
from jaxl.errors import CheckpointError
from jaxl.weights.adapters.source import open_adapter
from jaxl.weights.hub import holds_model

answers = []
for name, options in json.load(sys.stdin):
    try:
        answers.append({"file": str(open_adapter(name, **options)), "model": holds_model(name)})
    except CheckpointError as error:
        answers.append({"error": str(error)})
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Client:
    """Opens models in a process of its own, with a cache of its own."""

    url: str
    home: Path
    offline: bool = False
    bars: bool = False
    script: str = ""

    def __call__(self, *calls: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """What each call of `open_checkpoint` gave; it must print nothing."""
        answers, printed = self.run(*calls)
        assert printed == ""
        return answers

    def cached(self, model: str, cache: str = "cache/hub") -> list[str]:
        """The files of a model's commit in the cache."""
        folder = self.home.parent / cache / f"models--{model.replace('/', '--')}" / "snapshots" / COMMIT
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def run(self, *calls: tuple[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
        """What each call gave, and what was printed on standard error."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_HUB_DISABLE_PROGRESS_BARS": str(int(not self.bars))}
        env |= {"NO_PROXY": "127.0.0.1"}
        env |= {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": str(int(self.offline))}
        done = forks.run(self.script or CLIENT, json.dumps(calls), env)
        assert done.returncode == 0, done.stderr
        answers = json.loads(done.stdout)
        for (model, _), answer in zip(calls, answers, strict=True):
            if "error" in answer:
                assert answer["error"].startswith(f"{model}: ")
                assert answer["error"].isprintable()  # one line
        return answers, done.stderr


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub.url, tmp_path / "cache")


def test_what_is_downloaded(hub: Hub, client: Client) -> None:
    """The files that are needed, once; then all of it comes from the cache."""
    options = {"token": "hf_mine"}
    first, again, by_commit = client(
        ("test/tiny", options), ("test/tiny", options), ("test/tiny", options | {"revision": COMMIT})
    )
    assert client.cached("test/tiny") == NEEDED
    assert set(WEIGHTS) < set(hub.sent()) <= set(NEEDED)
    assert len(hub.sent()) == len(set(hub.sent()))
    assert {request.token for request in hub.requests} == {"hf_mine"}
    assert first == again == by_commit
    # the branch may have moved, so it is asked for again; a commit cannot
    assert [r.path for r in hub.requests if "/revision/" in r.path] == ["/api/models/test/tiny/revision/main"] * 2

    tiny = open_checkpoint("tiny")
    for component, files in first["files"].items():
        (file,) = files
        assert Path(file).read_bytes() == next(iter(tiny.tensors[component].values())).file.read_bytes()

    hub.requests.clear()
    assert client(("test/tiny", {"local_files_only": True}), ("test/tiny", {"revision": COMMIT})) == [first, first]
    offline = dataclasses.replace(client, offline=True)
    assert offline(("test/tiny", {}), ("test/tiny", {"revision": COMMIT})) == [first, first]
    assert hub.requests == []


def test_revisions_variants_and_parts(hub: Hub, client: Client, tmp_path: Path) -> None:
    (older,) = client(("test/tiny", {"revision": "v0.9"}))
    assert older["scheduler"] == "DDIMScheduler"
    assert {request.path.split("/")[-1] for request in hub.requests if "/revision/" in request.path} == {"v0.9"}
    assert all(OLDER_COMMIT in file for files in older["files"].values() for file in files)

    hub.requests.clear()
    variant, parts = client(("test/tiny", {"variant": "fp16"}), ("test/parts", {"cache_dir": str(tmp_path / "other")}))
    assert client.cached("test/tiny") == sorted([*of_variant("fp16"), *SMALL])
    assert client.cached("test/parts", "other") == sorted(
        [
            *SMALL,
            *(name for name in WEIGHTS if not name.startswith("unet/")),
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ]
    )
    assert len(parts["files"]["unet"]) == 2
    assert all(file.startswith(str(tmp_path / "other")) for file in parts["files"]["unet"])
    assert {Path(*Path(file).parts[-2:]).as_posix() for files in variant["files"].values() for file in files} == set(
        of_variant("fp16")
    )


def test_a_variant_of_some_components(hub: Hub, client: Client) -> None:
    """Of the others their plain weights are downloaded, and no more."""
    options = {"variant": "fp16"}
    ((first,), printed) = client.run(("test/some", options))
    taken = {name: [Path(file).name for file in files] for name, files in first["files"].items()}
    assert taken["vae"] == ["diffusion_pytorch_model.fp16.safetensors"]
    assert taken["unet"] == [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert taken["text_encoder"] == taken["text_encoder_2"] == ["model.safetensors"]
    assert printed.splitlines() == [
        f"test/some: no variant 'fp16' of {name}; its plain weights are taken"
        for name in ("text_encoder", "text_encoder_2")
    ]
    assert not {"vae/diffusion_pytorch_model.safetensors", "text_encoder/model.fp16.safetensors"} & set(hub.sent())
    ((again,), _) = client.run(("test/some", options | {"local_files_only": True}))
    assert again == first


def test_a_bar_for_downloads_alone(hub: Hub, client: Client) -> None:
    client = dataclasses.replace(client, bars=True)
    _, printed = client.run(("test/tiny", {}))
    assert f"Fetching {len(NEEDED)} files: 100%" in printed
    assert f"Fetching {len(SMALL)} files" not in printed
    assert client(("test/tiny", {}), ("test/tiny", {"local_files_only": True}))


def test_refusals(hub: Hub, client: Client) -> None:
    unknown = "no such model on the hub, or it is private: check the name, or pass `token`"
    gated = "access to this model must be granted on its page first; then pass `token`"
    plain, bf16 = (f"no unet/diffusion_pytorch_model{dot}.safetensors; the model may have" for dot in ("", ".bf16"))
    unreachable = (
        "the model, or some of it, is not in the local cache, and the hub gives no access (HfHubHTTPError: 403"
    )
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("test/nothing", {}, unknown),
        ("test/private", {}, unknown),
        ("test/private", {"token": "hf_wrong"}, unknown),
        ("test/gated", {}, gated),
        ("test/gated", {"token": "hf_mine"}, gated),
        ("test/tiny", {"revision": "v7"}, "no revision 'v7'"),
        ("test/tiny", {"variant": "bf16"}, f"{bf16} no variant 'bf16': leave `variant` out"),
        ("test/pickles", {}, f"{plain} only another variant, such as `variant='fp16'`, or no safetensors"),
        ("test/weights", {}, "no model_index.json; give a folder in diffusers' layout, or a .safetensors file"),
        ("test/flux", {}, "FluxPipeline is not SDXL: its unet is missing"),
        ("test/broken", {}, unreachable),
        ("test/x..y", {}, "cannot be fetched from the hub (HFValidationError: "),
    ]
    calls = [(model, options) for model, options, _ in cases]
    *answers, private = client(*calls, ("test/private", {"token": "hf_secret"}))
    for (model, _, message), answer in zip(cases, answers, strict=True):
        assert answer["error"].startswith(f"{model}: {message}")
    assert "files" in private
    assert client.cached("test/flux") == ["model_index.json"]
    assert client.cached("test/pickles") == SMALL


def test_no_network(hub: Hub, client: Client) -> None:
    nowhere = dataclasses.replace(client, url="http://127.0.0.1:9")
    offline = dataclasses.replace(client, offline=True)
    local, down = nowhere(("test/tiny", {"local_files_only": True}), ("test/tiny", {}))
    (forbidden,) = offline(("test/tiny", {}))
    assert local["error"].endswith("not in the local cache; allow a download: leave `local_files_only` out")
    assert "not in the local cache, and the hub gives no access (ConnectError: " in down["error"]
    assert forbidden["error"].endswith("not in the local cache; allow a download: unset HF_HUB_OFFLINE")
    assert hub.requests == []


def test_a_download_that_broke_off(hub: Hub, client: Client) -> None:
    (whole,) = client(("test/tiny", {}))
    lost = Path(whole["files"]["vae"][0])
    lost.unlink()
    (refused,) = client(("test/tiny", {"local_files_only": True}))
    (offline,) = dataclasses.replace(client, offline=True)(("test/tiny", {}))
    for answer in (refused, offline):
        missing = "vae/diffusion_pytorch_model.safetensors is not in the local cache; allow a download: "
        assert answer["error"].startswith(f"test/tiny: {missing}")
    assert client(("test/tiny", {})) == [whole]
    assert lost.exists()


def test_adapters(hub: Hub, client: Client) -> None:
    """One file is fetched: the one that diffusers would name so, the only one, or the one that is asked for."""
    client = dataclasses.replace(client, script=ADAPTERS)
    asked: list[tuple[str, dict[str, Any]]] = [
        ("test/lora", {}),
        ("test/single", {}),
        ("test/steps", {"weight_name": "4step.safetensors"}),
    ]
    answers = client(*asked)
    assert [Path(answer["file"]).read_bytes() for answer in answers] == [b"the one", b"deep", b"4"]
    assert not any(answer["model"] for answer in answers)
    (model,) = client(("test/tiny", {"weight_name": WEIGHTS[0]}))
    assert model["model"]
    for model in ("test/lora", "test/single", "test/steps"):
        assert len([name for name in client.cached(model) if name.endswith(".safetensors")]) == 1
        assert not [name for name in client.cached(model) if name.endswith((".bin", ".pt", ".png"))]
    hub.requests.clear()
    assert dataclasses.replace(client, offline=True)(*asked) == answers
    assert hub.requests == []


def test_adapters_that_are_not_there(hub: Hub, client: Client) -> None:
    client = dataclasses.replace(client, script=ADAPTERS)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("test/steps", {}, "has 2 .safetensors; name one as `weight_name`: 2step.safetensors, 4step.safetensors"),
        ("test/steps", {"weight_name": "9.safetensors"}, "no 9.safetensors; its .safetensors are: 2step.safetensors, "),
        ("test/pickles", {"weight_name": "a[b].safetensors"}, "no a[b].safetensors; its .safetensors are: "),
        ("test/nothing", {}, "no such model on the hub, or it is private"),
        (
            "test/lora",
            {"local_files_only": True},
            "the model, or some of it, is not in the local cache; allow a download",
        ),
    ]
    for (model, _, message), answer in zip(cases, client(*((m, o) for m, o, _ in cases)), strict=True):
        assert answer["error"].startswith(f"{model}: {message}")


def test_ip_adapters(hub: Hub, client: Client) -> None:
    """Of a repository with two encoders the one is fetched that a file reads."""
    client = dataclasses.replace(client, script=IP_CLIENT)
    plain, plus, wrong, absent = client(
        ("test/ip", {"weight_name": "sdxl_models/plain.safetensors"}),
        ("test/ip", {"weight_name": "sdxl_models/plus.safetensors"}),
        ("test/ip", {"weight_name": "sdxl_models/lora.safetensors"}),
        ("test/ip", {"weight_name": "sdxl_models/none.safetensors"}),
    )
    assert (plain["width"], plus["width"]) == (64, 32)
    assert plain["encoder"].endswith("sdxl_models/image_encoder")
    assert plus["encoder"].endswith("/models/image_encoder")
    assert (
        wrong["error"] == "test/ip: lora.safetensors: not an IP-Adapter but a LoRA, which goes on top of a checkpoint"
    )
    assert "no sdxl_models/none.safetensors; its .safetensors are: " in absent["error"]
    assert not [name for name in client.cached("test/ip") if name.endswith(".bin")]
    hub.requests.clear()
    offline = dataclasses.replace(client, offline=True)
    assert offline(("test/ip", {"weight_name": "sdxl_models/plus.safetensors"})) == [plus]
    assert hub.requests == []
