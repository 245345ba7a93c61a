"""Tensors on their way from a checkpoint to the devices, and the checkpoints that are refused."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxl.errors import CheckpointError
from jaxl.weights.checkpoint import Checkpoint, first_broken, load_params
from jaxl.weights.layout import flatten, unflatten
from jaxl.weights.store import read_header, write_safetensors
from jaxl.weights.tensors import read_tensors

SHAPES = {  # as the checkpoint has them
    "conv_in.weight": (5, 4, 3, 3),
    "conv_in.bias": (5,),
    "time.linear.weight": (6, 2),
    "text_model.embeddings.token_embedding.weight": (7, 3),
}
DEVICE_SHAPES = SHAPES | {"conv_in.weight": (3, 3, 4, 5), "time.linear.weight": (2, 6)}
IDS = "text_model.embeddings.position_ids"


def arrays(dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype(dtype) for key, shape in SHAPES.items()}


def checkpoint(folder: Path, **components: dict[str, np.ndarray]) -> Checkpoint:
    files = {name: folder / f"{name}.safetensors" for name in components}
    for name, file in files.items():
        save_file(components[name], file)
    return Checkpoint("a model", {}, {name: read_header(file) for name, file in files.items()}, {})


def load(model: Checkpoint, dtype: Any = jnp.float32, **kwargs: Any) -> dict[str, Any]:
    tree = unflatten({key: jax.ShapeDtypeStruct(shape, dtype) for key, shape in DEVICE_SHAPES.items()})
    kwargs.setdefault("place", lambda component, key, array: jax.device_put(array))
    return load_params(model, dict.fromkeys(model.tensors, tree), **kwargs)


def refusal(folder: Path, tensors: dict[str, np.ndarray]) -> str:
    placed: list[str] = []

    def place(component: str, key: str, array: np.ndarray) -> jax.Array:
        placed.append(key)
        return jax.device_put(array)

    # the one that is wrong is the second, but nothing is read before all are checked
    model = checkpoint(folder, vae=arrays(), unet=tensors)
    with pytest.raises(CheckpointError) as caught:
        load(model, place=place)
    assert not placed
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32, np.float64])
def test_every_tensor_arrives(tmp_path: Path, stored: Any, dtype: Any) -> None:
    wanted = arrays(stored)
    progress: list[tuple[int, int]] = []
    model = checkpoint(tmp_path, unet=wanted, vae=wanted)
    params = load(model, dtype, progress=lambda done, total: progress.append((done, total)))
    assert params.keys() == {"unet", "vae"}
    for tree in params.values():
        flat = flatten(tree)
        assert flat.keys() == SHAPES.keys()
        for key, array in flat.items():
            assert isinstance(array, jax.Array)
            assert array.dtype == dtype
            axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, (0,)) if "embedding" not in key else (0, 1)
            np.testing.assert_array_equal(array, wanted[key].transpose(axes).astype(np.dtype(dtype)))
    assert progress == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize(("stored", "dtype"), [(np.float64, jnp.float32), (np.float64, jnp.bfloat16)])
def test_numbers_beyond_the_range(tmp_path: Path, stored: Any, dtype: Any) -> None:
    tensors = arrays(stored)
    tensors["conv_in.bias"][1] = 1e300
    message = f"a model: unet: conv_in.bias has numbers beyond the range of {jnp.dtype(dtype)}"
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        load(checkpoint(tmp_path, unet=tensors), dtype)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float8_e5m2])
def test_the_first_that_is_not_finite(bad: float, dtype: Any) -> None:
    params = {"vae": {"conv": {"bias": jnp.ones(3, dtype)}}, "unet": {"scale": jnp.ones((), jnp.int8)}}
    assert first_broken(params) is None
    assert first_broken({**params, "text": {"a": {"weight": jnp.full((2, 2), bad, dtype)}}}) == "text: a.weight"


def test_a_file_is_read_from_front_to_back(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, unet=arrays())
    order: list[int] = []

    def place(component: str, key: str, array: np.ndarray) -> jax.Array:
        order.append(model.tensors[component][key].offset)
        return jax.device_put(array)

    load(model, place=place)
    assert order == sorted(order)
    assert len(order) == len(SHAPES)


def test_params_outlive_their_file(tmp_path: Path) -> None:
    wanted = arrays()
    model = checkpoint(tmp_path, unet=wanted)
    params = load(model)
    for file in model.files():
        file.write_bytes(bytes(file.stat().st_size))
    np.testing.assert_array_equal(params["unet"]["conv_in"]["bias"], wanted["conv_in.bias"])


def test_files_are_named_once(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, unet=arrays(), vae=arrays())
    assert model.files() == [tmp_path / "unet.safetensors", tmp_path / "vae.safetensors"]


@pytest.mark.parametrize("key", [IDS, "text_model.logit_scale", "logit_scale", "text_projection.weight"])
def test_leftovers_of_text_encoders(tmp_path: Path, key: str) -> None:
    """They are passed over there, and nowhere else."""
    left = arrays() | {key: np.arange(77).reshape(1, 77)}
    load(checkpoint(tmp_path, text_encoder=left, text_encoder_2=left))
    assert refusal(tmp_path, left) == f"a model: unet has unknown tensors: {key}"


@pytest.mark.parametrize("stored", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8])
def test_eight_bits(tmp_path: Path, stored: Any) -> None:
    """Plain, or times a scale that stands beside them, in a folder's component; integers with a scale alone."""
    file, scale = tmp_path / "unet.safetensors", np.float32(0.3)
    scaled, plain = arrays(stored), arrays(np.float16 if stored is np.int8 else stored)
    wanted = {key: (scaled if key in ("conv_in.weight", "time.linear.weight") else plain)[key] for key in plain}
    entries = {key: (array.dtype, array.shape) for key, array in wanted.items()}
    more = {"conv_in.scale_weight": scale, "time.linear.scale_weight": scale, "scaled_fp8": np.zeros(0, stored)}
    entries |= {key: (np.dtype(array.dtype), array.shape) for key, array in more.items()}
    write_safetensors(file, entries, lambda key: {**wanted, **more}[key])
    params = flatten(load(Checkpoint("a model", {}, {"unet": read_tensors(file)}, {}))["unet"])
    assert params.keys() == SHAPES.keys()
    for key, array in params.items():
        axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, (0,)) if "embedding" not in key else (0, 1)
        exact = wanted[key].transpose(axes).astype(np.float32) * (
            scale if key in {"conv_in.weight", "time.linear.weight"} else 1
        )
        np.testing.assert_array_equal(array, exact)


