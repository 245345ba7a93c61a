"""The random numbers of other programs: PyTorch's of a CPU and of NVIDIA's GPUs, on the host.

What a picture's seed means depends on the generator, the order in which it fills an array, and the shape of the array:
these programs draw for one image [channels, height, width], or for a batch of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxl.errors import InputError, nearest

F = np.float32
OWN = "jaxl"
BLOCK = 16  # of torch's numbers on a CPU, eight pairs
PART = 8192  # numbers that are worked on at once, so that they stay in the processor's cache
WIDE = 4 * PART  # and those of many short operations, of which each takes NumPy time to begin

# of Philox 4x32-10: what its first two words and its last two are multiplied by to get them, and what is added to keys
ROUNDS = 10
FACTORS = (0xCD9E8D57, 0xD2511F53)
STEPS = (0x9E3779B9, 0xBB67AE85)
LOW, HALF = 0xFFFFFFFF, 32  # of 64 bits
Product = np.ndarray | int  # of each thread, or of all


class Generator(Protocol):
    """A generator with its seed; each draw goes on where the one before ended."""

    def normals(self, n: int, start: int, stop: int) -> np.ndarray:
        """Draw n unit normals at once, and return the numbers `start` to `stop` of them, float32."""
        ...


# the generator of a seed, exact or faster
Source = Callable[[int, bool], Generator]


@dataclass(frozen=True)
class Numbers:
    """What a source of SOURCES draws for an image: unit normals of `shape` [H, W, C], one draw after another.

    A generator may draw `of` images at once, of which this is the one at `place`.
    """

    source: str
    seed: int
    shape: tuple[int, int, int]
    place: int = 0
    of: int = 1

    def draws(self) -> Iterator[np.ndarray]:
        """Draw without end, from the seed on; each draw is float32 [H, W, C]."""
        generator = SOURCES[self.source](self.seed, True)
        while True:
            yield image_of(self.draw(generator), self.shape)

    def draw(self, generator: Generator) -> np.ndarray:
        """Return the image's part [C * H * W] of a generator's next draw."""
        size = math.prod(self.shape)
        return generator.normals(self.of * size, self.place * size, (self.place + 1) * size)


def image_of(numbers: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return numbers [C * H * W], in PyTorch's order, as an array of the shape [H, W, C]."""
    height, width, channels = shape
    return np.ascontiguousarray(numbers.reshape(channels, height, width).transpose(1, 2, 0))


def check_source(argument: str, value: object) -> str:
    """Return a name of SOURCES, or OWN. Raises InputError for others."""
    names = [OWN, *SOURCES]
    if value not in names:
        raise InputError(argument, value, nearest(str(value), names))
    return str(value)


