"""Graphs of ComfyUI, as it and its editor write them, and what is made of them."""

import json
from typing import Any

import pytest
from written_pictures import png, unicode, with_exif

from jaxl import Strength
from jaxl.errors import InputError
from jaxl.metadata import Network, Settings, settings_of

SAMPLING = {"seed": 2**63 + 5, "steps": 20, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node; a text with an id and an output, such as "4:1", is a link."""

    def read(value: Any) -> Any:
        id, colon, output = value.partition(":") if isinstance(value, str) else ("", "", "")
        return [id, int(output)] if colon and output.isdigit() and id.isdigit() else value

    return {"class_type": kind, "inputs": {name: read(value) for name, value in inputs.items()}}


def sampler(kind: str = "KSampler", **more: Any) -> dict[str, Any]:
    """The graph's sampler, or one like it."""
    links = {"model": "4:0", "positive": "6:0", "negative": "7:0", "latent_image": "5:0"}
    return node(kind, **SAMPLING | links | more)


def graph(**more: Any) -> dict[str, Any]:
    """The editor's first graph with SDXL's base model; `more` are nodes that are added or replaced, `n5` for 5."""
    nodes = {
        "3": sampler(),
        "4": node("CheckpointLoaderSimple", ckpt_name="sdxl\\sd_xl_base_1.0.safetensors"),
        "5": node("EmptyLatentImage", width=832, height=1216, batch_size=1),
        "6": node("CLIPTextEncode", text="a [red] (castle:1.2), BREAK", clip="4:1"),
        "7": node("CLIPTextEncode", text="", clip="4:1"),
        "8": node("VAEDecode", samples="3:0", vae="4:2"),
        "9": node("SaveImage", filename_prefix="ComfyUI", images="8:0"),
    }
    return nodes | {name.removeprefix("n"): told for name, told in more.items()}


BASICS = {
    "prompt": "a [red] (castle:1.2), BREAK",
    "negative_prompt": "",
    "prompt_syntax": "comfyui",
    "seed": 2**63 + 5,
    "steps": 20,
    "guidance_scale": 6.5,
    "width": 832,
    "height": 1216,
    "scheduler": "dpm++2m_karras",
    "noise": "torch",
    "style": "comfyui",
}
LENIENT = {"prompt_syntax": "lenient"}
BASE = Network("model", "sd_xl_base_1.0")


def read(nodes: Any, size: tuple[int, int] = (8, 8)) -> Settings:
    return settings_of(png({"prompt": nodes}, size))


def lines(settings: Settings) -> list[str]:
    return [line.partition(";")[0] for line in settings.missing]


WRITTEN = {
    "PNG": png({"prompt": graph(), "workflow": {"nodes": []}}),
    "NaN": png(
        {"prompt": json.dumps(graph(n5=node("EmptyLatentImage", width=832, height=1216, batch_size=1, x=float("nan"))))}
    ),
    "WebP": with_exif("WEBP", Model="prompt:" + json.dumps(graph()), Make='workflow:{"nodes": []}'),
    "Civitai": with_exif("JPEG", unicode(json.dumps({**graph(), "extra": {}, "extraMetadata": "{}"}))),
}


@pytest.mark.parametrize("data", WRITTEN.values(), ids=WRITTEN)
def test_where_graphs_are(data: bytes) -> None:
    assert settings_of(data) == Settings("ComfyUI", "", BASICS, (BASE,))


def test_the_editors_form() -> None:
    """Where a file has no other: values by place, nodes that only lead on, that are bypassed and that never run."""

    def told(
        id: int, kind: str, values: Any = (), inputs: Any = (), outputs: Any = (), mode: int = 0
    ) -> dict[str, Any]:
        links = [{"name": name, "type": type, "link": link} for name, type, link in inputs]
        return {
            **{"id": id, "type": kind, "widgets_values": [*values], "inputs": links, "mode": mode},
            "outputs": [{"type": type} for type in outputs],
        }

    chosen = (2**63 + 5, "randomize", 20, 6.5, "dpmpp_2m", "karras", 1)
    sampler = [("model", "MODEL", 1), ("positive", "CONDITIONING", 2), ("negative", "CONDITIONING", 3)]
    lora = [("model", "MODEL", 9), ("clip", "CLIP", 10)]
    nodes = [
        told(3, "KSampler", chosen, [*sampler, ("latent_image", "LATENT", 4)]),
        told(4, "CheckpointLoaderSimple", ["sd_xl_base_1.0.safetensors"]),
        told(5, "EmptyLatentImage", [832, 1216, 1]),
        told(6, "CLIPTextEncode", ["a [red] (castle:1.2), BREAK"], [("clip", "CLIP", 5)]),
        told(7, "CLIPTextEncode", [""], [("clip", "CLIP", 6)]),
        told(8, "VAEDecode", [], [("samples", "LATENT", 7), ("vae", "VAE", 11)]),
        told(9, "SaveImage", ["ComfyUI"], [("images", "IMAGE", 8)]),
        told(10, "LoraLoader", ["pencil.safetensors", 1, 1], lora, ["MODEL", "CLIP"], mode=4),
        told(11, "Reroute", [], [("", "*", 12)], ["VAE"]),
        told(12, "SaveImage", ["other"], [("images", "IMAGE", 8)], mode=2),
        told(13, "Note", ["as you like it"]),
    ]
    links = [[1, 10, 0, 3, 0], [2, 6, 0, 3, 1], [3, 7, 0, 3, 2], [4, 5, 0, 3, 3], [5, 10, 1, 6, 0], [6, 4, 1, 7, 0]]
    links += [
        [7, 3, 0, 8, 0],
        [8, 8, 0, 9, 0],
        [9, 4, 0, 10, 0],
        [10, 4, 1, 10, 1],
        [11, 11, 0, 8, 1],
        [12, 4, 2, 11, 0],
    ]
    found = settings_of(png({"workflow": {"nodes": nodes, "links": links, "version": 0.4}}))
    assert found == Settings("ComfyUI", "", BASICS, (BASE,))


def test_loras_and_what_else_changes_a_model() -> None:
    found = read(
        graph(
            n3=sampler(model="15:0"),
            n6=node("CLIPTextEncode", text="a <lora:cat:1>", clip="16:0"),
            n10=node(
                "LoraLoader",
                lora_name="a/pencil.safetensors",
                strength_model=0.8,
                strength_clip=0.8,
                model="4:0",
                clip="4:1",
            ),
            n11=node(
                "LoraLoader",
                lora_name="ink.safetensors",
                strength_model=0.5,
                strength_clip=1,
                model="10:0",
                clip="10:1",
            ),
            n12=node("LoraLoaderModelOnly", lora_name="oil.safetensors", strength_model=0.25, model="11:0"),
            n13=node("RescaleCFG", multiplier=0.7, model="12:0"),
            n14=node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2, model="13:0"),
            n15=node("HyperTile", tile_size=256, model="14:0"),
            n16=node("CLIPSetLastLayer", stop_at_clip_layer=-3, clip="11:1"),
            n17=node("VAELoader", vae_name="sdxl_vae.safetensors"),
            n8=node("VAEDecode", samples="3:0", vae="17:0"),
        )
    )
    assert found.arguments["loras"] == {"oil": Strength(0.25, 0.0), "ink": Strength(0.5, 1.0), "pencil": 0.8}
    assert found.arguments["guidance_rescale"] == 0.7
    assert found.arguments["freeu"] == (0.9, 0.2, 1.3, 1.4)
    assert found.arguments["clip_skip"] == 1
    assert found.arguments["prompt"] == "a \\<lora:cat:1>"  # it is text there
    assert [str(each.kind) for each in found.networks] == ["vae", "lora", "lora", "lora", "model"]
    assert lines(found) == ["node 15 (HyperTile)"]


