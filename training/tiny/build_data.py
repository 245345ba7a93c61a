"""Draw the sprites: every concept in both styles, from the two emoji sets' SVG.

    python build_data.py --fluent DIR --noto DIR --out DIR

DIR are the unpacked npm packages @iconify-json/fluent-emoji-flat and @iconify-json/noto. Writes `sprites.npy`
(uint8 [concept, style, height, width, RGBA], not premultiplied) and `words.txt` (all words in the icons' names).
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from scenes import STYLES, load_concepts

SPRITE_SIZE = 192
IconSet = dict[str, Any]  # Iconify's JSON: `icons` by name, `aliases`, default `width` and `height`


def find_icon(icon_set: IconSet, name: str) -> dict[str, Any]:
    """The icon of that name, or the one that name is an alias of. Raises KeyError where there is neither."""
    icons = icon_set["icons"]
    return icons[name] if name in icons else icons[icon_set["aliases"][name]["parent"]]


def square_svg(icon_set: IconSet, name: str) -> str:
    """The icon as an SVG document whose view is square, the icon in the middle."""
    icon = find_icon(icon_set, name)
    width, height = (icon.get(side, icon_set.get(side, 16)) for side in ("width", "height"))
    side = max(width, height)
    view = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} viewBox="{view}">{icon["body"]}</svg>'


def render(svg: str, size: int = SPRITE_SIZE) -> np.ndarray:
    """uint8 [size, size, 4], RGBA."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def name_words(icon_sets: list[IconSet]) -> list[str]:
    """Every alphabetic word of the icons' names, sorted: spelling material for the tokenizer."""
    return sorted(
        {word for icons in icon_sets for name in icons["icons"] for word in name.split("-") if word.isalpha()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fluent", type=Path, required=True)
    parser.add_argument("--noto", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folders = {"flat": args.fluent, "noto": args.noto}
    icon_sets = [json.loads((folders[style] / "icons.json").read_text(encoding="utf-8")) for style in STYLES]
    concepts = load_concepts()
    sprites = np.stack([[render(square_svg(icons, c.key)) for icons in icon_sets] for c in concepts])
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "sprites.npy", sprites)
    (args.out / "words.txt").write_text("\n".join(name_words(icon_sets)) + "\n", encoding="utf-8")
    print(f"{len(concepts)} concepts, sprites {sprites.shape}")


if __name__ == "__main__":
    main()
