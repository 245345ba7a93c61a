"""Every option of a call, once: of loading a checkpoint, and of drawing pictures.

A text in the `Annotated` type of an option is its name in the settings that A1111 and its kin write into pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar, cast

from jaxl.call.control import Control
from jaxl.call.hires import Hires
from jaxl.call.image_prompt import ImagePrompt
from jaxl.call.region import Region
from jaxl.config import Split
from jaxl.diffusion.tables import Sampling
from jaxl.text.prompt import Syntax
from jaxl.weights.adapters.strength import Strength

# jax takes a second to import, and the command's help and the server's front do without
if TYPE_CHECKING:
    from jax.sharding import Mesh
    from jax.typing import DTypeLike

    from jaxl.kernels import Kernels

__all__ = [
    "Adapters",
    "Caching",
    "Controls",
    "Conventions",
    "DrawOptions",
    "Edges",
    "Guidance",
    "ImagePrompts",
    "LoadOptions",
    "MicroConditioning",
    "Options",
    "Regions",
    "Sampling",
    "SecondPass",
    "Start",
    "TiledDiffusion",
]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Every option of loading a checkpoint: what `jaxl.from_pretrained` names in its signature, and explains."""

    dtype: DTypeLike = "bfloat16"
    mesh: Mesh | None = None
    shard_params: bool = False
    split: Split = "auto"
    revision: str | None = None
    variant: str | None = None
    token: str | None = None
    cache_dir: str | PathLike[str] | None = None
    local_files_only: bool = False
    unet: str | PathLike[str] | None = None
    vae: str | PathLike[str] | None = None
    vae_dtype: DTypeLike | None = None
    vae_tile: int | None = None
    preview: str | PathLike[str] | None = None
    preset: str | None = None
    prediction_type: str | None = None
    batch_sizes: Sequence[int] = ()
    precision: str | None = None
    calibration: Sequence[str] | None = None
    kernels: Kernels | None = None


class MicroConditioning(TypedDict, total=False):
    """What SDXL was told in training about each picture's origin (arXiv:2307.01952, section 2.2).

    Sizes are (height, width), corners (top, left). `original_size` and `target_size` default to the size of the image,
    `crops_coords_top_left` to (0, 0), and the negative ones, for the unconditional branch, to the positive.
    `aesthetic_score` and the negative one are the refiner's, 6.0 and 2.5 by default.
    """

    original_size: tuple[int, int]
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int]
    negative_original_size: tuple[int, int]
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int]
    aesthetic_score: float
    negative_aesthetic_score: float


class Guidance(TypedDict, total=False):
    """How the prompt is followed, beyond `guidance_scale`.

    Attributes:
        guidance_rescale: 0 to 1, one or one for each image; takes back what guidance adds to the deviation of the
            prediction (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        apg_eta: 0 to 1, the share that is kept of what guidance adds along the estimate itself, which makes colours
            loud; 1 by default, and 0 in adaptive projected guidance (Sadat et al. 2024, arXiv:2410.02416). This and the
            numbers after it are one for all images, or one for each.
        apg_threshold: the length that what guidance adds has at most, such as 15; 0, the default, for any.
        apg_momentum: -1 to 1, how much of what the row before added is added again; below 0 it is taken back.
        cfg_zero: 0 or 1; whether the negative prediction is scaled to be as near to the positive one as it can
            (CFG-Zero* of Fan et al. 2025, arXiv:2503.18886).
        cfg_zero_steps: the first steps in which a model that was trained on straight paths does not move, as there; 0
            by default.
        mimic_scale: 0 or more; dynamic thresholding: the estimate becomes as large as with this scale of guidance. 0,
            the default, is none (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
        mimic_percentile: 0 to 1, what of each channel is not clipped; 1 by default.
        perp_neg_scale: 0 or more, one or one for each image; a perpendicular negative prompt: away from that alone
            which it does not share with the prompt, so many times as strongly as towards the prompt; 1 is usual, and 0,
            the default, is the plain one (Armandpour et al. 2023, arXiv:2304.04968). It takes an empty text beside the
            two, and is refused with CFG++ schedulers and the numbers from `apg_eta` to `mimic_percentile`.
        guidance_interval: (start, end), shares of the steps from 0 to 1; outside them nothing but the prompt's own
            branch is computed, which is faster (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        pag_scale: 0 or more, one or one for each image; perturbed-attention guidance (Ahn et al. 2024,
            arXiv:2403.17377).
        pag_adaptive_scale: by how much `pag_scale` falls for each timestep below the last, down to 0.
        pag_layers: the perturbed places, such as "mid_block" (the default), "down_blocks.2" or
            "up_blocks.0.attentions.1".
        seg_scale: 0 or more, one or one for each image; smoothed-energy guidance (Hong 2024, arXiv:2408.00760) at the
            places of `pag_layers`, in place of `pag_scale`.
        seg_blur: how far that blurs queries: a sigma above 0, in places of the features; above 9999, as by default, it
            takes their mean.
        freeu: s1, s2, b1 and b2 of FreeU (Si et al. 2023, arXiv:2309.11497); its authors give (0.6, 0.4, 1.1, 1.2) for
            SDXL.
    """

    guidance_rescale: Annotated[float | Sequence[float], "CFG Rescale phi"]
    apg_eta: float | Sequence[float]
    apg_threshold: float | Sequence[float]
    apg_momentum: float | Sequence[float]
    cfg_zero: float | Sequence[float]
    cfg_zero_steps: int
    mimic_scale: float | Sequence[float]
    mimic_percentile: float | Sequence[float]
    perp_neg_scale: float | Sequence[float]
    guidance_interval: tuple[float, float]
    pag_scale: float | Sequence[float]
    pag_adaptive_scale: float
    pag_layers: Sequence[str]
    seg_scale: float | Sequence[float]
    seg_blur: float | Sequence[float]
    freeu: tuple[float, float, float, float]


