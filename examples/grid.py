"""The picture at the top of the README: eight prompts in one batch, in one file.

python examples/grid.py grid.png
"""

import sys

import jax.numpy as jnp
import numpy as np
from PIL import Image

import jaxl

PROMPTS = [
    "a red apple on a blue background, flat style",
    "a rocket on a purple background, noto style",
    "a penguin on a red background, noto style",
    "a castle on a pink background, flat style",
    "a partying face on a blue background, flat style",
    "a llama on a green background, noto style",
    "a dolphin and a party popper on a yellow background, noto style",
    "a tree on a teal background, noto style",
]

pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32)
result = pipe.generate(params, PROMPTS, seed=[3, 0, 0, 5, 1, 2, 4, 7], steps=25, output="numpy")
pixels = np.round(np.asarray(result.images) * 255).astype(np.uint8)
rows = pixels.reshape(2, 4, 256, 256, 3)
Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(512, 1024, 3)).save(sys.argv[1], optimize=True)
