"""The compiled programs of a model, one of each kind per bucket, ahead of time and cached on disk.

Four kinds make a picture: `encode_text` (one text at a time), `start` (noise and tables into slots), `advance` (rows
of the table: all the work) and `decode` (latents to pixels). Only shapes are compiled in; scheduler, steps,
guidance, prompt and seed are arguments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxl.diffusion import loop
from jaxl.diffusion.loop import Slots
from jaxl.diffusion.noise import initial_noise
from jaxl.diffusion.rows import COLUMNS, MAX_ROWS
from jaxl.model import Model
from jaxl.nn.clip import clip
from jaxl.nn.layers import Params
from jaxl.nn.unet import unet
from jaxl.nn.vae import decode as vae_decode
from jaxl.sharding import batch_sharding, replicated, with_sharding

Leaf = Any  # an array on the devices or on the host, or the shape of one


@dataclass(frozen=True)
class Bucket:
    """The shapes a program is compiled for. `guided` programs evaluate the network twice a row (arXiv:2207.12598)."""

    batch: int
    height: int
    width: int
    guided: bool

    @property
    def branches(self) -> int:
        """Texts for each image: negative and positive, or positive alone."""
        return 2 if self.guided else 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Text:
    """Encoded texts, or the branches of a batch of images: prompt_embeds [..., T, D], pooled [..., P]."""

    prompt_embeds: Leaf
    pooled: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioning:
    """What the network is told about B images, each in G branches (the bucket's `branches`), the negative one first.

    text: [B, G, ...]; time_ids: float32 [B, G, 5 or 6]; guidance_scale: float32 [B].
    """

    text: Text
    time_ids: Leaf
    guidance_scale: Leaf


def encode_text(params: Params, model: Model, ids: dict[str, Array], clip_skip: Array | int) -> Text:
    """N texts, as ids [N, T] for each text encoder -> their embeddings side by side (arXiv:2307.01952, section 2.1)."""
    states, pooled = [], None
    for name, cfg in model.text_encoders.items():
        hidden, pooled = clip(params[name], cfg, ids[name], clip_skip)
        states.append(hidden)
    assert pooled is not None  # Model requires the last encoder's projection
    return Text(jnp.concatenate(states, axis=-1), pooled)


def start(
    texts: list[list[Text]], rows: Array, used: Array, init_scale: Array, keys: Array, given: Array, latents: Array
) -> tuple[Slots, Text]:
    """Gather a batch: slots at their first row, and the texts, [image][branch], stacked to [B, G, ...].

    The unit noise is drawn from `keys` [B, 2], or is `latents` [B, h, w, C] where its flag in `given` [B] is set;
    either is scaled to the table's first noise level.
    """
    noise = jnp.where(given[:, None, None, None], latents, initial_noise(keys, latents.shape[1:]))
    images = [jax.tree.map(lambda *branches: jnp.concatenate(branches), *branches) for branches in texts]
    return loop.init_slots(rows, used, init_scale, keys, noise), jax.tree.map(lambda *each: jnp.stack(each), *images)


def denoise(params: Params, model: Model, cond: Conditioning, x: Array, t: Array) -> Array:
    """The network's output, float32, for scaled latents `x` at timesteps `t` [B]; guided if cond has two branches."""
    b, g = cond.time_ids.shape[:2]
    # an image's branches are neighbours on the batch axis, so splitting the axis over devices keeps them together
    per_branch = partial(jnp.repeat, repeats=g, axis=0)
    flat = jax.tree.map(lambda a: a.reshape(b * g, *a.shape[2:]), (cond.text, cond.time_ids))
    out = unet(params, model.unet, per_branch(x), per_branch(t), flat[0].prompt_embeds, flat[0].pooled, flat[1])
    out = out.astype(jnp.float32).reshape(b, g, *out.shape[1:])
    if g == 1:
        return out[:, 0]
    negative, positive = out[:, 0], out[:, 1]
    return negative + cond.guidance_scale[:, None, None, None] * (positive - negative)


def advance(params: Params, model: Model, slots: Slots, cond: Conditioning, n: Array) -> Slots:
    """Run the next `n` rows (traced) of every slot."""
    return loop.advance(partial(denoise, params, model, cond), slots, n)


def decode(params: Params, model: Model, latents: Array, devices: int = 1) -> tuple[Array, Array, Array]:
    """Latents [B, h, w, C] -> images [B, H, W, 3] in 0..1 float32, the same as uint8, and whether all is finite [B].

    One image per device at a time: pixels take far more memory than latents, and a larger batch is not faster.
    """

    def some(latents: Array) -> tuple[Array, Array, Array]:
        images = vae_decode(params, model.vae, latents / model.vae.scaling_factor)
        finite = jnp.isfinite(images).all((1, 2, 3))
        images = jnp.clip(images / 2 + 0.5, 0.0, 1.0)
        return images, jnp.round(images * 255.0).astype(jnp.uint8), finite

    batch = latents.shape[0]
    if batch == devices:
        return some(latents)
    rounds = latents.reshape(devices, batch // devices, *latents.shape[1:]).swapaxes(0, 1)
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(batch, *a.shape[2:]), jax.lax.map(some, rounds))


class Programs:
    """Compiles each program once, in the background if asked early, and hands it out.

    `shapes` are the components' parameter trees with a sharding on each leaf; no values are needed, so programs compile
    while weights load, or for devices that are not there.
    """

    def __init__(self, model: Model, mesh: Mesh, shapes: dict[str, Any]):
        self.model = model
        self.mesh = mesh
        self.shapes = shapes
        self._futures: dict[tuple[str, Bucket | None], Future[Any]] = {}
        self._lock = threading.Lock()

    def compile(self, bucket: Bucket, *, decode: bool = True) -> list[Future[Any]]:
        """Begin to compile the programs that a bucket needs, each in a thread of its own, the longest first."""
        kinds = ("advance", "decode", "encode_text", "start") if decode else ("advance", "encode_text", "start")
        return [self._begin(kind, None if kind == "encode_text" else bucket) for kind in kinds]

    def get(self, kind: str, bucket: Bucket | None = None) -> Callable[..., Any]:
        """The compiled program, waiting for it if need be. It takes the function's arguments less the static ones."""
        return self._begin(kind, bucket).result()

    def trace(self, kind: str, bucket: Bucket | None = None) -> jax.stages.Traced:
        """The program traced on shapes alone, for whoever lowers and compiles it another way."""
        return getattr(self, f"_trace_{kind}")(bucket)

    def _begin(self, kind: str, bucket: Bucket | None) -> Future[Any]:
        with self._lock:
            future = self._futures.get((kind, bucket))
            if future is None:
                future = self._futures[kind, bucket] = Future()
                threading.Thread(
                    target=self._compile, args=(kind, bucket, future), name=f"compile {kind}", daemon=True
                ).start()
        return future

    def _compile(self, kind: str, bucket: Bucket | None, future: Future[Any]) -> None:
        try:
            future.set_result(self.trace(kind, bucket).lower().compile())
        except BaseException as error:  # handed to whoever waits for the program
            with self._lock:
                del self._futures[kind, bucket]
            future.set_exception(error)

    def _trace_encode_text(self, _: None) -> jax.stages.Traced:
        params = {name: self.shapes[name] for name in self.model.text_encoders}
        ids = {name: self._struct((1, cfg.max_length), jnp.int32) for name, cfg in self.model.text_encoders.items()}
        run = jax.jit(lambda p, ids, n: encode_text(p, self.model, ids, n), out_shardings=replicated(self.mesh))
        return run.trace(params, ids, self._struct((), jnp.int32))

    def _trace_start(self, bucket: Bucket) -> jax.stages.Traced:
        return jax.jit(start, out_shardings=batch_sharding(self.mesh)).trace(*self._start_arguments(bucket))

    def _trace_advance(self, bucket: Bucket) -> jax.stages.Traced:
        images = batch_sharding(self.mesh)
        slots, text = jax.eval_shape(start, *self._start_arguments(bucket))
        cond = Conditioning(
            text,
            jax.ShapeDtypeStruct((bucket.batch, bucket.branches, self.model.time_ids), jnp.float32),
            jax.ShapeDtypeStruct((bucket.batch,), jnp.float32),
        )
        run = jax.jit(
            lambda p, slots, cond, n: advance(p, self.model, slots, cond, n), donate_argnums=1, out_shardings=images
        )
        return run.trace(
            self.shapes["unet"], with_sharding(slots, images), with_sharding(cond, images), self._struct((), jnp.int32)
        )

    def _trace_decode(self, bucket: Bucket) -> jax.stages.Traced:
        images = batch_sharding(self.mesh)
        run = jax.jit(lambda p, latents: decode(p, self.model, latents, self.mesh.size), out_shardings=images)
        latents = jax.ShapeDtypeStruct(self.latents_shape(bucket), jnp.float32, sharding=images)
        return run.trace(self.shapes["vae"], latents)

    def zero_text(self) -> Text:
        """The embeddings of a text that is not given, in models that take zeros for it."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), self._text_shapes())

    def latents_shape(self, bucket: Bucket) -> tuple[int, int, int, int]:
        factor = self.model.vae.factor
        return bucket.batch, bucket.height // factor, bucket.width // factor, self.model.vae.latent_channels

    def _text_shapes(self) -> Text:
        length, last = self.model.text_encoder_2.max_length, self.shapes["text_encoder_2"]["text_projection"]["weight"]
        return Text(
            jax.ShapeDtypeStruct((1, length, self.model.unet.cross_attention_dim), last.dtype),
            jax.ShapeDtypeStruct((1, last.shape[-1]), last.dtype),
        )

    def _start_arguments(self, bucket: Bucket) -> tuple[Any, ...]:
        """Shapes of the arguments of `start`: texts on every device, everything else split by image."""
        images, b = batch_sharding(self.mesh), bucket.batch
        text = with_sharding(self._text_shapes(), replicated(self.mesh))
        split = [
            jax.ShapeDtypeStruct((b, MAX_ROWS, len(COLUMNS)), jnp.float32),
            jax.ShapeDtypeStruct((b,), jnp.int32),
            jax.ShapeDtypeStruct((b,), jnp.float32),
            jax.ShapeDtypeStruct((b, 2), jnp.uint32),
            jax.ShapeDtypeStruct((b,), jnp.bool_),
            jax.ShapeDtypeStruct(self.latents_shape(bucket), jnp.float32),
        ]
        return ([[text] * bucket.branches] * b, *with_sharding(split, images))

    def _struct(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=replicated(self.mesh))


def enable_disk_cache() -> None:
    """Keep compiled programs in a folder, so that the next process starts from them.

    The folder is the one jax is configured with, else `$JAXL_CACHE_DIR`, else `jaxl` in the user's cache folder.
    jax itself puts versions, devices and compiler flags into the keys.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxl"
        jax.config.update("jax_compilation_cache_dir", os.environ.get("JAXL_CACHE_DIR") or str(home / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
