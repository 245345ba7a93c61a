"""The compiled programs of a model, one of each kind per bucket, ahead of time and cached on disk.

Five kinds make a picture: ENCODE_TEXT (a chunk of text at a time), GATHER (texts into a batch), START (noise and tables
into slots), ADVANCE (rows of the table: all the work) and DECODE (latents to pixels). ENCODE_IMAGE is for those that
start from a picture, PREVIEW for those that are watched, JOIN and TAKE for those that come and go while others run,
MARK for who waits for those, OBSERVE for calibration, EMBED_CONTROL and GATHER_CONTROL for ControlNets and their kin,
EMBED_IMAGE and GATHER_IMAGES for IP-Adapters. Only shapes are compiled in; scheduler, steps, guidance, prompt and seed
are arguments.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Generic, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxl.config import IPAdapterConfig, Split
from jaxl.diffusion.loop import GivenNoise, Slots
from jaxl.nn.clip import Replaced
from jaxl.nn.layer_kinds import adapted
from jaxl.nn.layers import Params
from jaxl.run import steps
from jaxl.run.adapters import adapter_shapes, at_each_text
from jaxl.run.bucket import Beginning, Bucket, Conditioning, Text, given_shapes
from jaxl.run.compiler import compiled
from jaxl.run.control_kinds import Controlled, kind_of
from jaxl.run.controls import embed_shapes, parameter_shapes
from jaxl.run.evaluations import one_at_a_time
from jaxl.run.image_prompts import Prompted, context_shapes, dtype_of, encoder_shapes
from jaxl.run.model import Model
from jaxl.run.sharding import on_mesh, replicated, split_images, with_sharding
from jaxl.run.steps import Features, features_shapes, slots_shapes
from jaxl.run.target import Leaf, Target, passing
from jaxl.weights.layout import flatten, placed
from jaxl.weights.quantise import layers

Arguments = TypeVarTuple("Arguments")
Output = TypeVar("Output")

NEUTRAL = Bucket(batch=1, height=0, width=0, guided=False)
ALL = tuple(field.name for field in fields(Bucket))
OF_ROWS = tuple(name for name in ALL if name != "ip_adapter")  # what made the tokens is not asked there
PIXELS = ("batch", "height", "width")
BRANCHES = ("guided", "pag_layers", "perp_neg")
TEXTS = ("batch", *BRANCHES, "chunks")
UNCONTROLLED = ("controls", "image_prompts", "regions", "seamless", "tiles")  # what calibration does without


@dataclass(frozen=True, eq=False)
class Program(Generic[*Arguments, Output]):
    """A kind of program: what is compiled of it for a target and a bucket.

    `run` returns the function, `takes` the shapes of its arguments and `gives` the shardings of its output. It
    `depends_on` these fields of the bucket alone. It may use the memory of the arguments that it `donates`, by number.
    `always`: each picture needs it. `products`: they take most of its time. `mesh`: how devices work on pictures.
    """

    name: str
    run: Callable[[Target, Bucket], Callable[[*Arguments], Output]]
    takes: Callable[[Target, Bucket], tuple[*Arguments]]
    gives: Callable[[Target, Bucket], Any]
    depends_on: tuple[str, ...] = OF_ROWS
    donates: tuple[int, ...] = ()
    always: bool = False
    products: bool = False
    mesh: Callable[[Target, Bucket], Mesh] = lambda to, _: to.mesh

    def key(self, bucket: Bucket | None) -> Bucket:
        """Return what counts of a bucket, all else as in NEUTRAL, so that buckets share the program; None is that."""
        return replace(NEUTRAL, **{name: getattr(bucket or NEUTRAL, name) for name in self.depends_on})


AnyProgram = Program[*tuple[Any, ...], Any]


def _texts(to: Target, dtype: Any) -> dict[str, Leaf]:
    return {name: to.whole((1, encoder.max_length), dtype) for name, encoder in to.model.text_encoders.items()}


def _replaced(to: Target) -> dict[str, Replaced]:
    """No vectors need these shapes too, so that a textual inversion compiles nothing."""
    return {
        name: Replaced(to.whole((1, cfg.max_length, cfg.width), jnp.float32), to.whole((1, cfg.max_length), jnp.bool_))
        for name, cfg in to.model.text_encoders.items()
    }


def _state(to: Target, bucket: Bucket) -> tuple[Slots, Conditioning]:
    return slots_shapes(to, bucket), Conditioning.shapes(to, bucket)


def _uncontrolled(bucket: Bucket) -> Bucket:
    return replace(bucket, **{name: getattr(NEUTRAL, name) for name in UNCONTROLLED})


def _adapter(bucket: Bucket) -> IPAdapterConfig:
    assert bucket.ip_adapter is not None  # whoever asks for these programs names one
    return bucket.ip_adapter


def _split(to: Target, bucket: Bucket) -> Any:
    return split_images(to.mesh, bucket.batch)


def _whole(to: Target, _: Bucket) -> Any:
    return replicated(to.mesh)


def _mesh_for_unet(to: Target, bucket: Bucket) -> Mesh:
    if bucket.tiles:  # which are evaluations enough
        return to.mesh
    return to.mesh_for(bucket.batch, bucket.branches, bucket.parts(to.model.parts(bucket.height)))


def _mesh_for_vae(to: Target, bucket: Bucket) -> Mesh:
    rows = 1 if _vae_tile(to, bucket) else bucket.latents_shape(to.model)[1]
    return to.mesh_for(1, math.gcd(bucket.batch, to.mesh.size), bucket.parts(rows))


def _vae_tile(to: Target, bucket: Bucket) -> int | None:
    """Pixels of the tiles that the autoencoder works in: those of pictures in tiles are as large as the U-Net's."""
    return to.tile or (bucket.tiles and bucket.tiles.size)


