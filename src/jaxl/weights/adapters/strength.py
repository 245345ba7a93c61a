"""How strongly an adapter is added: to each network, each block of the U-Net, and in each part of the schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxl.errors import InputError

# The places that lists of block strengths name, as sd-webui-lora-block-weight does: BASE is the text encoders. SDXL has
# IN00 to IN08, MID and OUT00 to OUT08; the longer lists are of Stable Diffusion 1.
_ALL_IN, _ALL_OUT = [f"IN{i:02}" for i in range(12)], [f"OUT{i:02}" for i in range(12)]
BLOCKS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", "IN04", "IN05", "IN07", "IN08", "MID", *_ALL_OUT[:6]),
    17: ("BASE", "IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *_ALL_OUT[3:]),
    20: ("BASE", *_ALL_IN[:9], "MID", *_ALL_OUT[:9]),
    26: ("BASE", *_ALL_IN, "MID", *_ALL_OUT),
}
_PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\..*")
_EMBEDDINGS = re.compile(r"(conv_in|time_embedding|add_embedding)\b.*")


@dataclass(frozen=True)
class Strength:
    """How strongly an adapter is added. 1 is as trained; negative strengths and those above 1 are in order.

    unet: of the U-Net. text: of the text encoders, or one for each of both; by default as `unet`.
    blocks: further factors for parts of the U-Net. A list of 12, 17, 20 or 26 numbers names blocks as the extension
        sd-webui-lora-block-weight does, the first one being the text encoders; blocks that the list has no place for
        get 0. A mapping is read as diffusers' `set_adapters` does, such as
        {"down": {"block_2": [0.0, 1.0]}, "mid": 0.5}; parts that it does not name get 1.
    start, end: shares of the steps, 0 to 1, between which the U-Net has the adapter.

    Raises InputError for values that cannot work.
    """

    unet: float = 1.0
    text: float | tuple[float, float] | None = None
    blocks: Any = None
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        own = object.__setattr__
        own(self, "unet", _number("unet", self.unet))
        if isinstance(self.text, Sequence) and not isinstance(self.text, str):
            if len(self.text) != 2:
                raise InputError("text", self.text, "give a number, or one for each of the two text encoders")
            own(self, "text", tuple(_number("text", each) for each in self.text))
        elif self.text is not None:
            own(self, "text", _number("text", self.text))
        own(self, "blocks", _blocks(self.blocks))
        for name in ("start", "end"):
            share = _number(name, getattr(self, name))
            if not 0 <= share <= 1:
                raise InputError(name, share, "give a share of the steps, from 0 to 1")
            own(self, name, share)
        if self.start > self.end:
            raise InputError("start", self.start, f"begins after its end, {self.end:g}; give less")

    @classmethod
    def read(cls, argument: str, value: Any) -> Strength:
        """Return a strength, or that of a plain number. Raises InputError."""
        return value if isinstance(value, Strength) else cls(_number(argument, value))

    def at(self, component: str, path: str) -> float:
        """Return the factor for what is added to the layer at a path of a network."""
        if component == "unet":
            return self.unet * (1.0 if self.blocks is None else _factor(dict(self.blocks), path))
        return self._texts[0 if component == "text_encoder" else 1]

    @property
    def of_text(self) -> Strength:
        """The part of it that is for the text encoders."""
        return Strength(unet=0.0, text=self._texts)

    @property
    def _texts(self) -> tuple[float, float]:
        text = self.text if self.text is not None else self.unet
        base = dict(self.blocks or ()).get("BASE", 1.0)
        both = text if isinstance(text, tuple) else (text, text)
        return both[0] * base, both[1] * base

    def during(self, done: float) -> Strength:
        """Return the strength where a share of the steps is done: that of the U-Net is 0 outside of its interval."""
        if self.start <= done < self.end or (done < self.end == self.start):
            return replace(self, start=0.0, end=1.0)
        return self.of_text


def _number(argument: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(argument, value, "give a finite number, such as 0.8")
    return number


def _blocks(value: Any) -> tuple[tuple[str, float], ...] | None:
    """Return factors by place: of a list those in BLOCKS, of a mapping such as "down.2.1", "down.2" and "mid"."""
    if value is None or (isinstance(value, tuple) and value and isinstance(value[0], tuple)):
        return value
    if isinstance(value, Mapping):
        return tuple(named_blocks(value))
    known = ", ".join(map(str, BLOCKS))
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in BLOCKS:
        raise InputError("blocks", value, f"give a list of {known} numbers, or a mapping of down, mid and up")
    factors = dict.fromkeys(BLOCKS[20], 0.0) | dict(
        zip(BLOCKS[len(value)], (_number("blocks", each) for each in value), strict=True)
    )
    return tuple(factors.items())


def named_blocks(value: Mapping[Any, Any]) -> list[tuple[str, float]]:
    """Return factors by place of a mapping as diffusers reads it: of "down.2.1", "down.2" and "mid"."""
    remedy = 'give {"down": ..., "mid": ..., "up": ...}, each a number or {"block_0": number or list}'
    found: list[tuple[str, float]] = []
    for side, of_side in value.items():
        if side not in ("down", "mid", "up"):
            raise InputError("blocks", value, remedy)
        if not isinstance(of_side, Mapping):
            found.append((side, _number("blocks", of_side)))
            continue
        for block, of_block in of_side.items():
            number = re.fullmatch(r"block_(\d)", str(block))
            if number is None or side == "mid":
                raise InputError("blocks", value, remedy)
            each = of_block if isinstance(of_block, Sequence) and not isinstance(of_block, str) else None
            if each is None:
                found.append((f"{side}.{number[1]}", _number("blocks", of_block)))
            else:
                found += [(f"{side}.{number[1]}.{j}", _number("blocks", factor)) for j, factor in enumerate(each)]
    return found


def _factor(blocks: Mapping[str, float], path: str) -> float:
    """Return the factor of a layer of the U-Net: that of the narrowest part that is named."""
    listed = "MID" in blocks
    place = _PLACE.match(path)
    if path.startswith("mid_block."):
        return blocks["MID"] if listed else blocks.get("mid", 1.0)
    if place is None:
        at = ("IN00" if _EMBEDDINGS.match(path) else "OUT08") if listed else ""
        return blocks.get(at, 1.0)
    side, i, kind, j = place[1], int(place[2]), place[3], int(place[4])
    if listed:
        last = kind.endswith("samplers")
        number = 3 * i + (2 if last else j) if side == "up" else 3 * i + (3 if last else j + 1)
        return blocks.get(f"{'OUT' if side == 'up' else 'IN'}{number:02}", 0.0)
    names = (f"{side}.{i}.{j}", f"{side}.{i}", side)
    return next((blocks[name] for name in names if name in blocks), 1.0)
