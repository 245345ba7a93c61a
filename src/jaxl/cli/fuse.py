"""`jaxl fuse`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jaxl.cli.generate import Opener, add_loras
from jaxl.cli.options import (
    JsonOption,
    LocalOption,
    LoraDirOption,
    LoraPartialOption,
    LorasOption,
    PredictionOption,
    QuietOption,
    RevisionOption,
    UnetOption,
    VaeOption,
    VariantOption,
)
from jaxl.cli.terminal import in_background, note, print_line, progress_bars, to_terminal


def fuse(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder, a .safetensors file, or tiny.")],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="A name that ends in .safetensors, or a folder.")
    ],
    loras: LorasOption = None,
    lora_dir: LoraDirOption = None,
    lora_partial: LoraPartialOption = False,
    dtype: Annotated[
        Literal["auto", "float16", "bfloat16", "float32"],
        typer.Option(help="Of the numbers; auto leaves each tensor as MODEL has it, or float16 for eight bits."),
    ] = "auto",
    unet: UnetOption = None,
    vae: VaeOption = None,
    prediction_type: PredictionOption = None,
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a model with LoRAs in its weights, and print where.

    \b
    jaxl fuse sdxl.safetensors --lora pencil.safetensors:0.8 --output pencil-sdxl.safetensors
    jaxl fuse someone/sdxl-model --lora a.safetensors --lora b.safetensors:-0.5 --output fused

    A .safetensors file is in the original layout, which A1111, Forge, ComfyUI and diffusers' from_single_file open. A
    folder is in diffusers' layout. Without --lora the model is written as it is. One tensor is in memory at a time.
    """
    from jaxl.weights.save import check_new

    path = Path(output)
    check_new(path)
    with progress_bars(not quiet and to_terminal()) as progress:

        def write() -> dict[str, float]:
            open_model = Opener(
                "auto", shard_params=False, images=1, local_files_only=local_files_only, progress=progress
            )
            replaced: dict[str, Any] = {"unet": unet, "vae": vae, "prediction_type": prediction_type}
            pipe = open_model(model, variant=variant, revision=revision, **replaced)
            strengths = add_loras(pipe, loras or [], lora_dir, strict=not lora_partial)
            for name in strengths:
                if pipe.loras[name].embeddings and not quiet:
                    note(f"{name}: its textual inversions are no part of a model, and stay in its file")
            pipe.save_fused(path, strengths, dtype=None if dtype == "auto" else dtype, progress=progress)
            return strengths

        strengths = in_background(write)
    if as_json:
        print_line(json.dumps({"output": output, "model": model, "loras": strengths, "dtype": dtype}))
    else:
        print_line(output)
