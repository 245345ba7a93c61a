"""The web UI's API: what webuiapi, Open WebUI and SillyTavern send, what reaches the pipeline, and what is refused."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw

from jaxl.engine import Engine
from jaxl.server.a1111.fields import MAY_BE_UNASKED
from jaxl.server.a1111.options import NEUTRAL
from jaxl.server.a1111.routes import LACKING
from jaxl.server.service import Service
from jaxl.server.settings import Settings
from jaxl.weights.inversions import Summary

Until = Callable[[Callable[[], bool]], None]
SLOW = pytest.mark.parametrize("row_seconds", [0.01])
JSON = {"Content-Type": "application/json"}
GREY = Image.new("RGB", (32, 32), (90, 120, 150))
LENIENT = {"prompt_syntax": "lenient"}


def encoded(image: Image.Image, **how: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG", **how)
    return base64.b64encode(stream.getvalue()).decode()


def decoded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def square(background: str = "black", colour: str = "white", mode: str = "L") -> Image.Image:
    """A mask whose middle is of another colour."""
    mask = Image.new(mode, (32, 32), background)
    ImageDraw.Draw(mask).rectangle((8, 8, 23, 23), fill=colour)
    return mask


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/sdapi/v1/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, path: str, status: int, **body: Any) -> str:
    """The line that a request is refused with."""
    response = client.post(f"/sdapi/v1/{path}", json=body)
    assert response.status_code == status, response.text
    answer = response.json()
    assert set(answer) == {"error", "detail", "body", "errors"}
    assert "\n" not in answer["detail"]
    return answer["detail"]


class TestWebuiapi:
    def test_txt2img(self, api: webuiapi.WebUIApi) -> None:
        how = {"prompt": "a red apple", "negative_prompt": "blurry", "width": 32, "height": 32, "batch_size": 2}
        result = api.txt2img(**how, n_iter=2, seed=7, sampler_name="DPM++ 2M", scheduler="Karras", cfg_scale=4.5)
        assert [image.size for image in result.images] == [(32, 32)] * 4
        assert len({image.tobytes() for image in result.images}) == 4
        info = result.info
        assert (info["seed"], info["all_seeds"]) == (7, [7, 8, 9, 10])
        assert (info["prompt"], info["negative_prompt"]) == ("a red apple", "blurry")
        assert (info["sampler_name"], info["cfg_scale"], info["steps"]) == ("DPM++ 2M", 4.5, 4)
        assert (info["width"], info["height"]) == (32, 32)
        assert [image.info["parameters"] for image in result.images] == info["infotexts"]
        assert "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 9" in info["infotexts"][2]
        alone = api.txt2img(
            **{**how, "batch_size": 1}, seed=9, sampler_name="DPM++ 2M", scheduler="Karras", cfg_scale=4.5
        )
        assert alone.image.tobytes() == result.images[2].tobytes()

    def test_img2img(self, api: webuiapi.WebUIApi, asked: list[Mapping[str, Any]]) -> None:
        result = api.img2img([GREY], prompt="an apple", width=32, height=32, denoising_strength=0.5, seed=1)
        assert asked[0]["strength"] == 0.5
        assert asked[0]["image"].tobytes() == GREY.tobytes()
        assert result.info["denoising_strength"] == 0.5
        assert result.parameters["denoising_strength"] == 0.5
        assert "init_images" not in result.parameters

    def test_inpainting_leaves_the_rest_as_it_is(self, api: webuiapi.WebUIApi) -> None:
        result = api.img2img([GREY], mask_image=square(), prompt="an apple", width=32, height=32, mask_blur=0, seed=1)
        drawn, before = np.asarray(result.image), np.asarray(GREY)
        outside = np.asarray(square()) == 0
        np.testing.assert_array_equal(drawn[outside], before[outside])
        assert (drawn[~outside] != before[~outside]).any()
        assert "compositeWithTrainedAlgorithmicMedia" in result.image.info["XML:com.adobe.xmp"]

    def test_lists(self, api: webuiapi.WebUIApi) -> None:
        assert api.util_get_model_names() == ["tiny"]
        assert api.util_get_sampler_names() == ["DDIM", "DPM++ 2M", "Euler"]
        assert api.util_get_scheduler_names() == ["automatic", "checkpoint", "karras"]
        assert [each["name"] for each in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
        assert [each["name"] for each in api.get_latent_upscale_modes()][:2] == ["Latent", "Latent (antialiased)"]
        assert api.get_sd_vae() == api.get_hypernetworks() == []
        assert api.get_face_restorers() == api.get_realesrgan_models() == api.get_prompt_styles() == []
        assert list(api.get_scripts().values()) == [["controlnet", "tiled diffusion"]] * 2
        assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
        assert set(api.get_memory()) == {"ram", "cuda"}
        assert api.get_cmd_flags() == {}
        assert api.refresh_checkpoints() is None

    def test_options(self, api: webuiapi.WebUIApi) -> None:
        assert api.util_get_current_model() == "tiny"
        assert api.set_options(api.get_options()) is None
        api.util_set_model("Tiny")
        api.util_wait_for_ready(check_interval=0.01)
        assert "this server has 'tiny'" in api.set_options({"sd_model_checkpoint": "sd_xl_base"})["detail"]

    def test_png_info(self, api: webuiapi.WebUIApi) -> None:
        drawn = api.txt2img(prompt="a, b: c", negative_prompt="d", width=32, height=32, seed=3).image
        read = api.png_info(drawn)
        assert read.info == drawn.info["parameters"]
        told = read.parameters
        assert (told["Prompt"], told["Negative prompt"], told["Seed"], told["Steps"]) == ("a, b: c", "d", "3", "4")

    @SLOW
    def test_progress_and_interrupt(
        self, row_seconds: float, api: webuiapi.WebUIApi, engine: Engine, until: Until
    ) -> None:
        idle = api.get_progress()
        assert (idle["progress"], idle["eta_relative"], idle["state"]["job_count"]) == (0, 0, 0)
        assert idle["current_image"] is None
        with ThreadPoolExecutor() as threads:
            drawing = threads.submit(api.txt2img, prompt="slow", width=32, height=32, steps=500, batch_size=2)
            until(lambda: api.get_progress()["current_image"] is not None)
            running = api.get_progress()
            assert 0 < running["progress"] < 1
            assert running["eta_relative"] > 0
            assert (running["state"]["job_count"], running["state"]["job_no"]) == (2, 0)
            assert decoded(running["current_image"]).size == (8, 8)
            skipped = httpx.get(f"{api.baseurl}/progress", params={"skip_current_image": True}).json()
            assert skipped["current_image"] is None
            assert api.interrupt() == {}
            assert [image.size for image in drawing.result().images] == [(32, 32)] * 2, "as they are, as in A1111"
        until(lambda: engine.stats().running == 0)
        assert api.get_progress()["state"]["job_count"] == 0


def webui_client(url: str, key: str) -> httpx.Client:
    """As Open WebUI and SillyTavern are: the user's name and password are sent with each call."""
    return httpx.Client(base_url=f"{url}/sdapi/v1", auth=("user", key), timeout=600)


