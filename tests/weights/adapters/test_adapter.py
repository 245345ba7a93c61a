"""Files of adapters in every layout, what they say of themselves, and one clear line for what is none."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from adapter_files import RNG, SHAPES, normal, read, write

from jaxl.errors import CheckpointError
from jaxl.weights.adapters.adapter import Adapter, read_adapter
from jaxl.weights.adapters.low_rank import LowRank
from jaxl.weights.adapters.names import Layer, layers, original_names
from jaxl.weights.store import write_safetensors

Array = np.ndarray

LAYERS = [layer for layer in layers(SHAPES) if len(layer.weight) > 1 and "embeddings" not in layer.module]
UNET = [layer for layer in LAYERS if layer.component == "unet"]
ATTENTION = [layer for layer in UNET if ".attn" in layer.module]
ORIGINAL = original_names(layer.module for layer in UNET)
ENCODERS = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
KOHYA = ("lora_down.weight", "lora_up.weight")
PEFT = ("lora_A.weight", "lora_B.weight")

Stem = Callable[[Layer], str | None]


def underscored(layer: Layer, path: str, prefix: str = "lora_unet_") -> str:
    return ENCODERS.get(layer.component, prefix) + path.replace(".", "_")


def kohya(layer: Layer) -> str:
    return underscored(layer, ORIGINAL.get(layer.module, layer.module))


def kohya_on_diffusers(layer: Layer) -> str:
    return underscored(layer, layer.module)


def dotted(layer: Layer) -> str:
    return f"{layer.component}.{layer.module}"


def of_unet(prefix: str, path: Callable[[Layer], str] = lambda layer: layer.module) -> Stem:
    return lambda layer: f"{prefix}{path(layer)}" if layer.component == "unet" else None


def oldest(layer: Layer) -> str | None:
    if layer not in ATTENTION:
        return None
    block, _, part = layer.module.removesuffix(".0").rpartition(".")
    return f"unet.{block}.processor.{part}"


def comfy(layer: Layer) -> str:
    if layer.component == "unet":
        return f"diffusion_model.{ORIGINAL[layer.module]}"
    return f"text_encoders.clip_{'g' if layer.component == 'text_encoder_2' else 'l'}.transformer.{layer.module}"


def text_of_old(layer: Layer) -> str | None:
    if layer.component == "unet" or "_proj" not in layer.module or "self_attn" not in layer.module:
        return None
    block, _, part = layer.module.rpartition(".")
    return f"{layer.component}.{block}.to_{part.removesuffix('_proj')}"


# by the program that writes it: the name of a layer, what sets it off, down and up, and whether alphas are beside them
LAYOUTS: dict[str, tuple[Stem, str, tuple[str, str], bool]] = {
    "sd-scripts": (kohya, ".", KOHYA, True),
    "LyCORIS on diffusers": (kohya_on_diffusers, ".", KOHYA, True),
    "diffusers with PEFT": (dotted, ".", PEFT, False),
    "diffusers between": (dotted, ".", ("lora.down.weight", "lora.up.weight"), False),
    "diffusers' encoders": (dotted, ".", ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"), False),
    "diffusers' old encoders": (text_of_old, "_", ("lora.down.weight", "lora.up.weight"), False),
    "diffusers, the oldest": (oldest, "_", ("lora.down.weight", "lora.up.weight"), False),
    "PEFT": (of_unet(""), ".", PEFT, False),
    "PEFT's whole names": (of_unet("base_model.model."), ".", PEFT, False),
    "the LCM trainer": (of_unet("unet.base_model.model."), ".", PEFT, False),
    "PEFT, named default": (dotted, ".", ("lora_A.default.weight", "lora_B.default.weight"), False),
    "PEFT without weight": (dotted, ".", ("lora_A", "lora_B"), False),
    "OneTrainer, original": (of_unet("", lambda layer: ORIGINAL[layer.module]), ".", PEFT, True),
    "OneTrainer for ComfyUI": (comfy, ".", PEFT, True),
    "ComfyUI": (comfy, ".", KOHYA, False),
    "SimpleTuner": (of_unet("lycoris_", lambda layer: layer.module.replace(".", "_")), ".", KOHYA, True),
    "torch.compile": (of_unet("unet._orig_mod."), ".", PEFT, False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    """Each layer gets its own factors, with its own rank and alpha."""
    stem, dot, (down, up), alphas = LAYOUTS[layout]
    arrays, expected = {}, {}
    for i, layer in enumerate(LAYERS):
        name = stem(layer)
        if name is None:
            continue
        rank, alpha = 1 + i % 3, np.float16(0.5 + i % 5) if alphas else None
        out, *inner = layer.weight
        arrays[f"{name}{dot}{down}"] = normal(rank, *inner)
        arrays[f"{name}{dot}{up}"] = normal(out, rank, *[1] * (len(inner) - 1))
        if alpha is not None:
            arrays[f"{name}{dot}alpha"] = alpha
        expected[layer] = (rank, 1 if alpha is None else float(alpha) / rank, arrays[f"{name}{dot}{down}"])
    adapter = read(tmp_path / "x.safetensors", arrays)
    found = {(component, key) for component, changes in adapter.changes.items() for key in changes}
    assert found == {(layer.component, f"{layer.module}.weight") for layer in expected}
    for layer, (rank, scale, factor) in expected.items():
        change = adapter.changes[layer.component][f"{layer.module}.weight"]
        assert isinstance(change, LowRank)
        assert (change.rank, change.dim) == (rank, rank)
        assert change.scale == pytest.approx(scale)
        np.testing.assert_array_equal(change.down, factor)
    assert set(adapter.kinds) <= {"LoRA", "LoCon"}
    assert adapter.left == ()
    assert adapter.nbytes == sum(np.asarray(array).nbytes for array in arrays.values())


def test_both_namings_in_one_file(tmp_path: Path) -> None:
    arrays = {}
    for i, layer in enumerate(LAYERS):
        arrays |= pair((kohya, kohya_on_diffusers, dotted)[i % 3](layer), layer)
    adapter = read(tmp_path / "x.safetensors", arrays)
    assert sum(map(len, adapter.changes.values())) == len(LAYERS)


def pair(stem: str, layer: Layer = ATTENTION[0], rank: int = 2) -> dict[str, Array]:
    down, up = PEFT if "." in stem else KOHYA
    return {f"{stem}.{down}": normal(rank, *layer.weight[1:]), f"{stem}.{up}": normal(layer.weight[0], rank)}


SOME = pair(kohya(ATTENTION[0]))


def test_vectors_are_changes_of_other_parameters(tmp_path: Path) -> None:
    """Biases and norms, of networks and of PEFT's `lora_bias`."""
    norm = next(layer for layer in layers(SHAPES) if layer.module.endswith("norm1") and layer.component == "unet")
    out = next(layer for layer in ATTENTION if layer.module.endswith("to_out.0"))
    proj = next(layer for layer in UNET if layer.module.endswith("proj_in"))
    arrays = {
        f"{kohya(norm)}.w_norm": normal(*norm.weight),
        f"{kohya(norm)}.b_norm": normal(*norm.weight),
        f"{kohya(proj)}.diff_b": normal(proj.weight[0]),
        **pair(dotted(out), out),
        f"{dotted(out)}.lora_B.bias": normal(out.weight[0]),
    }
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})}
    changes = read(tmp_path / "x.safetensors", arrays, metadata).changes["unet"]
    assert changes.keys() == {
        *(f"{norm.module}.{leaf}" for leaf in ("weight", "bias")),
        f"{proj.module}.bias",
        *(f"{out.module}.{leaf}" for leaf in ("weight", "bias")),
    }
    for key, scale, name in [
        (f"{norm.module}.weight", 0.5, f"{kohya(norm)}.w_norm"),
        (f"{norm.module}.bias", 0.5, f"{kohya(norm)}.b_norm"),
        (f"{proj.module}.bias", 0.5, f"{kohya(proj)}.diff_b"),
        (f"{out.module}.bias", 1.5, f"{dotted(out)}.lora_B.bias"),  # times alpha / rank too
    ]:
        before = normal(*arrays[name].shape)
        np.testing.assert_allclose(changes[key].merged(before, 0.5), before + scale * arrays[name], atol=1e-6)


