"""The way from a first pass to a second one: what is left is enlarged, and the middle of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from jaxl.call.hires import PREFIX
from jaxl.call.images import MAX_PIXELS, to_array
from jaxl.call.interpolation import MODES, interpolated
from jaxl.call.sizes import Size
from jaxl.call.starts import Picture
from jaxl.call.upscale import Told, enlarged

if TYPE_CHECKING:
    from jaxl.run.upscaler import Upscaler


@dataclass(frozen=True, eq=False)
class Enlarging:
    """The way from what a first pass leaves to what a second one starts from.

    An image is enlarged to the size `cover`, by latents of `factor` pixels or by pixels, and its middle is `kept`.
    """

    upscaler: Upscaler | str
    cover: Size
    kept: Size
    factor: int

    @property
    def of_latents(self) -> bool:
        """Whether latents are enlarged; if not, the image is decoded before."""
        return isinstance(self.upscaler, str) and self.upscaler in MODES

    def latents(self, latents: np.ndarray) -> list[Picture]:
        """Return the start of each image, from latents [B, h, w, C]."""
        assert isinstance(self.upscaler, str)
        width, height, left, top, across, down = (
            side // self.factor for side in (*self.cover, *self._beyond, *self.kept)
        )
        made = interpolated(latents, self.upscaler, height, width)[:, top : top + down, left : left + across]
        return [Picture(own[None], encoded=True) for own in made]

    def pixels(self, image: Image.Image, progress: Told | None = None) -> Picture:
        """Return the start of an image, from the image itself."""
        made = enlarged(image, self.upscaler, self.cover, f"{PREFIX}scale", MAX_PIXELS, progress)
        left, top = self._beyond
        return Picture(to_array(made.crop((left, top, left + self.kept[0], top + self.kept[1])))[None])

    @property
    def _beyond(self) -> Size:
        """The pixels that are left out at the left and at the top, by whole latents."""
        left, top = (
            (all - own) // self.factor // 2 * self.factor for all, own in zip(self.cover, self.kept, strict=True)
        )
        return left, top
