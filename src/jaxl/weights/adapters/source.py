"""The sources that a user may name for an adapter: a file, a folder with one, or a hub's."""

from __future__ import annotations

import os
from pathlib import Path

from jaxl.errors import CheckpointError
from jaxl.weights.source import local_path


def open_adapter(
    source: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the file of an adapter; a hub's is downloaded first.

    `source` is a file, a folder or a hub's id. `weight_name` says which file of a folder or a repository is meant; if
    it is None there must be a single one, or one that is named as diffusers does. Raises CheckpointError, in one line.
    """
    source = os.fspath(source)
    path = local_path(source)
    from jaxl.weights import hub  # here, because huggingface_hub takes a while to import

    if path is None:
        return hub.download_adapter(
            source,
            weight_name=weight_name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    if not path.is_dir():
        return path
    file = path / (weight_name or hub.chosen_adapter(sorted(each.name for each in path.glob("*.safetensors")), source))
    if not file.is_file():
        raise CheckpointError(f"{source}: there is no {weight_name} in it")
    return file
