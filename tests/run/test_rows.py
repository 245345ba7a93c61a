"""One picture on many devices: the same, whatever is asked for, and no more is gathered than has to be."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapters import adapter
from controlnets import write_folder, write_lllite, write_t2i_adapter
from ip_adapters import write
from PIL import Image

import jaxl
from jaxl import Control, ImagePrompt, Region
from jaxl.call.plan import Devices
from jaxl.errors import InputError
from jaxl.run.bucket import Bucket
from jaxl.run.programs import ADVANCE, DECODE
from jaxl.run.sharding import shares

RNG = np.random.default_rng(7)
LINES, PHOTO = (Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(2))
LEFT = Image.new("L", (64, 64))
LEFT.paste(255, (0, 0, 32, 64))
SIZE: dict[str, Any] = {"width": 64, "height": 64, "output": "numpy"}


def on(devices: int, model: str, **options: Any) -> tuple[Any, Any]:
    mesh = jaxl.make_mesh(jax.devices()[:devices])
    return jaxl.from_pretrained(model, dtype=jnp.float32, mesh=mesh, **options)


@pytest.fixture(scope="module")
def eight(small: Any) -> tuple[Any, Any]:
    """The small model on eight devices."""
    return on(8, small[0].checkpoint.source)


@pytest.mark.parametrize(
    ("devices", "images", "branches", "parts", "split", "shared"),
    [
        (4, 1, 2, 32, "auto", (2, 2)),
        (8, 1, 2, 32, "auto", (2, 4)),
        (8, 2, 2, 32, "auto", (4, 2)),
        (4, 4, 2, 32, "auto", (4, 1)),
        (8, 1, 2, 26, "auto", (2, 2)),  # 832 rows of pixels: 26 at the smallest level
        (4, 1, 1, 32, "auto", (1, 4)),
        (8, 1, 2, 32, "images", (2, 1)),
        (4, 4, 2, 32, "rows", (2, 2)),
    ],
)
def test_how_devices_share(
    devices: int, images: int, branches: int, parts: int, split: Any, shared: tuple[int, int]
) -> None:
    assert shares(devices, images, branches, parts, split) == shared


def test_a_batch_is_filled_where_it_costs_nothing() -> None:
    def filled(images: int, parts: int, split: Any = "auto") -> int:
        return Devices(8, split=split).filled(Bucket(images, 64, 64, guided=True), parts).batch

    assert [filled(images, 32) for images in (1, 3, 5, 8)] == [1, 3, 5, 8]
    assert [filled(images, 1) for images in (1, 3, 5, 8)] == [1, 8, 8, 8]
    assert [filled(images, 32, None) for images in (1, 3, 9)] == [1, 8, 16]


def same_as_on_one(small: Any, several: tuple[Any, Any], **asked: Any) -> None:
    one, many = (
        pipe.generate(params, "a red apple", steps=3, seed=1, scheduler="euler_a", **SIZE, **asked)
        for pipe, params in (small, several)
    )
    np.testing.assert_allclose(many.latents, one.latents, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(many.images, one.images, atol=2e-5)


def test_a_picture_is_that_of_one_device(small: Any, eight: Any) -> None:
    """Each branch of guidance on four devices, with one row at its lowest level on each; noise is added on the way."""
    assert eight[0].bucket(1, 64, 64).batch == 1
    same_as_on_one(small, eight)


def test_branches_on_two_devices(small: Any) -> None:
    """Or the rows of the only branch, where there is no guidance; both in one call."""
    pair = on(2, small[0].checkpoint.source)
    for images, guided in ((1, True), (1, False), (3, True)):
        assert pair[0].bucket(images, guided=guided).batch == images
    same_as_on_one(small, pair, guidance_interval=(0, 0.5))


def test_all_that_exists_is_split(small: Any, tmp_path: Path) -> None:
    """Two images on eight devices: PAG, FreeU, kept features, LoRA, controls, image prompts, regions and a mask."""
    config = dict(small[0].checkpoint.configs["unet"])
    model, adapters = small[0].model, write(tmp_path, small[0].model.unet)
    networks = {
        "edges": write_folder(tmp_path / "edges", config, model, 0),
        "sketch": write_t2i_adapter(tmp_path / "sketch.safetensors", model, 2),
        "lite": write_lllite(tmp_path / "lite.safetensors", model, 3),
    }
    drawn = []
    for devices in (1, 8):
        pipe, params = on(devices, small[0].checkpoint.source)
        for name, network in networks.items():
            pipe.add_control(name, str(network))
        pipe.add_ip_adapter("plus", str(adapters["plus"]))
        pipe.loras.add(adapter(pipe.model, "low", 1, 10))
        result = pipe.generate(
            params,
            ["a cat", "a dog"],
            seed=[1, 2],
            steps=5,
            strength=0.8,
            guidance_scale=4.0,
            pag_scale=1.0,
            freeu=(0.9, 0.2, 1.1, 1.2),
            cache_interval=2,
            loras=[{"low": 0.5}, {}],
            image=PHOTO,
            mask=LEFT,
            controls=[[Control("edges", LINES)], [Control("sketch", LINES, end=0.6), Control("lite", PHOTO, 1.5)]],
            image_prompts=[[ImagePrompt("plus", PHOTO, 0.8, mask=LEFT)], []],
            regions=[[], [Region("a cat", (0, 0.3, 1, 0.7), strength=0.9)]],
            **SIZE,
        )
        drawn.append(result)
    np.testing.assert_allclose(drawn[1].latents, drawn[0].latents, atol=2e-4)
    np.testing.assert_allclose(drawn[1].images, drawn[0].images, atol=2e-4)


def test_what_is_gathered(eight: Any) -> None:
    """Keys and values, moments of norms, and the prediction; everything else are single rows."""
    pipe, _ = eight
    bucket = pipe.bucket(1, 64, 64)
    for program in (ADVANCE, DECODE):
        text = pipe.programs.get(program, bucket).as_text()
        for line in re.findall(r"= (\S+ all-(?:gather|to-all)\(.*)", text):
            source = re.search(r'op_name="([^"]*)"', line)
            where = source[1] if source else ""
            ranks = max(dims.count(",") + 1 for dims in re.findall(r"\w+\[([\d,]+)\]", line))
            of_moments = "[8,2," in line or "[4,2," in line or "[2,4," in line
            assert of_moments or "shard_map" not in where or "all_gather" in where, line
            if "all_gather" in where and not of_moments:
                assert ranks <= 3 or ",1]" in line, f"a picture was gathered: {line}"


def test_split_is_checked(small: Any) -> None:
    with pytest.raises(InputError, match="split='columns': give one of auto, images, rows"):
        on(1, small[0].checkpoint.source, split="columns")
