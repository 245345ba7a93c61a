"""Writes what spandrel's networks make of small pictures: `pip install spandrel; python tools/upscaler_golden.py`.

tests/nn/test_upscalers.py compares with it. spandrel is no part of the tests: it wants a torchvision that fits torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spandrel.architectures.Compact import Compact  # pyright: ignore[reportMissingImports]
from spandrel.architectures.DAT import DAT  # pyright: ignore[reportMissingImports]
from spandrel.architectures.ESRGAN import ESRGAN  # pyright: ignore[reportMissingImports]

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from upscaler_files import GOLDEN, weights_of  # pyright: ignore[reportMissingImports]

# a network, and the side of the picture that it is given
CASES: dict[str, tuple[Any, int]] = {
    "esrgan_4x": (ESRGAN(num_filters=8, num_blocks=2, scale=4), 8),
    "esrgan_2x_folded": (ESRGAN(in_nc=12, num_filters=8, num_blocks=1, scale=4, shuffle_factor=2), 8),
    "esrgan_1x": (ESRGAN(num_filters=8, num_blocks=1, scale=1), 8),
    "compact_4x": (Compact(num_feat=8, num_conv=3, upscale=4), 8),
    "dat_4x": (
        DAT(embed_dim=32, split_size=[4, 8], depth=[3, 2], num_heads=[4, 2], expansion_factor=2.0, upscale=4),
        16,
    ),
    "dat_light_3x": (
        DAT(
            embed_dim=32,
            split_size=[4, 16],
            depth=[3],
            num_heads=[2],
            expansion_factor=4.0,
            upscale=3,
            resi_connection="3conv",
            upsampler="pixelshuffledirect",
        ),
        16,
    ),
}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, (network, side) in CASES.items():
        own = network.state_dict()
        numbers = weights_of({key: tuple(leaf.shape) for key, leaf in own.items() if leaf.is_floating_point()})
        kept = ("rpe_biases", "attn_mask_0", "attn_mask_1")
        own.update({key: torch.from_numpy(a) for key, a in numbers.items() if not key.endswith(kept)})
        network.load_state_dict(own)
        picture = np.random.default_rng(1).random((1, side, side, 3), np.float32)
        with torch.no_grad():
            made = network.eval()(torch.from_numpy(picture).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
        arrays[f"{name}.shapes"] = np.array(json.dumps({key: list(leaf.shape) for key, leaf in own.items()}))
        arrays[f"{name}.picture"], arrays[f"{name}.made"] = picture, made
    np.savez_compressed(GOLDEN, allow_pickle=False, **arrays)
    print(GOLDEN)


if __name__ == "__main__":
    main()
