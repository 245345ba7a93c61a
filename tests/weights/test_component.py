"""A VAE or a U-Net named on its own: every form it comes in, and one clear line for what is none."""

import dataclasses
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_sdxl import (
    FAMILIES,
    UNET,
    VAE,
    Model,
    State,
    modules,
    original_unet,
    original_vae,
    random_state,
    write_model,
)
from safetensors.numpy import save
from safetensors.torch import save_file

from jaxl.config import TinyVAEConfig, UNetConfig, VAEConfig, read_vae_config
from jaxl.errors import CheckpointError
from jaxl.weights.source import open_checkpoint, open_unet, open_vae, with_unet, with_vae

TENSORS = {"decoder.conv_in.weight": np.arange(6, dtype=np.float16)}
KL = {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025, "force_upcast": False}
SMALL = {"_class_name": "AutoencoderTiny"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_folder(folder: Path, config: dict[str, Any], weights: str = WEIGHTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(save(TENSORS))
    return folder


def refusal(name: Path | str, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_vae(name, **options)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert message.isprintable()  # one line
    return message.removeprefix(f"{name}: ")


@pytest.mark.parametrize("config", [KL, SMALL])
def test_folders(tmp_path: Path, config: dict[str, Any]) -> None:
    own = write_folder(tmp_path / "own", config)
    write_folder(tmp_path / "pipeline" / "vae", config)
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    for folder in (own, tmp_path / "pipeline"):
        vae = open_vae(folder)
        assert (vae.source, vae.config) == (str(folder), config)
        assert vae.tensors.keys() == TENSORS.keys()
    other = write_folder(tmp_path / "variant", config, "diffusion_pytorch_model.fp16.safetensors")
    assert open_vae(other, variant="fp16").tensors.keys() == TENSORS.keys()
    assert open_vae(own, variant="fp16").tensors.keys() == TENSORS.keys()  # there is no other
    assert refusal(other) == f"no vae/{WEIGHTS}; pass `variant='fp16'`"


def test_the_embedded_one() -> None:
    vae = open_vae("tiny")
    checkpoint = open_checkpoint("tiny")
    assert (vae.source, vae.config, vae.tensors) == ("tiny", checkpoint.configs["vae"], checkpoint.tensors["vae"])


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_single_files(tmp_path: Path, prefix: str) -> None:
    module = modules(FAMILIES["base"])["vae"]
    state = random_state(module, seed=3)
    leftovers = {f"{prefix}loss.logvar": torch.zeros(()), f"{prefix}model_ema.decay": torch.zeros(())}
    file = tmp_path / "vae.safetensors"
    save_file({prefix + key: value for key, value in original_vae(state).items()} | leftovers, file)
    vae = open_vae(file)
    cfg = read_vae_config(vae.config)
    assert isinstance(cfg, VAEConfig)
    assert (cfg.channels, cfg.scaling_factor, cfg.force_upcast) == (tuple(VAE["block_out_channels"]), 0.13025, True)
    assert vae.tensors.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(vae.tensors[key].read(), value.numpy(), err_msg=key)


def test_a_whole_checkpoint_in_one_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "base")
    whole = open_checkpoint(model.file)
    vae = open_vae(model.file)
    assert (vae.config, vae.tensors) == (whole.configs["vae"], whole.tensors["vae"])
    assert with_vae(whole, vae).tensors == whole.tensors


def test_another_vae_in_a_checkpoint(tmp_path: Path) -> None:
    tiny = open_checkpoint("tiny")
    levels = {"block_out_channels": [8] * 4, "norm_num_groups": 8} | {
        f"{way}_block_types": [f"{way.title()}{side}Block2D"] * 4
        for way, side in (("down", "Encoder"), ("up", "Decoder"))
    }
    fixed = open_vae(write_folder(tmp_path / "fixed", KL | levels))
    small = open_vae(write_folder(tmp_path / "small", SMALL))
    other = with_vae(tiny, fixed)
    assert (other.configs["vae"], other.tensors["vae"]) == (fixed.config, fixed.tensors)
    assert other.tensors["unet"] == tiny.tensors["unet"]
    replaced = with_vae(tiny, small)
    assert isinstance(read_vae_config(replaced.configs["vae"]), TinyVAEConfig)
    assert replaced.configs["model_index"]["vae"] == ["diffusers", "AutoencoderTiny"]
    watched = with_vae(tiny, small, "preview")
    assert watched.tensors == {**tiny.tensors, "preview": small.tensors}
    assert watched.configs == {**tiny.configs, "preview": small.config}
    with pytest.raises(CheckpointError, match="fixed: an AutoencoderKL is too slow for previews; give an AutoencoderT"):
        with_vae(tiny, fixed, "preview")
    for config, field in (
        (KL | levels | {"scaling_factor": 0.18215}, "scaling_factor=0.18215, not 0.13025"),
        (KL | levels | {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, r"latents_mean=\(0.0, .*, not None"),
        (KL | levels | {"latent_channels": 16}, "latent_channels=16, not 4"),
        (SMALL | {"latent_channels": 16}, "latent_channels=16, not 4"),
        (KL, "factor=1, not 8"),
    ):
        vae = open_vae(write_folder(tmp_path / "other", config))
        with pytest.raises(CheckpointError, match=f"other: its latents are not those of tiny: {field}"):
            with_vae(tiny, vae)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return write_model(tmp_path_factory.mktemp("base") / "model.safetensors", "base")


def another_unet(family: str = "base") -> State:
    return random_state(modules(FAMILIES[family])["unet"], seed=7)


def assert_same(tensors: Any, state: State) -> None:
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(tensors[key].read(), value.numpy(), err_msg=key)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "unet."])
@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_a_unet_in_a_file(tmp_path: Path, base: Model, names: str, prefix: str) -> None:
    """As SDXL-Lightning's are published, and as ComfyUI saves them."""
    state, file = another_unet(), tmp_path / "sdxl_lightning_4step_unet.safetensors"
    named = original_unet(state, UNET) if names == "original" else state
    save_file({prefix + key: value for key, value in named.items()}, file)
    checkpoint = open_checkpoint(base.file)
    replaced = with_unet(checkpoint, open_unet(file, checkpoint))
    assert_same(replaced.tensors["unet"], state)
    assert replaced.configs == checkpoint.configs
    assert (replaced.source_of("unet"), replaced.source_of("vae")) == (str(file), str(base.file))
    marked = names == "original" and prefix == "model.diffusion_model."
    message = "no text_encoder" if marked else "not an SDXL checkpoint but a U-Net"
    with pytest.raises(CheckpointError, match=f"{message}.*; give it as `unet`, with a whole SDXL as `model`"):
        open_checkpoint(file)


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("family", ["ssd-1b", "koala", "vega", "inpainting"])
def test_a_unet_of_another_structure(tmp_path: Path, base: Model, names: str, family: str) -> None:
    raw, state, file = FAMILIES[family], another_unet(family), tmp_path / "unet.safetensors"
    save_file(original_unet(state, raw) if names == "original" else state, file)
    unet = open_unet(file, open_checkpoint(base.file))
    assert UNetConfig.from_json(unet.config) == UNetConfig.from_json(raw)
    assert_same(unet.tensors, state)


def test_a_unet_that_was_distilled_with_guidance(tmp_path: Path, base: Model) -> None:
    file = tmp_path / "unet.safetensors"
    save_file(another_unet() | {"time_embedding.cond_proj.weight": torch.zeros(64, 32)}, file)
    assert open_unet(file, open_checkpoint(base.file)).config["time_cond_proj_dim"] == 32


@pytest.mark.parametrize(
    ("name", "mark", "prediction"),
    [("unet", "v_pred", "v_prediction"), ("sdxl_lightning_1step_unet_x0", "ztsnr", "sample"), ("unet", "logvar", None)],
)
def test_what_a_unet_predicts(tmp_path: Path, base: Model, name: str, mark: str, prediction: str | None) -> None:
    """What its file says; where it says nothing, what the checkpoint does."""
    file, own = tmp_path / f"{name}.safetensors", open_checkpoint(base.file)
    save_file(another_unet() | {mark: torch.zeros(0)}, file)
    scheduler = {**own.configs["scheduler"], "prediction_type": "other"}
    checkpoint = dataclasses.replace(own, configs={**own.configs, "scheduler": scheduler})
    replaced = with_unet(checkpoint, open_unet(file, checkpoint))
    assert replaced.configs["scheduler"]["prediction_type"] == (prediction or "other")
    assert (replaced.predicts_by == checkpoint.predicts_by) == (prediction is None)


def test_the_unet_of_a_whole_model(tmp_path: Path, base: Model) -> None:
    other = write_model(tmp_path / "other.safetensors", "base")
    assert_same(open_unet(other.file, open_checkpoint(base.file)).tensors, other.states["unet"])
    tiny = open_checkpoint("tiny")
    unet = open_unet("tiny", tiny)
    assert (unet.source, unet.config, unet.tensors) == ("tiny", tiny.configs["unet"], tiny.tensors["unet"])


def test_what_no_shape_tells_is_the_checkpoints(tmp_path: Path, base: Model) -> None:
    checkpoint = open_checkpoint(base.file)
    small = {**checkpoint.configs, "unet": {**checkpoint.configs["unet"], "sample_size": 64}}
    checkpoint = dataclasses.replace(checkpoint, configs=small)
    assert open_unet(base.file, checkpoint).config["sample_size"] == 64


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("lora_unet_x.lora_up.weight",), "not a U-Net of SDXL but a LoRA"),
        (("controlnet_cond_embedding.x", "down_blocks.0.x", "add_embedding.x"), "not a U-Net of SDXL but a ControlNet"),
        (("down_blocks.0.resnets.0.conv1.weight",), "not a U-Net of SDXL but a U-Net in diffusers names alone; SDXL's"),
        (("encoder.down.0.block.0.conv1.weight",), "not a U-Net of SDXL but a VAE alone; give it as `vae`"),
        (("label_emb.0.0.weight", "input_blocks.0.0.weight"), "unet: "),
        (("label_emb.0.0.weight", "input_blocks.0.0.weight", "edm_mean"), "its latents are those of Playground v2.5"),
        (("add_embedding.linear_1.weight", "down_blocks.0.x"), "unet: down_blocks.0.resnets.0.conv1.weight is missing"),
        ((), "not a U-Net of SDXL but empty"),
    ],
)
def test_files_without_a_unet(tmp_path: Path, base: Model, keys: tuple[str, ...], message: str) -> None:
    file = tmp_path / "unet.safetensors"
    save_file({key: torch.zeros(2, 2) for key in keys}, file)
    with pytest.raises(CheckpointError) as caught:
        open_unet(file, open_checkpoint(base.file))
    assert str(caught.value).startswith(f"{file}: {message}")


