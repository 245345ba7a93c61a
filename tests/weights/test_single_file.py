"""Single files in the original SDXL layout: every family, every tensor, every refusal."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers
from original_sdxl import FAMILIES, UNET, Model, State, original_openclip, original_unet, shapes, write_model
from safetensors.torch import save_file

from jaxl.config import TextConfig, UNetConfig, VAEConfig
from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.schedule import EDM
from jaxl.errors import CheckpointError
from jaxl.nn.clip import clip_shapes
from jaxl.nn.unet import unet_shapes
from jaxl.nn.vae import vae_shapes
from jaxl.run.model import Model as ModelConfigs
from jaxl.weights.folder import Part
from jaxl.weights.original_layout import openclip_layout
from jaxl.weights.original_unet import unet_layout
from jaxl.weights.single_file import read_single_file
from jaxl.weights.source import with_vae

SDXL_UNET: dict[str, Any] = UNET | {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER_UNET: dict[str, Any] = FAMILIES["refiner"] | {
    "block_out_channels": [384, 768, 1536, 1536],
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2560,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A model of each family, written once."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda family: write_model(folder / f"{family}.safetensors", family))


@pytest.fixture(scope="module")
def base(written: Callable[[str], Model]) -> State:
    """The tensors of a base model's file."""
    return written("base").tensors


def write(folder: Path, tensors: State) -> Path:
    file = folder / "model.safetensors"
    save_file(tensors, file)
    return file


def tensors_of(*keys: str) -> State:
    return {key: torch.zeros(2, 2) for key in keys}


def tree_keys(tree: Any) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        yield ".".join(entry.key for entry in path)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_every_family(written: Callable[[str], Model], family: str) -> None:
    model = written(family)
    checkpoint = read_single_file(model.file)
    assert checkpoint.source == str(model.file)
    assert checkpoint.tensors.keys() == model.states.keys()
    for component, state in model.states.items():
        tensors = checkpoint.tensors[component]
        assert tensors.keys() == state.keys()
        for key, value in state.items():
            assert tensors[key].shape == tuple(value.shape), key
            np.testing.assert_array_equal(tensors[key].read(), value.numpy(), err_msg=key)


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_open_in_jaxl_and_in_diffusers(written: Callable[[str], Model], family: str) -> None:
    model = written(family)
    configs: dict[str, Any] = json.loads(json.dumps(read_single_file(model.file).configs))
    unet = UNetConfig.from_json(configs["unet"])
    reference: Any = model.networks["unet"]
    assert unet == UNetConfig.from_json(dict(reference.config))

    trees = {"unet": unet_shapes(unet), "vae": vae_shapes(VAEConfig.from_json(configs["vae"]))}
    encoders: dict[str, Any] = {
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    with torch.device("meta"):
        opened: dict[str, torch.nn.Module] = {
            "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
        }
        for name in encoders.keys() & model.networks.keys():
            opened[name] = encoders[name](transformers.CLIPTextConfig(**configs[name]))
            trees[name] = clip_shapes(TextConfig.from_json(configs[name]))
    assert opened.keys() == model.networks.keys()
    for name, network in model.networks.items():
        assert shapes(opened[name]) == shapes(network)
        assert set(tree_keys(trees[name])) == shapes(network).keys()


def test_hyperparameters_that_no_shape_tells(written: Callable[[str], Model]) -> None:
    configs = read_single_file(written("base").file).configs
    text = TextConfig.from_json(configs["text_encoder"])
    assert (text.heads, text.activation, text.projection_dim, text.eos_token_id) == (1, "quick_gelu", None, None)
    text = TextConfig.from_json(configs["text_encoder_2"])
    assert (text.heads, text.activation, text.projection_dim, text.eos_token_id) == (2, "gelu", 96, None)
    vae = configs["vae"]
    assert (vae["scaling_factor"], vae["force_upcast"], vae["sample_size"]) == (0.13025, True, 1024)


@pytest.mark.parametrize(
    ("raw", "projection_dim", "time_ids", "parameters"),
    [(SDXL_UNET, 1280, 6, 2_567_463_684), (REFINER_UNET, 1280, 5, None)],
    ids=["base", "refiner"],
)
def test_full_size_unet(raw: dict[str, Any], projection_dim: int, time_ids: int, parameters: int | None) -> None:
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel(**raw)
    state = reference.state_dict()
    layout = unet_layout(
        {key: tuple(value.shape) for key, value in original_unet(state, raw).items()}, projection_dim, time_ids
    )
    assert {name for key in original_unet(state, raw) for name in layout.names[key]} == state.keys()
    config = UNetConfig.from_json(layout.config)
    assert config == UNetConfig.from_json(dict(reference.config))
    if parameters is not None:
        assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(unet_shapes(config))) == parameters


