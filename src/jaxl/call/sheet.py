"""Pictures side by side on one sheet, with labels for columns, rows and pages."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from jaxl.call.images import MAX_PIXELS
from jaxl.errors import InputError

GAP = 8
PAPER, INK = "white", "black"


def sheet(
    pictures: Sequence[Image.Image],
    columns: Sequence[str],
    rows: Sequence[str] = ("",),
    pages: Sequence[str] = ("",),
) -> Image.Image:
    """Return the pictures, one for each page, row and column, columns running fastest; pages lie below each other.

    Labels that are longer than a picture is wide are broken into lines. Raises InputError if it would be too large.
    """
    wide, tall = (max(picture.size[i] for picture in pictures) for i in (0, 1))
    font = ImageFont.load_default(max(12, min(wide, 640) // 16))
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    of_columns, of_rows, of_pages = (
        [_broken(text, font, wide) for text in labels] for labels in (columns, rows, pages)
    )

    def size(text: str) -> tuple[int, int]:
        left, top, right, bottom = ruler.multiline_textbbox((0, 0), text, font=font)
        return int(right - left) + 2 * GAP, int(bottom - top) + 2 * GAP

    aside = max(size(text)[0] for text in of_rows) if any(of_rows) else 0
    above = max(size(text)[1] for text in of_columns) if any(of_columns) else 0
    title = max(size(text)[1] for text in of_pages) if any(of_pages) else 0
    page = title + above + len(rows) * (tall + GAP)
    width, height = aside + len(columns) * (wide + GAP), len(pages) * page
    check_sheet(width * height)
    paper = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(paper)

    def write(text: str, x: float, y: float) -> None:
        draw.multiline_text((x, y), text, INK, font, "mm", align="center")

    for p, of_page in enumerate(of_pages):
        write(of_page, width / 2, p * page + title / 2)
        for c, of_column in enumerate(of_columns):
            write(of_column, aside + c * (wide + GAP) + wide / 2, p * page + title + above / 2)
        for r, of_row in enumerate(of_rows):
            y = p * page + title + above + r * (tall + GAP)
            write(of_row, aside / 2, y + tall / 2)
            for c in range(len(columns)):
                paper.paste(pictures[(p * len(rows) + r) * len(columns) + c], (aside + c * (wide + GAP), y))
    return paper


def check_sheet(pixels: int) -> None:
    """Raise InputError for a sheet of so many pixels if these are too many."""
    if pixels > MAX_PIXELS:
        raise InputError("size", f"{pixels} pixels", f"a sheet has at most {MAX_PIXELS}; give fewer values")


def _broken(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text in lines that are no wider, as far as its words allow."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
