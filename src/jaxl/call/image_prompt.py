"""An image prompt: pictures that cross-attention reads beside the text, by an IP-Adapter, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxl.call.control import check_number, check_window
from jaxl.errors import InputError, nearest
from jaxl.weights.adapters.strength import Strength, named_blocks

MOST_STRENGTH = 10.0
# the blocks of SDXL that carry style and layout (Wang et al. 2024, InstantStyle, arXiv:2404.02733, section 3.3)
STYLE, LAYOUT = {"up": {"block_0": [0.0, 1.0, 0.0]}}, {"down": {"block_2": [0.0, 1.0]}}
BLOCKS: Mapping[str, Mapping[str, Any]] = {"style": STYLE, "layout": LAYOUT, "style and layout": STYLE | LAYOUT}
NONE = (("down", 0.0), ("mid", 0.0), ("up", 0.0))


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """An IP-Adapter's part in a picture (Ye et al. 2023, arXiv:2308.06721).

    name: what `Pipeline.add_ip_adapter` called it. images: a picture to be like, or several, which are read together,
        each a path, a PIL image, or an array. Of one that is not square the middle is seen.
    strength: by how much it is read; 1 is as trained, 0 is off.
    mask: a picture of the image's shape, white where it acts; everywhere by default. Give one prompt for each mask.
    start, end: shares of the network's calls, 0 to 1, between which it acts; a call acts if it lies in them wholly.
    blocks: the parts of the U-Net that read it: "style", "layout" or "style and layout", as InstantStyle names them, or
        a mapping as diffusers' `set_ip_adapter_scale` reads it, such as {"down": {"block_2": [0.0, 1.0]}}; parts that
        it does not name get 0. All by default.

    Raises InputError for values that cannot work.
    """

    name: str
    images: Any
    strength: float = 1.0
    mask: Any = None
    start: float = 0.0
    end: float = 1.0
    blocks: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        whose = f"of image prompt {self.name!r}"
        check_number("strength", self.strength, MOST_STRENGTH, whose)
        check_window(self.start, self.end, whose)
        if isinstance(self.blocks, str) and self.blocks not in BLOCKS:
            raise InputError("blocks", self.blocks, f"{whose}: {nearest(self.blocks, BLOCKS)}")
        self.factors(())  # reads the blocks
        if not self.pictures:
            raise InputError("images", self.images, f"{whose}: give at least one picture")

    @property
    def pictures(self) -> list[Any]:
        """Its pictures, as they were given."""
        several = isinstance(self.images, Sequence) and not isinstance(self.images, (str, bytes, bytearray))
        return list(self.images) if several else [self.images]

    def factors(self, transformers: Sequence[str]) -> list[float]:
        """Return the strength for each transformer of a U-Net, named by its path."""
        if self.blocks is None:
            return [float(self.strength)] * len(transformers)
        blocks = BLOCKS[self.blocks] if isinstance(self.blocks, str) else self.blocks
        own = Strength(self.strength, blocks=(*NONE, *named_blocks(blocks)))
        return [own.at("unet", f"{path}.transformer_blocks") for path in transformers]

    @property
    def facts(self) -> dict[str, Any]:
        """What it is but its pictures, as settings in files have it."""
        own = {"name": self.name, "strength": self.strength, "start": self.start, "end": self.end}
        return own | ({} if self.blocks is None else {"blocks": self.blocks})