class TorchCPU:
    """`torch.Generator().manual_seed(seed)` for `torch.randn` in float32: bit for bit that of a CPU with AVX2.

    What is not `exact` has numpy's logarithm, sine and cosine, which is faster, and differs in the last places. A
    generator `spends` words on the numbers behind the last whole block too, which it then draws anew.
    """

    spends = True

    def __init__(self, seed: int, exact: bool = True):
        self._words = np.random.RandomState(seed & LOW)  # MT19937 (Matsumoto & Nishimura 1998), seeded alike
        self._log, self._sine_and_cosine = (_log, _sine_and_cosine) if exact else (np.log, _numpys_sine_and_cosine)

    def normals(self, n: int, start: int, stop: int) -> np.ndarray:
        if n < BLOCK:
            raise ValueError(f"{n} numbers: torch draws fewer than {BLOCK} in another way")
        first, whole = start // BLOCK * BLOCK, n // BLOCK * BLOCK
        uniform = self._uniforms(n if self.spends else whole)
        last = min(-(-stop // BLOCK) * BLOCK, whole)
        normal = np.empty(max(stop, last) - first, F)
        for at in range(first, last, PART):
            block = uniform[at : min(at + PART, last)]
            normal[at - first : at - first + block.size] = self._box_muller(block)
        if whole < n:  # torch draws the last block anew
            again = self._box_muller(self._uniforms(BLOCK))
            normal[max(n - BLOCK - first, 0) :] = again[max(first - n + BLOCK, 0) : stop - n + BLOCK]
        return normal[start - first : stop - first]

    def _uniforms(self, n: int) -> np.ndarray:
        return (self._words.randint(0, 2**32, n, np.uint32) & 0xFFFFFF).astype(F) * F(2**-24)

    def _box_muller(self, uniform: np.ndarray) -> np.ndarray:
        """Of each 16, the first eight give the radius, the others the angle; cosines come first (Box & Muller 1958)."""
        first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
        radius = np.sqrt(F(-2) * self._log(F(1) - first))
        sine, cosine = self._sine_and_cosine(F(2 * np.pi) * second)
        return np.stack([radius * cosine, radius * sine], 1).reshape(-1)


def _numpys_sine_and_cosine(angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.sin(angle), np.cos(angle)


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


def _float16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(F)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(F).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(F)  # to the nearest, of two to the even one


@dataclass(frozen=True)
class Half:
    """A type of sixteen bits: what rounds to it, and how many bits of a word make an old uniform number."""

    rounded: Callable[[np.ndarray], np.ndarray]
    bits: int


HALVES: Mapping[str, Half] = {"fp16": Half(_float16, 11), "bf16": Half(_bfloat16, 8)}


class TorchHalf(TorchCPU):
    """`torch.randn` in half precision since 2026: the numbers of float32, rounded."""

    spends = False

    def __init__(self, seed: int, half: Half, exact: bool = True):
        super().__init__(seed, exact)
        self._half = half

    def normals(self, n: int, start: int, stop: int) -> np.ndarray:
        return self._half.rounded(super().normals(n, start, stop))


class OldTorchHalf(TorchCPU):
    """The same as PyTorch 2.6 has it: from other bits of the generator, and with `every` result on the way rounded.

    PyTorch 1.13 computes float16's logarithms, roots, sines and cosines in float32.
    """

    def __init__(self, seed: int, half: Half, every: bool = True):
        super().__init__(seed, exact=False)
        self._half = half
        self._within = half.rounded if every else np.copy

    def _uniforms(self, n: int) -> np.ndarray:
        words = self._words.randint(0, 2**32, n, np.uint32)
        return (words & (2**self._half.bits - 1)).astype(F) * F(2.0**-self._half.bits)

    def _box_muller(self, uniform: np.ndarray) -> np.ndarray:
        rounded, within = self._half.rounded, self._within
        first, second = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
        radius = rounded(np.sqrt(within(-2 * within(np.log(rounded(F(1) - first))))))
        angle = rounded((2 * np.pi * second.astype(np.float64)).astype(F))
        return np.stack([rounded(radius * within(turn(angle))) for turn in (np.cos, np.sin)], 1).reshape(-1)


class Philox:
    """A generator as `torch.randn` has one on a GPU that runs so many threads at once; None is one for each number.

    Each thread counts with a generator of its own, Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
    easy as 1, 2, 3"), four numbers at a time; a number that the first wave does not reach comes from a later word.
    What is not `exact` is computed in float32.
    """

    def __init__(self, seed: int, threads: int | None, exact: bool = True):
        self._keys = [
            tuple((half + number * step) & LOW for half, step in zip((seed & LOW, seed >> 32), STEPS, strict=True))
            for number in range(ROUNDS)
        ]
        self._threads = threads
        self._offset = 0
        self._dtype = np.float64 if exact else F

    def normals(self, n: int, start: int, stop: int) -> np.ndarray:
        at_once = -(-n // 256) * 256
        if self._threads is not None:
            at_once = min(at_once, self._threads)
        normal = np.empty(stop - start, F)
        at = start
        while at < stop:
            wave, thread = divmod(at, at_once)
            size = min(stop - at, at_once - thread, WIDE)
            count, word = divmod(wave, 4)
            normal[at - start : at - start + size] = self._of_threads(self._offset + count, word, thread, size)
            at += size
        self._offset += -(-n // (4 * at_once))
        return normal

    def _of_threads(self, count: int, word: int, thread: int, size: int) -> np.ndarray:
        """The numbers that `size` threads from `thread` on make of one of the four words of a count."""
        words = _philox_words(count, np.arange(thread, thread + size, dtype=np.uint64), word // 2, self._keys)
        unit = self._dtype(2.0**-32)
        radius, angle = (each.view(np.int64).astype(self._dtype) for each in words)  # from int64 is faster
        for each in (radius, angle):
            each *= unit
            each += unit / 2
        radius = np.log(radius, out=radius)
        radius *= -2
        angle *= self._dtype(2 * np.pi)
        return np.sqrt(radius, out=radius) * (np.cos if word % 2 else np.sin)(angle, out=angle)


def _philox_words(
    count: int, threads: np.ndarray, pair: int, keys: Sequence[tuple[int, ...]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return two of the four words of counters (count, 0, thread, 0): the first and second, or those of `pair` 1.

    A round makes a word of the upper half of one product, the lower half of the one before, and a key. The first rounds
    have products that are one number for all threads, and the last two make what is asked for alone.
    """
    spare = np.empty_like(threads)
    before: tuple[Product, ...] = (0, 0)
    now: tuple[Product, ...] = (threads * FACTORS[0], count * FACTORS[1])
    for key in keys[:-2]:
        first, third = (_mixed(*each, spare) for each in zip(now, before, key, strict=True))
        first *= FACTORS[1]
        third *= FACTORS[0]
        before, now = now, (third, first)
    other = 1 - pair
    last = _mixed(now[other], before[other], keys[-2][other], spare)
    last *= FACTORS[pair]
    upper = _mixed(last, now[pair], keys[-1][pair], spare)
    last &= LOW
    return upper, last  # pyright: ignore[reportReturnType]


def _mixed(product: Product, before: Product, key: int, spare: np.ndarray) -> Product:
    """Return the upper half of a product, the lower one of that before, and a key; an array `before` becomes it."""
    if isinstance(before, int):
        return product >> HALF ^ (before & LOW ^ key)
    if isinstance(product, int):
        before ^= product >> HALF ^ key
    else:
        before ^= np.right_shift(product, HALF, out=spare)
        before ^= key
    before &= LOW
    return before


def _gpu(threads: int | None) -> Source:
    return lambda seed, exact: Philox(seed, threads, exact)


def _half(kind: str) -> Source:
    return lambda seed, exact: TorchHalf(seed, HALVES[kind], exact)


def _old_half(kind: str, *, every: bool = True) -> Source:
    return lambda seed, exact: OldTorchHalf(seed, HALVES[kind], every)


# GPUs as multiprocessors times their threads; they differ where a picture has more numbers, 65,536 at 1024x1024
SOURCES: Mapping[str, Source] = {
    "torch": TorchCPU,
    "torch:fp16": _half("fp16"),
    "torch:bf16": _half("bf16"),
    "torch2.6:fp16": _old_half("fp16"),
    "torch2.6:bf16": _old_half("bf16"),
    "torch1.13:fp16": _old_half("fp16", every=False),
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
