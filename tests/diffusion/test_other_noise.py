"""Other programs' random numbers: torch's on this CPU, published ones of GPUs, and pictures that begin with them."""

from typing import Any

import numpy as np
import pytest
import torch

from jaxl.diffusion.other_noise import SOURCES, other_noise
from jaxl.errors import InputError


@pytest.mark.parametrize("shape", [(4, 128, 128), (4, 127, 129), (4, 2, 2)])
@pytest.mark.parametrize("seed", [0, 42, 2**32 + 42, 2**64 - 1])
def test_torchs_numbers_of_a_cpu(seed: int, shape: tuple[int, int, int]) -> None:
    """Bit for bit where torch has AVX2, as on x86; elsewhere its logarithm and sine differ in the last places."""
    generator = torch.Generator().manual_seed(seed if seed < 2**63 else seed - 2**64)
    wanted = torch.randn(shape, generator=generator).numpy().transpose(1, 2, 0)
    channels, height, width = shape
    noise = other_noise("torch", seed, (height, width, channels))
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, wanted, atol=2e-6)
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        assert (noise == wanted).all()


# Of seed 42: the docstring of A1111's `rng_philox.py` has those of seed 0; these were drawn by it and by torch on a T4.
@pytest.mark.parametrize(
    ("source", "first", "numbers"),
    [
        ("nv", 0, (0.194019, 2.161374, -0.172051)),
        ("nv", 40960, (1.009123, -1.059193, -0.145999)),
        ("cuda", 40960, (1.009123, -1.059193, -0.145999)),
        ("cuda:t4", 0, (0.194019, 2.161374, -0.172051)),
        ("cuda:t4", 40960, (-0.970190, 2.127691, -1.345707)),
    ],
)
def test_numbers_of_gpus(source: str, first: int, numbers: tuple[float, ...]) -> None:
    drawn = SOURCES[source](42, 65536)
    np.testing.assert_allclose(drawn[first : first + 3], numbers, atol=1e-6)


def test_the_last_numbers_of_a_long_draw() -> None:
    """As an issue of PyTorch (143086) prints them for two GPUs that are not alike in their number of threads."""
    small, large = (SOURCES[name](0, 2**18) for name in ("cuda:a100", "cuda:h100"))
    same = 108 * 2048
    assert (small[:same] == large[:same]).all()
    assert (small[same:] != large[same:]).all()


def test_high_bits_of_seeds() -> None:
    """A CPU's generator reads 32 of them, a GPU's all."""
    assert (SOURCES["torch"](2**32 + 1, 64) == SOURCES["torch"](1, 64)).all()
    assert (SOURCES["nv"](2**32 + 1, 64) != SOURCES["nv"](1, 64)).all()


def test_images_begin_with_it(tiny: tuple[Any, Any]) -> None:
    """As if it was given as `latents`; the images of a call count their seeds up."""
    plan = tiny[0].plan("a cat", seed=7, num_images=2, noise="torch")
    noise = np.stack([other_noise("torch", seed, (32, 32, 4)) for seed in (7, 8)])
    np.testing.assert_array_equal(plan.noise, noise)
    np.testing.assert_array_equal(tiny[0].plan("a cat", num_images=2, latents=noise).noise, noise)
    assert tiny[0].plan("a cat", noise="jaxl").noise is None
    assert tiny[0].plan("a cat", noise="nv", scheduler="ddim", eta=0.0).noise is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "tarch"}, "noise='tarch'.*torch"),
        ({"noise": "cuda:t5"}, "noise='cuda:t5'.*cuda:t4"),
        ({"noise": "nv", "scheduler": "euler_a"}, "noise='nv': this scheduler adds noise of jaxl's own"),
        ({"noise": "nv", "latents": np.zeros((1, 32, 32, 4))}, "noise='nv': `latents` are the noise already"),
    ],
)
def test_what_cannot_be(tiny: tuple[Any, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny[0].plan("a cat", **options)
