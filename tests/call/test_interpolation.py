"""Latents in another size are what PyTorch makes of them."""

import numpy as np
import pytest
import torch

from jaxl.call.hires import a1111_upscaler, find_upscaler
from jaxl.call.interpolation import MODES, interpolated

# the names that A1111 has, and what it asks PyTorch for
A1111 = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
SIZES = [((16, 16), (32, 32)), ((96, 13), (152, 29)), ((104, 152), (156, 228)), ((24, 32), (20, 24))]


@pytest.mark.parametrize("label", A1111)
def test_each_mode_is_that_of_pytorch(label: str) -> None:
    name, (mode, antialias) = find_upscaler(label, ()), A1111[label]
    assert a1111_upscaler(name) == label
    for old, new in SIZES:
        latents = 3 * np.random.default_rng(0).standard_normal((2, *old, 4), dtype=np.float32)
        nchw = torch.from_numpy(latents).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.interpolate(nchw, new, mode=mode, antialias=antialias)
        made = interpolated(latents, name, *new)
        np.testing.assert_allclose(made, wanted.permute(0, 2, 3, 1).numpy(), rtol=0, atol=2e-5)


def test_all_modes_are_tested() -> None:
    assert sorted(find_upscaler(label, ()) for label in A1111) == sorted(MODES)
