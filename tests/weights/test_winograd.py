"""Which convolutions are transformed, and that a checkpoint never shows it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxl
from jaxl.kernels import Kernels
from jaxl.kernels.winograd import transformed
from jaxl.weights.layout import flatten
from jaxl.weights.winograd import with_winograd_shapes, without_winograd


def load(**options: Any) -> tuple[Any, Any]:
    return jaxl.from_pretrained("tiny", mesh=jaxl.make_mesh(jax.devices()[:1]), **options)


def test_transformed_beside_their_own() -> None:
    _, params = load(dtype=jnp.float32)
    leaves = flatten(params["unet"])
    paths = [key.removesuffix(".winograd") for key in leaves if key.endswith(".winograd")]
    assert len(paths) > 30
    assert "mid_block.resnets.0.conv1" in paths
    assert not any("downsamplers" in path or path in ("conv_in", "conv_out") for path in paths)
    for path in paths[:3]:
        np.testing.assert_array_equal(leaves[f"{path}.winograd"], transformed(leaves[f"{path}.weight"]))
    plain, own = load(dtype=jnp.float32, kernels=Kernels.plain("cpu"))
    assert flatten(without_winograd(params["unet"])).keys() == flatten(own["unet"]).keys()
    assert plain.model.kernels.conv == "xla"


def test_other_precisions_have_none() -> None:
    pipe, params = load()
    assert with_winograd_shapes(pipe.model.shapes(jnp.bfloat16)["unet"]).keys() == params["unet"].keys()
    assert not any(key.endswith(".winograd") for key in flatten(params["unet"]))


def test_saved_as_it_was(tmp_path: Any) -> None:
    pipe, params = load(dtype=jnp.float32)
    pipe.save_pretrained(tmp_path / "model", params)
    _, again = jaxl.from_pretrained(tmp_path / "model", dtype=jnp.float32, mesh=pipe.mesh)
    jax.tree.map(np.testing.assert_array_equal, again, params)
