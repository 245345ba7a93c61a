"""Which layers of the U-Net are quantised, and the scales of their inputs: measured once on prompts, kept in a file.

qwix (https://github.com/google/qwix) has the same products, but it calibrates static scales only in flax modules; here
networks are functions, so what is left of it is three lines of `nn.quantised`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from jaxl.errors import CheckpointError, InputError, nearest
from jaxl.files import cache_folder, write_text
from jaxl.nn.layer_kinds import INPUT_SCALE, LARGEST, SCALE
from jaxl.nn.quantised import quantise_weight, scale_of
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.layout import aligned, flatten, from_torch, placed, rearranged, unflatten
from jaxl.weights.store import Tensor

# What a transformer block multiplies at each step. Keys and values of cross-attention are made once for an image.
LINEARS = re.compile(
    r".+\.transformer_blocks\.\d+\.(attn1\.to_[qkv]|attn2\.to_q|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"
)
CONVOLUTIONS = re.compile(r".+\.resnets\.\d+\.conv[12]")

# Of subjects, styles and lengths as people write them; what a layer's input reaches hardly depends on more.
PROMPTS = (
    "a red apple on a blue background, flat style",
    "portrait photo of an old fisherman, wrinkled skin, overcast light, 85mm",
    "a castle on a pink background, flat style",
    "a crowded night market in the rain, neon signs, reflections, cinematic, highly detailed",
    "a rocket and a llama on a green background, noto style",
    "an oil painting of a stormy sea with a small lighthouse",
    "a white page with the word HELLO written on it in black ink",
    "an astronaut riding a horse, watercolor",
)
MAX_FILE_BYTES = 2**24


@dataclass(frozen=True)
class Precision:
    """`dtype` of the weights and inputs of the transformer blocks' linear layers, and maybe of the resnets' convs."""

    name: str
    dtype: DTypeLike
    convolutions: bool = False

    def covers(self, layer: str) -> bool:
        return bool(LINEARS.fullmatch(layer) or (self.convolutions and CONVOLUTIONS.fullmatch(layer)))


PRECISIONS = {
    each.name: each
    for each in (
        Precision("int8", jnp.int8),
        Precision("int8+conv", jnp.int8, convolutions=True),
        Precision("fp8", jnp.float8_e4m3fn),
        Precision("fp8+conv", jnp.float8_e4m3fn, convolutions=True),
    )
}


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts to measure on. Raises InputError."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("calibration", prompts, "give a list of prompts")
    return list(prompts)


def read_precision(name: str, platform: str) -> Precision:
    """The precision of that name. Raises InputError if there is none, or if the platform cannot run it."""
    if name not in PRECISIONS:
        raise InputError("precision", name, nearest(name, PRECISIONS))
    if name == "int8+conv" and platform == "gpu":
        # https://github.com/jax-ml/jax/issues/7637
        raise InputError("precision", name, "on a GPU XLA computes those convolutions in float32; use int8 or fp8+conv")
    return PRECISIONS[name]


def layers(tree: Mapping[str, Any]) -> list[str]:
    """The paths of all layers that some precision quantises, in a U-Net's tree of parameters or shapes."""
    paths = (key.removesuffix(".weight") for key in flatten(tree) if key.endswith(".weight"))
    return [path for path in paths if LINEARS.fullmatch(path) or CONVOLUTIONS.fullmatch(path)]


