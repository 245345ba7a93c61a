"""IP-Adapters, read from the files of https://huggingface.co/h94/IP-Adapter and their kin, with their image encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxl.config import IPAdapterConfig, ResamplerConfig, UNetConfig, VisionConfig
from jaxl.errors import CheckpointError
from jaxl.weights import kinds
from jaxl.weights.adapters.source import open_adapter
from jaxl.weights.folder import IMAGE_ENCODER, Part
from jaxl.weights.original_layout import TensorShapes, count
from jaxl.weights.source import local_path, open_image_encoder
from jaxl.weights.store import Tensor, read_json
from jaxl.weights.tensors import read_tensors

PROJECTION, ATTENTION = "image_proj.", "ip_adapter."
HEAD = 64  # the width of a resampler's heads, which no shape tells
# where the encoder is beside a file, as it was published
PLACES = ("image_encoder", "../models/image_encoder", "../image_encoder")
OF_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+)/(.+\.safetensors)")
BUFFER = "vision_model.embeddings.position_ids"  # of older versions of transformers: 0, 1, 2, ...


@dataclass(frozen=True)
class OpenedIPAdapter:
    """An IP-Adapter, opened but not read: its config, and its tensors by part and by the key of a parameter."""

    source: str
    encoder_source: str
    config: IPAdapterConfig
    tensors: Mapping[str, Mapping[str, Tensor]]


def open_ip_adapter(
    source: str | os.PathLike[str],
    unet: UNetConfig,
    *,
    image_encoder: str | os.PathLike[str] | None = None,
    weight_name: str | None = None,
    **hub: Any,
) -> OpenedIPAdapter:
    """Open an IP-Adapter for this U-Net, and its image encoder, reading only headers and JSON.

    `source` is a file, or a folder or a hub's id with `weight_name`, which may follow the id: owner/name/file. The
    encoder is a folder or a hub's id; by default it is looked for beside the file, where it was published. Raises
    CheckpointError, in one line.
    """
    name = os.fspath(source)
    if weight_name is None and (of_hub := OF_HUB.fullmatch(name)) and not os.path.exists(name):
        name, weight_name = of_hub.groups()
    if "faceid" in f"{name} {weight_name}".lower():
        reason = "it reads faces by InsightFace's models, which are licensed for research alone; give another one"
        raise CheckpointError(f"{name}: an IP-Adapter FaceID, which jaxl does not run: {reason}")
    file = open_adapter(name, weight_name=weight_name, **hub)
    repository = None if local_path(name) else name
    try:
        return _open(file, unet, image_encoder, repository, hub)
    except CheckpointError as error:
        if repository is None:
            raise
        raise CheckpointError(f"{repository}: {str(error).replace(f'{file.parent}/', '')}") from error


def _open(
    file: Path,
    unet: UNetConfig,
    image_encoder: str | os.PathLike[str] | None,
    repository: str | None,
    hub: Mapping[str, Any],
) -> OpenedIPAdapter:
    """Do what `open_ip_adapter` does with a file, which may be one of a hub's repository."""
    tensors = dict(read_tensors(file))
    projection = _below(tensors, PROJECTION)
    if not projection and not _below(tensors, ATTENTION):
        raise CheckpointError(f"{file}: not an IP-Adapter but {kinds.kind(tensors)}")
    shapes = {key: tensor.shape for key, tensor in projection.items()}
    attention = _attention(file, _below(tensors, ATTENTION), unet)
    hidden, width = _reads(file, shapes)
    if image_encoder is None:
        part = _encoder_beside(file, hidden, width, repository, hub)
    else:
        part = open_image_encoder(image_encoder, **hub)
    encoder = VisionConfig.from_json(part.config, f"{part.source}: config.json")
    if (encoder.width if hidden else encoder.projection_dim) != width:
        raise CheckpointError(f"{part.source}: not the encoder of {file.name}, which needs {_wanted(hidden, width)}")
    config = _config(shapes, encoder)
    if config.token_width != unet.cross_attention_dim:
        theirs, ours = config.token_width, unet.cross_attention_dim
        raise CheckpointError(f"{file}: made for another model: its tokens are {theirs} wide, not {ours}")
    own = {key: tensor for key, tensor in part.tensors.items() if key != BUFFER}
    parts = {IMAGE_ENCODER: own, PROJECTION.rstrip("."): projection, "unet": attention}
    return OpenedIPAdapter(str(file), part.source, config, parts)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def _attention(file: Path, tensors: Mapping[str, Tensor], unet: UNetConfig) -> dict[str, Tensor]:
    """Return the tensors of cross-attention by the key of the U-Net's parameter that they stand beside.

    Files count the layers of attention, self and cross, on the way down, then up, then in the middle.
    """
    layers = [
        f"{block}.attentions.{i}.transformer_blocks.{j}.attn2"
        for block, own in sorted(unet.depths.items(), key=lambda each: each[0] == "mid_block")
        for i, depth in enumerate(own)
        for j in range(max(depth, 0))
    ]
    keys = {
        f"{2 * number + 1}.{of}_ip.weight": f"{layer}.{of}.weight"
        for number, layer in enumerate(layers)
        for of in ("to_k", "to_v")
    }
    if set(tensors) != set(keys):
        has = len({key.partition(".")[0] for key in tensors})
        raise CheckpointError(
            f"{file}: made for another model: it has {has} layers of cross-attention, and this U-Net {len(layers)}"
        )
    return {keys[key]: tensor for key, tensor in tensors.items()}


