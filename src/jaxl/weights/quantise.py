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
from collections.abc import Collection, Mapping, Sequence
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
from jaxl.nn.layer_kinds import INPUT_SCALE, LARGEST, ROUNDED, SCALE
from jaxl.nn.quantised import quantise_weight, scale_of
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.layout import aligned, flatten, from_torch, placed, rearranged, unflatten
from jaxl.weights.store import Tensor

# What a transformer block multiplies at each step. Keys and values of cross-attention are made once for an image.
LINEARS = re.compile(
    r".+\.transformer_blocks\.\d+\.(attn1\.to_[qkv]|attn2\.to_q|attn[12]\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"
)
CONVOLUTIONS = re.compile(rf"{LINEARS.pattern}|.+\.resnets\.\d+\.conv[12]")
# ... and the layers around the blocks that cost anything
ALL = re.compile(rf"{CONVOLUTIONS.pattern}|.+\.(down|up)samplers\.0\.conv|.+\.proj_(in|out)")

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
REMEDY = "remove it, and it will be measured again"  # for what is kept


@dataclass(frozen=True)
class Precision:
    """`dtype` of the weights and inputs of the U-Net's layers that match `pattern`, but those in `exact`.

    With `decibels` the exact ones are chosen by measurement, so that pictures are that near: `weights.sensitivity`.
    """

    name: str
    dtype: DTypeLike
    pattern: re.Pattern[str] = LINEARS
    decibels: float | None = None
    exact: frozenset[str] = frozenset()

    def covers(self, layer: str) -> bool:
        return bool(self.pattern.fullmatch(layer)) and layer not in self.exact


PRECISIONS = {
    name + more: Precision(name + more, dtype, pattern)
    for name, dtype in (("int8", jnp.int8), ("fp8", jnp.float8_e4m3fn))
    for more, pattern in (("", LINEARS), ("+conv", CONVOLUTIONS), ("+all", ALL))
}
AT = "@"  # between the name and the distance
MAX_DECIBELS = 100.0


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts to measure on. Raises InputError."""
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError("calibration", prompts, "give a list of prompts")
    return list(prompts)


def read_precision(name: str, platform: str) -> Precision:
    """The precision of that name, such as "int8", or "int8+all@35" for pictures at 35 dB from the exact ones.

    Raises InputError if there is none, or if the platform cannot run it.
    """
    known, at, distance = name.partition(AT)
    if known not in PRECISIONS:
        raise InputError("precision", name, nearest(known, PRECISIONS))
    found = PRECISIONS[known]
    if found.dtype == jnp.int8 and found.pattern is not LINEARS and platform == "gpu":
        # https://github.com/jax-ml/jax/issues/7637
        remedy = f"on a GPU XLA computes those convolutions in float32; use int8 or {known.replace('int8', 'fp8')}"
        raise InputError("precision", name, remedy)
    if not at:
        return found
    try:
        decibels = float(distance)
    except ValueError:
        decibels = math.nan
    if not 0 < decibels <= MAX_DECIBELS:
        raise InputError("precision", name, f"give a distance in dB above 0 and up to 100, such as {known}{AT}35")
    return dataclasses.replace(found, name=name, decibels=decibels)


def layers(tree: Mapping[str, Any], pattern: re.Pattern[str] = ALL) -> list[str]:
    """The paths of all layers that some precision quantises, in a U-Net's tree of parameters or shapes."""
    weights = {key.removesuffix(".weight"): leaf for key, leaf in flatten(tree).items() if key.endswith(".weight")}
    return [path for path, leaf in weights.items() if pattern.fullmatch(path) and leaf.shape[:2] != (1, 1)]


def observing(tree: Mapping[str, Any], largest: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's tree in which each of these layers measures its inputs: see `nn.layer_kinds.Observed`."""
    return unflatten({**flatten(tree), **{f"{path}.{LARGEST}": value for path, value in largest.items()}})


def tried_shapes(shapes: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    """The U-Net's tree of shapes as `tried` makes it."""
    more = {}
    for path in layers(shapes, precision.pattern):
        more[f"{path}.{ROUNDED}"] = jax.ShapeDtypeStruct((), precision.dtype)
        more[f"{path}.{INPUT_SCALE}"] = jax.ShapeDtypeStruct((), jnp.float32)
    return unflatten({**flatten(shapes), **more})


def tried(
    params: Mapping[str, Any], largest: Mapping[str, float], precision: Precision, shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """The U-Net's exact parameters, in which any layers may be tried by one program: see `nn.layer_kinds.Tried`."""
    wanted, more = flatten(shapes), {}
    for path in layers(params, precision.pattern):
        scale = scale_of(jnp.float32(largest[path]), precision.dtype)
        for name, value in ((ROUNDED, 0), (INPUT_SCALE, scale)):
            leaf = wanted[f"{path}.{name}"]
            more[f"{path}.{name}"] = placed(np.asarray(value).astype(leaf.dtype), leaf.sharding)
    return unflatten({**flatten(params), **more})


def with_rounded(params: Mapping[str, Any], rounded: Collection[str]) -> dict[str, Any]:
    """The parameters that `tried` makes, with some layers rounded."""
    leaves = flatten(params)
    for key in (f"{path}.{ROUNDED}" for path in rounded):
        leaves[key] = placed(np.ones((), leaves[key].dtype), leaves[key].sharding)
    return unflatten(leaves)


def kept(tensors: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """The weights that a checkpoint has in the precision's dtype already, with scales, by layer: they stay as they are.

    Numbers without a scale, or with a power of two, `quantise_weight` keeps as they are too.
    """
    paths = {key.removesuffix(".weight"): tensor for key, tensor in tensors.items() if tensor.scale is not None}
    return {p: tensor for p, tensor in paths.items() if precision.covers(p) and tensor.dtype == precision.dtype}


def quantised_shapes(
    shapes: Mapping[str, Any], precision: Precision, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """The U-Net's tree of shapes as `quantise_params` makes it, of these tensors of a checkpoint."""
    leaves, as_stored = flatten(shapes), kept(tensors or {}, precision)
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
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """The U-Net's parameters, flat, with the layers that `precision` covers quantised and placed as `shapes` say.

    `largest` are the greatest magnitudes of the layers' inputs. Leaves are taken out of the dict as their quantised
    forms are made, so that no more than one layer is there twice. What the checkpoint's tensors have in eight bits
    is read from them again.
    """
    wanted, as_stored, tree = flatten(shapes), kept(tensors or {}, precision), {}
    for key in list(leaves):
        path = key.removesuffix(".weight")
        if f"{path}.{SCALE}" not in wanted:
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
    digest = hashlib.sha256(json.dumps([ALL.pattern, *prompts]).encode())
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
    found = read_measured(file, "scales")
    if found is None:
        return None
    if set(found) != set(wanted):
        raise CheckpointError(f"{file}: damaged scales (not those of this model's layers); {REMEDY}")
    if not all(is_positive(value) for value in found.values()):
        raise CheckpointError(f"{file}: damaged scales (not all are positive numbers); {REMEDY}")
    return found


def read_measured(file: Path, what: str) -> dict[str, Any] | None:
    """The JSON object in a file of what was measured, or None if there is no file. Raises CheckpointError."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{file}: too large to be a file of {what}; {REMEDY}")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged {what} ({error}); {REMEDY}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: damaged {what} (not a JSON object); {REMEDY}")
    return found


def is_positive(value: Any) -> bool:
    """Whether a value of a file is a finite number of 0 or more."""
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0
