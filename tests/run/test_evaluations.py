"""Evaluations that devices work on in turn: of those images alone that are in the making."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxl
from jaxl.diffusion.rows import COLUMNS
from jaxl.kernels import Kernels
from jaxl.run.bucket import Branch, Bucket
from jaxl.run.evaluations import in_turn
from jaxl.run.sharding import make_mesh, replicated
from jaxl.run.steps import counted, guide

WAYS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 1.0},
    {"pag_scale": 2.0},
    {"cache_interval": 2},
    {"scheduler": "euler_a", "guidance_interval": (0, 0.5)},
    {"tile_size": 64, "tile_overlap": 16, "width": 96, "height": 96},
]


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("live", [[0, 1, 2, 3], [2], [1, 3], []])
def test_those_that_are_live(devices: int, live: list[int]) -> None:
    """Each is made of its own part of what there is, and of its image's; the others are zeros."""
    mesh, rng = make_mesh(jax.devices()[:devices]), np.random.default_rng(0)
    told, of_images, pixels = (rng.normal(size=shape).astype(np.float32) for shape in ((8, 2), (4, 2), (8, 3, 2)))
    is_live = np.isin(np.arange(8) // 2, live)

    def network(weight: Any, _: Any, told: Any, pictures: Any) -> tuple[Any, Any]:
        assert len(pictures) == len(told["own"]) == 1
        return weight * pictures + 1, {"sum": told["own"] + told["adapters"]}

    def run(told: Any, of_images: Any, pixels: Any, live: Any) -> Any:
        return in_turn(network, jnp.float32(2), (), {"own": told, "adapters": of_images}, pixels, live)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        out, more = jax.jit(run)(*jax.device_put((told, of_images, pixels, is_live), replicated(mesh)))
    np.testing.assert_array_equal(out, np.where(is_live[:, None, None], 2 * pixels + 1, 0))
    np.testing.assert_array_equal(more["sum"], np.where(is_live[:, None], told + np.repeat(of_images, 2, 0), 0))


@pytest.mark.parametrize("more", WAYS, ids=lambda more: "-".join(more) or "plain")
def test_a_batch_is_its_images(small: Any, more: dict[str, Any]) -> None:
    """Each image is to rounding that of a device that works on all together, and bit for bit that of another batch."""
    pipe, params = small
    assert pipe.model.kernels.evaluations == "in_turn"
    kernels = replace(pipe.model.kernels, evaluations="together")
    together, same = jaxl.from_pretrained(pipe.checkpoint.source, dtype="float32", mesh=pipe.mesh, kernels=kernels)
    asked: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "output": "latents", **more}

    def draw(own: Any, params: Any, seeds: list[int]) -> np.ndarray:
        prompts = [f"picture {seed}" for seed in seeds]
        return np.asarray(own.generate(params, prompts, seed=seeds, **asked).latents)

    three = draw(pipe, params, [1, 2, 3])
    np.testing.assert_allclose(three, draw(together, same, [1, 2, 3]), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(three[[2, 0]], draw(pipe, params, [3, 1]))


@pytest.mark.parametrize(
    ("row", "bucket", "branches"),
    [
        ({"guidance": 5}, {}, "np"),
        ({}, {}, "p"),
        ({"x_u": 0.5}, {}, "np"),
        ({"push_u": 0.5}, {}, "np"),
        ({}, {"cached": True}, "np"),
        ({}, {"shaped": True}, "np"),
        ({"guidance": 5}, {"pag_layers": ("mid_block",), "perp_neg": True}, "np"),
        ({"guidance": 5, "pag": 2, "perp_neg": 1}, {"pag_layers": ("mid_block",), "perp_neg": True}, "npge"),
        ({"pag": 2}, {"guided": False, "pag_layers": ("mid_block",)}, "pg"),
        ({"guidance": 5, "number": -1}, {}, ""),
    ],
)
def test_branches_that_count(row: dict[str, float], bucket: dict[str, Any], branches: str) -> None:
    """What is left out, as zeros, changes nothing."""
    own = replace(Bucket(1, 64, 64, guided=True), **bucket)
    plain = dict.fromkeys(COLUMNS, 0.0) | {"c_in": 1.0, "c_out": 1.0, "guidance": 1.0, "number": 3}
    values = {name: jnp.array([value]) for name, value in (plain | row).items()}
    (counts,) = np.asarray(counted(own, values))
    letters = {Branch.NEGATIVE: "n", Branch.POSITIVE: "p", Branch.PERTURBED: "g", Branch.EMPTY: "e"}
    assert "".join(letters[branch] for branch, each in zip(own.order, counts, strict=True) if each) == branches
    if branches and not (own.cached or own.shaped):
        outputs = np.random.default_rng(0).normal(size=(1, own.branches, 4, 4, 4)).astype(np.float32)
        x = outputs[:, 0]
        whole, _ = guide(own, jnp.array(outputs), values, x, None)
        less, _ = guide(own, jnp.array(np.where(counts[:, None, None, None], outputs, 0)), values, x, None)
        np.testing.assert_allclose(less, whole, rtol=1e-5, atol=1e-6)


def test_where_evaluations_are_worked_on_together() -> None:
    """On accelerators, which many keep busier; and where parameters are split, which are gathered for all."""
    assert {Kernels.of(name).evaluations for name in ("gpu", "tpu")} == {"together"}
    mesh = make_mesh(jax.devices()[:2])
    split, _ = jaxl.from_pretrained("tiny", mesh=mesh, shard_params=True)
    assert split.model.kernels.evaluations == "together"


def test_what_fills_a_batch_is_not_worked_on(small: Any) -> None:
    pipe, params = small
    inputs = pipe.inputs(params, replace(pipe.plan(["a", "b"], seed=1), bucket=pipe.bucket(4)))
    beginning = inputs.beginning()
    assert ((beginning.end > beginning.first) == [True, True, False, False]).all()
