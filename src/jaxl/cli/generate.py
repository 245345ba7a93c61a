"""`jaxl generate`."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jaxl.cli.machine import find_chips
from jaxl.cli.options import (
    TIMEOUT,
    ControlNetOption,
    CoordinatorOption,
    DistributedOption,
    DtypeOption,
    EmbeddingDirOption,
    HostOption,
    Hosts,
    HostsOption,
    ImageEncoderOption,
    IPAdapterOption,
    JsonOption,
    LocalOption,
    LoraDirOption,
    LoraPartialOption,
    LorasOption,
    ModelOption,
    PrecisionOption,
    PredictionOption,
    PresetOption,
    PreviewVaeOption,
    RevisionOption,
    SplitOption,
    TimeoutOption,
    UnetOption,
    VaeOption,
    VaeTileOption,
    VariantOption,
)
from jaxl.cli.prompt_files import PromptFiles, PromptStyleOption, StylesFileOption, WildcardsOption
from jaxl.cli.terminal import in_background, note, print_line, progress_bars, to_terminal
from jaxl.config import Split
from jaxl.errors import InputError, JaxlError, is_out_of_memory
from jaxl.server.settings import read_named

# jax, and what imports it, is imported when there is something to draw, so that help and usage errors come at once
if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from jaxl.call.hires import Hires
    from jaxl.call.plan import Plan
    from jaxl.pipeline import Pipeline, Result, ShowPreview, ShowProgress

# evaluations of the network for a guided image
BRANCHES = 2

# flags of several numbers, and the mark between them
LISTS = {"guidance_interval": ":", "freeu": ",", "timesteps": ",", "sigmas": ","}
# the same of whole numbers
PAIRS = {"seed_resize_from": "x", "noise_batch": ":"}

# names that ask for another format than PNG
OTHER_FORMATS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".tif", ".tiff", ".webp")


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", show_default=False, help="What to draw; that of --like, if given.")
    ] = None,
    model: ModelOption = "tiny",
    like: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take the settings of a picture, of any program; options given here win."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative", metavar="TEXT", help="What not to draw.")] = None,
    seed: Annotated[int | None, typer.Option(help="Counts up from image to image; random by default.")] = None,
    noise: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of another program, for its seeds: torch, nv, cuda, cuda:t4 ..."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Draw as a1111, forge, comfyui, diffusers, invokeai or swarmui does with a seed."
        ),
    ] = None,
    step_noise: Annotated[
        str | None, typer.Option(metavar="NAME", help="The same for the noise of steps, where it is another's.")
    ] = None,
    sde_noise: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="brownian, as A1111 draws it for SDE schedulers, brownian_run or draws."),
    ] = None,
    eta_noise_seed_delta: Annotated[
        int | None, typer.Option("--ensd", help="Steps draw from the seed and this, such as 31337.")
    ] = None,
    variation_seed: Annotated[int | None, typer.Option(help="Counts up from image to image, and the seed not.")] = None,
    variation_strength: Annotated[
        float | None, typer.Option(help="0 to 1: how much of the noise is that of --variation-seed.")
    ] = None,
    seed_resize_from: Annotated[
        str | None, typer.Option(metavar="WxH", help="Noise of a picture of another size, in the middle.")
    ] = None,
    noise_batch: Annotated[
        str | None,
        typer.Option(metavar="PLACE:N", help="One generator draws N images, the first of these at a place, from 0 on."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(show_default=False, help="Of the scheduler; 25, or what the model was made for.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            show_default=False,
            help="How closely to follow the prompt: 5, or the model's own; 1 is off, and faster.",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels, or an aspect such as 16:9; the model's own by default.")
    ] = None,
    num_images: Annotated[int, typer.Option("--count", "-n", help="Number of images.")] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="euler, dpm++2m_karras, unipc, 'DPM++ 2M SDE' ...; the model's own by default."
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="DIR_OR_FILE", help="A folder, or the name of a .png file.")
    ] = ".",
    image: Annotated[str | None, typer.Option("--init-image", metavar="FILE", help="A picture to start from.")] = None,
    strength: Annotated[
        float | None, typer.Option(show_default=False, help="0 to 1: how much of it changes; 0.6, or 1 with a mask.")
    ] = None,
    mask: Annotated[str | None, typer.Option(metavar="FILE", help="White where it is painted anew.")] = None,
    padding_mask_crop: Annotated[
        int | None,
        typer.Option(
            "--mask-padding", metavar="PIXELS", help="Enlarge the mask's surroundings of this width, and paste back."
        ),
    ] = None,
    hires: Annotated[
        str | None,
        typer.Option(
            metavar="SCALE_OR_WxH", help="Enlarge the images, by such as 1.5, and draw their last steps again."
        ),
    ] = None,
    hires_upscaler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            show_default="latent",
            help="What enlarges: latent, latent-bicubic ..., lanczos, or the file of a network.",
        ),
    ] = None,
    hires_steps: Annotated[
        int | None, typer.Option(show_default=False, help="Of the second pass; by default as many as --steps.")
    ] = None,
    hires_strength: Annotated[
        float | None, typer.Option(show_default="0.7", help="0 to 1: how much the second pass changes.")
    ] = None,
    hires_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="PROMPT of the second pass.")] = None,
    hires_negative: Annotated[str | None, typer.Option(metavar="TEXT", help="--negative of the second pass.")] = None,
    hires_scheduler: Annotated[str | None, typer.Option(metavar="NAME", help="Of the second pass.")] = None,
    hires_guidance: Annotated[
        float | None, typer.Option(show_default=False, help="--guidance of the second pass.")
    ] = None,
    refiner: Annotated[str | None, typer.Option(metavar="MODEL", help="A second model for the last steps.")] = None,
    refiner_at: Annotated[float, typer.Option(help="Where it takes over, as a share of the noise levels.")] = 0.8,
    loras: LorasOption = None,
    lora_dir: LoraDirOption = None,
    lora_partial: LoraPartialOption = False,
    controlnet: ControlNetOption = None,
    controls: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME:IMAGE[:STRENGTH]",
            help="Follow a picture, such as edges, by a ControlNet that --controlnet named; repeatable.",
        ),
    ] = None,
    ip_adapter: IPAdapterOption = None,
    image_encoder: ImageEncoderOption = None,
    image_prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--image-prompt",
            metavar="NAME:IMAGE[:STRENGTH]",
            help="Be like a picture, by an IP-Adapter that --ip-adapter named; repeatable.",
        ),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="BOX_OR_MASK[@STRENGTH]: PROMPT",
            help="A part with a prompt of its own, such as '0,0,0.5,1: a cat' for the left half; it may end with "
            "'Negative prompt: TEXT'; repeatable.",
        ),
    ] = None,
    seamless: Annotated[
        str | None, typer.Option(metavar="AXES", help="x, y or xy: copies beside each other have no seam there.")
    ] = None,
    tile_size: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Draw larger images in tiles of this size, such as 1024.")
    ] = None,
    tile_overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", show_default=False, help="What neighbours share; a quarter of --tile-size."),
    ] = None,
    unet: UnetOption = None,
    vae: VaeOption = None,
    vae_tile: VaeTileOption = None,
    preview: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .png file that shows the images while they are made.")
    ] = None,
    preview_vae: PreviewVaeOption = None,
    preset: PresetOption = None,
    prediction_type: PredictionOption = None,
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="A textual inversion, which the prompts call as its file; repeatable."),
    ] = None,
    embedding_dir: EmbeddingDirOption = None,
    guidance_rescale: Annotated[
        float | None, typer.Option(help="0 to 1: against washed out or glaring colours.")
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(metavar="A:B", help="Guide this part of the steps alone, such as 0.2:0.8: faster.")
    ] = None,
    cache_interval: Annotated[
        int | None, typer.Option(help="Run the whole U-Net every so many steps alone: faster, not quite the same.")
    ] = None,
    step_interval: Annotated[
        int | None,
        typer.Option(help="Make every so many of the steps alone, longer ones: faster, not quite the same."),
    ] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="NAME", help="exact, balanced or fast: intervals of caching and of guidance.")
    ] = None,
    apg_eta: Annotated[
        float | None, typer.Option(help="0 to 1: less than 1 for adaptive projected guidance, with less loud colours.")
    ] = None,
    apg_threshold: Annotated[
        float | None, typer.Option(help="The most that guidance may add, such as 15, by its length in latents.")
    ] = None,
    apg_momentum: Annotated[
        float | None, typer.Option(help="-1 to 1: how much of what a step's guidance added the next adds again.")
    ] = None,
    cfg_zero: Annotated[float | None, typer.Option(help="1 for CFG-Zero*.")] = None,
    cfg_zero_steps: Annotated[
        int | None, typer.Option(help="First steps without a move, of a model that was trained on straight paths.")
    ] = None,
    mimic_scale: Annotated[
        float | None, typer.Option(help="Dynamic thresholding: estimates as large as with this scale of guidance.")
    ] = None,
    mimic_percentile: Annotated[float | None, typer.Option(help="0 to 1: what it does not clip.")] = None,
    perp_neg_scale: Annotated[
        float | None,
        typer.Option("--perp-neg", help="Scale of --negative, such as 1, where only what is not in PROMPT is avoided."),
    ] = None,
    pag_scale: Annotated[
        float | None, typer.Option("--pag", help="Scale of perturbed-attention guidance, such as 3.")
    ] = None,
    seg_scale: Annotated[
        float | None, typer.Option("--seg", help="Scale of smoothed-energy guidance, such as 3, in place of --pag.")
    ] = None,
    seg_blur: Annotated[float | None, typer.Option(help="How far that blurs queries; by default over all.")] = None,
    freeu: Annotated[str | None, typer.Option(metavar="S1,S2,B1,B2", help="FreeU, such as 0.6,0.4,1.1,1.2.")] = None,
    eta: Annotated[
        float | None, typer.Option(help="0 to 1: noise of ancestral and SDE schedulers, and of ddim.")
    ] = None,
    timestep_spacing: Annotated[
        str | None, typer.Option("--spacing", help="Of timesteps: leading, linspace or trailing.")
    ] = None,
    timesteps: Annotated[str | None, typer.Option(metavar="T,T,...", help="Instead of --steps.")] = None,
    sigmas: Annotated[
        str | None, typer.Option(metavar="S,S,...", help="Instead of --steps; the last is the end.")
    ] = None,
    prompt_syntax: Annotated[
        Literal["a1111", "lenient", "comfyui", "literal", "plain"] | None,
        typer.Option(
            show_default="a1111",
            help="a1111 knows (word:1.3), [a:b:0.5] and BREAK, lenient forgives mistakes in it, comfyui has brackets "
            "alone, literal knows nothing, and plain also cuts at 75 tokens.",
        ),
    ] = None,
    prompt_2: Annotated[str | None, typer.Option(metavar="TEXT", help="PROMPT of the second text encoder.")] = None,
    negative_prompt_2: Annotated[
        str | None, typer.Option("--negative-2", metavar="TEXT", help="--negative of the second one.")
    ] = None,
    wildcards: WildcardsOption = None,
    styles_file: StylesFileOption = None,
    prompt_style: PromptStyleOption = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(show_default="0", help="Last layers of the text encoders to skip beyond the usual."),
    ] = None,
    dtype: DtypeOption = "auto",
    precision: PrecisionOption = None,
    kernels: Annotated[
        Literal["auto", "xla"], typer.Option(help="How the networks compute: the platform's best, or XLA alone.")
    ] = "auto",
    variant: VariantOption = None,
    revision: RevisionOption = None,
    local_files_only: LocalOption = False,
    shard_params: Annotated[
        bool, typer.Option("--shard-params", help="Split the weights over all devices: slower, less memory on each.")
    ] = False,
    split: SplitOption = "auto",
    distributed: DistributedOption = False,
    coordinator: CoordinatorOption = None,
    hosts: HostsOption = None,
    host: HostOption = None,
    timeout: TimeoutOption = TIMEOUT,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
) -> None:
    """Draw images and print the names of their files.

    \b
    jaxl generate "a castle on a pink background, flat style" --seed 3
    jaxl generate "a dolphin" -n 4 --output pictures --scheduler dpm++2m_karras
    jaxl generate "a lighthouse" --model ./sdxl.safetensors --size 1024x768 --output light.png
    jaxl generate "a (green:1.3) castle" --init-image castle.png --strength 0.7
    jaxl generate "a llama" --init-image castle.png --mask mask.png
    jaxl generate "a cat" --lora pencil.safetensors:0.8
    jaxl generate "a castle" --hires 1.5 --hires-upscaler 4x-UltraSharp.pth --hires-strength 0.4
    jaxl generate --like castle.png --model ./sdxl.safetensors --seed 7

    The PNG files are called jaxl-SEED.png and replace no other; one that --output names for a single image is replaced.
    They tell how they were made, in A1111's text and in jaxl's own. Write -- before a prompt that begins with a dash.
    """
    given = dict(locals())
    from jaxl.call.arguments import per_image, seeds_per_image, share, whole_number
    from jaxl.call.control import Control
    from jaxl.call.image_prompt import ImagePrompt
    from jaxl.call.images import read_image
    from jaxl.call.options import OF_PICTURES, WITH_FACTS, DrawOptions
    from jaxl.call.region import Region
    from jaxl.call.seeds import counts_up, of_image
    from jaxl.cli.like import Like

    began = time.perf_counter()
    taken = None if like is None else Like(like, given)
    if prompt is None and (taken is None or "prompt" not in taken.options):
        raise InputError("prompt", "", "say what to draw, or give a picture that says it, as `like`")
    whole_number("num_images", num_images, least=1)
    if guidance_scale is not None:
        per_image("guidance_scale", guidance_scale, num_images)
    destination = _destination(output, num_images)
    source = {"model": model, "revision": revision, "variant": variant}
    # flags have the names of the library's options, so that none is forgotten on the way
    options = {name: given[name] for name in ("prompt", *DrawOptions.__annotations__) if name in given}
    options |= {name: _numbers(name, given[name], mark) for name, mark in LISTS.items()}
    options |= {name: _numbers(name, given[name], mark, int) for name, mark in PAIRS.items()}
    options |= {} if taken is None else taken.options
    options["hires"] = _hires(given, options["hires"])
    any_seed, counts = options["seed"] is None, counts_up(options)
    # 32 bits, because many other programs read no more
    usual = {"prompt_syntax": "a1111", "clip_skip": 0, "seed": secrets.randbelow(2**32)}
    if options["style"] is not None:
        del usual["prompt_syntax"]  # which is the style's
    options |= {name: value for name, value in usual.items() if options[name] is None}
    seeds = seeds_per_image("seed", options["seed"], num_images, counts=counts)
    texts = PromptFiles.read(wildcards, styles_file, prompt_style)
    if texts is not None and prompt is None:
        raise InputError(
            "prompt", "", "wildcards and styles are for one that you give; that of --like was drawn as it is"
        )
    asked: dict[str, Any] = {
        **options,
        "seed": seeds if counts else seeds[0],
        # read here, so that a mistake is told before anything is loaded
        "image": None if image is None else read_image(image, "image"),
        "controls": [Control(*_picture_for("control", text)) for text in controls or ()] or None,
        "image_prompts": [ImagePrompt(*_picture_for("image_prompt", text)) for text in image_prompts or ()] or None,
        "regions": options["regions"] if regions is None else [Region.parse(text) for text in regions],
    }
    if texts is not None:
        asked |= _of_images(texts, options, seeds)
    if refiner is not None:
        share("refiner_at", refiner_at)
    show = None if preview is None else _preview_file(preview)
    machines = Hosts(distributed, coordinator, hosts, host, timeout)
    if machines.several:
        for argument, value in (("preview", preview), ("refiner", refiner)):
            if value is not None:
                raise InputError(argument, value, "several hosts do not do that; leave it out")

    # whoever shows progress calls the programs row by row, and all hosts have to make the same calls
    shown = not quiet and to_terminal() and not machines.several
    with machines.joined() as number, progress_bars(shown) as progress:
        lacking: list[str] = []

        def draw() -> tuple[Pipeline, Result, Plan, float]:
            if machines.several and any_seed:
                own_seeds = seeds_per_image("seed", _seed_of_host_0(seeds[0]), num_images, counts=counts)
                asked["seed"] = own_seeds if counts else own_seeds[0]
                asked.update({} if texts is None else _of_images(texts, options, own_seeds))
            open_model = Opener(dtype, shard_params, num_images, local_files_only, progress, kernels, split)
            pipe = open_model(
                **source,
                unet=unet,
                vae=vae,
                vae_tile=vae_tile,
                preview=preview_vae,
                preset=preset,
                prediction_type=prediction_type,
                precision=precision,
            )
            if preset is None and pipe.preset.name != "sdxl" and not quiet:
                note(f"preset {pipe.preset}")
            if pipe.quantised is not None and not quiet and not pipe.quantised.measured:
                count_of = len(pipe.quantised.prompts)
                note(f"measuring on {count_of} prompts, once for this model, for --precision {precision}")
            if size is not None or "width" not in options:
                asked.update(_size(size, pipe))
            added = add_loras(pipe, loras or [], lora_dir, strict=not lora_partial)
            adapted = {"loras": added or None} if taken is None else taken.adapted(pipe.loras, added)
            asked.update(adapted)
            options.update(adapted)
            how: Any = {"local_files_only": local_files_only, "progress": progress}
            asked["hires"] = options["hires"] = _with_network(options["hires"], pipe, dtype)
            for name, model_of in read_named("controlnet", controlnet or ()):
                pipe.add_control(name, model_of, **how)
            for name, file in read_named("ip_adapter", ip_adapter or ()):
                pipe.add_ip_adapter(name, file, image_encoder=image_encoder, **how)
            second = None if refiner is None else open_model(refiner, vae_tile=vae_tile)
            sources = [*(embedding or ()), *(() if embedding_dir is None else (embedding_dir,))]
            for each, file in itertools.product([pipe] if second is None else [pipe, second], sources):
                each.add_embedding(None, file)
            if taken is not None:
                shown_to = {name: [each.name for each in asked[name] or ()] for name in OF_PICTURES}
                has = {**_networks(pipe, model, vae, refiner), **shown_to}
                lacking.extend(taken.tell(has, quiet=quiet))
            return pipe, *_draw(pipe, asked, second and (second, refiner_at), progress, show)

        pipe, result, plan, loading = in_background(draw)

    from jaxl import __version__

    images: list[Image.Image] = list(result.images)
    scale = options["guidance_scale"]
    found = {
        "steps": options["steps"] or (plan.steps if options["timesteps"] or options["sigmas"] else plan.preset.steps),
        "guidance_scale": plan.preset.guidance_scale if scale is None else scale,
        "scheduler": result.scheduler,
        "dtype": str(pipe.dtype),
        "embeddings": {name: pipe.lexicon.inversions[name].summary.hash for name in plan.inversions} or None,
        "lora_hashes": plan.lora_hashes or None,
    }
    if options["scheduler"] is None and options["eta"] is None:
        found["eta"] = plan.preset.eta
    if all(options[name] is None for name in ("timestep_spacing", "timesteps", "sigmas")):
        found["timestep_spacing"] = plan.preset.timestep_spacing
    named = {"unet": unet, "vae": vae, "precision": precision, "refiner": refiner, "refiner_at": refiner and refiner_at}
    # names alone: a folder would tell strangers about the machine
    pictures = {name: file and Path(file).name for name, file in (("image", image), ("mask", mask))}
    followed = {name: [each.facts for each in asked[name] or ()] or None for name in WITH_FACTS}
    drawn = time.perf_counter()
    files = []
    for place, made in enumerate(images):
        own = of_image(options, result.seeds[place], place)
        own |= {} if texts is None else texts.prompts(options, result.seeds[place])
        own |= {"width": made.width, "height": made.height, "num_images": None}
        if options["hires"] is not None:  # the size is the first pass's
            own |= {"width": plan.bucket.width, "height": plan.bucket.height, "hires": options["hires"].facts}
        settings = {"version": __version__, **source, **options, **pictures, **followed, **named, **own, **found}
        settings = {name: value for name, value in settings.items() if value is not None}
        files.append(str(destination(made, settings)))
        if not as_json:
            print_line(files[-1])
    ended = time.perf_counter()
    # a host may have no image, for want of images or of devices among the first
    sides = (side * pipe.model.vae.factor for side in result.latents.shape[2:0:-1])
    width, height = images[0].size if images else sides
    if not quiet:
        numbers = _numbered(result.seeds) if number is None else f"host {number}, {_numbered(result.seeds)}"
        guided = f"guidance {found['guidance_scale']:g}"
        how = f"{width}x{height}, {found['steps']} steps of {found['scheduler']}, {guided}, {found['dtype']}"
        note(f"{numbers}: {how}, {ended - began:.1f} s")
    if as_json:
        timings = {**result.timings, "load": loading, "write": ended - drawn, "total": ended - began}
        report = {
            **({} if number is None else {"host": number}),
            "images": files,
            "seeds": result.seeds,
            "size": f"{width}x{height}",
            "steps": found["steps"],
            "guidance": found["guidance_scale"],
            "scheduler": found["scheduler"],
            "model": model,
            "dtype": found["dtype"],
            "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
            "version": __version__,
            **({} if taken is None else {"like": {"program": taken.settings.program, "lacking": lacking}}),
        }
        print_line(json.dumps(report))


@dataclass(frozen=True)
class Opener:
    """Opens models without their parameters, for all chips, or for no more than images, or branches of one.

    For those where rows of pictures are not to be split, nor parameters, and one host has all.
    """

    dtype: str
    shard_params: bool
    images: int
    local_files_only: bool
    progress: ShowProgress | None
    kernels: str = "auto"
    split: Split = "auto"

    def __call__(self, model: str, **options: Any) -> Pipeline:
        import jax

        from jaxl.call.options import LoadOptions
        from jaxl.kernels import Kernels
        from jaxl.loading import open_pipeline
        from jaxl.run.sharding import make_mesh

        found = find_chips()
        # no host may be without a device
        everywhere = self.split != "images" or self.shard_params or jax.process_count() > 1
        few = [device for chip in found[: max(self.images, BRANCHES)] for device in chip]
        if self.progress is None:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        how = LoadOptions(
            **options,
            dtype=self.dtype,
            mesh=make_mesh(None if everywhere else few),
            shard_params=self.shard_params,
            split=self.split,
            local_files_only=self.local_files_only,
            kernels=Kernels.plain(found[0][0].platform) if self.kernels == "xla" else None,
        )
        return open_pipeline(model, how)


def _draw(
    pipe: Pipeline,
    asked: dict[str, Any],
    refiner: tuple[Pipeline, float] | None,
    progress: ShowProgress | None,
    preview: ShowPreview | None,
) -> tuple[Result, Plan, float]:
    """Load while the programs compile, and generate; also the plan, and the seconds that loading took.

    refiner: with where it takes over.
    """
    import jax

    plan = pipe.plan(**asked) if refiner is None else pipe.plan_refined(*refiner, **asked)
    if plan.preset != pipe.preset and progress is not None:
        note(f"preset {plan.preset}")
    bucket = plan.bucket
    shown: dict[str, Any] = {"preview": preview, "progress": progress}
    began = time.perf_counter()
    try:
        pipe.compile(plan, preview=preview is not None)
        params = pipe.load_params(progress)
        if refiner is not None:
            second, _ = refiner
            second.compile(plan.passes[-1], preview=preview is not None)
            shown["refiner"] = second, second.load_params(progress)
        loading = time.perf_counter() - began
        return pipe.run(params, plan, **shown), plan, loading
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise JaxlError(
            f"out of memory for {bucket.batch} images of {bucket.width}x{bucket.height}; "
            "draw fewer or smaller ones, use --tile-size or --vae-tile, or --shard-params on several devices"
        ) from error


def _networks(pipe: Pipeline, *named: str | None) -> dict[str, Collection[str]]:
    """Return names and hashes of the networks that are there, by kind; `named` are the model, VAE and refiner."""
    summaries = [each.summary for each in pipe.lexicon.inversions.values()]
    embeddings = [known for each in summaries for known in (each.name, each.hash) if known]
    there = zip(("model", "vae", "refiner"), named, strict=True)
    return {**{kind: [name] for kind, name in there if name}, "lora": [*pipe.loras], "embedding": embeddings}


def _size(size: str | None, pipe: Pipeline) -> dict[str, int | None]:
    """Width and height, of which the model's own are None."""
    from jaxl.call.sizes import aspect_bucket, check_size

    if size is None:
        return {"width": None, "height": None}
    if ":" in size:
        width, height = aspect_bucket("size", size, pipe.model.default_size)
    else:
        width, height = check_size("size", size, ", or an aspect, such as 16:9")
    return {"width": width, "height": height}


