"""From text to pictures: the public way in.

pipe, params = jaxl.from_pretrained("tiny")
result = pipe.generate(params, "a red apple on a blue background, flat style", seed=7, num_images=4)
result.images[0].save("apple.png")
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image

from jaxl import presets
from jaxl.call import arguments
from jaxl.call.arguments import DrawOptions, Options
from jaxl.call.inputs import Encoder, Inputs
from jaxl.call.plan import Devices, Plan, make_plan
from jaxl.diffusion.loop import Slots
from jaxl.errors import CheckpointError, InputError, NonFiniteError
from jaxl.kernels import Kernels
from jaxl.nn.layers import Shapes
from jaxl.run.bucket import Bucket, Conditioning
from jaxl.run.disk_cache import enable_disk_cache
from jaxl.run.embeddings import Embeddings
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, DECODE, ENCODE_IMAGE, OBSERVE, PREVIEW, PROGRAMS, START, Programs
from jaxl.run.sharding import gathered, make_mesh, on_host, own_images, place_parameters
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.checkpoint import Checkpoint, first_broken, load_params
from jaxl.weights.folder import TOKENIZERS
from jaxl.weights.layout import flatten, placed
from jaxl.weights.prediction import with_prediction
from jaxl.weights.quantise import (
    PROMPTS,
    check_prompts,
    layers,
    quantise_params,
    quantised_shapes,
    read_precision,
    read_scales,
    scales_file,
    write_scales,
)
from jaxl.weights.save import save_checkpoint
from jaxl.weights.source import open_checkpoint, open_unet, open_vae, with_unet, with_vae
from jaxl.weights.winograd import with_winograd, with_winograd_shapes, without_winograd

Params = dict[str, Any]
Preview = Callable[[int, int, np.ndarray], None]
Progress = Callable[[Literal["load", "calibrate", "compile", "generate"], int, int], None]
Callback = Callable[[int, int, np.ndarray], bool | None]
Decoded = tuple[jax.Array, jax.Array, jax.Array]  # floats, bytes, whether all is finite
Output = Literal["pil", "numpy", "latents"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What one call of `generate` made.

    `images`: PIL images, or one float32 array [B, H, W, 3] in 0..1 (`output="numpy"`), or an empty list (`"latents"`).
    `latents`: float32 [B, H/8, W/8, 4], as the last row left them. `seeds`: one per image. `scheduler`: its full name.
    `steps`: calls of the network, of which some schedulers make two a step; less if the callback stopped. `timings`:
    seconds of `compile`, `text`, `picture`, `denoise`, `decode` and `total`. On several hosts (`run.hosts`) images,
    latents and seeds are those of this host's devices, of which there may be none.
    """

    images: list[Image.Image] | np.ndarray
    latents: np.ndarray
    seeds: list[int]
    scheduler: str
    steps: int
    timings: dict[str, float]