class Caching(TypedDict, total=False):
    """Less work than the exact run does; the pictures are not quite the same (docs/nearness.md).

    Attributes:
        cache_interval: 1 or more; after the first fifth of the schedule the whole U-Net is run every so many steps, and
            on the others its first and its last layer alone, with deep features from the last whole one (Ma et al.
            2023, DeepCache, arXiv:2312.00858). 1 is exact.
        step_interval: 1 or more; after the first fifth of the schedule every so many of its steps are made alone, each
            of which goes over those that are left out. 1 is exact. For schedulers that add no noise.
        speed: "exact", "balanced" or "fast": a `cache_interval`, or that and a `guidance_interval`, where not given
            (`jaxl.presets.SPEEDS`). For runs of 20 steps and more.
    """

    cache_interval: int
    step_interval: int
    speed: Literal["exact", "balanced", "fast"]


class Start(TypedDict, total=False):
    """What the images start from, and where they end.

    Attributes:
        image: a picture to start from, or one for each prompt: a path, a PIL image, an array, or latents [B, h, w, 4]
            as `Result.latents` has them.
        strength: 0 to 1, the share of the steps that is run from `image`; 0.6 by default, 1 with a mask, 0.3 in a
            refiner.
        mask: a picture of the same size, or one for each prompt: white where `image` is painted anew.
        padding_mask_crop: pixels around the mask's white part; that region alone is worked on, enlarged, and pasted
            back.
        denoising_end: 0 to 1; stops after this share of the noise levels and gives latents that still have noise.
        denoising_start: 0 to 1; `image` is such latents, and the run goes on from there (arXiv:2211.01324).
    """

    image: Any
    strength: Annotated[float, "Denoising strength"]
    mask: Any
    padding_mask_crop: int
    denoising_start: float
    denoising_end: float


