"""Random models: SDXL's layout, the same in each process. That pictures are finite is seen in test_bench.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.bench.random_model import MODELS, random_folder, random_params
from jaxl.errors import InputError
from jaxl.run.model import Model
from jaxl.weights.layout import flatten


def test_a_tensor_depends_on_its_name_alone() -> None:
    shapes = {"conv": {"weight": jax.ShapeDtypeStruct((3, 3, 8, 4), jnp.float32)}}
    more = {"norm": {"weight": jax.ShapeDtypeStruct((4,), jnp.float32)}, **shapes}
    once, again = random_params("unet", shapes), random_params("unet", more)
    np.testing.assert_array_equal(once["conv"]["weight"], again["conv"]["weight"])
    assert (again["norm"]["weight"] == 1).all()
    assert 0.05 < np.std(once["conv"]["weight"].astype(np.float32)) * np.sqrt(72) < 2


def test_sdxl_has_sdxls_parameters() -> None:
    configs, tokenizers = MODELS["sdxl"]()
    shapes = Model.from_configs(configs).shapes()
    assert sum(leaf.size for leaf in flatten(shapes["unet"]).values()) == 2_567_463_684
    assert tokenizers["tokenizer_2"].vocab_size == 49408


def test_mid_is_sdxls_kind() -> None:
    configs, _ = MODELS["mid"]()
    model = Model.from_configs(configs)
    assert not model.is_refiner
    assert model.shapes()["unet"]["conv_in"]["weight"].shape == (3, 3, 4, 128)


def test_unknown() -> None:
    with pytest.raises(InputError, match="model='random:tinny': did you mean 'tiny'"):
        random_folder("tinny")