def _reads(file: Path, shapes: TensorShapes) -> tuple[bool, int]:
    """Return whether the projection reads the encoder's hidden states, rather than its embedding, and how wide."""
    if len(shapes.get("latents", ())) == 3 and len(shapes.get("proj_in.weight", ())) == 2:
        return True, shapes["proj_in.weight"][1]
    if len(shapes.get("proj.weight", ())) == 2 and len(shapes.get("norm.weight", ())) == 1:
        return False, shapes["proj.weight"][1]
    what = "an IP-Adapter of a kind that jaxl does not run; it runs the plain ones, Plus and Plus Face"
    raise CheckpointError(f"{file}: {what}")


def _config(shapes: TensorShapes, encoder: VisionConfig) -> IPAdapterConfig:
    if "latents" not in shapes:
        width = shapes["norm.weight"][0]
        return IPAdapterConfig(encoder, shapes["proj.weight"][0] // width, width, None)
    _, tokens, width = shapes["latents"]
    mlp_width = shapes.get("layers.0.1.1.weight", (0,))[0]
    resampler = ResamplerConfig(width, count(shapes, "layers"), max(width // HEAD, 1), mlp_width)
    return IPAdapterConfig(encoder, tokens, shapes.get("proj_out.weight", (0,))[0], resampler)


def _encoder_beside(file: Path, hidden: bool, width: int, repository: str | None, hub: Mapping[str, Any]) -> Part:
    """Return the encoder that lies beside a file and has what it reads. Raises CheckpointError if none does."""
    field = "hidden_size" if hidden else "projection_dim"
    for place in PLACES:
        folder = Path(os.path.normpath(file.parent / place))
        if repository is not None:
            folder = _fetched(repository, file, folder, ["config.json"], hub)
        config = folder / "config.json"
        if config.exists() and read_json(config).get(field) == width:
            if repository is not None:
                _fetched(repository, file, folder, ["config.json", "model.safetensors"], hub)
            return open_image_encoder(folder)
    raise CheckpointError(
        f"{file}: no image encoder lies beside it; give as `image_encoder` the folder of {_wanted(hidden, width)}"
    )


def _fetched(repository: str, file: Path, folder: Path, names: list[str], hub: Mapping[str, Any]) -> Path:
    """Fetch files of a repository's folder, if it has them, into the commit that a file of it is from."""
    from jaxl.weights import hub as models  # here, because huggingface_hub takes a while to import

    root = next(parent for parent in file.parents if parent.parent.name == "snapshots")
    if folder.is_relative_to(root):
        place = folder.relative_to(root)
        own = {name: hub[name] for name in ("token", "cache_dir", "local_files_only") if name in hub}
        models.download_files(repository, [(place / name).as_posix() for name in names], revision=root.name, **own)
    return folder


def _wanted(hidden: bool, width: int) -> str:
    """Name the encoder that a projection reads."""
    known = {(True, 1280): "OpenCLIP ViT-H", (False, 1024): "OpenCLIP ViT-H", (False, 1280): "OpenCLIP ViT-bigG"}
    model = known.get((hidden, width))
    what = f"a CLIPVisionModelWithProjection whose {'hidden states are' if hidden else 'embedding is'} {width} wide"
    return f"{what} ({model}; models/image_encoder or sdxl_models/image_encoder of h94/IP-Adapter)" if model else what
