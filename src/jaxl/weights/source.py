"""The sources that a user may name for a model or a part: the embedded model, a folder, a single file, or a hub's."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxl.config import TextConfig, TinyVAEConfig, UNetConfig, read_vae_config
from jaxl.errors import CheckpointError
from jaxl.presets import SDXL_BASE
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.controls import COMPONENT as CONTROLNET
from jaxl.weights.controls import OpenedControl, read_control
from jaxl.weights.folder import IMAGE_ENCODER, Part, read_folder, read_part
from jaxl.weights.single_file import read_single_file, read_unet_file, read_vae_file
from jaxl.weights.store import Tensor

EMBEDDED = {"tiny": Path(__file__).parents[1] / "models" / "tiny"}
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def open_checkpoint(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Open the model that `model` names, without reading tensors; a hub's model is downloaded first.

    Raises CheckpointError, in one line, if there is nothing of that name or it is not an SDXL checkpoint.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path, source = _find(os.fspath(model), "download", variant=variant, **hub)
    return read_folder(path, variant=variant, source=source) if path.is_dir() else read_single_file(path)


def open_vae(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Part:
    """Open the VAE that `name` means, without reading tensors: one on its own, or that of a whole model.

    It may be an `AutoencoderKL` or an `AutoencoderTiny`. Names are as in `open_checkpoint`; a single file is in the
    original layout. Raises CheckpointError, in one line.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path, source = _find(os.fspath(name), "download_part", component="vae", variant=variant, **hub)
    return read_part(path, "vae", variant=variant, source=source) if path.is_dir() else read_vae_file(path)


def open_unet(
    name: str | os.PathLike[str],
    checkpoint: Checkpoint,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Part:
    """Open the U-Net that `name` means, to replace the checkpoint's, without reading tensors.

    Names are as in `open_checkpoint`; a single file holds a U-Net alone or with more, in the original layout or in
    diffusers' names. Raises CheckpointError, in one line.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path, source = _find(os.fspath(name), "download_part", component="unet", variant=variant, **hub)
    if path.is_dir():
        return read_part(path, "unet", variant=variant, source=source)
    configs = checkpoint.configs
    pooled_dim = TextConfig.from_json(configs["text_encoder_2"], "text_encoder_2/config.json").projection_dim or 0
    return read_unet_file(path, configs["unet"], pooled_dim, time_ids=6 if "text_encoder" in configs else 5)


def open_control(
    name: str | os.PathLike[str],
    unet: UNetConfig,
    base: Mapping[str, Tensor],
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> OpenedControl:
    """Open the ControlNet, or its kin, that `name` means, for this U-Net, without reading tensors.

    Names are as in `open_checkpoint`; a single file is in diffusers' names or in the original ones. `base` are the
    U-Net's own tensors, for a Control-LoRA. Raises CheckpointError, in one line.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path, source = _find(os.fspath(name), "download_part", component=CONTROLNET, variant=variant, **hub)
    return read_control(path, source, unet, base, variant)


def open_image_encoder(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Part:
    """Open the image encoder in the folder or in the hub's repository that `name` means, without reading tensors.

    Raises CheckpointError, in one line.
    """
    hub = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    path, source = _find(os.fspath(name), "download_part", component=IMAGE_ENCODER, variant=variant, **hub)
    if not path.is_dir():
        raise CheckpointError(f"{name}: give the folder of the image encoder, with its config.json and its weights")
    return read_part(path, IMAGE_ENCODER, variant=variant, source=source)


def with_unet(checkpoint: Checkpoint, unet: Part) -> Checkpoint:
    """Return the checkpoint with another U-Net, and with the scheduler that this one asks for."""
    return dataclasses.replace(
        checkpoint,
        configs={
            **checkpoint.configs,
            "unet": unet.config,
            "scheduler": unet.scheduler or checkpoint.configs["scheduler"],
        },
        tensors={**checkpoint.tensors, "unet": unet.tensors},
        sources={**checkpoint.sources, "unet": unet.source},
        predicts_by=unet.predicts_by or checkpoint.predicts_by,
    )


def with_vae(checkpoint: Checkpoint, vae: Part, component: str = "vae") -> Checkpoint:
    """Return the checkpoint with another VAE, or with a small one as its component `preview`.

    A checkpoint without a VAE is taken to have SDXL's latents. Raises CheckpointError if the configs show that the
    VAE's latents are not the checkpoint's, or if a preview is not small.
    """
    own = read_vae_config(checkpoint.configs.get("vae", SDXL_BASE["vae"]))
    other = read_vae_config(vae.config, f"{vae.source}: config.json")
    small = isinstance(other, TinyVAEConfig)
    if component == "preview" and not small:
        raise CheckpointError(f"{vae.source}: an AutoencoderKL is too slow for previews; give an AutoencoderTiny")
    # a small VAE's latents are those of the U-Net itself, so there is no scale to compare
    scale = () if small or isinstance(own, TinyVAEConfig) else ("scaling_factor", "latents_mean", "latents_std")
    for field in ("latent_channels", "factor", *scale):
        ours, theirs = getattr(own, field), getattr(other, field)
        if ours != theirs:
            raise CheckpointError(
                f"{vae.source}: its latents are not those of {checkpoint.source}: {field}={theirs}, not {ours}"
            )
    index = checkpoint.configs["model_index"]
    if component == "vae":
        index = {**index, "vae": ["diffusers", vae.config.get("_class_name", "AutoencoderKL")]}
    return dataclasses.replace(
        checkpoint,
        configs={**checkpoint.configs, component: vae.config, "model_index": index},
        tensors={**checkpoint.tensors, component: vae.tensors},
        sources={**checkpoint.sources, component: vae.source},
    )


def own_loras(source: str) -> list[Path]:
    """Return the folders of LoRAs that come with a model: the embedded one has such a folder."""
    return [EMBEDDED[source] / "loras"] if source in EMBEDDED else []


def own_controlnets(source: str) -> dict[str, Path]:
    """Return the folders of ControlNets that come with a model, by their names: the embedded one has some."""
    folders = EMBEDDED[source].glob("controlnets/*") if source in EMBEDDED else ()
    return {folder.name: folder for folder in sorted(folders)}


def _find(name: str, download: str, **hub: Any) -> tuple[Path, str | None]:
    """Return the folder or file that a name means, and the name for errors where that is not its path.

    `download` is the function of `weights.hub` that fetches a hub's model.
    """
    if name in EMBEDDED:
        return EMBEDDED[name], name
    path = local_path(name, EMBEDDED)
    if path is not None:
        return path, None
    from jaxl.weights import hub as models  # here, because huggingface_hub takes a while to import

    return getattr(models, download)(name, **hub), name


def local_path(name: str, others: Iterable[str] = ()) -> Path | None:
    """Return the folder or the .safetensors file of that name, or None where it can only be a hub's model.

    `others` are further names that may be given. Raises CheckpointError for a pickle, another file, and a name that can
    be neither.
    """
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if it knows no such user
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise CheckpointError(f"{name}: jaxl does not open pickles, which can run code; convert it to safetensors")
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise CheckpointError(f"{name}: not a .safetensors file")
        return path
    local = name.startswith((".", "/", "~", "\\")) or path.suffix.lower() == ".safetensors"
    if local or not HUB_ID.fullmatch(name):
        known = ["a hub id (owner/name)", *map(repr, others)]
        ways = ", ".join(["give one", *known[:-1], f"or {known[-1]}"])
        raise CheckpointError(f"{name}: no such file or folder; {ways}")
    return None