class Noise(TypedDict, total=False):
    """What a seed stands for: the noise that an image starts from, and that which its steps add.

    Attributes:
        noise: "jaxl", the default; "torch", as PyTorch draws it on a CPU in float32 (so do ComfyUI, diffusers with such
            a generator, and A1111 with `RNG: CPU`); "nv", as A1111 does with `RNG: NV`; or "cuda", as PyTorch draws it
            on a large NVIDIA GPU, A1111's default. Smaller GPUs draw a part of large pictures otherwise, and have names
            of their own: "cuda:t4", "cuda:l4", "cuda:rtx3060" and more. In half precision a CPU draws "torch:fp16" and
            "torch:bf16", and old versions of PyTorch "torch2.6:fp16", "torch2.6:bf16" or "torch1.13:fp16". A seed means
            what it means there.
        step_noise: the same for the noise that steps add, where that is drawn otherwise: in ComfyUI on the GPU.
        sde_noise: "brownian", the default: schedulers for SDEs, such as dpm++2m_sde, take another program's noise from
            a Brownian path of each image over the whole schedule, as in A1111; "brownian_run": over the steps that are
            run, as in ComfyUI; or "draws": as others do, as in diffusers.
        eta_noise_seed_delta: steps draw from the seed with this added to it, one for all or one for each image, as with
            A1111's option ENSD, where 31337 is usual; 0 is ComfyUI's way, and "inverted", for the seed with its 32 bits
            inverted, InvokeAI's. Without it they go on with the first noise's generator, if both are of one source.
        variation_seed, variation_strength: 0 to 1, the share of the way from the noise of `seed` to that of another
            seed, which then counts up from image to image in place of `seed` (A1111, SwarmUI).
        seed_resize_from: (width, height): the noise of a picture of this size lies in the middle of the image's own.
        noise_batch: (place, number): one generator draws the noise of so many images at once, of which the first image
            is the one at a place, counted from 0, as ComfyUI and diffusers draw a batch; all have one seed. (0, 4) is
            for a batch of four, (2, 4) for its third image alone.
    """

    noise: str
    step_noise: str
    sde_noise: Literal["brownian", "brownian_run", "draws"]
    eta_noise_seed_delta: Annotated[int | Sequence[int] | Literal["inverted"], "ENSD"]
    variation_seed: Annotated[int | Sequence[int], "Variation seed"]
    variation_strength: Annotated[float, "Variation seed strength"]
    seed_resize_from: tuple[int, int]
    noise_batch: tuple[int, int]


class Conventions(TypedDict, total=False):
    """What programs do in their own ways, beyond the noise.

    Attributes:
        style: "a1111", "forge", "comfyui", "diffusers", "invokeai" or "swarmui": sets options of noise, of sampling, of
            prompts and of this group, where they are not given, to what that program does (docs/guide.md has a table).
        negative_clip_skip: `clip_skip` of the negative prompt; by default 0, as in diffusers, where others skip both.
        emphasis: what the weight of a word does to its embedding: "original", the default, A1111's: it is multiplied,
            and the text's mean is restored; "no_norm", without the latter; "comfyui": it moves away from the
            embedding of an empty text; or "ignore".
        empty_negative: negative prompts that are all empty, or not given, are "zeros", as in A1111 and InvokeAI; or
            they are "encoded", as in ComfyUI. By default those that are given are encoded, and for others the model
            says which it takes, as in diffusers.
        strength_steps: how many steps are run from a picture: "part", the default, diffusers': the share `strength` of
            them; "part+1", A1111's: one more, for its own UniPC "part+0", for its DDIM and PLMS "part-1"; or "whole",
            ComfyUI's: all, the last ones of a schedule so much longer, of which "whole-1" and "whole-2" run fewer.
        prompt_steps: what a text that changes counts, `[a:b:5]`: "steps", the default, of the whole schedule; or
            "calls", A1111's: of the network from the first that is run, of which some schedulers make two a step; a
            change comes one call late.
        byte_rounding: "round", the default, to the nearest of 256 levels; or "truncate" to the one below, as A1111 and
            ComfyUI do.
    """

    style: str
    negative_clip_skip: int
    emphasis: Literal["original", "no_norm", "comfyui", "ignore"]
    empty_negative: Literal["zeros", "encoded"]
    strength_steps: Literal["part", "part+1", "part+0", "part-1", "whole", "whole-1", "whole-2"]
    prompt_steps: Literal["steps", "calls"]
    byte_rounding: Literal["round", "truncate"]


class Adapters(TypedDict, total=False):
    """What is added to the checkpoint's networks for an image.

    Attributes:
        loras: names that `Pipeline.add_lora` was given, each with a strength, such as {"pencil": 0.8}, or a list with
            one such mapping for each image. A strength is a number or a `jaxl.Strength`. Images of one call may have
            different ones. Tags in a prompt, `<lora:pencil:0.8>`, come on top.
    """

    loras: Mapping[str, float | Strength] | Sequence[Mapping[str, float | Strength]]


class Edges(TypedDict, total=False):
    """What is beyond the edges of the images.

    Attributes:
        seamless: "x", "y" or "xy": along these axes the image wraps around, so that copies beside each other have no
            seam, as with A1111's tiling: convolutions of the U-Net and the autoencoder see the opposite edge.
    """

    seamless: Literal["x", "y", "xy"]


