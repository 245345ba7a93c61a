"""Random adapters as files have them, and what they do by the formulas of their papers, in float64."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jaxl.run.model import Model
from jaxl.weights.adapters.adapter import Adapter, read_adapter
from jaxl.weights.adapters.changes import Change
from jaxl.weights.adapters.kinds import changes_of
from jaxl.weights.adapters.names import Layer
from jaxl.weights.adapters.parts import Parts
from jaxl.weights.source import open_checkpoint

Array = np.ndarray
Arrays = dict[str, Any]

SHAPES = Model.from_configs(open_checkpoint("tiny").configs).shapes()
RNG = np.random.default_rng(0)

LINEAR, SQUARE, CONV, POINT = (24, 16), (16, 16), (12, 8, 3, 3), (12, 8, 1, 1)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def write(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> Path:
    save_file({key: np.asarray(array) for key, array in arrays.items()}, path, dict(metadata or {}) or None)
    return path


def read(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None, **options: Any) -> Adapter:
    return read_adapter("name", write(path, arrays, metadata), SHAPES, **options)


def change_of(shape: tuple[int, ...], arrays: Mapping[str, Any]) -> Change:
    """The change of one layer's weight, from its parts under the names that `Parts` gives them."""
    parts = {name: np.asarray(array) for name, array in arrays.items()}
    found = changes_of(Layer("unet", "x", shape, shape[:1]), Parts(shape, parts, {name: name for name in parts}))
    return found["x.weight"]


@dataclass(frozen=True)
class Case:
    """Parts of a layer of some shape, and its new weight by formula from weight and strength, in float64."""

    shape: tuple[int, ...]
    arrays: Arrays
    expected: Callable[[Array, float], Array]

    @property
    def change(self) -> Change:
        return change_of(self.shape, self.arrays)


def wide(*names: str, of: Arrays) -> list[Array]:
    return [of[name].astype(np.float64) for name in names]


def added(shape: tuple[int, ...], arrays: Arrays, delta: Callable[[Array], Array]) -> Case:
    return Case(shape, arrays, lambda w, s: w + s * delta(w))


def lora(shape: tuple[int, ...], rank: int = 3, alpha: float | None = 1.5, **more: Array) -> Case:
    out, *inner = shape
    up = (out, rank, 1, 1) if len(shape) == 4 else (out, rank)
    arrays = {"down": normal(rank, *inner), "up": normal(*up), **more}
    if alpha is not None:
        arrays["alpha"] = np.float32(alpha)
    scale = 1 if alpha is None else alpha / rank
    down64, up64 = wide("down", "up", of=arrays)
    return added(shape, arrays, lambda w: scale * np.einsum("or,r...->o...", up64.reshape(out, rank), down64))


def tucker() -> Case:
    arrays = {"down": normal(3, 8, 1, 1), "mid": normal(3, 3, 3, 3), "up": normal(12, 3, 1, 1), "alpha": np.float32(2)}
    down, mid, up = wide("down", "mid", "up", of=arrays)

    def delta(w: Array) -> Array:
        return 2 / 3 * np.einsum("mnkl,im,nj->ijkl", mid, up[:, :, 0, 0], down[:, :, 0, 0])

    return added(CONV, arrays, delta)


def glora(shape: tuple[int, ...]) -> Case:
    out, inputs, *kernel = shape
    ones = [1] * len(kernel)
    arrays = {
        "a1": normal(inputs, 2, *ones),
        "a2": normal(2, inputs, *ones),
        "b1": normal(out, 2, *ones),
        "b2": normal(2, inputs, *kernel),
        "alpha": np.float32(1),
    }
    a1, a2, b1, b2 = wide("a1", "a2", "b1", "b2", of=arrays)
    mixing = a1.reshape(inputs, 2) @ a2.reshape(2, inputs)

    def delta(w: Array) -> Array:
        mixed = np.einsum("oi...,ij->oj...", w, mixing)
        return 0.5 * (mixed + np.einsum("or,r...->o...", b1.reshape(out, 2), b2))

    return added(shape, arrays, delta)


