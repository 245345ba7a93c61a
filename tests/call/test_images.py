"""Pictures and masks that callers pass in: what is read, how, and what is refused."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile

from jaxl.call import images
from jaxl.call.images import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    binarize,
    crop_region,
    fit,
    mask_to_latents,
    overlay,
    read_image,
    read_mask,
    to_array,
)
from jaxl.errors import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 16, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS)
SMOOTH = Image.fromarray(PIXELS[:3, :2]).resize((16, 24), Image.Resampling.BICUBIC)
LOSSLESS = ("PNG", "WEBP", "BMP", "TIFF")
FORMATS = (*LOSSLESS, "JPEG", "GIF")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    if kind == "WEBP" and not options.get("save_all"):
        options["lossless"] = True
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG of a claimed size, whatever its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def refusal(read: Callable[[], object], argument: str = "image") -> str:
    """The one line of the InputError that this raises."""
    with pytest.raises(InputError) as error:
        read()
    message = str(error.value)
    assert error.value.argument == argument
    assert message.startswith(f"{argument}='")
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    return message


# reading


@pytest.mark.parametrize("kind", LOSSLESS)
def test_files_and_bytes(kind: str, tmp_path: Path) -> None:
    data = encoded(PICTURE, kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for value in (path, str(path), data, bytearray(data), memoryview(data)):
        image = read_image(value, "image")
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "GIF"])
def test_lossy_files(kind: str) -> None:
    image = read_image(encoded(SMOOTH, kind), "image")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, float) - np.asarray(SMOOTH)).mean() < 12


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(dtype: Any, channels: int | None) -> None:
    values = (
        PIXELS[..., 0] if channels is None else np.concatenate([PIXELS, PIXELS[..., :1] * 0 + 255], -1)[..., :channels]
    )
    array = values if dtype == np.uint8 else (values / 255).astype(dtype)
    expected = np.broadcast_to(np.atleast_3d(values)[..., :3], PIXELS.shape)
    np.testing.assert_array_equal(np.asarray(read_image(array, "image")), expected)
    np.testing.assert_array_equal(np.asarray(read_image(array[:, ::-1], "image")), expected[:, ::-1])


def test_the_caller_s_image_is_left_alone() -> None:
    image = PICTURE.copy()
    read = read_image(image, "image")
    read.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (100, 100, 100, alpha))
    found = np.asarray(read_image(image.convert(mode), "image"), int)[0]
    assert np.abs(found - [[255] * 3, [177] * 3, [100] * 3]).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_laid_on_white(mode: str) -> None:
    image = Image.new(mode, (2, 1), 0)
    if mode == "P":
        image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), {"P": 1, "L": 50, "RGB": (40, 50, 60)}[mode])
    data = encoded(image, transparency={"P": 0, "L": 0, "RGB": (0, 0, 0)}[mode])
    left, right = np.asarray(read_image(data, "image"))[0].tolist()
    assert left == [255] * 3
    assert right == ([50] * 3 if mode == "L" else [40, 50, 60])


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBX", "HSV", "YCbCr"])
def test_modes(mode: str) -> None:
    image = PICTURE.convert(mode)
    np.testing.assert_array_equal(np.asarray(read_image(image, "image")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits(kind: str) -> None:
    """Scaled, not cut off at 255."""
    grey = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(24, 16)
    found = np.asarray(read_image(encoded(Image.fromarray(grey), kind), "image"))
    assert np.abs(found - (grey / 257)[..., None]).max() < 1
    assert (found[0, 0].tolist(), found[-1, -1].tolist()) == ([0] * 3, [255] * 3)


def test_sixteen_bits_with_a_transparent_grey() -> None:
    grey = np.array([[256, 257, 40000]], np.uint16)
    found = np.asarray(read_image(encoded(Image.fromarray(grey), transparency=257), "image"))
    assert found[0, :, 0].tolist() == [1, 255, 156]


def test_cmyk() -> None:
    """A JPEG as printers have it: red is no cyan, all magenta and yellow."""
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    found = np.asarray(read_image(encoded(image, "JPEG", quality=100), "image"), int)
    assert np.abs(found - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    """As cameras store it: the pixels as the sensor had them, and how to turn them. 0 and 9 mean nothing."""
    turn = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a),
    }.get(orientation, lambda a: a)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, kind, exif=exif)
    expected = turn(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    np.testing.assert_array_equal(np.asarray(read_image(data, "image")), expected)
    np.testing.assert_array_equal(np.asarray(read_image(Image.open(io.BytesIO(data)), "image")), expected)


def test_a_photo_with_a_second_one_inside() -> None:
    """MPO, as phones save photos: the first is the picture."""
    data = encoded(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH.resize((4, 4))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert read_image(data, "image").size == SMOOTH.size


# refusing


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "No such file" in refusal(lambda: read_image(tmp_path / "none.png", "image"))
    assert "a folder" in refusal(lambda: read_image(tmp_path, "image"))
    assert "no such file" in refusal(lambda: read_image("a\0b.png", "image"))
    assert "too long" in refusal(lambda: read_image("data:image/png;base64," + "A" * 9999, "image"))
    for url in ("https://example.org/a.png", "file:///etc/passwd"):
        assert "URLs are not followed" in refusal(lambda url=url: read_image(url, "image"))


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """Reading these would wait, or never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        assert "not a regular file" in refusal(lambda path=path: read_image(path, "image"))


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(PICTURE))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything

        def refuse(*_: Any) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(images, "open", refuse, raising=False)
    message = refusal(lambda: read_image(path, "image"))
    assert "Permission denied" in message
    assert "a.png" in message


