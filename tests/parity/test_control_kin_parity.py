"""The kin of ControlNets in the U-Net: T2I-Adapters beside diffusers', and ControlNet-LLLites beside their formula."""

from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from controlnets import lllite_modules
from families import BASE
from safetensors.torch import save_file
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl.config import LLLiteConfig, LLLiteModule, T2IAdapterConfig, UNetConfig
from jaxl.nn import lllite
from jaxl.nn.added import Added
from jaxl.nn.t2i_adapter import features, t2i_adapter_shapes
from jaxl.nn.unet import unet, unet_context
from jaxl.weights.source import open_control

TOLERANCE = 2e-5
THIN: dict[str, Any] = BASE | {"layers_per_block": 1, "transformer_layers_per_block": 1}
UNET = UNetConfig.from_json(THIN)
RNG = np.random.default_rng(0)
SIZE = 9, 7  # so that the levels are rounded
X = RNG.standard_normal((2, *SIZE, 4), np.float32)
T = np.array([999.0, 20.5], np.float32)
TEXTS = RNG.standard_normal((2, 7, 48), np.float32)
POOLED = RNG.standard_normal((2, 24), np.float32)
TIME_IDS = RNG.uniform(0, 1024, (2, 6)).astype(np.float32)


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.uniform(0, 1, (2, height, width, channels)).astype(np.float32)


def in_torch(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(a).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def reference() -> Any:
    return randomize(diffusers.UNet2DConditionModel(**THIN), seed=1)


def wanted(reference: Any, **options: Any) -> np.ndarray:
    told = {"text_embeds": torch.from_numpy(POOLED), "time_ids": torch.from_numpy(TIME_IDS)}
    with torch.no_grad():
        out = reference(
            in_torch(X), torch.from_numpy(T), torch.from_numpy(TEXTS), added_cond_kwargs=told, **options
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def run(params: Any, added: Added) -> Any:
    return unet(params, UNET, X, T, unet_context(params, TEXTS), POOLED, TIME_IDS, added=added)[0]


def adapter(channels: int, seed: int = 3) -> tuple[Any, T2IAdapterConfig]:
    made: Any = diffusers.T2IAdapter(channels, [32, 64, 128, 128], 2, 16, "full_adapter_xl")
    return randomize(made, seed), T2IAdapterConfig.from_json(dict(made.config))


@pytest.mark.parametrize("channels", [1, 3])
def test_features(channels: int) -> None:
    made, cfg = adapter(channels)
    params, seen = tree(made), pictures(48, 80, channels)
    assert shape_tree(params) == shape_tree(t2i_adapter_shapes(cfg))
    with torch.no_grad():
        found = made(in_torch(seen))
    for got, feature in zip(features(params, cfg, seen), found, strict=True):
        assert relative_error(got, feature.permute(0, 2, 3, 1)) < TOLERANCE


def test_t2i_adapter(reference: Any) -> None:
    """The picture is as large as the padded levels, which diffusers, where no other will do, is given."""
    made, cfg = adapter(3)
    seen = pictures(8 * SIZE[0], 8 * SIZE[1])
    padded = np.pad(seen, ((0, 0), (0, 8), (0, 8), (0, 0)), mode="edge")
    with torch.no_grad():
        found = made(in_torch(padded))
    want = wanted(reference, down_intrablock_additional_residuals=[0.7 * feature for feature in found])

    @jax.jit
    def ours(params: Any, own: Any) -> Any:
        return run(params, Added(blocks=[0.7 * feature for feature in features(own, cfg, seen)]))

    assert relative_error(ours(tree(reference), tree(made)), want) < TOLERANCE


class Module(torch.nn.Module):
    """A module as sd-scripts has it, which changes what its layer is fed."""

    def __init__(self, own: LLLiteModule):
        super().__init__()
        half, conv, relu = own.embedded // 2, torch.nn.Conv2d, torch.nn.ReLU
        first, *others = own.strides
        widths = [half] * len(others) + [own.embedded]
        convs = [conv(3, widths[0], first, first)]
        for a, b, stride in zip(widths, widths[1:], others, strict=False):
            convs += [relu(), conv(a, b, stride, stride)]
        self.conditioning1 = torch.nn.Sequential(*convs)
        self.down = torch.nn.Sequential(torch.nn.Linear(own.width, own.inner), relu())
        self.mid = torch.nn.Sequential(torch.nn.Linear(own.embedded + own.inner, own.inner), relu())
        self.up = torch.nn.Sequential(torch.nn.Linear(own.inner, own.width))

    def change(self, picture: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        seen = self.conditioning1(picture).flatten(2).transpose(1, 2)
        return self.up(self.mid(torch.cat([seen, self.down(x)], dim=2)))


def test_lllite(reference: Any, tmp_path: Path) -> None:
    """Of the first image alone, read from a file whose names are counted out here."""
    known = lllite_modules(
        {"input_blocks_3_1": (64, (4, 4)), "input_blocks_5_1": (128, (4, 4, 2)), "middle_block_1": (128, (4, 4, 2))}
    )
    blocks = {"input_blocks_3_1": "down_blocks.1", "input_blocks_5_1": "down_blocks.2", "middle_block_1": "mid_block"}
    made: Any = randomize(torch.nn.ModuleDict({name: Module(own) for name, own in known.items()}), 4)
    save_file(made.state_dict(), tmp_path / "lite.safetensors")
    opened = open_control(tmp_path / "lite.safetensors", UNET, {})
    cfg = opened.config
    assert isinstance(cfg, LLLiteConfig)
    seen = pictures(8 * SIZE[0], 8 * SIZE[1])
    padded = in_torch(np.pad(seen, ((0, 0), (0, 24), (0, 8), (0, 0)), mode="edge"))
    strengths = np.array([0.8, 0.0], np.float32)
    hooks = []
    for name, module in made.items():
        place, _, layer = name.removeprefix("lllite_unet_").partition("_transformer_blocks_0_")
        path = f"{blocks[place]}.attentions.0.transformer_blocks.0.{layer.replace('_', '.', 1)}"
        picture = padded if "middle" in place or "5" in place else padded[:, :, :80]

        def changed(_: Any, fed: Any, module: Any = module, picture: Any = picture) -> Any:
            return (fed[0] + torch.from_numpy(strengths)[:, None, None] * module.change(2 * picture - 1, fed[0]),)

        hooks.append(reference.get_submodule(path).register_forward_pre_hook(changed))
    want = wanted(reference)
    for hook in hooks:
        hook.remove()
    plain = wanted(reference)

    @jax.jit
    def ours(params: Any, own: Any) -> Any:
        embedded = lllite.embed_picture(own, cfg, seen)
        return run(params, Added(inputs=lllite.nudges(own, cfg, embedded, strengths)))

    got = ours(tree(reference), tree(made))
    assert relative_error(got, want) < TOLERANCE
    assert relative_error(got[0], plain[0]) > 0.05
    assert relative_error(got[1], plain[1]) < TOLERANCE