def old_glora() -> Case:
    arrays = {"a1": normal(2, 16), "a2": normal(16, 2), "b1": normal(2, 16), "b2": normal(24, 2)}
    a1, a2, b1, b2 = wide("a1", "a2", "b1", "b2", of=arrays)
    return added(LINEAR, arrays, lambda w: b2 @ b1 + w @ a2 @ a1)


def ia3(shape: tuple[int, ...], on_input: bool) -> Case:
    size = shape[1 if on_input else 0]
    weight = normal(1, size, 1, 1) if len(shape) == 4 else normal(size)
    places = [1, size, 1, 1] if on_input else [size, 1, 1, 1]
    factor = weight.astype(np.float64).reshape(places[: len(shape)])
    arrays = {"weight": weight, "on_input": np.array(on_input)}
    return added(shape, arrays, lambda w: w * factor)


def dora(inner: Case, axis: int, name: str = "dora_scale") -> Case:
    """DoRA of `inner`, with a magnitude for each output or input."""
    shape = [1] * len(inner.shape)
    shape[axis] = inner.shape[axis]
    if name == "magnitude":  # PEFT's are of the outputs, in a place of their own
        shape = [1, shape[0], 1, 1] if len(shape) == 4 else shape[:1]
    magnitude = np.abs(normal(*shape)) + 0.5
    others = tuple(each for each in range(len(inner.shape)) if each != axis)
    places = [inner.shape[axis] if each == axis else 1 for each in range(len(inner.shape))]

    def expected(w: Array, s: float) -> Array:
        v = inner.expected(w, 1)
        norms = np.sqrt((v**2).sum(others, keepdims=True))
        return w + s * (v * magnitude.astype(np.float64).reshape(places) / norms - w)

    return Case(inner.shape, {**inner.arrays, name: magnitude}, expected)


def full(shape: tuple[int, ...]) -> Case:
    arrays = {"diff": normal(*shape)}
    return added(shape, arrays, lambda w: arrays["diff"].astype(np.float64))


def replaced(shape: tuple[int, ...]) -> Case:
    arrays = {"set_weight": normal(*shape)}
    return added(shape, arrays, lambda w: arrays["set_weight"] - w)


def loha(shape: tuple[int, ...], core: bool = False) -> Case:
    out, inputs, *kernel = shape
    columns = int(np.prod(shape[1:]))
    arrays: Arrays = {"alpha": np.float32(0.5)}
    for i in (1, 2):
        arrays[f"hada_w{i}_a"] = normal(2, out) if core else normal(out, 2)
        arrays[f"hada_w{i}_b"] = normal(2, inputs) if core else normal(2, columns)
        if core:
            arrays[f"hada_t{i}"] = normal(2, 2, *kernel)

    def half(i: int) -> Array:
        a, b = wide(f"hada_w{i}_a", f"hada_w{i}_b", of=arrays)
        if core:
            return np.einsum("ijkl,jr,ip->prkl", arrays[f"hada_t{i}"].astype(np.float64), b, a)
        return (a @ b).reshape(shape)

    return added(shape, arrays, lambda w: 0.25 * half(1) * half(2))


