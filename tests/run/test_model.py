"""Configurations that fit together, and those that do not: told when a checkpoint is opened, whatever it came from."""

from typing import Any

import pytest
from diffusers.training_utils import EMAModel

from jaxl.errors import CheckpointError
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model


def changed(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """SDXL's configs with other values in some components."""
    return SDXL_BASE | {component: SDXL_BASE[component] | fields for component, fields in changes.items()}


@pytest.mark.parametrize("channels", [4, 9])
def test_published_models(channels: int) -> None:
    assert Model.from_configs(changed(unet={"in_channels": channels})).inpaints == (channels == 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"unet": {"in_channels": 8}},
            "in_channels=8; only 4, or 9 for inpainting, are known; 8 are those of",
        ),
        ({"unet": {"in_channels": 5}}, "in_channels=5; only 4, or 9 for inpainting, are known"),
        ({"unet": {"out_channels": 8}}, "out_channels=8, but the VAE's latents have 4 channels"),
        ({"vae": {"latent_channels": 16}}, "in_channels=4; only 16, or 33 for inpainting, are known"),
        ({"vae": {"out_channels": 4}}, "vae/config.json: in_channels=3 and out_channels=4, but pictures have 3"),
        ({"unet": {"cross_attention_dim": 2000}}, "cross_attention_dim=2000, but the text encoders are 2048 wide"),
        (
            {"unet": {"projection_class_embeddings_input_dim": 2817}},
            "projection_class_embeddings_input_dim=2817 leaves",
        ),
        ({"unet": {"attention_head_dim": [5, 10]}}, "attention_head_dim has 2 values for 3 blocks"),
        ({"unet": {"layers_per_block": [2, 2]}}, "layers_per_block has 2 values for 3 blocks"),
        ({"unet": {"transformer_layers_per_block": [1, 2]}}, "transformer_layers_per_block has 2 values for 3 blocks"),
        ({"unet": {"attention_head_dim": [5, 10, 21]}}, "1280 channels are not 21 heads"),
        ({"unet": {"norm_num_groups": 33}}, "320 channels are not 33 groups"),
        ({"unet": {"in_channels": "4"}}, "in_channels='4' is not a whole number"),
        ({"vae": {"norm_num_groups": 33}}, "128 channels are not 33 groups"),
        ({"text_encoder": {"num_attention_heads": 7}}, "text_encoder/config.json: hidden_size=768 is not 7 heads"),
        ({"unet": {"shiny": True}}, "field shiny=True is not known to jaxl"),
        ({"vae": {"decay": 0.9}}, "field decay=0.9 is not known to jaxl"),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Model.from_configs(changed(**changes))
    assert message in str(caught.value)
    assert str(caught.value).isprintable()  # one line


def test_a_config_of_an_averaged_unet() -> None:
    """diffusers writes how the average was kept into the U-Net's config.json."""
    average = EMAModel([], inv_gamma=2.0, use_ema_warmup=True).state_dict()
    del average["shadow_params"]
    assert Model.from_configs(changed(unet=average)) == Model.from_configs(SDXL_BASE)