def test_missing_tensors(tmp_path: Path) -> None:
    one = {key: array for key, array in arrays().items() if key != "conv_in.bias"}
    assert refusal(tmp_path, one) == "a model: unet lacks conv_in.bias"
    assert refusal(tmp_path, {"conv_in.bias": arrays()["conv_in.bias"]}) == (
        "a model: unet lacks conv_in.weight, time.linear.weight, text_model.embeddings.token_embedding.weight"
    )
    assert refusal(tmp_path, {}).endswith(", conv_in.bias, time.linear.weight and 1 more")


def test_unknown_tensors(tmp_path: Path) -> None:
    one = np.zeros(1, np.float32)
    assert refusal(tmp_path, arrays() | {"mid.weight": one}) == "a model: unet has unknown tensors: mid.weight"
    many = arrays() | {f"lora.{i}": one for i in range(5)}
    assert refusal(tmp_path, many) == "a model: unet has unknown tensors: lora.0, lora.1, lora.2 and 2 more"


@pytest.mark.parametrize(
    ("key", "shape", "wanted"),
    [
        ("conv_in.weight", (5, 4, 3, 1), "(5, 4, 3, 3)"),
        ("conv_in.weight", (5, 4), "(5, 4, 3, 3)"),
        ("conv_in.bias", (1, 5), "(5,)"),
        ("time.linear.weight", (2, 6), "(6, 2)"),
        ("time.linear.weight", (6, 2, 1, 1), "(6, 2)"),
    ],
)
def test_another_shape(tmp_path: Path, key: str, shape: tuple[int, ...], wanted: str) -> None:
    """The message has the shapes as the checkpoint writes them."""
    message = refusal(tmp_path, arrays() | {key: np.zeros(shape, np.float32)})
    assert message == f"a model: unet: {key} has shape {shape}, but its config asks for {wanted}"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.bool_])
def test_quantized_tensors(tmp_path: Path, dtype: Any) -> None:
    message = refusal(tmp_path, arrays() | {"conv_in.bias": np.zeros(5, dtype)})
    assert message == f"a model: unet: conv_in.bias holds {np.dtype(dtype)}, not floating-point numbers"
