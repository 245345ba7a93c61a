"""Settings that are read from pictures again."""

import base64
import io
import json
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from written_pictures import unicode, with_exif

import jaxl
from jaxl.call.infotext import LABELS, a1111_text, read_a1111_text
from jaxl.metadata import Settings
from jaxl.server.a1111.fields import scheduler_of
from jaxl.server.restore import a1111_settings
from jaxl.server.restore import told as told_of
from jaxl.server.service import Service
from jaxl.weights.inversions import Summary

PATH = "/v1/images/settings"
MADE = {"prompt": "a castle", "seed": 2**64 - 1, "steps": 9, "scheduler": "ddim", "width": 64, "height": 32}


def png(**texts: str) -> str:
    info, stream = PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=info)
    return base64.b64encode(stream.getvalue()).decode()


def test_what_the_server_drew(client: TestClient) -> None:
    asked = {"prompt": "a castle", "seed": 5, "num_inference_steps": 3, "negative_prompt": "rain", "scheduler": "ddim"}
    drawn = client.post("/v1/images/generations", json=asked).json()["data"][0]["b64_json"]
    found = client.post(PATH, json={"image": drawn}).json()
    assert {name: found[name] for name in ("prompt", "negative_prompt", "seed", "steps", "scheduler", "width")} == {
        "prompt": "a castle",
        "negative_prompt": "rain",
        "seed": "5",
        "steps": 3,
        "scheduler": "ddim",
        "width": 32,
    }


def test_every_digit_of_a_seed(client: TestClient) -> None:
    found = client.post(PATH, json={"image": png(jaxl=json.dumps(MADE))}).json()
    assert found == {**MADE, "seed": str(2**64 - 1), "program": "jaxl", "unread": []}


@pytest.mark.parametrize("odd", [5, "edges", [1], [{"name": None}], {}])
def test_controls_are_told_without_their_pictures(client: TestClient, odd: Any) -> None:
    edges = {
        "name": "edges",
        "strength": 0.8,
        "end": 0.5,
        "preprocess": {"name": "canny", "resolution": 64, "low": 50.0},
    }
    told = {**MADE, "controls": [{**edges, "resize_mode": "Just Resize"}, {"name": "depth", "strength": "much"}]}
    found = client.post(PATH, json={"image": png(jaxl=json.dumps(told))}).json()
    assert found["controls"] == [edges]
    assert [line.partition(" (")[0] for line in found["unread"]] == [
        "the picture that edges followed",
        "the picture that depth followed",
    ]
    assert client.post(PATH, json={"image": png(jaxl=json.dumps({**MADE, "controls": odd}))}).status_code == 200


def test_files_of_a1111(client: TestClient) -> None:
    told = {"negative_prompt": "rain", "guidance_scale": 4.5, "scheduler": "dpm++2m_karras", "clip_skip": 1}
    told |= {"strength": 0.5, "guidance_rescale": 0.7, "eta": 0.25}
    text = a1111_text({**MADE, **told, "model": "a/tiny.safetensors", "version": "1"})
    found = client.post(PATH, json={"image": png(parameters=text)}).json()
    assert found.pop("unread") == ["the picture that it was drawn from; give it as image"]
    assert found == {**MADE, **told, "prompt_syntax": "lenient", "seed": str(2**64 - 1), "program": "jaxl"}