class TestWithKey:
    @pytest.fixture
    def settings(self) -> Settings:
        return Settings(model="tiny", sizes=((32, 32),), api_keys=("secret",))

    def test_open_webui(self, url: str) -> None:
        """Its settings page, its list of models, the choice of one, and a picture of a chat."""
        with webui_client(url, "secret") as web:
            assert web.get("/options").raise_for_status()
            models = [(each["title"], each["model_name"]) for each in web.get("/sd-models").json()]
            assert models == [("tiny", "tiny")]
            options = web.get("/options").json() | {"sd_model_checkpoint": models[0][0]}
            assert web.post("/options", json=options).raise_for_status().json() is None
            body = {"prompt": "an apple", "batch_size": 1, "width": 32, "height": 32, "steps": 4}
            body |= {"negative_prompt": "", "sampler_name": "Euler a", "cfg_scale": 7, "scheduler": "Automatic"}
            answer = web.post("/txt2img", json=body).raise_for_status().json()
            assert [decoded(image).size for image in answer["images"]] == [(32, 32)]
            assert json.loads(answer["info"])["prompt"] == "an apple"

    def test_silly_tavern(self, url: str) -> None:
        """Its connection, its lists, the choice of a model, and a picture of a chat."""
        with webui_client(url, "secret") as web:
            for path in (
                "options",
                "samplers",
                "schedulers",
                "sd-models",
                "upscalers",
                "latent-upscale-modes",
                "sd-vae",
            ):
                assert web.get(f"/{path}").raise_for_status()
            assert {"Euler", "Euler a", "DPM++ 2M"} <= {each["name"] for each in web.get("/samplers").json()}
            assert web.post("/options", json={"sd_model_checkpoint": "tiny"}).raise_for_status()
            progress = web.get("/progress").json()
            assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
            body = {
                "url": "http://somewhere:7860",
                "auth": "user:secret",
                "prompt": "an apple",
                "negative_prompt": "blurry",
                "sampler_name": "DDIM",
                "scheduler": "normal",
                "steps": 4,
                "cfg_scale": 7,
                "width": 32,
                "height": 32,
                "restore_faces": False,
                "enable_hr": False,
                "hr_upscaler": "Latent",
                "hr_scale": 1,
                "hr_additional_modules": [],
                "denoising_strength": 0.7,
                "hr_second_pass_steps": 0,
                "override_settings": {"CLIP_stop_at_last_layers": 1},
                "override_settings_restore_afterwards": True,
                "clip_skip": 1,
                "save_images": True,
                "send_images": True,
                "do_not_save_grid": False,
                "do_not_save_samples": False,
            }
            assert len(web.post("/txt2img", json=body).raise_for_status().json()["images"]) == 1
            assert web.post("/interrupt").raise_for_status()

    def test_wrong_key(self, url: str) -> None:
        with webui_client(url, "guess") as web:
            answer = web.post("/txt2img", json={"prompt": "an apple"})
        assert answer.status_code == 401
        assert "Authorization" in answer.json()["detail"]


