"""A call of `generate`, checked and made concrete before anything is loaded or compiled: one value for each image."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby
from typing import Any, cast

import numpy as np

from jaxl.call import arguments
from jaxl.call.controls import PlannedControl, networks_of, plan_controls, read_controls
from jaxl.call.enlarging import Enlarging
from jaxl.call.image_prompts import PlannedImagePrompt, places_of, plan_image_prompts, read_image_prompts
from jaxl.call.lexicon import Lexicon
from jaxl.call.loras import adapter_set, at_step, distilled_preset, read_loras, starts
from jaxl.call.noises import AskedNoise, first_noise, read_noise, row_noise
from jaxl.call.options import (
    DEFAULTS,
    DrawOptions,
    Guidance,
    MicroConditioning,
    Noise,
    Options,
    Start,
    TiledDiffusion,
    check_names,
    part,
)
from jaxl.call.prompts import Chunk, read_prompts
from jaxl.call.regions import PlannedRegion, read_regions, shares_of
from jaxl.call.row_noise import RowNoise
from jaxl.call.sizes import rounds, smallest_that_fits
from jaxl.call.starts import Paste, Picture, default_size, lengthened, read_sources, read_starts, runs_whole, span
from jaxl.call.styles import styled
from jaxl.call.tiles import own_size, read_tiles, tiles_for
from jaxl.config import Split, TinyVAEConfig, check_pag_layers
from jaxl.diffusion.other_noise import OWN
from jaxl.diffusion.rows import COLUMNS, SHAPING, Table
from jaxl.diffusion.schedulers import SCHEDULERS
from jaxl.diffusion.tables import Sampling, build_table, check_gaps, scheduler_name
from jaxl.errors import InputError, nearest
from jaxl.nn.blur import WIDEST
from jaxl.presets import Preset, speed
from jaxl.run.adapters import Room, room_for
from jaxl.run.bucket import Branch, Bucket
from jaxl.run.controls import ControlNet, ControlNets
from jaxl.run.image_prompts import IPAdapter
from jaxl.run.model import Model
from jaxl.run.sharding import shares
from jaxl.run.tiles import Tiles
from jaxl.text.spans import Steps
from jaxl.text.tags import read_tags
from jaxl.text.tokenizer import Tokenizer
from jaxl.weights.adapters.adapter import Adapter
from jaxl.weights.adapters.changes import NETWORKS, TEXT_ENCODERS
from jaxl.weights.adapters.combined import AdapterSet, merging

OTHER_PROMPTS = ("prompt_2", "negative_prompt", "negative_prompt_2")
PAG_LAYERS = ("mid_block",)
EMPHASES = ("original", "no_norm", "comfyui", "ignore")
# of a schedule, neither cached nor left out: the first steps decide what is shown (benchmarks/speed_and_quality.py)
WHOLE_SHARE = 0.2


# what marks a field of `Plan` that has a value for each image
OF_IMAGE = {"of": "image"}


@dataclass(frozen=True)
class Segment:
    """Rows that run with one program, the same texts and the same adapters.

    Those that are `steered`, by guidance or by perturbed attention, run in the plan's bucket, others in its `plain`.
    """

    rows: int
    steered: bool
    version: int


@dataclass(frozen=True, eq=False)
class Plan:
    """What to draw: `batch` images, so many at a time as `rounds` says, each round in `bucket`.

    `steps` are those of the whole schedule, and `preset` says what the call left open. `rows` [B, R, K] are the
    tables, of which `count` rows are run, from row `first` on, in `segments`. `texts` are [version][image][branch] ->
    chunks, or None for the zero embedding; `inversions` are the names of the textual inversions in them. `adapters`
    are [version][image]. `controls` are the ControlNets of each image, `networks` those of the bucket, in its order;
    `image_prompts` are what each image reads of pictures, `regions` what its parts read of texts.
    The latents start as `noise_scale` times noise, each seed's own or `noise` [B, h, w, C], plus `picture_scale` times
    the picture's latents. A share `variation_strength` of each seed's own is that of another, `variation_seeds`.
    `row_noise` is what rows add, if it is not their own. `blur` [B] is how far the perturbed branch of each image blurs
    its queries. `emphasis` is what weights in texts do, for which some kinds look at the `empty` text. `truncates` says
    how pixels become bytes. There may be a `second` pass, whose pictures, zeros until then, are made by its `enlarging`
    of what the first one leaves, or which `refines` that, as another model does. It may have one of its own.
    """

    batch: int
    rounds: Sequence[int]
    bucket: Bucket
    scheduler: str
    steps: int
    preset: Preset
    rows: np.ndarray = field(metadata=OF_IMAGE)
    first: int
    count: int
    segments: tuple[Segment, ...]
    texts: list[list[dict[Branch, list[Chunk] | None]]]
    adapters: list[list[AdapterSet]]
    controls: list[tuple[PlannedControl, ...]] = field(metadata=OF_IMAGE)
    networks: tuple[ControlNet, ...]
    image_prompts: list[tuple[PlannedImagePrompt, ...]] = field(metadata=OF_IMAGE)
    regions: list[tuple[PlannedRegion, ...]] = field(metadata=OF_IMAGE)
    inversions: tuple[str, ...]
    clip_skip: dict[Branch, int]
    seeds: list[int] = field(metadata=OF_IMAGE)
    time_ids: dict[Branch, np.ndarray]
    blur: np.ndarray = field(metadata=OF_IMAGE)
    freeu: np.ndarray | None
    variation_seeds: list[int] = field(metadata=OF_IMAGE)
    variation_strength: float
    noise: np.ndarray | None = field(metadata=OF_IMAGE)
    row_noise: list[RowNoise] | None = field(metadata=OF_IMAGE)
    noise_scale: float
    pictures: list[Picture] | None = field(metadata=OF_IMAGE)
    picture_scale: float
    pastes: list[Paste] | None = field(metadata=OF_IMAGE)
    emphasis: str
    empty: Chunk
    truncates: bool
    second: Plan | None = None
    enlarging: Enlarging | None = None
    refines: bool = False

    @property
    def encodes(self) -> bool:
        """Whether the pictures that it starts from are pixels, which are encoded first."""
        if self.enlarging is not None:
            return not self.enlarging.of_latents
        return any(not picture.encoded for picture in self.pictures or ())

    @property
    def passes(self) -> list[Plan]:
        """The plan without what follows it, and the passes that do."""
        return [replace(self, second=None), *([] if self.second is None else self.second.passes)]

    def bucket_of(self, segment: Segment) -> Bucket:
        """The shapes of the program that runs a segment."""
        return self.bucket if segment.steered else self.bucket.plain

    def weights_of(self, segment: Segment) -> AdapterSet:
        """The adapters that are in the weights of the U-Net for good, of the first image."""
        return merging(self.adapters[segment.version][0], "unet")

    @property
    def filled(self) -> list[int]:
        """The image in each place of the bucket: the last one again fills it up, and is thrown away in the end."""
        return [min(i, self.batch - 1) for i in range(self.bucket.batch)]

    @property
    def lora_hashes(self) -> dict[str, str]:
        """The digests of the adapters' files, by name."""
        sets = (own for version in self.adapters for own in version)
        return {adapter.name: adapter.digest for own in sets for adapter, _ in own}

    def by_image(self) -> Iterator[Plan]:
        """The plan of each image alone."""
        return replace(self, rounds=[1] * self.batch, bucket=self.bucket.single).by_round()

    def by_round(self) -> Iterator[Plan]:
        """The plan of each round."""
        if len(self.rounds) == 1:
            yield self
            return
        start = 0
        for size in self.rounds:
            images = slice(start, start + size)
            yield replace(
                self,
                batch=size,
                rounds=[size],
                texts=[version[images] for version in self.texts],
                adapters=[version[images] for version in self.adapters],
                **{name: None if own is None else own[images] for name, own in self._per_image().items()},
            )
            start += size

    def _per_image(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata == OF_IMAGE}


