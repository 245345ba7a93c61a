"""A checkpoint as a folder in diffusers' layout: `model_index.json` and a folder for each component."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.store import Tensor, read_header, read_json

# the networks of an SDXL pipeline, and the classes that jaxl implements
CLASSES: Mapping[str, str] = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}
OPTIONAL = ("text_encoder",)  # the refiner has none
# parts of a pipeline that have no say in the picture a prompt makes
UNUSED = ("feature_extractor", "image_encoder", "safety_checker", "watermark", "scheduler", "tokenizer", "tokenizer_2")

# what VAEs saved by early diffusers call the parts of their attention
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def stem(component: str) -> str:
    """The name of a component's weight files, without variant and extension."""
    return "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"


def weight_file(component: str, variant: str | None) -> str:
    """The file of a component whose weights are not split."""
    return f"{stem(component)}{f'.{variant}' if variant else ''}.safetensors"


def index_file(component: str, variant: str | None) -> str:
    """The list of files of a component whose weights are split."""
    return f"{stem(component)}.safetensors.index{f'.{variant}' if variant else ''}.json"


def present(index: Mapping[str, Any], source: str) -> list[str]:
    """The networks that a `model_index.json` names; CheckpointError unless it is a pipeline that jaxl runs."""
    kind = index.get("_class_name", "an unnamed pipeline")
    for component, wanted in CLASSES.items():
        found = _class_of(index, component)
        if found != wanted and not (found is None and component in OPTIONAL):
            raise CheckpointError(
                f"{source}: {kind} is not SDXL: its {component} is {found or 'missing'}, not {wanted}; "
                "jaxl runs SDXL and its relatives"
            )
    for component in index:
        if not component.startswith("_") and component not in (*CLASSES, *UNUSED) and _class_of(index, component):
            raise CheckpointError(f"{source}: {kind} has a {component}, which jaxl does not run")
    return [component for component in CLASSES if _class_of(index, component)]


def shards(folder: Path, component: str, variant: str | None) -> list[str] | None:
    """The names of the files that a component's weights are split into; None where there is no index of them."""
    path = folder / component / index_file(component, variant)
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
    """Open a folder; nothing but headers and JSON is read.

    `variant` selects weight files such as `model.fp16.safetensors`. Raises CheckpointError, in one line, if the
    folder is of another kind of model, lacks a file, or holds a damaged one.
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
        tensors={component: _tensors(folder, component, variant, source) for component in components},
        tokenizers={name: folder / name for name in ("tokenizer", "tokenizer_2") if _class_of(index, name)},
    )


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _tensors(folder: Path, component: str, variant: str | None, source: str) -> dict[str, Tensor]:
    names = shards(folder, component, variant)
    if names is None:
        name = weight_file(component, variant)
        if not (folder / component / name).exists():
            raise CheckpointError(f"{source}: no {component}/{name}{_instead(folder / component)}")
        return _renamed(component, read_header(folder / component / name))
    tensors: dict[str, Tensor] = {}
    for name in names:
        for key, tensor in read_header(folder / component / name).items():
            if key in tensors:
                raise CheckpointError(f"{source}: {component}: {key} is both in {tensors[key].file.name} and in {name}")
            tensors[key] = tensor
    return _renamed(component, tensors)


def _instead(folder: Path) -> str:
    """What weights are there in place of those asked for, as the end of an error's line."""
    found = sorted(path.name for path in folder.glob("*")) if folder.is_dir() else []
    other = [name.removesuffix(".safetensors").partition(".")[2] for name in found if name.endswith(".safetensors")]
    variants = sorted({name.split("-")[0] for name in other if name})
    if variants:
        return f"; the folder has the variant {' and '.join(variants)}: pass variant={variants[0]!r}"
    if other:
        return "; the folder has the plain weights: leave variant out"
    if any(name.endswith((".bin", ".ckpt", ".pt", ".msgpack")) for name in found):
        return "; jaxl does not open pickles, which can run code: convert the weights to safetensors"
    return "; if the model has only another variant, such as fp16, pass it as variant="


def _renamed(component: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keys as current published checkpoints have them."""
    if component == "vae":
        return {_current_attention(key): tensor for key, tensor in tensors.items()}
    if component.startswith("text_encoder") and not any(key.startswith("text_model.") for key in tensors):
        # transformers 5 saves the encoder without its outer name
        return {key if key.startswith("text_projection.") else f"text_model.{key}": t for key, t in tensors.items()}
    return tensors


def _current_attention(key: str) -> str:
    if ".attentions." in key:
        for old, new in OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key
