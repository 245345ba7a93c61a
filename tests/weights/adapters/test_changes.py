"""Each kind of change does what its formula says, merged and as a form, alone and after others."""

import itertools
from typing import Any

import numpy as np
import pytest
from adapter_files import CONV, DENSE, LINEAR, WITH_FORM, change_of, lora, normal

from jaxl.weights.adapters.form import Form
from jaxl.weights.adapters.parts import MisfitError

STRENGTHS = (1, 0.6, -1.5, 0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", WITH_FORM | DENSE)
def test_merged(name: str, strength: float) -> None:
    case = (WITH_FORM | DENSE)[name]()
    weight = normal(*case.shape)
    before = weight.copy()
    found = case.change.merged(weight, strength)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, case.expected(weight.astype(np.float64), strength), atol=2e-5)
    np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("name", WITH_FORM | DENSE)
def test_it_changes_something(name: str) -> None:
    """Else the test above would pass with a change that does nothing."""
    case = (WITH_FORM | DENSE)[name]()
    weight = normal(*case.shape)
    assert np.abs(case.change.merged(weight, 1) - weight).mean() > 0.02


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", WITH_FORM)
def test_a_form_is_what_is_merged(name: str, strength: float) -> None:
    case = WITH_FORM[name]()
    weight, change = normal(*case.shape), case.change
    form = change.onto(Form.none(case.shape), lambda: weight, strength)
    assert form is not None
    assert form.rank == change.rank
    assert change.scales == (form.scale_in is not None or form.scale_out is not None)
    assert form.down.shape == (form.rank, *case.shape[1:])
    assert form.up.shape == (case.shape[0], form.rank)
    assert form.down.dtype == form.up.dtype == np.float32
    np.testing.assert_allclose(form.weight(weight), change.merged(weight, strength), atol=1e-5)


@pytest.mark.parametrize("shape", [LINEAR, CONV])
@pytest.mark.parametrize("length", [2, 3])
def test_forms_in_a_chain(shape: tuple[int, ...], length: int) -> None:
    """In every order: each change is on top of what those before it left."""
    cases = [made for make in WITH_FORM.values() if (made := make()).shape == shape]
    if length == 3:  # one of each kind is enough
        cases = list({type(case.change).__name__: case for case in cases}.values())
    changes = [case.change for case in cases]
    weight = normal(*shape)
    orders = 0
    for chain in itertools.permutations(range(len(changes)), length):
        form, merged = Form.none(shape), weight
        for i, strength in zip(chain, (0.6, -1.5, 0.8), strict=False):
            grown = changes[i].onto(form, lambda: weight, strength)
            assert grown is not None
            assert grown.rank == form.rank + changes[i].rank
            form, merged = grown, changes[i].merged(merged, strength)
        scale = np.abs(merged).max()
        np.testing.assert_allclose(form.weight(weight) / scale, merged / scale, atol=1e-5)
        orders += 1
    assert orders >= 24 if length == 3 else orders >= 30


@pytest.mark.parametrize("name", DENSE)
def test_dense_kinds_have_no_form(name: str) -> None:
    case = DENSE[name]()
    assert case.change.onto(Form.none(case.shape), lambda: normal(*case.shape), 1) is None
    assert (case.change.rank, case.change.scales) == (0, False)


