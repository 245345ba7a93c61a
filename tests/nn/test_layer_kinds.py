"""One door for the kinds of layer: each is known by its parameters, and none is half known."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.kernels.winograd import transformed
from jaxl.nn.layer_kinds import Observed, Plain, Quantised, Winograd, layer_of
from jaxl.nn.layers import conv, linear

WEIGHT = np.random.default_rng(0).standard_normal((3, 3, 4, 4), np.float32)
LEAVES: dict[str, Any] = {
    "weight": jnp.asarray(WEIGHT),
    "bias": jnp.ones(4),
    "winograd": jnp.asarray(transformed(WEIGHT)),
    "input_largest": jnp.float32(0),
    "scale": jnp.ones(4),
    "input_scale": jnp.float32(1),
    "lora_up": jnp.ones((4, 2)),
}


def parameters(*names: str) -> dict[str, Any]:
    return {name: LEAVES[name] for name in ("weight", *names)}


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ((), Plain),
        (("winograd",), Winograd),
        (("input_largest",), Observed),
        (("winograd", "input_largest"), Observed),
        (("scale", "input_scale"), Quantised),
    ],
)
def test_known_by_the_names(more: tuple[str, ...], kind: type) -> None:
    for names in (more, ("bias", *more)):
        assert type(layer_of(parameters(*names))) is kind
    if "winograd" in more:
        layer = layer_of(parameters(*more))
        assert type(layer.exact if isinstance(layer, Observed) else layer) is Winograd


@pytest.mark.parametrize(
    "more",
    [
        ("scale", "input_scale", "input_largest"),
        ("scale", "input_scale", "winograd"),
        ("scale", "input_scale", "lora_up"),
        ("input_scale",),
        ("scale",),
        ("lora_up",),
        ("winograd", "lora_up"),
    ],
)
def test_no_parameter_is_left_out(more: tuple[str, ...]) -> None:
    """What is quantised and something else as well would otherwise be quantised alone, and nobody would know."""
    for run, x in ((linear, jnp.ones((2, 4))), (conv, jnp.ones((1, 6, 6, 4)))):
        with pytest.raises(ValueError, match=f"no kind of layer has .* bias, .*{more[-1]}"):
            run(parameters("bias", *more), x)
