"""Second passes: images are enlarged, and drawn on at the larger size."""

from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from upscaler_files import golden, saved, weights_of

import jaxl
from jaxl.call.enlarging import Enlarging
from jaxl.call.hires import RESAMPLED, Hires, a1111_upscaler, find_upscaler
from jaxl.call.interpolation import interpolated
from jaxl.call.upscale import RESAMPLINGS
from jaxl.errors import InputError

WIDE = (96, 64)
KIND: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "dark", "steps": 3, "seed": 5, "guidance_scale": 4}


def pixels(result: jaxl.Result) -> np.ndarray:
    return np.stack([np.asarray(image) for image in result.images])


def test_it_is_an_image_drawn_from_its_enlarged_self(small: Any) -> None:
    """With latents and with pixels, and with what the second pass has of its own, tags and all."""
    pipe, params = small
    first = pipe.generate(params, **KIND)
    again = {**KIND, "width": 96, "height": 64, "strength_steps": "whole"}

    latents = interpolated(first.latents, "latent-bicubic", 12, 12)[:, 2:10]
    wanted = pipe.generate(params, **{**again, "image": latents, "strength": 0.7})
    made = pipe.generate(params, hires=Hires(size=WIDE, upscaler="Latent (bicubic)"), **KIND)
    np.testing.assert_array_equal(made.latents, wanted.latents)
    np.testing.assert_array_equal(pixels(made), pixels(wanted))
    assert (made.seeds, made.steps) == ([5], 6)
    unet = jax.tree.map(lambda a: jax.device_put(0.9 * np.asarray(a), a.sharding), params["unet"])
    other = {**params, "unet": unet}
    both: dict[str, Any] = {"refiner": (pipe, other), "refiner_at": 0.7}
    wanted = pipe.generate(params, **{**again, "image": latents, "strength": 0.7}, **both)
    refined = pipe.generate(params, hires=Hires(size=WIDE, upscaler="Latent (bicubic)"), **KIND, **both)
    np.testing.assert_array_equal(refined.latents, wanted.latents)
    assert refined.steps == made.steps
    assert not np.array_equal(refined.latents, made.latents)

    own = {"prompt": "a blue star", "negative_prompt": "bright", "scheduler": "heun", "guidance_scale": 2.0}
    hires = Hires(size=WIDE, upscaler="lanczos", strength=0.5, steps=2, **own)
    enlarged = first.images[0].resize((96, 96), Image.Resampling.LANCZOS).crop((0, 16, 96, 80))
    wanted = pipe.generate(params, **{**again, **own, "steps": 2, "image": enlarged, "strength": 0.5})
    made = pipe.generate(params, hires=hires, **KIND)
    np.testing.assert_array_equal(made.latents, wanted.latents)
    assert made.scheduler == first.scheduler != wanted.scheduler


def test_a_network_enlarges(small: Any, tmp_path: Any) -> None:
    pipe, params = small
    weights = saved(tmp_path / "x4.pth", weights_of(golden("compact_4x")[0]))
    network = pipe.add_upscaler("sharp", weights, tile=64)
    try:
        by_name = pipe.generate(params, hires=Hires(size=WIDE, upscaler="sharp", strength=0.4), **KIND)
        with pytest.raises(InputError, match=r"hires.upscaler='sharq': did you mean 'sharp'"):
            pipe.plan("a cat", hires=Hires(upscaler="sharq"))
        with pytest.raises(InputError, match="name='latent': "):
            pipe.add_upscaler("latent", network)
    finally:
        pipe.remove_upscaler("sharp")
    itself = pipe.generate(params, hires=Hires(size=WIDE, upscaler=network, strength=0.4), **KIND)
    np.testing.assert_array_equal(by_name.latents, itself.latents)
    assert Hires(upscaler=network).facts == {"scale": 2.0, "upscaler": "sharp"}


def test_whoever_watches_sees_both_passes(small: Any) -> None:
    pipe, params = small
    told: list[tuple[int, int, int]] = []

    def callback(done: int, total: int, latents: np.ndarray) -> bool:
        told.append((done, total, latents.shape[2]))
        return done < 5

    hires = Hires(size=WIDE, steps=4)
    stopped = pipe.generate(params, **KIND, hires=hires, callback=callback)
    assert told == [(1, 7, 8), (2, 7, 8), (3, 7, 8), (4, 7, 12), (5, 7, 12)]
    assert (stopped.steps, stopped.images[0].size) == (5, WIDE)
    early = pipe.generate(params, **KIND, hires=hires, callback=lambda done, total, latents: False)
    assert (early.images, early.latents.shape[1]) == ([], 8)