def _shardings(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)


# The records, those that take longest to compile first.

ADVANCE = Program(
    "advance",
    run=lambda to, bucket: partial(steps.advance, bucket.seen(to.model), bucket),
    takes=lambda to, bucket: (
        to.shapes["unet"],
        *_state(to, bucket),
        to.whole((), jnp.int32),
        tuple(parameter_shapes(to, cfg) for cfg in bucket.controls),
        given_shapes(to, bucket),
    ),
    gives=lambda to, bucket: _shardings(slots_shapes(to, bucket)),
    donates=(1,),
    always=True,
    products=True,
    mesh=_mesh_for_unet,
)
OBSERVE = Program(
    "observe",
    run=lambda to, bucket: partial(steps.observe, to.model, _uncontrolled(bucket)),
    takes=lambda to, bucket: (
        to.shapes["unet"],
        *_state(to, _uncontrolled(bucket)),
        {path: to.whole((), jnp.float32) for path in layers(to.shapes["unet"])},
    ),
    gives=lambda to, bucket: (_shardings(slots_shapes(to, bucket)), replicated(to.mesh)),
    depends_on=tuple(name for name in OF_ROWS if name not in UNCONTROLLED),
)
DECODE = Program(
    "decode",
    run=lambda to, bucket: partial(
        steps.decode, bucket.seen(to.model), devices=math.gcd(bucket.batch, to.mesh.size), tile=_vae_tile(to, bucket)
    ),
    takes=lambda to, bucket: (to.shapes["vae"], to.split(bucket.latents_shape(to.model))),
    gives=_split,
    depends_on=(*PIXELS, "seamless", "tiles"),
    always=True,
    mesh=_mesh_for_vae,
)
ENCODE_IMAGE = Program(
    "encode_image",
    run=lambda to, bucket: partial(steps.encode_image, bucket.seen(to.model), tile=_vae_tile(to, bucket)),
    takes=lambda to, bucket: (to.shapes["vae"], to.whole((1, bucket.height, bucket.width, 3), jnp.float32)),
    gives=_whole,
    depends_on=("height", "width", "seamless", "tiles"),
    mesh=_mesh_for_vae,
)
PREVIEW = Program(
    "preview",
    run=lambda to, _: partial(steps.preview, to.model),
    takes=lambda to, bucket: (to.shapes.get("preview"), to.split(bucket.latents_shape(to.model))),
    gives=_split,
    depends_on=PIXELS,
)
ENCODE_TEXT = Program(
    "encode_text",
    run=lambda to, _: partial(steps.encode_text, to.model),
    takes=lambda to, bucket: (
        {name: adapted(to.shapes[name], adapter_shapes(to, name, bucket.text_room)) for name in to.model.text_encoders},
        _texts(to, jnp.int32),
        _texts(to, jnp.float32),
        to.whole((), jnp.int32),
        _replaced(to),
    ),
    gives=_whole,
    depends_on=("text_room",),
    always=True,
)
GATHER = Program(
    "gather",
    run=lambda *_: steps.gather,
    takes=lambda to, bucket: (
        adapted(to.shapes["unet"], adapter_shapes(to, "unet", bucket.room, at_each_text, bucket.batch)),
        [[[Text.shapes(to)] * bucket.chunks] * bucket.branches] * bucket.batch,
    ),
    gives=lambda to, bucket: split_images(to.mesh, bucket.batch, bucket.branches),
    depends_on=(*TEXTS, "room"),
    always=True,
)
# of the first of a bucket's controls
EMBED_CONTROL = Program(
    "embed_control",
    run=lambda _, bucket: partial(steps.embed_control, bucket.controls[0]),
    takes=lambda to, bucket: embed_shapes(to, bucket.controls[0], bucket.height, bucket.width),
    gives=_whole,
    depends_on=("height", "width", "controls"),
)
GATHER_CONTROL = Program(
    "gather_control",
    run=lambda *_: steps.gather_control,
    takes=lambda to, bucket: (
        parameter_shapes(to, bucket.controls[0]),
        [[[Text.shapes(to)] * bucket.chunks] * bucket.branches] * bucket.batch,
    ),
    gives=lambda to, bucket: split_images(to.mesh, bucket.batch, bucket.branches),
    depends_on=(*TEXTS, "controls"),
)
EMBED_IMAGE = Program(
    "embed_image",
    run=lambda to, bucket: partial(steps.embed_image, to.model, _adapter(bucket)),
    takes=lambda to, bucket: (
        encoder_shapes(to, _adapter(bucket)),
        to.whole((1, *[_adapter(bucket).encoder.image_size] * 2, 3), jnp.float32),
        to.whole((), jnp.bool_),
    ),
    gives=_whole,
    depends_on=("ip_adapter",),
)
# at the first of a bucket's places
GATHER_IMAGES = Program(
    "gather_images",
    run=lambda *_: steps.gather_images,
    takes=lambda to, bucket: (
        [context_shapes(to)] * bucket.batch,
        [[to.whole((1, bucket.image_prompts[0], to.model.unet.cross_attention_dim), dtype_of(to))] * bucket.branches]
        * bucket.batch,
    ),
    gives=lambda to, bucket: split_images(to.mesh, bucket.batch, bucket.branches),
    depends_on=("batch", *BRANCHES, "image_prompts"),
)
START = Program(
    "start",
    run=lambda *_: steps.start,
    takes=lambda to, bucket: (Beginning.shapes(to, bucket),),
    gives=_split,
    depends_on=PIXELS,
    always=True,
)
JOIN = Program(
    "join",
    run=lambda *_: steps.join,
    takes=lambda to, bucket: (*_state(to, bucket), _state(to, bucket.single), to.whole((), jnp.int32)),
    gives=lambda to, bucket: _shardings(_state(to, bucket)),
    donates=(0, 1),
)
TAKE = Program(
    "take",
    run=lambda *_: steps.take,
    takes=lambda to, bucket: (slots_shapes(to, bucket), to.whole((), jnp.int32)),
    gives=lambda to, bucket: _shardings(slots_shapes(to, bucket.single)),
)
MARK = Program(
    "mark",
    run=lambda *_: steps.mark,
    takes=lambda to, bucket: (to.split((bucket.batch,), jnp.int32),),
    gives=_split,
    depends_on=("batch",),
)


