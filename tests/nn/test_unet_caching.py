"""Features that are kept from timestep to timestep: who goes by them, what is run, and what is not."""

from typing import Any

import jax
import numpy as np
import pytest
from evaluation import SMALL, input_shapes, small_inputs, small_params
from families import FAMILIES

from jaxl.config import UNetConfig
from jaxl.nn.unet import features_shape, unet, unet_context, unet_shapes

CFG = SMALL


@jax.jit
def run(params: Any, x: Any, t: Any, prompt_embeds: Any, *given: Any, **options: Any) -> tuple[jax.Array, jax.Array]:
    return unet(params, CFG, x, t, unet_context(params, prompt_embeds), *given, **options)


@pytest.fixture(scope="module")
def params() -> Any:
    return small_params()


@pytest.fixture(scope="module")
def given() -> tuple[np.ndarray, ...]:
    return small_inputs(16, 12)


def close(got: Any, wanted: Any) -> bool:
    return bool(np.abs(np.asarray(got) - np.asarray(wanted)).max() < 1e-5 * np.abs(np.asarray(wanted)).max())


@pytest.mark.parametrize("own", [(False, False, False), (True, False, True), (True, True, True)])
def test_each_row_goes_by_its_own_features_alone(params: Any, given: Any, own: tuple[bool, ...]) -> None:
    plain, features = run(params, *given)
    assert close(run(params, *given, features=features, shallow=np.array(own))[0], plain)
    other = np.flip(features, 1)
    got, kept = run(params, *given, features=other, shallow=np.array(own))
    for i, shallow in enumerate(own):
        assert close(got[i], plain[i]) == (not shallow)
        assert close(kept[i], (other if shallow else features)[i])


def test_what_is_deep_is_not_run_for_shallow_rows(params: Any, given: Any) -> None:
    """Broken numbers there reach the rows that are not shallow, and no others."""
    _, features = run(params, *given)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, params["mid_block"])
    broken = {**params, "mid_block": broken}
    got, _ = run(broken, *given, features=features, shallow=np.array([True, False, True]))
    assert np.isfinite(got).all((1, 2, 3)).tolist() == [True, False, True]
    text = str(jax.make_jaxpr(run)(params, *given, features=features, shallow=np.ones(3, bool)))
    assert text.count(" cond[") == 1


def test_the_first_and_the_last_layer_are_run_anew(params: Any, given: Any) -> None:
    plain, features = run(params, *given)
    x, t, *told = given
    # with one channel in each group of the norms the last layer of this model does not see the time
    got, kept = run(params, np.flip(x, 1), t, *told, features=features, shallow=np.ones(3, bool))
    np.testing.assert_array_equal(kept, features)
    assert not close(got, plain)


@pytest.mark.parametrize("raw", FAMILIES.values(), ids=FAMILIES)
def test_the_shape_is_known_beforehand(raw: dict[str, Any]) -> None:
    cfg = UNetConfig.from_json(raw)

    def whole(params: Any, x: Any, t: Any, prompt_embeds: Any, *rest: Any) -> tuple[jax.Array, jax.Array]:
        return unet(params, cfg, x, t, unet_context(params, prompt_embeds), *rest)

    out, features = jax.eval_shape(whole, unet_shapes(cfg), *input_shapes(cfg, 24, 16))
    assert out.shape == (2, 24, 16, cfg.out_channels)
    assert (features.shape, features.dtype) == ((2, *features_shape(cfg, 24, 16)), out.dtype)


def test_arguments_that_need_each_other(params: Any, given: Any) -> None:
    for options in ({"features": np.zeros((3, 16, 12, 32), np.float32)}, {"shallow": np.ones(3, bool)}):
        with pytest.raises(ValueError, match="features and shallow need each other"):
            run(params, *given, **options)
