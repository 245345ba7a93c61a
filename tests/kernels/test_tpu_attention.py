"""Attention for TPUs, interpreted, beside the form that XLA compiles anywhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxl.kernels.attention import blockwise
from jaxl.kernels.tpu_attention import takes, tpu_attention

OURS = jax.jit(partial(tpu_attention, interpret=True), static_argnums=3)
XLA = jax.jit(partial(blockwise, limit=2**30), static_argnums=3)


def random(shapes: list[tuple[int, ...]], dtype: jnp.dtype) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(2 * rng.standard_normal(shape, np.float32)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("queries", "keys", "width", "heads"),
    [
        (64, 64, 128, 2),
        (70, 77, 256, 4),  # SDXL's texts
        (520, 40, 128, 4),  # more than a program holds, and not a multiple
        (16, 33, 256, 1),
        (8, 9, 384, 3),
        (300, 40, 320, 5),  # the last of three pairs of heads is half empty
    ],
)
def test_equals_xla(queries: int, keys: int, width: int, heads: int, dtype: jnp.dtype) -> None:
    q, k, v = random([(2, queries, width), (2, keys, width), (2, keys, width)], dtype)
    assert takes(q, k, heads)
    ours, theirs = OURS(q, k, v, heads), XLA(q, k, v, heads)
    assert ours.dtype == dtype
    tolerance = 2e-6 if dtype == jnp.float32 else 0.02
    np.testing.assert_allclose(
        np.asarray(ours, np.float32), np.asarray(theirs, np.float32), rtol=tolerance, atol=tolerance
    )


def test_keys_past_the_length_have_no_influence() -> None:
    q, k, v = random([(2, 32, 128)] * 3, jnp.float32)
    lengths = np.array([5, 32], np.int32)
    ours = OURS(q, k, v, 2, lengths=lengths)
    np.testing.assert_allclose(ours, XLA(q, k, v, 2, lengths=lengths), rtol=2e-6, atol=2e-6)
    k[0, 5:], v[0, 5:] = 9.0, -9.0
    np.testing.assert_array_equal(ours, OURS(q, k, v, 2, lengths=lengths))


@pytest.mark.parametrize(
    ("width", "heads", "keys", "dtype"),
    [
        (64, 1, 64, jnp.bfloat16),  # less than 128
        (384, 4, 64, jnp.bfloat16),  # heads of 96
        (512, 1, 16384, jnp.bfloat16),  # the autoencoder's keys do not fit
        (128, 2, 64, jnp.float16),
    ],
)
def test_leaves_other_shapes(width: int, heads: int, keys: int, dtype: jnp.dtype) -> None:
    q, k = (jax.ShapeDtypeStruct((1, n, width), dtype) for n in (64, keys))
    assert not takes(q, k, heads)


def test_devices_keep_their_images() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    own = NamedSharding(mesh, PartitionSpec("data"))
    q, k, v = random([(4, 16, 128)] * 3, jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        run = jax.jit(lambda q, k, v: tpu_attention(q, k, v, 2, interpret=True), in_shardings=own)
        compiled = run.lower(q, k, v).compile()
    assert "all-gather" not in (compiled.as_text() or "all-gather")
    ours = compiled(*(jax.device_put(a, own) for a in (q, k, v)))
    assert ours.sharding.is_equivalent_to(own, ours.ndim)
    np.testing.assert_allclose(ours, XLA(q, k, v, 2), rtol=2e-6, atol=2e-6)