def test_folders_without_a_unet(tmp_path: Path) -> None:
    vae = write_folder(tmp_path / "vae", KL)
    with pytest.raises(CheckpointError, match="AutoencoderKL is not a U-Net that jaxl runs, only UNet"):
        open_unet(vae, open_checkpoint("tiny"))


def test_refused_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").startswith("no VAE there; give a folder with its config.json")
    (tmp_path / "no-vae").mkdir()
    (tmp_path / "no-vae" / "model_index.json").write_text("{}")
    assert refusal(tmp_path / "no-vae").startswith("no VAE there")
    for config, kind in (
        ({"_class_name": "VQModel"}, "VQModel"),
        ({"architectures": ["CLIPModel"]}, "CLIPModel"),
        ({}, "a network without a class name"),
    ):
        wanted = f"{kind} is not a VAE that jaxl runs, only AutoencoderKL and AutoencoderTiny are"
        assert refusal(write_folder(tmp_path / "other", config)) == wanted
    pickled = write_folder(tmp_path / "pickled", KL, "diffusion_pytorch_model.bin")
    assert refusal(pickled).startswith(f"no vae/{WEIGHTS}; jaxl does not open pickles")
    assert refusal("nowhere/at/all").startswith("no such file or folder")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ("encoder.down_blocks.0.resnets.0.conv1.weight",),
            "not a VAE in the original layout but a VAE in diffusers n",
        ),
        (("lora_unet_x.lora_up.weight",), "not a VAE in the original layout but a LoRA"),
        (("1.weight", "3.bias"), "not a VAE in the original layout but a file of 1.weight, 3.bias"),
        ((), "not a VAE in the original layout but empty"),
        (
            ("model.diffusion_model.label_emb.0.0.weight",),
            "not a VAE in the original layout but an SDXL checkpoint without one",
        ),
        (
            ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.down.0.block.0.conv1.weight"),
            "not an SDXL checkpoint but a Stable Diffusion 1 or 2 checkpoint",
        ),
        (("encoder.down.0.block.0.conv1.weight",), "vae: encoder.conv_in.weight is missing"),
    ],
)
def test_refused_files(tmp_path: Path, keys: tuple[str, ...], message: str) -> None:
    file = tmp_path / "model.safetensors"
    save_file({key: torch.zeros(2, 2) for key in keys}, file)
    assert refusal(file).startswith(message)


