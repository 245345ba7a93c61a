"""`jaxl inspect`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxl.cli.options import JsonOption, LocalOption, RevisionOption, VariantOption
from jaxl.cli.terminal import in_background, one_line, print_line

if TYPE_CHECKING:
    from jaxl.weights.store import Tensor


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, a .safetensors file, or tiny.")],
    base: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="What a LoRA is compared with; SDXL's layers by default."),
    ] = None,
    weight_name: Annotated[
        str | None, typer.Option(metavar="FILE", help="Which file of a folder or a repository of LoRAs.")
    ] = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what a checkpoint or a LoRA is, from its headers and configs; a hub's model is downloaded first.

    Of a LoRA the numbers are read too, as they are for a picture; of another file its kind is all that is told.

    \b
    jaxl inspect tiny
    jaxl inspect ./sdxl.safetensors --json
    jaxl inspect ./style.safetensors --model ./sdxl.safetensors
    """
    hub = {"revision": revision, "local_files_only": local_files_only}
    report = in_background(lambda: _inspect(model, base, weight_name, variant, **hub))
    if as_json:
        print_line(json.dumps(report))
    elif "components" in report:
        _print_model(report)
    else:
        _print_file(report)


def _inspect(
    source: str, model: str | None, weight_name: str | None, variant: str | None, **hub: Any
) -> dict[str, Any]:
    from jaxl.weights import kinds
    from jaxl.weights.adapters.source import open_adapter
    from jaxl.weights.single_file import SDXL_MARK
    from jaxl.weights.tensors import read_tensors

    if weight_name is None and _is_model(source, **hub):
        return _model(model=source, variant=variant, **hub)
    file = open_adapter(source, weight_name=weight_name, **hub)
    tensors = read_tensors(file)
    if any(key.startswith(SDXL_MARK) for key in tensors):
        return _model(model=str(file))
    found = kinds.kind(tensors)
    if found == kinds.LORA:
        return _adapter(file, tensors, model)
    return _file(file, tensors, found)


def _is_model(source: str, **hub: Any) -> bool:
    """Return whether a folder or a repository holds a whole model, or else no file that something could be said of."""
    from jaxl.weights.source import EMBEDDED, local_path

    if source in EMBEDDED:
        return True
    path = local_path(source, EMBEDDED)
    if path is None:
        from jaxl.weights.hub import holds_model

        return holds_model(source, **hub)
    return path.is_dir() and ((path / "model_index.json").exists() or not any(path.glob("*.safetensors")))


def _file(file: Path, tensors: Mapping[str, Tensor], kind: str) -> dict[str, Any]:
    from jaxl.weights.tensors import stored_as

    return {
        "file": str(file),
        "kind": kind,
        "tensors": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "dtypes": sorted({stored_as(tensor) for tensor in tensors.values()}),
    }


def _model(**source: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from jaxl.diffusion.schedulers import SCHEDULERS
    from jaxl.diffusion.tables import scheduler_name
    from jaxl.presets import SDXL_BASE, choose_preset
    from jaxl.run.model import Model
    from jaxl.weights.contents import components, family
    from jaxl.weights.source import open_checkpoint

    checkpoint = open_checkpoint(**source)
    missing = [name for name in ("vae",) if name not in checkpoint.configs]
    model = Model.from_configs({**{name: SDXL_BASE[name] for name in missing}, **checkpoint.configs})
    parts = components(checkpoint)
    own = model.scheduler.scheduler  # also of a scheduler that jaxl cannot run
    return {
        "model": checkpoint.source,
        "family": family(model.unet),
        "prediction_type": model.scheduler.noise.prediction_type,
        "prediction_type_by": checkpoint.predicts_by,
        "preset": str(choose_preset(None, checkpoint.source, model.preset)),
        "scheduler": scheduler_name(model.scheduler) if own in SCHEDULERS else own,
        "size": f"{model.default_size}x{model.default_size}",
        "parameters": sum(part.parameters for part in parts),
        "bytes": sum(part.bytes for part in parts),
        "dtypes": sorted({dtype for part in parts for dtype in part.dtypes}),
        "components": [asdict(part) for part in parts],
        "missing": missing,
        "files": [str(file) for file in checkpoint.files()],
    }


def _adapter(file: Path, tensors: Mapping[str, Tensor], model: str | None) -> dict[str, Any]:
    from jaxl.presets import SDXL_BASE
    from jaxl.run.model import Model
    from jaxl.weights.adapters.adapter import read_adapter
    from jaxl.weights.adapters.changes import NETWORKS
    from jaxl.weights.adapters.families import foreign
    from jaxl.weights.adapters.names import layers
    from jaxl.weights.kinds import LORA
    from jaxl.weights.source import open_checkpoint

    configs = SDXL_BASE if model is None else open_checkpoint(model).configs
    shapes = Model.from_configs(configs).shapes()
    other = foreign(tensors, layers(shapes))
    if other is not None:
        return _file(file, tensors, other)
    adapter = read_adapter(file.stem, file, shapes, strict=False)
    changes = [change for of_network in adapter.changes.values() for change in of_network.values()]
    return {
        **_file(file, tensors, LORA),
        "compared_with": model or "SDXL",
        "changes": dict(Counter(change.kind for change in changes).most_common()),
        "ranks": list(adapter.ranks),
        "parameters": {component: len(adapter.changes.get(component, {})) for component in NETWORKS},
        "left_out": list(adapter.left),
        "embeddings": list(adapter.embeddings),
        "base_model": adapter.base_model,
        "trigger_words": list(adapter.trigger_words),
        "distilled": adapter.distilled,
        "hash": adapter.digest,
    }


def _print_model(report: dict[str, Any]) -> None:
    for name in ("model", "family", "prediction_type", "scheduler", "preset", "size"):
        more = f" (by {report['prediction_type_by']})" if name == "prediction_type" else ""
        print_line(f"{name.replace('_', ' '):<16}{report[name]}{more}")
    print_line("")
    rows = [["component", "parameters", "bytes", "dtype"]]
    for part in (*report["components"], {**report, "name": "all"}):
        rows.append([part["name"], f"{part['parameters']:,}", f"{part['bytes']:,}", ", ".join(part["dtypes"])])
    for row in rows:
        print_line(f"{row[0]:<16}{row[1]:>15}{row[2]:>16}  {row[3]}")
    for name in report["missing"]:
        print_line(f"{name:<16}{'-':>15}{'-':>16}  give one with --{name}")
    print_line("")
    for file in report["files"]:
        print_line(file)


def _print_file(report: dict[str, Any]) -> None:
    """Print what is known of a file, each fact on a line; what its metadata says may hold any character."""
    print_line(f"{'file':<16}{report['file']}")
    for name, value in report.items():
        told = "".join(each if each.isprintable() else " " for each in _told(value))
        if told and name != "file":
            print_line(f"{name.replace('_', ' '):<16}{one_line(told)}")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count)
    if isinstance(value, list):
        more = f" and {len(value) - 10} more" if len(value) > 10 else ""
        return ", ".join(map(str, value[:10])) + more
    return f"{value:,}" if isinstance(value, int) else value or ""
