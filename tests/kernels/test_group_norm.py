"""Group normalisation: what it takes beside a picture, and Triton's kernels, interpreted, beside XLA's form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from draws import normal
from jax import Array

from jaxl.kernels import triton_group_norm as triton
from jaxl.kernels.group_norm import group_norm, moments
from jaxl.run.sharding import batch_sharding, make_mesh

# groups of 10, 20, 40 and 4 channels, as in SDXL's networks; pictures that fill no tile exactly, and more than one
SHAPES = [((2, 9, 31, 40), 4), ((1, 16, 16, 80), 4), ((2, 5, 7, 160), 4), ((1, 40, 33, 16), 4)]
NORM = jax.jit(group_norm, static_argnums=(2, 3), static_argnames="silu")
SLAB = jax.jit(triton.slab, static_argnames=("groups", "eps", "silu", "interpret"))
XLA_MOMENTS = jax.jit(moments)
MOMENTS = jax.jit(triton.moments, static_argnames="interpret")
TOLERANCE = {jnp.float32: 3e-6, jnp.bfloat16: 1e-2}


def random(seed: int, *shape: int, dtype: Any = jnp.float32) -> Array:
    return jnp.asarray((np.asarray(normal(seed, *shape)) * 2 + 3).astype(dtype))


def parameters(channels: int, dtype: Any = jnp.float32) -> dict[str, Array]:
    return {"weight": random(1, channels, dtype=dtype), "bias": random(2, channels, dtype=dtype)}


def error(got: Array, wanted: Array | np.ndarray) -> float:
    """The largest difference as a share of the largest value."""
    difference = np.asarray(got, np.float64) - np.asarray(wanted, np.float64)
    return float(np.abs(difference).max() / np.abs(np.asarray(wanted, np.float64)).max())


def exact(p: dict[str, Array], x: np.ndarray, groups: int, eps: float) -> np.ndarray:
    """Equation 1 and SiLU in float64."""
    weight, bias, f = (np.asarray(a, np.float64) for a in (p["weight"], p["bias"], x))
    f = f.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    f = (f - f.mean((1, 3), keepdims=True)) / np.sqrt(f.var((1, 3), keepdims=True) + eps)
    f = f.reshape(x.shape) * weight + bias
    return f / (1 + np.exp(-f))


@pytest.mark.parametrize("groups", [2, 4, 12])  # 4: a group of 9 channels reaches across the seam at 20
def test_added_and_skip_are_a_sum_and_a_concatenation(groups: int) -> None:
    x, skip, added, p = random(3, 2, 6, 5, 20), random(4, 2, 6, 5, 16), random(5, 2, 20), parameters(36)
    joined = np.concatenate([np.asarray(x) + np.asarray(added)[:, None, None], skip], axis=-1)
    got = NORM(p, x, groups, 1e-5, silu=True, added=added, skip=skip)
    assert error(got, exact(p, joined, groups, 1e-5)) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_slab_is_the_form_of_xla(shape: tuple[int, ...], groups: int, dtype: Any) -> None:
    x, added, p = random(6, *shape, dtype=dtype), random(7, shape[0], shape[-1], dtype=dtype), parameters(shape[-1])
    for extra, silu in ((added, True), (None, False)):
        wanted = NORM(p, x, groups, 1e-5, silu=silu, added=extra)
        got = SLAB(x, p["weight"], p["bias"], extra, groups=groups, eps=1e-5, silu=silu, interpret=True)
        assert got.dtype == x.dtype
        assert error(got, wanted) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 9, 31, 320), (1, 50, 40, 96), (2, 5, 7, 128), (1, 32, 32, 64)])
def test_moments_are_those_of_xla(shape: tuple[int, ...], dtype: Any) -> None:
    x = random(8, *shape, dtype=dtype)
    for got, wanted in zip(MOMENTS(x, interpret=True), XLA_MOMENTS(x), strict=True):
        assert error(got, wanted) < 3e-6


def test_moments_lose_no_digits_far_from_zero() -> None:
    x = jnp.asarray(np.asarray(random(9, 1, 64, 64, 32)) + 1000)
    _, variance = MOMENTS(x, interpret=True)
    assert error(variance, np.asarray(x, np.float64).var((1, 2))) < 1e-4


def test_each_device_normalises_its_own_images() -> None:
    mesh = make_mesh(jax.devices()[:2])
    x, p = jax.device_put(random(10, 4, 8, 8, 64), batch_sharding(mesh)), parameters(64)

    def run(x: Array) -> tuple[Array, Array]:
        mean, _ = triton.moments(x, interpret=True)
        return mean, triton.slab(x, p["weight"], p["bias"], mean, groups=4, eps=1e-5, silu=True, interpret=True)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(run).lower(x).compile()
    assert "all-gather" not in str(compiled.as_text())
    mean, y = compiled(x)
    assert mean.sharding.is_equivalent_to(batch_sharding(mesh), mean.ndim)
    assert error(y, NORM(p, x, 4, 1e-5, silu=True, added=np.asarray(x).mean((1, 2)))) < 3e-6


@pytest.mark.parametrize(
    ("shape", "slab", "parts"),
    [
        ((2, 32, 32, 1280), True, True),
        ((2, 64, 64, 640), True, True),
        ((2, 64, 64, 960), False, True),  # 240 KiB a group
        ((2, 64, 64, 320), False, True),  # 20 bytes of a pixel
        ((2, 128, 128, 320), False, True),
        ((1, 8, 8, 100), False, False),
    ],
)
def test_shapes_that_the_kernels_take(shape: tuple[int, ...], slab: bool, parts: bool) -> None:
    x: Any = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    groups = 32 if shape[-1] % 32 == 0 else 20
    assert (triton.takes_slab(x, groups), triton.takes_moments(x)) == (slab, parts)