def scales(adapter: Adapter) -> dict[str, float]:
    return {key: change.scale for key, change in adapter.changes["unet"].items() if isinstance(change, LowRank)}


def test_alphas_of_peft(tmp_path: Path) -> None:
    """They are in the metadata: one for all, by patterns, and with rsLoRA by the root of the rank."""
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    first, second, third = (
        next(layer for layer in ATTENTION if layer.module == f"{block}.to_{part}") for part in "qkv"
    )
    arrays = pair(dotted(first), first) | pair(dotted(second), second, 4) | pair(dotted(third), third)
    path = tmp_path / "x.safetensors"

    def told(**settings: Any) -> list[float]:
        flat = {f"unet.{name}": value for name, value in settings.items()} | {"text_encoder.lora_alpha": 77}
        adapter = read(path, arrays, {"format": "pt", "lora_adapter_metadata": json.dumps(flat)})
        return [scales(adapter)[f"{layer.module}.weight"] for layer in (first, second, third)]

    assert list(scales(read(path, arrays)).values()) == [1, 1, 1]
    assert told(r=2, lora_alpha=8) == [4, 2, 4]
    assert told(r=2, lora_alpha=8, use_rslora=True) == pytest.approx([8 / 2**0.5, 4, 8 / 2**0.5])
    assert told(lora_alpha=8, alpha_pattern={second.module: 1}) == [4, 0.25, 4]
    assert told(lora_alpha=8, alpha_pattern={second.module.partition(".")[2]: 1}) == [4, 0.25, 4]
    assert told(lora_alpha=8, alpha_pattern={"^mid_block.*to_q": 1, "to_q": 2}) == [0.5, 2, 4]
    assert told(lora_alpha=8, alpha_pattern={"_q": 1, "q": 1}) == [4, 2, 4]  # a name's end begins after a dot
    many = {f"no.{i}.to_q": 1 for i in range(2000)}
    assert told(lora_alpha=8, alpha_pattern=many) == [4, 2, 4]
    assert told(lora_alpha=8, alpha_pattern={r"attn1\.(to_q|to_v)": 1, "to_v": 2}) == [0.5, 2, 0.5]
    arrays[f"{dotted(first)}.alpha"] = np.float32(2)  # a tensor says it of its own layer
    assert told(lora_alpha=8) == [1, 2, 4]