@pytest.mark.parametrize(
    "content", [b"A picture of a cat.\n", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7\n", b"<svg/>", b"GIF89a"]
)
def test_files_that_are_no_pictures(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(content)
    assert "save it as PNG" in refusal(lambda: read_image(path, "image"))
    message = refusal(lambda: read_image(content, "image"))
    assert message.startswith(f"image='{len(content)} bytes': ")


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert "empty" in refusal(lambda: read_image(tmp_path / "a.png", "image"))


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PDF", "EPS", "JPEG2000", "AVIF"])
def test_other_formats(kind: str) -> None:
    assert "not a PNG" in refusal(lambda: read_image(encoded(PICTURE, kind), "image"))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_truncated_files(kind: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for length in (20, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        refusal(lambda length=length: read_image(data[:length], "image"))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files(kind: str) -> None:
    """A picture or one clear error, whatever the bytes."""
    data = np.frombuffer(encoded(SMOOTH, kind), np.uint8)
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(150):
        damaged = data.copy()
        damaged[rng.integers(0, min(len(data), 100), 4)] = rng.integers(0, 256, 4)
        try:
            read_image(damaged.tobytes(), "image")
        except InputError as error:
            lines.append(str(error))
    assert len(lines) > 15
    assert not any("\n" in line for line in lines)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations(kind: str, tmp_path: Path) -> None:
    data = encoded(PICTURE, kind, save_all=True, append_images=[SMOOTH, PICTURE])
    path = tmp_path / "animation"
    path.write_bytes(data)
    for value in (data, path, Image.open(io.BytesIO(data))):
        assert "more than one frame" in refusal(lambda value=value: read_image(value, "image"))
    frame = Image.open(io.BytesIO(data))
    frame.seek(1)
    assert read_image(frame.copy(), "image").size == PICTURE.size


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (10_000, 10_000), (8192, 8193)])
def test_decompression_bombs(size: tuple[int, int]) -> None:
    """Refused by their headers, before anything is decoded."""
    assert size[0] * size[1] > MAX_PIXELS
    message = refusal(lambda: read_image(png(*size), "image"))
    assert str(MAX_PIXELS) in message
    # with PIL's warning as no error too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert str(MAX_PIXELS) in refusal(lambda: read_image(png(*size), "image"))


def test_the_largest_picture_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 16 * 24)
    assert read_image(encoded(PICTURE), "image").size == (16, 24)
    assert read_image(PICTURE, "image").size == (16, 24)
    larger = PICTURE.resize((16, 25))
    for value in (encoded(larger), larger, np.asarray(larger)):
        assert "16x25 pixels" in refusal(lambda value=value: read_image(value, "image"))


def test_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as stream:
        stream.write(encoded(PICTURE))
        stream.truncate(MAX_FILE_BYTES + 1)  # a hole: no disk is used
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 5000)
    assert "more than 5000 bytes" in refusal(lambda: read_image(path, "image"))
    assert "more than 5000 bytes" in refusal(lambda: read_image(bytes(5001), "image"))