def add_loras(pipe: Pipeline, given: list[str], folder: str | None, *, strict: bool) -> dict[str, float]:
    """Read the LoRAs that are given, and let prompts have those of the folder; the strength of each by its name."""
    from jaxl.weights.adapters.library import check_folder

    pipe.loras.reading = {"strict": strict}
    if folder is not None:
        pipe.loras.folders.append(check_folder("lora_dir", folder))
    strengths: dict[str, float] = {}
    for text in given:
        source, colon, strength = text.rpartition(":")
        try:
            factor = float(strength)
        except ValueError:
            source, colon, factor = text, "", 1.0
        source = source if colon else text
        name = source if source in pipe.loras else Path(source).name.removesuffix(".safetensors")
        if name in strengths:
            raise InputError("loras", text, f"two are called {name!r}; rename one, or leave it out")
        if name not in pipe.loras:
            left = pipe.add_lora(name, source, strict=strict).left
            if left:
                note(f"{name}: {len(left)} tensors left out, such as {left[0]}")
        strengths[name] = factor
    return strengths


def _hires(given: dict[str, Any], before: Any) -> Hires | None:
    """The second pass that flags ask for, over that of a picture, `before`."""
    from dataclasses import replace

    from jaxl.call.hires import Hires
    from jaxl.call.sizes import read_size

    fields = ("upscaler", "steps", "strength", "prompt", "negative", "scheduler", "guidance")
    names = {"negative": "negative_prompt", "guidance": "guidance_scale"}
    own = {names.get(each, each): given[f"hires_{each}"] for each in fields if given[f"hires_{each}"] is not None}
    size = given["hires"]
    if size is not None:
        try:
            sides = read_size(size)
            own |= {"scale": float(size)} if sides is None else {"size": sides}
        except ValueError:
            raise InputError("hires", size, "give a number, such as 1.5, or WIDTHxHEIGHT") from None
        return Hires(**own)
    if own and not isinstance(before, Hires):
        name, value = next(iter(own.items()))
        raise InputError(f"hires.{name}", value, "there is no second pass; give `hires` too")
    return replace(before, **own) if isinstance(before, Hires) else None


