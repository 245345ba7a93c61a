"""Evaluations of the network that a device works on in turn: of those images alone that are in the making."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxl.kernels import Kernels
from jaxl.run.sharding import EACH, WHOLE, devices_at_hand, splits_pictures

Output = TypeVar("Output")


def one_at_a_time(kernels: Kernels, evaluations: int, devices: int) -> bool:
    """Return whether a device sees one evaluation at a time, where the mesh does not split rows of pictures."""
    return kernels.evaluations == "in_turn" and evaluations % devices == 0


def takes_turns(kernels: Kernels, evaluations: int) -> bool:
    """Return whether devices of `jax.sharding.use_abstract_mesh` work on several evaluations each, one at a time."""
    devices = devices_at_hand()
    return not splits_pictures() and evaluations > devices and one_at_a_time(kernels, evaluations, devices)


def in_turn(
    network: Callable[..., Output], params: Any, controls: Any, told: Any, pictures: Any, live: Array
) -> Output:
    """Return what `network(params, controls, told, pictures)` makes of E evaluations [E, ...], one at a time.

    Those that are not `live`, bool [E], are left out, and have zeros: so a row takes as long as there is to do. As the
    network sees an evaluation alone, what it makes does not depend on how many there are, nor on its place. The devices
    share those that are live, one after another; their number divides E. Arrays of `told` may be of images [B, ...],
    whose evaluations are neighbours.
    """
    devices, evaluations = devices_at_hand(), len(live)
    order = jnp.argsort(~live).reshape(-1, devices).T.reshape(-1)  # each device's own are neighbours
    counts = (live.sum() - jnp.arange(devices) + devices - 1) // devices

    def on_device(params: Any, controls: Any, told: Any, pictures: Any, own: Array, count: Array) -> Output:
        def evaluate(k: Array | int) -> Output:
            def at(a: Array) -> Array:
                return lax.dynamic_slice_in_dim(a, own[k] * len(a) // evaluations, 1)

            return network(params, controls, *jax.tree.map(at, (told, pictures)))

        def add(k: Array, made: Output) -> Output:
            def put(whole: Array, part: Array) -> Array:
                return lax.dynamic_update_slice_in_dim(whole, part, k, 0)

            return jax.tree.map(put, made, evaluate(k))

        none = jax.tree.map(lambda a: jnp.zeros((len(own), *a.shape[1:]), a.dtype), jax.eval_shape(evaluate, 0))
        return lax.fori_loop(0, count[0], add, none)

    if devices > 1:
        arguments = WHOLE, WHOLE, WHOLE, WHOLE, EACH, EACH
        on_device = jax.shard_map(on_device, in_specs=arguments, out_specs=EACH, check_vma=False)
    made = on_device(params, controls, told, pictures, order, counts)
    return jax.tree.map(lambda a: a[jnp.argsort(order)], made)
