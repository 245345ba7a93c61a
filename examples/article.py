"""The program of "Accelerating Stable Diffusion XL Inference with JAX on Cloud TPU v5e", with one line changed.

    python examples/article.py stabilityai/stable-diffusion-xl-base-1.0 [FOLDER]

Each device makes an image of its own. Needs flax, for `replicate`. The images go to FOLDER (`article-images`).
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.jax_utils import replicate

from jaxl.compat import FlaxStableDiffusionXLPipeline  # was: from diffusers import FlaxStableDiffusionXLPipeline

NUM_DEVICES = jax.device_count()

# 1. load; the weights go to bfloat16, the scheduler's state stays in float32
pipeline, params = FlaxStableDiffusionXLPipeline.from_pretrained(sys.argv[1], split_head_dim=True)
scheduler_state = params.pop("scheduler")
params = jax.tree_util.tree_map(lambda x: x.astype(jnp.bfloat16), params)
params["scheduler"] = scheduler_state

# 2. inputs
default_prompt = "high-quality photo of a baby dolphin playing in a pool and wearing a party hat"
default_neg_prompt = "illustration, low-quality"
default_seed = 33
default_guidance_scale = 5.0
default_num_steps = 25


def tokenize_prompt(prompt, neg_prompt):
    prompt_ids = pipeline.prepare_inputs(prompt)
    neg_prompt_ids = pipeline.prepare_inputs(neg_prompt)
    return prompt_ids, neg_prompt_ids


# 3. the parameters never change, so they are copied to the devices once
p_params = replicate(params)


def replicate_all(prompt_ids, neg_prompt_ids, seed):
    p_prompt_ids = replicate(prompt_ids)
    p_neg_prompt_ids = replicate(neg_prompt_ids)
    rng = jax.random.PRNGKey(seed)
    rng = jax.random.split(rng, NUM_DEVICES)
    return p_prompt_ids, p_neg_prompt_ids, rng


# 4. everything together
def generate(
    prompt,
    negative_prompt,
    seed=default_seed,
    guidance_scale=default_guidance_scale,
    num_inference_steps=default_num_steps,
):
    prompt_ids, neg_prompt_ids = tokenize_prompt(prompt, negative_prompt)
    prompt_ids, neg_prompt_ids, rng = replicate_all(prompt_ids, neg_prompt_ids, seed)
    images = pipeline(
        prompt_ids,
        p_params,
        rng,
        num_inference_steps=num_inference_steps,
        neg_prompt_ids=neg_prompt_ids,
        guidance_scale=guidance_scale,
        jit=True,
    ).images

    # convert the images to PIL
    images = images.reshape(-1, *images.shape[-3:])
    return pipeline.numpy_to_pil(np.array(images))


# 5. the first call compiles
start = time.time()
print("Compiling ...")
generate(default_prompt, default_neg_prompt)
print(f"Compiled in {time.time() - start:.1f} s")

# 6. the second one does not
start = time.time()
prompt = "llama in ancient Greece, oil on canvas"
neg_prompt = "cartoon, illustration, animation"
images = generate(prompt, neg_prompt)
print(f"Inference in {time.time() - start:.1f} s")

folder = Path(sys.argv[2] if len(sys.argv) > 2 else "article-images")
folder.mkdir(parents=True, exist_ok=True)
for i, image in enumerate(images):
    image.save(folder / f"{i}.png")
print(f"{len(images)} images in {folder}")
