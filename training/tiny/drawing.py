"""Draws scenes in bulk on the device: backgrounds, sprites pasted at any size and place, enlargements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scenes import COLOURS, ENLARGED_FROM, SIZE, Item, Scene


def load_sprites(folder: Path, device: torch.device) -> Tensor:
    """float16 [concept, style, RGBA, height, width], premultiplied, in 0..1, from build_data.py's `sprites.npy`."""
    stored = np.load(folder / "sprites.npy", mmap_mode="r")
    count, styles, height, width, channels = stored.shape
    sprites = torch.empty(count, styles, channels, height, width, dtype=torch.float16, device=device)
    for concept in range(count):
        rgba = torch.from_numpy(stored[concept].copy()).to(device).movedim(-1, 1).float() / 255
        rgba[:, :3] *= rgba[:, 3:]
        sprites[concept] = rgba
    return sprites


def palette(device: torch.device) -> Tensor:
    """The background colours, float32 [colour, RGB] in 0..1."""
    return torch.tensor(list(COLOURS.values()), device=device, dtype=torch.float32) / 255


@torch.no_grad()
def draw_scenes(sprites: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """float32 [scene, RGB, 256, 256] in -1..1, channels last in memory."""
    device = sprites.device
    images = _backgrounds(scenes, device)
    for place in range(2):
        rows = [row for row, scene in enumerate(scenes) if len(scene.items) > place]
        if rows:
            items = [scenes[row].items[place] for row in rows]
            styles = [scenes[row].style for row in rows]
            images[rows] = _paste(images[rows], sprites[[item.concept for item in items], styles], items)
    for small in ENLARGED_FROM:
        rows = [row for row, scene in enumerate(scenes) if scene.enlarged_from == small]
        if rows:
            shrunk = functional.interpolate(images[rows], size=(small, small), mode="bilinear", antialias=True)
            images[rows] = functional.interpolate(shrunk, size=(SIZE, SIZE), mode="bicubic")
    return (images.clamp(0, 1) * 2 - 1).contiguous(memory_format=torch.channels_last)


def _backgrounds(scenes: Sequence[Scene], device: torch.device) -> Tensor:
    """[scene, RGB, 256, 256] in 0..1: a colour, and towards the far end of its shading some white or black."""
    line = torch.linspace(0, 1, SIZE, device=device)
    down = line[:, None].expand(SIZE, SIZE)
    outward = 1.3 * torch.hypot(line[:, None] - 0.5, line[None, :] - 0.5)
    shadings = torch.stack([torch.zeros_like(down), down, outward])  # in the order PLAIN, RAMP, HALO
    colour = palette(device)[[scene.background for scene in scenes]][:, :, None, None]
    tone = torch.tensor([scene.tone for scene in scenes], device=device)[:, None, None, None]
    amount = shadings[[scene.shading for scene in scenes]][:, None] * tone.abs()
    return torch.lerp(colour.expand(-1, -1, SIZE, SIZE), (tone > 0).float(), amount)


def _paste(images: Tensor, sprites: Tensor, items: Sequence[Item]) -> Tensor:
    """images [n, RGB, 256, 256] with sprite i blended over image i where items[i] says."""
    size, x, y = (torch.tensor(values, device=images.device) for values in zip(*_geometry(items), strict=True))
    to_sprite = torch.zeros(len(items), 2, 3, device=images.device)  # picture to sprite, both in -1..1
    to_sprite[:, 0, 0] = to_sprite[:, 1, 1] = SIZE / size
    to_sprite[:, 0, 2] = (SIZE - 2 * x) / size
    to_sprite[:, 1, 2] = (SIZE - 2 * y) / size
    grid = functional.affine_grid(to_sprite, [len(items), 4, SIZE, SIZE], align_corners=False)
    layer = functional.grid_sample(sprites.float(), grid, align_corners=False)
    return images * (1 - layer[:, 3:]) + layer[:, :3]


def _geometry(items: Sequence[Item]) -> list[tuple[float, float, float]]:
    return [(float(item.size), float(item.x), float(item.y)) for item in items]
