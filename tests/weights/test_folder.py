"""Folders in diffusers' layout: which files are read, and one clear line for each thing that can be wrong."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxl.errors import CheckpointError
from jaxl.weights.source import EMBEDDED, open_checkpoint

SDXL: dict[str, Any] = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0",
    "feature_extractor": [None, None],
    "force_zeros_for_empty_prompt": True,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
REFINER = SDXL | {
    "_class_name": "StableDiffusionXLImg2ImgPipeline",
    "text_encoder": [None, None],
    "tokenizer": [None, None],
}
TENSORS = {name: np.arange(i + 2, dtype=np.float16) for i, name in enumerate(("first.weight", "second.weight"))}
WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}


def write_json(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_weights(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Text encoders have an outer name around all of their tensors."""
    prefix = "text_model." if file.parent.name.startswith("text_encoder") else ""
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, file)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with all that SDXL has; the networks have two tensors each."""
    folder = tmp_path / "model"
    write_json(folder / "model_index.json", SDXL)
    write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"})
    for component, stem in WEIGHTS.items():
        write_json(folder / component / "config.json", {"of": component})
        write_weights(folder / component / f"{stem}.safetensors", TENSORS)
    return folder


def keys(component: str) -> set[str]:
    return {f"text_model.{key}" if component.startswith("text_encoder") else key for key in TENSORS}


def split(folder: Path, component: str, variant: str = "") -> Path:
    """The weights in two files and a list of them, as diffusers and transformers name them; the list is returned."""
    dot, stem = f".{variant}" if variant else "", WEIGHTS[component]
    (folder / component / f"{stem}.safetensors").unlink()
    places = {}
    for i, (key, tensor) in enumerate(TENSORS.items()):
        name = f"{stem}{dot}-0000{i + 1}-of-00002.safetensors"
        write_weights(folder / component / name, {key: tensor})
        places[key] = name
    index = folder / component / f"{stem}.safetensors.index{dot}.json"
    write_json(index, {"metadata": {"total_size": 10}, "weight_map": places})
    return index


def refusal(folder: Path | str, **kwargs: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder, **kwargs)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert message.isprintable()  # one line
    return message.removeprefix(str(folder)).removeprefix(": ")


def test_the_embedded_model() -> None:
    tiny = open_checkpoint("tiny")
    assert tiny.source == "tiny"
    assert tiny.tensors.keys() == WEIGHTS.keys()
    assert tiny.configs.keys() == {*WEIGHTS, "scheduler", "model_index"}
    assert tiny.tokenizers == {name: EMBEDDED["tiny"] / name for name in ("tokenizer", "tokenizer_2")}
    assert open_checkpoint(EMBEDDED["tiny"]).tensors == tiny.tensors


def test_whole_files(model: Path) -> None:
    for named in (model, str(model)):
        opened = open_checkpoint(named)
        assert opened.source == str(model)
        assert opened.configs["model_index"] == SDXL
        assert opened.configs["vae"] == {"of": "vae"}
        assert {name: set(tensors) for name, tensors in opened.tensors.items()} == {c: keys(c) for c in WEIGHTS}
        assert opened.files() == sorted(model / c / f"{stem}.safetensors" for c, stem in WEIGHTS.items())


def test_a_home_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))
    assert open_checkpoint("~/model").tensors == open_checkpoint(model).tensors
    assert refusal("~nobody-of-that-name/model").startswith("no such file or folder")


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_split_files(model: Path, variant: str) -> None:
    for component in WEIGHTS:
        split(model, component, variant)
    opened = open_checkpoint(model, variant=variant or None)
    for component in WEIGHTS:
        tensors = opened.tensors[component]
        assert tensors.keys() == keys(component)
        assert len({tensor.file for tensor in tensors.values()}) == 2
        for key, wanted in TENSORS.items():
            found = tensors.get(key) or tensors[f"text_model.{key}"]
            np.testing.assert_array_equal(found.read(), wanted)


def test_a_variant_beside_the_plain_weights(model: Path) -> None:
    for component, stem in WEIGHTS.items():
        write_weights(model / component / f"{stem}.fp16.safetensors", TENSORS)
    plain = open_checkpoint(model).files()
    variant = open_checkpoint(model, variant="fp16").files()
    assert [file.name.replace(".fp16", "") for file in variant] == [file.name for file in plain]
    assert not set(plain) & set(variant)


@pytest.mark.parametrize("variant", ["fp16", None])
def test_a_variant_of_some_components(model: Path, variant: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """The plain weights of the others, in one file or in parts, and a word about it."""
    split(model, "text_encoder_2")
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(
        model / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    )
    if variant is None:  # the remedy works
        wanted = "no unet/diffusion_pytorch_model.safetensors; pass `variant='fp16'`"
        assert refusal(model) == wanted
        return
    opened = open_checkpoint(model, variant=variant)
    assert {name: set(tensors) for name, tensors in opened.tensors.items()} == {c: keys(c) for c in WEIGHTS}
    assert [record.getMessage() for record in caplog.records] == [
        f"{model}: no variant 'fp16' of {name}; its plain weights are taken" for name in WEIGHTS if name != "unet"
    ]


def test_remedies_for_missing_weights(model: Path) -> None:
    vae = model / "vae"
    file = vae / "diffusion_pytorch_model.safetensors"
    missing = "no vae/diffusion_pytorch_model"

    for component in ("unet", "text_encoder", "text_encoder_2"):
        stem = WEIGHTS[component]
        (model / component / f"{stem}.fp16.safetensors").hardlink_to(model / component / f"{stem}.safetensors")
    assert refusal(model, variant="bf16") == (
        "no unet/diffusion_pytorch_model.bf16.safetensors; leave `variant` out or pass `variant='fp16'`"
    )

    file.rename(vae / "diffusion_pytorch_model.fp16.safetensors")
    assert refusal(model) == f"{missing}.safetensors; pass `variant='fp16'`"

    (vae / "diffusion_pytorch_model.fp16.safetensors").rename(
        vae / "diffusion_pytorch_model-00001-of-00002.safetensors"
    )
    lost = "its parts are there, but not diffusion_pytorch_model.safetensors.index.json"
    assert refusal(model) == f"{missing}.safetensors; {lost}"

    (vae / "diffusion_pytorch_model-00001-of-00002.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    assert refusal(model).startswith(f"{missing}.safetensors; jaxl does not open pickles")

    (vae / "diffusion_pytorch_model.bin").rename(vae / "sdxl_vae.safetensors")
    assert refusal(model).startswith(f"{missing}.safetensors; the model may have only another variant")
    assert refusal(model, variant="fp16").startswith(f"{missing}.fp16.safetensors; the model may have no variant")


def test_the_refiner(model: Path) -> None:
    write_json(model / "model_index.json", REFINER)
    opened = open_checkpoint(model)
    assert opened.tensors.keys() == {"unet", "vae", "text_encoder_2"}
    assert opened.configs.keys() == {"unet", "vae", "text_encoder_2", "scheduler", "model_index"}
    assert opened.tokenizers == {"tokenizer_2": model / "tokenizer_2"}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {
                "_class_name": "StableDiffusionPipeline",
                "feature_extractor": ["transformers", "CLIPImageProcessor"],
                "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
                **{name: SDXL[name] for name in ("scheduler", "text_encoder", "tokenizer", "unet", "vae")},
            },
            "StableDiffusionPipeline is not SDXL: its text_encoder_2 is missing, not CLIPTextModelWithProjection",
        ),
        (
            {
                "_class_name": "FluxPipeline",
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "text_encoder_2": ["transformers", "T5EncoderModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "tokenizer_2": ["transformers", "T5TokenizerFast"],
                "transformer": ["diffusers", "FluxTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
            "FluxPipeline is not SDXL: its unet is missing, not UNet2DConditionModel",
        ),
        (
            {
                "_class_name": "StableDiffusion3Pipeline",
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
                "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
                "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
                "text_encoder_3": ["transformers", "T5EncoderModel"],
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
            "StableDiffusion3Pipeline is not SDXL: its unet is missing, not UNet2DConditionModel",
        ),
        (
            SDXL | {"_class_name": "KolorsPipeline", "text_encoder": ["kolors", "ChatGLMModel"]},
            "KolorsPipeline is not SDXL: its text_encoder is ChatGLMModel, not CLIPTextModel",
        ),
        (
            SDXL | {"vae": ["diffusers", "AutoencoderKLWan"]},
            "StableDiffusionXLPipeline is not SDXL: its vae is AutoencoderKLWan, not AutoencoderKL",
        ),
        (
            SDXL
            | {"_class_name": "StableDiffusionXLControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]},
            "StableDiffusionXLControlNetPipeline has a controlnet, which jaxl does not run",
        ),
        (
            REFINER | {"tokenizer_2": [None, None]},
            "StableDiffusionXLImg2ImgPipeline has a text_encoder_2, but no token",
        ),
        ({}, "an unnamed pipeline is not SDXL: its unet is missing"),
        (SDXL | {"unet": "UNet2DConditionModel"}, "StableDiffusionXLPipeline is not SDXL: its unet is missing"),
        ([], "/model_index.json: corrupt, a JSON object was expected"),
    ],
)
def test_other_pipelines(model: Path, index: Any, message: str) -> None:
    write_json(model / "model_index.json", index)
    assert refusal(model).startswith(message)


def test_nothing_there(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("no model_index.json; give a folder in diffusers' layout, or a .safetensors")
    for name in (
        tmp_path / "nowhere",
        "./nowhere",
        "nowhere",
        "a/b/c",
        tmp_path / "model.safetensors",
        "https://x.y/z",
    ):
        message = refusal(name)
        assert message == "no such file or folder; give one, a hub id (owner/name), or 'tiny'"


@pytest.mark.parametrize(
    "lost", ["scheduler/scheduler_config.json", "unet/config.json", "text_encoder_2/config.json", "model_index.json"]
)
def test_a_missing_config(model: Path, lost: str) -> None:
    (model / lost).unlink()
    assert lost in refusal(model)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".pth", ".pkl", ".PT"])
def test_pickles(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"sd_xl_base_1.0{suffix}"
    file.write_bytes(b"\x80\x02}.")
    assert refusal(file).startswith("jaxl does not open pickles, which can run code")
    assert refusal(tmp_path / f"nowhere{suffix}").startswith("jaxl does not open pickles, which can run code")


def test_another_kind_of_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert refusal(file) == "not a .safetensors file"


def test_a_damaged_file_is_named(model: Path) -> None:
    file = model / "text_encoder" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert refusal(model).startswith("/text_encoder/model.safetensors: truncated")
    file.write_bytes(whole[:100])
    assert refusal(model).startswith("/text_encoder/model.safetensors: truncated within the header")
    file.write_bytes(b"garbage " * 100)
    assert refusal(model).startswith("/text_encoder/model.safetensors: not a safetensors file")


def test_a_tensor_in_two_parts(model: Path) -> None:
    split(model, "unet")
    write_weights(model / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors", TENSORS)
    assert refusal(model) == (
        "unet: first.weight is both in diffusion_pytorch_model-00001-of-00002.safetensors "
        "and in diffusion_pytorch_model-00002-of-00002.safetensors"
    )


def test_a_missing_part(model: Path) -> None:
    split(model, "unet")
    (model / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    assert refusal(model) == "/unet/diffusion_pytorch_model-00002-of-00002.safetensors: no such file"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "corrupt, it has no weight_map"),
        ({"weight_map": {}}, "corrupt, it has no weight_map"),
        ({"weight_map": ["a"]}, "corrupt, it has no weight_map"),
        (
            {"weight_map": {"a": "../x.safetensors"}},
            "'../x.safetensors' is not the name of a safetensors file beside it",
        ),
        ({"weight_map": {"a": "/x.safetensors"}}, "'/x.safetensors' is not the name of a safetensors file beside it"),
        ({"weight_map": {"a": "x.bin"}}, "'x.bin' is not the name of a safetensors file beside it"),
        ({"weight_map": {"a": ".."}}, "'..' is not the name of a safetensors file beside it"),
        ({"weight_map": {"a": None}}, "'None' is not the name of a safetensors file beside it"),
    ],
)
def test_a_damaged_list_of_parts(model: Path, content: Any, message: str) -> None:
    index = split(model, "text_encoder_2")
    write_json(index, content)
    assert refusal(model) == f"/text_encoder_2/{index.name}: {message}"


def test_attention_of_an_early_vae(model: Path) -> None:
    attention = "decoder.mid_block.attentions.0."
    old = ("query.weight", "key.bias", "value.weight", "proj_attn.weight", "group_norm.weight")
    new = ("to_q.weight", "to_k.bias", "to_v.weight", "to_out.0.weight", "group_norm.weight")
    tensors = {attention + name: np.full(1, i, np.float32) for i, name in enumerate(old)}
    save_file(tensors, model / "vae" / "diffusion_pytorch_model.safetensors")
    opened = open_checkpoint(model).tensors["vae"]
    assert {key: float(tensor.read()[0]) for key, tensor in opened.items()} == {
        attention + name: i for i, name in enumerate(new)
    }


def test_a_vae_key_under_its_old_and_its_new_name(model: Path) -> None:
    """One of the two would win silently."""
    attention, one = "decoder.mid_block.attentions.0.", np.zeros(1, np.float32)
    names = ("query.weight", "to_q.weight")
    save_file({attention + name: one for name in names}, model / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"query\.weight and .*to_q\.weight are the same tensor"):
        open_checkpoint(model)


def test_text_encoders_without_their_outer_name(model: Path) -> None:
    one = np.zeros(1, np.float32)
    save_file({"embeddings.x": one, "text_projection.weight": one}, model / "text_encoder_2" / "model.safetensors")
    opened = open_checkpoint(model).tensors["text_encoder_2"]
    assert opened.keys() == {"text_model.embeddings.x", "text_projection.weight"}