def test_units_of_a1111(client: TestClient) -> None:
    """Those that A1111 wrote, and those that are written here."""
    unit = (
        "Module: canny, Model: edges [d14c016b], Weight: 0.8, Resize Mode: Crop and Resize, Processor Res: 512, "
        "Threshold A: 100.0, Threshold B: 200.0, Guidance Start: 0.0, Guidance End: 0.5, Pixel Perfect: False, "
        "Control Mode: My prompt is more important"
    )
    edges = {"name": "edges", "strength": 0.8, "start": 0.0, "end": 0.5, "weighting": "prompt"}
    edges["preprocess"] = {"name": "canny", "resolution": 512, "low": 100.0, "high": 200.0}
    line = f'a castle\nSteps: 9, Sampler: DDIM, Seed: 1, ControlNet 0: "{unit}", ControlNet 1: "Module: x, Model: None"'
    for text in (line, a1111_text({**MADE, "guidance_scale": 4.5, "controls": [edges]})):
        found = client.post(PATH, json={"image": png(parameters=text)}).json()
        assert found["controls"] == [edges]
        followed = "the picture that edges followed (strength 0.8, start 0.0, end 0.5, weighting prompt)"
        assert found["unread"][-1] == f"{followed}; give it as one of controls"
    assert f'ControlNet 0: "{unit.replace(" [d14c016b]", "")}"' in text
    odd = line.replace("100.0", "nan").replace("Weight: 0.8", "Weight: much")
    (read,) = client.post(PATH, json={"image": png(parameters=odd)}).json()["controls"]
    assert "strength" not in read


def test_image_prompts_of_a1111(client: TestClient, service: Service) -> None:
    """They come after the controls; the name tells them where the module does not. The text has no blocks."""
    service.settings = replace(service.settings, ip_adapters=("like",))
    like = {"name": "like", "strength": 0.6, "start": 0.25, "end": 1.0}
    told = {"controls": [{"name": "edges"}], "image_prompts": [{**like, "blocks": "style"}, {"name": "other"}]}
    text = a1111_text({**MADE, "guidance_scale": 4.5, "version": "1", **told})
    unit = "Model: like, Weight: 0.6, Resize Mode: Crop and Resize, Guidance Start: 0.25, Guidance End: 1.0, "
    unit += "Pixel Perfect: False, Control Mode: Balanced"
    assert f'ControlNet 1: "Module: ip-adapter-auto, {unit}"' in text
    for own in ("ip-adapter-auto, Model: like", "none, Model: like [d14c016b]", "CLIP-ViT-H (IPAdapter), Model: like"):
        read = text.replace("ip-adapter-auto, Model: like", own)
        found = client.post(PATH, json={"image": png(parameters=read)}).json()
        assert [each["name"] for each in found["controls"]] == ["edges"]
        assert found["image_prompts"] == [like, {"name": "other", "strength": 1.0, "start": 0.0, "end": 1.0}]
        told_of_pictures = [line.partition(" (")[0] for line in found["unread"][1:]]
        assert told_of_pictures == [f"the pictures that {name} read" for name in ("like", "other")]


def test_textual_inversions(client: TestClient, service: Service) -> None:
    """Those that this server has need no word: the prompt names them."""
    service.settings = replace(service.settings, embeddings=(Summary("EasyNegative", 3, 2048, "c74b4e810b03"),))

    def line(name: str, hash: str) -> str:
        return f"the textual inversion {name} (hash {hash}); load it, as embedding"

    for embeddings, unread in (
        ({"EasyNegative": "c74b4e810b03"}, []),
        (
            {"EasyNegative": "c74b4e810b03", "x": "0123456789ab"},
            [line("x", "0123456789ab")],
        ),
        (
            {"EasyNegative": "another"},
            [line("EasyNegative", "another")],
        ),
    ):
        told = {**MADE, "guidance_scale": 4.5, "version": "1", "embeddings": embeddings}
        for kind, text in (("jaxl", json.dumps(told)), ("parameters", a1111_text(told))):
            found = client.post(PATH, json={"image": png(**{kind: text})}).json()
            assert found["unread"] == unread
            assert "embeddings" not in found
    for odd in (5, ["x"], "x", None):
        assert client.post(PATH, json={"image": png(jaxl=json.dumps({**MADE, "embeddings": odd}))}).status_code == 200