def test_the_weight_is_asked_for_only_where_it_matters() -> None:
    def never() -> np.ndarray:
        raise AssertionError

    for name in ("LoRA", "LoCon with a core", "(IA)3 of inputs"):
        case = WITH_FORM[name]()
        assert case.change.onto(Form.none(case.shape), never, 0.5) is not None
    case = WITH_FORM["GLoRA"]()
    with pytest.raises(AssertionError):
        case.change.onto(Form.none(case.shape), never, 0.5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn"])
def test_alphas_are_as_exact_as_they_are_stored(dtype: str) -> None:
    import ml_dtypes

    stored = np.asarray(0.1, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    case = lora(LINEAR, 3, None)
    case.arrays["alpha"] = stored
    up, down = case.arrays["up"].astype(np.float64), case.arrays["down"].astype(np.float64)
    found = case.change.merged(np.zeros(LINEAR, np.float32), 1)
    np.testing.assert_allclose(found, float(stored) / 3 * up @ down, rtol=1e-4, atol=1e-6)


def test_scale_replaces_alpha() -> None:
    case = lora(LINEAR, 3, 1.5, scale=np.float32(0.25))
    up, down = case.arrays["up"], case.arrays["down"]
    np.testing.assert_allclose(case.change.merged(np.zeros(LINEAR, np.float32), 2), 0.5 * up @ down, atol=1e-5)


def test_shapes_are_mended_where_nothing_is_lost() -> None:
    """Linear factors with the axes of a 1x1 kernel, and a convolution's as a matrix."""
    for shape, down, up in [
        (LINEAR, (3, 16, 1, 1), (24, 3, 1, 1)),
        (CONV, (3, 72), (12, 3)),
        ((12, 8, 1, 1), (3, 8), (12, 3)),
    ]:
        arrays = {"down": normal(*down), "up": normal(*up)}
        found = change_of(shape, arrays).merged(np.zeros(shape, np.float32), 1)
        expected = (arrays["up"].reshape(-1, 3) @ arrays["down"].reshape(3, -1)).reshape(shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_four_channels_of_nine() -> None:
    """An inpainting model takes a LoRA of others: its further channels have none of it."""
    shape = (12, 9, 3, 3)
    arrays = {"down": normal(3, 4, 3, 3), "up": normal(12, 3, 1, 1)}
    found = change_of(shape, arrays).merged(np.zeros(shape, np.float32), 1)
    assert np.abs(found[:, :4]).min() > 0
    assert not found[:, 4:].any()
    found = change_of(shape, {"diff": normal(12, 4, 3, 3)}).merged(np.zeros(shape, np.float32), 1)
    assert np.abs(found[:, :4]).min() > 0
    assert not found[:, 4:].any()


@pytest.mark.parametrize("name", WITH_FORM | DENSE)
def test_parts_of_any_shape(name: str) -> None:
    """What a damaged file may hold is refused, or else is a change of the weight: nothing is found out later."""
    case = (WITH_FORM | DENSE)[name]()
    weight = normal(*case.shape)
    refused = 0
    for part, array in case.arrays.items():
        flat, turned = np.reshape(array, -1), np.transpose(array)
        for other in (np.float32(1), normal(0), normal(3), normal(0, 4), normal(3, 3), normal(2, 2, 2), flat, turned):
            try:
                change = change_of(case.shape, {**case.arrays, part: other})
            except MisfitError:
                refused += 1
            else:
                assert change.merged(weight, 1).shape == case.shape
    assert refused >= 5


WRONG: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    (LINEAR, {"down": normal(3, 17), "up": normal(24, 3)}, r"down has shape \(3, 17\), not \(3, 16\)"),
    (LINEAR, {"down": normal(16, 3), "up": normal(24, 3)}, r"up has shape \(24, 3\), not \(24, 16\)"),
    # as many numbers, in another order
    (LINEAR, {"down": normal(3, 16), "up": normal(3, 24)}, r"up has shape \(3, 24\), not \(24, 3\)"),
    (LINEAR, {"down": normal(3, 16, 3, 3), "up": normal(24, 3)}, "down has shape"),
    (CONV, {"down": normal(3, 8, 1, 1), "up": normal(12, 3)}, "down has shape"),
    (LINEAR, {"down": normal(3, 16)}, "up is missing beside down"),
    (LINEAR, {"down": np.float32(1), "up": normal(24, 3)}, r"down has shape \(\), not that of a factor"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "alpha": normal(2)}, r"alpha has shape \(2,\), not one"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "mid": normal(3, 3, 3, 3)}, "mid is for a convolution"),
    (
        LINEAR,
        {"lokr_w1": normal(4, 2), "lokr_w2_a": normal(2, 6), "lokr_w2_b": normal(2, 8), "lokr_t2": normal(2, 2)},
        "lokr_t2 is for a convolution",
    ),
    (LINEAR, {"down": normal(1025, 16), "up": normal(24, 1025)}, "down has rank 1025, but 1024 is the most"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "diff": normal(*LINEAR)}, "two kinds of adapters"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "rescale": normal(24)}, "rescale: of no kind"),
    (LINEAR, {"alpha": np.float32(1)}, "alpha: of no kind"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "dora_scale": normal(24, 16)}, "dora_scale has shape"),
    ((16, 16), {"down": normal(3, 16), "up": normal(16, 3), "dora_scale": normal(16)}, "dora_scale has shape"),
    (LINEAR, {"down": normal(3, 16), "up": normal(24, 3), "magnitude": normal(16)}, "magnitude has shape"),
    ((24,), {"down": normal(3, 16), "up": normal(24, 3)}, "the layer has no matrix"),
    ((24,), {"diff": normal(24), "dora_scale": normal(24)}, "dora_scale does not go with"),
    (
        LINEAR,
        {"a1": normal(16, 2), "a2": normal(2, 16), "b1": normal(24, 2), "b2": normal(3, 16)},
        r"b2 \(3, 16\) are not",
    ),
    (LINEAR, {"a1": np.float32(0)}, "a1 has shape|a2 is missing"),
    (LINEAR, {"on_input": np.array(1), "weight": normal(24)}, r"weight has shape \(24,\), not \(16,\)"),
    (LINEAR, {"hada_w1_a": normal(24, 2)}, "hada_w1_b is missing"),
    (LINEAR, {"lokr_w1": normal(5, 2), "lokr_w2": normal(6, 8)}, r"product of \(5, 2\) and \(6, 8\)"),
    (LINEAR, {"lokr_w1": normal(4, 2), "lokr_w1_a": normal(4, 2), "lokr_w2": normal(6, 8)}, "whole, and as a product"),
    (LINEAR, {"lokr_w1": normal(4, 2), "lokr_w2_a": normal(6, 3), "lokr_w2_b": normal(2, 8)}, "no product"),
    (LINEAR, {"oft_blocks": normal(5, 4, 4)}, "oft_blocks has shape"),
    (LINEAR, {"oft_blocks": normal(24)}, "oft_blocks has shape"),
    (LINEAR, {"oft_blocks": normal(4, 6, 4, 4)}, "not that of a butterfly"),
    (LINEAR, {"oft_diag": normal(2, 6, 4, 4)}, "oft_diag has shape"),
    (LINEAR, {"oft_r": normal(4, 5)}, "oft_r has shape"),
    (LINEAR, {"oft_r": normal(3, 6)}, "oft_r has 3 blocks of 4"),
    (LINEAR, {"oft_r": normal(16, 0)}, "oft_r has shape"),
    (LINEAR, {"oft_blocks": normal(6, 4, 4), "dora_scale": normal(24, 1)}, "dora_scale: of no kind|does not go with"),
]


@pytest.mark.parametrize(("shape", "arrays", "message"), WRONG)
def test_what_is_no_change(shape: tuple[int, ...], arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(MisfitError, match=message):
        change_of(shape, arrays)
