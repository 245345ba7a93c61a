"""Write golden.npz (what diffusers computes in float32 on a CPU, part by part) and golden.png (twelve pictures).

python golden.py --model DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from networks import Pipeline, load_pipeline

TRACED = [
    "a red apple on a blue background, flat style",
    "a rocket on a purple background, noto style",
    "a cat to the left of a rocket on a white background, flat style",
    "a llama",
]
PICTURED = [
    "a red apple on a blue background, flat style",
    "a dolphin and a party popper on a yellow background, noto style",
    "a llama on a green background, noto style",
    "a castle on a pink background, flat style",
    "a rocket on a purple background, noto style",
    "a cat to the left of a rocket on a white background, flat style",
    "a dog on a teal background, flat style",
    "the sun above a house on a blue background, flat style",
    "a tree on a white background, noto style",
    "a car on a gray background, noto style",
    "a partying face on a blue background, flat style",
    "a penguin on a red background, noto style",
]
COLUMNS = 4
STEPS, PICTURE_STEPS, GUIDANCE, SIZE = 8, 20, 5.0, 256
NOISE_SEED = 20240
PROBED_TIMESTEP = 501


@torch.no_grad()
def trace(pipeline: Pipeline) -> dict[str, Any]:
    """Every intermediate result of the traced captions, by name; the model's README says what each is."""
    count = len(TRACED)
    noise = np.random.default_rng(NOISE_SEED).standard_normal((count, 4, SIZE // 8, SIZE // 8)).astype(np.float32)
    start = torch.from_numpy(noise)
    negatives = [""] * count
    context, negative_context, pooled, negative_pooled = pipeline.encode_prompt(
        TRACED, negative_prompt=negatives, do_classifier_free_guidance=True
    )
    latents: list[np.ndarray] = []

    def record(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, Any]:
        latents.append(values["latents"].numpy().copy())
        return {}

    final = pipeline(
        TRACED,
        negative_prompt=negatives,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=SIZE,
        width=SIZE,
        latents=start,
        output_type="latent",
        callback_on_step_end=record,
    ).images
    image = pipeline.vae.decode(final / pipeline.vae.config.scaling_factor).sample
    time_ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * count, dtype=torch.float32)
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    probed = pipeline.unet(start, torch.tensor(PROBED_TIMESTEP), context, added_cond_kwargs=conditions).sample
    pipeline.scheduler.set_timesteps(STEPS)
    return {
        "prompts": np.array(TRACED),
        "negative_prompt": np.array(""),
        "steps": STEPS,
        "guidance": GUIDANCE,
        "noise": noise,
        "timesteps": pipeline.scheduler.timesteps.numpy(),
        "sigmas": pipeline.scheduler.sigmas.numpy(),
        "prompt_ids": token_ids(pipeline.tokenizer),
        "prompt_ids_2": token_ids(pipeline.tokenizer_2),
        "prompt_embeds": context.numpy(),
        "negative_prompt_embeds": negative_context.numpy(),
        "pooled": pooled.numpy(),
        "negative_pooled": negative_pooled.numpy(),
        "unet_at_501": probed.numpy(),
        "latents": np.stack(latents),
        "final_latents": final.numpy(),
        "image": image.numpy(),
        "vae_mean_of_image": pipeline.vae.encode(image.clamp(-1, 1)).latent_dist.mean.numpy(),
    }


def token_ids(tokenizer: Any) -> np.ndarray:
    """int32 [caption, 77]."""
    return np.asarray(tokenizer(TRACED, padding="max_length", truncation=True).input_ids, dtype=np.int32)


def picture_grid(pipeline: Pipeline) -> Image.Image:
    """The twelve pictured captions, four to a row, caption i from seed i."""
    pictures = [
        pipeline(
            caption,
            num_inference_steps=PICTURE_STEPS,
            guidance_scale=GUIDANCE,
            height=SIZE,
            width=SIZE,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        for seed, caption in enumerate(PICTURED)
    ]
    sheet = Image.new("RGB", (COLUMNS * SIZE, len(pictures) // COLUMNS * SIZE))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the checkpoint's folder; both files go there")
    model: Path = parser.parse_args().model
    pipeline = load_pipeline(model)
    np.savez_compressed(model / "golden.npz", **trace(pipeline))
    picture_grid(pipeline).save(model / "golden.png")


if __name__ == "__main__":
    main()