def test_alphas_of_peft_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8}))
    arrays = pair(f"base_model.model.{ATTENTION[0].module}")
    assert list(scales(read(tmp_path / "adapter_model.safetensors", arrays)).values()) == [4]
    assert list(scales(read(tmp_path / "other.safetensors", arrays)).values()) == [1]


def test_glora_with_the_root_of_its_rank(tmp_path: Path) -> None:
    """LyCORIS writes its alpha plainly, where other kinds have the root in it."""
    layer = next(each for each in ATTENTION if each.weight[0] == each.weight[1])
    width = layer.weight[0]
    parts = {"a1": (width, 4), "a2": (4, width), "b1": (width, 4), "b2": (4, width)}
    arrays = {f"{kohya(layer)}.{name}.weight": normal(*shape) for name, shape in parts.items()}
    arrays[f"{kohya(layer)}.alpha"] = np.float32(2)
    path = tmp_path / "x.safetensors"
    for arguments, scale in [({"algo": "glora", "rs_lora": "True"}, 1), ({"algo": "glora"}, 0.5)]:
        adapter = read(path, arrays, {"ss_network_args": json.dumps(arguments)})
        assert adapter.kinds == ("GLoRA",)
        assert adapter.changes["unet"][f"{layer.module}.weight"].scale == scale  # pyright: ignore[reportAttributeAccessIssue]