def _with_network(hires: Hires | None, pipe: Pipeline, dtype: str) -> Hires | None:
    """The second pass with its upscaler loaded, if that is a file."""
    from dataclasses import replace

    if hires is None or not isinstance(hires.upscaler, str) or not Path(hires.upscaler).is_file():
        return hires
    file = Path(hires.upscaler)
    return replace(hires, upscaler=pipe.add_upscaler(file.stem, file, dtype=dtype))


def _picture_for(argument: str, text: str) -> tuple[str, Image.Image, float]:
    """What --control and --image-prompt ask for: a name, a picture, which is read, and maybe a strength."""
    from jaxl.call.images import read_image

    name, _, rest = text.partition(":")
    file, _, number = rest.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        file, strength = rest, 1.0
    if not (name and file):
        raise InputError(argument, text, "give a name and a picture, such as edges:lines.png or edges:lines.png:0.8")
    return name, read_image(file, argument), strength


def _of_images(texts: PromptFiles, options: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The prompts of each image, which is one of as many prompts."""
    each = [texts.prompts(options, seed) for seed in seeds]
    return {name: [own[name] for own in each] for name in each[0]} | {"num_images": 1}


def _seed_of_host_0(seed: int) -> int:
    """What host 0 has for `seed`, of 32 bits."""
    import numpy as np

    from jaxl.run.sharding import gathered, make_mesh

    return int(gathered(np.uint32(seed), make_mesh())[0])


def _numbered(seeds: list[int]) -> str:
    """How many images, and their seeds."""
    if len(seeds) > 1:
        return f"{len(seeds)} images, seeds {seeds[0]} to {seeds[-1]}"
    return f"seed {seeds[0]}" if seeds else "no image"


def _numbers(argument: str, text: str | None, mark: str, kind: Callable[[str], float] = float) -> list[float] | None:
    """Numbers of a kind with a mark between them."""
    if text is None:
        return None
    try:
        return [kind(number) for number in text.split(mark)]
    except ValueError:
        raise InputError(argument, text, f"give numbers with {mark!r} between them") from None


def _preview_file(name: str) -> ShowPreview:
    """What writes the images in the making, side by side, into a file that is whole at any time."""
    from PIL import Image

    from jaxl.png import check_writable, write_png

    path = Path(name)
    if path.suffix.lower() != ".png":
        raise InputError("preview", name, "give the name of a .png file")
    check_writable("preview", path, folder=False)

    def write(step: int, total: int, pictures: np.ndarray) -> None:
        write_png(path, Image.fromarray(pictures.swapaxes(0, 1).reshape(pictures.shape[1], -1, 3)), None)

    return write


def _destination(output: str, count: int) -> Callable[[Image.Image, dict[str, Any]], Path]:
    """What writes an image with its settings, and returns where. Raises InputError if nothing can be written there.

    Into a folder go new files with their seeds as names; a file's name is taken as it is, or numbered.
    """
    from jaxl.png import check_writable, write_new_png, write_png

    path = Path(output)
    folder = path.is_dir() or path.suffix.lower() != ".png" or output.endswith(("/", os.sep))
    if folder and path.suffix.lower() in OTHER_FORMATS and not path.is_dir():
        raise InputError("output", output, f"only PNG is written; give {path.with_suffix('.png').name!r}, or a folder")
    check_writable("output", path, folder=folder)

    def write(image: Image.Image, settings: dict[str, Any]) -> Path:
        if not folder and count == 1:
            write_png(path, image, settings)
            return path
        if folder:
            name = path / f"jaxl-{settings['seed']}.png"
            names = itertools.chain([name], (name.with_stem(f"{name.stem}-{i}") for i in itertools.count(2)))
        else:
            names = (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(1))
        return write_new_png(names, image, settings)

    return write