class TestOthers:
    """Users of one server, told apart by their keys."""

    @SLOW
    def test_neither_see_nor_stop_each_other(self, row_seconds: float, url: str, engine: Engine, until: Until) -> None:
        with webui_client(url, "one") as one, webui_client(url, "two") as two, ThreadPoolExecutor() as threads:
            body = {"prompt": "slow", "steps": 100}
            drawing = threads.submit(one.post, "/txt2img", json=body)
            until(lambda: one.get("/progress").json()["progress"] > 0)
            seen = two.get("/progress").json()
            assert (seen["progress"], seen["state"]["job_count"], seen["current_image"]) == (0, 0, None)
            assert two.post("/interrupt").json() == two.post("/skip").json() == {}
            assert drawing.result().status_code == 200

    @SLOW
    def test_skip_goes_on_with_the_next(self, row_seconds: float, url: str, engine: Engine, until: Until) -> None:
        with webui_client(url, "one") as one, ThreadPoolExecutor() as threads:
            first = threads.submit(one.post, "/txt2img", json={"prompt": "first", "steps": 1000})
            until(lambda: len(engine.tickets()) == 1)
            second = threads.submit(one.post, "/txt2img", json={"prompt": "second", "steps": 20})
            until(lambda: len(engine.tickets()) == 2)
            assert one.post("/skip").json() == {}
            assert first.result().status_code in (200, 499), "499 if it had not begun"
            assert second.result().status_code == 200

    @SLOW
    def test_who_leaves_is_not_drawn_for(self, row_seconds: float, url: str, engine: Engine, until: Until) -> None:
        address = urlsplit(url)
        leaving = HTTPConnection(address.hostname or "", address.port)
        body = json.dumps({"prompt": "slow", "steps": 1000})
        leaving.request("POST", "/sdapi/v1/txt2img", body, {"Content-Type": "application/json"})
        until(lambda: len(engine.tickets()) == 1)
        leaving.close()
        until(lambda: not engine.tickets())
        until(lambda: engine.stats().requests_cancelled == 1)  # which is counted after the ticket is gone
        until(lambda: httpx.get(f"{url}/sdapi/v1/progress").json()["state"]["job_count"] == 0)

    @SLOW
    def test_who_waits_is_told(self, row_seconds: float, url: str, service: Service, until: Until) -> None:
        with webui_client(url, "one") as one, webui_client(url, "two") as two, ThreadPoolExecutor() as threads:
            body = {"prompt": "slow", "steps": 200, "batch_size": 5}
            first = threads.submit(one.post, "/txt2img", json=body)
            until(lambda: service.engine.stats().running == 4)
            second = threads.submit(two.post, "/txt2img", json={**body, "batch_size": 1})
            until(lambda: two.get("/progress").json()["textinfo"] == "1 images of others are drawn first")
            until(lambda: two.get("/progress").json()["eta_relative"] > 0)  # known after a first call of the devices
            one.post("/interrupt")
            two.post("/interrupt")
            assert len(first.result().json()["images"]) == 4, "those of five that had begun"
            assert second.result().status_code in (200, 499), "a place was free for it, or not yet"


