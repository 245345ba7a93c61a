"""`jaxl cache`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxl.cli.options import JsonOption
from jaxl.cli.terminal import in_background, print_line
from jaxl.errors import JaxlError, OutputError


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove the programs, whatever made them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell where compiled programs are kept, how many there are, and what they take; or remove them.

    JAXL_CACHE_DIR names another folder, JAX_COMPILATION_CACHE_MAX_SIZE another bound in bytes.
    """
    report = in_background(lambda: _look(clear))
    if as_json:
        print_line(json.dumps(report))
        return
    bound = "no bound" if report["max_bytes"] < 0 else f"{report['max_bytes'] / 2**30:.3g} GiB at most"
    done = ", removed" if clear else ""
    print_line(report["folder"])
    print_line(f"{report['programs']} programs, {report['bytes'] / 2**20:.1f} MiB, {bound}{done}")


def _look(clear: bool) -> dict[str, Any]:
    """Return the facts about the cache, from before it was cleared."""
    import jax

    from jaxl.run import disk_cache

    disk_cache.enable_disk_cache()
    folder, bound = jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size  # pyright: ignore[reportAttributeAccessIssue]
    if folder is None:
        raise JaxlError("there is no folder that programs are kept in")
    sizes = [file.stat().st_size for file in disk_cache.entries(Path(folder))]
    if clear:
        try:
            disk_cache.clear(Path(folder))
        except OSError as error:
            raise OutputError(f"{folder}: cannot be cleared ({error.strerror or error})") from error
    return {"folder": folder, "programs": len(sizes), "bytes": sum(sizes), "max_bytes": bound}
