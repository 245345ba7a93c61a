"""A pipeline as a backend of the engine: running batches on the devices, which images join and leave between calls."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from jaxl.call.arguments import whole_number
from jaxl.call.hires import Hires, not_enlarged
from jaxl.call.images import MAX_PIXELS
from jaxl.call.inputs import Inputs
from jaxl.call.lanes import check_lanes
from jaxl.call.options import LoadOptions
from jaxl.call.plan import PAG_LAYERS, Plan
from jaxl.call.row_noise import DrawnAhead, calls
from jaxl.call.sizes import Size
from jaxl.call.starts import Picture
from jaxl.call.tiles import read_overlap, tiles_for
from jaxl.call.upscale import enlarged
from jaxl.config import Dtype, check_pag_layers
from jaxl.diffusion.loop import Slots
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.diffusion.tables import scheduler_name
from jaxl.engine.backend import Lora, Mark, Served, Stage
from jaxl.errors import CheckpointError, InputError, JaxlError, nearest
from jaxl.loading import open_pipeline
from jaxl.pipeline import Decoded, Params, Pipeline, ShowProgress
from jaxl.run.adapters import NO_ROOM, Room, rounded
from jaxl.run.bucket import Bucket
from jaxl.run.controls import ControlNet
from jaxl.run.model import Model
from jaxl.run.programs import (
    ADVANCE,
    DECODE,
    EMBED_CONTROL,
    EMBED_IMAGE,
    ENCODE_IMAGE,
    GATHER_CONTROL,
    GATHER_IMAGES,
    JOIN,
    MARK,
    OBSERVE,
    PREVIEW,
    PROGRAMS,
    START,
    TAKE,
    of_pictures,
    shared_programs,
)
from jaxl.run.sharding import make_mesh, replicated, spare_device, use_cores, with_sharding
from jaxl.run.tiles import Tiles
from jaxl.weights.adapters.combined import AdapterSet
from jaxl.weights.adapters.library import check_folder
from jaxl.weights.inversions import Summary

__all__ = ["PipelineBackend", "open_backend"]

SLOTS = 4  # images in the making at once, or as many as there are devices
CHUNKS = 3  # that a prompt may have, of 75 tokens each
LORA_RANK = 128  # of all LoRAs of an image together
IMAGE_PROMPTS = 2  # of an image
IMAGE_TOKENS = 16  # of an image prompt: those of one picture in Plus, of four in a plain IP-Adapter
REGIONS = 4  # of an image, in lanes that have any
# what clients are told, who cannot ask for it
LENIENT = "whoever runs the server can have such tensors left out, with --lora-partial"

log = logging.getLogger(__name__)

# the programs of a running batch; all others but calibration's and what decodes, on devices of its own, are for one
# image on its way into it
OF_BATCH = (ADVANCE, JOIN, TAKE, MARK, PREVIEW)
OF_PICTURE = (EMBED_CONTROL, GATHER_CONTROL, EMBED_IMAGE, GATHER_IMAGES)
OF_IMAGE = tuple(program for program in PROGRAMS if program not in (*OF_BATCH, OBSERVE, DECODE, *OF_PICTURE))


@dataclass(frozen=True)
class Running:
    """What images in one running batch have in common: a bucket, and the adapters that are in the weights for good.

    Most adapters stand beside the weights, and each image of a batch has its own.
    """

    bucket: Bucket
    adapters: AdapterSet = ()


@dataclass(eq=False)
class PlannedImage:
    """One image of a request: its plan, where its rows run, with those of the pass that follows, and, before it joins,
    what the programs are fed for it.
    """

    plan: Plan
    stages: tuple[Stage, ...]
    noise: DrawnAhead | None
    second: PlannedImage | None = None
    inputs: Inputs | None = None
    failed: JaxlError | None = None

    @classmethod
    def of(cls, passes: Sequence[PlannedImage]) -> PlannedImage:
        """Return an image of several passes, one after another."""
        first, *more = passes
        if not more:
            return first
        second = cls.of(more)
        begins, *others = second.stages
        return replace(first, stages=(*first.stages, replace(begins, remade=True), *others), second=second)

    def at(self, stage: int) -> tuple[PlannedImage, int]:
        """Return the pass that a stage belongs to, and which one it is there."""
        own = len(self.plan.segments)
        return (self, stage) if self.second is None or stage < own else self.second.at(stage - own)

    @property
    def passes(self) -> list[PlannedImage]:
        """The image itself, and what follows it; the last one makes the picture."""
        return [self] if self.second is None else [self, *self.second.passes]

    def forget(self) -> None:
        """Give up what the programs are fed."""
        for each in self.passes:
            each.inputs = None

    @property
    def ready(self) -> bool:
        return self.noise is None or self.noise.ready

    def prepare(self, tell: Callable[[], None]) -> None:
        if self.noise is not None:
            self.noise.begin(tell)

    @property
    def seed(self) -> int:
        return self.plan.seeds[0]

    @property
    def scheduler(self) -> str:
        return self.plan.scheduler

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        bucket = self.passes[-1].plan.bucket
        return bucket.width, bucket.height

    @property
    def facts(self) -> dict[str, Any]:
        plan = self.plan
        hashes = {"lora_hashes": plan.lora_hashes} if plan.lora_hashes else {}
        return {"steps": plan.preset.steps, "guidance_scale": plan.preset.guidance_scale, **hashes}


class RunningBatch:
    """The images in the making of one bucket, which share their weights."""

    def __init__(self, backend: PipelineBackend, bucket: Bucket, adapters: AdapterSet = ()):
        self.backend = backend
        self.bucket = bucket
        self._adapters = adapters
        self._network: tuple[Params, Any] = ({}, None)  # made of which parameters
        programs = backend.pipe.programs
        self._advance, self._join = programs.get(ADVANCE, bucket), programs.get(JOIN, bucket)
        self._take, self._mark = programs.get(TAKE, bucket), programs.get(MARK, bucket)
        self._slots, self._cond = programs.no_images(bucket)
        self._controls = backend.controls if bucket.controls else ()
        self._joined: dict[int, tuple[PlannedImage, int]] = {}  # by place: the image and its stage

    def join(self, place: int, drawing: PlannedImage, stage: int, state: Slots | Picture | None) -> None:
        programs, single = self.backend.pipe.programs, self.bucket.single
        drawing, stage = drawing.at(stage)
        if not isinstance(state, Slots):
            assert drawing.inputs is not None  # it is ready
            inputs = drawing.inputs if state is None else drawing.inputs.begun_with(state)
            state = programs.get(START, single)(inputs.beginning())
        self._put(place, drawing, stage, replace(state, features=programs.no_features(single, state.features)))

    def take(self, place: int) -> Slots:
        self._joined.pop(place, None)
        return self._take(self._slots, np.int32(place))

    def move(self, place: int, other: RunningBatch, to: int) -> None:
        other._put(to, *self._joined[place], self.take(place))

    def _put(self, place: int, drawing: PlannedImage, stage: int, state: Slots) -> None:
        assert drawing.inputs is not None
        cond = drawing.inputs.conditioning(drawing.plan.segments[stage], self.bucket.single, self._controls)
        self._slots, self._cond = self._join(self._slots, self._cond, (state, cond), np.int32(place))
        self._joined[place] = drawing, stage

    def advance(self, rows: int) -> None:
        params = self.backend.params
        if self._network[0] is not params:
            self._network = params, self.backend.pipe.networks(params).network(params, self._adapters, "unet")
        controls = tuple(each.params for each in self._controls)
        network, drawn = self._network[1], {at: own.noise for at, (own, _) in self._joined.items() if own.noise}
        for n, given in calls(self.backend.pipe.programs, self.bucket, drawn, rows):
            self._slots = self._advance(network, self._slots, self._cond, n, controls, given)

    def mark(self) -> Mark:
        row: Any = self._mark(self._slots.row)
        return row

    def previews(self) -> Callable[[], np.ndarray]:
        show = self.backend.pipe.programs.get(PREVIEW, self.bucket)
        pictures = show(self.backend.params.get("preview"), self._slots.denoised)
        return lambda: np.asarray(pictures)


class PipelineBackend:
    """Draws with a pipeline in some lanes, which are buckets of one image; batches have one of `sizes`, ascending.

    An image goes to the cheapest lane that has room for all that it is. With one size an image is the same bit for bit
    whatever runs beside it; with several it is the same to rounding, and fewer images take less time. `decode_on` is a
    device outside of the pipeline's mesh, so that the next rows need not wait for what is decoded. `embeddings` are the
    textual inversions that the pipeline was given, and those that it could not take. Second passes run in the lanes
    that are `larger`.
    """

    def __init__(
        self,
        pipe: Pipeline,
        params: Params,
        lanes: Sequence[Bucket],
        sizes: Sequence[int],
        decode_on: Any | None = None,
        embeddings: Sequence[Summary] = (),
        larger: Sequence[Bucket] = (),
    ):
        self.pipe = pipe
        self.embeddings = tuple(embeddings)
        self.lanes, self.larger = list(lanes), list(larger)
        self.sizes = sizes
        self._decoder, self._decode_on = pipe.programs, decode_on
        if decode_on is not None:
            mesh = make_mesh([decode_on])
            shapes = {"vae": with_sharding(pipe.programs.shapes["vae"], replicated(mesh))}
            self._decoder = shared_programs(pipe.model, mesh, shapes, pipe.programs.target.tile)
        self.take_params(params)

    def take_params(self, params: Params) -> None:
        """Draw with these parameters, which may come after the programs have begun to compile, and forget others."""
        self.params = params
        self._decoding = self._beside(params.get("vae"))
        self.pipe.forget()

    @property
    def defaults(self) -> dict[str, Any]:
        """What a server's settings take from the model: the names of `schedulers`, the `embeddings`, the names of
        `controlnets` and `ip_adapters`, the `upscalers`, `sizes` and those of second passes, the `chunks` that a prompt
        may have, and what is drawn where a request does not say, which is the first size, `scheduler`, `steps` and
        `guidance_scale`.
        """
        preset = self.pipe.preset
        return {
            "schedulers": tuple(sorted(SCHEDULERS)),
            "embeddings": self.embeddings,
            "controlnets": tuple(self.pipe.controls),
            "ip_adapters": tuple(self.pipe.ip_adapters),
            "upscalers": tuple((name, each.scale) for name, each in self.pipe.upscalers.items()),
            "sizes": sizes_of(self.lanes),
            "larger_sizes": sizes_of(self.larger),
            "chunks": max(lane.chunks for lane in self.lanes),
            "scheduler": scheduler_name(self.pipe.model.scheduler, preset.scheduler),
            "steps": preset.steps,
            "guidance_scale": preset.guidance_scale,
        }

    @property
    def chips(self) -> tuple[str, int]:
        """The kind and number of what is paid for: a CPU's devices are cores of one machine."""
        devices = jax.devices()
        return devices[0].device_kind, 1 if devices[0].platform == "cpu" else len(devices)

    def loras(self) -> list[Lora]:
        """The LoRAs of its folders, if there is a lane that draws with them."""
        if all(lane.room == NO_ROOM for lane in self.lanes):
            return []
        return [
            Lora(name, Path(each.names[-1]).name, each.base_model, each.trigger_words, each.metadata)
            for name, each in sorted(self.pipe.loras.descriptions().items())
        ]

    def warm_loras(self) -> list[str]:
        return self.pipe.loras.held()

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        known = self.pipe.upscalers
        if name not in known:
            raise InputError("upscaler", name, nearest(name, known))
        return enlarged(picture, known[name], size, "size", MAX_PIXELS)

    def models(self) -> Sequence[Served]:
        """None to choose from."""
        return ()

    def attend(self, waiting: Sequence[Any], running: Sequence[Any], tell: Callable[[], None]) -> None:
        """Do nothing: the model is there for all."""

    def read(self, arguments: Mapping[str, Any]) -> list[PlannedImage]:
        passes = self.pipe.plan(**arguments).passes
        of_each = [self.of_pass(own) for own in passes]
        for images, own in zip(of_each, passes, strict=True):
            self.feed(images, own)
        return [PlannedImage.of(made) for made in zip(*of_each, strict=True)]

    def check(self, arguments: Mapping[str, Any]) -> None:
        for own in self.pipe.plan(**arguments).passes:
            self.of_pass(own)

    def of_pass(self, plan: Plan) -> list[PlannedImage]:
        """Return the images of a plan of one pass, for which parameters need not be there yet. Raises InputError."""
        lanes = self._all if plan.refines else self.lanes
        if plan.enlarging is not None:
            lanes = self.larger
            if (size := (plan.bucket.width, plan.bucket.height)) not in (known := sizes_of(lanes)):
                raise not_enlarged(size, known)
        return [_planned(own, lanes) for own in plan.by_image()]

    def feed(self, images: Sequence[PlannedImage | None], plan: Plan) -> None:
        """Make what programs are fed for those images of a plan of one pass that have nothing yet; None are gone."""
        for image, inputs in zip(images, self.pipe.inputs(self.params, plan).by_image(), strict=True):
            if image is not None and image.inputs is None:
                inputs.prepare()  # so that the engine's thread, for which all images wait, need not
                image.inputs = inputs

    def keeps(self, lane: Running) -> bool:
        """Return whether a lane has the weights that all share: its adapters' own take memory, for each set of them."""
        return not lane.adapters

    def batch(self, lane: Running, size: int) -> RunningBatch:
        return RunningBatch(self, self._bucket(lane.bucket, size), lane.adapters)

    def remake(self, drawing: PlannedImage, stage: int, state: Slots) -> Callable[[], Picture]:
        (first, _), (second, _) = drawing.at(stage - 1), drawing.at(stage)
        enlarging, params = second.plan.enlarging, self.params
        if second.noise is not None:
            second.noise.begin()
        image = self._finish(first.plan, state.latents) if second.plan.encodes else None

        def make() -> Picture:
            if image is not None and enlarging is not None:
                picture = self._encoded(enlarging.pixels(image()), second.plan.bucket)
            else:
                latents = np.asarray(state.latents)
                if not np.isfinite(latents).all():
                    raise self.pipe.not_finite(params, f"the image of seed {drawing.seed}")
                (picture,) = [Picture(latents, encoded=True)] if enlarging is None else enlarging.latents(latents)
            if second.noise is not None:
                second.noise.wait()
            return picture

        return make

    def _encoded(self, picture: Picture, bucket: Bucket) -> Picture:
        """Return the latents of pixels, where one device makes them.

        Any thread may ask a device of its own. Where all of the mesh would have to, its own thread asks for it later.
        """
        if self._decode_on is None and self.pipe.mesh.size > 1:
            return picture
        encode = self._decoder.get(ENCODE_IMAGE, bucket)
        return Picture(np.asarray(encode(self._decoding, picture.array)), encoded=True)

    def finish(self, drawing: PlannedImage, state: Slots, early: int | None = None) -> Callable[[], Image.Image]:
        if early is None:
            return self._finish(drawing.passes[-1].plan, state.latents)
        return self._finish(drawing.at(early)[0].plan, state.denoised)

    def _finish(self, plan: Plan, latents: jax.Array) -> Callable[[], Image.Image]:
        decoded, params = self._decode(plan.bucket, latents), self.params
        return lambda: self.pipe.to_images(params, plan, decoded)[0]

    def _decode(self, bucket: Bucket, latents: jax.Array) -> Decoded:
        return self._decoder.get(DECODE, bucket)(self._decoding, self._beside(latents))

    def _beside(self, tree: Any) -> Any:
        """Arrays that the mesh has, on the device that decodes."""
        if self._decode_on is None:
            return tree
        return jax.device_put(jax.tree.map(lambda a: a.addressable_data(0), tree), self._decode_on)

    def begin(self) -> list[Future[Any]]:
        """Begin to compile every program, which needs no parameters."""
        programs, singles = self.pipe.programs, [lane.single for lane in self._all]
        futures = [programs.begin(program, batch) for batch in self._batches() for program in OF_BATCH]
        futures += [programs.begin(program, single) for single in singles for program in OF_IMAGE]
        makers = [adapter.config for adapter in self.pipe.ip_adapters.values()]
        futures += [programs.begin(*pair) for single in singles for pair in of_pictures(single, makers)]
        futures += [self._decoder.begin(DECODE, single) for single in singles]
        futures += [self._decoder.begin(ENCODE_IMAGE, lane.single) for lane in self.larger]
        return list(dict.fromkeys(futures))

    def load(self, progress: ShowProgress | None = None) -> None:
        """Load the parameters while programs compile, and run each batch once."""
        self.begin()
        self.take_params(self.pipe.load_params(progress))
        self.warm_up(None if progress is None else lambda done, total: progress("compile", done, total))

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compile every program, and run each batch once; `progress` hears of those done and those there are."""
        futures = self.begin()
        for done, future in enumerate(futures):
            if progress is not None:
                progress(done, len(futures))
            future.result()
        for bucket in self._batches():
            batch = RunningBatch(self, bucket)
            batch.advance(1)
            batch.mark()
            batch.previews()
            jax.block_until_ready(self._decode(bucket.single, batch.take(0).latents))
        for upscaler in self.pipe.upscalers.values():
            upscaler.warm_up()
        if progress is not None:
            progress(len(futures), len(futures))

    @property
    def _all(self) -> list[Bucket]:
        return list(dict.fromkeys([*self.lanes, *self.larger]))

    def _batches(self) -> list[Bucket]:
        return list(dict.fromkeys(self._bucket(lane, size) for lane in self._all for size in self.sizes))

    def _bucket(self, lane: Bucket, size: int) -> Bucket:
        return self.pipe.filled(replace(lane, batch=size))

    @property
    def controls(self) -> tuple[ControlNet, ...]:
        """The ControlNets of the lanes that have any, in their order."""
        return tuple(self.pipe.controls.values())


def sizes_of(lanes: Sequence[Bucket]) -> tuple[Size, ...]:
    return tuple(dict.fromkeys((lane.width, lane.height) for lane in lanes))


def _planned(plan: Plan, lanes: Sequence[Bucket]) -> PlannedImage:
    """Return an image of its plan of one pass, each of whose segments runs in the cheapest of the lanes."""
    stages = tuple(
        Stage(Running(cheapest(plan.bucket_of(segment), lanes, plan.networks), plan.weights_of(segment)), segment.rows)
        for segment in plan.segments
    )
    return PlannedImage(plan, stages, next((DrawnAhead(noise) for noise in plan.row_noise or ()), None))


def cheapest(bucket: Bucket, lanes: Sequence[Bucket], networks: Sequence[ControlNet]) -> Bucket:
    """Return the cheapest lane that covers a bucket with these ControlNets.

    Raises InputError that names what none has.
    """
    for argument, value, remedy, covers in _needs(bucket, lanes, networks):
        fitting = [lane for lane in lanes if covers(lane)]
        if not fitting:
            raise InputError(argument, value, remedy)
        lanes = fitting
    return min(
        lanes,
        key=lambda lane: (
            *(lane.branches, lane.seg, lane.cached, lane.freeu, lane.shaped),
            *(lane.controls != (), lane.image_prompts != (), lane.regions, lane.room, lane.chunks),
        ),
    )


def open_backend(
    model: str | os.PathLike[str] = "tiny",
    *,
    sizes: Sequence[tuple[int, int]] = (),
    slots: int | None = None,
    batch_sizes: Sequence[int] = (),
    chunks: int = CHUNKS,
    lanes: Sequence[str] = (),
    lora_dir: str | os.PathLike[str] | None = None,
    lora_rank: int | None = None,
    lora_partial: bool = False,
    controlnets: Sequence[tuple[str, str]] = (),
    ip_adapters: Sequence[tuple[str, str]] = (),
    image_encoder: str | None = None,
    upscalers: Sequence[tuple[str, str]] = (),
    hires: Sequence[float] = (),
    dtype: Dtype = "auto",
    embedding_dir: str | os.PathLike[str] | None = None,
    like: PipelineBackend | None = None,
    load: bool = True,
    progress: ShowProgress | None = None,
    **options: Any,
) -> PipelineBackend:
    """A model, loaded, compiled and run once.

    sizes: (width, height) of the images it draws, the first by default; the model's own if none are given.
    slots: images in the making at once in each lane; 4, or as many as there are devices, or with `split="rows"` 1.
    batch_sizes: the batches that programs are compiled for, of which the smallest that holds the images is run; by
        default one of all slots.
    chunks: parts of 75 tokens that a prompt may have; prompts of one part have a lane of their own.
    lanes: what requests may ask for besides: "pag", perturbed-attention guidance of the middle block; "seg",
        smoothed-energy guidance as well; "freeu";
        "cached", for `cache_interval`; "shaped", for `apg_eta`, `cfg_zero`, `mimic_scale` and their kin; "perp_neg",
        for `perp_neg_scale`; "regions", four of an image; "seamless", for pictures that tile; "tiled", for `tile_size`;
        "unguided", so that rows without guidance pay for one branch. All have lanes of their own.
    lora_dir: a folder of LoRAs that requests may ask for. `lora_rank` is the sum of the ranks that an image may have,
        128 by default; given without a folder, requests may ask for the model's own LoRAs. Images with LoRAs have lanes
        of their own. lora_partial: leave out what a file has for layers that the model lacks, and log it; otherwise
        the file is refused.
    controlnets: names of ControlNets that requests may ask for, each with what it is loaded from; images with them have
        lanes of their own, which have a place for each.
    ip_adapters: the same for IP-Adapters, with their image_encoder where none lies beside them. The lanes of images
        with ControlNets have two places for image prompts too, or there are lanes for these.
    upscalers: names of networks that enlarge pictures, each with its file.
    hires: how many times larger second passes may be; images of each of the sizes have lanes for them at these.
    dtype: auto is float32 on a CPU, else bfloat16. embedding_dir: a folder with textual inversions, see
        `Pipeline.add_embedding`. options: further ones of `LoadOptions`.
    like: the backend of another model that was opened with the same options; what it has besides parameters, and what
        this model can have too, is shared, and what cannot be used with this model is left out and logged.
    load: False leaves the parameters to `PipelineBackend.load`.

    Images are guided if the model's preset says so; then those without guidance share their lanes. Raises InputError
    for the arguments and CheckpointError for the model.
    """
    for name, value in (("slots", slots), ("chunks", chunks), ("lora_rank", lora_rank)):
        if value is not None:
            whole_number(name, value, least=1)
    lanes = check_lanes(lanes)
    use_cores(spare=1)
    mesh = make_mesh()
    pipe = open_pipeline(model, LoadOptions(mesh=mesh, dtype=dtype, **options))
    usable = partial(_usable, model, others=like is not None)
    embeddings: list[Summary] = []
    if embedding_dir is not None:
        with usable():
            embeddings = pipe.add_embedding(None, embedding_dir)
    how: dict[str, Any] = {"local_files_only": bool(options.get("local_files_only")), "progress": progress}
    alike = like if like is not None and like.pipe.model.structure == pipe.model.structure else None
    for name, source in controlnets:
        known = None if alike is None else alike.pipe.controls.get(name)
        with usable():
            if known is None or known.of_model:
                pipe.add_control(name, source, **how)
            else:
                pipe.controls[name] = known
    pipe.controls.own = {}  # only those that have a place in the lanes
    for name, source in () if alike else ip_adapters:
        with usable():
            pipe.add_ip_adapter(name, source, image_encoder=image_encoder, **how)
    if alike is not None:
        pipe.ip_adapters = alike.pipe.ip_adapters
    tokens = max([IMAGE_TOKENS, *(adapter.config.tokens for adapter in pipe.ip_adapters.values())])
    pictures = {
        "controls": tuple(network.config for network in pipe.controls.values()),
        "image_prompts": (tokens,) * IMAGE_PROMPTS if pipe.ip_adapters else (),
    }
    if {"pag", "seg"} & {*lanes}:
        check_pag_layers(pipe.model.unet, PAG_LAYERS)
    least = 1 if options.get("split") == "rows" else max(SLOTS, mesh.size)
    slots = slots or max([least, *batch_sizes])
    at_once = sorted({whole_number("batch_sizes", size, least=1, most=slots) for size in batch_sizes} | {slots})
    side = pipe.model.default_size
    guided = pipe.preset.guidance_scale > 1
    made = []
    rooms = [(NO_ROOM, NO_ROOM)]
    if alike is not None:
        pipe.loras = alike.pipe.loras
    pipe.loras.shown = attrgetter("name")  # where files lie is nobody's business
    pipe.loras.reading = {"strict": not lora_partial, "lenient": LENIENT}
    if lora_dir is not None:
        pipe.loras.folders = list(dict.fromkeys([*pipe.loras.folders, check_folder("lora_dir", lora_dir)]))
        lora_rank = lora_rank or LORA_RANK
    elif lora_rank is not None and not pipe.loras.folders and like is None:
        raise InputError("lora_rank", lora_rank, "the model has no LoRAs of its own; give lora_dir too")
    if lora_rank is not None:
        rank = rounded(lora_rank)
        every = Room(rank, rank, scaled=True)
        rooms += [(Room(rank), every), (every, every)]
    drawn = sizes or [(side, side)]
    larger = [Hires(scale=scale).sizes(size, pipe.model.vae.factor)[1] for size, scale in product(drawn, hires)]
    for width, height in dict.fromkeys([*drawn, *larger]):
        bucket = pipe.bucket(1, height, width, guided=guided).single
        kinds = [kind for each in tile_kinds(bucket, pipe.model, lanes) for kind in lane_kinds(each, lanes)]
        for own, (room, text_room), n in product(kinds, rooms, sorted({1, chunks})):
            lane = replace(own, chunks=n, room=room, text_room=text_room)
            made += dict.fromkeys([lane, replace(lane, **pictures)])
    first, second = ([lane for lane in made if (lane.width, lane.height) in own] for own in (drawn, larger))
    spare = spare_device()
    beside = make_mesh([mesh.devices.flat[0] if spare is None else spare])
    if like is None:
        for name, file in upscalers:
            pipe.add_upscaler(name, file, dtype=dtype, mesh=beside)
    else:
        pipe.upscalers = like.pipe.upscalers
    backend = PipelineBackend(pipe, {}, first, at_once, spare, embeddings, second)
    if load:
        backend.load(progress)
    return backend


@contextmanager
def _usable(model: str | os.PathLike[str], *, others: bool) -> Iterator[None]:
    """Log what cannot be used with a model, rather than raise it, where others can."""
    try:
        yield
    except (CheckpointError, InputError) as error:
        if not others:
            raise
        log.warning("%s does without: %s", model, error)


def tile_kinds(bucket: Bucket, model: Model, lanes: Sequence[str]) -> list[Bucket]:
    """The lanes of a bucket whose pictures are drawn whole, and in tiles of the model's size.

    Smaller ones are drawn whole alone, and those of more than four times its pixels in tiles alone.
    """
    side, pixels = model.default_size, bucket.width * bucket.height
    own = Tiles(side, read_overlap(None, side, model.multiple))
    tiles = tiles_for(own, bucket.width, bucket.height, model) if "tiled" in lanes else None
    whole = [bucket] if tiles is None or pixels <= 4 * side**2 else []
    return whole if tiles is None else [*whole, replace(bucket, tiles=tiles)]


def lane_kinds(bucket: Bucket, lanes: Sequence[str]) -> list[Bucket]:
    """The lanes of a bucket: as it is, and with what `jaxl.call.lanes` adds to it.

    What these change is nothing for an image that does not ask for it, so one lane has all of them.
    """
    branches = [bucket]
    if "unguided" in lanes:
        branches.append(bucket.plain)
    if {"pag", "seg"} & {*lanes}:
        branches.append(replace(bucket, pag_layers=PAG_LAYERS, seg="seg" in lanes))
    if "perp_neg" in lanes:
        branches.append(replace(bucket, guided=True, perp_neg=True))
    more = {name: name in lanes for name in ("freeu", "cached", "shaped")}
    plain = [each for own in branches for each in (own, replace(own, **more))]
    parts = (0, REGIONS) if "regions" in lanes else (0,)
    edges = ("", "xy") if "seamless" in lanes and bucket.tiles is None else ("",)
    return [replace(each, regions=n, seamless=how) for how in edges for n in parts for each in dict.fromkeys(plain)]


def _needs(
    bucket: Bucket, lanes: Sequence[Bucket], networks: Sequence[ControlNet]
) -> list[tuple[str, Any, str, Callable[[Bucket], bool]]]:
    """What a lane must have for a bucket: the argument that asks for it, its value, the remedy, and the test."""
    sizes = ", ".join(dict.fromkeys(f"{lane.width}x{lane.height}" for lane in lanes))
    width_known = any(lane.width == bucket.width for lane in lanes)
    side, value = ("height", bucket.height) if width_known else ("width", bucket.width)
    chunks = max(lane.chunks for lane in lanes)
    rank = max(lane.room.rank for lane in lanes)
    none_here = "the server has no program for it; leave it out"
    places = max((lane.image_prompts for lane in lanes), key=len)
    regions = max(lane.regions for lane in lanes)
    seamless = " or ".join(sorted({repr(lane.seamless) for lane in lanes if lane.seamless})) or "pictures with edges"
    ways = dict.fromkeys(map(_in_words, (lane.tiles for lane in lanes if lane.size[1:] == bucket.size[1:])))
    room = f"an image may have {len(places)} here, of {max(places, default=0)} tokens each; give fewer pictures"
    return [
        (
            side,
            value,
            f"the server draws {sizes}",
            lambda lane: (lane.width, lane.height) == (bucket.width, bucket.height),
        ),
        (
            "tile_size",
            _in_words(bucket.tiles),
            f"the server draws {bucket.width}x{bucket.height} {' or '.join(ways)}",
            lambda lane: lane.tiles == bucket.tiles,
        ),
        (
            "guidance_scale",
            None,
            "the server draws without guidance; give 1",
            lambda lane: lane.guided >= bucket.guided,
        ),
        (
            "prompt",
            f"{bucket.chunks} chunks",
            f"a prompt may have {75 * chunks} tokens here, and so may a negative one; shorten it",
            lambda lane: lane.chunks >= bucket.chunks,
        ),
        ("pag_scale", bucket.pag_layers, none_here, lambda lane: bucket.pag_layers in ((), lane.pag_layers)),
        ("seg_scale", bucket.seg, none_here, lambda lane: lane.seg >= bucket.seg),
        ("perp_neg_scale", bucket.perp_neg, none_here, lambda lane: lane.perp_neg >= bucket.perp_neg),
        ("freeu", bucket.freeu, none_here, lambda lane: lane.freeu >= bucket.freeu),
        ("cache_interval", bucket.cached, none_here, lambda lane: lane.cached >= bucket.cached),
        ("apg_eta, cfg_zero or mimic_scale", bucket.shaped, none_here, lambda lane: lane.shaped >= bucket.shaped),
        (
            "loras",
            f"rank {max(bucket.room.rank, bucket.room.other_rank, bucket.text_room.rank)}",
            f"the ranks of an image's LoRAs may be {rank} together here; leave some out" if rank else none_here,
            lambda lane: lane.room.covers(bucket.room) and lane.text_room.covers(bucket.text_room),
        ),
        (
            "controls",
            [network.name for network in networks],
            "an image may have each ControlNet once here; leave one out",
            lambda lane: not networks or (bool(lane.controls) and len(set(networks)) == len(networks)),
        ),
        (
            "image_prompts",
            f"{len(bucket.image_prompts)}, of {max(bucket.image_prompts, default=0)} tokens",
            room if places else none_here,
            lambda lane: _fit(bucket.image_prompts, lane.image_prompts),
        ),
        (
            "seamless",
            bucket.seamless,
            f"the server draws {seamless}",
            lambda lane: lane.seamless == bucket.seamless,
        ),
        (
            "regions",
            bucket.regions,
            f"an image may have {regions} here; give fewer" if regions else none_here,
            lambda lane: lane.regions >= bucket.regions,
        ),
    ]


def _in_words(tiles: Tiles | None) -> str:
    return "whole" if tiles is None else f"in tiles of {tiles.size} that share {tiles.overlap}"


def _fit(tokens: Sequence[int], places: Sequence[int]) -> bool:
    """Return whether image prompts of so many tokens, the longest first, have room at places."""
    return len(tokens) <= len(places) and all(n <= room for n, room in zip(tokens, places, strict=False))