def from_pretrained(
    model: str | os.PathLike[str] = "tiny",
    *,
    dtype: DTypeLike = jnp.bfloat16,
    mesh: Mesh | None = None,
    shard_params: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    unet: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    vae_dtype: DTypeLike | None = None,
    vae_tile: int | None = None,
    preview: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    prediction_type: str | None = None,
    batch_sizes: Sequence[int] = (),
    precision: str | None = None,
    calibration: Sequence[str] = PROMPTS,
    kernels: Kernels | None = None,
    compile_for: Sequence[Bucket] = (),
    progress: Progress | None = None,
) -> tuple[Pipeline, Params]:
    """Load a checkpoint: the pipeline, and its parameters on the devices.

    Args:
        model: a hub id, a folder in diffusers' layout, a `.safetensors` file in the original layout, or "tiny".
        dtype: of weights and compute, bfloat16 or float32. The scheduler and the loop are float32 always.
        mesh: the devices, all by default, of all hosts (`run.hosts`); batches are split over them.
        shard_params: split the parameters over the devices, of one host, instead of keeping all of them on each.
        revision, token, cache_dir, local_files_only: passed on to the hub. variant: of the weight files, such as
        "fp16".
        unet: a U-Net in place of the checkpoint's, such as one of SDXL-Lightning: a hub id, a folder, or a
            `.safetensors` file in diffusers' names or in the original ones.
        vae: an autoencoder in place of the checkpoint's: a hub id, a folder or a file, of SDXL's kind, as the "fp16
            fix" is, or of TAESD's, which is small and fast.
        vae_dtype: of the autoencoder; by default float32 if its config has `force_upcast`, else `dtype`.
        vae_tile: pixels; larger images are encoded and decoded in overlapping tiles of this size, which takes far less
            memory and is not quite the same (docs/performance.md).
        preview: an autoencoder of TAESD's kind for previews, in place of a linear map.
        preset: a name in `jaxl.presets.PRESETS`, such as "turbo", "lightning" or "hyper": what `generate` does where it
            is not told the steps, the guidance or the scheduler. By default, what the checkpoint's name or configs say.
        prediction_type: "epsilon", "v_prediction" or "sample", where the checkpoint does not say, or wrongly, what its
            network predicts. A single file says it in a tensor `v_pred`, in its metadata or in a .yaml beside it.
        batch_sizes: the numbers of images that programs are compiled for; other numbers are filled up, or drawn in
            several rounds. By default every number of images compiles programs of its own.
        precision: "fp8" or "int8": the linear layers of the U-Net's transformer blocks in eight bits, faster on chips
            that have units for them, and not quite the same (docs/performance.md); with "+conv" the convolutions of
            its residual blocks too.
        calibration: the prompts that the range of the layers' inputs is measured on, once, before the first use of a
            precision; what was found is kept in the cache folder.
        kernels: how the networks compute; by default what is best on the platform, `Kernels.plain` is XLA alone.
        compile_for: buckets whose programs are compiled while the weights load.
        progress: called with ("load", tensors placed, tensors in all), and ("calibrate", rows, rows in all).

    Raises CheckpointError if the checkpoint is missing, damaged or not of SDXL's kind; InputError for the arguments.
    """
    pipe = open_pipeline(
        model,
        dtype=dtype,
        mesh=mesh,
        shard_params=shard_params,
        revision=revision,
        variant=variant,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        unet=unet,
        vae=vae,
        vae_dtype=vae_dtype,
        vae_tile=vae_tile,
        preview=preview,
        preset=preset,
        prediction_type=prediction_type,
        batch_sizes=batch_sizes,
        precision=precision,
        calibration=calibration,
        kernels=kernels,
    )
    for bucket in compile_for:
        pipe.programs.compile(bucket)
    return pipe, pipe.load_params(progress=progress)


def open_pipeline(
    model: str | os.PathLike[str] = "tiny",
    *,
    dtype: DTypeLike = jnp.bfloat16,
    mesh: Mesh | None = None,
    shard_params: bool = False,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    unet: str | os.PathLike[str] | None = None,
    vae: str | os.PathLike[str] | None = None,
    vae_dtype: DTypeLike | None = None,
    vae_tile: int | None = None,
    preview: str | os.PathLike[str] | None = None,
    preset: str | None = None,
    prediction_type: str | None = None,
    batch_sizes: Sequence[int] = (),
    precision: str | None = None,
    calibration: Sequence[str] = PROMPTS,
    kernels: Kernels | None = None,
) -> Pipeline:
    """What `from_pretrained` does, without loading the parameters: `Pipeline.load_params` does that."""
    enable_disk_cache()
    hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    checkpoint = open_checkpoint(model, revision=revision, variant=variant, **hub)
    if unet is not None:
        checkpoint = with_unet(checkpoint, open_unet(unet, checkpoint, variant=variant, **hub))
    if prediction_type is not None:
        checkpoint = with_prediction(checkpoint, prediction_type)
    for component, name in (("vae", vae), ("preview", preview)):
        if name is not None:
            checkpoint = with_vae(checkpoint, open_vae(name, variant=variant, **hub), component)
    return Pipeline(
        checkpoint,
        dtype=dtype,
        mesh=mesh or make_mesh(),
        shard_params=shard_params,
        vae_dtype=vae_dtype,
        vae_tile=vae_tile,
        preset=preset,
        batch_sizes=batch_sizes,
        precision=precision,
        calibration=calibration,
        kernels=kernels,
    )


