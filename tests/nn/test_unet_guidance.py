"""What guidance needs inside the U-Net: neutral values change nothing, others compile nothing, errors are clear."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation import SMALL, small_inputs, small_params, whole_unet
from families import FAMILIES, LCM

from jaxl.config import UNetConfig, check_pag_layers
from jaxl.errors import InputError
from jaxl.kernels import Kernels
from jaxl.kernels.attention import attention
from jaxl.nn.unet import unet_shapes
from jaxl.weights.layout import flatten

CFG = SMALL
PLACES = ("mid_block", "up_blocks.0.attentions.1")
RUN = jax.jit(whole_unet, static_argnums=1, static_argnames="pag_layers")


@pytest.fixture(scope="module")
def params() -> Any:
    return small_params()


@pytest.fixture(scope="module")
def given() -> tuple[np.ndarray, ...]:
    return small_inputs(16, 16)


@pytest.fixture(scope="module")
def plain(params: Any, given: Any) -> np.ndarray:
    return np.asarray(RUN(params, CFG, *given))


def options(*, freeu: Any = (1, 1, 1, 1), perturbed: Any = (0, 0, 0), lengths: Any = (10, 10, 10)) -> dict[str, Any]:
    return {
        "freeu": np.broadcast_to(np.array(freeu, np.float32), (3, 4)),
        "perturbed": np.array(perturbed, bool),
        "lengths": np.array(lengths, np.int32),
        "pag_layers": PLACES,
    }


def close(got: Any, wanted: Any) -> bool:
    return bool(np.abs(np.asarray(got, np.float32) - wanted).max() < 1e-5 * np.abs(wanted).max())


def test_neutral_values_change_nothing(params: Any, given: Any, plain: np.ndarray, compilations: Any) -> None:
    assert close(RUN(params, CFG, *given, **options()), plain)
    changed = (
        (options(perturbed=(0, 1, 0)), [1]),
        (options(lengths=(10, 10, 6)), [2]),
        (options(freeu=[(1, 1, 1, 1), (0.9, 0.2, 1.3, 1.4), (1, 1, 1.1, 1)]), [1, 2]),
        (options(perturbed=(1, 1, 0), lengths=(1, 10, 10), freeu=[[1] * 4, [1] * 4, [0, 1, 1, 1]]), [0, 1, 2]),
    )
    with compilations() as compiled:
        for values, rows in changed:
            got = np.asarray(RUN(params, CFG, *given, **values))
            assert [row for row in range(3) if not close(got[row], plain[row])] == rows
    assert not compiled


def test_tokens_beyond_the_length_have_no_influence(params: Any, given: Any, plain: np.ndarray) -> None:
    x, t, context, pooled, time_ids = given
    longer = np.concatenate([context, np.full_like(context, 100.0)], axis=1)
    other = np.concatenate([context, np.full_like(context, -3.0)], axis=1)
    lengths = np.array([10, 10, 10], np.int32)
    got = [RUN(params, CFG, x, t, texts, pooled, time_ids, lengths=lengths) for texts in (longer, other)]
    assert close(got[0], plain)
    np.testing.assert_array_equal(*got)


@pytest.mark.parametrize("limit", [2**30, 2**12, 2**8])
def test_attention_with_lengths_in_parts(limit: int) -> None:
    """All at once, a head at a time and parts of a head: each row as if its keys ended at its length."""
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((2, n, 12), np.float32) for n in (32, 11, 11))
    run = jax.jit(partial(attention, kernels=Kernels(score_bytes=limit)), static_argnums=3)
    plainly = jax.jit(attention, static_argnums=3)
    got = run(q, k, v, 3, lengths=np.array([4, 11], np.int32))
    for row, length in enumerate((4, 11)):
        alone = plainly(*(a[row : row + 1] for a in (q, k[:, :length], v[:, :length])), 3)
        np.testing.assert_allclose(got[row : row + 1], alone, rtol=1e-5, atol=1e-6)


def test_bfloat16(params: Any, given: Any) -> None:
    """Only FreeU's two products are float32, and the result is that of float32 but for rounding."""
    values = options(perturbed=(0, 1, 1), lengths=(3, 10, 8), freeu=(0.9, 0.2, 1.1, 1.2))
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    got, wanted = RUN(half, CFG, *given, **values), np.asarray(RUN(params, CFG, *given, **values))
    assert got.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((np.asarray(got, np.float32) - wanted) ** 2) / np.mean(wanted**2)) < 0.05
    text = RUN.lower(half, CFG, *given, **values).as_text()
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*: \((.*)\) ->", text)
    narrow = [bool(re.fullmatch(r"tensor<[\dx]*xbf16>, tensor<[\dx]*xbf16>", operands)) for operands in products]
    skips = sum(len(depths) for depths in CFG.up[:2])
    assert sum(narrow) > 20
    assert len(narrow) - sum(narrow) == 2 * skips


@pytest.mark.parametrize("raw", [*FAMILIES.values(), LCM])
def test_pag_places(raw: dict[str, Any]) -> None:
    """The places are the prefixes, as far as `attentions.N`, of the parameters of self-attention."""
    cfg, found = UNetConfig.from_json(raw), set()
    for name in flatten(unet_shapes(cfg)):
        block, attentions, rest = name.partition(".attentions.")
        if ".attn1." in rest:
            found |= {block, f"{block}{attentions}{rest.split('.')[0]}"}
    assert set(cfg.pag_places) == found
    assert len(cfg.pag_places) == len(found)
    check_pag_layers(cfg, cfg.pag_places)


@pytest.mark.parametrize("layer", ["mid", "down_blocks.0", "up_blocks.0.attentions.10", "mid_block.", ""])
def test_unknown_pag_layers(layer: str, given: Any) -> None:
    with pytest.raises(InputError, match=rf"^pag_layers='{re.escape(layer)}': .*known: down_blocks\.1, "):
        check_pag_layers(CFG, ("mid_block", layer))
    with pytest.raises(InputError):
        trace(CFG, given, perturbed=np.zeros(3, bool), pag_layers=(layer,))


def test_arguments_that_need_each_other(given: Any) -> None:
    scale = np.full(3, 8.0, np.float32)
    lcm = UNetConfig.from_json(LCM)
    trace(lcm, given, guidance=scale)
    for cfg, values, message in (
        (lcm, {}, "guidance is missing"),
        (CFG, {"guidance": scale}, "does not take it"),
        (CFG, {"perturbed": np.zeros(3, bool)}, "need each other"),
        (CFG, {"pag_layers": PLACES}, "need each other"),
    ):
        with pytest.raises(ValueError, match=message):
            trace(cfg, given, **values)


def trace(cfg: UNetConfig, given: Any, **values: Any) -> None:
    RUN.trace(unet_shapes(cfg), cfg, *given, **values)