class TestArguments:
    def test_what_is_not_given_is_left_to_the_model(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        answer = post(client, "txt2img", prompt="an apple", seed=5)
        assert asked == [{"prompt": "an apple", "num_images": 1, "seed": 5, "width": 32, "height": 32, **LENIENT}]
        info = json.loads(answer["info"])
        assert (info["steps"], info["cfg_scale"], info["sampler_name"]) == (25, 5.0, "Euler")

    def test_null_is_not_given(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        nothing = dict.fromkeys(("negative_prompt", "steps", "n_iter", "batch_size", "styles", "eta", "s_tmax"))
        post(client, "txt2img", prompt=None, seed=5, **nothing)
        assert asked == [{"prompt": "", "num_images": 1, "seed": 5, "width": 32, "height": 32, **LENIENT}]

    @pytest.mark.parametrize("seed", [-1, None])
    def test_random_seeds(self, client: TestClient, seed: int | None) -> None:
        seeds = {json.loads(post(client, "txt2img", prompt="a", seed=seed)["info"])["seed"] for _ in range(4)}
        assert len(seeds) == 4

    def test_noise(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        names = ("noise", "eta_noise_seed_delta", "variation_seed", "variation_strength", "seed_resize_from")
        sizes = {"seed_resize_from_w": 512, "seed_resize_from_h": 640}
        source = {"randn_source": "CPU", "eta_noise_seed_delta": "31337"}
        varied = {"subseed": 9, "subseed_strength": 0.25, **sizes, "override_settings": source}
        info = json.loads(post(client, "txt2img", prompt="a", n_iter=2, **varied)["info"])
        assert [asked[0].get(name) for name in names] == ["torch", 31337, 9, 0.25, (512, 640)]
        assert (info["all_subseeds"], info["subseed_strength"], info["seed_resize_from_h"]) == ([9, 10], 0.25, 640)
        assert "Variation seed: 10, Variation seed strength: 0.25" in info["infotexts"][1]
        post(client, "txt2img", subseed=9, seed_resize_from_w=512)  # without the other, nothing is asked
        assert [asked[1].get(name) for name in names] == [None] * 5
        post(client, "txt2img", subseed_strength=1, override_settings={"eta_noise_seed_delta": 1})
        assert (asked[2]["noise"], asked[2]["eta_noise_seed_delta"]) == ("cuda", 1)
        assert asked[2]["variation_seed"] != asked[2]["seed"]

    def test_randomness(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        churn = {"s_churn": 0.5, "s_tmin": 0.1, "s_tmax": 0, "s_noise": 1}
        post(client, "txt2img", sampler_name="Euler", eta=1.0, **churn)
        assert {name: asked[0].get(name) for name in ("eta", *churn)} == {
            "eta": None,  # Euler has none
            "s_churn": 0.5,
            "s_tmin": 0.1,
            "s_tmax": None,
            "s_noise": None,
        }
        post(client, "txt2img", sampler_name="Euler a", eta=0.5, s_churn=0, s_tmin=0.1, s_tmax=9, s_noise=1.1)
        assert {name: asked[1].get(name) for name in ("eta", *churn)} == {
            "eta": 0.5,
            "s_churn": None,
            "s_tmin": None,
            "s_tmax": None,
            "s_noise": 1.1,
        }

    @pytest.mark.parametrize(
        ("given", "skip"),
        [
            ({"override_settings": {"CLIP_stop_at_last_layers": 1}}, None),
            ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, None),
            ({"override_settings": {"CLIP_stop_at_last_layers": 4}}, 2),
            ({"clip_skip": 3}, 1),
        ],
    )
    def test_clip_skip(
        self, client: TestClient, asked: list[Mapping[str, Any]], given: dict[str, Any], skip: int | None
    ) -> None:
        info = json.loads(post(client, "txt2img", **given)["info"])
        assert asked[0].get("clip_skip") == skip
        assert info["clip_skip"] == (skip or 0) + 2

    def test_no_images_are_sent_if_none_are_wanted(self, client: TestClient) -> None:
        answer = post(client, "txt2img", prompt="an apple", send_images=False)
        assert answer["images"] == []
        assert json.loads(answer["info"])["prompt"] == "an apple"


class TestRefused:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("enable_hr", True),
            ("refiner_switch_at", 2),
            ("restore_faces", True),
            ("styles", ["anime"]),
            ("s_min_uncond", 1.0),
            ("script_name", "X/Y/Z plot"),
            ("infotext", "an apple"),
            ("initial_noise_multiplier", 1.5),
            ("alwayson_scripts", {"ADetailer": {"args": [True, {"ad_model": "face"}]}}),
            ("alwayson_scripts", {"ControlNet": {"args": [{"image": "...", "model": "canny"}]}}),
            ("clip_skip", 101),
            ("seed", -2),
            ("seed", 2**64),
            ("width", 1),
            ("height", 100_000),
            ("steps", 0),
            ("cfg_scale", "much"),
            ("batch_size", 10**9),
            ("override_settings", [1]),
            ("eta", 1.5),
        ],
    )
    def test_fields(self, client: TestClient, field: str, value: Any) -> None:
        response = client.post("/sdapi/v1/txt2img", json={"prompt": "an apple", field: value})
        assert response.status_code in (400, 422)
        assert response.json()["detail"].startswith(field)

    @pytest.mark.parametrize(
        ("name", "value", "status"),
        [
            ("sd_model_checkpoint", "sd_xl_base_1.0", 404),
            ("sd_vae", "sdxl_vae.safetensors", 422),
            ("forge_additional_modules", ["ae.safetensors"], 422),
            ("eta_noise_seed_delta", "many", 422),
            ("CLIP_stop_at_last_layers", "2", 422),
            ("CLIP_stop_at_last_layers", True, 422),
            ("samples_format", "jpg", 422),
            ("emphasis", "No norm", 422),
            ("randn_source", "TPU", 422),
            ("sd_noise_schedule", "Zero Terminal SNR", 422),
            ("sd_vae_decode_method", "TAESD", 422),
            ("use_old_karras_scheduler_sigmas", True, 422),
            ("sdxl_crop_top", 64, 422),
            ("rho", 3.0, 422),
        ],
    )
    def test_options(self, client: TestClient, name: str, value: Any, status: int) -> None:
        assert refused(client, "txt2img", status, override_settings={name: value}).startswith(name)
        assert refused(client, "options", status, **{name: value}).startswith(name)

    def test_options_that_are_fields(self, client: TestClient) -> None:
        line = refused(client, "txt2img", 422, override_settings={"eta_ancestral": 0.5})
        assert line == "eta_ancestral=0.5: send the field eta; leave it out, or give 1"

    def test_options_that_would_have_to_be_kept(self, client: TestClient) -> None:
        assert "override_settings" in refused(client, "options", 422, CLIP_stop_at_last_layers=3)

    @pytest.mark.parametrize(
        "neutral",
        [
            {"alwayson_scripts": {"ADetailer": {"args": [False]}, "ControlNet": {"args": []}, "animatediff": {}}},
            {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": False, "model": "canny"}]}}},
            {
                "override_settings": {
                    "sd_model_checkpoint": "tiny.safetensors",
                    "sd_vae": "Automatic",
                    "show_progress": 1,
                }
            },
            {"override_settings": {"sd_vae": None, "forge_additional_modules": []}},
            {"override_settings": {"what": "\ud800", "ever": float("inf")}},
            {"refiner_checkpoint": "None", "subseed_strength": 0, "seed_resize_from_h": -1, "script_name": ""},
            {"alwayson_scripts": {"A": {"args": [None, "None", ""]}, "B": {"args": [{}]}, "C": {"args": [[]]}}},
            # what the options are without a choice, numbers also as texts
            {"override_settings": {name: values[0] for name, values in NEUTRAL.items()}},
            {"override_settings": {name: str(values[-1]) for name, values in NEUTRAL.items()}},
            # and what clients write into fields that they know and do not use
            *(
                dict.fromkeys(MAY_BE_UNASKED, nothing)
                for nothing in (
                    None,
                    "",
                    "None",
                    "none",
                    "Automatic",
                    0,
                    -1,
                    False,
                    "0",
                    "false",
                    [],
                    {},
                    [""],
                    ["None"],
                )
            ),
            {"sampler_name": "Use same sampler", "scheduler": "Use same scheduler", "styles": ["None", ""]},
            {"initial_noise_multiplier": 1, "unknown": {"to": ["all"]}},
        ],
    )
    def test_what_asks_for_nothing_passes(self, client: TestClient, neutral: dict[str, Any]) -> None:
        response = client.post("/sdapi/v1/txt2img", content=json.dumps({"prompt": "an apple", **neutral}), headers=JSON)
        assert response.status_code == 200, response.text

    @pytest.mark.parametrize(("batch_size", "n_iter", "name"), [(11, 1, "batch_size=11"), (3, 4, "n_iter=4")])
    def test_too_many_images(self, client: TestClient, batch_size: int, n_iter: int, name: str) -> None:
        line = refused(client, "txt2img", 422, prompt="an apple", batch_size=batch_size, n_iter=n_iter)
        assert line.startswith(name)
        assert "at most 10" in line

    def test_names_are_those_of_the_api(self, client: TestClient) -> None:
        assert refused(client, "txt2img", 400, sampler_name="DPM adaptive").startswith("sampler_name='DPM adaptive'")
        assert refused(client, "txt2img", 400, width=4096, height=4096).startswith("height=4096")
        start = encoded(GREY)
        assert refused(client, "img2img", 400, init_images=[start], denoising_strength=0).startswith(
            "denoising_strength="
        )


class TestRoutes:
    @pytest.mark.parametrize("path", [f"/sdapi/v1/{name}" for name in LACKING])
    def test_what_jaxl_lacks_is_told_by_name(self, client: TestClient, path: str) -> None:
        for response in (client.get(path), client.post(path, json={"image": "..."})):
            assert response.status_code == 404
            assert path.removeprefix("/sdapi/v1/").split("/")[0] in response.json()["detail"]
            assert "jaxl lacks it" in response.json()["detail"]

    def test_replicas_keep_the_model(self, client: TestClient) -> None:
        assert refused(client, "unload-checkpoint", 422).startswith("unload-checkpoint: replicas")
        assert post(client, "reload-checkpoint") == {}

    def test_embeddings(self, client: TestClient, service: Service) -> None:
        found = (Summary("EasyNegative", 3, 2048, "c74b4e810b03"), Summary("old", problem="/a/path/old.pt: a pickle"))
        service.settings = replace(service.settings, embeddings=found)
        unsaid = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
        assert client.get("/sdapi/v1/embeddings").json() == {
            "loaded": {"EasyNegative": {**unsaid, "shape": 2048, "vectors": 3}},
            "skipped": {"old": {**unsaid, "shape": 0, "vectors": 0}},
        }

    def test_what_there_is_to_refresh(self, client: TestClient) -> None:
        for name in ("checkpoints", "embeddings", "loras", "vae"):
            assert client.post(f"/sdapi/v1/refresh-{name}").json() is None
        assert client.get("/sdapi/v1/extensions").json() == []


class TestImg2Img:
    def test_ai_render(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        """What Blender's add-on sends for a render, with its own names beside those of the API."""
        own = {"image_similarity": 0.4, "sampler": "LMS", "sampler_index": "LMS", "denoising_strength": 0.6}
        body = {"prompt": "an apple", "negative_prompt": "", "seed": 5, "cfg_scale": 7, "steps": 4, **own}
        body |= {"width": 32, "height": 32, "init_images": [f"data:image/png;base64,{encoded(GREY)}"]}
        assert len(post(client, "img2img", **body)["images"]) == 1
        assert (asked[0]["scheduler"], asked[0]["strength"]) == ("lms", 0.6)

    def test_the_size_is_that_of_the_pictures_shape(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        answer = post(client, "img2img", prompt="an apple", init_images=[encoded(Image.new("RGB", (60, 30)))])
        assert (asked[0]["width"], asked[0]["height"]) == (64, 32)
        assert asked[0]["image"].size == (60, 30)
        assert decoded(answer["images"][0]).size == (64, 32)

    def test_a_mask(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        body = {"init_images": [encoded(GREY)], "mask": encoded(square()), "inpaint_full_res": False}
        post(client, "img2img", **body, mask_blur=2, denoising_strength=1)
        assert "padding_mask_crop" not in asked[0]
        mask = np.asarray(asked[0]["mask"])
        assert mask[15, 15] == 255
        assert mask[0, 0] == 0
        assert 0 < mask[15, 7] < 128 < mask[15, 8] < 255
        post(client, "img2img", **body, mask_blur_x=2, mask_blur_y=0)
        assert 0 < np.asarray(asked[1]["mask"])[15, 7] < 255
        assert np.asarray(asked[1]["mask"])[7, 15] == 0

    def test_a_region_of_its_own(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        body = {"init_images": [encoded(GREY)], "mask": encoded(square())}
        post(client, "img2img", **body, inpaint_full_res_padding=4)
        post(client, "img2img", **body, inpaint_full_res=1)
        assert [each["padding_mask_crop"] for each in asked] == [4, 0]

    @pytest.mark.parametrize(
        "mask", [square("white", "black"), square("#ffffffff", "#00000000", "RGBA"), square("#fff", "#000", "RGBA")]
    )
    def test_an_inverted_mask(self, client: TestClient, asked: list[Mapping[str, Any]], mask: Image.Image) -> None:
        body = {"init_images": [encoded(GREY)], "mask": encoded(mask), "mask_blur": 0}
        post(client, "img2img", **body, inpainting_mask_invert=1)
        np.testing.assert_array_equal(np.asarray(asked[0]["mask"]), np.asarray(square()))

    def test_all_of_a_picture_inverted(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        body = {"init_images": [encoded(GREY)], "mask": encoded(Image.new("L", (32, 32), 0))}
        post(client, "img2img", **body, inpainting_mask_invert=1)
        assert asked[0]["mask"].getextrema() == (255, 255)

    def test_what_is_under_the_mask(self, client: TestClient, asked: list[Mapping[str, Any]]) -> None:
        picture = square("#204060", "#ff0000", "RGB")
        body = {"init_images": [encoded(picture)], "mask": encoded(square()), "mask_blur": 0}
        post(client, "img2img", **body, inpainting_fill=1)
        assert asked[0]["image"].tobytes() == picture.tobytes()
        post(client, "img2img", **body)
        assert abs(np.asarray(asked[1]["image"]).astype(int) - (0x20, 0x40, 0x60)).max() <= 8
        assert "inpainting_fill=2" in refused(client, "img2img", 422, **body, inpainting_fill=2)

    @pytest.mark.parametrize("mode", [1, 2])
    def test_pictures_of_another_aspect(self, client: TestClient, asked: list[Mapping[str, Any]], mode: int) -> None:
        picture = Image.new("RGB", (64, 32), "blue")
        picture.paste("red", (16, 0, 48, 32))
        body = {"init_images": [encoded(picture)], "width": 32, "height": 32}
        post(client, "img2img", **body, resize_mode=0)
        assert asked[0]["image"].size == (64, 32)
        if mode == 1:
            post(client, "img2img", **body, resize_mode=1)
            assert asked[1]["image"].getcolors() == [(32 * 32, (255, 0, 0))]
        else:
            assert refused(client, "img2img", 422, **body, resize_mode=2).startswith("resize_mode=2")
            post(client, "img2img", **{**body, "width": 64}, resize_mode=2)
        assert refused(client, "img2img", 422, **{**body, "width": 64}, resize_mode=3).startswith("resize_mode=3")

    def test_init_images_are_told_again_where_asked(self, client: TestClient) -> None:
        start = encoded(GREY)
        answer = post(client, "img2img", init_images=[start], include_init_images=True)
        assert answer["parameters"]["init_images"] == [start]

    def test_what_is_no_picture(self, client: TestClient) -> None:
        start = encoded(GREY)
        assert refused(client, "img2img", 422, prompt="a").startswith("init_images='0 pictures'")
        assert refused(client, "img2img", 422, init_images=[start, start]).startswith("init_images='2 pictures'")
        for wrong in ("", "no base64!", "http://localhost/secret.png", base64.b64encode(b"GIF89a").decode()):
            assert refused(client, "img2img", 400, init_images=[wrong]).startswith("init_images=")
            if wrong:
                assert refused(client, "img2img", 400, init_images=[start], mask=wrong).startswith("mask=")
        small = encoded(Image.new("L", (16, 16), 255))
        assert "give a mask of the picture's size" in refused(client, "img2img", 400, init_images=[start], mask=small)


class TestPngInfo:
    def test_without_settings(self, client: TestClient) -> None:
        assert post(client, "png-info", image=encoded(GREY)) == {"info": "", "items": {}, "parameters": {}}

    def test_no_picture(self, client: TestClient) -> None:
        assert refused(client, "png-info", 400, image="!").startswith("image=")
