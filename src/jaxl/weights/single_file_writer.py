"""A model written as a single file in the original layout, whole or not at all: what `single_file` reads.

The names are the reader's, the other way. Before a byte is written the reader is shown the file's header, and has to
find in it the model that is to be written; so a model that no such file can hold is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxl.config import TextConfig, UNetConfig, VAEConfig, read_vae_config
from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.schedule import Flow, NoiseSchedule
from jaxl.errors import CheckpointError
from jaxl.weights.adapters.names import original_names
from jaxl.weights.entries import Entries, Entry, write_entries
from jaxl.weights.original_layout import Names, TensorShapes, clip_names, count, openclip_names, vae_names
from jaxl.weights.save import Tell, counting, unfinished
from jaxl.weights.single_file import PREFIXES, REFINER_PREFIXES, checkpoint_of
from jaxl.weights.store import Tensor

# what the reader takes to be as in SDXL, without any effect on pictures of a size that is asked for
UNTOLD = ("sample_size", "force_upcast", "eos_token_id")


def _noise(config: Mapping[str, Any]) -> NoiseSchedule:
    """Return what the U-Net was trained with; of EDM noise without the fields that mean nothing, of paths no shift."""
    noise = read_scheduler_config(config).noise
    if noise.flow is not None:
        return replace(noise, flow=Flow())
    return noise if noise.edm is None else NoiseSchedule(prediction_type=noise.prediction_type, edm=noise.edm)


CONFIGS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "unet": UNetConfig.from_json,
    "vae": read_vae_config,
    "text_encoder": TextConfig.from_json,
    "text_encoder_2": TextConfig.from_json,
    "scheduler": _noise,
}
# Stability's model spec (https://github.com/Stability-AI/ModelSpec)
SPEC_VELOCITY = {"v_prediction": "v"}


@dataclass(frozen=True)
class Planned(Tensor):
    """A tensor of a file that is not there yet, as the reader sees it."""

    made: Callable[[], np.ndarray] = field(kw_only=True)

    def read(self) -> np.ndarray:
        return self.made()


def save_single_file(
    file: Path,
    configs: Mapping[str, Mapping[str, Any]],
    networks: Mapping[str, Entries],
    merged_from: str = "",
    tell: Tell | None = None,
) -> None:
    """Write the networks' entries by component into one file, with marks and metadata of what they predict.

    `merged_from` is what the metadata say of the model's origin. `tell` is called with how many tensors are written,
    and how many are to be. Raises CheckpointError for a model that the original layout cannot express, and OutputError
    if there is something at `file` already, or if writing fails; nothing is left behind then.
    """
    entries, metadata = original_entries(file, configs, networks), _metadata(file, configs, merged_from)
    _check(file, configs, networks, entries, metadata)
    with unfinished(file) as folder:
        new = folder / file.name
        write_entries(new, entries, counting(tell, len(entries)), metadata)
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        new.rename(file)


def original_entries(
    file: Path, configs: Mapping[str, Mapping[str, Any]], networks: Mapping[str, Entries]
) -> dict[str, Entry]:
    """Return all of a file's entries by their original keys, marks included. Raises CheckpointError if one has none.

    Of a model with other sizes than SDXL's they are no file that its readers know.
    """
    entries = _marks(configs)
    prefixes = PREFIXES if "text_encoder" in networks else REFINER_PREFIXES
    for component, prefix in prefixes.items():
        try:
            original = _original(component, networks[component])
        except CheckpointError as error:
            raise refused(file, f"{component}: {error}") from None
        entries |= {prefix + key: entry for key, entry in original.items()}
    return entries


def _original(component: str, entries: Entries) -> Entries:
    """Return a network's entries by their original keys. Raises CheckpointError for one that has none."""
    shapes = {key: entry.shape for key, entry in entries.items()}
    names = {new: old for old, new in NAMES[component](shapes).items() if all(key in entries for key in new)}
    unknown = sorted(entries.keys() - {key for new in names for key in new})
    if unknown:
        raise CheckpointError(f"{unknown[0]} has no name in the original layout")
    return {old: _entry(old, [entries[key] for key in new]) for new, old in names.items()}


def _unet_names(shapes: TensorShapes) -> Names:
    modules = original_names(dict.fromkeys(key.rpartition(".")[0] for key in shapes))
    leaves = ((key, *key.rpartition(".")[::2]) for key in shapes)
    return {f"{modules[module]}.{leaf}": (key,) for key, module, leaf in leaves if module in modules}


