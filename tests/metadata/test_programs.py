"""Pictures of each program, by the grammar of each, and what is made of them."""

import json
from typing import Any

import pytest
from PIL import Image
from written_pictures import hidden, late_png, png, unicode, with_exif

import jaxl
from jaxl.call.hires import Hires
from jaxl.call.infotext import a1111_text
from jaxl.errors import InputError
from jaxl.metadata import Network, Settings, settings_of

LINE = "Steps: 20, Sampler: {}, CFG scale: 6.5, Seed: 4294967293, Size: 832x1216"
A1111 = f"a castle, (green:1.2)\nNegative prompt: rain,\nfog\n{LINE}, Model hash: 31e35c80fc, Model: sd_xl_base_1.0"
BASICS = {"prompt": "a castle, (green:1.2)", "negative_prompt": "rain,\nfog", "prompt_syntax": "lenient", "steps": 20}
BASICS |= {"guidance_scale": 6.5, "seed": 4294967293, "width": 832, "height": 1216}
BASE = Network("model", "sd_xl_base_1.0", "31e35c80fc")
TILES = '{"Method": "MultiDiffusion", "Tile tile width": 96, "Tile tile height": 96, "Tile Overlap": 8, '
TILES += '"Tile batch size": 4, "Keep input size": true}'
NO_NOISE = "the noise; the file does not say what drew it, and jaxl's own makes another picture"


def a1111(sampler: str = "DPM++ 2M, Schedule type: Karras", more: str = "Version: v1.10.1") -> str:
    return f"{A1111.format(sampler)}, {more}"


@pytest.mark.parametrize(
    ("text", "program", "more"),
    [
        (a1111(), "A1111", {"scheduler": "dpm++2m_karras", "noise": "cuda", "style": "a1111"}),
        (
            a1111(more="RNG: NV, Version: v1.10.1"),
            "A1111",
            {"scheduler": "dpm++2m_karras", "noise": "nv", "style": "a1111"},
        ),
        # 1.9 and later write the schedule that was run, so Automatic is uniform; before it was a part of the name
        (
            a1111("Euler, Schedule type: Automatic"),
            "A1111",
            {"scheduler": "euler_uniform", "noise": "cuda", "style": "a1111"},
        ),
        (a1111("Euler", "Version: v1.6.0"), "A1111", {"scheduler": "euler_uniform", "noise": "cuda", "style": "a1111"}),
        (
            a1111("DPM++ 2M", "Version: v1.7.0"),
            "A1111",
            {"scheduler": "dpm++2m_uniform", "noise": "cuda", "style": "a1111"},
        ),
        (
            a1111("DPM++ 2M Karras", "Version: v1.7.0"),
            "A1111",
            {"scheduler": "dpm++2m_karras", "noise": "cuda", "style": "a1111"},
        ),
        (
            a1111(more=f"Tiled Diffusion: {TILES}, Version: v1.10.1"),
            "A1111",
            {"scheduler": "dpm++2m_karras", "noise": "cuda", "style": "a1111", "tile_size": 768, "tile_overlap": 64},
        ),
        (
            a1111(more="Clip skip: 3, RNG: CPU, Version: f2.0.1v1.10.1-previous-665-gae278f79"),
            "Forge",
            {"scheduler": "dpm++2m_karras", "noise": "torch", "clip_skip": 1, "style": "forge"},
        ),
        (
            a1111(more="Version: f1.0.0v2-v1.10.1RC-latest-2194"),
            "reForge",
            {"scheduler": "dpm++2m_karras", "noise": "cuda", "style": "forge"},
        ),
        (
            a1111(more="Version: classic"),
            "Forge Classic",
            {"scheduler": "dpm++2m_karras", "noise": "cuda", "style": "forge"},
        ),
        (
            a1111("dpmpp_2m, Scheduler: karras", "Version: ComfyUI"),
            "ComfyUI",
            {"scheduler": "dpm++2m_karras", "noise": "torch", "style": "comfyui"},
        ),
        (
            a1111("DPM++ 2M", "Sampler sigma: karras, App: SD.Next, Version: 2d2d64d"),
            "SD.Next",
            {"scheduler": "dpm++2m_karras"},
        ),
        (a1111("dpm++2m karras", "RNG: cuda, Version: stable-diffusion.cpp"), "stable-diffusion.cpp", {"noise": "nv"}),
        (
            a1111("euler discrete", "RNG: cpu, Version: stable-diffusion.cpp"),
            "stable-diffusion.cpp",
            {"noise": "torch"},
        ),
        (a1111(more="Version: Fooocus v2.5.5"), "Fooocus", {"scheduler": "dpm++2m_karras", "noise": "torch"}),
        (a1111(more="Script: own"), "unknown", {"scheduler": "dpm++2m_karras"}),
    ],
)
def test_a1111s_text(text: str, program: str, more: dict[str, Any]) -> None:
    found = settings_of(png({"parameters": text}))
    assert found.program == program
    assert found.arguments.items() >= (BASICS | more).items()
    assert set(found.arguments) <= {*BASICS, *more, "scheduler"}
    assert BASE in found.networks