def test_no_pixels() -> None:
    assert "no pixels" in refusal(lambda: read_image(Image.new("RGB", (0, 4)), "image"))
    assert "no pixels" in refusal(lambda: read_image(np.zeros((4, 0, 3), np.uint8), "image"))
    refusal(lambda: read_image(png(0, 4), "image"))


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.full((4, 4, 3), np.nan), "0..1, without NaN"),
        (np.where(np.eye(4) > 0, np.nan, 0.5), "0..1, without NaN"),
        (np.full((4, 4, 3), np.inf), "0..1"),
        (np.full((4, 4, 3), -0.1, np.float32), "0..1"),
        (np.full((4, 4, 3), 255.0, np.float32), "0..1"),
        (np.zeros((4, 4, 2), np.uint8), "channels"),
        (np.zeros((3, 40, 40), np.uint8), "channels"),
        (np.zeros((1, 4, 4, 3), np.uint8), "channels"),
        (np.zeros(4, np.uint8), "channels"),
        (np.zeros((), np.uint8), "channels"),
        (np.zeros((4, 4, 3), np.int64), "uint8"),
        (np.zeros((4, 4, 3), np.int8), "uint8"),
        (np.zeros((4, 4, 3), np.uint16), "uint8"),
        (np.zeros((4, 4, 3), bool), "uint8"),
        (np.zeros((4, 4, 3), complex), "uint8"),
        (np.full((4, 4, 3), "a"), "uint8"),
        (np.full((4, 4, 3), None), "uint8"),
    ],
)
def test_arrays_refused(array: np.ndarray, remedy: str) -> None:
    message = refusal(lambda: read_image(array, "image"))
    assert remedy in message
    assert f"{array.dtype} array of shape {array.shape}" in message


@pytest.mark.parametrize("value", [None, 3, 1.5, True, [PICTURE], [[0, 1]], {}, io.BytesIO()])
def test_values_of_another_kind(value: Any) -> None:
    assert "give a path" in refusal(lambda: read_image(value, "image"))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_refused(mode: str) -> None:
    assert f"mode {mode}" in refusal(lambda: read_image(Image.new(mode, (4, 4)), "image"))


def test_a_picture_that_fails_while_it_is_decoded() -> None:
    """PIL opens a file by its header and reads the rest later."""
    opened = Image.open(io.BytesIO(encoded(PICTURE)[:-200]))
    assert "damaged" in refusal(lambda: read_image(opened, "image"))
    closed = Image.open(io.BytesIO(encoded(PICTURE)))
    closed.close()
    assert "damaged" in refusal(lambda: read_image(closed, "image"))


# masks


def a_mask(box: tuple[int, int, int, int] = (4, 6, 10, 20), size: tuple[int, int] = (16, 24)) -> Image.Image:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_mask_modes(mode: str) -> None:
    """Whatever a program saves black and white as."""
    mask = a_mask()
    read = read_mask(mask.convert(mode), "mask", mask.size)
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), np.asarray(mask))


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32])
def test_mask_arrays(dtype: Any, channels: tuple[int, ...]) -> None:
    values = np.asarray(a_mask())
    array = np.broadcast_to((values / (1 if dtype == np.uint8 else 255)).astype(dtype).reshape(24, 16, 1), (24, 16, 3))
    array = array[..., : channels[0]] if channels else array[..., 0]
    np.testing.assert_array_equal(np.asarray(read_mask(array, "mask", (16, 24))), values)


def test_grey_is_kept_and_binarized_at_half() -> None:
    values = np.array([[0, 1, 127, 128, 255]], np.uint8)
    mask = read_mask(values, "mask", (5, 1))
    np.testing.assert_array_equal(np.asarray(mask), values)
    found = binarize(mask)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 0, 1, 1]]


def test_sixteen_bit_masks() -> None:
    mask = read_mask(encoded(Image.fromarray(np.array([[0, 32767, 32768]], np.uint16))), "mask", (3, 1))
    assert binarize(mask).tolist() == [[0, 0, 1]]


def test_lossy_masks() -> None:
    """JPEG leaves grey traces; no colours worth a refusal."""
    mask = a_mask((20, 30, 100, 80), (128, 96))
    read = read_mask(encoded(mask.convert("RGB"), "JPEG", quality=20), "mask", mask.size)
    np.testing.assert_array_equal(binarize(read), binarize(mask))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_white_painted_on_transparency(mode: str) -> None:
    """Programs leave black or white where there is no paint."""
    mask = a_mask()
    for hidden in (0, 255):
        layer = Image.new(mode, mask.size, (hidden,) * (len(mode) - 1) + (0,))
        layer.paste((255,) * len(mode), mask=mask)
        np.testing.assert_array_equal(np.asarray(read_mask(layer, "mask", mask.size)), np.asarray(mask))


