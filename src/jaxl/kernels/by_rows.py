"""Pictures whose rows are split over devices: what a device has to know of the rows of others.

Inside a `jax.shard_map` over the axis ROWS an array [B, H, ...] is a device's own rows of a picture; everywhere else it
is all of them, and nothing here costs anything. Convolutions ask neighbours for the rows next to theirs, norms for the
moments of all, attention for all keys and values (compare Li et al. 2024, DistriFusion, arXiv:2402.19481, where these
are of the step before, and the picture another) or for some heads of all tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

ROWS = "rows"


def devices() -> int:
    """Return how many devices share the rows of a picture."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[ROWS] if ROWS in mesh.manual_axes else 1


def padded(x: Array, above: int, below: int) -> Array:
    """[B, H, ...] -> [B, above + H + below, ...]: with the neighbours' rows, and zeros at the edges of the picture."""
    if devices() == 1:
        return jnp.pad(x, ((0, 0), (above, below), *[(0, 0)] * (x.ndim - 2)))
    upper = [_neighbours(x[:, -above:], 1)] if above else []
    lower = [_neighbours(x[:, :below], -1)] if below else []
    return jnp.concatenate([*upper, x, *lower], axis=1)


def beside(first: Array, last: Array) -> Array:
    """A device's first and last rows [B, W, C] -> the rows above and below its own, [B, 2, W, C]."""
    return jnp.stack([_neighbours(last, 1), _neighbours(first, -1)], axis=1)


def _neighbours(x: Array, offset: int) -> Array:
    """Return the array of the device so far above; zeros where there is none."""
    n = devices()
    return lax.ppermute(x, ROWS, [(i, i + offset) for i in range(n) if 0 <= i + offset < n])


def whole(x: Array) -> Array:
    """[B, H, ...] -> that of all devices, one's rows below another's; tokens [B, T, C] are in the order of rows."""
    return x if devices() == 1 else lax.all_gather(x, ROWS, axis=1, tiled=True)


def self_attention(
    attend: Callable[[Array, Array, Array, int], Array], q: Array, k: Array, v: Array, heads: int
) -> Array:
    """Return `attend(q, k, v, heads)` of the tokens of all devices, [B, T, N*D] each, for those of a device's own rows.

    Where heads divide evenly over more than two devices, each has its share of heads for all tokens meanwhile, which
    brings it 4/n of a picture's queries instead of 2 of all keys and values (Jacobs et al. 2023, DeepSpeed Ulysses,
    arXiv:2309.14509). Else keys and values are gathered.
    """
    n = devices()
    if n <= 2 or heads % n:
        return attend(q, whole(k), whole(v), heads)
    q, k, v = (lax.all_to_all(x, ROWS, 2, 1, tiled=True) for x in (q, k, v))
    return lax.all_to_all(attend(q, k, v, heads // n), ROWS, 1, 2, tiled=True)


def own(x: Array) -> Array:
    """Return a device's part of an array of the whole picture [..., H, W, C]; what `whole` takes together."""
    n = devices()
    return x if n == 1 else lax.dynamic_slice_in_dim(x, lax.axis_index(ROWS) * (x.shape[-3] // n), x.shape[-3] // n, -3)


def total(x: Array) -> Array:
    """Return the sum over the devices."""
    return x if devices() == 1 else lax.psum(x, ROWS)


def mean(x: Array) -> Array:
    """Return the mean over the devices, of means over their rows."""
    return total(x) / devices()


def moments(means: Array, variances: Array) -> tuple[Array, Array]:
    """Return means and variances of whole pictures from those of a device's rows (Chan, Golub & LeVeque 1983)."""
    if devices() == 1:
        return means, variances
    each, within = jnp.moveaxis(lax.all_gather(jnp.stack([means, variances]), ROWS), 1, 0)
    centre = each.mean(0)
    return centre, (within + jnp.square(each - centre)).mean(0)


def anywhere(condition: Array) -> Array:
    """Return whether a condition, bool [], holds on some device, so that they take one way together.

    What is on the way may need all of them, of other images too.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return lax.pmax(condition.astype(jnp.int32), mesh.manual_axes) > 0 if devices() > 1 else condition