CONTAINERS = {
    "tEXt": png({"parameters": a1111()}),
    "zTXt": png({"parameters": a1111()}, packed=True),
    "iTXt": png({"parameters": a1111() + ", User: 城"}),
    "after the pixels": late_png("parameters", a1111()),
    "JPEG": with_exif("JPEG", unicode(a1111())),
    "JPEG, little endian": with_exif("JPEG", unicode(a1111(), "le")),
    "JPEG, UTF-8": with_exif("JPEG", b"\0" * 8 + a1111().encode()),
    "JPEG, ASCII": with_exif("JPEG", b"ASCII\0\0\0" + a1111().encode()),
    "WebP": with_exif("WEBP", unicode(a1111())),
    "the description": with_exif("JPEG", ImageDescription=a1111()),
    "opacity": hidden(a1111(), b"stealth_pnginfo"),
    "opacity, packed": hidden(a1111(), b"stealth_pngcomp"),
    "colours": hidden(a1111(), b"stealth_rgbinfo", (61, 37)),
    "colours, packed": hidden(a1111(), b"stealth_rgbcomp", (40, 31)),
}


@pytest.mark.parametrize("data", CONTAINERS.values(), ids=CONTAINERS)
def test_containers(data: bytes) -> None:
    """The same settings come out of each, and a file, its bytes and an opened image are alike."""
    assert settings_of(data) == settings_of(CONTAINERS["tEXt"])


def test_what_may_be_read(tmp_path: Any) -> None:
    path = tmp_path / "castle.png"
    path.write_bytes(png({"parameters": a1111()}))
    with Image.open(path) as image:
        assert jaxl.settings_of(path) == jaxl.settings_of(str(path)) == settings_of(image)
    with pytest.raises(InputError, match=r"like='.*nothing.png': No such file"):
        settings_of(tmp_path / "nothing.png", argument="like")


def test_what_a1111_had_besides() -> None:
    more = "Denoising strength: 0.4, Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent, VAE hash: 235745af8d"
    more += (
        ', VAE: sdxl_vae.safetensors, Lora hashes: "pencil: 0123456789ab, ink: ba9876543210", TI hashes: "neg: c74b4e"'
    )
    more += ", Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: 0.8, ADetailer model: face_yolov8n.pt"
    more += ", ENSD: 31337, Variation seed: 3, Variation seed strength: 0.2, Eta: 0.5, Version: v1.10.1"
    text = a1111("Euler a", more).replace("a castle", "a castle <lora:pencil:0.8>")
    found = settings_of(png({"parameters": text}))
    assert found.arguments["scheduler"] == "euler_a_uniform"
    assert found.arguments["eta"] == 0.5
    drawn = {"noise": "cuda", "eta_noise_seed_delta": 31337, "variation_seed": 3, "variation_strength": 0.2}
    assert found.arguments.items() >= drawn.items()
    assert "strength" not in found.arguments  # of the second pass
    assert found.arguments["hires"] == Hires(scale=1.5, upscaler="latent", steps=10, strength=0.4)
    lacking = found.lacking({"model": ["other"], "lora": ["ink"], "embedding": ["c74b4e"]})
    assert {line.partition(";")[0] for line in lacking} == {
        "the checkpoint sd_xl_base_1.0 (hash 31e35c80fc)",
        "the autoencoder sdxl_vae (hash 235745af8d)",
        "the refiner sd_xl_refiner_1.0 (`refiner_at`=0.8, hash 7440042bbd)",
        "the LoRA pencil (0.8, hash 0123456789ab)",
        "ADetailer model: face_yolov8n.pt",
    }
    assert "the checkpoint" not in found.lacking({"model": ["sd_xl_base_1.0.safetensors"]})[0]


