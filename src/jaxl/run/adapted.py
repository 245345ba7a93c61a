"""Parameters with adapters: what was worked out for sets of adapters is kept, the latest of it, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxl.errors import InputError
from jaxl.nn.layer_kinds import SCALE
from jaxl.nn.layers import Params
from jaxl.run.adapters import layers
from jaxl.run.embeddings import MadeWith
from jaxl.run.target import Target
from jaxl.weights.adapters.combined import AdapterSet, forms, merged, merging
from jaxl.weights.adapters.form import Form
from jaxl.weights.adapters.latest import Latest
from jaxl.weights.layout import flatten, from_torch, placed, rearranged, to_torch, torch_shape, unflatten
from jaxl.weights.winograd import with_winograd, without_winograd

MAX_FORM_BYTES = 2**32  # on the host: six sets of rank 64 in SDXL
MAX_SETS = 64  # of which forms are kept, as each set keeps its adapters too, and those without forms take no bytes
MAX_NETWORKS = 12  # on the devices, of four sets; they share all that a set leaves as it is


class AdaptedNetworks(MadeWith):
    """The networks of a checkpoint, with some parameters, under sets of adapters."""

    def __init__(self, target: Target, params: Mapping[str, Any]):
        super().__init__(params)
        self._target = target
        self._forms: Latest[Mapping[str, Form]] = Latest(MAX_FORM_BYTES, _nbytes)
        self._networks: Latest[Params] = Latest(MAX_NETWORKS)

    def forms(self, params: Mapping[str, Any], adapters: AdapterSet, component: str) -> Mapping[str, Form]:
        """Return what adapters add to the layers of a network while programs run, by path."""

        def made() -> Mapping[str, Form]:
            known = layers(self._target.model, component).items()
            shapes = {path: torch_shape(path, shape) for path, shape in known}
            return forms(adapters, component, shapes, _weights(params[component]))

        return self._forms.get((adapters, component), made)

    def network(self, params: Mapping[str, Any], adapters: AdapterSet, component: str) -> Params:
        """Return the parameters of a network with what adapters change in them before programs run."""
        own = merging(adapters, component)
        if not own:
            return params[component]
        return self._networks.get((own, component), lambda: self.merged(params, own, component))

    def merged(
        self, params: Mapping[str, Any], adapters: AdapterSet, component: str, *, all_kinds: bool = False
    ) -> Params:
        """Return the parameters with the needed changes in them, or with those of all kinds, computed in float32.

        Raises InputError where a layer has eight-bit weights, which no change can be added to.
        """
        shapes = self._target.shapes[component]
        leaves, wanted = flatten(without_winograd(params[component])), flatten(shapes)
        changed = merged(adapters, component, _weights(params[component]), all_kinds=all_kinds)
        for key, array in changed:
            leaf = wanted[key]
            if f"{key.removesuffix('.weight')}.{SCALE}" in leaves:
                remedy = f"of a kind that changes weights, and those of {key} have eight bits; load without `precision`"
                raise InputError("loras", ", ".join(adapter.name for adapter, _ in adapters), remedy)
            leaves[key] = placed(rearranged(array, from_torch(key, array.shape), leaf.dtype), leaf.sharding)
        tree = unflatten(leaves)
        return with_winograd(tree, shapes) if component == "unet" else tree


def _weights(params: Params) -> Callable[[str], np.ndarray]:
    leaves = flatten(params)

    def weight(key: str) -> np.ndarray:
        leaf = leaves[key]
        scale = leaves.get(f"{key.removesuffix('.weight')}.{SCALE}")
        # with several hosts, each has every parameter
        own = leaf if leaf.is_fully_addressable else leaf.addressable_data(0)
        array = np.asarray(jnp.asarray(own, jnp.float32))
        if scale is not None:
            turned = leaf.dtype != jnp.int8 and array.ndim == 2  # as in `nn.quantised`
            array = (array.T if turned else array) * np.asarray(scale)
        return array.transpose(to_torch(key, array.shape))

    return weight


def _nbytes(found: Mapping[str, Form]) -> int:
    """Return the bytes of forms, and so many at least that no more than MAX_SETS are kept."""
    return max(sum(form.down.nbytes + form.up.nbytes for form in found.values()), MAX_FORM_BYTES // MAX_SETS)
