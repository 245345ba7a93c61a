"""The article's program compiled ahead of time: `_generate` is mapped, lowered and compiled before it is first called.

    python examples/article_ahead_of_time.py stabilityai/stable-diffusion-xl-base-1.0 [FOLDER]

Steps and size are compiled in; prompt, seed and guidance are not.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.jax_utils import replicate

from jaxl.compat import FlaxStableDiffusionXLPipeline

NUM_DEVICES = jax.device_count()
STEPS = 25

pipeline, params = FlaxStableDiffusionXLPipeline.from_pretrained(sys.argv[1], split_head_dim=True)
scheduler_state = params.pop("scheduler")
params = jax.tree_util.tree_map(lambda x: x.astype(jnp.bfloat16), params)
params["scheduler"] = scheduler_state
p_params = replicate(params)
side = pipeline.components["unet"].sample_size * 8


def inputs(prompt, negative_prompt, seed, guidance_scale):
    """One image for each device: token ids, keys, guidance [n, 1], negative token ids, each with the devices' axis."""
    keys = jax.random.split(jax.random.PRNGKey(seed), NUM_DEVICES)
    ids, neg_ids = (replicate(pipeline.prepare_inputs(text)) for text in (prompt, negative_prompt))
    guidance = jnp.full((NUM_DEVICES, 1), guidance_scale, jnp.float32)
    return ids, keys, guidance, neg_ids


start = time.time()
ids, keys, guidance, neg_ids = inputs("", "", 0, 5.0)
p_generate = (
    jax.pmap(pipeline._generate, static_broadcasted_argnums=[3, 4, 5, 9])
    .lower(ids, p_params, keys, STEPS, side, side, guidance, None, neg_ids, False)
    .compile()
)
print(f"Compiled in {time.time() - start:.1f} s")


def generate(prompt, negative_prompt, seed=33, guidance_scale=5.0):
    ids, keys, guidance, neg_ids = inputs(prompt, negative_prompt, seed, guidance_scale)
    images = p_generate(ids, p_params, keys, guidance, None, neg_ids)
    images = images.reshape(-1, *images.shape[-3:])
    return pipeline.numpy_to_pil(np.array(images))


start = time.time()
images = generate("llama in ancient Greece, oil on canvas", "cartoon, illustration, animation")
print(f"Inference in {time.time() - start:.1f} s")

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "article-images")
folder.mkdir(parents=True, exist_ok=True)
for i, image in enumerate(images):
    image.save(folder / f"{i}.png")
print(f"{len(images)} images in {folder}")