def observing(tree: Mapping[str, Any], largest: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's tree in which each of these layers measures its inputs: see `nn.layer_kinds.Observed`."""
    return unflatten({**flatten(tree), **{f"{path}.{LARGEST}": value for path, value in largest.items()}})


def kept(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """The weights that a checkpoint has in the precision's dtype already, with scales, by layer: they stay as they are.

    Numbers without a scale, or with a power of two, `quantise_weight` keeps as they are too.
    """
    paths = {key.removesuffix(".weight"): tensor for key, tensor in tensors.items() if tensor.scale is not None}
    return {p: tensor for p, tensor in paths.items() if precision.covers(p) and tensor.dtype == precision.dtype}


def quantised_shapes(shapes: Mapping[str, Any], precision: Precision, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The U-Net's tree of shapes as `quantise_params` makes it of the checkpoint's tensors."""
    leaves, as_stored = flatten(shapes), kept(tensors, precision)
    for path in filter(precision.covers, layers(shapes)):
        weight = leaves[f"{path}.weight"]
        made, scale = jax.eval_shape(partial(quantise_weight, dtype=precision.dtype), weight)
        leaves[f"{path}.weight"] = made
        by_row = jax.ShapeDtypeStruct((weight.shape[-1],), jnp.float32)
        leaves[f"{path}.{SCALE}"] = by_row if path in as_stored else scale
        leaves[f"{path}.{INPUT_SCALE}"] = jax.ShapeDtypeStruct((), jnp.float32)
    return unflatten(leaves)


def quantise_params(
    leaves: dict[str, Array],
    largest: Mapping[str, float],
    precision: Precision,
    shapes: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The U-Net's parameters, flat, with the layers that `precision` covers quantised and placed as `shapes` say.

    `largest` are the greatest magnitudes of the layers' inputs. Leaves are taken out of the dict as their quantised
    forms are made, so that no more than one layer is there twice. What the checkpoint's tensors have in eight bits
    is read from them again.
    """
    wanted, as_stored, tree = flatten(shapes), kept(tensors, precision), {}
    for key in list(leaves):
        path = key.removesuffix(".weight")
        if path == key or not precision.covers(path):
            tree[key] = leaves.pop(key)
            continue
        shardings = tuple(wanted[f"{path}.{name}"].sharding for name in ("weight", SCALE))
        weight = leaves.pop(key)
        if path in as_stored:
            made = map(placed, _as_stored(as_stored[path]), shardings)
        else:
            make = jax.jit(quantise_weight, static_argnums=1, out_shardings=shardings)
            made = jax.block_until_ready(make(weight, precision.dtype))
        tree[key], tree[f"{path}.{SCALE}"] = made
        scale = np.asarray(scale_of(jnp.float32(largest[path]), precision.dtype))
        tree[f"{path}.{INPUT_SCALE}"] = placed(scale, wanted[f"{path}.{INPUT_SCALE}"].sharding)
    return unflatten(tree)


def _as_stored(tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a weight as the file has them, in the order of a quantised one, and the scale of each output."""
    numbers, scale = dataclasses.replace(tensor, scale=None).read(), tensor.scale
    assert scale is not None
    turned = numbers.ndim == 2 and numbers.dtype != np.int8  # as in `quantise_weight`
    axes = (0, 1) if turned else from_torch("", tensor.shape)
    rows = np.broadcast_to(scale.read().astype(np.float32).reshape(-1), tensor.shape[:1])
    return rearranged(numbers, axes, numbers.dtype), aligned(rows)


def scales_file(checkpoint: Checkpoint, prompts: Sequence[str]) -> Path:
    """Where the magnitudes of a checkpoint's inputs are kept: named for its configs and weights, and the prompts.

    Of each tensor that matters to the U-Net, the beginning is read.
    """
    digest = hashlib.sha256(json.dumps(list(prompts)).encode())
    for component, tensors in sorted(checkpoint.tensors.items()):
        if component not in ("vae", "preview"):
            digest.update(json.dumps([component, checkpoint.configs[component]], sort_keys=True).encode())
            for key, tensor in sorted(tensors.items()):
                for part in filter(None, (tensor, tensor.scale)):
                    digest.update(f"{key} {part.dtype} {part.shape}".encode())
                    with part.file.open("rb") as stream:
                        stream.seek(part.offset)
                        digest.update(stream.read(min(part.nbytes, 256)))
    return cache_folder("scales") / f"{digest.hexdigest()[:32]}.json"


def write_scales(file: Path, largest: Mapping[str, float]) -> None:
    """Write the greatest magnitudes of layers' inputs, whole or not at all. Raises OutputError."""
    write_text(file, json.dumps(dict(largest), indent=1, sort_keys=True) + "\n")


def read_scales(file: Path, wanted: Sequence[str]) -> dict[str, float] | None:
    """What `write_scales` wrote for these layers, or None if there is no file. Raises CheckpointError if damaged."""
    remedy = "remove it, and it will be measured again"
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{file}: too large to be a file of scales; {remedy}")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged scales ({error}); {remedy}") from error
    if not isinstance(found, dict) or set(found) != set(wanted):
        raise CheckpointError(f"{file}: damaged scales (not those of this model's layers); {remedy}")
    if not all(isinstance(v, int | float) and math.isfinite(v) and v >= 0 for v in found.values()):
        raise CheckpointError(f"{file}: damaged scales (not all are positive numbers); {remedy}")
    return found
