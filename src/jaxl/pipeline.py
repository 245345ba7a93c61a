"""From text to pictures: the public way in.

pipe, params = jaxl.from_pretrained("tiny")
result = pipe.generate(params, "a red apple on a blue background, flat style", seed=7, num_images=4)
result.images[0].save("apple.png")
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from PIL import Image

from jaxl import arguments
from jaxl.arguments import MicroConditioning
from jaxl.diffusion.loop import Slots
from jaxl.diffusion.noise import image_key
from jaxl.diffusion.rows import Table
from jaxl.diffusion.tables import build_table, scheduler_name
from jaxl.errors import CheckpointError, InputError, NonFiniteError, TruncationWarning
from jaxl.model import Model
from jaxl.programs import Bucket, Conditioning, Programs, Text, enable_disk_cache
from jaxl.sharding import make_mesh, place_parameters
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.checkpoint import Checkpoint, load_params
from jaxl.weights.folder import TOKENIZERS
from jaxl.weights.layout import flatten
from jaxl.weights.save import save_checkpoint
from jaxl.weights.source import open_checkpoint

Params = dict[str, Any]
Progress = Callable[[Literal["load", "compile", "generate"], int, int], None]
Callback = Callable[[int, int, np.ndarray], bool | None]
Output = Literal["pil", "numpy", "latents"]


@dataclass(frozen=True)
class Result:
    """What one call of `generate` made.

    `images`: PIL images, or one float32 array [B, H, W, 3] in 0..1 (`output="numpy"`), or an empty list (`"latents"`).
    `latents`: float32 [B, H/8, W/8, 4], as the last row left them. `seeds`: one per image. `scheduler`: its full name.
    `steps`: rows that ran, less than asked for if the callback stopped. `timings`: seconds of `compile`, `text`,
    `denoise`, `decode` and `total`.
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
    compile_for: Sequence[Bucket] = (),
    progress: Progress | None = None,
) -> tuple[Pipeline, Params]:
    """Load a checkpoint: the pipeline, and its parameters on the devices.

    Args:
        model: a hub id, a folder in diffusers' layout, a `.safetensors` file in the original layout, or "tiny".
        dtype: of weights and compute, bfloat16 or float32. The scheduler and the loop are float32 always.
        mesh: the devices, all by default; batches are split over them.
        shard_params: split the parameters over the devices instead of keeping all of them on each.
        revision, token, cache_dir, local_files_only: passed on to the hub. variant: of the weight files, such as
        "fp16".
        compile_for: buckets whose programs are compiled while the weights load.
        progress: called with ("load", tensors placed, tensors in all).

    Raises CheckpointError if the checkpoint is missing, damaged or not of SDXL's kind; InputError for the arguments.
    """
    if dtype not in (jnp.bfloat16, jnp.float32):
        raise InputError("dtype", dtype, "use jax.numpy.bfloat16 or jax.numpy.float32")
    enable_disk_cache()
    checkpoint = open_checkpoint(
        model,
        revision=revision,
        variant=variant,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    pipe = Pipeline(checkpoint, dtype=dtype, mesh=mesh or make_mesh(), shard_params=shard_params)
    for bucket in compile_for:
        pipe.programs.compile(bucket)
    return pipe, pipe.load_params(progress=progress)


TokenIds = dict[str, np.ndarray]  # by text encoder, int32 [1, T]


@dataclass(frozen=True)
class Plan:
    """A call of `generate` with its arguments checked: `batch` images in a bucket, one value for each.

    `ids`: by branch and image, as the bucket has branches; None is the zero embedding. `noise`: given initial latents.
    """

    batch: int
    bucket: Bucket
    scheduler: str
    table: Table
    ids: list[list[TokenIds | None]]
    clip_skip: int
    seeds: list[int]
    guidance_scale: np.ndarray
    time_ids: np.ndarray
    noise: np.ndarray | None


class Pipeline:
    """A loaded checkpoint without its parameters, which every call is given: see `from_pretrained`."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: DTypeLike, mesh: Mesh, shard_params: bool = False):
        self.checkpoint = checkpoint
        self.model = Model.from_configs(checkpoint.configs)
        self.dtype = jnp.dtype(dtype)
        self.mesh = mesh
        shapes = place_parameters(self.model.shapes(dtype), mesh, split=shard_params)
        self.programs = Programs(self.model, mesh, shapes)
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

    def load_params(self, progress: Progress | None = None) -> Params:
        """Read, cast and place the checkpoint's tensors, one at a time."""
        shapes = self.programs.shapes
        shardings = {name: {key: leaf.sharding for key, leaf in flatten(tree).items()} for name, tree in shapes.items()}
        return load_params(
            self.checkpoint,
            shapes,
            dtype=self.dtype,
            place=lambda component, key, array: jax.device_put(array, shardings[component][key]),
            progress=None if progress is None else lambda done, total: progress("load", done, total),
        )

    def save_pretrained(self, folder: str | os.PathLike[str], params: Params) -> None:
        """Write a folder that diffusers and jaxl open. Raises OutputError, leaving nothing behind."""
        tokenizers = {TOKENIZERS[encoder]: tokenizer.save for encoder, tokenizer in self.tokenizers.items()}
        save_checkpoint(Path(folder), self.checkpoint.configs, params, tokenizers)

    def bucket(
        self, images: int, height: int | None = None, width: int | None = None, *, guided: bool = True
    ) -> Bucket:
        """The bucket that `images` images of a size run in: filled up to a multiple of the devices."""
        size, factor = self.model.default_size, self.model.vae.factor
        batch = -(-images // self.mesh.size) * self.mesh.size
        return Bucket(
            batch,
            arguments.image_size("height", height, size, factor),
            arguments.image_size("width", width, size, factor),
            guided,
        )

    def generate(
        self,
        params: Params,
        prompt: str | Sequence[str],
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        steps: int = 25,
        guidance_scale: float | Sequence[float] = 5.0,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        scheduler: str | None = None,
        latents: Any = None,
        clip_skip: int = 0,
        output: Output = "pil",
        callback: Callback | None = None,
        progress: Progress | None = None,
        **micro: Unpack[MicroConditioning],
    ) -> Result:
        """Make pictures of a prompt, or of each prompt of a list.

        Args:
            params: what `from_pretrained` returned.
            prompt, negative_prompt: for both text encoders; `prompt_2`, `negative_prompt_2` for the second one alone. A
                negative prompt that is not given is zeros in SDXL and the empty text in models that were trained so.
            seed: 0 to 2**64 - 1, counting up from image to image, or one for each image. A seed gives the same
                image in any batch and on any number of devices.
            steps: 1 to the schedule's training steps.
            guidance_scale: finite, one or one for each image; at 1 or below the negative branch is not computed.
            width, height: pixels, multiples of 8; the size the model was trained for by default.
            num_images: for each prompt.
            scheduler: a name, such as "euler" or "dpm++2m_karras"; the checkpoint's own by default.
            latents: initial noise of unit variance, [B, height/8, width/8, 4], in place of the seeds' own.
            clip_skip: layers of the encoders to skip for `prompt`, beyond the last one that SDXL never reads.
            output: "pil", "numpy" (float32 [B, H, W, 3] in 0..1) or "latents" (nothing is decoded).
            callback: called after each step with (steps done, steps in all, latents); False stops there.
            progress: called with ("compile" or "generate", done, in all).
            **micro: `arguments.MicroConditioning`.

        No argument but the number of images, their size and whether any is guided makes anything compile anew. Raises
        InputError for an argument that cannot work and NonFiniteError rather than return a broken image; warns with
        TruncationWarning when a prompt was cut.
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
            **micro,
        )
        return self.run(params, plan, output=output, callback=callback, progress=progress)

    def plan(
        self,
        prompt: str | Sequence[str],
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        seed: int | Sequence[int] = 0,
        steps: int = 25,
        guidance_scale: float | Sequence[float] = 5.0,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        scheduler: str | None = None,
        latents: Any = None,
        clip_skip: int = 0,
        **micro: Unpack[MicroConditioning],
    ) -> Plan:
        """Check the arguments of `generate` and give each image its own, before anything is loaded or compiled."""
        model = self.model
        if model.unet.in_channels != model.vae.latent_channels:
            raise InputError(
                "model", self.checkpoint.source, "an inpainting model needs a picture and a mask, not a prompt alone"
            )
        each = arguments.whole_number("num_images", num_images, least=1)
        positive = arguments.prompts_per_image("prompt", prompt, None, each)
        batch = len(positive)
        others = {"prompt_2": prompt_2, "negative_prompt": negative_prompt, "negative_prompt_2": negative_prompt_2}
        texts = {"prompt": positive} | {
            name: arguments.prompts_per_image(name, value, batch // each, each)
            for name, value in others.items()
            if value is not None
        }
        scales = arguments.guidance_per_image(guidance_scale, batch)
        bucket = self.bucket(batch, height, width, guided=bool((scales > 1).any()))
        shape = self.programs.latents_shape(bucket)
        ids = arguments.time_ids(micro, bucket.height, bucket.width, model.time_ids)
        most = min(cfg.layers for cfg in model.text_encoders.values()) - 1
        return Plan(
            batch=batch,
            bucket=bucket,
            scheduler=scheduler_name(model.scheduler, scheduler),
            table=build_table(model.scheduler, steps, scheduler),
            ids=self._token_ids(texts, batch)[-bucket.branches :],
            clip_skip=arguments.whole_number("clip_skip", clip_skip, least=0, most=most),
            seeds=arguments.seeds_per_image(seed, batch),
            # a scale of 1 gives the positive branch alone, which is what a scale below 1 asks for
            guidance_scale=np.maximum(scales, 1.0),
            time_ids=ids[-bucket.branches :],
            noise=None if latents is None else arguments.check_latents(latents, (batch, *shape[1:])),
        )

    def run(
        self,
        params: Params,
        plan: Plan,
        *,
        output: Output = "pil",
        callback: Callback | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Make the pictures of a plan; arguments and errors are those of `generate`."""
        if output not in ("pil", "numpy", "latents"):
            raise InputError("output", output, "give 'pil', 'numpy' or 'latents'")
        self._check_params(params)
        began = time.perf_counter()
        timings: dict[str, float] = {}
        with _stopwatch(timings, "compile"):
            self._compile(plan.bucket, decode=output != "latents", progress=progress)
        with _stopwatch(timings, "text"):
            slots, cond = self._start(params, plan)
        with _stopwatch(timings, "denoise"):
            slots, done = self._advance(params, plan, slots, cond, callback, progress)
            final = np.array(slots.latents)[: plan.batch]
        _check_finite(np.asarray(np.isfinite(final).all((1, 2, 3))), plan.seeds, self.dtype)
        with _stopwatch(timings, "decode"):
            images = [] if output == "latents" else self._decode(params, plan, slots.latents, output)
        timings["total"] = time.perf_counter() - began
        return Result(images, final, plan.seeds, plan.scheduler, done, timings)

    def _token_ids(self, texts: dict[str, list[str]], batch: int) -> list[list[TokenIds | None]]:
        """For the negative and the positive branch, each image's token ids by text encoder; None stands for zeros."""
        branches: list[list[TokenIds | None]] = []
        for prefix in ("negative_", ""):
            first, second = texts.get(f"{prefix}prompt"), texts.get(f"{prefix}prompt_2")
            if first is None and second is None and self.model.zero_negative:
                branches.append([None] * batch)
                continue
            first = first or [""] * batch
            by_encoder = {
                "text_encoder": (f"{prefix}prompt", first),
                "text_encoder_2": (f"{prefix}prompt_2", second) if second else (f"{prefix}prompt", first),
            }
            ids = {encoder: self._tokenize(encoder, *by_encoder[encoder]) for encoder in self.tokenizers}
            branches.append([{encoder: rows[i : i + 1] for encoder, rows in ids.items()} for i in range(batch)])
        return branches

    def _tokenize(self, encoder: str, argument: str, texts: list[str]) -> np.ndarray:
        encoded = self.tokenizers[encoder].encode(texts, argument)
        for lost in sorted(set(encoded.lost) - {""}):
            length = self.tokenizers[encoder].max_length
            warnings.warn(f"{argument} is cut at {length} tokens; lost: {lost!r}", TruncationWarning, stacklevel=5)
        return encoded.ids

    def _check_params(self, params: Params) -> None:
        """A tree of another dtype or structure would otherwise fail deep inside jax, with a page of shapes."""
        wanted = jax.tree.map(lambda s: (s.shape, s.dtype), self.programs.shapes)
        if jax.tree.map(lambda a: (a.shape, a.dtype), params) != wanted:
            raise InputError(
                "params",
                type(params).__name__,
                f"not the {self.dtype} parameters that from_pretrained gave with this pipeline",
            )

    def _compile(self, bucket: Bucket, *, decode: bool, progress: Progress | None) -> None:
        futures = self.programs.compile(bucket, decode=decode)
        for done, future in enumerate(futures):
            if progress is not None:
                progress("compile", done, len(futures))
            future.result()
        if progress is not None:
            progress("compile", len(futures), len(futures))

    def _start(self, params: Params, plan: Plan) -> tuple[Slots, Conditioning]:
        """Encode each different text once, then gather the batch on the devices."""
        run, encoders = self.programs.get("encode_text"), {name: params[name] for name in self.tokenizers}
        zeros = self.programs.zero_text()
        # diffusers, the reference, skips layers for the positive text alone
        skips = [0, plan.clip_skip][-plan.bucket.branches :]
        known: dict[tuple[int, bytes] | None, Text] = {None: zeros}
        texts: list[list[Text]] = []
        for i in range(plan.batch):
            texts.append([])
            for skip, branch in zip(skips, plan.ids, strict=True):
                ids = branch[i]
                key = None if ids is None else (skip, b"".join(rows.tobytes() for rows in ids.values()))
                if key not in known:
                    known[key] = run(encoders, ids, np.int32(skip))
                texts[-1].append(known[key])
        size = plan.bucket.batch
        # the last image again fills the bucket, and is thrown away in the end
        order = [min(i, plan.batch - 1) for i in range(size)]
        shape = self.programs.latents_shape(plan.bucket)
        noise = np.zeros(shape, np.float32) if plan.noise is None else plan.noise[order]
        slots, text = self.programs.get("start", plan.bucket)(
            [texts[i] for i in order],
            np.broadcast_to(plan.table.rows, (size, *plan.table.rows.shape)),
            np.full(size, plan.table.used, np.int32),
            np.full(size, plan.table.init_scale, np.float32),
            np.stack([image_key(plan.seeds[i]) for i in order]),
            np.full(size, plan.noise is not None),
            noise,
        )
        time_ids = np.broadcast_to(plan.time_ids, (size, *plan.time_ids.shape))
        return slots, Conditioning(text, time_ids, plan.guidance_scale[order])

    def _advance(
        self,
        params: Params,
        plan: Plan,
        slots: Slots,
        cond: Conditioning,
        callback: Callback | None,
        progress: Progress | None,
    ) -> tuple[Slots, int]:
        """Run the table in one dispatch, or step by step where somebody wants to hear of each; also the rows done."""
        run, total = self.programs.get("advance", plan.bucket), plan.table.used
        n = total if callback is None and progress is None else 1
        for done in range(n, total + 1, n):
            slots = run(params["unet"], slots, cond, np.int32(n))
            if progress is not None:
                slots.row.block_until_ready()
                progress("generate", done, total)
            # a copy, because the next call reuses the buffer
            if callback is not None and callback(done, total, np.array(slots.latents)[: plan.batch]) is False:
                return slots, done
        return slots, total

    def _decode(self, params: Params, plan: Plan, latents: jax.Array, output: Output) -> list[Image.Image] | np.ndarray:
        pixels, bytes_, finite = self.programs.get("decode", plan.bucket)(params["vae"], latents)
        _check_finite(np.asarray(finite)[: plan.batch], plan.seeds, self.dtype)
        if output == "numpy":
            return np.asarray(pixels)[: plan.batch]
        return [Image.fromarray(image) for image in np.asarray(bytes_)[: plan.batch]]


@contextmanager
def _stopwatch(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - began


def _check_finite(finite: np.ndarray, seeds: list[int], dtype: np.dtype) -> None:
    if not finite.all():
        bad = [seed for seed, fine in zip(seeds, finite, strict=True) if not fine]
        remedy = "lower guidance_scale" if dtype == np.float32 else "use dtype=float32, or lower guidance_scale"
        raise NonFiniteError(
            f"the image of seed {bad[0]} became NaN or infinite ({len(bad)} of {len(seeds)}); {remedy}"
        )
