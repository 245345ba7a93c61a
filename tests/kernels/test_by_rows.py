"""Operations on pictures whose rows are split over four devices, beside the same on one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxl.kernels import Kernels, tpu_conv, tpu_upsampled_conv
from jaxl.kernels.attention import attention
from jaxl.kernels.by_rows import ROWS, self_attention
from jaxl.kernels.group_norm import group_norm
from jaxl.kernels.winograd import convolve
from jaxl.nn.freeu import low_frequencies
from jaxl.nn.layer_kinds import DOWN, UP, layer_of
from jaxl.nn.layers import conv, upsampled_conv
from jaxl.nn.quantised import quantise_weight, scale_of
from jaxl.run.sharding import AXIS, PIXELS, WHOLE, by_rows

RNG = np.random.default_rng(0)


def drawn(*shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape, np.float32) * np.float32(scale))


X, SKIP = drawn(2, 8, 16, 128), drawn(2, 8, 16, 8)
WEIGHT, BOTH = drawn(3, 3, 128, 64, scale=0.1), drawn(3, 3, 136, 64, scale=0.1)
BIAS = drawn(64)
NORM = drawn(2, 136), drawn(2, 136)
INT8, SCALE = jax.jit(quantise_weight, static_argnums=1)(BOTH, jnp.int8)
SCALES = scale_of(jnp.float32(1.0), jnp.int8), SCALE
LAYER = {"weight": WEIGHT, "bias": BIAS}
LORA = {**LAYER, DOWN: drawn(2, 128, 3, 3, 4, scale=1 / 30), UP: drawn(2, 4, 64)}
WIDE = partial(conv, kernels=Kernels(sums="wide"))

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "convolution": lambda x, _: conv(LAYER, x),
    "down, as the U-Net": lambda x, _: conv(LAYER, x, stride=2, padding=(1, 1)),
    "down, as the autoencoder": lambda x, _: conv(LAYER, x, stride=2, padding=(0, 1)),
    "up": lambda x, _: upsampled_conv(LAYER, x, 2 * x.shape[1], 2 * x.shape[2]),
    "LoRA": lambda x, _: layer_of(LORA).conv(x, 1, (1, 1), Kernels()),
    "LoRA, down": lambda x, _: layer_of(LORA).conv(x, 2, (1, 1), Kernels()),
    "Winograd": lambda x, _: convolve(x, jnp.ones((16, 128, 4))),
    "Winograd, in blocks": lambda x, _: convolve(jnp.tile(x.repeat(4, axis=1), (1, 1, 8, 1)), WEIGHT),
    "up, in the small picture": lambda x, _: upsampled_conv(
        LAYER, x, 2 * x.shape[1], 2 * x.shape[2], Kernels(conv="winograd")
    ),
    "wide sums": lambda x, _: WIDE(
        {name: leaf.astype(jnp.bfloat16) for name, leaf in LAYER.items()}, x.astype(jnp.bfloat16)
    ),
    "norm": lambda x, skip: group_norm(
        {"weight": NORM[0][0], "bias": NORM[1][0]}, x + 5, 4, 1e-5, skip=skip, silu=True
    ),
    "FreeU": lambda x, _: low_frequencies(x),
    "TPU": lambda x, _: tpu_conv.conv(x, WEIGHT, BIAS, interpret=True),
    "TPU, norm and skip": lambda x, skip: tpu_conv.conv(x, BOTH, BIAS, NORM, x[..., :64], skip=skip, interpret=True),
    "TPU, int8": lambda x, skip: tpu_conv.conv(x, INT8, BIAS, NORM, skip=skip, scales=SCALES, interpret=True),
    "TPU, up": lambda x, _: tpu_upsampled_conv.conv(
        x.astype(jnp.bfloat16), WEIGHT.astype(jnp.bfloat16), BIAS, interpret=True
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_rows_see_their_neighbours(name: str) -> None:
    operation = OPERATIONS[name]
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(1, 4), (AXIS, ROWS))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        given = jax.device_put((X, SKIP), jax.sharding.NamedSharding(mesh, WHOLE))
        split = jax.jit(by_rows(operation, PIXELS, PIXELS)).lower(*given).compile()
    whole = jax.jit(operation)(X, SKIP)
    got, text = np.asarray(split(*given), np.float32), split.as_text() or ""
    assert got.shape == whole.shape
    np.testing.assert_allclose(got, np.asarray(whole, np.float32), rtol=2e-4, atol=2e-4)
    assert "collective-permute" in text or name in ("norm", "FreeU")


@pytest.mark.parametrize(
    ("heads", "devices", "collective"), [(8, 4, "all-to-all"), (2, 4, "all-gather"), (2, 2, "all-gather")]
)
def test_attention_sees_all_tokens(heads: int, devices: int, collective: str) -> None:
    def attend(x: jax.Array) -> jax.Array:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return self_attention(attention, tokens, 2 * tokens, tokens + 1, heads).reshape(x.shape)

    mesh = Mesh(np.asarray(jax.devices()[:devices]).reshape(1, devices), (AXIS, ROWS))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        given = jax.device_put(X, jax.sharding.NamedSharding(mesh, WHOLE))
        split = jax.jit(by_rows(attend, PIXELS)).lower(given).compile()
    text = split.as_text() or ""
    np.testing.assert_allclose(split(given), jax.jit(attend)(X), rtol=2e-6, atol=2e-6)
    assert [each for each in ("all-to-all", "all-gather") if each in text] == [collective]