def test_second_passes() -> None:
    """With samplers as A1111 names them, and networks, which are not in the text."""
    more = "Denoising strength: 0.3, Hires resize: 768x0, Hires upscaler: 4x-UltraSharp, Hires sampler: DPM++ 2M, "
    more += 'Hires prompt: "a castle, detailed", Hires CFG Scale: 3, Hires checkpoint: other.safetensors'
    found = settings_of(png({"parameters": a1111("Euler a", f"{more}, Version: v1.10.1")}))
    own = {"scheduler": "dpm++2m_karras", "prompt": "a castle, detailed", "guidance_scale": 3.0}
    assert found.arguments["hires"] == Hires(size=(768, 0), upscaler="4x-UltraSharp", strength=0.3, **own)
    lacking = found.lacking({"model": ["sd_xl_base_1.0"]})
    assert lacking[0] == "the upscaler of the second pass 4x-UltraSharp; give its file, as `hires_upscaler`"
    assert "the second pass: Hires checkpoint: other.safetensors" in lacking
    again = settings_of(png({"parameters": a1111_text({**found.arguments, "hires": found.arguments["hires"].facts})}))
    assert again.arguments["hires"] == found.arguments["hires"]
    ours = {"jaxl": json.dumps({"prompt": "a", "hires": found.arguments["hires"].facts})}
    assert settings_of(png(ours)).arguments["hires"] == found.arguments["hires"]
    for damaged in ({"scale": 99}, {"size": "large"}, 3, {"what": 1}):
        broken = settings_of(png({"jaxl": json.dumps({"prompt": "a", "hires": damaged})}))
        assert "hires" not in broken.arguments
        assert any(line.startswith("the second pass: ") for line in broken.lacking())


def test_a_picture_to_start_from() -> None:
    text = a1111(more="Denoising strength: 0.4, Mask blur: 4, Masked content: original, Version: v1.10.1")
    found = settings_of(png({"parameters": text}))
    assert found.arguments["strength"] == 0.4
    assert found.missing == (
        "the picture that it was drawn from; give it as `image`",
        "the mask: Mask blur: 4, Masked content: original; give it as `mask`",
    )


def test_an_empty_negative_prompt() -> None:
    """A1111 takes it as zeros, as none is here, and ComfyUI encodes it."""
    text = a1111().replace("Negative prompt: rain,\nfog\n", "")
    assert "negative_prompt" not in settings_of(png({"parameters": text})).arguments


def test_civitai() -> None:
    resources = [
        {"type": "checkpoint", "modelVersionId": 128078, "modelName": "SD XL", "modelVersionName": "v1.0, VAE"},
        {"type": "lora", "weight": 0.75, "modelVersionId": 9, "modelName": "Pencil"},
        {"type": "hypernet", "modelVersionId": 10, "modelName": "Odd"},
    ]
    more = f"Created Date: 2024-05-01T10:00:00Z, Civitai resources: {json.dumps(resources)}, Civitai metadata: {{}}"
    data = with_exif("JPEG", unicode(a1111("Undefined", more)))
    found = settings_of(data)
    assert (found.program, found.arguments) == ("Civitai", BASICS | {"loras": {"Pencil": 0.75}})
    assert Network("lora", "Pencil", detail="0.75, Civitai's version 9") in found.networks
    assert found.missing == ("a resource of Civitai: Odd", NO_NOISE)


FOOOCUS = {
    "adaptive_cfg": 7,
    "adm_guidance": "(1.5, 0.8, 0.3)",
    "base_model": "juggernautXL_v8Rundiffusion",
    "base_model_hash": "aeb7e9e689",
    "clip_skip": 3,
    "full_negative_prompt": ["rain", "blurry"],
    "full_prompt": ["cinematic still a castle", "a [red] castle"],
    "guidance_scale": 4,
    "lora_combined_1": "offset-1.0.safetensors : 0.1",
    "metadata_scheme": "fooocus",
    "negative_prompt": "rain",
    "performance": "Speed",
    "prompt": "a castle",
    "refiner_model": "None",
    "refiner_switch": 0.5,
    "resolution": "(1152, 896)",
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "seed": "5",
    "sharpness": 2,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.5.5",
}


