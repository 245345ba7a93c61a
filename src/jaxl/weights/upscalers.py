"""Upscaler networks in files, told apart by their keys and shapes alone.

Files are `.safetensors`, or `.pth` and their like as `weights.torch_files` reads them. Their parameters have names of
several kinds (https://github.com/chaiNNer-org/spandrel knows most), and get those of `nn.upscalers` here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxl.errors import CheckpointError
from jaxl.nn.upscalers.compact import CompactConfig
from jaxl.nn.upscalers.dat import DATConfig
from jaxl.nn.upscalers.rrdbnet import RRDBNetConfig
from jaxl.weights.kinds import kind
from jaxl.weights.original_layout import count, shape
from jaxl.weights.store import Tensor
from jaxl.weights.tensors import read_tensors
from jaxl.weights.torch_files import is_torch_file, read_torch_file

UpscalerConfig = RRDBNetConfig | CompactConfig | DATConfig
Shapes = Mapping[str, tuple[int, ...]]

# what stands before all names of a file: of the dictionary that holds the weights, the better ones first, and of the
# programs that trained them
DICTIONARIES = ("params_ema.", "params-ema.", "params.", "model_state_dict.", "state_dict.")
OUTER = ("module.", "netG.", "generator.")
COLOURS = 3

# Names of RRDBNet: those of ESRGAN's first code, and of its second. Numbers of the first are reckoned below.
RENAMED = (
    (r"model\.0\.", "conv_first."),
    (r"(model\.1\.sub|RRDB_trunk|body)\.(\d+)\.(?:RDB|rdb)(\d)\.conv(\d)(\.0)?\.", r"body.\2.rdb\3.conv\4."),
    (r"(model\.1\.sub\.\d+|trunk_conv)\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
)
NUMBERED = re.compile(r"model\.(\d+)\.(weight|bias)")

# what a DAT file has beside its parameters: places and masks of windows, which follow from their size
BUFFERS = re.compile(r".*\.(rpe_biases|relative_position_index|attn_mask_[01]|num_batches_tracked)")

# networks that are not here, by a key that some file of each has
OTHERS: Mapping[str, str] = {
    r"am_list\.|de_net\.": "MM-RealSR",
    r"model\.1\.sub\.\d+\.RDB\d\.conv1x1\.": "ESRGAN+",
    r"layers\.0\.residual_group\.blocks\.0\.conv_block\.cab": "HAT",
    r"layers\.0\.residual_group\.(td|layers\.)": "ATD",
    r"patch_embed\.proj\.": "Swin2SR",
    r"layers\.0\.residual_group\.hf_blocks\.": "CRAFT",
    r"layers\.0\.residual_group\.": "SwinIR or a relative of it",
    r"layers\.0\.swin1\.": "DRCT",
    r"layers\.0\.blocks\.0\.gamma": "RGT",
    r"layers\.0\.blocks\.0\.attn\.window_attn\.": "GRL",
    r"residual_layer\.0\.": "OmniSR",
    r"block_1\.c1_r\.": "SPAN",
    r"feats\.1\.(lk|refine)\b": "PLKSR",
    r"feats\.0\.safm\.": "SAFMN",
    r"gblocks\.": "MoSR",
    r"m_head\.": "SCUNet or a relative of it",
    r"unet1\.conv1\.": "Real-CUGAN",
    r"(head\.\d+\.weight|body\.0\.body\.0\.body\.0\.)": "RCAN or EDSR",
    r"toRGB\.|stylegan_decoder\.": "GFPGAN, which restores faces",
    r"quantize\.embedding\.": "CodeFormer or RestoreFormer, which restore faces",
    r"middle_blks\.": "NAFNet",
}


@dataclass(frozen=True)
class OpenedUpscaler:
    """A network that enlarges pictures, opened but not read: its config, and its tensors by their parameters' keys."""

    source: str
    config: UpscalerConfig
    tensors: Mapping[str, Tensor]