def test_bundled_embeddings(tmp_path: Path) -> None:
    vectors = {"clip_l": normal(2, 128), "clip_g": normal(2, 192)}
    arrays = SOME | {f"bundle_emb.my.word.{encoder}": array for encoder, array in vectors.items()}
    embeddings = read(tmp_path / "x.safetensors", arrays).embeddings
    assert embeddings.keys() == {"my.word"}
    for encoder, array in vectors.items():
        np.testing.assert_array_equal(embeddings["my.word"][encoder], array)


def test_the_file_may_go(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", SOME)
    adapter = read_adapter("x", path, SHAPES)
    path.write_bytes(b"\0" * path.stat().st_size)
    path.unlink()
    (change,) = adapter.changes["unet"].values()
    assert isinstance(change, LowRank)
    np.testing.assert_array_equal(change.down, next(iter(SOME.values())))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e4m3fn])
def test_dtypes_are_kept(tmp_path: Path, dtype: Any) -> None:
    arrays = {key: array.astype(dtype) for key, array in SOME.items()}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {key: (array.dtype, array.shape) for key, array in arrays.items()}, arrays.__getitem__)
    (change,) = read_adapter("x", path, SHAPES).changes["unet"].values()
    assert isinstance(change, LowRank)
    assert change.down.dtype == change.up.dtype == dtype
    down, up = (array.astype(np.float64) for array in arrays.values())
    found = change.merged(np.zeros(ATTENTION[0].weight, np.float32), 1)
    np.testing.assert_allclose(found, up @ down, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, np.int8])
def test_eight_bits_with_scales(tmp_path: Path, dtype: Any) -> None:
    """As ComfyUI stores weights, so may it a LoRA's; an integer without a scale is refused."""
    arrays = {key: (array * 20).astype(dtype) for key, array in SOME.items()}
    scales = {f"{key.removesuffix('.weight')}.scale_weight": np.float32(0.05) for key in arrays}
    whole = arrays | {key: np.asarray(scale) for key, scale in scales.items()}
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {key: (array.dtype, array.shape) for key, array in whole.items()}, whole.__getitem__)
    (change,) = read_adapter("x", path, SHAPES).changes["unet"].values()
    assert isinstance(change, LowRank)
    for found, stored in zip((change.down, change.up), arrays.values(), strict=True):
        np.testing.assert_array_equal(found, stored.astype(np.float32) * np.float32(0.05))


def test_the_digest_is_of_the_tensors_alone(tmp_path: Path) -> None:
    """As A1111 has it in `Lora hashes`: another title leaves it as it is."""
    adapter = read(tmp_path / "x.safetensors", SOME, {"modelspec.title": "one"})
    again = read(tmp_path / "y.safetensors", SOME, {"modelspec.title": "another"})
    content = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert adapter.digest == again.digest == hashlib.sha256(content[8 + length :]).hexdigest()[:12]


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    tags = {"1_a": {"red hat": 3, "1girl": 9}, "2_b": {"red hat": 8, "x": True}, "bad": 7}
    metadata = {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_tag_frequency": json.dumps(tags),
        "ss_output_name": "sdxl_lightning_4step_lora",
    }
    arrays = SOME | pair(kohya(ATTENTION[1]), ATTENTION[1], 5)
    adapter = read(tmp_path / "mine.safetensors", arrays, metadata)
    assert (adapter.name, adapter.source) == ("name", str(tmp_path / "mine.safetensors"))
    assert adapter.base_model == "sdxl_base_v1-0"
    assert adapter.trigger_words == ("red hat", "1girl", "x")
    assert adapter.distilled == "lightning"
    assert adapter.ranks == (2, 5)
    assert adapter.metadata == metadata

    adapter = read(tmp_path / "mine.safetensors", SOME, {"modelspec.trigger_phrase": "in the style of X, "})
    assert adapter.trigger_words == ("in the style of X",)
    plain = read(tmp_path / "mine.safetensors", SOME, {"ss_tag_frequency": "[" * 100_000})
    assert (plain.trigger_words, plain.base_model, plain.distilled) == ((), None, None)
    kept = read(tmp_path / "sdxl_lightning_8step_lora.safetensors", SOME, source="ByteDance/Collection")
    assert kept.distilled == "lightning"
    named = read(tmp_path / "pytorch_lora_weights.safetensors", SOME, source="latent-consistency/lcm-lora-sdxl")
    assert (named.distilled, named.source) == ("lcm", "latent-consistency/lcm-lora-sdxl")


