"""Each device runs a kernel for its own images, whoever has split them."""

import jax
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from jaxl.kernels.by_image import by_image
from jaxl.run.sharding import AXIS, make_mesh


def test_where_the_caller_has_split_them() -> None:
    mesh = make_mesh(jax.devices()[:2])
    seen: list[int] = []

    def kernel(x: Array) -> Array:
        seen.append(x.shape[0])
        return 2 * x

    split = PartitionSpec(AXIS)
    run = jax.shard_map(lambda x: by_image(kernel, (x,)), mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    np.testing.assert_array_equal(jax.jit(run)(np.arange(8.0)), 2 * np.arange(8.0))
    assert seen == [4]
