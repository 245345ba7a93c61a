"""Score a checkpoint: how often is a named item recognised, among all concepts, in the picture of its caption?

    python evaluate.py --model DIR --data DIR --out DIR [--every N]

100 captions: 40 + 20 of kinds seen in training (one item, two items) and 20 + 20 that the held-out rules kept from it.
The same score on drawn scenes that went through the autoencoder is the ceiling. Writes scores.json and sheet.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from captions import full_caption
from drawing import draw_scenes, load_sprites
from networks import Pipeline, load_pipeline
from optimisation import pick_device
from reconstruction import psnr, reconstruct
from retrieval import Retrieval
from scenes import (
    CENTRE,
    COLOURS,
    PLACES,
    PLAIN,
    SIDE_BY_SIDE,
    Concept,
    Item,
    Scene,
    SceneSampler,
    is_held_out_pair,
    is_held_out_single,
    load_concepts,
)

KINDS = {"seen single": 40, "seen pair": 20, "held-out single": 20, "held-out pair": 20}
SCENE_SEED, NOISE_SEED = 4242, 1000
BATCH = 20
SHEET_COLUMNS = 10


def evaluation_scenes(concepts: Sequence[Concept]) -> list[tuple[str, Scene]]:
    """(kind, plain scene), the kinds in turn, always the same."""
    sampler = SceneSampler(concepts, SCENE_SEED)
    return [(kind, plain(_draw_kind(sampler, kind))) for kind, count in KINDS.items() for _ in range(count)]


def _draw_kind(sampler: SceneSampler, kind: str) -> Scene:
    rng = sampler.rng
    while True:
        scene = sampler.draw(pair="pair" in kind)
        if scene.relation and scene.relation not in SIDE_BY_SIDE:
            continue
        if kind == "held-out single":
            scene = replace(scene, background=int(rng.integers(len(COLOURS))))
            if not is_held_out_single(scene.items[0].concept, scene.background):
                continue
        if kind == "held-out pair":
            first, second = scene.items
            second = replace(second, concept=int(rng.integers(len(sampler.concepts))))
            if first.concept == second.concept or not is_held_out_pair(first.concept, second.concept):
                continue
            scene = replace(scene, items=(first, second))
        return scene


def plain(scene: Scene) -> Scene:
    """The scene with nothing left to chance: even background, items of fixed size in their places, not cropped."""
    places, size = (PLACES[scene.relation], 112.0) if scene.relation else (((CENTRE, CENTRE),), 180.0)
    items = tuple(Item(item.concept, size, *place) for item, place in zip(scene.items, places, strict=True))
    return Scene(scene.style, scene.background, PLAIN, tone=0.0, items=items, relation=scene.relation)


def generate(pipeline: Pipeline, captions: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Tensor:
    """float32 [caption, RGB, 256, 256] in 0..1; picture i depends on caption i and seed i only."""
    pictures = []
    for start in range(0, len(captions), BATCH):
        rows = slice(start, start + BATCH)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[rows]]
        result = pipeline(
            list(captions[rows]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=256,
            width=256,
            generator=generators,
            output_type="pt",
        )
        pictures.append(result.images.float())
    return torch.cat(pictures)


def save_sheet(path: Path, images: Tensor) -> None:
    """A PNG of all images at half size, ten to a row."""
    small = functional.avg_pool2d(images, 2)
    missing = -len(small) % SHEET_COLUMNS
    small = functional.pad(small, (0, 0, 0, 0, 0, 0, 0, missing), value=1.0)
    rows = [torch.cat(list(row), dim=-1) for row in small.split(SHEET_COLUMNS)]
    pixels = torch.cat(rows, dim=-2) * 255
    Image.fromarray(pixels.byte().permute(1, 2, 0).cpu().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="made by build_data.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--every", type=int, default=1, help="score every n-th caption only")
    args = parser.parse_args()

    device = pick_device()
    concepts = load_concepts()
    kinds, scenes = zip(*evaluation_scenes(concepts)[:: args.every], strict=True)
    captions = [full_caption(scene, concepts) for scene in scenes]
    retrieval = Retrieval(load_sprites(args.data, device))
    pipeline = load_pipeline(args.model).to(device)
    seeds = [NOISE_SEED + i for i in range(len(scenes))]
    generated = generate(pipeline, captions, seeds, args.steps, args.guidance)
    drawn = draw_scenes(retrieval.sprites, scenes)
    restored = reconstruct(pipeline.vae, drawn)

    scores = {}
    for name, images in (("generated", generated), ("through the autoencoder", (restored + 1) / 2)):
        for kind in dict.fromkeys(kinds):
            rows = [row for row, its_kind in enumerate(kinds) if its_kind == kind]
            tally = retrieval.score(images[rows], [scenes[row] for row in rows])
            scores[f"{name}, {kind}"] = asdict(tally)
            print(f"{name:24s} {kind:16s} {tally}", flush=True)
    quality = psnr(restored, drawn)
    print(f"autoencoder PSNR {quality:.2f} dB")
    args.out.mkdir(parents=True, exist_ok=True)
    save_sheet(args.out / "sheet.png", generated)
    report = {"scores": scores, "psnr": quality, "captions": captions}
    (args.out / "scores.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