def refusal(path: Path, arrays: Any = None, metadata: Any = None, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path, arrays, metadata, **options) if arrays is not None else read_adapter("x", path, SHAPES, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()  # one line
    return message.removeprefix(f"{path}: ")


FOREIGN: list[tuple[dict[str, tuple[int, ...]], str]] = [
    ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}, "Stable Diffusion 1 or 2"),
    (
        {
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768),
        },
        "a LoRA of Stable Diffusion 1, whose U-Net reads texts 768 wide, where this model's are 320 wide",
    ),
    ({"lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v.hada_w1_b": (4, 1024)}, "Stable Diffusion 2, whose"),
    ({"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 1280)}, "the SDXL refiner"),
    ({"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)}, "LoRA of SDXL, whose"),
    ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 3072)}, "a LoRA of Flux"),
    ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072)}, "a LoRA of Flux"),
    ({"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 1536)}, "a LoRA of a diffusion transformer"),
    ({"lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight": (4, 8)}, "a LoRA of a diffusion transformer"),
    ({"diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": (4, 8)}, "a LoRA of Stable Diffusion 3"),
    ({"diffusion_model.blocks.0.self_attn.q.lora_A.weight": (4, 8)}, "a LoRA of a diffusion transformer, as Wan"),
    ({"lora_controlnet": (), "input_blocks.1.0.in_layers.2.down": (4, 8)}, "not a LoRA but a Control-LoRA"),
    ({"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight": (4, 8)}, "a ControlNet-LLLite"),
    ({"image_proj.proj.weight": (4, 8), "ip_adapter.1.to_q_lora.down.weight": (4, 8)}, "an IP-Adapter"),
    ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "not a LoRA but a textual inversion embedding"),
    ({"encoder.down_blocks.0.resnets.0.conv1.weight": (4, 8)}, "not a LoRA but a VAE in diffusers names"),
    ({}, "not a LoRA but empty"),
]  # fmt: skip