def test_soft_strokes_on_transparency() -> None:
    layer = Image.new("RGBA", (3, 1), (255, 255, 255, 0))
    layer.putpixel((1, 0), (255, 255, 255, 77))
    layer.putpixel((2, 0), (255, 255, 255, 255))
    assert np.asarray(read_mask(encoded(layer), "mask", (3, 1))).tolist() == [[0, 77, 255]]


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128), (255, 0, 0)])
def test_ambiguous_transparency(colour: tuple[int, int, int]) -> None:
    """A hole in black is what some servers repaint, a black stroke on nothing is what others do."""
    for mask in (a_mask(), a_mask().point(lambda value: 255 - value)):
        layer = Image.new("RGBA", mask.size, (*colour, 0))
        layer.putalpha(mask)
        assert "ambiguous" in refusal(lambda layer=layer: read_mask(layer, "mask", mask.size), "mask")  # noqa: B023


def test_masks_refused() -> None:
    size = (16, 24)
    message = refusal(lambda: read_mask(a_mask(size=(24, 16)), "mask", size), "mask")
    assert "24x16" in message
    assert "16x24" in message
    for black in (Image.new("L", size), Image.new("RGBA", size), np.zeros((24, 16), bool), np.ones((24, 16), np.uint8)):
        assert "nothing to repaint" in refusal(lambda black=black: read_mask(black, "mask", size), "mask")
    assert "no colours" in refusal(lambda: read_mask(PICTURE, "mask", size), "mask")
    assert "give a path" in refusal(lambda: read_mask(None, "mask", size), "mask")
    assert "more than one frame" in refusal(
        lambda: read_mask(encoded(a_mask(), "GIF", save_all=True, append_images=[PICTURE]), "mask", size), "mask"
    )


# arithmetic; tests/parity/test_image_parity.py compares it with diffusers


def test_to_array() -> None:
    array = to_array(PICTURE)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array, PIXELS / 127.5 - 1, atol=1e-6)


def test_mask_to_latents() -> None:
    mask = np.zeros((16, 24), np.float32)
    mask[8:, 16:] = 1
    found = mask_to_latents(mask, 2, 3)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_crop_region_holds_the_mask_and_has_the_aspect() -> None:
    mask = a_mask((40, 50, 59, 54), (200, 100))
    assert crop_region(mask, 64, 64, 0) == (40, 43, 60, 63)
    assert crop_region(mask, 64, 64, 10) == (30, 33, 70, 73)
    assert crop_region(mask, 64, 64, 1000) == (0, 0, 200, 100)
    # moved to lie in the picture
    assert crop_region(a_mask((180, 97, 199, 99), (200, 100)), 64, 64, 0) == (180, 80, 200, 100)
    assert crop_region(a_mask((0, 0, 3, 19), (200, 100)), 64, 64, 0) == (0, 0, 20, 20)


def test_thin_regions() -> None:
    """Where diffusers fails."""
    for size in ((1, 5000), (5000, 1)):
        assert fit(Image.new("L", size), 64, 64, (0, 0, *size)).size == (64, 64)


def test_overlay_keeps_what_is_black_and_takes_what_is_white() -> None:
    mask, original, generated = a_mask(), PICTURE, PICTURE.transpose(Image.Transpose.ROTATE_180)
    white = np.asarray(mask) > 0
    found = np.asarray(overlay(mask, original, generated))
    np.testing.assert_array_equal(found[white], np.asarray(generated)[white])
    np.testing.assert_array_equal(found[~white], np.asarray(original)[~white])


def test_cropped_and_put_back() -> None:
    """An unchanged crop comes back at its place."""
    mask, original = a_mask((60, 30, 80, 50), (128, 96)), SMOOTH.resize((128, 96), Image.Resampling.BICUBIC)
    region = crop_region(mask, 256, 256, 8)
    found = overlay(mask, original, fit(original, 256, 256, region), region)
    assert np.abs(np.asarray(found, int) - np.asarray(original)).max() <= 3
