"""What a user may name as a model: the embedded one, a folder, a single file, or a model on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxl.errors import CheckpointError
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.folder import read_folder
from jaxl.weights.single_file import read_single_file

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
    """Open what `model` names, without reading tensors; a hub's model is downloaded first.

    Raises CheckpointError, in one line, if there is nothing of that name or it is not an SDXL checkpoint.
    """
    name = os.fspath(model)
    if name in EMBEDDED:
        return read_folder(EMBEDDED[name], variant=variant, source=name)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if it knows no such user
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise CheckpointError(f"{name}: jaxl does not open pickles, which can run code; convert it to safetensors")
    if path.is_dir():
        return read_folder(path, variant=variant)
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise CheckpointError(f"{name}: not a .safetensors file")
        return read_single_file(path)
    local = name.startswith((".", "/", "~", "\\")) or path.suffix.lower() == ".safetensors"
    if local or not HUB_ID.fullmatch(name):
        known = ", ".join(repr(embedded) for embedded in EMBEDDED)
        raise CheckpointError(f"{name}: no such file or folder; give one, a hub id (owner/name), or {known}")
    from jaxl.weights.hub import download  # here, because huggingface_hub takes a while to import

    folder = download(
        name,
        revision=revision,
        variant=variant,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    return read_folder(folder, variant=variant, source=name)