def test_nodes_that_many_have() -> None:
    found = read(
        graph(
            n3=sampler(model="10:0"),
            n6=node("smZ CLIPTextEncode", text="a [red] castle", parser="A1111", clip="10:1"),
            n10=node(
                "Power Lora Loader (rgthree)",
                lora_1={"on": True, "lora": "art/pencil.safetensors", "strength": 0.8},
                lora_2={"on": False, "lora": "ink.safetensors", "strength": 1},
                **{"Add Lora": "", "model": "4:0", "clip": "4:1"},
            ),
        )
    )
    assert found.arguments == {**BASICS, "prompt": "a [red] castle", "loras": {"pencil": 0.8}, **LENIENT}


def test_texts() -> None:
    found = read(
        graph(
            n6=node(
                "CLIPTextEncodeSDXL",
                **{"width": 4096, "height": 2048, "crop_w": 1, "crop_h": 2, "target_width": 832, "target_height": 1216},
                **{"text_g": "a castle", "text_l": "20:0", "clip": "4:1"},
            ),
            n20=node("StringConcatenate", string_a="21:0", string_b="green", delimiter=", "),
            n21=node("PrimitiveString", value="a hill"),
            n7=node("ConditioningConcat", conditioning_to="22:0", conditioning_from="23:0"),
            n22=node("CLIPTextEncode", text="rain", clip="4:1"),
            n23=node("CLIPTextEncode", text="fog", clip="4:1"),
        )
    )
    expected = {"prompt": "a hill, green", "prompt_2": "a castle", "negative_prompt": "rain BREAK fog"}
    expected |= {"original_size": (2048, 4096), "crops_coords_top_left": (2, 1), "target_size": (1216, 832)}
    assert found.arguments == {**BASICS, **expected, **LENIENT}
    zeros = read(graph(n7=node("ConditioningZeroOut", conditioning="6:0")))
    assert "negative_prompt" not in zeros.arguments
    assert zeros.arguments["empty_negative"] == "zeros"
    both = read(graph(n7=node("ConditioningCombine", conditioning_1="6:0", conditioning_2="6:0")))
    assert lines(both) == ["node 7 (ConditioningCombine)"]


