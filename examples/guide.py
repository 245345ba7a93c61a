"""The pictures of docs/guide.md, from the embedded model: python examples/guide.py [FOLDER]"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

import jaxl

CASTLE = "a castle on a pink background, flat style"
TRUMPETS = (
    "a trumpet on a purple background, noto style",
    "a trumpet on a blue background, flat style",
    "a trumpet on a pink background, noto style",
)
SCHEDULERS = ("euler", "euler_a", "heun", "dpm++2m_karras", "dpm++sde", "unipc", "lms_karras", "ddpm")


def row(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one height side by side."""
    sheet = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def main(folder: Path) -> None:
    pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32)

    def draw(prompt: str, **options: Any) -> Image.Image:
        settings: dict[str, Any] = {"seed": 3, **options}
        return pipe.generate(params, prompt, **settings).images[0]

    def save(name: str, images: Sequence[Image.Image]) -> None:
        row(images).save(folder / f"{name}.png")
        print(folder / f"{name}.png")

    castle = draw(CASTLE)
    strengths = [draw("a castle on a green background, noto style", image=castle, strength=s) for s in (0.3, 0.6, 0.8)]
    save("image_to_image", [castle, *strengths])

    mask = Image.new("L", castle.size)
    ImageDraw.Draw(mask).rectangle((0, 0, castle.width, castle.height // 3), fill=255)
    painted = draw("a rainbow on a pink background, flat style", image=castle, mask=mask)
    save("inpainting", [castle, mask.convert("RGB"), painted])

    save("schedulers", [draw(CASTLE, scheduler=name, steps=20) for name in SCHEDULERS])

    prompts = ("a castle and a rainbow", "a castle and a (rainbow:1.5)", "a [castle:rainbow:0.4]")
    save("prompts", [draw(f"{prompt} on a blue background, flat style", seed=4) for prompt in prompts])

    things = ("a cat on a pink background, flat style", "a rocket on a purple background, noto style", CASTLE)
    save("loras", [draw(each, loras={"chalk": s}) for each in things for s in (0.0, 1.0)])

    lines = Image.open(folder / "lines.png").convert("RGB")  # what training/tiny/edges.py finds in a picture
    along = {"controls": [jaxl.Control("edges", lines)]}
    save("controls", [lines, *(draw(each, seed=7, **along) for each in TRUMPETS)])

    guidance: list[dict[str, Any]] = [
        {"guidance_scale": 1.0},
        {},
        {"guidance_interval": (0.0, 0.5)},
        {"guidance_scale": 12.0},
        {"guidance_scale": 12.0, "guidance_rescale": 0.7},
        {"pag_scale": 2.0},
    ]
    save("guidance", [draw(CASTLE, **options) for options in guidance])

    avoided: list[Image.Image] = []
    for each, negative in (("a yellow rocket", "a red rocket"), (CASTLE, "a castle, blurry")):
        plain, apart = (draw(each, negative_prompt=negative, perp_neg_scale=scale) for scale in (0.0, 1.0))
        avoided += [draw(each), plain, apart]
    save("perp_neg", avoided)

    previews: list[np.ndarray] = []
    last = draw(CASTLE, preview=lambda step, total, pictures: previews.append(pictures[0]))
    chosen = [Image.fromarray(previews[i]).resize(last.size, Image.Resampling.BICUBIC) for i in (0, 4, 9, 24)]
    save("preview", [*chosen, last])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
