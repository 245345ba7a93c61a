"""The controls of each image: ControlNets with their pictures, and the places that a batch has for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from jaxl.call.arguments import lists_per_image
from jaxl.call.control import FACTORS, MODES, Control
from jaxl.call.images import fit, read_image
from jaxl.errors import InputError, nearest
from jaxl.run.bucket import Branch
from jaxl.run.controls import ControlNet, ControlNets

# by how much a picture's shape may differ from the image's: sizes are rounded to what networks take
MOST_STRETCH = 0.05
# what pictures are to networks that take so many channels
COLOURS = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)
class Seen:
    """A control with its network, and with its picture, which was read."""

    network: ControlNet
    control: Control
    picture: Image.Image

    def pixels(self, width: int, height: int) -> np.ndarray:
        """Return the picture as the network takes it for an image of this size, float32 [1, H, W, C] in 0..1."""
        picture = fit(self.picture.convert(COLOURS[self.network.config.picture_channels]), width, height)
        return (np.asarray(picture).astype(np.float32) / 255.0).reshape(1, height, width, -1)


@dataclass(frozen=True, eq=False)
class PlannedControl:
    """What a network does for one image: what it sees, how strongly it acts, and in which rows (`run.controls`).

    A union may see several pictures at once, whose strengths are then a matter of what it sees.
    """

    seen: tuple[Seen, ...]
    first: int
    end: int

    @property
    def network(self) -> ControlNet:
        return self.seen[0].network

    @property
    def scales(self) -> list[float]:
        """How strongly each picture is seen."""
        return [each.control.strength for each in self.seen] if len(self.seen) > 1 else [1.0]

    @property
    def kinds(self) -> np.ndarray:
        """Whether there is a picture of each kind that the network knows, float32 [1, K]."""
        has = {each.control.kind for each in self.seen}
        return np.asarray([[kind in has for kind in range(self.network.config.kinds)]], np.float32)

    def strengths(self, order: Sequence[Branch]) -> np.ndarray:
        """Return the strengths in branches of this order, [G, R]."""
        control = self.seen[0].control
        scale = control.strength if len(self.seen) == 1 else 1.0
        own = [scale * factor for factor in control.factors(self.network.config)]
        acts = [branch.side is not Branch.NEGATIVE or control.of_negative for branch in order]
        return np.asarray([own if on else [0.0] * len(own) for on in acts], np.float32)


def read_controls(value: Any, known: ControlNets, images: int, each: int) -> list[list[Seen]]:
    """Return what is asked for each image. `value` is a list for all images, or one for each image or prompt.

    A prompt has `each` images. Raises InputError for a name that is not in `known`, for a picture that is none, and for
    what is no control.
    """
    return lists_per_image("controls", value, Control, lambda control: _read(control, known), images, each)


def plan_controls(
    asked: Sequence[Seen], width: int, height: int, first: int, numbers: Sequence[int], rows: int
) -> tuple[PlannedControl, ...]:
    """Return the controls of an image of this size, whose rows from `first` on are these `numbers` of so many.

    Raises InputError for a picture of another shape than the image's.
    """
    together: dict[Any, list[Seen]] = {}
    for number, seen in enumerate(asked):
        control, union = seen.control, seen.network.config.kinds > 0
        check_shape("controls", seen.picture, width, height, f"the picture of {control.name!r}")
        if union and not control.strength:
            continue  # among others it would be seen all the same
        # a union sees those that act alike at once
        alike = (control.start, control.end, control.weighting) if union else number
        together.setdefault((seen.network, alike), []).append(seen)
    planned = []
    for those in together.values():
        control = those[0].control
        planned.append(PlannedControl(tuple(those), *acting(control.start, control.end, first, numbers, rows)))
    return tuple(planned)


def check_shape(argument: str, picture: Image.Image, width: int, height: int, what: str) -> None:
    """Raise InputError for a picture, which the remedy calls `what`, of another shape than the image's."""
    wide, tall = picture.size
    if abs(wide * height / (tall * width) - 1) > MOST_STRETCH:
        remedy = f"the image is {width}x{height}; cut {what} to that shape, or give a size"
        raise InputError(argument, f"{wide}x{tall} pixels", remedy)


def acting(start: float, end: float, first: int, numbers: Sequence[int], rows: int) -> tuple[int, int]:
    """Return the first row that lies within shares of a run, and the one after its last, as diffusers compares them.

    The rows from `first` on are these `numbers` of the run's, which are so many.
    """
    acts = [i / rows >= start and (i + 1) / rows <= end for i in numbers]
    begins = first + (acts.index(True) if any(acts) else 0)
    return begins, begins + sum(acts)


def networks_of(controls: Sequence[Sequence[PlannedControl]]) -> tuple[ControlNet, ...]:
    """Return the networks of a batch: each as often as some image has it, in the order in which they first appear."""
    networks: list[ControlNet] = []
    for own in controls:
        mine = [each.network for each in own]
        for network in dict.fromkeys(mine):
            networks += [network] * (mine.count(network) - networks.count(network))
    return tuple(networks)


def at_places(own: Sequence[PlannedControl], networks: Sequence[ControlNet]) -> list[PlannedControl | None]:
    """Return the control of an image at each of the places; None where it has no use for the network."""
    left = list(own)
    found: list[PlannedControl | None] = []
    for network in networks:
        mine = next((each for each in left if each.network is network), None)
        if mine is not None:
            left.remove(mine)
        found.append(mine)
    return found


def _read(control: Control, known: ControlNets) -> Seen:
    try:
        network = known[control.name]
    except KeyError:
        remedy = "no ControlNet is loaded; add it first, with Pipeline.add_control or --controlnet, or leave it out"
        if names := {*known, *known.own}:
            remedy = f"no ControlNet of this name is loaded; {nearest(str(control.name), names)}"
        raise InputError("controls", control.name, remedy) from None
    if control.weighting not in (ways := FACTORS[type(network.config)]):
        remedy = f"{control.name!r} is none of the networks that are weighted so; give {' or '.join(ways)}"
        raise InputError("weighting", control.weighting, remedy)
    kinds = network.config.kinds
    modes = ", ".join([*MODES][:kinds])
    if kinds and (control.kind is None or control.kind >= kinds):
        raise InputError("mode", control.mode, f"{control.name!r} takes pictures of several kinds; give one of {modes}")
    if control.mode is not None and not kinds:
        raise InputError("mode", control.mode, f"{control.name!r} is for pictures of one kind; leave it out")
    return Seen(network, control, read_image(control.image, "controls"))