@pytest.mark.parametrize(("shapes", "message"), FOREIGN)
def test_other_families_are_named(tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    arrays = {key: np.zeros(shape, np.float16) for key, shape in shapes.items()}
    told = refusal(tmp_path / "x.safetensors", arrays)
    assert message in told
    assert told == refusal(tmp_path / "x.safetensors", arrays, strict=False)


def test_damaged_files(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", SOME)
    content = path.read_bytes()
    for size, message in [(0, "empty"), (4, "truncated"), (100, "truncated"), (len(content) - 5, "truncated")]:
        path.write_bytes(content[:size])
        assert message in refusal(path)
    path.write_bytes(b"\x80\x02}." * 100)
    assert "a pickle, which can run code and which jaxl does not open" in refusal(path)
    assert "no such file" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("strict", [True, False])
def test_numbers_that_are_none(tmp_path: Path, value: float, strict: bool) -> None:
    arrays = {key: array.astype(np.float16) for key, array in SOME.items()}
    key = list(arrays)[1]
    arrays[key][3, 1] = value
    told = refusal(tmp_path / "x.safetensors", arrays, strict=strict)
    assert told == f"{key} holds NaN or infinity: the file is damaged, or its training was"


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    arrays = {key: RNG.integers(0, 9, array.shape, np.int8) for key, array in SOME.items()}
    assert "holds int8, not floating-point numbers" in refusal(tmp_path / "x.safetensors", arrays)


def test_no_layer_of_the_model(tmp_path: Path) -> None:
    arrays = {f"lora_unet_elsewhere_{i}.lora_down.weight": normal(2, 3) for i in range(5)}
    told = refusal(tmp_path / "x.safetensors", arrays)
    assert told.startswith(
        "none of its 5 tensors is for a layer of this model: lora_unet_elsewhere_0.lora_down.weight, "
    )
    assert told.endswith(" and 2 more; give a LoRA for SDXL")
    assert told == refusal(tmp_path / "x.safetensors", arrays, strict=False)


def test_some_layers_of_the_model(tmp_path: Path) -> None:
    """Of a model with more layers, such as one of SDXL for SSD-1B."""
    path = tmp_path / "x.safetensors"
    name = kohya(ATTENTION[0]).replace("transformer_blocks_0", "transformer_blocks_9")
    more = pair(name) | {"bundle_emb.x.clip_l_out": normal(1, 4), "something": normal(2)}
    told = refusal(path, SOME | more)
    assert told.startswith("4 of its 6 tensors are for no layer of this model: ")
    assert told.endswith(" and 1 more; pass `strict=False` to leave such tensors out")
    adapter = read(path, SOME | more, strict=False)
    assert set(adapter.left) == set(more)
    assert len(adapter.changes["unet"]) == 1


def test_a_layer_of_another_shape(tmp_path: Path) -> None:
    path, layer = tmp_path / "x.safetensors", ATTENTION[1]
    wrong = {f"{kohya(layer)}.lora_down.weight": normal(2, 7), f"{kohya(layer)}.lora_up.weight": normal(7, 2)}
    told = refusal(path, SOME | wrong)
    assert told.startswith(f"{kohya(layer)}.lora_up.weight has shape (7, 2), not ({layer.weight[0]}, 2); pass")
    assert set(read(path, SOME | wrong, strict=False).left) == set(wrong)
    assert "has shape" in refusal(path, wrong, strict=False)  # nothing is left
    big = {f"{kohya(layer)}.lora_down.weight": np.zeros((10_000, layer.weight[1]), np.float16)}
    big[f"{kohya(layer)}.lora_up.weight"] = np.zeros((layer.weight[0], 10_000), np.float16)
    assert "lora_down.weight has rank 10000, but 1024 is the most that is taken here" in refusal(path, SOME | big)


@pytest.mark.parametrize("strict", [True, False])
def test_a_layer_under_two_names(tmp_path: Path, strict: bool) -> None:
    path, layer = tmp_path / "x.safetensors", ATTENTION[0]
    told = refusal(path, SOME | pair(kohya_on_diffusers(layer)), strict=strict)
    assert kohya(layer) in told
    assert kohya_on_diffusers(layer) in told
    assert told.endswith(" are for one layer, of which one would be lost")
    twice = SOME | {f"{kohya(layer)}.lora_A.weight": normal(2, layer.weight[1])}
    assert f"{kohya(layer)}.lora_down.weight" in refusal(path, twice, strict=strict)


def test_an_embedding_of_another_width(tmp_path: Path) -> None:
    told = refusal(tmp_path / "x.safetensors", SOME | {"bundle_emb.word.clip_l": normal(2, 768)})
    assert told == "the embedding 'word' has clip_l (2, 768), but text_encoder is 128 wide"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a table"),
        ('{"unet.lora_alpha": "8"}', "PEFT's settings have no number as alpha but lora_alpha='8'"),
        ('{"unet.lora_alpha": Infinity}', "no number as alpha but lora_alpha='inf'"),
        ('{"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": null}}', "no number as alpha but to_q='None'"),
        ('{"unet.lora_alpha": 8, "unet.alpha_pattern": [1]}', "alpha_pattern is not a table"),
        ('{"unet.lora_alpha": 8, "unet.alpha_pattern": {".*.*x": 1}}', "'.*.*x', which jaxl does not read"),
        ('{"unet.lora_alpha": 8, "unet.alpha_pattern": {"(a|b": 1}}', "'(a|b', which jaxl does not read"),
        ('{"unet.lora_alpha": 8, "unet.alpha_pattern": {"((a+)+)+x": 1}}', "'((a+)+)+x', which jaxl does not read"),
    ],
)
def test_settings_of_peft_that_say_nothing(tmp_path: Path, settings: str, message: str) -> None:
    told = refusal(tmp_path / "x.safetensors", pair(dotted(ATTENTION[0])), {"lora_adapter_metadata": settings})
    assert message in told