@pytest.mark.parametrize("data", [png({"parameters": FOOOCUS}), with_exif("WEBP", json.dumps(FOOOCUS).encode())])
def test_fooocus(data: bytes) -> None:
    found = settings_of(data)
    assert (found.program, found.version) == ("Fooocus", "v2.5.5")
    assert found.arguments == {
        "prompt": "cinematic still a castle BREAK a \\[red\\] castle",
        "negative_prompt": "rain BREAK blurry",
        "steps": 30,
        "guidance_scale": 4.0,
        "seed": 5,
        "width": 1152,
        "height": 896,
        "scheduler": "dpm++2m_karras",
        "clip_skip": 1,
        "loras": {"offset-1.0": 0.1},
        "noise": "torch",
        "prompt_syntax": "lenient",
    }
    fast = settings_of(png({"parameters": {**FOOOCUS, "performance": "Lightning"}}))
    assert "performance: Lightning; load the LoRA that makes it fast, as one of `loras`" in fast.missing
    assert [network.name for network in found.networks] == ["juggernautXL_v8Rundiffusion", "offset-1.0"]
    assert [line.partition(";")[0] for line in found.missing] == [
        "adaptive_cfg: 7",
        "adm_guidance: (1.5, 0.8, 0.3)",
        "sharpness: 2",
    ]


@pytest.mark.parametrize(
    "loras", [[["4852686128", "0.1 - sd_xl_offset.safetensors"]], "Loras:<sd_xl_offset.safetensors:0.1>"]
)
def test_ruined_fooocus(loras: Any) -> None:
    told = {"Prompt": "a castle", "Negative": "rain", "steps": 30, "cfg": 8.5, "width": 1152, "height": 896, "seed": 5}
    told |= {"sampler_name": "dpmpp_2m_sde_gpu", "scheduler": "karras", "base_model_name": "base.safetensors"}
    told |= {"base_model_hash": "be9edd61", "loras": loras, "start_step": 0, "denoise": None, "clip_skip": 1}
    found = settings_of(png({"parameters": {**told, "software": "RuinedFooocus"}}))
    assert found.program == "RuinedFooocus"
    expected = {
        "prompt": "a castle",
        "negative_prompt": "rain",
        "guidance_scale": 8.5,
        "scheduler": "dpm++2m_sde_karras",
    }
    assert found.arguments.items() >= (expected | {"width": 1152, "seed": 5}).items()
    assert found.arguments["loras"] == {"sd_xl_offset": 0.1}
    assert Network("model", "base", "be9edd61") in found.networks


INVOKE = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a castle",
    "negative_prompt": "",
    "positive_style_prompt": "pencil",
    "width": 832,
    "height": 1216,
    "seed": 5,
    "rand_device": "cpu",
    "cfg_scale": 7.5,
    "cfg_rescale_multiplier": 0.7,
    "steps": 30,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "1", "hash": "blake3:ab12", "name": "base", "base": "sdxl", "type": "main"},
    "loras": [{"model": {"key": "2", "hash": "blake3:cd34", "name": "pencil"}, "weight": 0.75}],
    "controlnets": [{"control_model": {"name": "edges"}, "control_weight": 0.5, "image": {"image_name": "a.png"}}],
    "hrf_enabled": True,
    "app_version": "5.6.0",
}


def test_invokeai() -> None:
    found = settings_of(png({"invokeai_metadata": INVOKE}))
    assert (found.program, found.version) == ("InvokeAI", "5.6.0")
    assert found.arguments == {
        "prompt": "a castle",
        "prompt_2": "pencil",
        "prompt_syntax": "literal",
        "guidance_scale": 7.5,
        "guidance_rescale": 0.7,
        "seed": 5,
        "steps": 30,
        "width": 832,
        "height": 1216,
        "scheduler": "dpm++2m_karras",
        "loras": {"pencil": 0.75},
        "style": "invokeai",
    }
    assert found.networks == (Network("model", "base", "blake3:ab12"), Network("lora", "pencil", "blake3:cd34", "0.75"))
    assert found.controls == ({"name": "edges", "strength": 0.5},)
    followed = "the picture that edges followed (strength 0.5); give it as one of `controls`"
    assert followed in found.lacking()
    assert followed not in found.lacking({"controls": ["edges"]})
    assert [line.partition(";")[0] for line in found.missing] == ["hrf_enabled: True", "the noise"]
    weighted = settings_of(png({"invokeai_metadata": {**INVOKE, "positive_prompt": "a (green)1.2 castle++"}}))
    assert any("InvokeAI's syntax" in line for line in weighted.missing)


