"""`precision`: which layers are quantised, how their scales are measured and kept, and how near the pictures stay."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxl
from jaxl.bench.quality import compare
from jaxl.nn.layers import conv, linear
from jaxl.nn.quantised import quantise_weight
from jaxl.run.programs import DECODE
from jaxl.weights.layout import flatten, from_torch, unflatten
from jaxl.weights.quantise import (
    PRECISIONS,
    layers,
    quantise_params,
    quantised_shapes,
    read_precision,
    read_scales,
    write_scales,
)
from jaxl.weights.source import EMBEDDED
from jaxl.weights.store import write_safetensors
from jaxl.weights.tensors import read_tensors

PROMPT = "a rocket on a purple background, noto style"
CALIBRATION = ["a red apple on a blue background, flat style"]
EXACT = ("conv_in", "conv_out", "time_emb", "add_embedding", "conv_shortcut", "proj_in", "proj_out", "sampler", "norm")

ROWS = np.linspace(0.1, 0.5, 5, dtype=np.float32)

Load = Callable[[str], tuple[Any, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, but that its own size is 64x64 pixels, where calibration takes seconds."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(EMBEDDED["tiny"], folder, copy_function=os.symlink)
    config = folder / "unet" / "config.json"
    text = json.dumps({**json.loads(config.read_text()), "sample_size": 8})
    config.unlink()
    config.write_text(text)
    return folder


@pytest.fixture(scope="module")
def tiny(model: Path) -> tuple[Any, Any]:
    """It with exact parameters in float32 on one device: (pipe, params)."""
    return jaxl.from_pretrained(model, dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))


@pytest.fixture(scope="module")
def load(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Gives `tiny` in int8, its parameters split over two devices, or in fp8+conv on one.

    The scales are measured on one prompt, by the first.
    """
    loaded: dict[str, tuple[Any, Any]] = {}
    settings: dict[str, Any] = {"dtype": jnp.float32, "calibration": CALIBRATION}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXL_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        one = jaxl.make_mesh(jax.devices()[:1])
        loaded["fp8+conv"] = jaxl.from_pretrained(model, precision="fp8+conv", mesh=one, **settings)
        stages: list[str] = []
        loaded["int8"] = jaxl.from_pretrained(
            model,
            precision="int8",
            mesh=jaxl.make_mesh(jax.devices()[:2]),
            shard_params=True,
            progress=lambda stage, *_: stages.append(stage),
            **settings,
        )
    assert set(stages) == {"load"}, "what was measured for one precision serves all"
    return loaded.__getitem__


@pytest.mark.parametrize("precision", ["int8", "fp8+conv"])
def test_the_layers_that_cost_are_quantised_and_sensitive_ones_are_not(precision: str, tiny: Any, load: Load) -> None:
    pipe, params = load(precision)
    kind, leaves = PRECISIONS[precision].dtype, flatten(params["unet"])
    quantised = {key.removesuffix(".weight") for key, leaf in leaves.items() if leaf.dtype == kind}
    for key, leaf in leaves.items():
        if key.removesuffix(".weight") not in quantised and not key.endswith("scale"):
            assert leaf.dtype == jnp.float32
    assert all(f"{path}.input_scale" in leaves and f"{path}.scale" in leaves for path in quantised)
    assert all(float(leaves[f"{path}.input_scale"]) > 0 for path in quantised)
    assert not [path for path in quantised if any(name in path for name in EXACT) or path.endswith("attn2.to_k")]
    # by far the most of the network's numbers
    linears = sum(leaf.size for key, leaf in leaves.items() if ".transformer_blocks." in key)
    covered = sum(leaves[f"{path}.weight"].size for path in quantised if ".transformer_blocks." in path)
    assert covered > 0.75 * linears
    assert any(".resnets." in path for path in quantised) == precision.endswith("conv")
    for name in ("vae", "text_encoder", "text_encoder_2"):
        assert {leaf.dtype for leaf in jax.tree.leaves(params[name])} == {jnp.dtype(jnp.float32)}
    assert jax.tree.map(lambda a: (a.shape, a.dtype, a.sharding), params) == jax.tree.map(
        lambda s: (s.shape, s.dtype, s.sharding), pipe.programs.shapes
    )


def test_what_was_measured_is_kept(tiny: Any, load: Load) -> None:
    pipe, _ = load("int8")
    kept = read_scales(pipe.quantised.scales_file, layers(tiny[1]["unet"]))
    assert kept is not None
    stages: list[str] = []
    again = tiny[0].calibrate(tiny[1], CALIBRATION, progress=lambda stage, done, total: stages.append(stage))
    assert stages.count("calibrate") == tiny[0].preset.steps
    assert list(again) == layers(tiny[1]["unet"])
    for path, value in again.items():
        np.testing.assert_allclose(value, kept[path], rtol=1e-3, err_msg=path)