def test_full_size_text_encoder_2() -> None:
    wanted = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
    wanted |= {"hidden_act": "gelu", "projection_dim": 1280, "vocab_size": 49408, "max_position_embeddings": 77}
    with torch.device("meta"):
        state = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**wanted)).state_dict()
        state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
        old = {key: tuple(value.shape) for key, value in original_openclip(state).items()}
    layout = openclip_layout(old)
    assert wanted.items() <= layout.config.items()
    assert {name for key in old for name in layout.names[key]} == state.keys()


def test_base_pipeline_and_scheduler(written: Callable[[str], Model]) -> None:
    checkpoint = read_single_file(written("base").file)
    index, scheduler = checkpoint.configs["model_index"], checkpoint.configs["scheduler"]
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert checkpoint.tokenizers == {"tokenizer": None, "tokenizer_2": None}
    opened = diffusers.EulerDiscreteScheduler.from_config(dict(scheduler))
    assert opened.config["prediction_type"] == "epsilon"
    assert opened.config["timestep_spacing"] == "leading"
    assert opened.config["rescale_betas_zero_snr"] is False
    assert (opened.config["beta_start"], opened.config["beta_end"]) == (0.00085, 0.012)


def test_refiner_pipeline(written: Callable[[str], Model]) -> None:
    checkpoint = read_single_file(written("refiner").file)
    index = checkpoint.configs["model_index"]
    assert index["_class_name"] == "StableDiffusionXLImg2ImgPipeline"
    assert index["requires_aesthetics_score"] is True
    assert index["force_zeros_for_empty_prompt"] is False
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert "text_encoder" not in checkpoint.configs
    assert checkpoint.tokenizers == {"tokenizer_2": None}


def test_inpainting_pipeline(written: Callable[[str], Model]) -> None:
    index = read_single_file(written("inpainting").file).configs["model_index"]
    assert index["_class_name"] == "StableDiffusionXLInpaintPipeline"


@pytest.mark.parametrize(
    ("marks", "prediction", "rescaled"),
    [(("v_pred",), "v_prediction", False), (("v_pred", "ztsnr"), "v_prediction", True), (("ztsnr",), "epsilon", False)],
)
def test_marks_of_velocity_prediction(
    tmp_path: Path, base: State, marks: tuple[str, ...], prediction: str, rescaled: bool
) -> None:
    file = write(tmp_path, base | {mark: torch.zeros(0) for mark in marks})
    scheduler = read_single_file(file).configs["scheduler"]
    assert scheduler["prediction_type"] == prediction
    assert scheduler["rescale_betas_zero_snr"] is rescaled


