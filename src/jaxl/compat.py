"""`FlaxStableDiffusionXLPipeline` for programs written against diffusers before 0.40, which removed it.

    from jaxl.compat import FlaxStableDiffusionXLPipeline

The calls, shapes and conventions are the removed class's; its faults are not. Weights compute in the dtype they
have, the scheduler is never rounded, guidance may differ from image to image, guidance of 1 or less costs one pass,
and only the batch, the size and the kind of guidance compile anew. New programs should use `jaxl.from_pretrained`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from PIL import Image

from jaxl.call import arguments
from jaxl.call.options import LoadOptions
from jaxl.diffusion import loop
from jaxl.diffusion.rows import COLUMNS, Table
from jaxl.diffusion.tables import build_table
from jaxl.errors import InputError
from jaxl.nn.unet import unet_context
from jaxl.pipeline import Params, Pipeline
from jaxl.run.bucket import Branch, Bucket, Conditioning, Text
from jaxl.run.disk_cache import enable_disk_cache
from jaxl.run.sharding import AXIS, make_mesh
from jaxl.run.steps import advance, decode, encode_text
from jaxl.weights.folder import TOKENIZERS
from jaxl.weights.source import open_checkpoint

__all__ = ["FlaxStableDiffusionXLPipeline", "FlaxStableDiffusionXLPipelineOutput"]


@dataclass(frozen=True)
class FlaxStableDiffusionXLPipelineOutput:
    """`images`: float32 [B, H, W, 3] in 0..1 ([n, B, H, W, 3] with `jit=True`), or NCHW latents for "latent"."""

    images: Any


class FlaxStableDiffusionXLPipeline:
    """The removed pipeline's interface over jaxl's programs; make it with `from_pretrained`."""

    def __init__(self, pipeline: Pipeline, scheduler: str | None = None):
        self.pipeline = pipeline
        self.scheduler = scheduler
        static = ("height", "width", "guided", "return_latents")
        self._run = jax.jit(self._sample, static_argnames=static)
        self._run_mapped = jax.jit(self._map, static_argnames=static)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        dtype: DTypeLike | None = None,
        split_head_dim: bool = False,
        from_pt: bool = False,
        use_memory_efficient_attention: bool = False,
        scheduler: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        token: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> tuple[FlaxStableDiffusionXLPipeline, Params]:
        """Load a checkpoint as `jaxl.from_pretrained` does, in float32 unless `dtype` says otherwise.

        `params` has the keys `unet`, `vae`, `text_encoder`, `text_encoder_2` and `scheduler`; the last is
        informative, and survives being popped, cast and put back. `split_head_dim`, `from_pt` and
        `use_memory_efficient_attention` chose between implementations; here there is one, and they change nothing.
        `scheduler` is one of jaxl's names.
        """
        enable_disk_cache()
        checkpoint = open_checkpoint(
            pretrained_model_name_or_path,
            revision=revision,
            variant=variant,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        mesh = make_mesh(jax.local_devices()[:1])
        pipeline = Pipeline(checkpoint, LoadOptions(dtype=jnp.float32 if dtype is None else dtype, mesh=mesh))
        build_table(pipeline.model.scheduler, 1, scheduler)  # an unknown name is refused here, not after loading
        params = pipeline.load_params()
        schedule = pipeline.model.scheduler.noise
        return cls(pipeline, scheduler), params | {
            "scheduler": {"alphas_cumprod": jnp.asarray(schedule.alphas_cumprod(), jnp.float32)}
        }

    def prepare_inputs(self, prompt: str | Sequence[str]) -> np.ndarray:
        """Return token ids int32 [B, 2, 77]: the same text for both tokenizers ([B, 1, 77] for the refiner)."""
        prompts = arguments.prompts_per_image("prompt", prompt, None, 1)
        return np.stack([t.encode(prompts).ids for t in self.pipeline.tokenizers.values()], axis=1)

    def __call__(
        self,
        prompt_ids: Any,
        params: Params,
        prng_seed: Any,
        num_inference_steps: int = 50,
        guidance_scale: Any = 7.5,
        height: int | None = None,
        width: int | None = None,
        latents: Any = None,
        neg_prompt_ids: Any = None,
        return_dict: bool = True,
        output_type: str | None = None,
        jit: bool = False,
    ) -> Any:
        """Make images of `prompt_ids` [B, 2, 77] with one key for the batch.

        With `jit=True` everything but the numbers is mapped over n devices: prompt_ids [n, B, 2, 77], parameters
        [n, ...] as `flax.jax_utils.replicate` makes them, keys [n]. `guidance_scale` is a number, or one for
        each image in any shape that broadcasts against the images. Without `neg_prompt_ids` the negative
        embeddings are zeros.
        `latents` are NCHW noise of unit variance; `output_type` is None, "pil" (without `jit`) or "latent". Returns a
        FlaxStableDiffusionXLPipelineOutput, or `(images,)` without `return_dict`.
        """
        if output_type not in (None, "np", "pil", "latent"):
            raise InputError("output_type", output_type, "give None, 'pil' or 'latent'")
        height, width = self._size(height, width)
        prompt_ids = self._ids("prompt_ids", prompt_ids, mapped=jit)
        images = prompt_ids.shape[: 2 if jit else 1]
        if neg_prompt_ids is not None:
            neg_prompt_ids = self._ids("neg_prompt_ids", neg_prompt_ids, mapped=jit)
        scale = _guidance(guidance_scale, images)
        latents = self._given_latents(latents, (*images, *self._latent_shape(height, width)))
        table = build_table(self.pipeline.model.scheduler, num_inference_steps, self.scheduler)
        run = self._run_mapped if jit else self._run
        inputs = (prompt_ids, neg_prompt_ids, _key_data(prng_seed), np.maximum(scale, 1.0), latents)
        out, finite = run(
            {name: tree for name, tree in params.items() if name != "scheduler"},
            inputs,
            _traced(table),
            height=height,
            width=width,
            guided=bool((scale > 1).any()),
            return_latents=output_type == "latent",
        )
        if not np.asarray(finite).all():
            raise self.pipeline.not_finite({name: params[name] for name in self.pipeline.programs.shapes}, "an image")
        made = self.numpy_to_pil(np.asarray(out)) if output_type == "pil" else out
        return FlaxStableDiffusionXLPipelineOutput(made) if return_dict else (made,)

    def _generate(
        self,
        prompt_ids: Array,
        params: Params,
        prng_seed: Array,
        num_inference_steps: int,
        height: int,
        width: int,
        guidance_scale: Any,
        latents: Array | None = None,
        neg_prompt_ids: Array | None = None,
        return_latents: bool = False,
    ) -> Array:
        """Make one device's share, to be traced by `jax.jit` or `jax.pmap` and compiled ahead of time.

        Steps, height, width and `return_latents` are static. Nothing can be raised from inside, so NaN stays NaN.
        """
        scale = jnp.broadcast_to(jnp.asarray(guidance_scale, jnp.float32), (prompt_ids.shape[0],))
        table = build_table(self.pipeline.model.scheduler, num_inference_steps, self.scheduler)
        inputs = (prompt_ids, neg_prompt_ids, _key_data(prng_seed), jnp.maximum(scale, 1.0), latents)
        out, _ = self._sample(
            params, inputs, _traced(table), height=height, width=width, guided=True, return_latents=return_latents
        )
        return out

    def _map(self, params: Params, inputs: Any, table: Any, **static: Any) -> tuple[Array, Array]:
        """Run `_sample` on each device; the leading axis of everything but the table counts devices."""
        devices = inputs[0].shape[0]
        mesh = make_mesh(jax.devices()[:devices])

        def one(params: Params, inputs: Any, table: Any) -> Any:
            params, inputs = jax.tree.map(lambda a: a[0], (params, inputs))
            return jax.tree.map(lambda a: a[None], self._sample(params, inputs, table, **static))

        split, whole = PartitionSpec(AXIS), PartitionSpec()
        # the devices share nothing, so there is no replication for jax to check
        run = jax.shard_map(one, mesh=mesh, in_specs=(split, split, whole), out_specs=split, check_vma=False)
        return run(params, inputs, table)

    def _sample(
        self,
        params: Params,
        inputs: tuple[Array, Array | None, Array, Array, Array | None],
        table: Any,
        *,
        height: int,
        width: int,
        guided: bool,
        return_latents: bool,
    ) -> tuple[Array, Array]:
        """Return images [B, H, W, 3] or NCHW latents, and whether each is finite [B]."""
        model = self.pipeline.model
        prompt_ids, neg_prompt_ids, key, scale, latents = inputs
        b = prompt_ids.shape[0]
        bucket = Bucket(b, height, width, guided)
        encoded = {Branch.POSITIVE: self._encode(params, prompt_ids)}
        if neg_prompt_ids is not None and guided:
            encoded[Branch.NEGATIVE] = self._encode(params, neg_prompt_ids)
        elif guided:
            encoded[Branch.NEGATIVE] = jax.tree.map(jnp.zeros_like, encoded[Branch.POSITIVE])
        texts = jax.tree.map(lambda *each: jnp.stack(each, axis=1), *(encoded[branch] for branch in bucket.order))
        sizes = arguments.time_ids({}, height, width, model.time_ids)
        ids = np.stack([sizes[branch] for branch in bucket.order])
        cond = Conditioning(
            context=unet_context(params["unet"], texts.prompt_embeds),
            pooled=texts.pooled,
            time_ids=jnp.broadcast_to(ids, (b, *ids.shape)),
            lengths=None,
            blur=None,
            freeu=None,
            inpaint=None,
            adapters=None,
            controls=(),
            image_prompts=(),
            regions=(),
        )
        if latents is None:
            latents = jax.random.normal(key, (b, *self._latent_shape(height, width)), jnp.float32)
        rows, used, init_scale = (jnp.broadcast_to(a, (b, *a.shape)) for a in table)
        rows = rows.at[:, :, COLUMNS.index("guidance")].set(scale[:, None])
        slots = loop.init_slots(rows, used, jax.random.split(key, b), latents.transpose(0, 2, 3, 1), init_scale)
        out = advance(model, bucket, params["unet"], slots, cond, table[1], (), None).latents
        if return_latents:
            return out.transpose(0, 3, 1, 2), jnp.isfinite(out).all((1, 2, 3))
        images, _, finite = decode(model, params["vae"], out)
        return images, finite

    def _encode(self, params: Params, ids: Array) -> Text:
        by_encoder = {name: ids[:, i] for i, name in enumerate(self.pipeline.tokenizers)}
        weights = {name: jnp.ones(rows.shape, jnp.float32) for name, rows in by_encoder.items()}
        return encode_text(self.pipeline.model, params, by_encoder, weights, 0, {})

    @property
    def components(self) -> dict[str, Any]:
        """The configurations and tokenizers, by component."""
        model = self.pipeline.model
        networks = {"unet": model.unet, "vae": model.vae, **model.text_encoders, "scheduler": model.scheduler}
        tokenizers = {TOKENIZERS[name]: t for name, t in self.pipeline.tokenizers.items()}
        return networks | tokenizers

    def save_pretrained(self, save_directory: str | os.PathLike[str], params: Params) -> None:
        """Save as `Pipeline.save_pretrained` does; `params` may hold the scheduler's state."""
        self.pipeline.save_pretrained(save_directory, {k: v for k, v in params.items() if k != "scheduler"})

    @staticmethod
    def numpy_to_pil(images: Any) -> list[Image.Image]:
        """Return images [B, H, W, 3] or [H, W, 3] in 0..1 as PIL images."""
        images = np.asarray(images)
        images = images[None] if images.ndim == 3 else images
        return [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """Do nothing: everything runs in one dispatch, so there is no bar to configure."""

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        model = self.pipeline.model
        size, factor = model.default_size, model.vae.factor
        return arguments.image_size("height", height, size, factor), arguments.image_size("width", width, size, factor)

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        vae = self.pipeline.model.vae
        return vae.latent_channels, height // vae.factor, width // vae.factor

    def _ids(self, argument: str, ids: Any, *, mapped: bool) -> Any:
        encoders, length = len(self.pipeline.tokenizers), self.pipeline.model.text_encoder_2.max_length
        wanted = ("n", "B", encoders, length) if mapped else ("B", encoders, length)
        if np.ndim(ids) != len(wanted) or np.shape(ids)[-2:] != wanted[-2:]:
            shape = ", ".join(str(n) for n in wanted)
            raise InputError(argument, np.shape(ids), f"the shape must be [{shape}], as prepare_inputs makes it")
        return ids

    def _given_latents(self, latents: Any, shape: tuple[int, ...]) -> Any:
        if latents is not None and np.shape(latents) != shape:
            raise InputError("latents", np.shape(latents), f"the shape must be {shape}")
        return latents


def _traced(table: Table) -> tuple[np.ndarray, np.generic, np.generic]:
    """Return a table as arguments of a program: rows, rows used, initial scale."""
    return table.rows, np.int32(table.used), np.float32(table.init_scale)


def _key_data(key: Any) -> Any:
    """Return a key or an array of keys as uint32 words, whether old style or new."""
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _guidance(value: Any, images: tuple[int, ...]) -> np.ndarray:
    scale = np.asarray(value, np.float32)
    try:
        scale = np.broadcast_to(scale, images)
    except ValueError:
        raise InputError("guidance_scale", scale.shape, f"does not broadcast to the images, {images}") from None
    if not np.isfinite(scale).all():
        raise InputError("guidance_scale", value, "give finite numbers")
    return scale
