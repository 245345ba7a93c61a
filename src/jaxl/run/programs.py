"""The compiled programs of a model, one of each kind per bucket, ahead of time and cached on disk.

Five kinds make a picture: `encode_text` (a chunk of text at a time), `gather` (texts into a batch), `start` (noise and
tables into slots), `advance` (rows of the table: all the work) and `decode` (latents to pixels). `encode_image` is for
those that start from a picture, `preview` for those that are watched, `join` and `take` for those that come and go
while others run. Only shapes are compiled in; scheduler, steps, guidance, prompt and seed are arguments.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxl.diffusion.loop import Slots
from jaxl.nn.layers import Params
from jaxl.run import steps
from jaxl.run.bucket import Beginning, Bucket, Conditioning, Target, Text
from jaxl.run.model import Model
from jaxl.run.sharding import replicated, split_images
from jaxl.run.steps import features_shapes, slots_shapes
from jaxl.weights.quantise import layers

# The programs that make a picture, those that take longest to compile first.
KINDS = ("advance", "decode", "encode_text", "gather", "start")


class Programs:
    """Compiles each program of a `Target` once, in the background if asked early, and hands it out."""

    def __init__(self, model: Model, mesh: Mesh, shapes: dict[str, Params], tile: int | None = None):
        self.target = Target(model, mesh, shapes, tile)
        self._futures: dict[tuple[str, Bucket | None], Future[Any]] = {}
        self._lock = threading.Lock()

    @property
    def shapes(self) -> dict[str, Params]:
        """The parameters that programs take, by component."""
        return self.target.shapes

    def compile(self, bucket: Bucket) -> list[Future[Any]]:
        """Begin to compile the programs of a bucket, each in a thread of its own: those of KINDS, in that order."""
        return [self.begin(kind, bucket) for kind in KINDS]

    def get(self, kind: str, bucket: Bucket | None = None) -> Callable[..., Any]:
        """The compiled program, waiting for it if need be. It takes the function's arguments less the static ones."""
        return self.begin(kind, bucket).result()

    def trace(self, kind: str, bucket: Bucket | None = None) -> jax.stages.Traced:
        """The program traced on shapes alone, for whoever lowers and compiles it another way."""
        with jax.sharding.use_abstract_mesh(self.target.mesh.abstract_mesh):
            return getattr(self, f"_trace_{kind}")(bucket)

    def begin(self, kind: str, bucket: Bucket | None = None) -> Future[Any]:
        """Begin to compile a program in a thread of its own, unless that was done before."""
        key = kind, self._shapes_of(kind, bucket)
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                future = self._futures[key] = Future()
                threading.Thread(target=self._compile, args=(*key, future), name=f"compile {kind}", daemon=True).start()
        return future

    @staticmethod
    def _shapes_of(kind: str, bucket: Bucket | None) -> Bucket | None:
        """The bucket without what this kind of program does not depend on, so that buckets share it."""
        if kind == "encode_text" or bucket is None:
            return None
        if kind in ("advance", "observe", "join", "take"):
            return bucket
        if kind == "gather":
            return Bucket(bucket.batch, 0, 0, bucket.guided, bucket.chunks, bucket.pag_layers)
        return Bucket(1 if kind == "encode_image" else bucket.batch, bucket.height, bucket.width, guided=False)

    def _compile(self, kind: str, bucket: Bucket | None, future: Future[Any]) -> None:
        try:
            future.set_result(self.trace(kind, bucket).lower().compile())
        except BaseException as error:  # handed to whoever waits for the program
            with self._lock:
                del self._futures[kind, bucket]
            future.set_exception(error)

    def _trace_encode_text(self, _: None) -> jax.stages.Traced:
        to = self.target
        params = {name: to.shapes[name] for name in to.model.text_encoders}
        ids, weights = (
            {name: to.whole((1, cfg.max_length), dtype) for name, cfg in to.model.text_encoders.items()}
            for dtype in (jnp.int32, jnp.float32)
        )
        run = jax.jit(partial(steps.encode_text, to.model), out_shardings=replicated(to.mesh))
        return run.trace(params, ids, weights, to.whole((), jnp.int32))

    def _trace_gather(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(steps.gather, out_shardings=split_images(self.target.mesh, bucket.batch, bucket.branches))
        texts = [[[Text.shapes(self.target)] * bucket.chunks] * bucket.branches] * bucket.batch
        return run.trace(self.shapes["unet"], texts)

    def _trace_start(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(steps.start, out_shardings=split_images(self.target.mesh, bucket.batch))
        return run.trace(Beginning.shapes(self.target, bucket))

    def _trace_encode_image(self, bucket: Bucket) -> jax.stages.Traced:
        to = self.target
        run = jax.jit(partial(steps.encode_image, to.model, tile=to.tile), out_shardings=replicated(to.mesh))
        return run.trace(self.shapes["vae"], to.whole((1, bucket.height, bucket.width, 3), jnp.float32))

    def _trace_advance(self, bucket: Bucket) -> jax.stages.Traced:
        to, (slots, cond) = self.target, self._state(bucket)
        run = jax.jit(partial(steps.advance, to.model, bucket), donate_argnums=1, out_shardings=_shardings(slots))
        return run.trace(self.shapes["unet"], slots, cond, to.whole((), jnp.int32))

    def _trace_join(self, bucket: Bucket) -> jax.stages.Traced:
        batch, one = self._state(bucket), self._state(bucket.single)
        run = jax.jit(steps.join, donate_argnums=(0, 1), out_shardings=_shardings(batch))
        return run.trace(*batch, one, self.target.whole((), jnp.int32))

    def _trace_take(self, bucket: Bucket) -> jax.stages.Traced:
        run = jax.jit(steps.take, out_shardings=_shardings(slots_shapes(self.target, bucket.single)))
        return run.trace(slots_shapes(self.target, bucket), self.target.whole((), jnp.int32))

    def _trace_observe(self, bucket: Bucket) -> jax.stages.Traced:
        to, (slots, cond) = self.target, self._state(bucket)
        run = jax.jit(partial(steps.observe, to.model, bucket), out_shardings=(_shardings(slots), replicated(to.mesh)))
        largest = {path: to.whole((), jnp.float32) for path in layers(self.shapes["unet"])}
        return run.trace(self.shapes["unet"], slots, cond, largest)

    def _trace_decode(self, bucket: Bucket) -> jax.stages.Traced:
        to = self.target
        devices = math.gcd(bucket.batch, to.mesh.size)
        run = jax.jit(
            partial(steps.decode, to.model, devices=devices, tile=to.tile),
            out_shardings=split_images(to.mesh, bucket.batch),
        )
        return run.trace(self.shapes["vae"], to.split(bucket.latents_shape(to.model)))

    def _trace_preview(self, bucket: Bucket) -> jax.stages.Traced:
        to = self.target
        run = jax.jit(partial(steps.preview, to.model), out_shardings=split_images(to.mesh, bucket.batch))
        return run.trace(self.shapes.get("preview"), to.split(bucket.latents_shape(to.model)))

    def _state(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        return slots_shapes(self.target, bucket), Conditioning.shapes(self.target, bucket)

    def zero_text(self) -> Text:
        """The embeddings of a text that is not given, in models that take zeros for it."""
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), Text.shapes(self.target))

    def no_features(self, bucket: Bucket) -> Array | None:
        """Features before the first row, which must not be shallow: zeros; None if the bucket is not cached."""
        return _zeros(features_shapes(self.target, bucket))

    def no_images(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        """Slots of a bucket that are all at their end, and what they are told: zeros."""
        return _zeros(self._state(bucket))


def _shardings(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)