def test_controls() -> None:
    numbers = {"strength": 0.8, "start_percent": 0.0, "end_percent": 0.5}
    links = {"positive": "6:0", "negative": "7:0", "control_net": "11:0", "image": "12:0"}
    found = read(
        graph(
            n3=sampler(positive="10:0", negative="10:1"),
            n10=node("ControlNetApplyAdvanced", **numbers, **links),
            n11=node("ControlNetLoader", control_net_name="edges.safetensors"),
            n12=node("LoadImage", image="lines.png"),
        )
    )
    assert found == Settings(
        "ComfyUI", "", BASICS, (BASE,), ({"name": "edges", "strength": 0.8, "start": 0.0, "end": 0.5},)
    )


ADDS = {"add_noise": "enable", "start_at_step": 0, "return_with_leftover_noise": "disable"}
CUSTOM = {"positive": "6:0", "negative": "7:0", "model": "4:0", "cfg": 6.5, "noise_seed": 2**63 + 5, "add_noise": True}
CUSTOM |= {"sampler": "10:0", "sigmas": "11:0", "latent_image": "5:0"}
BASIC = node("BasicScheduler", scheduler="karras", steps=20, denoise=1.0, model="4:0")
SELECT = node("KSamplerSelect", sampler_name="dpmpp_2m")
GUIDER = node("CFGGuider", positive="6:0", negative="7:0", model="4:0", cfg=6.5)
ADVANCED = {"noise": "12:0", "guider": "13:0", "sampler": "10:0", "sigmas": "11:0", "latent_image": "5:0"}


@pytest.mark.parametrize(
    "nodes",
    [
        graph(
            n3=sampler("KSamplerAdvanced", **ADDS, noise_seed=2**63 + 5, end_at_step=10000),
        ),
        graph(n3=node("SamplerCustom", **CUSTOM), n10=SELECT, n11=BASIC),
        graph(
            n3=node("SamplerCustomAdvanced", **ADVANCED),
            n10=SELECT,
            n11=node("KarrasScheduler", steps=20, sigma_max=14.614642, sigma_min=0.0291675, rho=7.0),
            n12=node("RandomNoise", noise_seed="14:0"),
            n13=GUIDER,
            n14=node("PrimitiveInt", value=2**63 + 5),
        ),
    ],
)
def test_samplers(nodes: Any) -> None:
    assert read(nodes) == Settings("ComfyUI", "", BASICS, (BASE,))


@pytest.mark.parametrize(
    ("name", "scheduler", "expected", "missing"),
    [
        ("euler", "normal", "euler_uniform", []),
        ("ddim", "karras", "euler_karras", []),  # which is Euler's method there
        ("euler_ancestral", "sgm_uniform", "euler_a_sgm_uniform", []),
        ("dpmpp_3m_sde_gpu", "exponential", "dpm++3m_sde_exponential", []),
        ("euler", "of my own", "euler", ["schedule: of my own"]),
        ("of my own", "karras", None, ["sampler: of my own", "schedule: karras"]),
    ],
)
def test_names_of_samplers(name: str, scheduler: str, expected: str | None, missing: list[str]) -> None:
    found = read(graph(n3=sampler(sampler_name=name, scheduler=scheduler)))
    assert found.arguments.get("scheduler") == expected
    assert lines(found) == missing


