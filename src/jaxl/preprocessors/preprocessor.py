"""What a preprocessor is: a function of a picture, with named parameters that are checked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jaxl.errors import InputError, nearest

# of the shorter side, as sd-webui-controlnet has it
LEAST_RESOLUTION, MOST_RESOLUTION = 64, 2048


@dataclass(frozen=True)
class Parameter:
    """A number that a preprocessor takes.

    slider: what sd-webui-controlnet calls it, whose units have two at most; None if it has it not.
    """

    name: str
    default: float
    least: float
    most: float
    whole: bool = False
    slider: str | None = None

    def __contains__(self, value: Any) -> bool:
        """Whether it can have this value."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and self.least <= value <= self.most and not (self.whole and value != int(value))

    def read(self, value: Any) -> float:
        """Return the number, whole if it has to be. Raises InputError."""
        if value not in self:
            kind = "a whole number" if self.whole else "a number"
            raise InputError(self.name, value, f"give {kind} from {self.least:g} to {self.most:g}")
        return int(value) if self.whole else float(value)


@dataclass(frozen=True)
class Library:
    """A library that some preprocessors need: its module, its title, and what a line says of installing it."""

    module: str
    title: str
    install: Callable[[], str]


@dataclass(frozen=True)
class Preprocessor:
    """A way from a picture to one that a ControlNet takes.

    about: what it makes. draw: from a picture in mode RGB to another, with `parameters` by name.
    modules: the names that sd-webui-controlnet has for it, of which the second is shown to people.
    types: the types of control that sd-webui-controlnet offers it for.
    scaled: there it works at a resolution, and not at the size of the picture.
    masked: it takes a mask too, in mode L and of the picture's size.
    needs: a module that is in no plain installation of jaxl, what people call it, and how it is installed.
    files: weights that it takes from a folder.
    """

    name: str
    about: str
    draw: Callable[..., Image.Image]
    parameters: tuple[Parameter, ...] = ()
    modules: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    scaled: bool = False
    masked: bool = False
    needs: Library | None = None
    files: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether this installation has what it needs, but for weights."""
        return self.needs is None or importlib.util.find_spec(self.needs.module) is not None

    @property
    def sliders(self) -> tuple[Parameter, ...]:
        """The parameters that sd-webui-controlnet has too, in its order."""
        return tuple(each for each in self.parameters if each.slider)

    def read(self, given: Mapping[str, Any]) -> dict[str, float]:
        """Return all parameters, those not given by default. Raises InputError."""
        known = {each.name: each for each in self.parameters}
        for name, value in given.items():
            if name not in known:
                remedy = nearest(name, known) if known else "it has no parameters; leave it out"
                raise InputError(name, value, f"no parameter of {self.name}; {remedy}")
        return {name: each.read(given.get(name, each.default)) for name, each in known.items()}

    def apply(
        self,
        picture: Image.Image,
        parameters: Mapping[str, Any],
        *,
        max_pixels: int,
        resolution: Any = None,
        mask: Image.Image | None = None,
        weights: Any = None,
    ) -> Image.Image:
        """Return what it makes of a picture in mode RGB; `mask` is in mode L and of its size.

        resolution: pixels of the shorter side to which the picture is scaled first; None leaves its size.
        weights: the folder with `files`. max_pixels: of the scaled picture.

        Raises InputError, for what is not installed too.
        """
        if self.needs is not None and not self.installed:
            raise InputError("name", self.name, f"it needs {self.needs.title}; {self.needs.install()}")
        values = self.read(parameters)
        if self.masked != (mask is not None):
            remedy = "takes one, white where it is painted anew" if self.masked else "takes none; leave it out"
            raise InputError("mask", mask and "a picture", f"{self.name} {remedy}")
        more: dict[str, Any] = {}
        if self.files or weights is not None:
            more["weights"] = self._folder(weights)
        scaled = _scaled(picture, resolution, max_pixels)
        if mask is not None:
            more["mask"] = mask.resize(scaled.size, Image.Resampling.BILINEAR)
        return self.draw(scaled, **values, **more)

    def _folder(self, weights: Any) -> Path:
        if not self.files:
            raise InputError("weights", str(weights), f"{self.name} has no weights; leave it out")
        listed = ", ".join(self.files)
        if not isinstance(weights, (str, Path)):
            raise InputError("weights", weights, f"{self.name} has weights; give the folder with {listed}")
        for name in self.files:
            if not (Path(weights) / name).is_file():
                raise InputError("weights", str(weights), f"no file {name} in it; {self.name} takes {listed}")
        return Path(weights)


def _scaled(picture: Image.Image, resolution: Any, max_pixels: int) -> Image.Image:
    """Return the picture with a shorter side of `resolution` pixels: by area if it shrinks, else by cubics."""
    if resolution is None:
        return picture
    whole = Parameter("resolution", 512, LEAST_RESOLUTION, MOST_RESOLUTION, whole=True).read(resolution)
    factor = whole / min(picture.size)
    width, height = (round(side * factor) for side in picture.size)
    if width * height > max_pixels:
        remedy = f"a picture of {picture.width}x{picture.height} would have {width}x{height} pixels; give less"
        raise InputError("resolution", resolution, remedy)
    filter = Image.Resampling.BICUBIC if factor > 1 else Image.Resampling.BOX
    return picture.resize((width, height), filter)
