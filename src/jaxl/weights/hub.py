"""Checkpoints on a model hub, through huggingface_hub: only the files that are needed, kept in its cache."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, errors, snapshot_download
from huggingface_hub.utils import tqdm

from jaxl.errors import CheckpointError
from jaxl.weights.folder import (
    CLASSES,
    PARTS,
    TOKENIZERS,
    class_of,
    index_file,
    part_folder,
    present,
    shards,
    stored,
    weight_file,
)
from jaxl.weights.store import read_json

TOKENIZER_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.json"),
)

ADAPTER = "pytorch_lora_weights.safetensors"  # as diffusers names every LoRA
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, beside its weights


class Quiet(tqdm):
    """A progress bar that is never seen."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs | {"disable": True})


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download what `read_folder` needs of a hub's model, and return its local folder.

    The hub's address, cache, token and offline mode follow huggingface_hub's environment variables where no argument is
    given. The weights are of the same commit as the configs, whatever is pushed meanwhile. Weights that are not in the
    cache yet come with huggingface_hub's progress bar. Raises CheckpointError.
    """

    fetch = partial(_fetch, repo_id, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    # the first of these is in every repository: huggingface_hub prints a warning if nothing matches
    small = [".gitattributes", "model_index.json", "scheduler/scheduler_config.json"]
    small += [f"{folder}/{name}" for folder in TOKENIZERS.values() for name in TOKENIZER_FILES]
    small += [f"{c}/{name}" for c in CLASSES for name in ("config.json", index_file(c, variant), index_file(c, None))]
    folder = fetch(small, revision, [])
    if not (folder / "model_index.json").exists():
        return folder  # read_folder says what is wrong with it
    components = present(read_json(folder / "model_index.json"), repo_id)

    def weights(of: Iterable[str], variant: str | None) -> Path:
        files = [
            f"{component}/{name}"
            for component in of
            for name in shards(folder / component, component, variant) or [weight_file(component, variant)]
        ]
        return fetch(small + files, folder.name, [file for file in files if not (folder / file).exists()])

    fetched = weights(components, variant)
    lacking = [component for component in components if not stored(fetched / component, component, variant)]
    # as in `read_folder`, components that lack the variant come plain if others have it
    return weights(lacking, None) if variant and 0 < len(lacking) < len(components) else fetched


def download_part(
    repo_id: str,
    *,
    component: str,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Do as `download` with what `read_part` needs, from a network's own repository or a pipeline's."""

    fetch = partial(_fetch, repo_id, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    small = [".gitattributes", "model_index.json"]
    jsons = ("config.json", index_file(component, variant), index_file(component, None))
    small += [f"{place}{name}" for place in ("", f"{component}/") for name in jsons]
    folder = fetch(small, revision, [])
    place = part_folder(folder, component)
    config = place / "config.json"
    if not config.exists() or class_of(read_json(config)) not in PARTS[component][1]:
        return folder  # read_part says what is wrong with it

    def weights(variant: str | None) -> Path:
        names = shards(place, component, variant) or [weight_file(component, variant)]
        files = [(place / name).relative_to(folder).as_posix() for name in names]
        return fetch(small + files, folder.name, [file for file in files if not (folder / file).exists()])

    fetched = weights(variant)
    return weights(None) if variant and not stored(place, component, variant) else fetched


def holds_model(repo_id: str, *, revision: str | None = None, local_files_only: bool = False) -> bool:
    """Return whether a repository holds a whole pipeline, rather than files of another kind. Raises CheckpointError."""
    files = [".gitattributes", "model_index.json"]
    folder = _fetch(repo_id, files, revision, [], token=None, cache_dir=None, local_files_only=local_files_only)
    return (folder / "model_index.json").exists()


def download_files(
    repo_id: str,
    files: Sequence[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download those of some files that a repository has, and return the folder of its commit. Raises CheckpointError.

    Weights that are not in the cache yet come with huggingface_hub's progress bar.
    """
    fetch = partial(_fetch, repo_id, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    weights = [file for file in files if file.endswith(".safetensors")]
    return fetch([".gitattributes", *map(glob.escape, files)], revision, weights)


def download_adapter(
    repo_id: str,
    *,
    weight_name: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Download an adapter's file, and return its path: that of `weight_name`, or the one that `chosen` takes.

    Without network the files that are in the cache are all that is known of the repository. Raises CheckpointError.
    """

    fetch = partial(_fetch, repo_id, token=token, cache_dir=cache_dir, local_files_only=local_files_only)
    small = [".gitattributes", ADAPTER_CONFIG]
    folder = fetch(small, revision, [])
    if weight_name is None:
        weight_name = chosen_adapter(_names(folder, repo_id, token, local_files_only), repo_id)
    missing = [] if (folder / weight_name).exists() else [weight_name]
    file = fetch([*small, glob.escape(weight_name)], folder.name, missing) / weight_name
    if not file.exists():
        known = ", ".join(_names(folder, repo_id, token, local_files_only)) or "none"
        raise CheckpointError(f"{repo_id}: no {weight_name}; its .safetensors are: {known}")
    return file


def chosen_adapter(names: Sequence[str], source: str) -> str:
    """Return the file that holds the adapter in a folder of `names`. Raises CheckpointError if that is open."""
    if ADAPTER in names:
        return ADAPTER
    if len(names) == 1:
        return names[0]
    if not names:
        raise CheckpointError(f"{source}: no .safetensors file is in it")
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise CheckpointError(f"{source}: has {len(names)} .safetensors; name one as `weight_name`: {shown}")


def _names(folder: Path, repo_id: str, token: str | None, local_files_only: bool) -> list[str]:
    """Return the .safetensors files of a commit, whose folder in the cache this is."""
    if local_files_only or constants.HF_HUB_OFFLINE:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    else:
        try:
            names = HfApi(token=token).list_repo_files(repo_id, revision=folder.name)
        except Exception as error:  # as in `_fetch`
            raise CheckpointError(f"{repo_id}: {_reason(error, folder.name, [])}") from error
    return sorted(name for name in names if name.endswith(".safetensors"))


def _fetch(
    repo_id: str,
    files: list[str],
    revision: str | None,
    missing: list[str],
    *,
    token: str | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    """Fetch the `files` that a commit has, and return its folder; `missing` are weights not in the cache, if known."""
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=files,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                tqdm_class=tqdm if missing else Quiet,
            )
        )
    except Exception as error:  # huggingface_hub passes on whatever its HTTP library raises
        raise CheckpointError(f"{repo_id}: {_reason(error, revision, missing)}") from error


def _reason(error: Exception, revision: str | None, missing: list[str]) -> str:
    """Return why a download failed and what to do, in one line; `missing` as in `_fetch`."""
    if isinstance(error, errors.GatedRepoError):
        return "access to this model must be granted on its page first; then pass `token`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such model on the hub, or it is private: check the name, or pass `token`"
    if isinstance(error, errors.LocalEntryNotFoundError):
        first = missing[0] if missing else "the model, or some of it,"
        lacking = f"{first} is not in the local cache"
        if error.__cause__ is None:
            return f"{lacking}; allow a download: leave `local_files_only` out"
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return f"{lacking}; allow a download: unset HF_HUB_OFFLINE"
        return f"{lacking}, and the hub gives no access ({_line(error.__cause__)})"
    return f"cannot be fetched from the hub ({_line(error)})"


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