@pytest.mark.parametrize(
    ("asked", "cover", "kept"),
    [
        ({"scale": 1.3}, (328, 496), (328, 496)),
        ({"size": (512, 0)}, (512, 768), (512, 768)),
        ({"size": (0, 384)}, (256, 384), (256, 384)),
        ({"size": (512, 512)}, (512, 768), (512, 512)),
        ({"size": (384, 768)}, (512, 768), (384, 768)),
    ],
)
def test_sizes(asked: dict[str, Any], cover: tuple[int, int], kept: tuple[int, int]) -> None:
    assert Hires(**asked).sizes((256, 384), 8) == (cover, kept)


def test_of_another_shape_the_middle_is_kept() -> None:
    rows = np.arange(48)[None, :, None, None] * np.ones((1, 1, 16, 4), np.float32)
    (latents,) = Enlarging("latent", (128, 384), (128, 264), 8).latents(rows)
    np.testing.assert_array_equal(latents.array[0, :, 0, 0], np.arange(7, 40))
    image = Image.fromarray(np.repeat(np.arange(192, dtype=np.uint8)[:, None], 64, 1)).convert("RGB")
    picture = Enlarging("nearest", (64, 192), (64, 136), 8).pixels(image)
    np.testing.assert_array_equal(((picture.array[0, :, 0, 0] + 1) * 127.5).round(), np.arange(24, 160))


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0.5}, "hires.scale=0.5: give a number from 1 to 16"),
    ({"scale": float("nan")}, "hires.scale=nan: "),
    ({"size": (0, 0)}, r"hires.size=\(0, 0\): give width and height"),
    ({"size": (96, 9000000)}, "hires.size="),
    ({"strength": 0}, "hires.strength=0: give a number above 0, up to 1"),
    ({"strength": 1.5}, "hires.strength=1.5: "),
    ({"steps": -1}, "hires.steps=-1: "),
    ({"steps": 900}, "hires.steps=900: the last of 1285, for that strength"),
    ({"upscaler": "Latent (bicubik)"}, "hires.upscaler='Latent .bicubik.': did you mean 'latent-bicubic'"),
    ({"upscaler": 4}, "hires.upscaler=4: "),
    ({"size": (16000, 16000)}, "hires.size=.*: 16000x16000 pixels; at most"),
    ({"scheduler": "eulr"}, "hires.scheduler='eulr': did you mean 'euler'"),
    ({"prompt": ["a", "b"]}, "hires.prompt=.*: 2 texts for 1 prompts"),
    ({"prompt": "a (cat"}, "hires.prompt='a .cat': "),
    ({"guidance_scale": "much"}, "hires.guidance_scale='much': "),
]


@pytest.mark.parametrize(("asked", "message"), WRONG)
def test_what_cannot_be_is_told_in_one_line(small: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        small[0].plan("a cat", hires=Hires(**asked))


@pytest.mark.parametrize(
    "more",
    [{"image": Image.new("RGB", (64, 64))}, {"denoising_end": 0.5}, {"hires": 2}],
    ids=lambda more: next(iter(more)),
)
def test_what_it_cannot_go_with_is_told(small: Any, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^hires="):
        small[0].generate(small[1], "a cat", **{"hires": Hires(), **more})


def test_prompts_have_second_passes_of_their_own(small: Any) -> None:
    second = small[0].plan(["a cat", "a dog"], num_images=2, hires=Hires(prompt=["a tree", "a star"])).second
    alone = small[0].plan("a star", hires=Hires()).second
    ids = [[image[branch][0]["text_encoder"][0] for branch in sorted(image)][-1] for image in second.texts[0]]
    assert second.batch == 4
    np.testing.assert_array_equal(ids[3], alone.texts[0][0][max(alone.texts[0][0])][0]["text_encoder"][0])
    assert not np.array_equal(ids[1], ids[2])


def test_prompts_go_on_to_change(small: Any) -> None:
    text = "[a cat:a dog:0.5] [by night:1.5]"
    plan = small[0].plan(text, prompt_syntax="lenient", steps=4, hires=Hires(strength=0.5))
    assert [(segment.rows, segment.version) for segment in plan.segments] == [(2, 0), (2, 1)]
    assert [segment.rows for segment in plan.second.segments] == [2, 2]


def test_upscalers_have_one_list() -> None:
    assert set(RESAMPLED) == set(RESAMPLINGS)
    assert [a1111_upscaler(name) for name in RESAMPLED] == ["Lanczos", "Nearest"]
    assert find_upscaler("None", ()) == "lanczos"
    assert find_upscaler("4x-ultrasharp", ["4x-UltraSharp"]) == "4x-UltraSharp"