def test_turbos_timesteps() -> None:
    found = read(
        graph(
            n3=node("SamplerCustom", **CUSTOM),
            n10=node("SamplerEulerAncestral", eta=1.0, s_noise=1.0),
            n11=node("SDTurboScheduler", steps=3, denoise=1.0, model="4:0"),
        )
    )
    assert found.arguments["timesteps"] == (999, 899, 799)
    assert (found.arguments["scheduler"], found.arguments["eta"]) == ("euler_a", 1.0)
    assert "steps" not in found.arguments


def test_a_second_pass() -> None:
    """The settings are those of the first."""
    second = sampler(seed=7, steps=12, denoise=0.5, latent_image="10:0")
    found = read(
        graph(
            n8=node("VAEDecode", samples="11:0", vae="4:2"),
            n10=node("LatentUpscaleBy", upscale_method="bislerp", scale_by=1.5, samples="3:0"),
            n11=second,
        )
    )
    assert found.arguments == BASICS
    assert lines(found) == [
        "a second pass, node 11 (KSampler): steps 12, denoise 0.5, cfg 6.5, sampler dpmpp_2m, scheduler karras, seed 7"
    ]
    through_pixels = read(
        graph(
            n8=node("VAEDecode", samples="11:0", vae="4:2"),
            n10=node("VAEEncode", pixels="12:0", vae="4:2"),
            n11=second,
            n12=node("ImageScaleBy", image="13:0", upscale_method="lanczos", scale_by=1.5),
            n13=node("VAEDecode", samples="3:0", vae="4:2"),
        )
    )
    assert through_pixels == found


def test_a_refiner() -> None:
    first = {**ADDS, "noise_seed": 5, "end_at_step": 20, "steps": 25}
    then = {"add_noise": "disable", "noise_seed": 0, "start_at_step": 20, "end_at_step": 10000, "steps": 25}
    links = {"model": "10:0", "positive": "12:0", "negative": "12:0", "latent_image": "3:0"}
    found = read(
        graph(
            n3=sampler("KSamplerAdvanced", **first),
            n8=node("VAEDecode", samples="11:0", vae="4:2"),
            n10=node("CheckpointLoaderSimple", ckpt_name="sd_xl_refiner_1.0.safetensors"),
            n11=sampler("KSamplerAdvanced", **then, **links),
            n12=node("CLIPTextEncodeSDXLRefiner", ascore=6.0, width=832, height=1216, text="a castle", clip="10:1"),
        )
    )
    assert found.arguments == {**BASICS, "seed": 5, "steps": 25}
    assert found.networks == (BASE, Network("refiner", "sd_xl_refiner_1.0", detail="`refiner_at`=0.8"))
    assert found.missing == ()


def test_from_a_picture() -> None:
    found = read(
        graph(
            n3=sampler(denoise=0.5),
            n5=node("VAEEncodeForInpaint", pixels="10:0", vae="4:2", mask="10:1", grow_mask_by=6),
            n10=node("LoadImage", image="castle.png"),
        )
    )
    assert found.arguments["strength"] == 0.5
    assert "width" not in found.arguments
    assert lines(found) == ["the mask", "the picture that it was drawn from"]
    late = sampler("KSamplerAdvanced", **{**ADDS, "start_at_step": 5}, noise_seed=5, end_at_step=10000)
    pixels = {"n5": node("VAEEncode", pixels="10:0", vae="4:2"), "n10": node("LoadImage", image="castle.png")}
    assert read(graph(n3=late, **pixels)).arguments["strength"] == 0.75


def test_afterwards_and_batches() -> None:
    found = read(
        graph(
            n5=node("EmptyLatentImage", width=832, height=1216, batch_size=4),
            n9=node("SaveImage", images="10:0"),
            n10=node("ImageUpscaleWithModel", upscale_model="11:0", image="8:0"),
            n11=node("UpscaleModelLoader", model_name="4x.pth"),
        )
    )
    assert lines(found) == ["node 10 (ImageUpscaleWithModel)", "one of a batch: 4"]


def test_several_pictures() -> None:
    """That of the file's size is meant; a preview is not what was saved."""
    nodes = graph(
        n1=node("PreviewImage", images="8:0"),
        n10=sampler(seed=7, latent_image="11:0"),
        n11=node("EmptyLatentImage", width=16, height=8, batch_size=1),
        n12=node("VAEDecode", samples="10:0", vae="4:2"),
        n13=node("SaveImage", images="12:0"),
    )
    assert read(nodes).arguments["seed"] == 2**63 + 5
    found = read(nodes, (16, 8))
    assert found.arguments["seed"] == 7
    assert found.missing[-1].startswith(
        "the graph saves other pictures too (node 9 (SaveImage), node 1 (PreviewImage)); "
    )


