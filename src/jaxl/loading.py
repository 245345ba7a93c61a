"""A checkpoint opened, and loaded: `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxl.call.options import LoadOptions
from jaxl.config import Split
from jaxl.kernels import Kernels
from jaxl.pipeline import Params, Pipeline, ShowProgress
from jaxl.run.bucket import Bucket
from jaxl.run.disk_cache import enable_disk_cache
from jaxl.weights.prediction import with_prediction
from jaxl.weights.source import open_checkpoint, open_unet, open_vae, with_unet, with_vae


def from_pretrained(
    model: str | os.PathLike[str] = "tiny",
    *,
    dtype: DTypeLike = LoadOptions.dtype,
    mesh: Mesh | None = LoadOptions.mesh,
    shard_params: bool = LoadOptions.shard_params,
    split: Split = LoadOptions.split,
    revision: str | None = LoadOptions.revision,
    variant: str | None = LoadOptions.variant,
    token: str | None = LoadOptions.token,
    cache_dir: str | os.PathLike[str] | None = LoadOptions.cache_dir,
    local_files_only: bool = LoadOptions.local_files_only,
    unet: str | os.PathLike[str] | None = LoadOptions.unet,
    vae: str | os.PathLike[str] | None = LoadOptions.vae,
    vae_dtype: DTypeLike | None = LoadOptions.vae_dtype,
    vae_tile: int | None = LoadOptions.vae_tile,
    preview: str | os.PathLike[str] | None = LoadOptions.preview,
    preset: str | None = LoadOptions.preset,
    prediction_type: str | None = LoadOptions.prediction_type,
    batch_sizes: Sequence[int] = LoadOptions.batch_sizes,
    precision: str | None = LoadOptions.precision,
    calibration: Sequence[str] | None = LoadOptions.calibration,
    kernels: Kernels | None = LoadOptions.kernels,
    compile_for: Sequence[Bucket] = (),
    progress: ShowProgress | None = None,
) -> tuple[Pipeline, Params]:
    """Load a checkpoint: the pipeline, and its parameters on the devices.

    Args:
        model: a hub id, a folder in diffusers' layout, a `.safetensors` file in the original layout, or "tiny".
        dtype: of weights and compute, bfloat16 or float32, or "auto", which is float32 on a CPU. The scheduler and the
            loop are float32 always.
        mesh: the devices, all by default, of all hosts (`run.hosts`); batches are split over them.
        shard_params: split the parameters over the devices, of one host, instead of keeping all of them on each.
        split: how devices share pictures. "auto": images and their branches of guidance first, then, where devices are
            left, rows of each picture (docs/scaling.md), if the height divides evenly and parameters are not split.
            "images": never rows. "rows": rows first, one image's after another's.
        revision, token, cache_dir, local_files_only: passed on to the hub.
        variant: of the weight files, such as "fp16".
        unet: a U-Net in place of the checkpoint's, such as one of SDXL-Lightning: a hub id, a folder, or a
            `.safetensors` file in diffusers' names or in the original ones.
        vae: an autoencoder in place of the checkpoint's: a hub id, a folder or a file, of SDXL's kind, as the "fp16
            fix" is, or of TAESD's, which is small and fast.
        vae_dtype: of the autoencoder; by default, or as "auto", float32 if its config has `force_upcast`, else `dtype`.
        vae_tile: pixels; larger images are encoded and decoded in overlapping tiles of this size, which takes far less
            memory and is not quite the same (docs/nearness.md).
        preview: an autoencoder of TAESD's kind for previews, in place of a linear map.
        preset: a name in `jaxl.presets.PRESETS`, such as "turbo", "lightning" or "hyper": what `generate` does where it
            is not told the steps, the guidance or the scheduler. By default, what the checkpoint's name or configs say.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow" (the velocity of a straight path), where the
            checkpoint does not say, or wrongly, what its network predicts. A single file says it in a tensor `v_pred`,
            in its metadata or in a .yaml beside it.
        batch_sizes: the numbers of images that programs are compiled for; other numbers are filled up, or drawn in
            several rounds. By default every number of images compiles programs of its own.
        precision: "fp8" or "int8": the linear layers of the U-Net's transformer blocks in eight bits, faster on chips
            that have units for them, and not quite the same (docs/nearness.md); with "+conv" the convolutions of
            its residual blocks too, with "+all" also those that change the size, and the layers around the blocks.
            With a distance, as "int8+all@40", the layers that disturb the picture most stay exact, as few as leave the
            median PSNR of the calibration's pictures at so many dB; they are chosen at the first load, and kept.
        calibration: the prompts that the range of the layers' inputs is measured on, once, before the first use of a
            precision, eight of ours by default; what was found is kept in the cache folder.
        kernels: how the networks compute; by default what is best on the platform, `Kernels.plain` is XLA alone.
        compile_for: buckets whose programs are compiled while the weights load.
        progress: called with ("load", tensors placed, tensors in all), and ("calibrate", rows, rows in all).

    Raises CheckpointError if the checkpoint is missing, damaged or not of SDXL's kind; InputError for the arguments.
    """
    given = locals()  # by name, so that no option is forgotten on the way
    pipe = open_pipeline(model, LoadOptions(**{name: given[name] for name in LoadOptions.__dataclass_fields__}))
    for bucket in compile_for:
        pipe.programs.compile(bucket)
    return pipe, pipe.load_params(progress=progress)


def open_pipeline(model: str | os.PathLike[str] = "tiny", options: LoadOptions | None = None) -> Pipeline:
    """Do what `from_pretrained` does, but leave the parameters to `Pipeline.load_params`."""
    options = options or LoadOptions()
    enable_disk_cache()
    hub = {
        "token": options.token,
        "cache_dir": options.cache_dir,
        "local_files_only": options.local_files_only,
        "variant": options.variant,
    }
    checkpoint = open_checkpoint(model, revision=options.revision, **hub)
    if options.unet is not None:
        checkpoint = with_unet(checkpoint, open_unet(options.unet, checkpoint, **hub))
    if options.prediction_type is not None:
        checkpoint = with_prediction(checkpoint, options.prediction_type)
    for component, name in (("vae", options.vae), ("preview", options.preview)):
        if name is not None:
            checkpoint = with_vae(checkpoint, open_vae(name, **hub), component)
    return Pipeline(checkpoint, options)
