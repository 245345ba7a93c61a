"""Tiles: where they lie, that their blend adds nothing of its own, and how near the real VAE comes to the whole."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.config import VAEConfig
from jaxl.errors import InputError
from jaxl.nn.layers import upsample
from jaxl.nn.tiles import _in_tiles, decode_tiled, encode_tiled, tile_starts
from jaxl.nn.vae import decode, encode, from_latents, vae_shapes
from jaxl.presets import SDXL_BASE
from jaxl.weights.checkpoint import load_params
from jaxl.weights.source import open_checkpoint

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "golden.npz")
CHECKPOINT = open_checkpoint("tiny")
CFG = VAEConfig.from_json(CHECKPOINT.configs["vae"])

DECODING_BOUND = 0.065  # of colours in -1..1, root mean square
ENCODING_BOUND = 0.095  # relative, root mean square


@cache
def params() -> Any:
    shapes = {"vae": vae_shapes(CFG, jnp.float32)}
    return load_params(CHECKPOINT, shapes, place=lambda component, key, array: jnp.asarray(array))["vae"]


@pytest.mark.parametrize("overlap", [0, 1, 3, 7])
@pytest.mark.parametrize("size", [9, 15, 16, 17, 24, 61])
def test_places(size: int, overlap: int) -> None:
    assert tile_starts(8, 8, overlap) == tile_starts(1, 8, overlap) == [0]
    starts = tile_starts(size, 8, overlap)
    assert (starts[0], starts[-1]) == (0, size - 8)
    assert all(0 < gap <= 8 - overlap for gap in np.diff(starts))
    # as few as can be
    assert len(starts) == 1 + int(np.ceil((size - 8) / (8 - overlap)))


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 3), (8, 7), (5, 2), (16, 4)])
def test_what_depends_on_no_neighbour_is_exact(tile: int, overlap: int) -> None:
    """A blend whose weights do not sum to 1, or a tile out of its place, would show at once."""
    x = np.random.default_rng(0).standard_normal((2, 13, 22, 3), np.float32)
    larger = upsample(jnp.asarray(x), 26, 44) * 3 + 1

    def double(part: jax.Array) -> jax.Array:
        return upsample(part, 2 * part.shape[1], 2 * part.shape[2]) * 3 + 1

    def halve(part: jax.Array) -> jax.Array:
        return part[:, ::2, ::2]

    run = partial(_in_tiles, tile=tile, overlap=overlap)
    np.testing.assert_allclose(run(double, jnp.asarray(x), inputs=1, outputs=2), larger, rtol=0, atol=1e-5)
    np.testing.assert_allclose(run(halve, larger, inputs=2, outputs=1), halve(larger), rtol=0, atol=1e-5)


def test_one_tile_is_the_whole() -> None:
    latents = jnp.asarray(GOLDEN["final_latents"][:1].transpose(0, 2, 3, 1)[:, :16, :8])
    images = jnp.asarray(GOLDEN["image"][:1].transpose(0, 2, 3, 1)[:, :128, :64])
    whole_image = jax.jit(decode, static_argnums=1)(params(), CFG, latents)
    whole_posterior = jax.jit(encode, static_argnums=1)(params(), CFG, images)
    for tile in (128, 256):
        np.testing.assert_array_equal(
            jax.jit(partial(decode_tiled, cfg=CFG, tile=tile))(params(), latents=latents), whole_image
        )
        posterior = jax.jit(partial(encode_tiled, cfg=CFG, tile=tile))(params(), images=images)
        np.testing.assert_array_equal(posterior, whole_posterior)


def rms(difference: Any) -> float:
    return float(np.sqrt(np.mean(np.square(difference))))


def decoding_error(overlap: int) -> float:
    """Of one of the model's pictures, 256 pixels wide, in tiles of 128; colours are -1..1."""
    latents = from_latents(jnp.asarray(GOLDEN["final_latents"][:1].transpose(0, 2, 3, 1)), CFG)
    got = jax.jit(partial(decode_tiled, cfg=CFG, tile=128, overlap=overlap))(params(), latents=latents)
    return rms(np.asarray(got) - GOLDEN["image"][:1].transpose(0, 2, 3, 1))


def test_decoding_real_latents() -> None:
    """What is left is the norms' doing, which see one tile; hard edges between tiles would break the bound."""
    assert decoding_error(32) < DECODING_BOUND < decoding_error(0)


def test_encoding_real_images() -> None:
    images = np.clip(GOLDEN["image"][:1].transpose(0, 2, 3, 1), -1, 1)
    wanted = GOLDEN["vae_mean_of_image"][:1].transpose(0, 2, 3, 1)
    errors = {}
    for overlap in (32, 0):
        run = jax.jit(partial(encode_tiled, cfg=CFG, tile=128, overlap=overlap))
        errors[overlap] = rms(run(params(), images=images)[0] - wanted) / rms(wanted)
    assert errors[32] < ENCODING_BOUND < errors[0]


@pytest.mark.parametrize(
    ("tile", "overlap", "argument"), [(100, 0, "tile"), (0, None, "tile"), (64, 64, "overlap"), (64, 12, "overlap")]
)
def test_refusals(tile: int, overlap: int | None, argument: str) -> None:
    with pytest.raises(InputError, match="multiple of 8 pixels") as caught:
        decode_tiled({}, CFG, jnp.zeros((1, 16, 16, 4)), tile, overlap)
    assert caught.value.argument == argument


def test_memory_is_that_of_a_tile() -> None:
    """SDXL's VAE, compiled and not run."""
    cfg = VAEConfig.from_json(SDXL_BASE["vae"])
    latents = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)

    def temporaries(tile: int) -> int:
        run = jax.jit(lambda p, x: decode_tiled(p, cfg, x, tile))
        analysis: Any = run.lower(vae_shapes(cfg, jnp.float32), latents).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    assert temporaries(256) < temporaries(1024) / 12