class TiledDiffusion(TypedDict, total=False):
    """Pictures that are larger than the network can draw at once, or has memory for.

    Attributes:
        tile_size: pixels, such as 1024: the network sees squares of this size one after another, in every step, and its
            estimates are put together (MultiDiffusion, Bar-Tal et al. 2023, arXiv:2302.08113). All tiles are told the
            same prompts, and a tile's size as their own, unless `original_size` and `target_size` say otherwise. The
            autoencoder works in tiles of this size too. Images of no more pixels are drawn whole. With `image`, and
            neither width nor height, an image has the size of that picture.
        tile_overlap: pixels that neighbours share at least; a quarter of the size by default. More of them hide seams
            better, and take longer.
    """

    tile_size: int
    tile_overlap: int


# the options that have pictures beside those to start from
OF_PICTURES = ("controls", "image_prompts")
# and those whose values have facts, which files tell
WITH_FACTS = (*OF_PICTURES, "regions")


class Controls(TypedDict, total=False):
    """Pictures that the images follow.

    Attributes:
        controls: a list of `jaxl.Control`, or one such list for each image: ControlNets that `Pipeline.add_control` was
            given, each with its picture. Images of one call may have different ones. Without a size, the image has the
            one of SDXL's sizes that is nearest to the shape of the first picture.
    """

    controls: Sequence[Control] | Sequence[Sequence[Control]]


class ImagePrompts(TypedDict, total=False):
    """Pictures that the images are to be like.

    Attributes:
        image_prompts: a list of `jaxl.ImagePrompt`, or one such list for each image: IP-Adapters that
            `Pipeline.add_ip_adapter` was given, each with its pictures. Images of one call may have different ones.
    """

    image_prompts: Sequence[ImagePrompt] | Sequence[Sequence[ImagePrompt]]


class SecondPass(TypedDict, total=False):
    """A second pass at a larger size.

    Attributes:
        hires: a `jaxl.Hires`, which says how the images are enlarged, and how they are drawn on. What else is asked for
            holds in both passes: ControlNets follow their pictures at the larger size, and tags of LoRAs are those of
            the pass's own prompt.
    """

    hires: Hires


class Regions(TypedDict, total=False):
    """Parts of the images with prompts of their own.

    Attributes:
        regions: a list of `jaxl.Region`, each with a box or a mask, or one such list for each image. Images of one call
            may have different ones.
    """

    regions: Sequence[Region] | Sequence[Sequence[Region]]


class Options(
    Sampling,
    Guidance,
    Caching,
    Start,
    Noise,
    Conventions,
    Adapters,
    Controls,
    ImagePrompts,
    SecondPass,
    Regions,
    Edges,
    TiledDiffusion,
    MicroConditioning,
    total=False,
):
    """Every further setting of a picture.

    Attributes:
        prompt_syntax: "a1111", the syntax of AUTOMATIC1111's web UI (see `jaxl.text.prompt`), which refuses what is
            broken; "lenient", the same as the web UI reads it, where that is text; "comfyui", that program's;
            "literal", which takes all as text; or "plain", which does so too and cuts it at 75 tokens, as diffusers
            does. With the others, longer prompts are encoded in chunks.
    """

    prompt_syntax: Syntax


class DrawOptions(Options, total=False):
    """Every setting of a picture but its prompt: what `Pipeline.generate` names in its signature, and explains."""

    prompt_2: str | Sequence[str] | None
    negative_prompt: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    seed: Annotated[int | Sequence[int], "Seed"]
    steps: Annotated[int | None, "Steps"]
    guidance_scale: Annotated[Any, "CFG scale"]
    width: int | None
    height: int | None
    num_images: int
    scheduler: str | None
    latents: Any
    clip_skip: int


# the share of the steps that is run from a picture, where neither a mask nor a refiner asks for another
STRENGTH = 0.6
# the share of the noise levels from which on a refiner draws, where nobody says: diffusers' and A1111's usual one
REFINER_AT = 0.8
# of those that cannot be None
DEFAULTS: DrawOptions = {"seed": 0, "num_images": 1, "clip_skip": 0}


def check_names(options: DrawOptions) -> None:
    """TypeError, as for any function, for a setting that there is not."""
    unknown = set(options) - set(DrawOptions.__annotations__)
    if unknown:
        raise TypeError(f"generate() got an unexpected keyword argument {sorted(unknown)[0]!r}")


def part(options: Options, kind: type[T]) -> T:
    """Those of the options that belong to one of the groups above."""
    return cast(T, {name: value for name, value in options.items() if name in kind.__annotations__})
