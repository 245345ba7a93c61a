"""The random numbers that other programs start from: PyTorch's of a CPU and of NVIDIA's GPUs, on the host.

What a picture's seed means depends on the generator, the order in which it fills an array, and the shape of the array:
these programs draw for one image [channels, height, width].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from jaxl.errors import InputError, nearest

F = np.float32
OWN = "jaxl"
BLOCK = 16  # of torch's numbers on a CPU, eight pairs


# the first n unit normals of a seed, float32, in the order in which they fill an array
Source = Callable[[int, int], np.ndarray]


def other_noise(source: str, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The noise of an image that a source of SOURCES begins with for a seed: float32 [H, W, C], the shape given."""
    height, width, channels = shape
    drawn = SOURCES[source](seed, height * width * channels)
    return np.ascontiguousarray(drawn.reshape(channels, height, width).transpose(1, 2, 0))


def check_source(value: object) -> str:
    """Return a name of SOURCES, or OWN. Raises InputError for others."""
    names = [OWN, *SOURCES]
    if value not in names:
        raise InputError("noise", value, nearest(str(value), names))
    return str(value)


def _torch_cpu(seed: int, n: int) -> np.ndarray:
    """`torch.randn(n, generator=torch.Generator().manual_seed(seed))`, float32: bit for bit that of a CPU with AVX2."""
    words = np.random.RandomState(seed & 0xFFFFFFFF)  # MT19937 (Matsumoto & Nishimura 1998), seeded alike

    def uniforms(n: int) -> np.ndarray:
        return (words.randint(0, 2**32, n, np.uint32) & 0xFFFFFF).astype(F) * F(2**-24)

    if n < BLOCK:
        raise ValueError(f"{n} numbers: torch draws fewer than {BLOCK} in another way")
    whole = n // BLOCK * BLOCK
    uniform = uniforms(n)
    normal = np.empty(n, F)
    normal[:whole] = _box_muller(uniform[:whole])
    if whole < n:  # torch draws the last block anew
        normal[-BLOCK:] = _box_muller(uniforms(BLOCK))
    return normal


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Of each 16, the first eight give the radius, the others the angle; cosines come first (Box & Muller 1958)."""
    first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(F(-2) * _log(F(1) - first))
    sine, cosine = _sine_and_cosine(F(2 * np.pi) * second)
    return np.stack([radius * cosine, radius * sine], 1).reshape(-1)


# torch computes these two by the polynomials of Moshier's Cephes library, with fused multiplication and addition. The
# product of two float32 is exact in float64, so their sum there, rounded once more, is the fused one but for ties.


def _fused(a: np.ndarray, b: np.ndarray | np.float32, c: np.ndarray | np.float32) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(F)


def _horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    y = np.full_like(x, F(coefficients[0]))
    for coefficient in coefficients[1:]:
        y = _fused(y, x, F(coefficient))
    return y


LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1)
LOG += (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
LN_2 = (0.693359375, -2.12194440e-4)  # in two parts
EIGHTH_TURN = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)  # pi / 4, in three


def _log(x: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(np.maximum(x, np.finfo(F).tiny))
    small = mantissa < F(0.707106781186547524)
    exponent = (exponent - small).astype(F)
    x = np.where(small, mantissa + mantissa, mantissa) - F(1)
    square = x * x
    y = _fused(_horner(x, LOG) * x, square, exponent * F(LN_2[1]))
    return _fused(exponent, F(LN_2[0]), x + _fused(square, F(-0.5), y))


def _sine_and_cosine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of angles from 0 on."""
    octant = ((angle * F(1.27323954473516)).astype(np.int32) + 1) & ~1
    x = angle
    for part in EIGHTH_TURN:
        x = _fused(octant.astype(F), F(-part), x)
    square = x * x
    cosine = _fused(_horner(square, COSINE) * square, square, -square * F(0.5)) + F(1)
    sine = _fused(_horner(square, SINE) * square, x, x)
    swapped = (octant & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant - 2) & 4, cosine, -cosine)


def _philox(seed: int, n: int, threads: int | None) -> np.ndarray:
    """What `torch.randn` gives on a GPU that runs so many threads at once; None is one for each number.

    Each thread counts with a generator of its own, Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3"), four numbers at a time; a number that the first wave does not reach comes from a later word.
    """
    at_once = -(-n // 256) * 256
    if threads is not None:
        at_once = min(at_once, threads)
    number = np.arange(n, dtype=np.uint64)
    counts, place = np.divmod(number, np.uint64(4 * at_once))
    word, thread = np.divmod(place, np.uint64(at_once))
    none = np.zeros(n, np.uint64)
    x, y, z, w = _philox_words((counts, none, thread, none), seed & 0xFFFFFFFF, seed >> 32)
    second = word >= 2
    radius = np.sqrt(-2 * np.log(np.where(second, z, x) * 2.0**-32 + 2.0**-33))
    angle = (np.where(second, w, y) * 2.0**-32 + 2.0**-33) * 2 * np.pi
    return (radius * np.where(word % 2, np.cos(angle), np.sin(angle))).astype(F)


def _philox_words(counter: tuple[np.ndarray, ...], low: int, high: int) -> tuple[np.ndarray, ...]:
    a, b, c, d = counter
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (second >> half) ^ b ^ np.uint64(low), second & mask
        c, d = (first >> half) ^ d ^ np.uint64(high), first & mask
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def _gpu(threads: int | None) -> Source:
    return lambda seed, n: _philox(seed, n, threads)


# GPUs as multiprocessors times their threads; they differ where a picture has more numbers, 65,536 at 1024x1024
SOURCES: Mapping[str, Source] = {
    "torch": _torch_cpu,
    "nv": _gpu(None),
    "cuda": _gpu(108 * 2048),
    "cuda:t4": _gpu(40 * 1024),
    "cuda:rtx3060": _gpu(28 * 1536),
    "cuda:rtx3060ti": _gpu(38 * 1536),
    "cuda:l4": _gpu(58 * 1536),
    "cuda:rtx4090": _gpu(128 * 1536),
    "cuda:a100": _gpu(108 * 2048),
    "cuda:h100": _gpu(132 * 2048),
}

# by A1111's names, and as files have them after "RNG: ", where the others have their own names
A1111_SOURCES: Mapping[str, str] = {"CPU": "torch", "NV": "nv", "GPU": "cuda"}
RNG_NAMES: Mapping[str, str] = {**A1111_SOURCES, **{name: name for name in SOURCES if ":" in name}}
