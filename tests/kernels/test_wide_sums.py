"""Products and convolutions of bfloat16 with sums in float32: XLA's, rounded once instead of twice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels import XLA, Kernels, processor
from jaxl.nn.layers import conv, conv_shapes, linear, linear_shapes

WIDE = Kernels(sums="wide")
RNG = np.random.default_rng(0)


def values(leaf: jax.ShapeDtypeStruct) -> Any:
    return (RNG.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)


@pytest.mark.parametrize(
    ("shapes", "x", "run"),
    [
        (linear_shapes(64, 48, jnp.bfloat16), (2, 9, 64), linear),
        (linear_shapes(64, 48, jnp.bfloat16, bias=False), (18, 64), linear),
        (conv_shapes(32, 48, 1, jnp.bfloat16), (2, 5, 7, 32), linear),
        (conv_shapes(32, 48, 3, jnp.bfloat16), (2, 5, 7, 32), lambda p, x, kernels: conv(p, x, kernels=kernels)),
    ],
)
def test_they_are_as_near_to_float32(shapes: Any, x: tuple[int, ...], run: Callable[..., Any]) -> None:
    p, x_ = jax.tree.map(values, shapes), RNG.standard_normal(x).astype(jnp.bfloat16)
    compiled = jax.jit(run, static_argnames="kernels")
    exact = np.asarray(compiled(jax.tree.map(lambda a: a.astype(np.float32), p), x_.astype(np.float32), kernels=XLA))
    far = {}
    for kernels in (WIDE, XLA):
        y = compiled(p, x_, kernels=kernels)
        assert y.dtype == jnp.bfloat16
        assert y.shape == exact.shape
        far[kernels] = np.square(np.asarray(y, np.float32) - exact).mean() ** 0.5 / exact.std()
    assert far[WIDE] <= far[XLA] * 1.01 < 0.01
    traced = str(jax.make_jaxpr(lambda p, x: run(p, x, kernels=WIDE))(p, x_))
    assert "preferred_element_type=float32" in traced
    assert "conv_general_dilated" not in traced


def test_others_are_xlas() -> None:
    """float32, and convolutions of another stride or of large pictures, are what they are without."""
    p = jax.tree.map(values, conv_shapes(8, 8, 3, jnp.float32))
    x = RNG.standard_normal((1, 6, 6, 8), np.float32)
    np.testing.assert_array_equal(conv(p, x, kernels=WIDE), conv(p, x))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), p)
    wide, plain = (
        conv(half, jnp.asarray(x.astype(jnp.bfloat16)), stride=2, kernels=kernels) for kernels in (WIDE, XLA)
    )
    np.testing.assert_array_equal(wide, plain)
    large = jax.ShapeDtypeStruct((1, 512, 512, 8), jnp.bfloat16)
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x: conv(half, x, kernels=WIDE))(large))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (
            "vendor_id : GenuineIntel\nflags\t\t: fpu avx512_bf16 amx_bf16\n\nprocessor : 1\n",
            "bfloat16",
        ),
        ("vendor_id : AuthenticAMD\nflags : fpu avx512_bf16\n\nprocessor : 1\n", "bfloat16"),
        ("vendor_id : AuthenticAMD\nflags : fpu avx512f\n\nprocessor : 1\n", ""),
        ("vendor_id : GenuineIntel\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\nflags : amx_bf16\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_what_the_processor_has(text: str | None, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(processor, "CPU_INFO", file)
    processor.facts.cache_clear()
    assert processor.features() == kind
    assert Kernels.of_device(jax.devices("cpu")[0]).sums == ("wide" if kind else "narrow")
    processor.facts.cache_clear()
