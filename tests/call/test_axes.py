"""The axes of grids: how they are written, and the options and labels of their pictures."""

from typing import Any

import pytest

import jaxl
from jaxl.call.axes import KINDS, Axis, cells


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("steps=4, 8,16", "steps", (4, 8, 16)),
        ("Steps=1-3,10-30(+10),9-5(-2),1-10[4]", "steps", (1, 2, 3, 10, 20, 30, 9, 7, 5, 1, 4, 7, 10)),
        ("CFG Scale=2-3(+0.5)", "guidance_scale", (2.0, 2.5, 3.0)),
        ("guidance scale=0-1[3]", "guidance_scale", (0.0, 0.5, 1.0)),
        ("Denoising=.5,1", "strength", (0.5, 1.0)),
        ('sampler="Euler a",DPM++ 2M', "scheduler", ("Euler a", "DPM++ 2M")),
        ('Prompt S/R="a, b",c=d,', "prompt s/r", ("a, b", "c=d", "")),
        ("size=64x32,32x32", "size", ((64, 32), (32, 32))),
        ("style=a1111,comfyui", "style", ("a1111", "comfyui")),
    ],
)
def test_what_is_written(text: str, name: str, values: tuple[Any, ...]) -> None:
    assert Axis.parse("x", text) == Axis(name, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "x='steps': give an option and its values"),
        ("step=1", "x='step': did you mean 'steps'"),
        ("controls=1", "x='controls':"),
        ("steps=", "x='steps=': give values"),
        ("steps=1,many", "x='many': give whole numbers, or a range"),
        ("steps=1-5(+0)", r"x='1-5\(\+0\)': a range of 0 values"),
        ("steps=5-1(+1)", "a range of -3 values"),
        ("guidance_scale=0-1000", "a range of 1001 values; give 1 to 400"),
        ("size=big", "x='big'"),
        ("prompt s/r=,a", "the first text is searched for"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(jaxl.InputError, match=message):
        Axis.parse("x", text)


def test_cells() -> None:
    axes = [Axis.parse(*each) for each in (("x", "seed=1,2"), ("y", "prompt s/r=cat,dog"), ("z", "size=64x32"))]
    made = cells(axes, {"prompt": "a cat", "negative_prompt": "not a cat", "steps": 3})
    assert [(each["seed"], each["prompt"]) for each in made] == [(1, "a cat"), (2, "a cat"), (1, "a dog"), (2, "a dog")]
    assert made[-1]["negative_prompt"] == "not a dog"
    assert {(each["width"], each["height"], each["steps"]) for each in made} == {(64, 32, 3)}
    assert [axis.label(axis.values[-1]) for axis in axes] == ["Seed: 2", "dog", "64x32"]
    assert Axis("guidance_scale", ()).label(2.5) == "CFG scale: 2.5"
    with pytest.raises(jaxl.InputError, match="prompt s/r='bird': it is in none of the prompts"):
        cells([Axis.parse("x", "prompt s/r=bird,dog")], {"prompt": "a cat"})
    with pytest.raises(jaxl.InputError, match="y='seed': it is an axis already"):
        cells([axes[0], axes[0]], {})
    with pytest.raises(jaxl.InputError, match="x='900 pictures': a grid has at most 400"):
        cells([Axis.parse("x", "seed=1-30"), Axis.parse("y", "steps=1-30")], {})


def test_options_with_numbers_and_texts_are_axes() -> None:
    kinds = {"seed": int, "steps": int, "eta": float, "scheduler": str, "speed": str, "eta_noise_seed_delta": int}
    assert kinds.items() <= KINDS.items()
    assert not {"image", "controls", "regions", "freeu", "timesteps", "width", "original_size"} & set(KINDS)