def of_pictures(bucket: Bucket, adapters: Iterable[IPAdapterConfig] = ()) -> list[tuple[AnyProgram, Bucket]]:
    """Return the programs that pictures need before rows run, each with the bucket to compile it for.

    Those are the pictures that a bucket's ControlNets follow, and those of its image prompts by these adapters.
    """
    controls = {cfg: replace(bucket, controls=(cfg,)) for cfg in bucket.controls}
    places = [replace(bucket, image_prompts=(tokens,)) for tokens in dict.fromkeys(bucket.image_prompts)]
    makers = [replace(bucket, ip_adapter=cfg) for cfg in dict.fromkeys(adapters)] if places else []
    return [
        *((EMBED_CONTROL, own) for own in controls.values()),
        *((GATHER_CONTROL, own) for cfg, own in controls.items() if kind_of(cfg).reads_texts),
        *((EMBED_IMAGE, own) for own in makers),
        *((GATHER_IMAGES, own) for own in places),
    ]


# all of the above, and those that make a picture
PROGRAMS: tuple[AnyProgram, ...] = tuple(each for each in tuple(globals().values()) if isinstance(each, Program))
PICTURE = tuple(program for program in PROGRAMS if program.always)


class Programs:
    """Compiles each program of a `Target` once, in the background if asked early, and hands it out."""

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        shapes: dict[str, Params],
        tile: int | None = None,
        split_parameters: bool = False,
        split_pictures: Split | None = "auto",
    ):
        self.target = Target(model, mesh, shapes, tile, split_parameters, split_pictures)
        self._futures: dict[tuple[AnyProgram, Bucket], Future[Any]] = {}
        self._states: dict[Bucket, tuple[Slots, Conditioning]] = {}
        self._none_given: dict[tuple[int, int, int], GivenNoise] = {}
        self._lock = threading.Lock()

    @property
    def shapes(self) -> dict[str, Params]:
        """The shapes of the parameters, by component."""
        return self.target.shapes

    def compile(self, bucket: Bucket) -> list[Future[Any]]:
        """Begin to compile what makes a picture, each program in a thread of its own: those of PICTURE, in order."""
        return [self.begin(program, bucket) for program in PICTURE]

    def get(self, program: Program[*Arguments, Output], bucket: Bucket | None = None) -> Callable[[*Arguments], Output]:
        """Return the compiled program, waiting for it if need be."""
        return self.begin(program, bucket).result()

    def trace(self, program: AnyProgram, bucket: Bucket | None = None) -> jax.stages.Traced:
        """Return the program traced on shapes alone, for whoever lowers and compiles it another way."""
        to, bucket = self.target, program.key(bucket)
        mesh = program.mesh(to, bucket)
        takes, gives = program.takes(to, bucket), program.gives(to, bucket)
        if mesh is not to.mesh:  # a program knows one mesh; the places are the same
            takes = jax.tree.map(lambda leaf: with_sharding(leaf, on_mesh(mesh, leaf.sharding)), takes)
            gives = jax.tree.map(partial(on_mesh, mesh), gives)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            run = jax.jit(passing(program.run(to, bucket)), donate_argnums=program.donates, out_shardings=gives)
            return run.trace(*takes)

    def begin(self, program: AnyProgram, bucket: Bucket | None = None) -> Future[Any]:
        """Begin to compile a program in a thread of its own, unless that was done before.

        Programs that depend on nothing need no bucket.
        """
        key = program, program.key(bucket)
        with self._lock:
            future = self._futures.get(key)
            if future is None:
                future = self._futures[key] = Future()
                name = f"compile {program.name}"
                threading.Thread(target=self._compile, args=(*key, future), name=name, daemon=True).start()
        return future

    def _compile(self, program: AnyProgram, bucket: Bucket, future: Future[Any]) -> None:
        try:
            platform = self.target.mesh.devices.flat[0].platform
            # of several images together those products would depend on each one's place, in the last bits
            apart = bucket.batch == 1 or self._one_at_a_time(program, bucket)
            products = program.products and apart
            future.set_result(compiled(self.trace(program, bucket), platform, products=products))
        except BaseException as error:  # handed to whoever waits for the program
            with self._lock:
                del self._futures[program, bucket]
            future.set_exception(error)

    def _one_at_a_time(self, program: AnyProgram, bucket: Bucket) -> bool:
        to, evaluations = self.target, bucket.batch * bucket.branches
        return program.mesh(to, bucket) is to.mesh and one_at_a_time(to.model.kernels, evaluations, to.mesh.size)

    def zero_text(self) -> Text:
        """Return the embeddings of a text that is not given, in models that take zeros for it."""
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), Text.shapes(self.target))

    @cached_property
    def nothing_replaced(self) -> dict[str, Replaced]:
        """What encoders are told of a text without textual inversions, by encoder: zeros, on the devices once."""
        return _placed_zeros(_replaced(self.target))

    def no_features(self, bucket: Bucket, before: Features | None = None) -> Features:
        """Return features before a row that is not shallow: zeros, with the momentum of those `before`, if any."""
        none = _zeros(features_shapes(self.target, bucket))
        momentum = None if before is None or not bucket.shaped else before.momentum
        return none if momentum is None else replace(none, momentum=momentum)

    def none_given(self, bucket: Bucket) -> GivenNoise:
        """Return what `advance` is told where no image is given noise: zeros, on the devices once for a size."""
        if bucket.size not in self._none_given:
            self._none_given[bucket.size] = _placed_zeros(given_shapes(self.target, bucket))
        return self._none_given[bucket.size]

    def not_controlled(self, bucket: Bucket, place: int) -> Controlled:
        """Return what one of a bucket's controls is told where no image has a use for it: zeros."""
        return _placed_zeros(self.told(bucket).controls[place])

    def not_prompted(self, bucket: Bucket, place: int) -> Prompted:
        """Return what is read at one of a bucket's places for pictures where no image has one: zeros."""
        return _placed_zeros(self.told(bucket).image_prompts[place])

    def told(self, bucket: Bucket) -> Conditioning:
        """Return the shapes of what the network is told."""
        return self._state_of(bucket)[1]

    def no_images(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        """Return slots of a bucket that are all at their end, and what the network is told of them: zeros."""
        return _zeros(self._state_of(bucket))

    def _state_of(self, bucket: Bucket) -> tuple[Slots, Conditioning]:
        """Return the shapes of a batch, traced once: each image that joins needs them, and each batch that begins."""
        if bucket not in self._states:
            self._states[bucket] = _state(self.target, bucket)
        return self._states[bucket]


_shared: WeakValueDictionary[Hashable, Programs] = WeakValueDictionary()
_sharing = threading.Lock()


def shared_programs(
    model: Model,
    mesh: Mesh,
    shapes: dict[str, Params],
    tile: int | None = None,
    split_parameters: bool = False,
    split_pictures: Split | None = "auto",
) -> Programs:
    """Return the programs that another pipeline has for the same target, as long as it has them; else new ones.

    Parameters are arguments, so fine-tunes of one model share all: a second one compiles nothing.
    """
    structure = model.structure
    leaves = tuple((component, *leaf) for component, tree in shapes.items() for leaf in flatten(tree).items())
    key = (structure, mesh, leaves, tile, split_parameters, split_pictures)
    with _sharing:
        found = _shared.get(key)
        if found is None:
            found = _shared[key] = Programs(structure, mesh, shapes, tile, split_parameters, split_pictures)
        return found


def _placed_zeros(shapes: Any) -> Any:
    """Return zeros from the host, which compile nothing."""
    return jax.tree.map(lambda s: placed(np.zeros(s.shape, s.dtype), s.sharding), shapes)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), shapes)