def lokr(shape: tuple[int, ...], small: str, large: str) -> Case:
    """LoKr with its matrices "whole" or as a "product"; the large one also with a "core"."""
    out, inputs, *kernel = shape
    o2, i2 = out // 4, inputs // 2
    arrays: Arrays = {"alpha": np.float32(10000 if (small, large) == ("whole", "whole") else 0.5)}
    if small == "whole":
        arrays["lokr_w1"] = normal(4, 2)
    else:
        arrays |= {"lokr_w1_a": normal(4, 2), "lokr_w1_b": normal(2, 2)}
    if large == "whole":
        arrays["lokr_w2"] = normal(o2, i2, *kernel)
    elif large == "core":
        arrays |= {"lokr_w2_a": normal(2, o2), "lokr_w2_b": normal(2, i2), "lokr_t2": normal(2, 2, *kernel)}
    else:
        arrays |= {"lokr_w2_a": normal(o2, 2), "lokr_w2_b": normal(2, i2 * int(np.prod(kernel)))}
    of = {name: array.astype(np.float64) for name, array in arrays.items()}
    w1 = of["lokr_w1"] if small == "whole" else of["lokr_w1_a"] @ of["lokr_w1_b"]
    if large == "whole":
        w2 = of["lokr_w2"]
    elif large == "core":
        w2 = np.einsum("ijkl,jr,ip->prkl", of["lokr_t2"], of["lokr_w2_b"], of["lokr_w2_a"])
    else:
        w2 = (of["lokr_w2_a"] @ of["lokr_w2_b"]).reshape(o2, i2, *kernel)
    scale = 1 if (small, large) == ("whole", "whole") else 0.25

    def delta(w: Array) -> Array:
        # each entry of the small matrix times the whole large one
        return scale * np.einsum("ab,cd...->acbd...", w1, w2).reshape(shape)

    return added(shape, arrays, delta)


def cayley(q: Array) -> Array:
    unit = np.eye(q.shape[-1])
    return np.stack([(unit + each) @ np.linalg.inv(unit - each) for each in q])