@pytest.mark.parametrize(("precision", "least"), [("int8", 30), ("fp8+conv", 22)])
def test_pictures_stay_close_to_the_exact_ones(precision: str, least: float, tiny: Any, load: Load) -> None:
    """Decoded by one program, as no precision changes the autoencoder."""
    decode, decoder = tiny[0].programs.get(DECODE, tiny[0].bucket(1)), tiny[1]["vae"]

    def drawn(pipe: Any, params: Any) -> np.ndarray:
        latents = pipe.generate(params, PROMPT, seed=4, steps=8, output="latents").latents
        return np.asarray(decode(decoder, latents)[0])

    quality = compare(drawn(*tiny), drawn(*load(precision)))
    assert least < quality.psnr[0] < 60, "near, but not the exact picture itself"


def test_nothing_compiles_for_another_prompt(load: Load, compilations: Any) -> None:
    pipe, params = load("fp8+conv")
    pipe.generate(params, PROMPT, steps=2)
    with compilations() as seen:
        pipe.generate(params, "a llama", seed=9, steps=3, guidance_scale=7.5, scheduler="dpm++2m")
    assert seen == []


def test_a_distance_leaves_layers_exact(model: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here four are needed, of which three have one input; the next load knows that from the file."""
    pipe, _ = load("int8")
    every = sum(map(PRECISIONS["int8"].covers, layers(pipe.exact.shapes["unet"])))

    class Trials:
        def __init__(self, programs: Any, params: Any, inputs: Any, rounding: Any):
            self.rounded = lambda paths: {
                key for key, leaf in flatten(rounding(paths)).items() if key.endswith(".rounded") and float(leaf)
            }

        def errors(self, groups: list[Any], tell: Any) -> dict[Any, float]:
            first = [next(group for group in groups if len(group) == size) for size in (3, 1)]
            return {group: 100.0 * (group in first) for group in groups}

        def psnr(self, rounded: set[str]) -> float:
            assert self.rounded(rounded) == {f"{path}.rounded" for path in rounded}
            return 40.0 if len(rounded) <= every - 4 else 20.0

    monkeypatch.setattr("jaxl.pipeline.Trials", Trials)
    monkeypatch.setenv("JAXL_CACHE_DIR", str(pipe.quantised.scales_file.parents[1]))
    settings: dict[str, Any] = {"dtype": jnp.float32, "calibration": CALIBRATION, "precision": "int8@30"}
    for loads in range(2):
        if loads:
            monkeypatch.setattr("jaxl.pipeline.Trials", None)
        near, params = jaxl.from_pretrained(model, mesh=jaxl.make_mesh(jax.devices()[:1]), **settings)
        leaves = flatten(params["unet"])
        exact = [path for path in layers(params["unet"]) if f"{path}.scale" not in leaves]
        exact = [path for path in exact if PRECISIONS["int8"].covers(path)]
        assert len(exact) == 4
        assert near.quantised is not None
        assert near.quantised.choice is not None
        assert set(near.quantised.choice.exact) == set(exact)
        assert near.quantised.choice.psnr == 40.0
        assert {leaves[f"{path}.weight"].dtype for path in exact} == {jnp.dtype(jnp.float32)}
        assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(
            lambda s: (s.shape, s.dtype), near.programs.shapes
        )


def test_refusals(tiny: Any, load: Load, tmp_path: Path) -> None:
    mesh = tiny[0].mesh
    with pytest.raises(jaxl.InputError, match="precision='int9': did you mean 'int8'"):
        jaxl.from_pretrained("tiny", mesh=mesh, precision="int9")
    for wrong in ([], "a cat"):
        with pytest.raises(jaxl.InputError, match=r"calibration=.*list of prompts"):
            jaxl.from_pretrained("tiny", mesh=mesh, precision="int8", calibration=wrong)
    with pytest.raises(jaxl.InputError, match="use int8 or fp8"):
        read_precision("int8+conv", "gpu")
    assert read_precision("int8+conv", "tpu").covers("down_blocks.0.resnets.0.conv1")
    pipe, params = load("int8")
    with pytest.raises(jaxl.InputError, match="precision='int8': only exact parameters are saved"):
        pipe.save_pretrained(tmp_path / "saved", params)
    assert not (tmp_path / "saved").exists()
    with pytest.raises(jaxl.InputError, match="params"):
        pipe.generate(tiny[1], PROMPT, steps=1)


@pytest.mark.parametrize("name", ["int8+conv", "fp8+conv"])
def test_stored_eight_bits_stay_as_they_are(name: str, tmp_path: Path) -> None:
    """A checkpoint's own numbers and scales are not rounded a second time; where it has others, they are ours."""
    precision, rng = PRECISIONS[name], np.random.default_rng(0)
    dtype, block = np.dtype(precision.dtype), "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    shapes = {f"{block}.to_q": (6, 4), "down_blocks.0.resnets.0.conv1": (5, 4, 3, 3), f"{block}.to_k": (6, 4)}
    stored = {f"{path}.weight": (rng.standard_normal(shape) * 30).astype(dtype) for path, shape in shapes.items()}
    stored[f"{block}.to_k.weight"] = stored[f"{block}.to_k.weight"].astype(np.float16)
    scales = {f"{block}.to_q.scale_weight": np.float32(0.3), "down_blocks.0.resnets.0.conv1.weight_scale": ROWS}
    whole = stored | {key: np.asarray(scale) for key, scale in scales.items()}
    file = tmp_path / "unet.safetensors"
    write_safetensors(file, {key: (array.dtype, array.shape) for key, array in whole.items()}, whole.__getitem__)
    tensors = read_tensors(file)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaves = {
        key: jnp.asarray(tensor.read().transpose(from_torch(key, tensor.shape)), jnp.float32)
        for key, tensor in tensors.items()
    }
    tree = unflatten({key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for key, leaf in leaves.items()})
    wanted = quantised_shapes(tree, precision, tensors)
    wanted = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), wanted)
    found = flatten(quantise_params(dict(leaves), dict.fromkeys(shapes, 3.0), precision, wanted, tensors))
    assert {key: (leaf.shape, leaf.dtype) for key, leaf in found.items()} == {
        key: (leaf.shape, leaf.dtype) for key, leaf in flatten(wanted).items()
    }
    for path, rows in ((f"{block}.to_q", np.full(6, 0.3)), ("down_blocks.0.resnets.0.conv1", ROWS)):
        own = stored[f"{path}.weight"]
        axes = (0, 1) if own.ndim == 2 and dtype != np.int8 else from_torch("", own.shape)
        np.testing.assert_array_equal(found[f"{path}.weight"], own.transpose(axes))
        np.testing.assert_array_equal(found[f"{path}.scale"], np.float32(rows))
    assert found[f"{block}.to_k.weight"].dtype == dtype
    # what the layers make of them is what they stand for, but for the rounding of their inputs
    params, x = unflatten(found), rng.uniform(-3, 3, (2, 5, 5, 4)).astype(np.float32)
    query = params["down_blocks"]["1"]["attentions"]["0"]["transformer_blocks"]["0"]["attn1"]["to_q"]
    exact = x @ np.asarray(leaves[f"{block}.to_q.weight"])
    np.testing.assert_allclose(linear(query, jnp.asarray(x)), exact, atol=0.05 * np.abs(exact).max())
    made = conv(params["down_blocks"]["0"]["resnets"]["0"]["conv1"], jnp.asarray(x))
    exact = conv({"weight": leaves["down_blocks.0.resnets.0.conv1.weight"]}, jnp.asarray(x))
    np.testing.assert_allclose(made, exact, atol=0.05 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("shape", [(6, 4), (5, 4, 3, 3)])
def test_plain_numbers_of_eight_bits_are_kept_too(shape: tuple[int, ...]) -> None:
    """Scales that are powers of two round none of them."""
    stored = (np.random.default_rng(0).standard_normal(shape) * 0.01).astype(ml_dtypes.float8_e4m3fn)
    weight, scale = quantise_weight(jnp.asarray(stored, jnp.float32), jnp.float8_e4m3fn)
    found = np.asarray(weight, np.float32) * float(scale)
    np.testing.assert_array_equal(found.T if found.ndim == 2 else found, stored.astype(np.float32))


def test_scales_files(tmp_path: Path) -> None:
    file = tmp_path / "scales" / "own.json"
    assert read_scales(file, ["a", "b"]) is None
    scales = {"a": 1.25, "b": float(np.float32(0.1))}
    write_scales(file, scales)
    write_scales(file, scales)
    assert read_scales(file, ["b", "a"]) == scales
    assert list(file.parent.iterdir()) == [file]
    damaged = [
        "",
        "[]",
        "{",
        '{"a": 1.0}',
        '{"a": 1, "b": -1}',
        '{"a": 1, "b": NaN}',
        '{"a": 1, "b": "1"}',
        "[" * 10**6,
    ]
    for text in (*damaged, json.dumps({"a": 1.0, "c": 1.0})):
        file.write_text(text)
        with pytest.raises(jaxl.CheckpointError, match=r"own\.json: damaged scales .*; remove it") as caught:
            read_scales(file, ["a", "b"])
        assert "\n" not in str(caught.value)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(jaxl.CheckpointError, match="damaged"):
        read_scales(file, ["a", "b"])
    (tmp_path / "file").touch()
    with pytest.raises(jaxl.OutputError, match="cannot be written"):
        write_scales(tmp_path / "file" / "own.json", scales)