def test_tensors_that_no_vae_has(tmp_path: Path) -> None:
    state = original_vae(random_state(modules(FAMILIES["base"])["vae"], seed=3))
    file = tmp_path / "vae.safetensors"
    save_file(state | {"encoder.more": torch.zeros(1)}, file)
    assert refusal(file) == "encoder.more is not a tensor of SDXL"
    pickle = tmp_path / "vae.pt"
    pickle.touch()
    assert refusal(pickle).startswith("jaxl does not open pickles")


CLIENT = """
import json, sys
from jaxl.errors import CheckpointError
from jaxl.weights.source import open_vae

answers = []
for name, options in json.load(sys.stdin):
    try:
        vae = open_vae(name, **options)
    except CheckpointError as error:
        answers.append({"error": str(error)})
    else:
        answers.append({"source": vae.source, "class": vae.config["_class_name"], "tensors": list(vae.tensors)})
json.dump(answers, sys.stdout)
"""


@pytest.fixture
def hub_tests(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of test_hub.py, for its server and its client, which opens VAEs here."""
    spec = importlib.util.spec_from_file_location("hub_of_vaes", Path(__file__).with_name("test_hub.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hub_of_vaes", module)  # dataclasses look there
    spec.loader.exec_module(module)
    module.CLIENT = CLIENT
    return module


@pytest.fixture
def hub(hub_tests: Any) -> Iterator[Any]:
    attributes, weights = {".gitattributes": b""}, save(TENSORS)
    decoys = {"sdxl_vae.safetensors": b"", "diffusion_pytorch_model.bin": b"", "images/a.png": b""}
    repo = {
        "test/fix": attributes | decoys | {"config.json": json.dumps(KL).encode(), WEIGHTS: weights},
        "test/unet": attributes | {"config.json": b'{"_class_name": "UNet2DConditionModel"}', WEIGHTS: weights},
        "test/taesdxl": attributes | {"config.json": json.dumps(SMALL).encode(), WEIGHTS: weights},
        "test/tiny": hub_tests.TINY,
        "test/clip": attributes | {"config.json": b'{"architectures": ["CLIPModel"]}', WEIGHTS: weights},
        "test/pickles": attributes | {"config.json": json.dumps(KL).encode(), "diffusion_pytorch_model.bin": b""},
    }
    server = hub_tests.Hub({name: hub_tests.Repo({hub_tests.COMMIT: files}) for name, files in repo.items()})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub(hub_tests: Any, hub: Any, tmp_path: Path) -> None:
    client = hub_tests.Client(hub.url, tmp_path / "cache")
    names = ["test/fix", "test/taesdxl", "test/tiny", "test/clip", "test/pickles", "test/nothing"]
    fix, small, tiny, clip, pickles, nothing = client(*((name, {}) for name in names))
    assert fix == {"source": "test/fix", "class": "AutoencoderKL", "tensors": list(TENSORS)}
    assert small == {"source": "test/taesdxl", "class": "AutoencoderTiny", "tensors": list(TENSORS)}
    assert len(tiny["tensors"]) == len(open_vae("tiny").tensors)
    assert clip["error"].startswith("test/clip: CLIPModel is not a VAE that jaxl runs")
    assert pickles["error"].startswith(f"test/pickles: no vae/{WEIGHTS}; ")
    assert nothing["error"].startswith("test/nothing: no such model on the hub")
    # of each, no more than the VAE
    assert client.cached("test/fix") == [".gitattributes", "config.json", WEIGHTS]
    assert client.cached("test/tiny") == [".gitattributes", "model_index.json", "vae/config.json", f"vae/{WEIGHTS}"]
    assert client.cached("test/clip") == [".gitattributes", "config.json"]
    local = {"local_files_only": True}
    assert client(("test/fix", local), ("test/tiny", local | {"revision": hub_tests.COMMIT})) == [fix, tiny]