@pytest.mark.parametrize(
    "texts",
    [
        {"Dream": '"a "red" castle [rain] [fog]" -s 20 -S 5 -W 512 -H 768 -C 7.5 -A k_euler_a'},
        {"Dream": '"a "red" castle [rain] [fog]" -s20 -S5 -W512 -H768 -C7.5 -Ak_euler_a'},
        {
            "Dream": "older",
            "sd-metadata": {
                "app_version": "2.3.5",
                "model_weights": "sd-1.5",
                "image": {
                    "prompt": [{"prompt": 'a "red" castle [rain] [fog]', "weight": 1.0}],
                    **{"steps": 20, "cfg_scale": 7.5, "seed": 5, "width": 512, "height": 768, "sampler": "k_euler_a"},
                    **{"type": "txt2img", "threshold": 0.0, "seamless": False},
                },
            },
        },
    ],
)
def test_older_invokeai(texts: dict[str, Any]) -> None:
    found = settings_of(png(texts))
    expected = {
        "prompt": 'a "red" castle',
        "negative_prompt": "rain, fog",
        "prompt_syntax": "literal",
        "steps": 20,
        "seed": 5,
    }
    expected |= {"guidance_scale": 7.5, "width": 512, "height": 768, "scheduler": "euler_a"}
    assert (found.program, found.arguments) == ("InvokeAI", expected)


SWARM = {
    "prompt": "a castle",
    "negativeprompt": "rain",
    "model": "OfficialStableDiffusion/sd_xl_base_1.0.safetensors",
    "seed": 5,
    "steps": 20,
    "cfgscale": 7.0,
    "width": 832,
    "height": 1216,
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "loras": ["art/pencil"],
    "loraweights": ["0.75"],
    "clipstopatlayer": -3,
    "freeuapplyto": "Base",
    "swarm_version": "0.9.7.0",
}


@pytest.mark.parametrize(
    "write",
    [
        lambda told: png({"parameters": told}),
        lambda told: with_exif("JPEG", unicode(json.dumps(told))),
        lambda told: with_exif("JPEG", unicode(json.dumps(told), "le")),
        lambda told: with_exif("JPEG", Model=json.dumps(told)),
        lambda told: hidden(json.dumps(told), b"stealth_pngcomp"),
    ],
)
def test_swarmui(write: Any) -> None:
    models = [{"name": "sd_xl_base_1.0.safetensors", "param": "model", "hash": "0xd7a9"}]
    found = settings_of(write({"sui_image_params": SWARM, "sui_models": models}))
    assert (found.program, found.version) == ("SwarmUI", "0.9.7.0")
    expected = {"prompt": "a castle", "negative_prompt": "rain", "seed": 5, "steps": 20, "guidance_scale": 7.0}
    expected |= {"width": 832, "height": 1216, "scheduler": "dpm++2m_karras", "loras": {"pencil": 0.75}}
    expected |= {"clip_skip": 1, "noise": "torch", "prompt_syntax": "lenient", "style": "swarmui"}
    assert found.arguments == expected
    assert found.networks == (Network("model", "sd_xl_base_1.0", "0xd7a9"), Network("lora", "pencil", detail="0.75"))
    assert found.missing == ("freeuapplyto: Base",)


def test_swarmuis_defaults() -> None:
    told = {name: value for name, value in SWARM.items() if name not in ("sampler", "scheduler")}
    told |= {"initimagecreativity": 0.5, "variationseed": 7, "variationseedstrength": 0.1}
    found = settings_of(png({"parameters": {"sui_image_params": told}}))
    assert (found.arguments["scheduler"], found.arguments["strength"]) == ("euler_uniform", 0.5)


@pytest.mark.parametrize(
    "data",
    [
        png({"Software": "NovelAI", "Source": "Stable Diffusion XL 7BCCAA2C", "Comment": {"steps": 28}}),
        png({"Comment": {"steps": 28, "signed_hash": "x"}}),
        hidden(json.dumps({"Software": "NovelAI", "Comment": '{"steps": 28}'}), b"stealth_pngcomp"),
        with_exif("WEBP", json.dumps({"Comment": '{"request_type": "PromptGenerateRequest"}'}).encode()),
    ],
)
def test_novelai_cannot_be_drawn(data: bytes) -> None:
    with pytest.raises(InputError, match=r"NovelAI drew it, whose models.* are closed"):
        settings_of(data)


