"""A checkpoint written as a folder in diffusers' layout, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxl.errors import OutputError
from jaxl.weights.folder import weight_file
from jaxl.weights.layout import flatten, rearranged, to_torch
from jaxl.weights.store import write_safetensors
from jaxl.weights.winograd import without_winograd


def save_checkpoint(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, Mapping[str, Any]],
    tokenizers: Mapping[str, Callable[[Path], None]],
) -> None:
    """Write configs, parameters (in their own dtype, as checkpoints have them) and tokenizers.

    One tensor is on the host at a time. Everything is written in or near `folder` first and then moved there. Raises
    OutputError if `folder` exists and is not empty, or if writing fails; nothing is left behind then.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already; choose another folder, or empty it")
        place = folder.absolute()
        near = next(path for path in (place, *place.parents) if path.exists())
        unfinished = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=near))
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        _write(unfinished, configs, params, tokenizers)
        if near == place:  # it may be a disk's root or a shell's folder, so it is filled rather than replaced
            for part in sorted(unfinished.iterdir(), key=Path.is_file):  # the index last
                part.rename(place / part.name)
        else:
            unfinished.chmod(0o755)
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(place)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(
    folder: Path,
    configs: Mapping[str, Mapping[str, Any]],
    params: Mapping[str, Mapping[str, Any]],
    tokenizers: Mapping[str, Callable[[Path], None]],
) -> None:
    _write_json(folder / "model_index.json", configs["model_index"])
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", configs["scheduler"])
    for component, tree in params.items():
        (folder / component).mkdir()
        _write_json(folder / component / "config.json", configs[component])
        leaves = flatten(without_winograd(tree))
        axes = {key: to_torch(key, leaf.shape) for key, leaf in leaves.items()}
        entries = {
            key: (np.dtype(leaf.dtype), tuple(leaf.shape[axis] for axis in axes[key])) for key, leaf in leaves.items()
        }

        def read(key: str, leaves: Mapping[str, Any] = leaves, axes: Mapping[str, Any] = axes) -> np.ndarray:
            # a copy, because jax would keep in the array itself what it gathers from devices for NumPy
            return rearranged(np.asarray(jnp.copy(leaves[key])), axes[key], leaves[key].dtype)

        write_safetensors(folder / component / weight_file(component, None), entries, read)
    for name, save in tokenizers.items():
        save(folder / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
