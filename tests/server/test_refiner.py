"""The choice of a refiner by every API: another model of the server, which draws the last steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import webuiapi
from fastapi.testclient import TestClient

from jaxl.call.infotext import read_a1111_text
from jaxl.engine.backend import Served
from jaxl.engine.fake import FakeBackend
from jaxl.errors import InputError
from jaxl.server.errors import ApiError
from jaxl.server.keys import Key
from jaxl.server.quotas import Quotas

HASH = "abcdef0123" + "0" * 54
SERVED = (Served("tiny", "tiny"), Served("xl-refiner", "xl-refiner.safetensors", HASH), Served("ink", "ink"))
OPENAI, TXT2IMG = "/v1/images/generations", "/sdapi/v1/txt2img"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"


@pytest.fixture(autouse=True)
def _several(backend: FakeBackend) -> None:
    backend.served = SERVED


def refiners(asked: list[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(each.get("refiner"), each.get("refiner_at")) for each in asked]


def posted(client: TestClient, path: str, **fields: Any) -> Any:
    answer = client.post(path, json={"prompt": "a", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_openai_and_hugging_face(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    posted(client, OPENAI, refiner="xl-refiner.safetensors", refiner_at=0.7)
    posted(client, OPENAI, refiner="ink")
    posted(client, OPENAI, refiner="tiny", refiner_at=0.5)
    posted(client, OPENAI, refiner="tiny", model="ink")
    parameters = {"refiner": "xl-refiner", "refiner_at": 0.6}
    client.post("/models/ink", json={"inputs": "a", "parameters": parameters}).raise_for_status()
    assert refiners(asked) == [
        ("xl-refiner", 0.7),
        ("ink", 0.8),
        (None, None),
        ("tiny", 0.8),
        ("xl-refiner", 0.6),
    ]


def test_a1111(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    for name in ("xl-refiner.safetensors [abcdef0123]", "xl-refiner", "xl-refiner.safetensors", "abcdef0123", HASH):
        posted(client, TXT2IMG, refiner_checkpoint=name, refiner_switch_at=0.6, denoising_strength=0.5)
    image = {"init_images": [PICTURE], "refiner_checkpoint": "ink"}
    posted(client, "/sdapi/v1/img2img", **image)
    assert refiners(asked) == [("xl-refiner", 0.6)] * 5 + [("ink", 0.8)]
    for fields in ({"refiner_checkpoint": "None"}, {"refiner_checkpoint": "ink", "refiner_switch_at": 1}):
        posted(client, TXT2IMG, **fields, steps=2)
        assert refiners(asked)[-1] == (None, None)


def test_what_a_picture_says_is_read_again(client: TestClient) -> None:
    answer = posted(client, TXT2IMG, refiner_checkpoint="abcdef0123", refiner_switch_at=0.75)
    text = client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()["info"]
    pairs = read_a1111_text(text)
    assert (pairs["Refiner"], pairs["Refiner switch at"]) == ("xl-refiner", "0.75")
    assert '"Refiner switch at": "0.75"' in answer["info"]
    again = client.post("/v1/images/settings", json={"image": answer["images"][0]}).json()
    assert (again["refiner"], again["refiner_at"], again["unread"]) == ("xl-refiner", 0.75, [])


def test_webuiapi(api: webuiapi.WebUIApi, asked: list[Mapping[str, Any]]) -> None:
    """It has no argument for refiners, and passes on what it is given."""
    (title,) = [each["title"] for each in api.get_sd_models() if each["model_name"] == "xl-refiner"]
    body = {"prompt": "a castle", "steps": 4, "refiner_checkpoint": title, "refiner_switch_at": 0.5}
    with_refiner: Any = api.custom_post("txt2img", payload={**body, "seed": 1}, baseurl=True)
    without: Any = api.txt2img(prompt="a castle", steps=4, seed=1, width=32, height=32)
    assert refiners(asked) == [("xl-refiner", 0.5), (None, None)]
    assert with_refiner.info["extra_generation_params"]["Refiner"] == "xl-refiner"
    assert with_refiner.image.tobytes() != without.image.tobytes()


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (TXT2IMG, {"refiner_checkpoint": "xl-refner"}, "refiner_checkpoint='xl-refner': not here; did you mean"),
        (TXT2IMG, {"refiner_checkpoint": "ink", "refiner_switch_at": 1.5}, "refiner_switch_at"),
        (OPENAI, {"refiner": "xl-refner"}, "refiner='xl-refner': not here; did you mean 'xl-refiner'"),
        (OPENAI, {"refiner": "ink", "refiner_at": -0.5}, "refiner_at"),
    ],
)
def test_mistakes_name_the_field(client: TestClient, path: str, fields: dict[str, Any], said: str) -> None:
    answer = client.post(path, json={"prompt": "a", **fields})
    assert answer.status_code in (400, 404, 422)
    body = answer.json()
    assert (body.get("detail") or body["error"]["message"]).startswith(said)


def test_a_server_of_one_model_has_none(client: TestClient, backend: FakeBackend) -> None:
    backend.served = ()
    answer = client.post(OPENAI, json={"prompt": "a", "refiner": "ink"})
    assert answer.json()["error"]["message"] == "refiner='ink': not here; this server has 'tiny'"


def test_a_key_of_some_models_refines_with_these() -> None:
    quotas, key = Quotas(lambda *_: None), Key("k", "", models=("tiny",))
    given = {"width": 32, "height": 32, "num_images": 1}
    quotas.check(key, "tiny", given)
    with pytest.raises((ApiError, InputError), match="refiner='ink'"):
        quotas.check(key, "tiny", {**given, "refiner": "ink"})
