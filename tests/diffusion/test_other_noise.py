"""Other programs' random numbers: torch's on this CPU, and published ones of GPUs and of Brownian paths."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from jaxl.diffusion.brownian import BrownianNoise
from jaxl.diffusion.other_noise import SOURCES, Numbers
from jaxl.diffusion.variation import blended, pasted


def same_as_torch(noise: np.ndarray, wanted: torch.Tensor) -> None:
    """Bit for bit where torch has AVX2, as on x86; elsewhere its logarithm and sine differ in the last places."""
    expected = wanted.numpy().transpose(1, 2, 0)
    assert noise.dtype == np.float32
    np.testing.assert_allclose(noise, expected, atol=2e-6)
    if "AVX" in torch.backends.cpu.get_cpu_capability():
        assert (noise == expected).all()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed if seed < 2**63 else seed - 2**64)


@pytest.mark.parametrize("shape", [(4, 128, 128), (4, 127, 129), (4, 2, 2)])
@pytest.mark.parametrize("seed", [0, 42, 2**32 + 42, 2**64 - 1])
def test_torchs_numbers_of_a_cpu(seed: int, shape: tuple[int, int, int]) -> None:
    theirs, draws = generator(seed), Numbers("torch", seed, (*shape[1:], shape[0])).draws()
    for _ in range(2):  # a generator goes on
        same_as_torch(next(draws), torch.randn(shape, generator=theirs))


@pytest.mark.parametrize("shape", [(4, 128, 128), (4, 31, 9)])
@pytest.mark.parametrize(("source", "dtype"), [("torch:fp16", torch.float16), ("torch:bf16", torch.bfloat16)])
def test_half_precision(source: str, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    theirs, draws = generator(42), Numbers(source, 42, (*shape[1:], shape[0])).draws()
    for _ in range(2):
        same_as_torch(next(draws), torch.randn(shape, generator=theirs, dtype=dtype).float())


@pytest.mark.parametrize(
    ("source", "dtype", "bits", "largest"),
    [
        ("torch2.6:fp16", torch.float16, 11, 3.90234375),
        ("torch2.6:bf16", torch.bfloat16, 8, 3.328125),
        ("torch1.13:fp16", torch.float16, 11, 3.90234375),
    ],
)
def test_half_precision_of_old_versions(source: str, dtype: torch.dtype, bits: int, largest: float) -> None:
    """Their loop, by PyTorch's operations, which round each result as theirs did."""
    words = np.random.RandomState(42).randint(0, 2**32, 2**16, np.uint32) & (2**bits - 1)
    first, second = torch.from_numpy(words.astype(np.float32) * 2.0**-bits).reshape(-1, 2, 8).unbind(1)
    within = torch.float32 if "1.13" in source else dtype
    radius = (-2 * (1 - first).to(within).log()).sqrt().to(dtype).to(within)
    angle = (2 * np.pi * second.double()).to(dtype).to(within)
    wanted = torch.stack([radius * angle.cos(), radius * angle.sin()], 1).to(dtype).float().ravel().numpy()
    numbers = SOURCES[source](42, True).normals(2**16, 0, 2**16)
    assert (numbers == wanted).mean() > 0.9999  # where a logarithm lies between two numbers, either may be next to it
    np.testing.assert_allclose(numbers, wanted, atol=0.02)
    assert np.abs(numbers).max() == largest


@pytest.mark.parametrize("size", [(32, 32), (31, 9)])
def test_images_that_one_generator_draws_at_once(size: tuple[int, int]) -> None:
    theirs, draws = generator(3), [Numbers("torch", 3, (*size, 4), place, 3).draws() for place in range(3)]
    for _ in range(2):
        batch = torch.randn(3, 4, *size, generator=theirs)
        for own, wanted in zip(draws, batch, strict=True):
            same_as_torch(next(own), wanted)


def test_images_that_a_gpu_draws_at_once() -> None:
    """They are the parts of one long draw, which a small GPU has to count on for."""
    size = 128 * 128 * 4
    for name in ("nv", "cuda:t4"):
        whole = SOURCES[name](7, True)
        parts = [SOURCES[name](7, True) for _ in range(3)]
        for _ in range(2):
            once = whole.normals(3 * size, 0, 3 * size)
            each = [part.normals(3 * size, i * size, (i + 1) * size) for i, part in enumerate(parts)]
            assert (once == np.concatenate(each)).all()


