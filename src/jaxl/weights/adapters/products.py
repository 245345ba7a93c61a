"""Changes by products of small matrices: LoHa by elements, LoKr by Kronecker's product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jaxl.weights.adapters.changes import Addition
from jaxl.weights.adapters.parts import MisfitError, Parts

Array = np.ndarray

HADAMARD = frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"))
KRONECKER = frozenset(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"))


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix as a product of two, [m, r] and [r, n]; or with Tucker's core [r, r, kh, kw] between [r, m] and [r, n].

    `second` and `core` may be missing: then it is `first`.
    """

    first: Array
    second: Array | None = None
    core: Array | None = None

    @property
    def rank(self) -> int | None:
        return None if self.second is None else len(self.second)

    def value(self) -> Array:
        """Return it in float32: [m, n], or [m, n, kh, kw] with a core."""
        first = self.first.astype(np.float32)
        if self.second is None:
            return first
        second = self.second.astype(np.float32)
        if self.core is None:
            return first @ second
        return np.einsum("ijkl,jn,im->mnkl", self.core.astype(np.float32), second, first, optimize=True)


@dataclass(frozen=True, eq=False)
class LoHa(Addition):
    """LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): `scale` times two matrices' product by elements is added."""

    one: Product
    other: Product
    scale: float

    @property
    def kind(self) -> str:
        return "LoHa"

    @property
    def dim(self) -> int | None:
        return self.one.rank

    def delta(self, weight: Array) -> Array:
        product = self.one.value().reshape(weight.shape) * self.other.value().reshape(weight.shape)
        return np.float32(self.scale) * product


@dataclass(frozen=True, eq=False)
class LoKr(Addition):
    """LoKr (Yeh et al. 2023, arXiv:2309.14859): `scale` times the Kronecker product of two matrices is added."""

    small: Product
    large: Product
    scale: float

    @property
    def kind(self) -> str:
        return "LoKr"

    @property
    def dim(self) -> int | None:
        return self.small.rank if self.large.rank is None else self.large.rank

    def delta(self, weight: Array) -> Array:
        large = self.large.value()
        # a kernel's axes belong to the columns: the product of [a, b] and [c, d * k] has the columns b, d, k
        product = np.kron(self.small.value(), large.reshape(len(large), -1))
        return np.float32(self.scale) * product.reshape(weight.shape)


def read_hadamard(parts: Parts) -> LoHa:
    """Read LoHa's tensors. Raises MisfitError."""
    outputs, *inner = parts.shape
    rank = parts.rank("hada_w1_b")
    products = []
    for number in (1, 2):
        a, b, core = (f"hada_w{number}_a", f"hada_w{number}_b", f"hada_t{number}")
        rank_here = parts.rank(b)
        if core in parts:
            products.append(
                Product(
                    parts.fitted(a, rank_here, outputs),
                    parts.fitted(b, rank_here, inner[0]),
                    parts.core(core, rank_here),
                )
            )
        else:
            products.append(Product(parts.fitted(a, outputs, rank_here), parts.fitted(b, rank_here, math.prod(inner))))
    one, other = products
    return LoHa(one, other, parts.scale(rank))


def read_kronecker(parts: Parts) -> LoKr:
    """Read LoKr's tensors: either matrix may be whole or a product. Without a rank, alpha means nothing.

    Raises MisfitError.
    """
    small, large = _factor(parts, "lokr_w1", None), _factor(parts, "lokr_w2", "lokr_t2")
    (a, b), (c, d) = _size(small), _size(large)
    if a * c != parts.shape[0] or b * d != math.prod(parts.shape[1:]):
        keys = ", ".join(parts.keys.values())
        raise MisfitError(f"{keys}: the product of ({a}, {b}) and ({c}, {d}) is not {parts.shape}")
    return LoKr(small, large, parts.scale(small.rank if large.rank is None else large.rank))


def _factor(parts: Parts, name: str, core: str | None) -> Product:
    first, second = f"{name}_a", f"{name}_b"
    if name in parts:
        if first in parts or second in parts:
            raise MisfitError(f"{parts.keys[name]} is there whole, and as a product too")
        return Product(parts.matrix(name))
    if core is not None and core in parts:
        rank = parts.rank(second)
        outputs, inputs = (parts.matrix(part).shape[1] for part in (first, second))
        return Product(
            parts.fitted(first, rank, outputs),
            parts.fitted(second, rank, inputs),
            parts.core(core, rank),
        )
    product = Product(parts.matrix(first), parts.matrix(second))
    if product.first.shape[1] != parts.rank(second):
        raise MisfitError(f"{parts.keys[first]} and {parts.keys[second]} are no product of matrices")
    return product


def _size(product: Product) -> tuple[int, int]:
    """Return rows and columns, a kernel's axes among the columns."""
    if product.core is not None and product.second is not None:
        return product.first.shape[1], product.second.shape[1] * math.prod(product.core.shape[2:])
    last = product.first if product.second is None else product.second
    return len(product.first), last.shape[1]
