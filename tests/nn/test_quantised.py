"""Products of eight-bit numbers, against the same sums in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import export, lax

from jaxl.nn import layers
from jaxl.nn.quantised import quantise, scale_of
from jaxl.nn.quantised import quantise_weight as quantise_eagerly

INT8, E4M3 = jnp.int8, jnp.float8_e4m3fn
linear = jax.jit(layers.linear)
conv = jax.jit(layers.conv, static_argnames=("stride", "padding"))
quantise_weight = jax.jit(quantise_eagerly, static_argnums=1)
KINDS = pytest.mark.parametrize("kind", [INT8, E4M3], ids=["int8", "fp8"])


def layer(kind: Any, *shape: int, largest: float = 3.0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """A quantised layer whose input scale cuts off what is beyond `largest`."""
    rng = np.random.default_rng(0)
    weight, scale = quantise_weight((rng.normal(size=shape) * 0.05).astype(np.float32), kind)
    bias = rng.normal(size=shape[-1]).astype(dtype)
    return {"weight": weight, "scale": scale, "bias": bias, "input_scale": scale_of(jnp.float32(largest), kind)}


def rounded(x: np.ndarray, scale: float, kind: Any) -> np.ndarray:
    """What `quantise` keeps of x, counted in scales, float64."""
    if kind == INT8:
        return np.clip(np.rint(x / np.float32(scale)), -127, 127).astype(np.float64)
    return np.clip(x / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def matrix(p: dict[str, Any]) -> np.ndarray:
    """A linear layer's weight [I, O], float64."""
    weight = np.asarray(p["weight"], np.float64)
    return weight if p["weight"].dtype == INT8 else weight.T


def inputs(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@KINDS
def test_linear_is_the_sum_of_rounded_products(kind: Any) -> None:
    p, x = layer(kind, 96, 40), inputs(2, 5, 96)
    assert np.abs(x).max() > 3.0, "some of it must be cut off"
    sums = rounded(x, float(p["input_scale"]), kind) @ matrix(p)
    wanted = sums * (np.asarray(p["scale"], np.float64) * float(p["input_scale"])) + np.asarray(p["bias"], np.float64)
    for run in (layers.linear, linear):
        np.testing.assert_allclose(run(p, jnp.asarray(x)), wanted, rtol=0, atol=2e-6)
    coarse = linear({**p, "bias": p["bias"].astype(jnp.bfloat16)}, x.astype(jnp.bfloat16))
    assert coarse.dtype == jnp.bfloat16
    sums = rounded(x.astype(jnp.bfloat16).astype(np.float32), float(p["input_scale"]), kind)
    wanted = sums @ matrix(p) * (np.asarray(p["scale"]) * float(p["input_scale"]))
    wanted = wanted + np.asarray(p["bias"].astype(jnp.bfloat16), np.float64)
    np.testing.assert_allclose(np.asarray(coarse, np.float64), wanted, rtol=2**-8, atol=2**-8)


@KINDS
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_a_linear_layer_of_patches(kind: Any, stride: int) -> None:
    p, x = layer(kind, 3, 3, 16, 24), inputs(1, 6, 6, 16)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = range(0, 6, stride)
    patches = np.stack([[padded[0, i : i + 3, j : j + 3].ravel() for j in places] for i in places])
    weight = np.asarray(p["weight"]).reshape(-1, 24)
    wanted = linear({**p, "weight": weight if kind == INT8 else weight.T}, jnp.asarray(patches[None]))
    got = conv(p, jnp.asarray(x), stride=stride, padding=(1, 1))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0 if kind == INT8 else 2e-6)


@KINDS
def test_nothing_becomes_nan_and_zeros_stay(kind: Any) -> None:
    p = layer(kind, 8, 4)
    huge = linear(p, np.float32([[1e30] * 8, [-1e30] * 8]))
    assert np.isfinite(huge).all()
    np.testing.assert_array_equal(np.asarray(linear(p, np.zeros((2, 8), np.float32)))[0], p["bias"])
    weight, scale = quantise_weight(np.zeros((8, 4), np.float32), kind)
    assert np.all(np.asarray(weight, np.float32) == 0)
    assert np.all(np.asarray(scale) > 0)


def test_rounding_stays_within_its_bounds() -> None:
    x = jnp.asarray(np.random.default_rng(2).uniform(-5, 5, 4096), jnp.float32)
    scale = scale_of(jnp.abs(x).max(), INT8)
    assert np.abs(quantise(x, scale, INT8) * scale - x).max() <= scale / 2 * 1.0001
    scale = scale_of(jnp.abs(x).max(), E4M3)
    error = np.abs(np.asarray(quantise(x, scale, E4M3), np.float32) * scale - x)
    normal = np.abs(x) >= scale * 2.0**-6
    assert (error[normal] <= np.abs(x[normal]) * 2.0**-4).all()


