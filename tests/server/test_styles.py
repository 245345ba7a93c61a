"""Prompt styles of a server's file, by A1111's API."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from fastapi.testclient import TestClient

from jaxl.server.settings import Settings

TXT2IMG = "/sdapi/v1/txt2img"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "styles.csv"
    file.write_text('name,prompt,negative_prompt\nink,"{prompt}, in ink",blurry\nnight,at night,\n')
    return Settings(model="tiny", sizes=((32, 32),), larger_sizes=((64, 64),), styles_file=file)


def texts(asked: list[Mapping[str, Any]]) -> tuple[Any, Any]:
    return asked[-1]["prompt"], asked[-1].get("negative_prompt")


def test_styles_add_to_the_prompts(client: TestClient, asked: list[Mapping[str, Any]]) -> None:
    body = {"prompt": "a castle", "negative_prompt": "rain", "styles": ["ink", "night"]}
    info = client.post(TXT2IMG, json=body).json()["info"]
    assert texts(asked) == ("a castle, in ink, at night", "rain, blurry")
    assert '"styles": ["ink", "night"]' in info
    client.post(TXT2IMG, json={"prompt": "a castle", "styles": ["night"]})
    assert texts(asked) == ("a castle, at night", None)
    client.post(TXT2IMG, json={"prompt": "a castle", "styles": ["None", ""]})
    assert texts(asked) == ("a castle", None)


def test_a_second_pass_with_a_prompt_of_its_own_has_them_too(api: webuiapi.WebUIApi, backend: Any, asked: Any) -> None:
    backend.larger = ((64, 64),)
    names = [each["name"] for each in api.get_prompt_styles()]
    asked_for = {"enable_hr": True, "hr_prompt": "a tower", "width": 32, "height": 32}
    api.txt2img(prompt="a castle", styles=names[:1], **asked_for)
    hires = asked[-1]["hires"]
    assert (*texts(asked), hires.prompt, hires.negative_prompt) == (
        "a castle, in ink",
        "blurry",
        "a tower, in ink",
        None,
    )


def test_an_unknown_style_is_named(client: TestClient) -> None:
    answer = client.post(TXT2IMG, json={"prompt": "a castle", "styles": ["inc"]})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("styles='inc': did you mean 'ink'?")