def test_a_picture_as_the_body(client: TestClient) -> None:
    data = with_exif("JPEG", unicode("a castle\nSteps: 9, Seed: 5, CFG scale: 4"))
    found = client.post(PATH, json={"image": base64.b64encode(data).decode()}).json()
    assert (found["prompt"], found["steps"], found["seed"]) == ("a castle", 9, "5")
    assert client.post(PATH, content=data, headers={"Content-Type": "image/jpeg"}).json() == found
    for kind, body, status in (("text/plain", data, 415), ("image/png", b"no picture", 400), ("image/png", b"", 400)):
        answer = client.post(PATH, content=body, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_pictures_of_others(client: TestClient, service: Service) -> None:
    """Which LoRAs are lacking is told, and strengths are numbers."""
    told = {"c": "a castle", "uc": "", "sampler": "Euler", "seed": 5, "steps": 9, "size": "64x32"}
    told["lora"] = [{"model": "ink.ckpt", "weight": 0.5}]
    data = with_exif("WEBP", json.dumps(told).encode())
    found = client.post(PATH, content=data, headers={"Content-Type": "image/webp"}).json()
    assert (found["program"], found["loras"]) == ("Draw Things", {"ink": 0.5})
    assert found["unread"][0] == "the LoRA ink (0.5); load it, as one of loras, or take it out of prompt"
    assert told_of(Settings("ComfyUI", "", {"loras": {"ink": jaxl.Strength(0.5, 1.0)}}))["loras"] == {"ink": 0.5}


def test_limits(client: TestClient, service: Service) -> None:
    service.settings = replace(service.settings, max_pixels=63)
    answer = client.post(PATH, json={"image": png(jaxl=json.dumps(MADE))})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    assert "more than 63 pixels" in answer.json()["error"]["message"]


def test_what_cannot_be_read_is_told(client: TestClient) -> None:
    line = f"Steps: many, Sampler: Own sampler, CFG scale: inf, Seed: 1.5, Size: large, Eta: {'9' * 400}, Model: other"
    text = f"a castle\n{line}, Clip skip: two, Denoising strength: 3, Hires upscale: 2, Hires upscaler: Latent, "
    text += f"RNG: unknown, Version: v1.10.1, Model hash: 0123456789, Refiner: None, {'ab' * 20}: {'c' * 1000}"
    found = client.post(PATH, json={"image": png(parameters=text)}).json()
    unread = found.pop("unread")
    assert found == {"prompt": "a castle", "prompt_syntax": "lenient", "style": "a1111", "program": "A1111"}
    assert [line.partition(";")[0] for line in unread] == [
        "the checkpoint other (hash 0123456789)",
        "the second pass: Hires upscale: 2, Hires upscaler: Latent, Denoising strength: 3",
        "Sampler: Own sampler",
        f"Eta: {'9' * 195}",
        "Seed: 1.5",
        "Steps: many",
        "CFG scale: inf",
        "Size: large",
        "Clip skip: two",
        f"{'ab' * 20}: {'c' * 158}",
        "the noise: RNG unknown",
    ]


@pytest.mark.parametrize(
    ("sampler", "label", "noise"),
    [
        ("DPM++ 2M", "NV", "nv"),
        ("Euler", "CPU", "torch"),
        ("Euler", "GPU", "cuda"),
        ("Euler", "cuda:t4", "cuda:t4"),
        ("Euler a", "NV", "nv"),
        ("Restart", "NV", "nv"),
        ("Euler", "TPU", None),
    ],
)
def test_other_noise(sampler: str, label: str, noise: str | None) -> None:
    told = {"Prompt": "a", "Sampler": sampler, "Schedule type": "Uniform", "RNG": label}
    found = a1111_settings(told, "euler")
    assert found.get("noise") == noise
    assert [line.partition(";")[0] for line in found["unread"]] == ([] if noise else [f"the noise: RNG {label}"])
    written = a1111_text({**MADE, "guidance_scale": 5.0, "scheduler": found["scheduler"], "noise": noise or "jaxl"})
    assert read_a1111_text(written).get("RNG") == (label if noise else None)


@pytest.mark.parametrize(
    ("told", "scheduler", "unread"),
    [
        ({"Sampler": "dpmpp_2m", "Scheduler": "karras"}, "dpm++2m_karras", []),
        ({"Sampler": "dpmpp_2m", "Scheduler": "sgm_uniform"}, "dpm++2m_sgm_uniform", []),
        ({"Sampler": "dpmpp_3m_sde_gpu", "Scheduler": "exponential"}, "dpm++3m_sde_exponential", []),
        ({"Sampler": "DPM++ 2M", "Schedule type": "Automatic"}, "dpm++2m_karras", []),
        ({"Sampler": "DPM++ 2M Karras"}, "dpm++2m_karras", []),
        ({"Sampler": "Euler a", "Schedule type": "Bong"}, "euler_a", ["Schedule type: Bong"]),
        ({"Sampler": "Euler a", "Schedule type": ""}, "euler_a", []),
        ({"Sampler": "Kohaku", "Schedule type": "Karras"}, None, ["Sampler: Kohaku", "Schedule type: Karras"]),
        ({"Schedule type": "Karras"}, "euler_karras", []),
        ({}, None, []),
    ],
)
def test_samplers(told: dict[str, str], scheduler: str | None, unread: list[str]) -> None:
    found = a1111_settings(told, "euler")
    assert (found.get("scheduler"), [line.partition(";")[0] for line in found["unread"]]) == (scheduler, unread)


@pytest.mark.parametrize("sampler", ["DPM++ 2M", "dpmpp_2m"])
def test_a_sampler_alone_has_no_other_schedule(sampler: str) -> None:
    """As in A1111 before 1.9, when Karras' was named; `Automatic` is something else."""
    assert a1111_settings({"Sampler": sampler}, "euler")["scheduler"] == scheduler_of(sampler, "Uniform", "euler")


@pytest.mark.parametrize(("told", "skip"), [("1", None), ("2", None), ("3", 1), ("-5", None), ("12", 10)])
def test_clip_skip(told: str, skip: int | None) -> None:
    found = a1111_settings({"Clip skip": told}, "euler")
    assert (found.get("clip_skip"), found["unread"]) == (skip, [])


@given(st.dictionaries(st.sampled_from([*LABELS.values(), "Size", "Sampler", "Scheduler", "Clip skip"]), st.text()))
def test_any_settings(told: dict[str, str]) -> None:
    json.dumps(a1111_settings(told, "euler"), allow_nan=False)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (png(), "no settings"),
        (png(parameters='{"settings": {"prompt": "a"}}'), "no settings"),
        (png(jaxl="{"), "damaged settings"),
        (png(jaxl="[]"), "damaged settings"),
        (png(jaxl='{"steps": 1e999}'), "1e999 is no JSON number"),
        (png(jaxl="{" * 100_000), "damaged settings"),
        (base64.b64encode(b"text").decode(), "not a PNG"),
        ("https://example.org/a.png", "URLs are not fetched"),
    ],
)
def test_mistakes(client: TestClient, image: str, word: str) -> None:
    answer = client.post(PATH, json={"image": image})
    assert answer.status_code == 400
    error: dict[str, Any] = answer.json()["error"]
    assert error["param"] == "image"
    assert word in error["message"]


def test_noise_between_seeds_and_of_other_sizes() -> None:
    """Both ways; what another program's noise alone has means A1111's usual one."""
    own = {"noise": "torch", "variation_seed": 4294967295, "variation_strength": 0.25, "eta_noise_seed_delta": 31337}
    own["seed_resize_from"] = (512, 640)
    text = a1111_text({**MADE, "guidance_scale": 5.0, **own})
    pairs = {"Variation seed": "4294967295", "Variation seed strength": "0.25", "Seed resize from": "512x640"}
    pairs |= {"ENSD": "31337", "RNG": "CPU"}
    assert {name: read_a1111_text(text)[name] for name in pairs} == pairs
    found = a1111_settings(read_a1111_text(text), "euler")
    assert {name: found[name] for name in own} == own
    del pairs["RNG"]
    found = a1111_settings({"Prompt": "a", **pairs}, "euler")
    assert {name: found[name] for name in own} == {**own, "noise": "cuda"}
    assert found["unread"] == []