@pytest.mark.parametrize("largest", [1e-4, 0.3, 1.0, 448.0, 449.0, 3e4])
def test_scales_of_e4m3_are_powers_of_two(largest: float) -> None:
    scale = float(scale_of(jnp.float32(largest), E4M3))
    assert np.frexp(scale)[0] == 0.5
    assert 448 / 2 <= largest / scale <= 448


@pytest.mark.parametrize("depth", [1, 2])
def test_observed_measures_what_goes_in(depth: int) -> None:
    """The inputs of both layers, by a gradient through a compiled function."""
    exact = [{"weight": jnp.asarray(inputs(6, 6)) * (i + 1)} for i in range(depth)]
    x = jnp.asarray(inputs(3, 6))

    @jax.jit
    def run(p: dict[str, Any], x: jax.Array) -> jax.Array:
        return jnp.tanh(linear(p, x))

    def whole(largest: list[Any]) -> tuple[jax.Array, jax.Array]:
        y = x
        for p, seen in zip(exact, largest, strict=True):
            y = run({**p, "input_largest": seen}, y)
        return y.sum(), y

    seen, y = jax.grad(whole, has_aux=True)([jnp.float32(0.0)] * depth)
    wanted, entered = x, []
    for p in exact:
        entered.append(np.abs(wanted).max())
        wanted = run(p, wanted)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(seen, entered)


def looped(p: dict[str, Any], x: jax.Array) -> jax.Array:
    """As in `advance`: the parameters do not change from step to step."""
    return lax.fori_loop(0, x.shape[0], lambda _, y: linear(p, y), x)


def test_cuda_sees_scaled_e4m3_right_before_the_product() -> None:
    """The form that XLA makes a cuBLASLt call of: two values of e4m3, each converted and multiplied by a scalar."""
    p = layer(E4M3, 64, 64, dtype=jnp.bfloat16)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (p, jnp.zeros((32, 64), jnp.bfloat16)))
    text = export.export(jax.jit(looped), platforms=["cuda"])(*shapes).mlir_module()
    lines = [line for line in text.splitlines() if "stablehlo." in line]
    product = next(i for i, line in enumerate(lines) if "dot_general" in line)
    assert "contracting_dims = [1] x [1]" in lines[product]
    assert "tensor<32x64xbf16>, tensor<64x64xbf16>) -> tensor<32x64xbf16>" in lines[product]
    made = {line.split(" = ")[0].strip(): line for line in lines}
    for operand in lines[product].split("dot_general ")[1].split(",")[:2]:
        scaled = made[operand.strip()]
        assert "stablehlo.multiply" in scaled
        values, scale = (made[name.strip()] for name in scaled.split("multiply ")[1].split(" :")[0].split(","))
        assert "f8E4M3FN" in values
        assert "stablehlo.convert" in values
        assert "(tensor<bf16>)" in scale
        assert "stablehlo.broadcast_in_dim" in scale


def test_weights_stay_eight_bits_in_a_loop() -> None:
    """Or XLA would convert them once before it, and there is no product of eight bits to be found."""
    p, x = layer(E4M3, 64, 64), jnp.zeros((32, 64))
    text = jax.jit(looped).lower(p, x).compile().as_text()
    assert text is not None
    loop = next(line for line in text.splitlines() if " while(" in line)
    assert "f8e4m3fn[64,64]" in loop


@KINDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tried_layer_is_the_quantised_or_the_exact_one(kind: Any, dtype: Any) -> None:
    """Which of them, a number says that compiles nothing."""
    rng = np.random.default_rng(2)
    for run, shape, x in ((linear, (96, 40), inputs(2, 5, 96)), (conv, (3, 3, 8, 6), inputs(2, 5, 5, 8))):
        exact = {"weight": (rng.normal(size=shape) * 0.05).astype(dtype), "bias": np.ones(shape[-1], dtype)}
        weight, scale = quantise_weight(exact["weight"], kind)
        input_scale = scale_of(jnp.float32(3), kind)
        quantised = {**exact, "weight": weight, "scale": scale, "input_scale": input_scale}
        traced: list[int] = []

        def tracing(p: Any, x: jax.Array, run: Any = run, traced: list[int] = traced) -> jax.Array:
            traced.append(1)
            return run(p, x)

        tried, x = jax.jit(tracing), x.astype(dtype)
        for on, wanted in ((0, run(exact, x)), (1, run(quantised, x))):
            found = tried({**exact, "rounded": np.asarray(on, kind), "input_scale": input_scale}, x)
            near: Any = {"rtol": 1e-5, "atol": 1e-5} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.02}
            np.testing.assert_allclose(np.asarray(found, np.float32), np.asarray(wanted, np.float32), **near)
        assert len(traced) == 1
