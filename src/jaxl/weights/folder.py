"""A checkpoint as a folder in diffusers' layout: `model_index.json` and a folder for each component."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.store import Tensor, read_json
from jaxl.weights.tensors import put, read_tensors, with_outer_name

LOGGER = logging.getLogger(__name__)

# the networks of an SDXL pipeline, and the classes that jaxl implements
CLASSES: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
OPTIONAL = ("text_encoder",)  # the refiner has none
TOKENIZERS: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# parts of a pipeline that do not change the picture
UNUSED = ("feature_extractor", "image_encoder", "safety_checker", "watermark")

# names of attention's parts in VAEs that early diffusers saved
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


IMAGE_ENCODER = "image_encoder"

# the networks that a user may name on their own, as errors call them, and their classes
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "unet": ("U-Net", CLASSES["unet"]),
    "vae": ("VAE", CLASSES["vae"]),
    "controlnet": ("ControlNet", ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter")),
    IMAGE_ENCODER: ("image encoder", ("CLIPVisionModelWithProjection",)),
}


@dataclass(frozen=True)
class Part:
    """A network on its own, opened but not read; the fields are as in `Checkpoint`.

    `scheduler` is the config that a U-Net's file asks for, and `predicts_by` where it does; None if it does not.
    """

    source: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    scheduler: Mapping[str, Any] | None = None
    predicts_by: str | None = None


def stem(component: str) -> str:
    """Return the name of a component's weight files, without variant and extension."""
    of_transformers = component.startswith("text_encoder") or component == IMAGE_ENCODER
    return "model" if of_transformers else "diffusion_pytorch_model"


def weight_file(component: str, variant: str | None) -> str:
    """Return the name of a component's weight file where it is not split."""
    return f"{stem(component)}{f'.{variant}' if variant else ''}.safetensors"


def index_file(component: str, variant: str | None) -> str:
    """Return the name of the index of a component's weights where they are split."""
    return f"{stem(component)}.safetensors.index{f'.{variant}' if variant else ''}.json"


def present(index: Mapping[str, Any], source: str) -> list[str]:
    """Return the networks that a `model_index.json` names. Raises CheckpointError unless jaxl runs such a pipeline."""
    kind = index.get("_class_name", "an unnamed pipeline")
    for component, wanted in CLASSES.items():
        found = _class_of(index, component)
        if found not in wanted and not (found is None and component in OPTIONAL):
            raise CheckpointError(
                f"{source}: {kind} is not SDXL: its {component} is {found or 'missing'}, not {wanted[0]}; "
                "jaxl runs SDXL and its relatives"
            )
    known = (*CLASSES, *TOKENIZERS.values(), "scheduler", *UNUSED)
    for component in index:
        if not component.startswith("_") and component not in known and _class_of(index, component):
            raise CheckpointError(f"{source}: {kind} has a {component}, which jaxl does not run")
    found = [component for component in CLASSES if _class_of(index, component)]
    for encoder, tokenizer in TOKENIZERS.items():
        if encoder in found and not _class_of(index, tokenizer):
            raise CheckpointError(f"{source}: {kind} has a {encoder}, but no {tokenizer}")
    return found


def shards(folder: Path, component: str, variant: str | None) -> list[str] | None:
    """Return the names of the files into which a component's weights are split; None without an index."""
    path = folder / index_file(component, variant)
    if not path.exists():
        return None
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path}: corrupt, it has no weight_map")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: {name!r} is not the name of a safetensors file beside it")
    return names


def read_folder(folder: Path, *, variant: str | None = None, source: str | None = None) -> Checkpoint:
    """Open a folder, reading only headers and JSON.

    `variant` selects weight files such as `model.fp16.safetensors`; where only some components have it, the others'
    plain ones are taken, with a warning in the log. Raises CheckpointError, in one line, if the folder is of another
    kind of model, lacks a file, or holds a damaged one.
    """
    source = source or str(folder)
    if not (folder / "model_index.json").exists():
        raise CheckpointError(
            f"{source}: no model_index.json; give a folder in diffusers' layout, or a .safetensors file"
        )
    index = read_json(folder / "model_index.json")
    components = present(index, source)
    return Checkpoint(
        source=source,
        configs={
            "model_index": index,
            "scheduler": read_json(folder / "scheduler" / "scheduler_config.json"),
            **{component: read_json(folder / component / "config.json") for component in components},
        },
        tensors={
            component: _tensors(folder / component, component, chosen, source)
            for component, chosen in _variants(folder, components, variant, source).items()
        },
        tokenizers={name: folder / name for name in TOKENIZERS.values() if _class_of(index, name)},
    )


