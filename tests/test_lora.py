"""Pictures with adapters: what they are with the adapters in the weights, each image with its own."""

from typing import Any

import jax
import numpy as np
import pytest
from adapters import adapter, dora

import jaxl

STEPS: dict[str, Any] = {"steps": 3, "output": "latents", "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def worn(small: Any) -> Any:
    """The small model with some adapters."""
    pipe, params = small
    for each in (
        adapter(pipe.model, "low", 1, 4),
        adapter(pipe.model, "high", 2, 20, within="attentions", components=("unet",)),
        adapter(pipe.model, "dora", 3, 5, kind=dora),
    ):
        pipe.loras.add(each)
    yield pipe, params
    for name in ("low", "high", "dora"):
        pipe.loras.remove(name)


@pytest.mark.parametrize(
    "loras", [{"low": 1.0}, {"dora": -0.7}, {"low": 0.5, "dora": 0.8, "high": jaxl.Strength(2.0, 0.0)}]
)
def test_as_with_the_weights_merged(worn: Any, loras: Any) -> None:
    pipe, params = worn
    plain = pipe.generate(params, "a cat", **STEPS).latents
    got = pipe.generate(params, "a cat", loras=loras, **STEPS).latents
    want = pipe.generate(pipe.fuse(params, loras), "a cat", **STEPS).latents
    assert np.abs(want - plain).max() > 0.05
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


SETS: list[dict[str, Any]] = [
    {},
    {"low": 0.8},
    {"low": -1.0, "dora": 0.5, "high": 1.0},
    {"high": 1.5},
    {"dora": 1.0},
    {"low": jaxl.Strength(0.0, 1.0)},
    {"low": jaxl.Strength(1.0, 0.0, start=0.34)},
    {"low": jaxl.Strength(blocks={"up": 0.0})},
]


@pytest.mark.parametrize("devices", [1, 8])
def test_each_image_of_a_batch_has_its_own(worn: Any, compilations: Any, devices: int) -> None:
    """Images with other adapters beside it change no bit of an image, and other adapters compile nothing."""
    pipe, params = worn
    if devices > 1:
        wide, params = jaxl.from_pretrained(
            pipe.checkpoint.source, dtype=np.float32, mesh=jaxl.make_mesh(jax.devices()[:devices])
        )
        for each in pipe.loras.values():
            wide.loras.add(each)
        pipe = wide
    prompts, seeds, scales = (
        [f"a cat {i}" for i in range(len(SETS))],
        list(range(8)),
        [4.0, 1.0, 5.0, 2.0, 7.0, 3.0, 4.0, 4.0],
    )

    def drawn(loras: Any, step: int = 1) -> np.ndarray:
        own = STEPS | {"seed": seeds[::step], "guidance_scale": scales[::step], "loras": loras}
        return pipe.generate(params, prompts[::step], **own).latents

    together = drawn(SETS)
    with compilations() as compiled:
        again = drawn(SETS[::-1], -1)
    assert compiled == []
    assert (together[::-1] == again).all()
    for i, (own, other) in enumerate(zip(together, drawn({}), strict=True)):
        # where there is room for adapters, XLA may round otherwise
        assert np.allclose(own, other, rtol=1e-4, atol=1e-4) == (i == 0)
