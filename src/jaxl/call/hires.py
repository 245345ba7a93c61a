"""A second pass, which A1111 calls hires fix: an image is enlarged, and its last steps are drawn again at that size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from jaxl.call.interpolation import MODES
from jaxl.call.sizes import Size
from jaxl.errors import InputError, nearest

# jax takes a second to import, and the server does without
if TYPE_CHECKING:
    from jaxl.run.upscaler import Upscaler

MOST_STEPS, MOST_SCALE = 1000, 16.0
# of a picture that is drawn: more than any devices have had memory for
MOST_PIXELS = 8192 * 8192
# in errors, so that they are not taken for those of the first pass
PREFIX = "hires."
# what enlarges without a network: latents, or pixels, as `jaxl.call.upscale` resamples them
RESAMPLED = ("lanczos", "nearest")
WITHOUT_NETWORK = (*MODES, *RESAMPLED)


@dataclass(frozen=True, kw_only=True)
class Hires:
    """A second pass over an image, for `Pipeline.generate`: more detail at a size that the model was not trained for.

    scale: by which each side is multiplied, 1 to 16. size: (width, height) in its place; a side of 0 follows from the
        other one. Of an image of another shape the middle is kept.
    upscaler: what enlarges the image: "latent", which interpolates its latents, and "latent-antialiased",
        "latent-bicubic", "latent-bicubic-antialiased", "latent-nearest" and "latent-nearest-exact" likewise; "lanczos"
        or "nearest", which resample its pixels; or a network, loaded by `jaxl.Upscaler.from_file`, or the name that
        `Pipeline.add_upscaler` was given. A1111's names do too.
    steps: that are run; 0 is as many as in the first pass.
    strength: above 0, up to 1: the share of a schedule that these steps are the last ones of. 0.7 suits latents, which
        interpolation blurs; 0.3 to 0.5 keeps what a network has made.
    prompt, negative_prompt, scheduler, guidance_scale: of the second pass; those of the first where not given.

    Raises InputError for values that cannot work.
    """

    scale: float = 2.0
    size: Size | None = None
    upscaler: Upscaler | str = "latent"
    steps: int = 0
    strength: float = 0.7
    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    scheduler: str | None = None
    guidance_scale: Any = None

    def __post_init__(self) -> None:
        if not _is_number(self.scale) or not 1 <= self.scale <= MOST_SCALE:
            raise _error("scale", self.scale, f"give a number from 1 to {MOST_SCALE:g}")
        if self.size is not None:
            sides = self.size
            if (
                not isinstance(sides, (tuple, list))
                or len(sides) != 2
                or not all(map(_is_side, sides))
                or not any(sides)
            ):
                raise _error("size", sides, "give width and height in pixels, such as (1536, 1024)")
            object.__setattr__(self, "size", (sides[0], sides[1]))
        if isinstance(self.upscaler, str):
            object.__setattr__(self, "upscaler", plain_upscaler(self.upscaler))
        if not _is_number(self.strength) or not 0 < self.strength <= 1:
            raise _error("strength", self.strength, "give a number above 0, up to 1")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 0 <= self.steps <= MOST_STEPS:
            raise _error("steps", self.steps, f"give a whole number from 0, which is the first pass's, to {MOST_STEPS}")

    def sizes(self, size: Size, factor: int) -> tuple[Size, Size]:
        """Return the size to which an image of a size is enlarged, and that which is kept of it, a multiple of factor.

        The former covers the latter. Raises InputError for too many pixels.
        """
        width, height = size
        if self.size is None:
            cover = int(width * self.scale), int(height * self.scale)
            kept = cover = cover[0] // factor * factor, cover[1] // factor * factor
        else:
            wide, high = self.size
            own = wide or high * width // height, high or wide * height // width
            kept = own[0] // factor * factor, own[1] // factor * factor
            wider = width * kept[1] < kept[0] * height
            cover = (kept[0], kept[0] * height // width) if wider else (kept[1] * width // height, kept[1])
        if not 0 < kept[0] * kept[1] <= MOST_PIXELS:
            name, value = ("scale", self.scale) if self.size is None else ("size", self.size)
            remedy = f"{kept[0]}x{kept[1]} pixels; at most {MOST_PIXELS} in all, and {factor} on each side at least"
            raise _error(name, value, remedy)
        return cover, kept

    @property
    def facts(self) -> dict[str, Any]:
        """What it is, as settings in files have it: what is not the default."""
        told = {
            each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default
        }
        if not isinstance(self.upscaler, str):
            told["upscaler"] = self.upscaler.name
        return {"scale": self.scale, **told} if self.size is None else told


def read_upscaler(asked: Any, networks: Mapping[str, Upscaler]) -> Upscaler | str:
    """Return what enlarges: a network, or a name of WITHOUT_NETWORK. Raises InputError for a name that there is not."""
    if not isinstance(asked, str):
        if not callable(getattr(asked, "warm_up", None)):
            raise _error("upscaler", asked, "give a name, or a `jaxl.Upscaler`")
        return asked
    name = find_upscaler(asked, networks)
    return networks.get(name, name)


def find_upscaler(asked: str, networks: Iterable[str]) -> str:
    """Return the name of an upscaler, which A1111 may write otherwise. Raises InputError for one that there is not."""
    known = [*networks]
    if asked in known:
        return asked
    name = "-".join(asked.lower().replace("(", " ").replace(")", " ").split())
    own = {"none": "lanczos", **{each.lower(): each for each in known}, **{each: each for each in WITHOUT_NETWORK}}
    found = own.get(asked.lower(), own.get(name))
    if found is None:
        raise _error("upscaler", asked, nearest(asked, [*known, *WITHOUT_NETWORK]))
    return found


def plain_upscaler(name: str) -> str:
    """Return jaxl's name for what enlarges without a network; all other names are left as they are."""
    try:
        return find_upscaler(name, ())
    except InputError:
        return name


def not_enlarged(size: Size, known: Sequence[Size]) -> InputError:
    """Return the error for a second pass of a size that a server has no programs for, where those are known."""
    shown = ", ".join(f"{width}x{height}" for width, height in known)
    remedy = f"second passes go to {shown} here" if known else "there are none here; a server draws them with --hires 2"
    return InputError("hires", f"{size[0]}x{size[1]}", remedy)


def a1111_upscaler(name: str) -> str:
    """Return what A1111 calls an upscaler: "Latent (bicubic)", "Lanczos", or the network's own name."""
    if name in RESAMPLED or name == "latent":
        return name.capitalize()
    kind, _, mode = name.partition("-")
    if name not in MODES:
        return name
    return f"{kind.capitalize()} ({mode if mode == 'nearest-exact' else mode.replace('-', ' ')})"


def _error(field: str, value: Any, remedy: str) -> InputError:
    return InputError(f"{PREFIX}{field}", value, remedy)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**16