def part_folder(folder: Path, component: str) -> Path:
    """Return the folder of a network's files: `folder` itself, or the component's where `folder` holds a pipeline."""
    return folder / component if (folder / "model_index.json").exists() else folder


def read_part(folder: Path, component: str, *, variant: str | None = None, source: str | None = None) -> Part:
    """Open the network that is one of PARTS in a folder, or that of the pipeline in it, reading only headers and JSON.

    Without the variant its plain weights are taken, with a warning in the log. Raises CheckpointError, in one line, if
    there is no such network, or one of a kind that jaxl does not run.
    """
    source, folder, (name, wanted) = source or str(folder), part_folder(folder, component), PARTS[component]
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{source}: no {name} there; give a folder with its config.json, a whole pipeline's, or a .safetensors file"
        )
    config = read_json(folder / "config.json")
    kind = class_of(config) or "a network without a class name"
    if kind not in wanted:
        are = "are" if len(wanted) > 1 else "is"
        raise CheckpointError(f"{source}: {kind} is not a {name} that jaxl runs, only {' and '.join(wanted)} {are}")
    chosen = _variant(folder, component, variant, source)
    return Part(source, config, _tensors(folder, component, chosen, source))


def class_of(config: Mapping[str, Any]) -> str | None:
    """Return the class of a network that its config names, as diffusers or as transformers does."""
    return config.get("_class_name") or ", ".join(config.get("architectures") or ()) or None


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def stored(folder: Path, component: str, variant: str | None) -> bool:
    """Return whether a component's folder has weights of a variant, whole or split."""
    return any((folder / name(component, variant)).exists() for name in (weight_file, index_file))


def _variants(folder: Path, components: list[str], variant: str | None, source: str) -> dict[str, str | None]:
    """Return the variant to read of each component: None for plain weights, if only other components have `variant`."""
    if not any(stored(folder / component, component, variant) for component in components):
        return dict.fromkeys(components, variant)
    return {component: _variant(folder / component, component, variant, source) for component in components}


def _variant(folder: Path, component: str, variant: str | None, source: str) -> str | None:
    """Return the variant, or None with a warning in the log where there are only plain weights."""
    if variant is None or stored(folder, component, variant) or not stored(folder, component, None):
        return variant
    LOGGER.warning("%s: no variant %r of %s; its plain weights are taken", source, variant, component)
    return None


def _tensors(folder: Path, component: str, variant: str | None, source: str) -> dict[str, Tensor]:
    """Return the tensors of the component in `folder`."""
    names = shards(folder, component, variant)
    if names is None:
        name = weight_file(component, variant)
        if not (folder / name).exists():
            raise CheckpointError(f"{source}: no {component}/{name}; {_remedy(folder, component, variant)}")
        return _renamed(component, read_tensors(folder / name))
    tensors: dict[str, Tensor] = {}
    for name in names:
        for key, tensor in read_tensors(folder / name).items():
            if key in tensors:
                raise CheckpointError(f"{source}: {component}: {key} is both in {tensors[key].file.name} and in {name}")
            tensors[key] = tensor
    return _renamed(component, tensors)


def _remedy(folder: Path, component: str, variant: str | None) -> str:
    """Return advice for an error about missing weights."""
    names = sorted(path.name for path in folder.glob(f"{stem(component)}*"))
    # the part between the name and the extension, without the number of a part: "" for plain weights, or "fp16"
    middles = [name.removesuffix(".safetensors").partition(".")[2] for name in names if name.endswith(".safetensors")]
    others = sorted({middle.partition("-")[0] for middle in middles})
    if (variant or "") in others:
        return f"its parts are there, but not {index_file(component, variant)}"
    if others:
        return " or ".join(f"pass `variant={other!r}`" if other else "leave `variant` out" for other in others)
    if any(name.endswith((".bin", ".ckpt", ".pt", ".msgpack")) for name in names):
        return "jaxl does not open pickles, which can run code: convert the weights to safetensors"
    if variant:
        return f"the model may have no variant {variant!r}: leave `variant` out"
    return "the model may have only another variant, such as `variant='fp16'`, or no safetensors"


def _renamed(component: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with keys as current published checkpoints have them."""
    if component == "vae":
        renamed: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            put(renamed, _current_attention(key), tensor)
        return renamed
    return with_outer_name(tensors) if component.startswith("text_encoder") else tensors


def _current_attention(key: str) -> str:
    if ".attentions." in key:
        for old, new in OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key