class Pipeline:
    """A loaded checkpoint without its parameters, which every call is given: see `from_pretrained`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: DTypeLike,
        mesh: Mesh,
        shard_params: bool = False,
        vae_dtype: DTypeLike | None = None,
        vae_tile: int | None = None,
        preset: str | None = None,
        batch_sizes: Sequence[int] = (),
        precision: str | None = None,
        calibration: Sequence[str] = PROMPTS,
        kernels: Kernels | None = None,
    ):
        for argument, value in (("dtype", dtype), ("vae_dtype", vae_dtype or dtype)):
            if value not in (jnp.bfloat16, jnp.float32, "bfloat16", "float32"):
                raise InputError(argument, value, "use jax.numpy.bfloat16 or jax.numpy.float32")
        if shard_params and mesh.is_multi_process:
            raise InputError("shard_params", shard_params, "each host needs all parameters; leave it out with several")
        self.checkpoint = checkpoint
        device = mesh.devices.flat[0]
        kernels = kernels or Kernels.of_device(device)
        self.model = Model.from_configs(checkpoint.configs, kernels)
        self.dtype = jnp.dtype(dtype)
        self.mesh = mesh
        own = presets.preset_by_name(checkpoint.source) or self.model.preset
        # a U-Net on its own knows best how it wants to be sampled
        self.preset = presets.choose_preset(preset, checkpoint.source_of("unet"), own)
        predicted = self.model.scheduler.noise.prediction_type
        log.info("preset %s; the network predicts %s, by %s", self.preset, predicted, checkpoint.predicts_by)
        sizes = [arguments.whole_number("batch_sizes", size, least=1) for size in batch_sizes]
        self.devices = Devices(mesh.size, sizes)
        shapes = self.model.shapes(dtype, vae_dtype or self.model.vae_dtype(dtype))
        if vae_tile is not None:
            arguments.image_size("vae_tile", vae_tile, 0, self.model.vae.factor)

        def programs(unet: Shapes) -> Programs:
            own = {**shapes, "unet": with_winograd_shapes(unet) if kernels.conv == "winograd" else unet}
            return Programs(self.model, mesh, place_parameters(own, mesh, split=shard_params), vae_tile)

        self.programs = programs(shapes["unet"])
        self.tokenizers: dict[str, Tokenizer] = {}
        for encoder in self.model.text_encoders:
            folder = checkpoint.tokenizers[TOKENIZERS[encoder]]
            pad = "!" if encoder == "text_encoder_2" else "<|endoftext|>"
            tokenizer = Tokenizer.clip(pad) if folder is None else Tokenizer.from_dir(folder)
            cfg = self.model.text_encoders[encoder]
            # an id or position beyond the table would silently read its last row
            if tokenizer.vocab_size > cfg.vocab_size or tokenizer.max_length > cfg.max_length:
                raise CheckpointError(
                    f"{checkpoint.source}: the tokenizer has {tokenizer.vocab_size} ids and {tokenizer.max_length} "
                    f"positions, more than the {cfg.vocab_size} and {cfg.max_length} of {encoder}"
                )
            self.tokenizers[encoder] = tokenizer
        self.embeddings = Embeddings({})
        self.precision = None
        if precision is not None:
            self.exact = copy(self)
            self.precision = read_precision(precision, device.platform)
            self.calibration = check_prompts(calibration)
            self.scales_file = scales_file(checkpoint, self.calibration)
            self.programs = programs(quantised_shapes(shapes["unet"], self.precision))

    def load_params(self, progress: Progress | None = None) -> Params:
        """Read, cast and place the checkpoint's tensors, one at a time; with a `precision`, quantise them then.

        The scales of the inputs are those of `scales_file`, or are measured and written there.
        """
        unet = self.programs.shapes["unet"]
        if self.precision is not None:
            largest = read_scales(self.scales_file, layers(unet))
            params = self.exact.load_params(progress)
            # several hosts draw together, so all measure if one has to
            if not gathered(largest is not None, self.mesh).all() or largest is None:
                largest = self.exact.calibrate(params, self.calibration, progress)
                if not np.isfinite(list(largest.values())).all():
                    raise self.exact.not_finite(params, "what was drawn to measure the ranges")
                write_scales(self.scales_file, largest)
            wanted = flatten(unet)  # no transformed weights of convolutions that are quantised
            leaves = {key: leaf for key, leaf in flatten(params.pop("unet")).items() if key in wanted}
            return {"unet": quantise_params(leaves, largest, self.precision, unet), **params}
        shapes = {**self.programs.shapes, "unet": without_winograd(unet)}
        shardings = {name: {key: leaf.sharding for key, leaf in flatten(tree).items()} for name, tree in shapes.items()}
        params = load_params(
            self.checkpoint,
            shapes,
            place=lambda component, key, array: placed(array, shardings[component][key]),
            progress=None if progress is None else lambda done, total: progress("load", done, total),
        )
        return {**params, "unet": with_winograd(params["unet"], unet)}

    def calibrate(
        self, params: Params, prompts: Sequence[str] = PROMPTS, progress: Progress | None = None
    ) -> dict[str, float]:
        """The greatest magnitude that each layer of the U-Net that may be quantised is fed while it draws the prompts.

        One image of each prompt, in the steps of the model's preset, with exact parameters.
        """
        largest = dict.fromkeys(layers(params["unet"]), np.float32(0.0))
        at_once = self.devices.count
        for first in range(0, len(prompts), at_once):
            some = list(prompts[first : first + at_once])
            plan = self.plan(some, seed=first)
            inputs = self.inputs(params, plan)
            slots = self.programs.get(START, plan.bucket)(inputs.beginning())
            done = first // at_once * plan.count
            for segment, cond in zip(plan.segments, inputs.conditionings(), strict=True):
                run = self.programs.get(OBSERVE, plan.bucket_of(segment))
                for _ in range(segment.rows):
                    slots, largest = run(params["unet"], slots, cond, largest)
                    done += 1
                    if progress is not None:
                        slots.row.block_until_ready()
                        progress("calibrate", done, -(-len(prompts) // at_once) * plan.count)
        return {path: float(value) for path, value in largest.items()}

    def save_pretrained(self, folder: str | os.PathLike[str], params: Params) -> None:
        """Write a folder that diffusers and jaxl open. Raises OutputError, leaving nothing behind."""
        if self.precision is not None:
            raise InputError("precision", self.precision.name, "only exact parameters are saved; load without it")
        tokenizers = {TOKENIZERS[encoder]: tokenizer.save for encoder, tokenizer in self.tokenizers.items()}
        configs, own = ({k: v for k, v in each.items() if k != "preview"} for each in (self.checkpoint.configs, params))
        save_checkpoint(Path(folder), configs, own, tokenizers)

    def bucket(
        self, images: int, height: int | None = None, width: int | None = None, *, guided: bool = True
    ) -> Bucket:
        """The bucket that `images` images of a size run in: filled up to a multiple of the devices."""
        size, factor = self.model.default_size, self.model.vae.factor
        height = arguments.image_size("height", height, size, factor)
        return self.devices.filled(Bucket(images, height, arguments.image_size("width", width, size, factor), guided))

    def generate(
        self,
        params: Params,
        prompt: str | Sequence[str],
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: Any = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        scheduler: str | None = None,
        latents: Any = None,
        clip_skip: int = 0,
        output: Output = "pil",
        callback: Callback | None = None,
        preview: Preview | None = None,
        progress: Progress | None = None,
        **options: Unpack[Options],
    ) -> Result:
        """Make pictures of a prompt, or of each prompt of a list.

        Args:
            params: what `from_pretrained` returned.
            prompt, negative_prompt: for both text encoders; `prompt_2`, `negative_prompt_2` for the second one alone. A
                negative prompt that is not given is zeros in SDXL and the empty text in models that were trained so.
            seed: 0 to 2**64 - 1, counting up from image to image, or one for each image. A seed gives the same
                image in any batch and on any number of devices.
            steps: 1 to the schedule's training steps; 25 by default, or what the model's preset says.
            guidance_scale: finite, one, one for each image, or [images or 1, steps]; 5 by default, or what the preset
                says. Where it is 1 or below the negative branch is not computed.
            width, height: pixels, multiples of 8; by default the size the model was trained for, or, with `image`, the
                one of SDXL's sizes that is nearest to its shape.
            num_images: for each prompt.
            scheduler: a name, such as "euler" or "dpm++2m_karras"; the checkpoint's own by default.
            latents: initial noise of unit variance, [B, height/8, width/8, 4], in place of the seeds' own.
            clip_skip: layers of the encoders to skip for `prompt`, beyond the last one that SDXL never reads.
            output: "pil", "numpy" (float32 [B, H, W, 3] in 0..1) or "latents" (nothing is decoded).
            callback: called after each step with (steps done, steps in all, latents); False stops there, of one host
                all hosts.
            preview: called after each step with (steps done, steps in all, pictures), uint8 [B, h, w, 3]: small
                pictures of what the images are going to be.
            progress: called with ("compile" or "generate", done, in all).
            **options: `arguments.Options`: pictures and masks to start from (`Start`), guidance (`Guidance`), choices
                of sampling (`Sampling`), less work at some distance from the exact picture (`Caching`), the syntax of
                prompts, and what SDXL is told of sizes (`MicroConditioning`).

        No argument compiles anything anew but the number of images, their size, and whether any of them is guided, is
        guided by perturbed attention, has FreeU, keeps features from step to step, or has a prompt of more than 75
        tokens. Raises InputError for an argument that cannot work and NonFiniteError rather than return a broken image;
        warns with TruncationWarning when a prompt was cut.
        """
        plan = self.plan(
            prompt,
            prompt_2=prompt_2,
            negative_prompt=negative_prompt,
            negative_prompt_2=negative_prompt_2,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            num_images=num_images,
            scheduler=scheduler,
            latents=latents,
            clip_skip=clip_skip,
            **options,
        )
        return self.run(params, plan, output=output, callback=callback, preview=preview, progress=progress)

    def plan(self, prompt: str | Sequence[str], **options: Unpack[DrawOptions]) -> Plan:
        """Check the arguments of `generate` and give each image its own, before anything is loaded or compiled."""
        return make_plan(self.model, self.tokenizers, self.preset, self.devices, prompt, options)

    def run(
        self,
        params: Params,
        plan: Plan,
        *,
        output: Output = "pil",
        callback: Callback | None = None,
        preview: Preview | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Make the pictures of a plan; arguments and errors are those of `generate`."""
        if output not in ("pil", "numpy", "latents"):
            raise InputError("output", output, "give 'pil', 'numpy' or 'latents'")
        if output == "numpy" and plan.pastes:
            raise InputError("output", output, "`padding_mask_crop` gives several sizes; use `output='pil'`")
        self._check_params(params)
        began = time.perf_counter()
        timings: dict[str, float] = {}
        with _stopwatch(timings, "compile"):
            futures = self.compile(plan, decode=output != "latents", preview=preview is not None)
            for done, future in enumerate(futures):
                if progress is not None:
                    progress("compile", done, len(futures))
                future.result()
            if progress is not None:
                progress("compile", len(futures), len(futures))
        total, rows, stopped = plan.count * len(plan.rounds), 0, False
        latents: list[np.ndarray] = []
        images: list[Any] = []
        seeds: list[int] = []

        def watch(slots: Slots, part: Plan, done: int) -> bool:
            """Tell whoever wants to hear of a row; True if that stops here."""
            done += plan.count * len(latents)
            if progress is not None:
                slots.row.block_until_ready()
                progress("generate", done, total)
            if preview is not None:
                show = self.programs.get(PREVIEW, part.bucket)
                preview(done, total, on_host(show(params.get("preview"), slots.denoised), self._own(part)))
            if callback is None:
                return False
            stop = callback(done, total, on_host(slots.latents, self._own(part))) is False
            return bool(gathered(stop, self.mesh).any())

        watched = any(each is not None for each in (callback, preview, progress))
        for inputs in self.inputs(params, plan).by_round():
            part = inputs.plan
            with _stopwatch(timings, "picture"):
                beginning = inputs.beginning()
            with _stopwatch(timings, "text"):
                told = inputs.conditionings()
            with _stopwatch(timings, "denoise"):
                slots = self.programs.get(START, part.bucket)(beginning)
                slots, rows, stopped = self._advance(params, part, slots, told, watch if watched else None)
                final = on_host(slots.latents, self._own(part))
            self._check_finite(params, part, np.asarray(np.isfinite(final).all((1, 2, 3))))
            with _stopwatch(timings, "decode"):
                images.extend([] if output == "latents" else self._decode(params, part, slots.latents, output))
            latents.append(final)
            seeds += [part.seeds[i] for i in self._own(part)]
            if stopped:
                break
        timings["total"] = time.perf_counter() - began
        made = np.concatenate(images) if output == "numpy" else images
        return Result(made, np.concatenate(latents), seeds, plan.scheduler, rows, timings)

    def compile(self, plan: Plan, *, decode: bool = True, preview: bool = False) -> list[Future[Any]]:
        """Begin to compile what a plan needs, the longest programs first."""
        asked = {DECODE: decode, ENCODE_IMAGE: plan.pictures is not None, PREVIEW: preview}
        wanted = [program for program in PROGRAMS if asked.get(program, program.always)]
        buckets = dict.fromkeys(plan.bucket_of(segment) for segment in plan.segments)
        return list(dict.fromkeys(self.programs.begin(program, bucket) for program in wanted for bucket in buckets))

    def _check_params(self, params: Params) -> None:
        """A tree of another dtype or structure would otherwise fail deep inside jax, with a page of shapes."""
        wanted = jax.tree.map(lambda s: (s.shape, s.dtype), self.programs.shapes)
        if jax.tree.map(lambda a: (a.shape, a.dtype), params) != wanted:
            raise InputError(
                "params",
                type(params).__name__,
                f"not the {self.dtype} parameters that from_pretrained gave with this pipeline",
            )

    def inputs(self, params: Params, plan: Plan) -> Inputs:
        """What the programs are fed for a plan."""
        encoders = {name: params[name] for name in self.tokenizers}
        if not self.embeddings.made_with(encoders):
            self.embeddings = Embeddings(encoders)
        return Inputs(plan, Encoder(self.programs, params, self.embeddings))

    def _advance(
        self,
        params: Params,
        plan: Plan,
        slots: Slots,
        told: Sequence[Conditioning],
        watch: Callable[[Slots, Plan, int], bool] | None,
    ) -> tuple[Slots, int, bool]:
        """Run each segment in one dispatch, or row by row for a watcher; also the rows done, and whether it stopped."""
        done = 0
        for segment, cond in zip(plan.segments, told, strict=True):
            bucket = plan.bucket_of(segment)
            run = self.programs.get(ADVANCE, bucket)
            slots = replace(slots, features=self.programs.no_features(bucket))
            n = segment.rows if watch is None else 1
            for _ in range(0, segment.rows, n):
                slots = run(params["unet"], slots, cond, np.int32(n))
                done += n
                if watch is not None and watch(slots, plan, done):
                    return slots, done, True
        return slots, done, False

    def _decode(self, params: Params, plan: Plan, latents: jax.Array, output: Output) -> list[Any]:
        decoded = self.programs.get(DECODE, plan.bucket)(params["vae"], latents)
        if output == "numpy":
            self._check_finite(params, plan, on_host(decoded[2], self._own(plan)))
            return [on_host(decoded[0], self._own(plan))]
        return self.to_images(params, plan, decoded)

    def to_images(self, params: Params, plan: Plan, decoded: Decoded) -> list[Image.Image]:
        """The pictures of a plan from what `decode` made, when that is done. Raises NonFiniteError."""
        own = self._own(plan)
        self._check_finite(params, plan, on_host(decoded[2], own))
        images = [Image.fromarray(image) for image in on_host(decoded[1], own)]
        return [plan.pastes[i](image) for i, image in zip(own, images, strict=True)] if plan.pastes else images

    def _own(self, plan: Plan) -> list[int]:
        """Which images of a plan of one round are this process's."""
        return [i for i in own_images(self.mesh, plan.bucket.batch) if i < plan.batch]

    def _check_finite(self, params: Params, plan: Plan, finite: np.ndarray) -> None:
        """Raise NonFiniteError if an image is not finite; `finite` are the flags of this process's own.

        All processes raise it, so that none goes on alone.
        """
        all_finite = np.ones(plan.batch, bool)
        all_finite[self._own(plan)] = finite
        bad = np.flatnonzero(~gathered(all_finite, self.mesh).all(0))
        if bad.size:
            raise self.not_finite(params, f"the image of seed {plan.seeds[bad[0]]} ({bad.size} of {plan.batch})")

    def not_finite(self, params: Params, what: str) -> NonFiniteError:
        """The error where `what` became NaN or infinite: it names the parameter that is so itself, if one is."""
        broken = first_broken(params)
        if broken is not None:
            remedy = f"{broken} of the checkpoint is so itself: get the checkpoint again, or another one"
        else:
            remedy = "lower `guidance_scale`"
            if self.dtype != np.float32:
                remedy = f"use `dtype=float32`, or {remedy}"
        return NonFiniteError(f"{what} became NaN or infinite; {remedy}")


@contextmanager
def _stopwatch(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - began
