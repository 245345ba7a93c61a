"""An upscaler beside PyTorch, and what its tiles change in a picture.

    python benchmarks/upscaler.py [--side 512] [--blocks 23] [--jaxl float32] [--torch float32 bfloat16]
    python benchmarks/upscaler.py --seams FILE --picture PICTURE [--side 64] [--overlaps 0 4 8 16 32]

The first prints seconds of one picture by an ESRGAN of 64 features with random weights, in tiles here, whole and in
channels-last in PyTorch, with as many threads as there are cores; each is run once before on a small picture. The
seconds of all cores together say the same where other programs run meanwhile. The
second cuts pictures out of one so that two tiles of a side have each overlap, and prints how far the result is from the
same cut in one piece, in levels of 0..255. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

import jaxl
from jaxl.nn.layers import Shapes
from jaxl.nn.upscalers.rrdbnet import RRDBNetConfig, rrdbnet_shapes
from jaxl.run.upscaler import Upscaler
from jaxl.weights.layout import flatten, torch_shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, help="of the picture, or of the tiles whose seams are measured")
    parser.add_argument("--blocks", type=int, default=23)
    parser.add_argument("--jaxl", nargs="*", default=["float32"])
    parser.add_argument("--torch", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--tile", type=int)
    parser.add_argument("--seams", metavar="FILE", help="an upscaler")
    parser.add_argument("--picture")
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 4, 8, 16, 32])
    args = parser.parse_args()
    rows = speed(args) if args.seams is None else seams(args)
    print(json.dumps({"rows": rows}))


def speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    side = args.side or 512
    picture = np.random.default_rng(0).random((1, side, side, 3), np.float32)
    weights = random_weights(rrdbnet_shapes(RRDBNetConfig(64, 32, args.blocks, doublings=2)))
    rows: list[dict[str, Any]] = []
    print("| | dtype | seconds | of all cores |\n| --- | --- | --- | --- |")

    def measure(name: str, dtype: str, warm_up: Callable[[], Any], run: Callable[[], Any]) -> None:
        warm_up()
        began, spent = time.perf_counter(), time.process_time()
        run()
        seconds, of_cores = time.perf_counter() - began, time.process_time() - spent
        rows.append({"what": name, "dtype": dtype, "seconds": seconds, "of_cores": of_cores})
        print(f"| {name} | {dtype} | {seconds:.1f} | {of_cores:.1f} |", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "esrgan.pth"
        torch.save(weights, file)
        for dtype in args.jaxl:
            upscaler = jaxl.Upscaler.from_file(file, dtype=dtype, tile=args.tile)
            measure("jaxl", dtype, upscaler.warm_up, partial(upscaler, picture))
    for dtype in args.torch:
        own = {key: leaf.to(getattr(torch, dtype)) for key, leaf in weights.items()}
        own = {key: channels_last(leaf) if leaf.ndim == 4 else leaf for key, leaf in own.items()}
        x = channels_last(torch.from_numpy(picture).permute(0, 3, 1, 2).to(getattr(torch, dtype)))
        with torch.inference_mode():
            small = channels_last(x[:, :, :64, :64])
            measure("PyTorch", dtype, *(partial(esrgan, own, each, args.blocks) for each in (small, x)))
    return rows


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def random_weights(shapes: Shapes) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(0)
    made = {}
    for key, leaf in flatten(shapes).items():
        shape = torch_shape(key, leaf.shape)
        noise = random.standard_normal(shape, np.float32)
        made[key] = 0.1 * torch.from_numpy(noise) / max(np.prod(shape[1:]), 1.0) ** 0.5
    return made


def esrgan(own: dict[str, torch.Tensor], x: torch.Tensor, blocks: int) -> torch.Tensor:
    """RRDBNet in PyTorch, in the names of Real-ESRGAN."""

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], padding=1)

    def leaky(x: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(x, 0.2, inplace=True)

    first = y = conv("conv_first", x)
    for i in range(blocks):
        block = y
        for j in range(1, 4):
            read = [y]
            for k in range(1, 5):
                read.append(leaky(conv(f"body.{i}.rdb{j}.conv{k}", torch.cat(read, 1))))
            y = y + 0.2 * conv(f"body.{i}.rdb{j}.conv5", torch.cat(read, 1))
        y = block + 0.2 * y
    y = first + conv("conv_body", y)
    for name in ("conv_up1", "conv_up2"):
        y = leaky(conv(name, functional.interpolate(y, scale_factor=2, mode="nearest")))
    return conv("conv_last", leaky(conv("conv_hr", y)))


def seams(args: argparse.Namespace) -> list[dict[str, Any]]:
    side, mesh = args.side or 64, jaxl.make_mesh(jax.devices()[:1])
    picture = np.asarray(Image.open(args.picture).convert("RGB"))
    tiled = Upscaler.from_file(args.seams, tile=side, mesh=mesh)
    rows: list[dict[str, Any]] = []
    print("| overlap | RMS | 99.9 % | largest |\n| --- | --- | --- | --- |")
    for overlap in args.overlaps:
        length = 2 * side - overlap
        top, left = ((whole - length) // 2 for whole in picture.shape[:2])
        part = picture[None, top : top + length, left : left + length]
        whole = Upscaler.from_file(args.seams, tile=length, mesh=mesh)(part)
        difference = 255 * np.abs(replace(tiled, overlap=overlap)(part) - whole)
        row = {
            "overlap": overlap,
            "rms": float(np.sqrt(np.mean(np.square(difference)))),
            "most": float(np.percentile(difference, 99.9)),
            "largest": float(difference.max()),
        }
        rows.append(row)
        print(f"| {overlap} | {row['rms']:.2f} | {row['most']:.1f} | {row['largest']:.0f} |", flush=True)
    return rows


if __name__ == "__main__":
    main()