def test_draw_things() -> None:
    told = {
        "c": "a castle",
        "uc": "rain",
        "sampler": "DPM++ 2M Karras",
        "seed": 5,
        "scale": 7,
        "steps": 20,
        "shift": 1.5,
    }
    told |= {"size": "832x1216", "model": "sd_xl_base_1.0_f16.ckpt", "lora": [{"model": "pencil.ckpt", "weight": 0.5}]}
    comment = json.dumps(told).replace('"', "&quot;")
    packet = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{comment}'
    found = settings_of(png({"XML:com.adobe.xmp": f"{packet}</rdf:li></rdf:Alt></exif:UserComment></x:xmpmeta>"}))
    expected = {"prompt": "a castle", "negative_prompt": "rain", "prompt_syntax": "lenient", "seed": 5, "steps": 20}
    expected |= {"guidance_scale": 7.0, "width": 832, "height": 1216, "scheduler": "dpm++2m_karras"}
    assert (found.program, found.arguments) == ("Draw Things", expected | {"loras": {"pencil": 0.5}})
    assert found.missing == ("shift: 1.5", NO_NOISE)


def test_jaxls_own() -> None:
    """The text of A1111 beside them says less, and is not read."""
    told = {
        "version": "0.2.0",
        "model": "tiny",
        "prompt": "a castle",
        "seed": 2**64 - 1,
        "steps": 9,
        "scheduler": "ddim",
    }
    told |= {"guidance_scale": 5.0, "width": 64, "height": 32, "pag_scale": 3.0, "dtype": "float32", "num_images": 2}
    drawn = {"prompt": "a castle", "seed": 2**64 - 1, "steps": 9, "scheduler": "ddim", "guidance_scale": 5.0}
    drawn |= {"width": 64, "height": 32, "pag_scale": 3.0}
    found = settings_of(png({"parameters": a1111_text(told), "jaxl": told}))
    assert found == Settings("jaxl", "0.2.0", drawn, (Network("model", "tiny"),))
    more = {"image": "castle.png", "strength": 0.5, "mask": "mask.png", "precision": "int8", "loras": {"chalk": 1.0}}
    more |= {"controls": [{"name": "edges", "strength": 1.0}], "refiner": "refiner", "lora_hashes": {"chalk": "0123"}}
    found = settings_of(png({"jaxl": {**told, **more}}))
    assert found.arguments == {**drawn, "strength": 0.5, "loras": {"chalk": 1.0}}
    assert found.networks[1:] == (Network("refiner", "refiner"), Network("lora", "chalk", "0123"))
    assert found.controls == ({"name": "edges", "strength": 1.0},)
    odd = settings_of(png({"jaxl": {"prompt": 5, "loras": "chalk", "steps": 9, "controls": 5}}))
    assert odd == Settings("jaxl", "", {"steps": 9}, missing=("prompt: 5", "loras: chalk"))
    assert found.missing == (
        "precision: int8",
        "the picture that it was drawn from: castle.png; give it as `image`",
        "the mask: mask.png; give it as `mask`",
    )


PICTURES: dict[str, dict[str, Any]] = {
    "A1111": {"parameters": a1111()},
    "Forge": {"parameters": a1111("Euler a, Schedule type: SGM Uniform", "Eta: 0.5, Version: f2.0.1v1.10.1")},
    "unknown": {"parameters": A1111.format("DDIM")},
    "Fooocus": {"parameters": FOOOCUS},
    "InvokeAI": {"invokeai_metadata": INVOKE},
    "SwarmUI": {"parameters": {"sui_image_params": SWARM}},
    "jaxl": {"jaxl": {"prompt": "a castle", "seed": 2**64 - 1, "scheduler": "ddim", "pag_scale": 3.0}},
}


@pytest.mark.parametrize("program", PICTURES)
def test_plans_can_be_made(program: str, small: Any) -> None:
    """`generate` takes what was read, but for LoRAs, which the model lacks."""
    settings = settings_of(png(PICTURES[program]))
    assert settings.program == program
    plan = small[0].plan(**{name: value for name, value in settings.arguments.items() if name != "loras"})
    assert plan.scheduler == settings.arguments["scheduler"]
    assert plan.seeds == [settings.arguments["seed"]]


def test_tiles_of_a1111() -> None:
    """It lays and weighs them otherwise, so a picture is drawn with them, but not the same."""
    found = settings_of(png({"parameters": a1111(more=f"Tiled Diffusion: {TILES}, Version: v1.10.1")}))
    assert [line for line in found.missing if "Tiled" in line] == [
        "Tiled Diffusion; tiles lie and fade otherwise here, so the picture is not the same"
    ]
    own = settings_of(png({"parameters": a1111(more=f"Tiled Diffusion: {TILES}, Version: jaxl 0.2.0")}))
    assert "tile_size" in own.arguments
    assert not any("Tiled" in line for line in own.missing)