# Of seed 42: the docstring of A1111's `rng_philox.py` has those of seed 0; these were drawn by it and by torch on a T4.
@pytest.mark.parametrize(
    ("source", "draw", "first", "numbers"),
    [
        ("nv", 0, 0, (0.194019, 2.161374, -0.172051)),
        ("nv", 1, 0, (0.139138, -0.108216, -0.717422)),
        ("nv", 0, 40960, (1.009123, -1.059193, -0.145999)),
        ("cuda", 0, 40960, (1.009123, -1.059193, -0.145999)),
        ("cuda:t4", 0, 0, (0.194019, 2.161374, -0.172051)),
        ("cuda:t4", 0, 40960, (-0.970190, 2.127691, -1.345707)),
        ("torch", 0, 0, (1.926915, 1.487284, 0.900717)),
        ("torch", 1, 0, (0.888408, 2.116026, -2.264768)),
        ("torch2.6:fp16", 0, 0, (0.386963, 1.470703, 0.146851)),
    ],
)
def test_published_numbers(source: str, draw: int, first: int, numbers: tuple[float, ...]) -> None:
    for exact in (True, False):
        own = SOURCES[source](42, exact)
        drawn = [own.normals(65536, 0, 65536) for _ in range(draw + 1)][draw]
        np.testing.assert_allclose(drawn[first : first + 3], numbers, atol=2e-6)


def test_the_last_numbers_of_a_long_draw() -> None:
    """As an issue of PyTorch (143086) prints them for two GPUs that are not alike in their number of threads."""
    small, large = (SOURCES[name](0, True).normals(2**18, 0, 2**18) for name in ("cuda:a100", "cuda:h100"))
    same = 108 * 2048
    assert (small[:same] == large[:same]).all()
    assert (small[same:] != large[same:]).all()


def test_high_bits_of_seeds() -> None:
    """A CPU's generator reads 32 of them, a GPU's all."""
    low, high = ([SOURCES[name](seed, True).normals(64, 0, 64) for name in ("torch", "nv")] for seed in (1, 2**32 + 1))
    assert (low[0] == high[0]).all()
    assert (low[1] != high[1]).all()


def test_a_brownian_path() -> None:
    """torchsde 0.2.6 prints the first and the last step's noise; a path does not depend on where it was asked."""
    ends = np.float32(14.6146412), np.float32(0.0291672)
    sigmas = (np.linspace(*(end ** (1 / 7) for end in map(float, ends)), 20) ** 7).astype(np.float32).tolist()
    numbers = Numbers("torch", 42, (16, 16, 4))
    noise = [*BrownianNoise(numbers, sigmas[-1], sigmas[0], [*pairwise(sigmas)]).draws()]
    first, last = (each.transpose(2, 0, 1).ravel()[:3] for each in (noise[0], noise[-1]))
    np.testing.assert_allclose(first, (-1.120227, -0.088821, 1.536336), atol=5e-5)  # of sigmas as torch rounds them
    np.testing.assert_allclose(last, (1.523632, 0.291196, -1.185570), atol=1e-5)
    (some,) = BrownianNoise(numbers, sigmas[-1], sigmas[0], [(sigmas[5], sigmas[9])]).draws()
    steps = np.sqrt(-np.diff(sigmas[5:10]))[:, None, None, None]
    np.testing.assert_allclose(some, (np.stack(noise[5:9]) * steps).sum(0) / np.sqrt(sigmas[5] - sigmas[9]), atol=1e-5)


def test_noise_between_two() -> None:
    """As A1111 blends tensors [C, H, W], whose columns are vectors."""
    one, two = (torch.randn(4, 6, 5, generator=generator(seed)) for seed in (1, 2))
    dots = (one / one.norm(dim=1, keepdim=True) * (two / two.norm(dim=1, keepdim=True))).sum(1)
    angle = torch.acos(dots)
    wanted = (torch.sin(0.7 * angle) / torch.sin(angle)).unsqueeze(1) * one
    wanted += (torch.sin(0.3 * angle) / torch.sin(angle)).unsqueeze(1) * two
    nhwc = [each.numpy().transpose(1, 2, 0) for each in (one, two, wanted)]
    np.testing.assert_allclose(blended(nhwc[0], nhwc[1], np.float32(0.3)), nhwc[2], atol=1e-5)
    np.testing.assert_allclose(blended(nhwc[0], 2 * nhwc[0], np.float32(0.3)), 1.7 * nhwc[0], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((2, 4), (1, 3), (0, 4)), ((6, 3), (0, 4), (0, 3)), ((5, 4), (0, 3), (0, 4))],
)
def test_noise_of_another_size(size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    """It lies in the middle, as A1111 rounds: the rows and columns that it covers of four by four."""
    large, small = np.zeros((4, 4, 1), np.float32), np.arange(1, 1 + size[0] * size[1], dtype=np.float32)
    made = pasted(small.reshape(*size, 1), large)[..., 0]
    seen = np.argwhere(made)
    assert (*seen.min(0), *(seen.max(0) + 1)) == (rows[0], columns[0], rows[1], columns[1])
    if size[0] > 4:
        assert made[0, 0] == size[1] * ((size[0] - 4 + 1) // 2) + 1