@dataclass(frozen=True)
class Devices:
    """How many there are, and the numbers of images that programs are compiled for: any, if there are none.

    How they share images, `split`, is as in `Target`.
    """

    count: int
    batch_sizes: Sequence[int] = ()
    split: Split | None = "auto"

    def filled(self, bucket: Bucket, parts: int) -> Bucket:
        """The bucket for its images, or the largest there is, which may be split into so many `parts` of rows.

        It is filled up to a multiple of the devices where each has less to do then.
        """
        batch = smallest_that_fits(bucket.batch, self.batch_sizes) if self.batch_sizes else bucket.batch
        busy = math.prod(shares(self.count, batch, bucket.branches, parts, self.split)) if self.split else 1
        if bucket.tiles:
            busy = self.count  # with tiles of the same images
        full = -(-batch // self.count) * self.count
        return replace(bucket, batch=full if full / self.count < batch / busy else batch)

    def rounds(self, images: int) -> list[int]:
        return rounds(images, self.batch_sizes) if self.batch_sizes else [images]


def make_plan(
    model: Model,
    tokenizers: Mapping[str, Tokenizer],
    lexicon: Lexicon,
    preset: Preset,
    devices: Devices,
    adapters: Mapping[str, Adapter],
    controlnets: ControlNets,
    ip_adapters: Mapping[str, IPAdapter],
    prompt: str | Sequence[str],
    options: DrawOptions,
    earlier: int | None = None,
) -> Plan:
    """The plan of a call of `Pipeline.generate`, which explains the options and what is raised.

    earlier: the steps of the first pass, if this is a second one.
    """
    check_names(options)
    asked: DrawOptions = {**DEFAULTS, **options}
    options = cast(DrawOptions, {name: value for name, value in options.items() if value is not None})
    options = cast(DrawOptions, {**speed(options.get("speed", "exact")), **options})
    if "style" in options:
        own_scheduler = scheduler_name(model.scheduler, preset.scheduler)
        prompts = 1 if isinstance(prompt, str) else len(prompt)
        options = cast(
            DrawOptions,
            styled(options, own_scheduler, prompts * asked.get("num_images", 1), model.scheduler.noise.kind),
        )
    each = arguments.whole_number("num_images", asked.get("num_images"), least=1)
    positive = arguments.prompts_per_image("prompt", prompt, None, each)
    batch, prompts = len(positive), len(positive) // each
    others = _other_prompts(options)
    given = {"prompt": positive} | {
        name: arguments.prompts_per_image(name, value, prompts, each) for name, value in others.items()
    }

    syntax = options.get("prompt_syntax", "a1111")
    tagged = [read_tags(text, syntax) for text in positive]
    asked_loras = read_loras(options.get("loras"), [tags for _, tags in tagged], adapters, each=each)
    preset = distilled_preset(asked_loras) or preset

    begin = part(options, Start)
    sources = read_sources(begin, model, prompts)
    if model.inpaints and "mask" not in begin:
        raise InputError("mask", None, "this model repaints pictures; pass `image` and `mask`")
    asked_controls = read_controls(options.get("controls"), controlnets, batch, each)
    shown = read_image_prompts(options.get("image_prompts"), ip_adapters, batch, each)
    asked_regions = read_regions(options.get("regions"), syntax, batch, each)
    tiles = read_tiles(part(options, TiledDiffusion), model)
    native_width, native_height = (tiles and own_size(sources, model)) or default_size(
        sources or [seen.picture for own in asked_controls for seen in own], model
    )
    width = arguments.image_size("width", options.get("width"), native_width, model.vae.factor)
    height = arguments.image_size("height", options.get("height"), native_height, model.vae.factor)
    tiles = tiles_for(tiles, width, height, model)
    pictures, pastes = (None, None) if sources is None else read_starts(begin, sources, model, prompts, width, height)

    sampling = part(options, Sampling)
    custom = bool({"timesteps", "sigmas"} & set(sampling))
    steps, scheduler = options.get("steps"), options.get("scheduler")
    if steps is None and not custom:
        steps = preset.steps
    if scheduler is None and preset.eta is not None:
        sampling = cast(Sampling, {"eta": preset.eta, **sampling})
    named = scheduler or preset.scheduler
    spacing = preset.timestep_spacing or model.scheduler.timestep_spacing
    config = replace(model.scheduler, timestep_spacing=spacing)
    counted, asked_steps = options.get("strength_steps", "part"), steps
    steps = lengthened(steps, begin, model, counted)
    full_name = scheduler_name(config, named, custom=custom)
    whole = build_table(config, steps, named, **sampling)
    times = whole.timesteps[np.unique(whole.steps, return_index=True)[1]]
    skip, stop = span(begin, model, times, counted, asked_steps)
    goes_on = "denoising_start" in begin
    hands_over = goes_on or "denoising_end" in begin
    table_of = partial(build_table, config, steps, named, hands_over=hands_over, **sampling)
    run = table_of(places=range(skip, len(times))) if skip else whole
    if whole.sigmas[0] < whole.sigmas[-1] and (pictures is None or skip):
        raise InputError("scheduler", full_name, "leads from a picture to its noise; give `image`, and strength=1")
    interval = arguments.whole_number("step_interval", options.get("step_interval", 1), least=1)
    made, table = np.arange(skip, len(times)), run
    if interval > 1:
        check_gaps("step_interval", interval, full_name, run)
        made = made[_is_whole(made, made - skip, len(times), interval) | (made == stop)]
        table = table_of(places=made.tolist())
    numbers = np.flatnonzero(np.isin(run.steps, made - skip))[: table.used].tolist()  # of the rows among the run's
    table = table.until(int(np.searchsorted(made, stop)))
    places = made[table.steps]  # of each row, in the whole schedule

    scale = options.get("guidance_scale", preset.guidance_scale)
    seg = arguments.per_image("seg_scale", options.get("seg_scale", 0.0), batch, least=0)
    blur = _blur(part(options, Guidance), seg)
    guidance, pag, inside = _scales(part(options, Guidance), scale, seg, times, places, table.factors)
    distilled = model.unet.time_cond_proj_dim is not None  # takes the scale as an input, in one evaluation
    if distilled and table.factors.any():
        raise InputError("scheduler", full_name, "this model has no unguided estimate to go by; use another scheduler")
    shaping = _shaping(options, batch)
    perp_neg = np.where(inside, _perp_neg(options, batch, shaping, table, distilled)[:, None], 0.0)
    guided_rows = (np.any((guidance != 1) | (perp_neg > 0), axis=0) | (inside & table.splits)) & (not distilled)
    perturbed_rows = np.any(pag > 0, axis=0)
    guided, perturbed = bool(guided_rows.any()), bool(perturbed_rows.any())
    layers = tuple(options.get("pag_layers", PAG_LAYERS)) if perturbed else ()
    check_pag_layers(model.unet, layers)

    counts = _one_of("prompt_steps", options.get("prompt_steps", "steps"), ("steps", "calls"))
    calls = round(whole.used / len(times)) if counts == "calls" else 1  # of the network in a step
    # some schedules are not as long as asked for
    of_calls = asked_steps if counts == "calls" else None
    of_texts = Steps(calls * (of_calls if of_calls and not runs_whole(counted) else len(times)))
    if earlier is not None:
        run_steps = of_calls if of_calls and not goes_on else len(times) - skip
        of_texts = Steps(calls * (skip + run_steps), calls * skip, calls * earlier)
    worn = [adapter_set(own, len(times)) for own in asked_loras]
    texts = read_prompts(
        model,
        tokenizers,
        lexicon,
        {**given, "prompt": [text for text, _ in tagged]},
        batch=batch,
        steps=of_texts,
        syntax=syntax,
        guided=guided,
        zero_negative=options.get("empty_negative", "zeros" if model.zero_negative else "encoded") == "zeros",
        perp_neg=bool(perp_neg.any()),
        regions=[[asked.region for asked in own] for own in asked_regions],
    )
    text_steps = places if counts == "steps" else of_texts.first + np.maximum(np.arange(table.used) - 1, 0)
    changes = [0, *starts(worn, len(times))]
    read = [
        (texts.version(now), bisect_right(changes, place) - 1) for now, place in zip(text_steps, places, strict=True)
    ]
    versions = list(dict.fromkeys(read))
    by_version = [at_step(worn, changes[own], len(times)) for _, own in versions]
    kinds = zip((guided_rows | perturbed_rows).tolist(), map(versions.index, read), strict=True)
    segments = tuple(Segment(len(list(run)), *kind) for kind, run in groupby(kinds))
    every = arguments.whole_number("cache_interval", options.get("cache_interval", 1), least=1)
    shallow = _shallow(places, table.steps, len(times), segments, every)
    rescale = arguments.per_image("guidance_rescale", options.get("guidance_rescale", 0.0), batch, least=0, most=1)
    table = _still(table, places, model, options)
    own = [
        table.with_columns(
            guidance=guidance[i],
            rescale=rescale[i],
            pag=pag[i],
            perp_neg=perp_neg[i],
            shallow=shallow,
            **{name: each[i] for name, each in shaping.items()},
        )
        for i in range(batch)
    ]
    # images that are drawn with different weights, not just with different factors beside them, cannot run together
    every_set = list(dict.fromkeys(own for version in by_version for own in version))
    weights = {own: [merging(own, name) for name in NETWORKS] for own in every_set}
    together = groupby(range(batch), key=lambda i: [weights[version[i]] for version in by_version])
    per_round = [size for _, images in together for size in devices.rounds(len(list(images)))]
    # what a row draws depends on its number: a run that goes on from another's end draws other noise than that did
    first = 2 * skip
    controls = [plan_controls(own, width, height, first, numbers, run.used) for own in asked_controls]
    networks = networks_of(controls)
    micro, seen = part(options, MicroConditioning), tiles.size if tiles else max(height, width)
    h, w = height // model.vae.factor, width // model.vae.factor
    shape = h, w, model.vae.latent_channels
    image_prompts = [
        plan_image_prompts(own, model.unet, (width, height), (h, w), first, numbers, run.used) for own in shown
    ]
    regions = [
        tuple(
            PlannedRegion(tuple(its[text] for text, _ in versions), shares)
            for its, shares in zip(texts.regions[i], shares_of(own, model.unet, (width, height), (h, w)), strict=True)
        )
        for i, own in enumerate(asked_regions)
    ]
    drawn = read_noise(part(options, Noise), asked.get("seed"), batch, model.vae.factor)
    churn = sampling.get("s_churn")
    if drawn.step_source != OWN and table.adds_noise and churn:
        raise InputError("s_churn", churn, "noise of other programs is not drawn for churn; leave one of the two out")
    bucket = Bucket(
        max(per_round),
        height,
        width,
        guided=guided,
        chunks=texts.most,
        pag_layers=layers,
        seg=perturbed and bool(blur.any()),
        perp_neg=bool(perp_neg.any()),
        freeu="freeu" in options,
        cached=every > 1,
        shaped=guided and any((shaping[name] != usual).any() for name, usual in SHAPING.items()),
        room=Room.holding(room_for(own, "unet") for own in every_set).rounded,
        text_room=Room.holding(room_for(own, name) for own in every_set for name in TEXT_ENCODERS).rounded,
        controls=tuple(network.config for network in networks),
        image_prompts=places_of(image_prompts),
        regions=max(map(len, asked_regions)),
        seamless=_seamless(options, model, tiles),
        tiles=tiles,
    )
    # diffusers leaves the picture out of the noise that a mask's run begins with, others never do
    begun = sampling.get("start_scale")
    from_noise = pictures is None or (skip == 0 and "mask" in begin and begun is None)
    return Plan(
        batch=batch,
        rounds=per_round,
        bucket=devices.filled(bucket, bucket.parts(model.parts(bucket.height))),
        scheduler=full_name,
        steps=len(times),
        preset=preset,
        rows=np.roll(np.stack([each.rows for each in own]), first, axis=1),
        first=first,
        count=table.used,
        segments=segments,
        texts=[texts.chunks[text] for text, _ in versions],
        adapters=by_version,
        controls=controls,
        networks=networks,
        image_prompts=image_prompts,
        regions=regions,
        inversions=texts.inversions,
        clip_skip=_clip_skip(model, options),
        seeds=drawn.seeds,
        time_ids=arguments.time_ids(micro, min(height, seen), min(width, seen), model.time_ids),
        blur=blur,
        freeu=_freeu(options),
        variation_seeds=drawn.variations,
        variation_strength=drawn.strength,
        noise=_latents(options, drawn, (batch, *shape)),
        row_noise=row_noise(drawn, brownian=SCHEDULERS[full_name].solver.brownian, whole=whole, run=table, shape=shape),
        noise_scale=0.0 if goes_on else table.init_scale if from_noise or begun else float(table.sigmas[0]),
        pictures=pictures and [pictures[i // each % len(pictures)] for i in range(batch)],
        picture_scale=1.0 if goes_on else 0.0 if from_noise else float(table.alphas[0]),
        emphasis=_one_of("emphasis", options.get("emphasis", EMPHASES[0]), EMPHASES),
        empty=texts.empty,
        truncates=_one_of("byte_rounding", options.get("byte_rounding", "round"), ("round", "truncate")) == "truncate",
        pastes=pastes and [pastes[i // each % len(pastes)] for i in range(batch)],
    )


def _latents(options: DrawOptions, drawn: AskedNoise, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    """The noise [B, h, w, C] that images start from, if it is not jaxl's own."""
    latents = options.get("latents")
    if latents is None:
        return first_noise(drawn, shape[1:])
    for name in ("noise", "variation_strength", "seed_resize_from"):
        if (value := options.get(name)) not in (None, OWN, 0):
            raise InputError(name, value, "`latents` are the noise already; give one of the two")
    return arguments.check_latents(latents, shape)


def _other_prompts(options: DrawOptions) -> dict[str, Any]:
    """The prompts beside the first, with what an empty negative one is to be."""
    others = {name: value for name in OTHER_PROMPTS if (value := options.get(name)) is not None}
    empty = options.get("empty_negative")
    if empty is None:
        return others
    negative = [name for name in others if name.startswith(Branch.NEGATIVE.prefix)]
    if _one_of("empty_negative", empty, ("zeros", "encoded")) == "encoded":
        return {"negative_prompt": "", **others}
    said = [text for name in negative for text in ([others[name]] if isinstance(others[name], str) else others[name])]
    return others if any(said) else {name: text for name, text in others.items() if name not in negative}


def _seamless(options: DrawOptions, model: Model, tiles: Tiles | None) -> str:
    """The axes along which images wrap around. Raises InputError, also for an autoencoder or tiles that cannot."""
    value = options.get("seamless")
    if value is None:
        return ""
    if isinstance(model.vae, TinyVAEConfig):
        raise InputError("seamless", value, "an autoencoder of TAESD's kind has edges; load another, or leave it out")
    if tiles is not None:
        raise InputError("seamless", value, "tiles do not see the opposite edge; leave out it or `tile_size`")
    return _one_of("seamless", value, ("x", "y", "xy"))


def _one_of(argument: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InputError(argument, value, nearest(str(value), known))
    return value


def _scales(
    options: Guidance, scale: Any, seg: np.ndarray, times: np.ndarray, places: np.ndarray, factors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales of classifier-free guidance and of that by a perturbed branch, [B, rows] each; 1 and 0 where they are off.

    Also whether each row is inside the interval that has any, [rows].

    `seg` [B] are the scales of smoothed-energy guidance, `places` the rows' steps, and `factors` their scheduler's, 0
    where it has none.
    """
    steps, batch = len(times), len(seg)
    guidance = arguments.guidance_per_step(scale, batch, steps)[:, places]
    # a scale of 1 gives the positive branch alone, which is what a scale below 1 asks for; not where it has a factor
    guidance = np.where(factors > 0, guidance * factors, np.maximum(guidance, 1.0))
    pag = arguments.per_image("pag_scale", options.get("pag_scale", 0.0), batch, least=0)[:, None]
    if np.any((pag > 0) & (seg[:, None] > 0)):
        raise InputError("seg_scale", options.get("seg_scale"), "an image has a pag_scale too; give one of the two")
    fall = arguments.per_image("pag_adaptive_scale", options.get("pag_adaptive_scale", 0.0), 1, least=0)
    pag = np.maximum(pag - fall * (1000 - times[places]), 0.0) * (pag > 0)
    start, end = arguments.interval("guidance_interval", options.get("guidance_interval", (0.0, 1.0)))
    done = places / steps
    inside = (done >= start) & (done < end)
    return np.where(inside, guidance, 1.0), np.where(inside, pag + seg[:, None], 0.0), inside


def _blur(options: Guidance, seg: np.ndarray) -> np.ndarray:
    """How far the perturbed branch of each image blurs its queries, [B]; 0 where the scale `seg` [B] is."""
    blur = arguments.per_image("seg_blur", options.get("seg_blur", 2 * WIDEST), len(seg), least=0)
    if not blur.all():
        raise InputError("seg_blur", options.get("seg_blur"), "must be a number above 0")
    return np.where(seg > 0, blur, 0.0).astype(np.float32)


def _shaping(options: DrawOptions, batch: int) -> dict[str, np.ndarray]:
    """The columns of SHAPING for each image, [B] each."""
    least = {"apg_momentum": -1.0}
    most = {"apg_threshold": math.inf, "mimic_scale": math.inf}
    return {
        name: arguments.per_image(
            name, options.get(name, usual), batch, least=least.get(name, 0.0), most=most.get(name, 1.0)
        )
        for name, usual in SHAPING.items()
    }


def _perp_neg(
    options: DrawOptions, batch: int, shaping: Mapping[str, np.ndarray], table: Table, distilled: bool
) -> np.ndarray:
    """The scale of each image's perpendicular negative prompt, [B]; 0 where that is a plain one.

    Raises InputError, also where nobody has said what it would mean.
    """
    asked = options.get("perp_neg_scale", 0.0)
    scale = arguments.per_image("perp_neg_scale", asked, batch, least=0)
    problems = {
        "this model reads no negative prompt; leave it out": distilled,
        "the scheduler goes by an estimate without guidance, of which there would be two; use another": (
            table.factors.any() or table.splits.any()
        ),
        **{f"an image has {name} too; give one of the two": shaping[name] != usual for name, usual in SHAPING.items()},
    }
    for remedy, problem in problems.items():
        if np.any((scale > 0) & problem):
            raise InputError("perp_neg_scale", asked, remedy)
    return scale


def _still(table: Table, places: np.ndarray, model: Model, options: DrawOptions) -> Table:
    """The table without what the network says in the first steps, as `cfg_zero_steps` asks."""
    still = arguments.whole_number("cfg_zero_steps", options.get("cfg_zero_steps", 0), least=0)
    if not still:
        return table
    if model.scheduler.noise.flow is None:
        raise InputError("cfg_zero_steps", still, "is for models that were trained on straight paths; leave it out")
    c_out = table.rows[: table.used, COLUMNS.index("c_out")]
    return table.with_columns(c_out=np.where(places < still, 0.0, c_out))


def _shallow(places: np.ndarray, made: np.ndarray, steps: int, segments: Sequence[Segment], every: int) -> np.ndarray:
    """Whether each row is shallow, bool, from its step's place in the whole schedule and among the steps made.

    Each segment begins with a whole step and has another after every so many.
    """
    lengths = [segment.rows for segment in segments]
    first = made[np.cumsum([0, *lengths[:-1]])]
    return ~_is_whole(places, made - np.repeat(first, lengths), steps, every)


def _is_whole(places: np.ndarray, done: np.ndarray, steps: int, every: int) -> np.ndarray:
    """Whether a step is one of every so many, after so many are `done`; the schedule's first ones all are."""
    return (done % every == 0) | (places < WHOLE_SHARE * steps)


def _clip_skip(model: Model, options: DrawOptions) -> dict[Branch, int]:
    most = min(cfg.layers for cfg in model.text_encoders.values()) - 1
    return {
        branch: arguments.whole_number(name, options.get(name, 0), least=0, most=most)
        for branch, name in ((Branch.POSITIVE, "clip_skip"), (Branch.NEGATIVE, "negative_clip_skip"))
    }


def _freeu(options: Options) -> np.ndarray | None:
    if "freeu" not in options:
        return None
    values = options["freeu"]
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 4:
        raise InputError("freeu", values, "give four numbers: s1, s2, b1, b2, such as (0.6, 0.4, 1.1, 1.2)")
    return arguments.per_image("freeu", values, 4, least=0)
