"""The perpendicular negative prompt, against its formula in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from trajectories import SDXL

import jaxl
from jaxl.diffusion import loop
from jaxl.diffusion.rows import COLUMNS
from jaxl.diffusion.schedule import NoiseSchedule, SchedulerConfig
from jaxl.diffusion.tables import build_table
from jaxl.run.bucket import Bucket
from jaxl.run.sharding import shares
from jaxl.run.steps import guide

SCALE, STEPS, SHAPE = 7.0, 8, (8, 8, 4)
KINDS: list[dict[str, float]] = [{"perp_neg": 0.7}, {}, {"perp_neg": 1.5, "rescale": 0.4}]


def guided(positive: Any, negative: Any, empty: Any, scale: float, perp_neg: float) -> Any:
    """What is asked of three predictions, or of anything that they are a part of."""
    wanted, unwanted = positive - empty, negative - empty
    unit = wanted / np.linalg.norm(wanted)
    return empty + scale * (wanted - perp_neg * (unwanted - (unwanted * unit).sum() * unit))


def networks(x: Any, t: Any) -> list[Any]:
    """What a network might predict of latents: with the negative prompt, with the prompt, and with neither."""
    tanh = jnp.tanh if isinstance(x, jax.Array) else np.tanh
    return [tanh(1.2 * x - t / 700), tanh(1.5 * x + t / 500 - 1) - 0.1 * x, tanh(1.3 * x + 0.2)]


def wanted(x: np.ndarray, table: Any, kind: dict[str, float]) -> np.ndarray:
    """The result by Euler's steps in float64."""
    for row in table.rows[: table.used].astype(np.float64):
        at = dict(zip(COLUMNS, row, strict=True))
        negative, positive, empty = networks(at["c_in"] * x, at["t"])
        out = negative + SCALE * (positive - negative)
        if "perp_neg" in kind:
            out = guided(positive, negative, empty, SCALE, kind["perp_neg"])
        out = out * (1 - kind.get("rescale", 0) * (1 - positive.std() / out.std()))
        x = at["x_x"] * x + at["x_d"] * (at["c_skip"] * x + at["c_out"] * out)
    return x


def test_a_trajectory() -> None:
    """Also of an image without it in the same batch, and with what rescales guidance."""
    table = build_table(SchedulerConfig(scheduler="euler", noise=NoiseSchedule(**SDXL)), STEPS)
    tables = [table.with_columns(guidance=SCALE, **kind) for kind in KINDS]
    noise = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype(np.float32)
    slots = loop.init_slots(
        np.stack([each.rows for each in tables]), [table.used] * 3, np.zeros((3, 2), np.uint32), noise, table.init_scale
    )

    def denoise(x: jax.Array, row: Any, _: Any) -> tuple[jax.Array, jax.Array, None]:
        outputs = networks(x, row["t"][:, None, None, None])
        out, _ = guide(Bucket(3, 64, 64, guided=True, perp_neg=True), jnp.stack(outputs, axis=1), row, x, None)
        return out, outputs[0], None

    got = np.asarray(jax.jit(partial(loop.advance, denoise))(slots, table.used).latents)
    for image, kind in enumerate(KINDS):
        expected = wanted(noise[image].astype(np.float64) * table.init_scale, table, kind)
        assert np.abs(got[image] - expected).max() < 2e-4 * np.abs(expected).max(), kind
        # so that what is asked for makes a difference
        plain = wanted(noise[image].astype(np.float64) * table.init_scale, table, {})
        assert (np.abs(plain - expected).max() > 0.01) == bool(kind)


ASKED: dict[str, Any] = {"width": 64, "height": 64, "steps": 1, "scheduler": "euler", "output": "latents"}
TEXTS: dict[str, Any] = {"negative_prompt": "a dog", "empty_negative": "encoded"}
# texts hardly change what a small network with random weights says, so they are followed by much
MUCH = 200.0


def drawn(model: Any, prompt: str, scale: float = 1.0, **options: Any) -> np.ndarray:
    pipe, params = model
    result = pipe.generate(params, prompt, guidance_scale=scale, **ASKED, **TEXTS, **options)
    return result.latents[0].astype(np.float64)


def test_a_step_of_the_network(small: Any) -> None:
    """What a step makes of latents is a multiple of a prediction, and more that all have in common.

    A prompt without words has no direction, so all of the negative prompt is perpendicular to it. Of six devices two
    have one branch, each half of its rows.
    """
    assert shares(6, 1, 3, 4, "auto") == (3, 2)
    mesh = jaxl.make_mesh(jax.devices()[:6])
    model = jaxl.from_pretrained(small[0].checkpoint.source, dtype=jnp.float32, mesh=mesh)
    positive, negative, empty = (drawn(small, prompt) for prompt in ("a cat", "a dog", ""))
    right = {
        ("a cat", MUCH): guided(positive, negative, empty, MUCH, 0.8),
        ("a cat", 1.0): guided(positive, negative, empty, 1.0, 0.8),
        ("", MUCH): empty - MUCH * 0.8 * (negative - empty),
    }
    for (prompt, scale), expected in right.items():
        got = drawn(model, prompt, scale, perp_neg_scale=0.8)
        assert np.abs(got - expected).max() < 2e-4 * np.abs(expected).max()
    plain = negative + MUCH * (positive - negative)
    assert np.abs(right["a cat", MUCH] - plain).max() > 2e-3 * np.abs(plain).max()
