"""The U-Net's convolutions in the form that CPUs take them in, made when the weights are loaded.

The transformed weights stand beside the checkpoint's own, and make a layer `nn.layer_kinds.Winograd`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxl.kernels.winograd import transformed, transformed_shape
from jaxl.nn.layer_kinds import WINOGRAD
from jaxl.weights.layout import aligned, flatten, placed, unflatten

# Those of stride 1. With few channels the transforms cost more than the products save.
CONVOLUTION = re.compile(r".+\.(conv1|conv2|upsamplers\.0\.conv)")
MIN_CHANNELS = 32
SUFFIX = f".{WINOGRAD}"


def with_winograd_shapes(shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's tree of shapes as `with_winograd` makes it of the parameters."""
    leaves = flatten(shapes)
    weights = {key.removesuffix(".weight"): leaf for key, leaf in leaves.items() if key.endswith(".weight")}
    for path in filter(lambda path: _fits(path, weights[path]), weights):
        shape = transformed_shape(weights[path].shape)
        leaves[path + SUFFIX] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return unflatten(leaves)


def with_winograd(params: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """The U-Net's parameters and the transformed weights that `shapes` has, placed as it says."""
    leaves = flatten(params)
    for key, leaf in flatten(shapes).items():
        if key.endswith(SUFFIX):
            weight = leaves[key.removesuffix(SUFFIX) + ".weight"]
            leaves[key] = placed(aligned(transformed(weight)), leaf.sharding)
    return unflatten(leaves)


def without_winograd(params: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of parameters as the checkpoint has it."""
    return unflatten({key: leaf for key, leaf in flatten(params).items() if not key.endswith(SUFFIX)})


def _fits(path: str, weight: Any) -> bool:
    wide = weight.ndim == 4 and min(weight.shape[2:]) >= MIN_CHANNELS
    return bool(CONVOLUTION.fullmatch(path)) and wide and weight.dtype == jnp.float32
