"""Guidance that is more than a sum, on trajectories, against its formulas in float64."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trajectories import SDXL

from jaxl.diffusion import loop
from jaxl.diffusion.rows import COLUMNS, SHAPING
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.tables import build_table
from jaxl.errors import InputError
from jaxl.run.bucket import Bucket
from jaxl.run.steps import guide

BUCKET = Bucket(2, 64, 64, guided=True, shaped=True)
SCALE, STEPS, SHAPE = 7.0, 8, (8, 8, 4)
# of the first image; the second one has plain guidance
KINDS: dict[str, dict[str, float]] = {
    "APG": {"apg_eta": 0.2, "apg_threshold": 6.0, "apg_momentum": -0.5},
    "CFG-Zero*": {"cfg_zero": 1.0},
    "thresholding": {"mimic_scale": 3.0, "mimic_percentile": 0.9},
}


def networks(x: Any, t: Any) -> tuple[Any, Any]:
    """What a network might predict of latents, with a prompt and without."""
    np_or_jnp = jnp if isinstance(x, jax.Array) else np
    return np_or_jnp.tanh(1.5 * x + t / 500 - 1) - 0.1 * x, np_or_jnp.tanh(1.2 * x - t / 700)


def wanted(x: np.ndarray, table: Any, kind: dict[str, float]) -> np.ndarray:
    """The result by Euler's steps in float64."""
    said = {**SHAPING, **kind}
    momentum: Any = 0.0
    for row in table.rows[: table.used].astype(np.float64):
        at = dict(zip(COLUMNS, row, strict=True))
        positive, negative = networks(at["c_in"] * x, at["t"])
        if said["cfg_zero"]:
            negative = negative * (positive * negative).sum() / (negative**2).sum()
        one, other = (at["c_skip"] * x + at["c_out"] * each for each in (positive, negative))
        momentum = one - other + said["apg_momentum"] * momentum
        away = momentum
        if said["apg_threshold"]:
            away = away * min(1, said["apg_threshold"] / np.linalg.norm(away))
        unit = one / np.linalg.norm(one)
        along = (away * unit).sum() * unit
        away = away - along + said["apg_eta"] * along
        estimate = one + (SCALE - 1) * away
        if said["mimic_scale"]:
            mimicked = one + (said["mimic_scale"] - 1) * away
            means = estimate.mean((0, 1))
            largest = np.abs(mimicked - mimicked.mean((0, 1))).max((0, 1))
            edge = np.maximum(np.quantile(np.abs(estimate - means), said["mimic_percentile"], (0, 1)), largest)
            estimate = np.clip(estimate - means, -edge, edge) / edge * largest + means
        x = at["x_x"] * x + at["x_d"] * estimate
    return x


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_trajectory(kind: dict[str, float]) -> None:
    table = build_table(SchedulerConfig(scheduler="euler", noise=NoiseSchedule(**SDXL)), STEPS)
    tables = [table.with_columns(guidance=SCALE, **{**SHAPING, **own}) for own in (kind, {})]
    noise = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float32)
    slots = loop.init_slots(
        np.stack([each.rows for each in tables]), [table.used] * 2, np.zeros((2, 2), np.uint32), noise, table.init_scale
    )

    def denoise(x: jax.Array, row: Any, momentum: Any) -> tuple[jax.Array, jax.Array, Any]:
        positive, negative = networks(x, row["t"][:, None, None, None])
        guided, momentum = guide(BUCKET, jnp.stack([negative, positive], axis=1), row, x, momentum)
        return guided, negative, momentum

    slots = replace(slots, features=jnp.zeros((2, *SHAPE)))
    got = np.asarray(jax.jit(partial(loop.advance, denoise))(slots, table.used).latents)
    for image, own in enumerate((kind, {})):
        expected = wanted(noise[image].astype(np.float64) * table.init_scale, table, own)
        assert np.abs(got[image] - expected).max() < 2e-4 * np.abs(expected).max()
    assert np.abs(got[0] - wanted(noise[0].astype(np.float64) * table.init_scale, table, {})).max() > 0.01


def test_images_of_all_kinds_share_a_batch(small: Any) -> None:
    """Each is the same beside others, over texts that change in between, where the momentum goes on."""
    pipe, params = small

    def drawn(prompt: str, seeds: list[int], own: list[dict[str, float]]) -> np.ndarray:
        shaping = {name: [each.get(name, usual) for each in own] for name, usual in SHAPING.items()}
        asked: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "guidance_scale": SCALE, "num_images": 2}
        return np.asarray(pipe.generate(params, prompt, **asked, seed=seeds, output="latents", **shaping).latents)

    changing = drawn("[a:a b:2] cat", [3, 4], [KINDS["APG"], {}])
    turned = drawn("[a:a b:2] cat", [4, 3], [{}, KINDS["APG"]])
    np.testing.assert_array_equal(changing, turned[::-1])
    constant = drawn("[a:a:2] cat", [3, 3], [KINDS["APG"], {}])
    np.testing.assert_array_equal(constant[0], drawn("a cat", [3, 3], [KINDS["APG"], KINDS["thresholding"]])[0])
    assert np.abs(constant[0] - constant[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apg_eta": 1.5}, "apg_eta=1.5"),
        ({"apg_momentum": -2}, "apg_momentum=-2"),
        ({"mimic_percentile": 2}, "mimic_percentile=2"),
        ({"cfg_zero_steps": 1}, "cfg_zero_steps=1: is for models that were trained on straight paths"),
    ],
)
def test_what_cannot_be(small: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small[0].plan("a cat", width=64, height=64, **options)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_the_estimate_without_guidance(small: Any, scale: float) -> None:
    """Two steps of multistep CFG++ are Euler's with CFG++, also with a scale of 1, where others have one branch."""
    pipe, params = small
    asked: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3, "guidance_scale": scale}
    euler, own = (
        pipe.generate(params, "a cat", **asked, output="latents", scheduler=name).latents
        for name in ("euler_cfg++", "dpm++2m_cfg++")
    )
    plain = pipe.generate(params, "a cat", **asked, output="latents", scheduler="euler").latents
    assert np.abs(euler - own).max() < 0.1 * np.abs(plain - own).max()
