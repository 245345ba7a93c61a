"""Pictures and masks that callers pass in, and inpainting's work on them on the host.

`read_image` and `read_mask` check and decode. The rest is arithmetic on the pixels, equal to the pixel to diffusers'
`VaeImageProcessor` as `StableDiffusionXLInpaintPipeline` uses it. Inpainting, with `region` None or the
`crop_region` of `padding_mask_crop`, goes like this:

    picture = to_array(fit(image, width, height, region))
    repaint = binarize(fit(mask, width, height, region))
    ...
    overlay(mask, image, generated, region)
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from jaxl.errors import InputError

Region = tuple[int, int, int, int]  # left, top, right, bottom
Refusal = Callable[[str], InputError]  # makes the error about an argument and its value from a remedy

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 64 * 2**20
# between channels of a grey mask, to allow for lossy compression
MAX_COLOUR_DIFFERENCE = 32
# PIL's modes with a fixed range of colours
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


def read_image(value: Any, argument: str) -> Image.Image:
    """Return a picture, upright and in mode RGB; `value` itself is not changed.

    `value` is a path, the bytes of a file, a PIL image, or an array [H, W] or [H, W, 1, 3 or 4], uint8 or floating in
    0..1. Files are PNG, JPEG, WebP, BMP, TIFF or GIF, of one frame, at most `MAX_PIXELS` and `MAX_FILE_BYTES`. EXIF
    orientation is applied, colour profiles are not. Transparency is laid on white. Of 16 bits the upper 8 are kept.

    Raises InputError, naming `argument`, for anything else. URLs are not followed.
    """
    image = _load(value, partial(InputError, argument, _shown(value)))
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image


def read_mask(value: Any, argument: str, size: tuple[int, int]) -> Image.Image:
    """Return a mask in mode L, white where the picture of `size` (width, height) is repainted; arrays may be bool.

    Grey is kept, for soft edges in `overlay`; `binarize` decides what the network repaints. A transparent image is a
    mask if its visible pixels are white: painted on a transparent layer, as in drawing programs. Other transparency
    means different things in different programs, so it is refused.

    Raises InputError, naming `argument`, as `read_image` does, and for another size, colours, or nothing to repaint.
    """
    refuse = partial(InputError, argument, _shown(value))
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        value = value.astype(np.uint8) * 255
    mask = _grey(_load(value, refuse), refuse)
    if mask.size != size:
        raise refuse(
            f"the mask is {mask.width}x{mask.height} pixels, the picture {size[0]}x{size[1]}; "
            "give a mask of the picture's size"
        )
    if not binarize(mask).any():
        raise refuse("the mask is black, so there is nothing to repaint; paint white (255) where to repaint")
    return mask


def crop_region(mask: Image.Image, width: int, height: int, pad: int) -> Region:
    """Return the region to crop, so that a mask that is not black fills more of an image of `width` x `height`.

    It is the mask's bounding box with `pad` pixels around it, widened to the image's aspect as far as the picture goes.
    """
    values = np.asarray(mask)
    columns, rows = np.flatnonzero(values.any(axis=0)), np.flatnonzero(values.any(axis=1))
    left, right = max(int(columns[0]) - pad, 0), min(int(columns[-1]) + 1 + pad, mask.width)
    top, bottom = max(int(rows[0]) - pad, 0), min(int(rows[-1]) + 1 + pad, mask.height)
    aspect = width / height
    if (right - left) / (bottom - top) > aspect:
        top, bottom = _widen(top, bottom, (right - left) / aspect, mask.height)
    else:
        left, right = _widen(left, right, (bottom - top) * aspect, mask.width)
    return left, top, right, bottom


def fit(image: Image.Image, width: int, height: int, region: Region | None = None) -> Image.Image:
    """Return a picture or mask stretched to a size with Lanczos.

    Given a region, return that alone, scaled without stretching, its borders smeared over the space that is left.
    """
    if region is None:
        return image.resize((width, height), Image.Resampling.LANCZOS)
    part = image.crop(region)
    wide = width / height < part.width / part.height
    inner_width = width if wide else max(part.width * height // part.height, 1)
    inner_height = max(part.height * width // part.width, 1) if wide else height
    inner = part.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    left, top = width // 2 - inner_width // 2, height // 2 - inner_height // 2
    filled = Image.new(image.mode, (width, height))
    filled.paste(inner, (left, top))
    if top > 0:
        for y, border in ((0, 0), (top + inner_height, inner_height)):
            filled.paste(_smear(inner, (width, top), (0, border, width, border)), (0, y))
    if left > 0:
        for x, border in ((0, 0), (left + inner_width, inner_width)):
            filled.paste(_smear(inner, (left, height), (border, 0, border, height)), (x, 0))
    return filled


def to_array(image: Image.Image) -> np.ndarray:
    """Return an RGB picture as the VAE takes it: float32 [H, W, 3] in -1..1."""
    return np.asarray(image).astype(np.float32) / 255.0 * 2.0 - 1.0


def binarize(mask: Image.Image) -> np.ndarray:
    """Return a grey mask as float32 [H, W]: 1 to repaint, from half white on, else 0."""
    return (np.asarray(mask).astype(np.float32) / 255.0 >= 0.5).astype(np.float32)


def mask_to_latents(mask: np.ndarray, h: int, w: int) -> np.ndarray:
    """Return a mask [H, W] at the size of latents [h, w], from the upper left pixel of each block.

    `torch.nn.functional.interpolate` calls it nearest. A speck between these pixels vanishes.
    """
    rows, columns = (
        np.minimum(np.floor(np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)
        for new, old in ((h, mask.shape[0]), (w, mask.shape[1]))
    )
    return mask[rows[:, None], columns]


def overlay(
    mask: Image.Image, original: Image.Image, generated: Image.Image, region: Region | None = None
) -> Image.Image:
    """Return the original picture, RGB, with the generated one where the mask, of the original's size, is white.

    Grey blends. With a region, the generated picture is cropped to the region's aspect, scaled, and put in its place;
    without, it has the original's size.
    """
    # diffusers' steps of compositing, so that the rounding is the same
    kept = Image.new("RGBa", original.size)
    kept.paste(original.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    if region is not None:
        left, top, right, bottom = region
        placed = Image.new("RGB", original.size)
        placed.paste(_cover(generated, right - left, bottom - top), (left, top))
        generated = placed
    return Image.alpha_composite(generated.convert("RGBA"), kept.convert("RGBA")).convert("RGB")


def _load(value: Any, refuse: Refusal) -> Image.Image:
    """Return any picture, checked, upright, and in mode RGB, or RGBA if it can be transparent."""
    if isinstance(value, np.ndarray):
        image = _from_array(value, refuse)
    elif isinstance(value, Image.Image):
        image = value
    elif isinstance(value, (bytes, bytearray, memoryview)):
        image = _open(bytes(value), refuse)
    elif isinstance(value, (str, os.PathLike)):
        image = _open(_read_file(value, refuse), refuse)
    else:
        raise refuse("give a path, the bytes of a file, a PIL image or a NumPy array")
    _check_size(image.size, refuse)
    try:
        # an MPO file is one photo with a smaller one or a depth map as further frames
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
        image = image if animated else ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise all kinds of errors at damaged files
        raise refuse("the picture is damaged or cut short; save or download it again") from error
    if animated:
        raise refuse("more than one frame; save the one to use as a picture of its own")
    return _with_8_bits(image, refuse)


def _read_file(path: str | os.PathLike[str], refuse: Refusal) -> bytes:
    try:
        mode = os.stat(path).st_mode
        problem = None if stat.S_ISREG(mode) else "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        data = b""
        if not problem:
            with open(path, "rb") as stream:
                data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problem = error.strerror or "it cannot be read"
    except ValueError:  # a NUL in the name
        problem = "no such file"
    if problem and "://" in str(path):
        raise refuse("URLs are not followed; download the picture and give its file")
    if problem:
        raise refuse(f"{problem}; give the file of a picture")
    return data


def _open(data: bytes, refuse: Refusal) -> Image.Image:
    if not data:
        raise refuse("the file is empty; give the file of a picture")
    if len(data) > MAX_FILE_BYTES:
        raise refuse(f"more than {MAX_FILE_BYTES} bytes; save a smaller picture")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise refuse(f"more than {MAX_PIXELS} pixels; scale it down") from error
    except UnidentifiedImageError as error:
        raise refuse("not a PNG, JPEG, WebP, BMP, TIFF or GIF picture, or a damaged one; save it as PNG") from error
    except Exception as error:  # decoders raise all kinds of errors at damaged files
        raise refuse("the picture is damaged or cut short; save or download it again") from error


def _from_array(array: np.ndarray, refuse: Refusal) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise refuse("the shape must be [height, width, channels] with 1, 3 or 4 channels, or [height, width]")
    _check_size((array.shape[1], array.shape[0]), refuse)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # false for NaN too
            raise refuse("floating numbers must lie in 0..1, without NaN")
        array = (array.astype(np.float32) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise refuse("the dtype must be uint8, or floating in 0..1")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _check_size(size: tuple[int, int], refuse: Refusal) -> None:
    width, height = size
    if width * height == 0:
        raise refuse("the picture has no pixels; give another")
    if width * height > MAX_PIXELS:
        raise refuse(f"{width}x{height} pixels; scale it down to at most {MAX_PIXELS} in all")


def _with_8_bits(image: Image.Image, refuse: Refusal) -> Image.Image:
    if image.mode.startswith("I;16"):
        # PIL would cut values off at 255
        values, transparent = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((values >> 8).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.mode not in MODES:
        raise refuse(f"mode {image.mode} has no fixed range of colours; save it with 8 or 16 bits per channel")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _grey(image: Image.Image, refuse: Refusal) -> Image.Image:
    red, green, blue, *alpha = image.split()
    if alpha and alpha[0].getextrema() != (255, 255):
        visible = np.asarray(alpha[0]) > 0
        if any((np.asarray(colour)[visible] < 255).any() for colour in (red, green, blue)):
            raise refuse("transparency in a mask is ambiguous; make it white where to repaint, black elsewhere")
        return alpha[0]
    for one, other in ((red, green), (green, blue), (blue, red)):
        if np.asarray(ImageChops.difference(one, other)).max() > MAX_COLOUR_DIFFERENCE:
            raise refuse("a mask has no colours; make it white where to repaint, black elsewhere")
    return image.convert("L")


def _shown(value: Any) -> str:
    """Return the name of a value for errors."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    if isinstance(value, Image.Image):
        return f"{value.width}x{value.height} image of mode {value.mode}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value)} bytes"
    return os.fsdecode(value) if isinstance(value, (str, os.PathLike)) else type(value).__name__


def _widen(low: int, high: int, length: float, limit: int) -> tuple[int, int]:
    """Return an interval grown around its middle to a length, moved into 0..limit, and cut if it is longer."""
    extra = int(length - (high - low))
    low, high = low - extra // 2, high + extra - extra // 2
    over = max(high - limit, 0)
    low, high = low - over, high - over
    under = max(-low, 0)
    return low + under, min(high + under, limit)


def _smear(image: Image.Image, size: tuple[int, int], border: Region) -> Image.Image:
    """Return a border of the image, a box without area, stretched to a size."""
    return image.resize(size, Image.Resampling.BICUBIC, box=border)


def _cover(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the image scaled to cover a size, and cut at both ends."""
    wide = width / height > image.width / image.height
    inner_width = width if wide else image.width * height // image.height
    inner_height = image.height * width // image.width if wide else height
    cover = Image.new("RGB", (width, height))
    inner = image.resize((inner_width, inner_height), Image.Resampling.LANCZOS)
    cover.paste(inner, (width // 2 - inner_width // 2, height // 2 - inner_height // 2))
    return cover
