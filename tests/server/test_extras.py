"""A1111's tab "Extras": lists, sizes, what is mixed and cut off, texts that stay, and what is refused."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import webuiapi
from fastapi.testclient import TestClient
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxl.engine import Engine
from jaxl.errors import UnloadedError
from jaxl.server.a1111.extras import MOST_WAITING, RESAMPLED
from jaxl.server.app import create_app
from jaxl.server.keys import Key, digest_of, write_line
from jaxl.server.service import Service
from jaxl.server.settings import WITHOUT_NETWORK, Settings, read_upscalers

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8))


@pytest.fixture
def settings() -> Settings:
    return Settings(model="tiny", sizes=((32, 32),), upscalers=(("4x-Sharp", 4),))


def encoded(image: Image.Image, texts: Mapping[str, str] | None = None) -> str:
    info, stream = PngInfo(), io.BytesIO()
    for name, text in (texts or {}).items():
        info.add_itxt(name, text)
    image.save(stream, "PNG", pnginfo=info)
    return base64.b64encode(stream.getvalue()).decode()


def enlarged(client: TestClient, image: Image.Image = NOISE, **how: Any) -> Image.Image:
    answer = client.post("/sdapi/v1/extra-single-image", json={"image": encoded(image), **how})
    assert answer.status_code == 200, answer.text
    return without_texts(Image.open(io.BytesIO(base64.b64decode(answer.json()["image"]))))


def without_texts(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image))


def test_webuiapi(url: str) -> None:
    where = urlsplit(url)
    api = webuiapi.WebUIApi(host=where.hostname, port=where.port)
    with api.session:
        listed = {each["name"]: each["scale"] for each in api.get_upscalers()}
        assert listed == {"None": 1, "Lanczos": 4, "Nearest": 4, "4x-Sharp": 4}
        made = api.extra_single_image(NOISE, upscaler_1="Nearest", upscaling_resize=2)
        assert without_texts(made.image) == NOISE.resize((40, 20), Image.Resampling.NEAREST)
        several = api.extra_batch_images([NOISE, NOISE], upscaler_1="4x-Sharp", upscaling_resize=3)
        assert [each.size for each in several.images] == [(60, 30)] * 2


def test_sizes(client: TestClient) -> None:
    assert enlarged(client) == NOISE  # nothing is asked
    assert enlarged(client, upscaler_1="4x-Sharp").size == (40, 20)
    assert enlarged(client, upscaler_1="Lanczos", upscaling_resize=1.33) == NOISE.resize((27, 13), 1)
    to = {"resize_mode": 1, "upscaling_resize_w": 50, "upscaling_resize_h": 50, "upscaler_1": "Nearest"}
    assert enlarged(client, **to, upscaling_crop=False).size == (100, 50)
    whole = NOISE.resize((100, 50), Image.Resampling.NEAREST)
    assert enlarged(client, **to) == whole.crop((25, 0, 75, 50))


def test_two_are_mixed(client: TestClient) -> None:
    half = {"upscaler_1": "Nearest", "upscaler_2": "Lanczos", "extras_upscaler_2_visibility": 0.25}
    one, two = (NOISE.resize((40, 20), how) for how in (Image.Resampling.NEAREST, Image.Resampling.LANCZOS))
    assert enlarged(client, **half) == Image.blend(one, two, 0.25)


def test_texts_of_the_picture_stay(client: TestClient) -> None:
    texts = {"parameters": "a cat\nSteps: 4", "jaxl": "{}", "XML:com.adobe.xmp": "<x>drawn</x>"}
    answer = client.post(
        "/sdapi/v1/extra-single-image",
        json={"image": encoded(NOISE, {**texts, "secret": "no"}), "upscaler_1": "Lanczos"},
    )
    made = Image.open(io.BytesIO(base64.b64decode(answer.json()["image"])))
    made.load()
    told = {"postprocessing": "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"}
    assert {key: made.info[key] for key in (*texts, *told)} == {**texts, **told}
    assert "secret" not in made.info


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"upscaler_1": "4x-sharp"}, "upscaler_1='4x-sharp': no upscaler of this server; did you mean '4x-Sharp'?"),
        ({"upscaler_2": "SwinIR 4x"}, "upscaler_2='SwinIR 4x': no upscaler of this server; "),
        ({"upscaling_resize": 40}, "upscaling_resize=40.0: give a number above 0, up to 16"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 0}, "upscaling_resize=0.0: "),
        ({"upscaler_1": "Nearest", "upscaling_resize": 16}, "upscaling_resize='320x160': at most 20000 pixels in all"),
        ({"upscaler_1": "4x-Sharp", "upscaling_resize": 12}, "upscaling_resize='240x120': at most 20000 pixels"),
        ({"gfpgan_visibility": 0.5}, "gfpgan_visibility=0.5: there is no face restoration"),
        ({"image": "http://example.com/a.png"}, "URLs are not fetched"),
        ({"image": encoded(Image.new("RGB", (1000, 30)))}, "the picture has too many pixels"),
        ({"image": encoded(Image.new("RGB", (100, 30))), "upscaler_1": "4x-Sharp"}, "'400x120': at most 20000 pixels"),
        ({"image": 5}, "image: "),
    ],
)
def test_what_is_refused(client: TestClient, service: Service, how: dict[str, Any], message: str) -> None:
    service.settings = replace(service.settings, max_pixels=20_000)
    answer = client.post("/sdapi/v1/extra-single-image", json={"image": encoded(NOISE), **how})
    assert answer.status_code in (400, 422), answer.text
    assert message in answer.json()["detail"]


def test_no_more_wait_than_have_room(client: TestClient, service: Service) -> None:
    service.enlarging = MOST_WAITING
    answer = client.post("/sdapi/v1/extra-single-image", json={"image": encoded(NOISE)})
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0


def test_enlarged_pictures_count_for_a_key(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(write_line(Key("ada", digest_of("secret"), images_per_minute=3, at_once=2)))
    client = TestClient(create_app(Service(engine, replace(settings, keys=tmp_path / "keys"))))
    client.headers["Authorization"] = "Bearer secret"

    def ask(pictures: int) -> Any:
        sent = [{"data": encoded(NOISE)}] * pictures
        return client.post("/sdapi/v1/extra-batch-images", json={"imageList": sent, "upscaler_1": "4x-Sharp"})

    answers = [ask(pictures) for pictures in (3, 2, 2, 1)]
    assert [each.status_code for each in answers] == [400, 200, 429, 200]
    assert answers[0].json()["detail"] == "imageList=3: the key 'ada' has at_once=2; give at most 2"
    assert "images_per_minute=3" in answers[2].json()["detail"]
    told = client.get("/metrics").text
    assert float(re.findall(r'device_seconds_by_key_total\{key="ada"\} (\S+)', told)[0]) > 0
    assert 'jaxl:refused_by_key_total{key="ada",limit="images_per_minute"} 1.0' in told


def test_a_model_that_was_unloaded_is_loaded(service: Service, engine: Engine) -> None:
    backend = engine.backend
    assert backend is not None
    assert engine.unload()
    with pytest.raises(UnloadedError):
        service.upscaled("4x-Sharp", NOISE, (40, 20))

    class Loaded:
        def result(self) -> bool:
            engine.replace(backend)
            return True

    service.want_loaded = lambda wanted: Loaded()  # pyright: ignore[reportAttributeAccessIssue]
    assert service.upscaled("4x-Sharp", NOISE, (40, 20)).size == (40, 20)


def test_names() -> None:
    assert read_upscalers(["a/4x.pth", "sharp=b.pth"]) == (("4x", "a/4x.pth"), ("sharp", "b.pth"))
    assert set(WITHOUT_NETWORK) == {"none", *(name.lower() for name in RESAMPLED)}
    for texts in (["a/4x.pth", "b/4X.safetensors"], ["lanczos=a.pth"], [".pth=" + ".pth", "=a.pth"], ["a/None.pth"]):
        with pytest.raises(ValueError, match="is taken; give another: NAME="):
            read_upscalers([*texts, "a/.pth", "b/.pth"])
