"""Which preset a published name tells of. Names are those of files and repositories as people have them."""

import pytest

from jaxl.presets import PRESETS, choose_preset, distilled_by_name, is_sdxl_turbo, preset, preset_by_name

NAMES: dict[str, tuple[str, int] | None] = {
    "stabilityai/sdxl-turbo": ("turbo", 1),
    "models/sd_xl_turbo_1.0.safetensors": ("turbo", 1),
    "sd_xl_turbo_1.0_fp16.safetensors": ("turbo", 1),
    "Lykon/dreamshaper-xl-v2-turbo": ("turbo_finetune", 6),
    "Lykon/dreamshaper-xl-turbo": ("turbo_finetune", 6),
    "DreamShaperXL_Turbo_v2_1.safetensors": ("turbo_finetune", 6),
    "dreamshaperXL_v21TurboDPMSDE.safetensors": ("turbo_finetune", 6),
    "dreamshaperXL_turboDpmppSDE.safetensors": ("turbo_finetune", 6),
    "turbovisionxlSuperFastXLBasedOnNew_tvxlV431Bakedvae.safetensors": ("turbo_finetune", 6),
    "realvisxlV30Turbo_v30TurboBakedvae.safetensors": ("turbo_finetune", 6),
    "SG161222/RealVisXL_V3.0_Turbo": ("turbo_finetune", 6),
    "wildcardxXLTURBO_wildcardxXLTURBOV10.safetensors": ("turbo_finetune", 6),
    "pixelwaveturboExcellent_03.safetensors": ("turbo_finetune", 6),
    "realitiesEdgeXLLCM_TURBOXL.safetensors": ("lcm", 4),
    "ByteDance/SDXL-Lightning": ("lightning", 4),
    "sdxl_lightning_1step_x0.safetensors": ("lightning", 1),
    "sdxl_lightning_2step.safetensors": ("lightning", 2),
    "sdxl_lightning_4step.safetensors": ("lightning", 4),
    "sdxl_lightning_8step_unet.safetensors": ("lightning", 8),
    "juggernautXL_v9Rdphoto2Lightning.safetensors": ("lightning", 4),
    "RunDiffusion/Juggernaut-XL-Lightning": ("lightning", 4),
    "dreamshaperXL_lightningDPMSDE.safetensors": ("lightning", 4),
    "Lykon/dreamshaper-xl-lightning": ("lightning", 4),
    "realvisxlV50_v50LightningBakedvae.safetensors": ("lightning", 4),
    "SG161222/RealVisXL_V4.0_Lightning": ("lightning", 4),
    "leosamsHelloworldXL_hellolightning8steps.safetensors": ("lightning", 8),
    "epicrealismXL_vxviLightning4Steps.safetensors": ("lightning", 4),
    "ByteDance/Hyper-SD": ("hyper", 4),
    "Hyper-SDXL-8steps-CFG-lora.safetensors": ("hyper", 8),
    "Hyper-SDXL-1step-Unet.safetensors": ("hyper", 1),
    "Hyper-SDXL-8steps": ("hyper", 8),
    "hyperSD_v1.safetensors": ("hyper", 4),
    "realvisxl_hyper_8step.safetensors": ("hyper", 8),
    "juggernautXL_juggXIHyper4Step.safetensors": ("hyper", 4),
    "hyper_realistic_xl.safetensors": None,
    "HyperRealism_XL.safetensors": None,
    "hyperRealismXL_v10.safetensors": None,
    "HyperDetailed-SDXL": None,
    "latent-consistency/lcm-sdxl": ("lcm", 4),
    "realisticVisionXLLCM_v20.safetensors": ("lcm", 4),
    "h1t/TCD-SDXL": ("tcd", 4),
    "tianweiy/DMD2": ("dmd2", 4),
    "dmd2_sdxl_4step_unet_fp16.bin": ("dmd2", 4),
    "bigLove_xl2_dmd2_8steps.safetensors": ("dmd2", 8),
    "/models/lightning_8step/base.safetensors": None,
    "/models/turbo/anime.safetensors": None,
    "/data/10steps/sdxl_lightning.safetensors": ("lightning", 4),
    "stabilityai/stable-diffusion-xl-base-1.0": None,
    "sd_xl_base_1.0_0.9vae.safetensors": None,
    "juggernautXL_v9Rundiffusionphoto2.safetensors": None,
    "ponyDiffusionV6XL_v6StartWithThisOne.safetensors": None,
    "animagine-xl-3.1.safetensors": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_published_names(name: str) -> None:
    found = preset_by_name(name)
    assert (None if found is None else (found.name, found.steps)) == NAMES[name]


def test_only_sdxl_turbo_itself_is_of_512_pixels() -> None:
    assert [name for name in NAMES if is_sdxl_turbo(name)] == list(NAMES)[:3]


def test_a_preset_says_why_it_was_taken() -> None:
    own = PRESETS["playground"]
    assert str(choose_preset("lcm", "sdxl-turbo", own)) == "lcm, as asked for: 4 steps, guidance 1, lcm"
    assert str(choose_preset(None, "sdxl-turbo", own)) == "turbo, by the name 'sdxl-turbo': 1 step, guidance 1, euler_a"
    named = choose_preset(None, "folder/sdxl_lightning_8step.safetensors", own)
    assert str(named) == "lightning, by the name 'sdxl_lightning_8step': 8 steps, guidance 1, euler"
    scheduler = "the checkpoint's scheduler"
    assert str(choose_preset(None, "tiny", own)).endswith(
        f"by the checkpoint's configs: 25 steps, guidance 3, {scheduler}"
    )
    assert preset("sdxl") == PRESETS["sdxl"]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("latent-consistency/lcm-lora-sdxl", "lcm"),
        ("some/folder/lcm-lora-sdxl/pytorch_lora_weights.safetensors", "lcm"),
        ("sdxl_lightning_4step_lora.safetensors", "lightning"),
        ("Hyper-SDXL-8steps-CFG-lora.safetensors", "hyper"),
        ("Hyper-SDXL-1step-lora", "hyper"),
        ("dmd2_sdxl_4step_lora.safetensors", "dmd2"),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", "dmd2"),
        ("sd_xl_turbo_lora_v1.safetensors", "turbo"),
        ("pcm_sdxl_smallcfg_2step_converted.safetensors", "pcm"),
        ("TCD-SDXL-LoRA", "tcd"),
        # pictures of things, and not how they are drawn
        ("lightning_strikes.safetensors", None),
        ("turbo_cars_v2.safetensors", None),
        ("hyperrealism_xl.safetensors", None),
        ("pytorch_lora_weights.safetensors", None),
    ],
)
def test_distilled_loras(name: str, method: str | None) -> None:
    assert distilled_by_name(name) == method