NAMES: Mapping[str, Callable[[TensorShapes], Names]] = {
    "unet": _unet_names,
    "vae": lambda shapes: vae_names(*(count(shapes, f"encoder.down_blocks{each}") for each in ("", ".0.resnets"))),
    "text_encoder": lambda shapes: clip_names(count(shapes, "text_model.encoder.layers")),
    "text_encoder_2": lambda shapes: openclip_names(count(shapes, "text_model.encoder.layers")),
}


def _entry(key: str, parts: list[Entry]) -> Entry:
    """Return what stands under an original key, the way back of the reader's views."""
    first = parts[0]
    if len(parts) > 1:
        shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
        return Entry(first.dtype, shape, lambda: np.concatenate([part.read().astype(first.dtype) for part in parts]))
    if key == "text_projection":
        return Entry(first.dtype, first.shape[::-1], lambda: first.read().T)
    if ".attn_1." in key and len(first.shape) == 2:
        shape = (*first.shape, 1, 1)
        return Entry(first.dtype, shape, lambda: first.read().reshape(shape))
    return first


def _marks(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Entry]:
    """Return the tensors that say what the U-Net predicts and what noise it knows, as ComfyUI and A1111 read them."""
    noise = CONFIGS["scheduler"](configs["scheduler"])
    velocity = noise.prediction_type == "v_prediction"
    if noise.edm is not None and velocity:
        return {f"edm_vpred.{name}": _mark(getattr(noise.edm, name), ()) for name in ("sigma_max", "sigma_min")}
    if noise.edm is not None:
        vae = CONFIGS["vae"](configs["vae"])
        told = isinstance(vae, VAEConfig) and vae.latents_mean is not None
        return {f"edm_{of}": _mark(getattr(vae, f"latents_{of}"), (1, -1, 1, 1)) for of in ("mean", "std") if told}
    marks = {"v_pred": velocity, "ztsnr": velocity and noise.rescale_betas_zero_snr}
    return {name: _mark((), (0,)) for name, is_so in marks.items() if is_so}


def _mark(numbers: Any, shape: tuple[int, ...]) -> Entry:
    array = np.array(numbers, np.float32).reshape(shape)
    return Entry(array.dtype, array.shape, lambda: array)


def _metadata(file: Path, configs: Mapping[str, Mapping[str, Any]], merged_from: str) -> dict[str, str]:
    """Return what the model spec has of a file: architecture, title, size, prediction type and origin."""
    unet, vae, noise = (CONFIGS[name](configs[name]) for name in ("unet", "vae", "scheduler"))
    side = unet.sample_size * vae.factor
    facts = {
        "sai_model_spec": "1.0.0",
        "architecture": f"stable-diffusion-xl-v1-{'base' if 'text_encoder' in configs else 'refiner'}",
        "implementation": "sgm",
        "title": file.stem,
        "resolution": f"{side}x{side}",
        "prediction_type": SPEC_VELOCITY.get(noise.prediction_type, noise.prediction_type),
        "merged_from": merged_from,
    }
    return {f"modelspec.{name}": text for name, text in facts.items() if text}


def _check(
    file: Path,
    configs: Mapping[str, Mapping[str, Any]],
    networks: Mapping[str, Entries],
    entries: Entries,
    metadata: Mapping[str, str],
) -> None:
    """Raise CheckpointError if the reader would find another model in the file."""
    planned = {key: Planned(key, file, each.dtype, each.shape, 0, made=each.read) for key, each in entries.items()}
    try:
        found = checkpoint_of(file, planned, metadata)
    except CheckpointError as error:
        raise refused(file, str(error).removeprefix(f"{file}: ")) from None
    for component, read in CONFIGS.items():
        if component in configs:
            own, others = _facts(read(configs[component])), _facts(read(found.configs[component]))
            for name, value in own.items():
                if name not in UNTOLD and value != others.get(name):
                    raise refused(file, f"{component}: {name}={value}, where its readers take {others.get(name)}")
    for component, tensors in found.tensors.items():
        assert {key: t.shape for key, t in tensors.items()} == {k: e.shape for k, e in networks[component].items()}


def _facts(config: Any) -> dict[str, Any]:
    return {name: _rounded(value) for name, value in asdict(config).items()}


def _rounded(value: Any) -> Any:
    """Return a value with its numbers in float32, as a file's marks have them."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return float(np.float32(value)) if isinstance(value, float) else value


def refused(file: Path, why: str) -> CheckpointError:
    """Return the error for a model that the layout cannot express."""
    return CheckpointError(f"{file}: a single file cannot hold this model ({why}); write a folder instead")
