"""Between a checkpoint's layout and the device's."""

import ml_dtypes
import numpy as np
import pytest

from jaxl.weights.layout import flatten, from_torch, rearranged, to_torch, unflatten

BF16 = np.dtype(ml_dtypes.bfloat16)


def test_a_tree_and_its_keys() -> None:
    tree = {"down": {"0": {"weight": 1, "bias": 2}, "1": {"weight": 3}}, "scale": 4}
    flat = flatten(tree)
    assert flat == {"down.0.weight": 1, "down.0.bias": 2, "down.1.weight": 3, "scale": 4}
    assert unflatten(flat) == tree
    assert flatten(tree, "unet.") == {f"unet.{key}": value for key, value in flat.items()}


@pytest.mark.parametrize(
    ("key", "torch_shape", "device_shape"),
    [
        ("conv_in.weight", (32, 4, 3, 5), (3, 5, 4, 32)),
        ("to_q.weight", (64, 48), (48, 64)),
        ("text_model.embeddings.token_embedding.weight", (100, 48), (100, 48)),
        ("text_model.embeddings.position_embedding.weight", (77, 48), (77, 48)),
        ("norm.weight", (48,), (48,)),
    ],
)
def test_order_of_axes(key: str, torch_shape: tuple[int, ...], device_shape: tuple[int, ...]) -> None:
    there, back = from_torch(key, torch_shape), to_torch(key, device_shape)
    assert tuple(torch_shape[axis] for axis in there) == device_shape
    assert tuple(device_shape[axis] for axis in back) == torch_shape


@pytest.mark.parametrize("target", [BF16, np.dtype(np.float16), np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("stored", [BF16, np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)], ids=str)
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7,), (0,)),
        ((40, 3), (0, 1)),
        ((50, 33), (1, 0)),  # neither is a multiple of the rows that are moved at a time
        ((3, 64), (1, 0)),
        ((35, 4, 3, 2), (2, 3, 1, 0)),
        ((3, 2, 4, 35), (3, 2, 0, 1)),
        ((0, 5), (1, 0)),
    ],
    ids=str,
)
def test_a_rearranged_array(shape: tuple[int, ...], axes: tuple[int, ...], stored: np.dtype, target: np.dtype) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(stored)
    for view in (array, array[::-1]):  # the second is not contiguous
        new = rearranged(view, axes, target)
        assert new.dtype == target
        np.testing.assert_array_equal(new, view.transpose(axes).astype(target))
        assert new.flags.c_contiguous
        assert new.flags.writeable
        assert not np.shares_memory(new, array)
        # JAX on the CPU copies what begins elsewhere
        assert not new.size or new.ctypes.data % 64 == 0
