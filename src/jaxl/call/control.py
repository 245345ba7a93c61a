"""A control of a picture: a ControlNet with the picture that it follows, and how strongly it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxl.config import ControlConfig, ControlNetConfig, LLLiteConfig, T2IAdapterConfig
from jaxl.errors import InputError, nearest

Weighting = Literal["balanced", "prompt", "control", "guess"]

# The factors of what a control adds, in its order, the i-th of so many. For ControlNets, from the first skip to the
# middle, sd-webui-controlnet's for its modes in which one of prompt and control is more important, and diffusers' for
# `guess_mode`; for T2I-Adapters, from the first feature to the last, sd-webui-controlnet's.
Factor = Callable[[int, int], float]
PLAIN: Mapping[str, Factor] = {"balanced": lambda i, count: 1.0}
SOFT: Mapping[str, Factor] = dict.fromkeys(("prompt", "control"), lambda i, count: 0.825 ** (12 - i))
SOFT_FEATURES: Mapping[str, Factor] = dict.fromkeys(("prompt", "control"), lambda i, count: (0.25, 0.62, 0.825, 1.0)[i])
GUESS: Mapping[str, Factor] = {"guess": lambda i, count: 10.0 ** (i / (count - 1) - 1.0)}
FACTORS: Mapping[type[ControlConfig], Mapping[str, Factor]] = {
    ControlNetConfig: {**PLAIN, **SOFT, **GUESS},
    T2IAdapterConfig: {**PLAIN, **SOFT_FEATURES},
    LLLiteConfig: PLAIN,
}
WEIGHTINGS = tuple(FACTORS[ControlNetConfig])
# what sd-webui-controlnet calls them
CONTROL_MODES: Mapping[Weighting, str] = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
OF_NEGATIVE = ("balanced", "prompt")  # those in which the negative branch is controlled too


# the kinds of pictures that unions know, the later of them in ProMax alone, and what else people call them
MODES: Mapping[str, Sequence[str]] = {
    "openpose": ("pose",),
    "depth": (),
    "scribble": ("soft edge", "softedge", "hed", "pidi", "teed", "ted", "hed/pidi/scribble/ted"),
    "canny": ("lineart", "anime lineart", "mlsd", "hard edge", "canny/lineart/anime_lineart/mlsd"),
    "normal": ("normal map",),
    "segment": ("segmentation", "seg"),
    "tile": (),
    "repaint": ("inpaint",),
}


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet's part in a picture (Zhang et al. 2023, arXiv:2302.05543), or that of one of its kin.

    name: what `Pipeline.add_control` called it. image: the picture that it follows, such as edges or a depth map, in
        the shape of the image: a path, a PIL image, or an array.
    strength: 1 is as trained; 0 is off.
    start, end: shares of the network's calls, 0 to 1, between which it acts; a call acts if it lies in them wholly, as
        in diffusers.
    mode: in a union, which takes pictures of several kinds, the kind of this one: "openpose", "depth", "scribble" (also
        HED and the like), "canny" (also line art), "normal", "segment", and in ProMax "tile" and "repaint".
    weighting: "balanced"; "prompt", where the prompt is more important, or "control", where the control is, as
        sd-webui-controlnet weighs them; or "guess", as diffusers' `guess_mode`, which is to do without a prompt. Its
        kin know some of them.
    told: what files are to tell of `image`, such as {"preprocess": {"name": "canny", "low": 50}} if `jaxl.preprocess`
        made it so. Nothing else comes of it.

    Raises InputError for values that cannot work.
    """

    name: str
    image: Any
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    weighting: Weighting = "balanced"
    mode: str | None = None
    told: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whose = f"of control {self.name!r}"
        check_number("strength", self.strength, 10.0, whose)
        check_window(self.start, self.end, whose)
        if self.weighting not in WEIGHTINGS:
            raise InputError("weighting", self.weighting, nearest(str(self.weighting), WEIGHTINGS))
        if self.mode is not None and self.kind is None:
            raise InputError("mode", self.mode, f"{whose}: {nearest(str(self.mode), MODES)}")

    def factors(self, config: ControlConfig) -> list[float]:
        """Return factors for each of what a network adds."""
        return [FACTORS[type(config)][self.weighting](i, config.parts) for i in range(config.parts)]

    @property
    def kind(self) -> int | None:
        """The number that unions know the mode by."""
        name = str(self.mode).strip().lower()
        return next((i for i, (own, others) in enumerate(MODES.items()) if name in (own, *others)), None)

    @property
    def facts(self) -> dict[str, Any]:
        """What it is but its picture, as settings in files have it."""
        return (
            {"name": self.name, "strength": self.strength, "start": self.start, "end": self.end}
            | ({} if self.weighting == "balanced" else {"weighting": self.weighting})
            | ({} if self.mode is None else {"mode": self.mode})
            | dict(self.told)
        )

    @property
    def of_negative(self) -> bool:
        """Whether the negative branch is controlled too."""
        return self.weighting in OF_NEGATIVE


def check_number(field: str, value: Any, most: float, whose: str) -> None:
    """Raise InputError unless a value is a number from 0 to `most`; `whose` it is begins the remedy."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not 0 <= value <= most:
        raise InputError(field, value, f"{whose}: give a number from 0 to {most:g}")


def check_window(start: Any, end: Any, whose: str) -> None:
    """Raise InputError unless these are shares of the network's calls, the first before the second."""
    for name, value in (("start", start), ("end", end)):
        check_number(name, value, 1.0, whose)
    if start >= end:
        raise InputError("start", start, f"{whose}: must lie below its end, {end:g}")
