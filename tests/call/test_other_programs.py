"""Starts and second passes as other programs have them: how many steps are run, and what they begin with."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from trajectories import SDXL

from jaxl.call.hires import Hires
from jaxl.diffusion.rows import COLUMNS
from jaxl.diffusion.schedule import NoiseSchedule
from jaxl.errors import InputError

PICTURE = Image.new("RGB", (64, 64), "red")


@pytest.fixture
def planned(small: Any) -> Any:
    return lambda style, **options: small[0].plan("a cat", width=64, height=64, style=style, **options)


def test_a1111s_unipc_from_a_picture(planned: Any) -> None:
    for name in ("unipc_a1111", "UniPC", "UniPC Karras"):
        plan = planned("a1111", scheduler=name, image=PICTURE, strength=0.5, steps=20)
        assert (plan.scheduler, plan.count) == ("unipc_a1111", 10)
    assert plan.rows[0, plan.first, COLUMNS.index("t")] == 451
    share = NoiseSchedule(**SDXL).alphas_cumprod()[501]
    np.testing.assert_allclose([plan.picture_scale**2, plan.noise_scale**2], [share, 1 - share])
    assert planned("a1111", scheduler="UniPC", image=PICTURE, strength=0.5, steps=30).count == 15  # of 31


def test_a_schedule_that_is_longer_than_asked_for(planned: Any) -> None:
    plan = planned("a1111", scheduler="euler_ddim_uniform", image=PICTURE, strength=0.5, steps=30)
    assert (plan.count, plan.steps) == (17, 31)


@pytest.mark.parametrize(
    ("style", "scheduler", "run"),
    [
        ("a1111", "Euler", 20),
        ("a1111", "DDIM", 18),
        ("a1111", "DDIM CFG++", 18),
        ("a1111", "PLMS", 18),
        ("a1111", "UniPC", 19),
        ("comfyui", "uni_pc", 20),
        (None, "ddim", 20),
    ],
)
def test_second_passes(planned: Any, style: str | None, scheduler: str, run: int) -> None:
    """A1111's samplers that count timesteps run fewer than they are asked for there, too, whoever drew the first."""
    for first, own in ((scheduler, None), ("euler", scheduler)):
        hires = Hires(scale=1.5, strength=0.5, steps=20, scheduler=own)
        second = planned(style, steps=4, scheduler=first, hires=hires).second
        assert second.count - (scheduler == "PLMS") == run  # whose first step has two rows
    as_many = planned(style, steps=20, scheduler=scheduler, hires=Hires(scale=1.5, strength=0.5)).second
    assert as_many.count == second.count
    if scheduler == "DDIM":
        assert second.rows[0, second.first, COLUMNS.index("t")] == 18 * 25 + 1
    with pytest.raises(InputError, match=r"hires.scheduler='oiler'"):
        planned(style, hires=Hires(scheduler="oiler"), steps=4)


def test_what_a_mask_begins_with(planned: Any) -> None:
    """The picture's latents too, with all of the noise; diffusers leaves them out."""
    asked = {"image": PICTURE, "mask": Image.new("L", (64, 64), 255), "strength": 1.0, "steps": 4}
    begun = {style: planned(style, scheduler="euler", **asked) for style in ("a1111", "comfyui", "diffusers")}
    assert {style: plan.picture_scale for style, plan in begun.items()} == {"a1111": 1, "comfyui": 1, "diffusers": 0}
    highest = NoiseSchedule(**SDXL).sigmas()[-1]
    assert begun["a1111"].noise_scale == pytest.approx(highest)
    assert begun["comfyui"].noise_scale == pytest.approx(np.hypot(highest, 1))
    with pytest.raises(InputError, match=r"scheduler='ddim': ComfyUI gives what a mask keeps.*'euler'"):
        planned("comfyui", scheduler="ddim", **asked)
    assert planned("comfyui", scheduler="ddim", steps=4).scheduler == "euler_uniform"