OWN_CLASS = "is of a class that jaxl does not understand"
LOOP = node("LoraLoaderModelOnly", lora_name="a", strength_model=1, model="10:0")
MERGED = {
    f"n{i}": node("ConditioningConcat", conditioning_to=f"{i + 1}:0", conditioning_from=f"{i + 1}:0")
    for i in range(20, 60)
}
MERGED["n60"] = node("CLIPTextEncode", text="a", clip="4:1")


@pytest.mark.parametrize(
    ("nodes", "line"),
    [
        (graph(n6=node("FluxGuidance", conditioning="7:0")), f"node 6 \\(FluxGuidance\\) {OWN_CLASS}"),
        (graph(n4=node("Own Loader")), f"node 4 \\(Own Loader\\) {OWN_CLASS}"),
        (graph(n5=node("OwnLatent")), f"node 5 \\(OwnLatent\\) {OWN_CLASS}"),
        (graph(n3=node("Own")), f"node 3 \\(Own\\) {OWN_CLASS}"),
        (graph(n9=node("SaveImage", images="3:0")), f"node 3 \\(KSampler\\) {OWN_CLASS}"),
        (graph(n6=node("CLIPTextEncode", text="5:0")), r"node 5 \(EmptyLatentImage\) gives a value in a way"),
        (graph(n6=node("CLIPTextEncode", text="99:0", clip="4:1")), "has an input from node 99, which is not there"),
        (graph(n6=node("CLIPTextEncode", text=5, clip="4:1")), "has 5 for text, where a text belongs"),
        (graph(n8=node("VAEDecode", samples=None)), r"node 8 \(VAEDecode\) has no link for samples"),
        (graph(n3=sampler(model="10:0"), n10=LOOP), "in a circle"),
        (graph(n6=node("ConditioningConcat", conditioning_to="6:0", conditioning_from="6:0")), "in a circle"),
        (graph(n6=node("ConditioningSetArea", conditioning="6:0")), "in a circle"),
        (graph(n5=node("LatentUpscale", samples="5:0")), "in a circle"),
        (graph(n8=node("ImageScale", image="8:0")), "in a circle"),
        (graph(n6=node("CLIPTextEncode", text="10:0"), n10=node("PrimitiveString", value="10:0")), "in a circle"),
        # every text twice as long as that before
        (graph(n6=node("ConditioningConcat", conditioning_to="20:0", conditioning_from="20:0"), **MERGED), "too many"),
        ({"3": node("KSampler", **SAMPLING)}, "no node in its graph saves a picture"),
    ],
)
def test_what_is_not_understood_is_refused(nodes: Any, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        read(nodes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_text_beside_a_graph_that_is_not_understood() -> None:
    text = "a castle\nSteps: 20, Sampler: dpmpp_2m, Scheduler: karras, CFG scale: 6.5, Seed: 5, Version: ComfyUI"
    found = settings_of(png({"prompt": graph(n5=node("OwnLatent")), "parameters": text}))
    assert (found.program, found.arguments["seed"], found.arguments["noise"]) == ("ComfyUI", 5, "torch")
    assert found.missing[0].startswith("its graph was not read: node 5 (OwnLatent)")


SIZES = {"width": 4096, "height": 2048, "crop_w": 1, "crop_h": 2, "target_width": 832, "target_height": 1216}


@pytest.mark.parametrize(
    "nodes",
    [
        graph(n6=node("CLIPTextEncodeSDXL", **SIZES, text_g="a castle", text_l="a [hill", clip="4:1")),
        graph(
            n3=sampler(model="10:0"),
            n10=node("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2, model="11:0"),
            n11=node("RescaleCFG", multiplier=0.7, model="12:0"),
            n12=node("PerturbedAttentionGuidance", scale=3.0, model="4:0"),
        ),
        graph(
            n3=node("SamplerCustom", **CUSTOM),
            n10=SELECT,
            n11=node("SDTurboScheduler", steps=3, denoise=1.0, model="4:0"),
        ),
    ],
)
def test_plans_can_be_made(nodes: Any, small: Any) -> None:
    """`generate` takes what was read."""
    settings = read(nodes)
    assert small[0].plan(**settings.arguments).scheduler == settings.arguments["scheduler"]


def test_ddim_with_a_mask() -> None:
    """It is Euler's method but for the noise of what is kept."""
    masked = {
        "n5": node("SetLatentNoiseMask", samples="11:0", mask="10:1"),
        "n10": node("LoadImage", image="castle.png"),
    }
    masked |= {"n11": node("VAEEncode", pixels="10:0", vae="4:2")}
    for name, more in (("euler", []), ("ddim", ["ddim with a mask"])):
        found = read(graph(n3=sampler(denoise=0.5, sampler_name=name), **masked))
        assert lines(found) == ["the mask", *more, "the picture that it was drawn from"]
        assert found.arguments["scheduler"].startswith("euler")


PERP_NEG = {"empty_conditioning": "10:0", "neg_scale": 0.5}
NO_TEXT = node("CLIPTextEncode", text=" ", clip="4:1")
AVOIDED = node("CLIPTextEncode", text="rain", clip="4:1")


def perpendicular(empty: Any = NO_TEXT, negative: Any = AVOIDED, **more: Any) -> Settings:
    """What is read of a graph with the guider."""
    links = {"noise": "12:0", "guider": "13:0", "sampler": "14:0", "sigmas": "11:0", "latent_image": "5:0"}
    guider = {"model": "4:0", "positive": "6:0", "negative": "7:0", "cfg": 6.5, **PERP_NEG, **more}
    return read(
        graph(
            n3=node("SamplerCustomAdvanced", **links),
            n7=negative,
            n10=empty,
            n11=BASIC,
            n12=node("RandomNoise", noise_seed=2**63 + 5),
            n13=node("PerpNegGuider", **guider),
            n14=SELECT,
            n15=node("RescaleCFG", multiplier=0.7, model="4:0"),
            n16=node("PerpNeg", model="15:0", **{**PERP_NEG, "neg_scale": 9}),
        )
    )


ASKED_PERP_NEG = {**BASICS, "negative_prompt": "rain", "empty_negative": "encoded", "perp_neg_scale": 0.5}


def test_a_perpendicular_negative_prompt(small: Any) -> None:
    """By the guider, which guides alone, and by the node for a model that was there before, of which the last does."""
    assert perpendicular() == Settings("ComfyUI", "", ASKED_PERP_NEG, (BASE,))
    assert perpendicular(model="16:0").arguments == ASKED_PERP_NEG
    assert small[0].plan(**ASKED_PERP_NEG).bucket.perp_neg
    zeros = perpendicular(node("ConditioningZeroOut", conditioning="6:0"))
    assert zeros == Settings("ComfyUI", "", {**ASKED_PERP_NEG, "empty_negative": "zeros"}, (BASE,))
    patch, rescale = node("PerpNeg", model="4:0", **PERP_NEG), node("RescaleCFG", multiplier=0.7, model="15:0")
    rest = {"n7": AVOIDED, "n10": NO_TEXT, "n15": patch, "n16": rescale}
    assert read(graph(n3=sampler(model="15:0"), **rest)).arguments == ASKED_PERP_NEG
    rescaled = read(graph(n3=sampler(model="16:0"), **rest))
    assert rescaled.arguments == {**BASICS, "negative_prompt": "rain", "guidance_rescale": 0.7}


def test_an_empty_text_beside_it() -> None:
    """At a scale of 0 it is the negative prompt; what jaxl's empty text is not is said."""
    off = perpendicular(neg_scale=0.0)
    assert off.arguments == {**{k: v for k, v in BASICS.items() if k != "negative_prompt"}, "empty_negative": "encoded"}
    assert not off.missing
    assert lines(perpendicular(node("CLIPTextEncode", text="photo", clip="4:1"))) == [
        "the empty text of node 13 (PerpNegGuider): photo"
    ]
    sized = node("CLIPTextEncodeSDXL", **SIZES, text_g="", text_l="", clip="4:1")
    for empty, negative in ((sized, AVOIDED), (NO_TEXT, {**sized, "inputs": {**sized["inputs"], "text_g": "rain"}})):
        assert lines(perpendicular(empty, negative)) == ["the sizes that node 13 (PerpNegGuider) tells with it"]
    assert lines(perpendicular(negative=node("ConditioningZeroOut", conditioning="6:0"))) == ["node 13 (PerpNegGuider)"]
    with pytest.raises(InputError, match="in a circle"):
        perpendicular(node("ConditioningSetArea", conditioning="10:0"))