def open_upscaler(file: Path) -> OpenedUpscaler:
    """Open the file of an upscaler, reading only what says where its tensors are.

    Raises CheckpointError for what is missing or damaged, and for another network, which it names if it is known.
    """
    found = _unwrapped(read_torch_file(file) if is_torch_file(file) else read_tensors(file))
    name = next((name for sign, name in OTHERS.items() if _has(found, sign)), None)
    read = None if name else next((read for sign, read in READERS.items() if _has(found, sign)), None)
    if read is None:
        what = f"the upscaler {name}" if name else kind(found)
        raise CheckpointError(f"{file}: {what}; jaxl runs the upscalers ESRGAN, Real-ESRGAN, its compact one, and DAT")
    try:
        return OpenedUpscaler(str(file), *read(found))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _read_rrdbnet(found: Mapping[str, Tensor]) -> tuple[RRDBNetConfig, dict[str, Tensor]]:
    # model.3, model.6 ... enlarge; two before the last is the convolution of the large picture
    last = max((int(own[1]) for key in found if (own := NUMBERED.fullmatch(key))), default=0)
    names = {last - 2: "conv_hr", last: "conv_last", **{i: f"conv_up{i // 3}" for i in range(3, last - 2, 3)}}
    tensors: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if (own := NUMBERED.fullmatch(key)) and int(own[1]) in names:
            key = f"{names[int(own[1])]}.{own[2]}"
        for old, new in RENAMED:
            key = re.sub(rf"^{old}", new, key)
        tensors[key] = tensor
    if len(tensors) != len(found):
        raise CheckpointError("an ESRGAN in two ways of naming at once")
    shapes = _shapes(tensors)
    width, colours = shape(shapes, "conv_first.weight")[:2]
    fold = math.isqrt(colours // COLOURS)
    _check_colours(colours // fold**2 if fold else colours, shape(shapes, "conv_last.weight")[0])
    doublings = sum(f"conv_up{i}.weight" in shapes for i in range(1, 10))
    growth = shape(shapes, "body.0.rdb1.conv1.weight")[0]
    if fold not in (1, 2, 4) or 2**doublings < fold:
        raise CheckpointError(f"an ESRGAN that folds pictures by {fold}, and enlarges by {2**doublings}")
    return RRDBNetConfig(width, growth, count(shapes, "body"), doublings, fold), tensors


def _read_compact(found: Mapping[str, Tensor]) -> tuple[CompactConfig, dict[str, Tensor]]:
    shapes = _shapes(found)
    last = count(shapes, "body") - 1
    width, colours = shape(shapes, "body.0.weight")[:2]
    scale = math.isqrt(shape(shapes, f"body.{last}.weight")[0] // COLOURS)
    _check_colours(colours, shape(shapes, f"body.{last}.weight")[0] // scale**2 if scale else 0)
    return CompactConfig(width, (last - 2) // 2, scale), dict(found)


def _read_dat(found: Mapping[str, Tensor]) -> tuple[DATConfig, dict[str, Tensor]]:
    tensors = {key: tensor for key, tensor in found.items() if not BUFFERS.fullmatch(key)}
    shapes = _shapes(tensors)
    width, colours = shape(shapes, "conv_first.weight")[:2]
    depths = tuple(count(shapes, f"layers.{i}.blocks") for i in range(count(shapes, "layers")))
    heads = "layers.{}.blocks.0.attn.attns.0.pos.pos3.2.weight"
    features = shape(shapes, "conv_last.weight")[1] if "conv_last.weight" in shapes else 0
    made = [shape(shapes, key)[0] for key in shapes if re.fullmatch(r"upsample\.\d+\.weight", key)]
    scale = math.prod(math.isqrt(outputs // (features or COLOURS)) for outputs in made)
    _check_colours(colours, shape(shapes, "conv_last.weight")[0] if features else COLOURS)
    return DATConfig(
        width=width,
        depths=depths,
        heads=tuple(2 * shape(shapes, heads.format(i), 2)[0] for i in range(len(depths))),
        hidden=shape(shapes, "layers.0.blocks.0.ffn.fc1.weight", 2)[0],
        split=_window(_shapes(found)),
        scale=scale,
        features=features,
        bottlenecks="conv_after_body.0.weight" in shapes,
        bias="layers.0.blocks.0.attn.qkv.bias" in shapes,
    ), tensors


def _window(shapes: Shapes) -> tuple[int, int]:
    """Return the sides of DAT's windows, the shorter one first: the numbers of places and of distances in them."""
    place = "layers.0.blocks.0.attn.attns.0"
    places = shape(shapes, f"{place}.relative_position_index", 2)[0]
    distances = shape(shapes, f"{place}.rpe_biases", 2)[0]
    total = (4 * places + 1 - distances) // 2
    root = math.isqrt(max(total**2 - 4 * places, 0))
    short, long = (total - root) // 2, (total + root) // 2
    if short < 1 or short * long != places or (2 * short - 1) * (2 * long - 1) != distances:
        raise CheckpointError(f"a DAT whose windows have {places} places and {distances} distances")
    return short, long


Read = Callable[[Mapping[str, Tensor]], tuple[UpscalerConfig, dict[str, Tensor]]]
# a key that each network's files have
READERS: Mapping[str, Read] = {
    r"layers\.0\.blocks\.0\.attn\.dwconv\.": _read_dat,
    r"(model\.1\.sub|RRDB_trunk|body)\.0\.(RDB|rdb)1\.": _read_rrdbnet,
    r"body\.0\.weight": _read_compact,
}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name in DICTIONARIES:
        if inner := {key.removeprefix(name): own for key, own in tensors.items() if key.startswith(name)}:
            tensors = inner
            break
    for name in OUTER:
        if tensors and all(key.startswith(name) for key in tensors):
            tensors = {key.removeprefix(name): own for key, own in tensors.items()}
    return dict(tensors)


def _check_colours(inputs: int, outputs: int) -> None:
    if (inputs, outputs) != (COLOURS, COLOURS):
        raise CheckpointError(f"an upscaler from {inputs} channels to {outputs}; jaxl runs those of colours, 3")


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _has(keys: Iterable[str], sign: str) -> bool:
    return any(re.match(sign, key) for key in keys)
