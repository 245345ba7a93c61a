"""Pictures that requests start from, with masks that say where they are repainted."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFilter, ImageOps, ImageStat

from jaxl.call.images import fit, overlay

# pixels over which the kept part of a picture blends into the drawn one
SEAM = 4


@dataclass(frozen=True, eq=False)
class Source:
    """A picture, RGB, and a mask of its size, L, white where it is repainted."""

    picture: Image.Image
    mask: Image.Image | None = None

    @property
    def stays(self) -> bool:
        """True if a part of the picture stays as it is."""
        return self.mask is not None

    def seamless(self) -> Source:
        """Return the source with the edge of its mask blurred, for `overlaid`."""
        return self if self.mask is None else Source(self.picture, self.mask.filter(ImageFilter.GaussianBlur(SEAM)))

    def cropped(self, width: int, height: int) -> Source:
        """Return the source cut to the aspect of a size, and scaled to it."""
        mask = None if self.mask is None else ImageOps.fit(self.mask, (width, height))
        return Source(ImageOps.fit(self.picture, (width, height)), mask)

    def overlaid(self, drawn: Image.Image) -> Image.Image:
        """Return the drawn picture, with the source laid over the part that the mask keeps."""
        if self.mask is None:
            return drawn
        return overlay(fit(self.mask, *drawn.size), fit(self.picture, *drawn.size), drawn)


def transparent(image: Image.Image) -> Image.Image | None:
    """Return a mask, white where a picture is transparent; None if it is nowhere."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else ImageOps.invert(alpha)


def filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the white part of a mask with the colours around it: blurs of the rest of the picture, wide ones first."""
    kept = ImageOps.invert(mask)
    if not kept.getbbox():
        return picture
    colours = Image.new("RGBA", picture.size, tuple(round(mean) for mean in ImageStat.Stat(picture, kept).mean))
    rest = picture.convert("RGBA")
    rest.putalpha(kept)
    for share in (4, 16, 64, 256):
        radius = max(picture.size) / share
        # premultiplied, so that masked pixels have no weight
        colours.alpha_composite(rest.convert("RGBa").filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return overlay(mask, picture, colours.convert("RGB"))
