"""The networks of upscalers, beside what spandrel's make of the same weights (tools/upscaler_golden.py)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from upscaler_files import golden, saved, weights_of

from jaxl.nn.upscalers.compact import CompactConfig
from jaxl.nn.upscalers.dat import DATConfig
from jaxl.nn.upscalers.rrdbnet import RRDBNetConfig
from jaxl.run.upscaler import NETWORKS
from jaxl.weights.checkpoint import Checkpoint, load_params
from jaxl.weights.upscalers import open_upscaler

CONFIGS: dict[str, Any] = {
    "esrgan_4x": RRDBNetConfig(width=8, growth=32, blocks=2, doublings=2),
    "esrgan_2x_folded": RRDBNetConfig(width=8, growth=32, blocks=1, doublings=2, fold=2),
    "esrgan_1x": RRDBNetConfig(width=8, growth=32, blocks=1, doublings=0),
    "compact_4x": CompactConfig(width=8, convolutions=3, scale=4),
    "dat_4x": DATConfig(width=32, depths=(3, 2), heads=(4, 2), hidden=64, split=(4, 8), scale=4),
    "dat_light_3x": DATConfig(32, (3,), (2,), hidden=128, split=(4, 16), scale=3, features=0, bottlenecks=True),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_as_spandrel(tmp_path: Path, case: str) -> None:
    """The config is found from the file, and the network makes the same of a picture."""
    shapes, picture, wanted = golden(case)
    opened = open_upscaler(saved(tmp_path / "a.pth", weights_of(shapes)))
    assert opened.config == CONFIGS[case]
    shapes_of, network = NETWORKS[type(opened.config)]
    checkpoint = Checkpoint(opened.source, {}, {"upscaler": opened.tensors}, {})

    def run(dtype: Any) -> np.ndarray:
        tree = {"upscaler": shapes_of(opened.config, dtype)}
        params = load_params(checkpoint, tree, place=lambda component, key, array: jnp.asarray(array))
        return np.asarray(jax.jit(partial(network, cfg=opened.config))(params["upscaler"], pictures=picture))

    made = run(jnp.float32)
    assert made.shape == wanted.shape
    assert made.shape[1] == picture.shape[1] * opened.config.scale
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    if case.startswith("dat"):
        return  # which compile for long
    narrow = run(jnp.bfloat16)
    assert narrow.dtype == np.float32
    assert np.sqrt(np.mean((narrow - wanted) ** 2)) < 0.02 * np.sqrt(np.mean(wanted**2))