def test_leftovers_change_nothing(tmp_path: Path, written: Callable[[str], Model]) -> None:
    leftovers = tensors_of(
        "model_ema.decay",
        "model_ema.diffusion_modelinput_blocks00weight",
        "denoiser.sigmas",
        "alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_mean_coef2",
        "first_stage_model.loss.logvar",
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.0.transformer.text_projection.weight",
        "conditioner.embedders.1.model.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    )
    model = written("base")
    plain, littered = read_single_file(model.file), read_single_file(write(tmp_path, model.tensors | leftovers))
    assert littered.configs == plain.configs
    for component, tensors in plain.tensors.items():
        sources = {name: tensor.key for name, tensor in tensors.items()}
        assert {name: tensor.key for name, tensor in littered.tensors[component].items()} == sources


def test_without_a_vae(tmp_path: Path, written: Callable[[str], Model]) -> None:
    """It opens, for a VAE to be put in; without one there is no model."""
    model = written("base")
    whole = read_single_file(model.file)
    rest = {key: value for key, value in model.tensors.items() if not key.startswith("first_stage_model.")}
    without = read_single_file(write(tmp_path, rest))
    assert {**whole.configs, "vae": None} == {**without.configs, "vae": None}
    assert without.tensors.keys() == whole.tensors.keys() - {"vae"}
    with pytest.raises(CheckpointError, match=r"^the checkpoint has no VAE; give one as `vae`$"):
        ModelConfigs.from_configs(without.configs)
    vae = Part(str(model.file), whole.configs["vae"] | {"block_out_channels": [32, 32, 64, 64]}, whole.tensors["vae"])
    for side, way in (("Encoder", "down"), ("Decoder", "up")):
        vae.config[f"{way}_block_types"].append(f"{way.title()}{side}Block2D")
    assert with_vae(without, vae).tensors["vae"] == whole.tensors["vae"]
    other = dataclasses.replace(vae, config={**vae.config, "scaling_factor": 0.18215})
    with pytest.raises(CheckpointError, match=r"scaling_factor=0.18215, not 0.13025"):
        with_vae(without, other)


def test_names_that_programs_put_around(tmp_path: Path, written: Callable[[str], Model]) -> None:
    """torch.compile's mark in every key, and a first encoder as transformers 5 saves it."""
    model = written("base")
    renamed = {
        re.sub(r"^(model\.diffusion_model\.|first_stage_model\.)", r"\1_orig_mod.", key).replace(
            "embedders.0.transformer.text_model.", "embedders.0.transformer."
        ): value
        for key, value in model.tensors.items()
    }
    assert sum("_orig_mod." in key for key in renamed) > 500
    plain, marked = read_single_file(model.file), read_single_file(write(tmp_path, renamed))
    assert marked.configs == plain.configs
    for component, tensors in plain.tensors.items():
        assert marked.tensors[component].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert marked.tensors[component][key].read().tobytes() == tensor.read().tobytes()
    key = "model.diffusion_model.out.0.bias"
    twice = refusal(tmp_path, model.tensors | {f"model._orig_mod.{key.removeprefix('model.')}": torch.zeros(64)})
    assert "are the same tensor, model.diffusion_model.out.0.bias" in twice


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_eight_bits_with_scales(tmp_path: Path, written: Callable[[str], Model], name: str) -> None:
    """As ComfyUI and others save them: linear layers and convolutions in float8, and what they are multiplied by."""
    model = written("base")
    tensors, wanted = dict(model.tensors), {}
    for key, value in model.tensors.items():
        if key.startswith("model.diffusion_model.") and key.endswith(".weight") and value.ndim > 1:
            path = key.removesuffix(".weight")
            rows = value.ndim == 2 and name == "weight_scale"
            scale = value.float().abs().amax(1, keepdim=True) / 448 if rows else value.float().abs().max() / 448
            tensors[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            tensors |= {f"{path}.{name}": scale, f"{path}.scale_input": torch.ones(())}
            wanted[key] = tensors[key].float() * scale
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)
    checkpoint = read_single_file(write(tmp_path, tensors))
    assert checkpoint.configs == read_single_file(model.file).configs
    assert len(wanted) > 100
    for tensor in checkpoint.tensors["unet"].values():
        if tensor.key in wanted:
            np.testing.assert_array_equal(tensor.read(), wanted[tensor.key].numpy())
            np.testing.assert_allclose(tensor.read(), model.tensors[tensor.key].float(), atol=0.5)
        else:
            assert tensor.scale is None
    lost = {key: value for key, value in tensors.items() if not key.endswith("time_embed.0.weight")}
    assert f"model.diffusion_model.time_embed.0.{name} is to scale" in refusal(tmp_path, lost)
    wide = {f"model.diffusion_model.time_embed.0.{name}": torch.ones(7)}
    assert f"model.diffusion_model.time_embed.0.{name} does not fit its weight" in refusal(tmp_path, tensors | wide)


def test_text_projection_as_a_linear_layer(tmp_path: Path, base: State) -> None:
    tensors = dict(base)
    matrix = tensors.pop("conditioner.embedders.1.model.text_projection")
    tensors["conditioner.embedders.1.model.text_projection.weight"] = matrix.T.contiguous()
    checkpoint = read_single_file(write(tmp_path, tensors))
    assert checkpoint.configs["text_encoder_2"]["projection_dim"] == 96
    np.testing.assert_array_equal(
        checkpoint.tensors["text_encoder_2"]["text_projection.weight"].read(), matrix.numpy().T
    )


def test_vae_attention_as_linear_layers(tmp_path: Path, base: State) -> None:
    linear = {key: value.flatten(1) for key, value in base.items() if ".attn_1." in key and value.ndim == 4}
    vae = read_single_file(write(tmp_path, base | linear)).tensors["vae"]
    wanted = linear["first_stage_model.decoder.mid.attn_1.q.weight"].numpy()
    np.testing.assert_array_equal(vae["decoder.mid_block.attentions.0.to_q.weight"].read(), wanted)


def refusal(folder: Path, tensors: State) -> str:
    """What the error says after the file's name; it is always one line."""
    file = write(folder, tensors)
    with pytest.raises(CheckpointError) as caught:
        read_single_file(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        (("lora_unet_input_blocks_4_1_proj_in.lora_up.weight", "lora_te1_text_model.alpha"), "a LoRA"),
        (("unet.down_blocks.1.attentions.0.proj_in.lora_A.weight",), "a LoRA"),
        (("unet.mid_block.attentions.0.processor.to_q_lora.down.weight",), "a LoRA"),
        (("oft_unet_x.hada_w1_a",), "a LoRA"),
        (("oft_unet_input_blocks_4_1_proj_in.oft_blocks",), "a LoRA"),
        (("lycoris_mid_block_attentions_0_proj_in.diff",), "a LoRA"),
        (("diffusion_model.out.0.w_norm", "diffusion_model.out.0.b_norm"), "a LoRA"),
        (("base_model.model.conv_in.oft_R.weight",), "a LoRA"),
        (("input_blocks.1.0.emb_layers.1.up", "lora_controlnet"), "a Control-LoRA"),
        (("lllite_unet_input_blocks_4_1_proj_in.down.0.weight",), "a ControlNet-LLLite"),
        (("image_proj.norm.bias", "ip_adapter.1.to_q_lora.down.weight"), "an IP-Adapter"),
        (("clip_g", "clip_l"), "a textual inversion"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
        (("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"), "a ControlNet"),
        (("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"), "a Flux"),
        (("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",), "a Flux"),
        (("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",), "a Stable Diffusion 3"),
        (
            (
                "cond_stage_model.transformer.text_model.final_layer_norm.bias",
                "model.diffusion_model.input_blocks.0.0.weight",
                "model_ema.decay",
            ),
            "a Stable Diffusion 1 ",
        ),
        (
            ("cond_stage_model.model.ln_final.bias", "model.diffusion_model.input_blocks.0.0.weight"),
            "a Stable Diffusion 2 ",
        ),
        (("conditioner.embedders.0.model.ln_final.bias", "model.diffusion_model.input_blocks.0.0.weight"), "1 or 2"),
        (("model_ema.diffusion_modelout2bias", "first_stage_model.encoder.conv_in.weight"), "moving average"),
        (("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "a U-Net in diffusers names"),
        (("encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.weight"), "a VAE in diffusers names"),
        (("encoder.down.0.block.0.conv1.weight", "quant_conv.weight"), "a VAE alone"),
        (("first_stage_model.decoder.up.0.block.0.conv1.weight",), "a VAE alone"),
        (("input_blocks.0.0.weight", "label_emb.0.0.weight"), "a U-Net alone"),
        (("text_model.final_layer_norm.bias",), "a text encoder alone"),
        (("transformer.resblocks.0.ln_1.bias",), "a text encoder alone"),
        (
            ("text_model.encoder.x", "vae.encoder.down_blocks.0.x"),
            "a file of a VAE and a text encoder, but",
        ),
        (("transformer.single_transformer_blocks.0.attn.to_q.weight",), "a transformer in diffusers names"),
        (("image_proj.latents",), "an IP-Adapter"),
        (("adapter.body.0.in_conv.weight",), "a T2I-Adapter"),
        (("params_ema.body.0.rdb1.conv1.weight",), "an upscaler"),
        (("head.modulation", "blocks.0.modulation"), "a file of blocks.0.modulation, head.modulation"),
        ((), "empty"),
    ],
)
def test_other_kinds_of_files(tmp_path: Path, keys: tuple[str, ...], kind: str) -> None:
    message = refusal(tmp_path, tensors_of(*keys))
    assert message.startswith("not an SDXL checkpoint but ")
    assert kind in message
    assert ("`unet`" in message) == ("label_emb.0.0.weight" in keys)


@pytest.mark.parametrize(
    ("width", "family"),
    [(768, "Stable Diffusion 1"), (1024, "Stable Diffusion 2"), (2048, "SDXL"), (1280, "the SDXL")],
)
@pytest.mark.parametrize("block", ["model.diffusion_model.input_blocks.4.1", "down_blocks.1.attentions.0"])
def test_whose_unet_it_is(tmp_path: Path, block: str, width: int, family: str) -> None:
    tensors = {f"{block}.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, width)}
    assert f" of {family}" in refusal(tmp_path, tensors)


def test_playground(tmp_path: Path, base: State) -> None:
    mean, std = [-1.5, 2.0, -1.25, 2.5], [8.5, 6.0, 6.5, 5.25]
    marks = {"edm_mean": torch.tensor(mean).view(1, 4, 1, 1), "edm_std": torch.tensor(std).view(1, 4, 1, 1)}
    configs = read_single_file(write(tmp_path, base | marks)).configs
    vae = VAEConfig.from_json(configs["vae"])
    assert (vae.latents_mean, vae.latents_std, vae.scaling_factor) == (tuple(mean), tuple(std), 0.5)
    scheduler = read_scheduler_config(configs["scheduler"])
    assert (scheduler.scheduler, scheduler.noise.edm) == ("edm_dpm++2m", EDM(0.002, 80.0, 0.5, 7.0))
    assert configs["model_index"]["scheduler"] == ["diffusers", "EDMDPMSolverMultistepScheduler"]


def test_cosxl(tmp_path: Path, base: State) -> None:
    marks = {"edm_vpred.sigma_max": torch.tensor(100.0), "edm_vpred.sigma_min": torch.tensor(0.25)}
    scheduler = read_scheduler_config(read_single_file(write(tmp_path, base | marks)).configs["scheduler"])
    assert (scheduler.scheduler, scheduler.sigma_schedule) == ("edm_euler", "exponential")
    assert (scheduler.noise.prediction_type, scheduler.noise.edm) == ("v_prediction", EDM(0.25, 100.0, 1.0, 7.0))


def test_sdxl_turbo_is_of_512_pixels(tmp_path: Path, base: State) -> None:
    for name, side in (("sd_xl_turbo_1.0_fp16.safetensors", 64), ("DreamShaperXL_Turbo_v2_1.safetensors", 128)):
        save_file(base, tmp_path / name)
        assert read_single_file(tmp_path / name).configs["unet"]["sample_size"] == side


@pytest.mark.parametrize(
    ("prefix", "named"),
    [
        ("conditioner.embedders.0.", "no text_encoder (conditioner.embedders.0.transformer.*)"),
        ("conditioner.", "no text_encoder_2 (conditioner.embedders.1.model.*)"),
    ],
)
def test_missing_network(tmp_path: Path, base: State, prefix: str, named: str) -> None:
    assert named in refusal(tmp_path, {key: value for key, value in base.items() if not key.startswith(prefix)})


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.time_embedding.cond_proj.weight",
        "model.diffusion_model.input_blocks.4.1.time_stack.0.norm1.weight",
        "first_stage_model.encoder.down.0.attn.0.q.weight",
        "conditioner.embedders.0.transformer.vision_model.post_layernorm.weight",
        "conditioner.embedders.1.model.visual.proj",
        "cond_stage_model.model.ln_final.bias",
        "lora_unet_out.lora_up.weight",
    ],
)
def test_unknown_key(tmp_path: Path, base: State, key: str) -> None:
    assert refusal(tmp_path, base | tensors_of(key)) == f"{key} is not a tensor of SDXL"


def test_tensor_twice(tmp_path: Path, base: State) -> None:
    key = "conditioner.embedders.1.model.text_projection"
    message = refusal(tmp_path, base | {f"{key}.weight": base[key].T.contiguous()})
    assert key in message
    assert f"{key}.weight" in message
    assert "the same tensor, text_projection.weight" in message


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("model.diffusion_model.input_blocks.4.", "unet: input_blocks.4 is missing"),
        ("model.diffusion_model.label_emb.0.0.weight", "unet: label_emb.0.0.weight is missing"),
        ("model.diffusion_model.middle_block.1.", "unet: middle_block.1 is missing"),
        ("model.diffusion_model.middle_block.2.", "unet: middle_block is neither"),
        ("model.diffusion_model.output_blocks.8.", "unet: output_blocks do not mirror input_blocks"),
        ("first_stage_model.encoder.", "vae: encoder.conv_in.weight is missing"),
        ("conditioner.embedders.1.model.text_projection", "text_encoder_2: text_projection is missing"),
        (
            "conditioner.embedders.0.transformer.text_model.encoder.layers.0.",
            "text_encoder: text_model.encoder.layers.0 is missing",
        ),
    ],
)
def test_missing_structure(tmp_path: Path, base: State, pattern: str, named: str) -> None:
    message = refusal(tmp_path, {key: value for key, value in base.items() if not key.startswith(pattern)})
    assert message.startswith(named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (64, 8, 3, 3)}, "the U-Net takes 8 channels"),
        ({"model.diffusion_model.label_emb.0.0.weight": (256, 145)}, "unet: label_emb.0.0.weight takes 145 values"),
        (
            {"model.diffusion_model.input_blocks.4.0.in_layers.2.weight": (100, 64, 3, 3)},
            "unet: an attention is 100 wide",
        ),
        (
            {"conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": (385, 128)},
            "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight has shape (385, 128)",
        ),
        ({"conditioner.embedders.1.model.text_projection": (128,)}, "text_encoder_2: text_projection has shape (128,)"),
    ],
)
def test_shapes_of_no_sdxl(tmp_path: Path, base: State, changes: dict[str, tuple[int, ...]], named: str) -> None:
    assert refusal(tmp_path, base | {key: torch.zeros(shape) for key, shape in changes.items()}).startswith(named)


def test_uneven_levels(tmp_path: Path, base: State) -> None:
    some = {key: value for key, value in base.items() if not key.startswith("model.diffusion_model.input_blocks.5.1.")}
    assert "transformers in some of its blocks only (depths [2, 0])" in refusal(tmp_path, some)


def test_middle_deeper_than_its_level(tmp_path: Path, base: State) -> None:
    deeper = base | tensors_of("model.diffusion_model.middle_block.1.transformer_blocks.3.norm1.weight")
    assert "middle_block is 4 transformers deep, the last input_blocks 3" in refusal(tmp_path, deeper)