def oft(shape: tuple[int, ...], alpha: float | None, rescale: bool = False, whole: bool = False) -> Case:
    out, size = shape[0], 4
    arrays: Arrays = {"oft_diag" if whole else "oft_blocks": 0.3 * normal(out // size, size, size)}
    if alpha is not None:
        arrays["alpha"] = np.float32(alpha)
    if rescale:
        arrays["rescale"] = 1 + 0.1 * normal(out, *[1] * (len(shape) - 1))
    (blocks,) = wide("oft_diag" if whole else "oft_blocks", of=arrays)
    q = blocks - blocks.swapaxes(1, 2)
    norm = np.sqrt((q**2).sum())
    if alpha:
        q = q * min(norm, alpha * out) / norm
    rotations = blocks if whole else cayley(q)

    def expected(w: Array, s: float) -> Array:
        new = w.copy()
        for i, rotation in enumerate(rotations):
            at = s * (rotation - np.eye(size)) + np.eye(size)
            new[i * size : (i + 1) * size] = np.einsum("nm,n...->m...", at, w[i * size : (i + 1) * size])
        if rescale:
            new = new * (1 + s * (arrays["rescale"].astype(np.float64) - 1))
        return new

    return Case(shape, arrays, expected)


def boft(shape: tuple[int, ...]) -> Case:
    """Two stages of blocks of 4: first of neighbours, then of outputs that are 4 apart."""
    out, size = shape[0], 4
    arrays = {"oft_blocks": 0.3 * normal(2, out // size, size, size), "alpha": np.float32(0)}
    (blocks,) = wide("oft_blocks", of=arrays)

    def expected(w: Array, s: float) -> Array:
        for i, stage in enumerate(blocks):
            apart = 2**i * 2
            # outputs in the order in which blocks take them: pairs (j, j + apart), one after the other
            order = [j + side * apart for j in range(out) if j % (2 * apart) < apart for side in (0, 1)]
            new = w.copy()
            for k, rotation in enumerate(cayley(stage - stage.swapaxes(1, 2))):
                taken = order[k * size : (k + 1) * size]
                at = s * (rotation - np.eye(size)) + np.eye(size)
                new[taken] = np.einsum("nm,m...->n...", at, w[taken])
            w = new
        return w

    return Case(shape, arrays, expected)


def oft_of_inputs(shape: tuple[int, ...], blocks: int, scaled: bool = False) -> Case:
    columns, size = int(np.prod(shape[1:])), 4
    arrays: Arrays = {"oft_r": 0.2 * normal(blocks, 6)}
    if scaled:
        arrays["scaled_oft"] = np.array(True)
    (triangles,) = wide("oft_r", of=arrays)
    upper = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]

    def rotation(triangle: Array) -> Array:
        q = np.zeros((size, size))
        for (i, j), value in zip(upper, triangle / (2 * np.sqrt(3)) if scaled else triangle, strict=True):
            q[i, j], q[j, i] = value, -value
        return np.eye(size) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q

    def expected(w: Array, s: float) -> Array:
        flat = w.reshape(len(w), columns)
        new = flat.copy()
        for i in range(columns // size):
            at = s * (rotation(triangles[i % blocks]) - np.eye(size)) + np.eye(size)
            part = slice(i * size, (i + 1) * size)
            new[:, part] = flat[:, part] @ at.T
        return new.reshape(w.shape)

    return Case(shape, arrays, expected)


WITH_FORM: dict[str, Callable[[], Case]] = {
    "LoRA": lambda: lora(LINEAR),
    "LoRA without alpha": lambda: lora(LINEAR, alpha=None),
    "LoCon 3x3": lambda: lora(CONV),
    "LoCon 1x1": lambda: lora(POINT),
    "LoCon with a core": tucker,
    "GLoRA": lambda: glora(LINEAR),
    "GLoRA, square": lambda: glora(SQUARE),
    "GLoRA 3x3": lambda: glora(CONV),
    "GLoRA of old": old_glora,
    "(IA)3 of outputs": lambda: ia3(LINEAR, False),
    "(IA)3 of inputs": lambda: ia3(LINEAR, True),
    "(IA)3 of outputs, 3x3": lambda: ia3(CONV, False),
    "(IA)3 of inputs, 3x3": lambda: ia3(CONV, True),
    "DoRA of outputs": lambda: dora(lora(LINEAR), 0),
    "DoRA of inputs": lambda: dora(lora(LINEAR), 1),
    "DoRA of outputs, square": lambda: dora(lora(SQUARE), 0),
    "DoRA of inputs, square": lambda: dora(lora(SQUARE), 1),
    "DoRA of outputs, 3x3": lambda: dora(lora(CONV), 0),
    "DoRA of inputs, 3x3": lambda: dora(tucker(), 1),
    "DoRA by PEFT": lambda: dora(lora(LINEAR), 0, "magnitude"),
    "DoRA by PEFT, 3x3": lambda: dora(lora(CONV), 0, "magnitude"),
}
DENSE: dict[str, Callable[[], Case]] = {
    "full": lambda: full(LINEAR),
    "full 3x3": lambda: full(CONV),
    "another weight": lambda: replaced(LINEAR),
    "LoHa": lambda: loha(LINEAR),
    "LoHa 3x3": lambda: loha(CONV),
    "LoHa with cores": lambda: loha(CONV, core=True),
    **{
        f"LoKr, {small} and {large}, {'conv' if len(shape) == 4 else 'linear'}": (
            lambda shape=shape, small=small, large=large: lokr(shape, small, large)
        )
        for shape in (LINEAR, CONV)
        for small in ("whole", "product")
        for large in ("whole", "product", "core")
        if large != "core" or shape == CONV
    },
    "DoRA of LoHa": lambda: dora(loha(LINEAR), 0),
    "DoRA of LoKr": lambda: dora(lokr(CONV, "whole", "product"), 1),
    "DoRA of full": lambda: dora(full(LINEAR), 0),
    "OFT": lambda: oft(LINEAR, None),
    "OFT 3x3, bounded": lambda: oft(CONV, 0.05),
    "OFT, unbounded by 0": lambda: oft(LINEAR, 0.0),
    "OFT, rescaled": lambda: oft(LINEAR, None, rescale=True),
    "OFT 3x3, rescaled": lambda: oft(CONV, None, rescale=True),
    "OFT of old": lambda: oft(LINEAR, None, whole=True),
    "BOFT": lambda: boft(LINEAR),
    "BOFT 3x3": lambda: boft((16, 8, 3, 3)),
    "OFTv2": lambda: oft_of_inputs(LINEAR, 4),
    "OFTv2 3x3": lambda: oft_of_inputs(CONV, 18),
    "OFTv2 of one block": lambda: oft_of_inputs(LINEAR, 1),
    "OFTv2, scaled": lambda: oft_of_inputs(LINEAR, 4, scaled=True),
}
