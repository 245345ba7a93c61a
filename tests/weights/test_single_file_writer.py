"""Models on their way to single files: the layout, the marks, what the metadata say, and what is refused."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from original_sdxl import FAMILIES, write_model
from safetensors.numpy import load_file

from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.errors import CheckpointError, OutputError
from jaxl.run.model import Model
from jaxl.weights.checkpoint import Checkpoint
from jaxl.weights.entries import Entry, entries_of_checkpoint
from jaxl.weights.single_file import COSXL_SCHEDULER, PLAYGROUND_SCHEDULER, read_single_file
from jaxl.weights.single_file_writer import save_single_file
from jaxl.weights.source import EMBEDDED, open_checkpoint
from jaxl.weights.store import read_header, read_metadata


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Checkpoint]:
    """A model of each family, whose file the tests' own writer wrote, once."""
    folder = tmp_path_factory.mktemp("families")
    return cache(lambda family: read_single_file(write_model(folder / f"{family}.safetensors", family).file))


def save(file: Path, checkpoint: Checkpoint, configs: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint with some other configs."""
    shapes = Model.from_configs(checkpoint.configs).shapes()
    networks = entries_of_checkpoint(checkpoint, shapes)
    save_single_file(file, {**checkpoint.configs, **(configs or {})}, networks, "some model")
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_as_another_writer_writes_it(opened: Callable[[str], Checkpoint], tmp_path: Path, family: str) -> None:
    checkpoint = opened(family)
    file = save(tmp_path / "new" / "model.safetensors", checkpoint)
    found, wanted = load_file(file), load_file(checkpoint.files()[0])
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key, strict=True)
    assert read_single_file(file).configs == checkpoint.configs
    assert sorted(file.parent.iterdir()) == [file]


def test_metadata(opened: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    found = {name: read_metadata(save(tmp_path / f"{name}.safetensors", opened(name))) for name in ("base", "refiner")}
    assert found["base"] == {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "sgm",
        "modelspec.title": "base",
        "modelspec.resolution": "512x512",
        "modelspec.prediction_type": "epsilon",
        "modelspec.merged_from": "some model",
    }
    assert found["refiner"]["modelspec.architecture"] == "stable-diffusion-xl-v1-refiner"


MEAN = {"latents_mean": [-1.6, 2.1, 0.3, 1.0], "latents_std": [8.4, 5.9, 7.7, 5.1], "scaling_factor": 0.5}


@pytest.mark.parametrize(
    ("scheduler", "vae", "marks"),
    [
        ({"prediction_type": "v_prediction"}, {}, {"v_pred": (0,)}),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            {},
            {"v_pred": (0,), "ztsnr": (0,)},
        ),
        ({"prediction_type": "sample"}, {}, {}),
        (COSXL_SCHEDULER, {}, {"edm_vpred.sigma_max": (), "edm_vpred.sigma_min": ()}),
        (PLAYGROUND_SCHEDULER, MEAN, {"edm_mean": (1, 4, 1, 1), "edm_std": (1, 4, 1, 1)}),
    ],
    ids=["velocity", "zero terminal noise", "sample", "CosXL", "Playground"],
)
def test_what_it_predicts(
    opened: Callable[[str], Checkpoint], tmp_path: Path, scheduler: Any, vae: Any, marks: Mapping[str, Any]
) -> None:
    configs = opened("base").configs
    own = {"scheduler": {**configs["scheduler"], **scheduler}, "vae": {**configs["vae"], **vae}}
    # a name that says otherwise is not believed
    file = save(tmp_path / "model_x0.safetensors", opened("base"), own)
    found, header = read_single_file(file), read_header(file)
    assert {key: tensor.shape for key, tensor in header.items() if key.count(".") < 2} == marks
    wanted = read_scheduler_config(own["scheduler"]).noise
    noise = read_scheduler_config(found.configs["scheduler"]).noise
    assert noise.prediction_type == wanted.prediction_type
    assert noise.rescale_betas_zero_snr == wanted.rescale_betas_zero_snr
    assert (noise.edm is None) == (wanted.edm is None)
    for name, value in vae.items():
        np.testing.assert_allclose(found.configs["vae"][name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("component", "changes", "why"),
    [
        ("unet", {"norm_num_groups": 16}, "unet: norm_num_groups=16, where its readers take 32"),
        ("unet", {"attention_head_dim": [1, 2, 4]}, r"unet: heads=\[1, 2, 4\], where its readers take"),
        ("vae", {"scaling_factor": 0.18215}, "vae: scaling_factor=0.18"),
        ("text_encoder", {"hidden_act": "gelu"}, "text_encoder: activation=gelu, where its readers take quick_gelu"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "scheduler: rescale_betas_zero_snr=True, where"),
        ("scheduler", {"beta_schedule": "linear"}, "scheduler: beta_schedule=linear, where its readers take scaled_l"),
    ],
)
def test_what_no_single_file_says(
    opened: Callable[[str], Checkpoint], tmp_path: Path, component: str, changes: Any, why: str
) -> None:
    configs = {component: {**opened("base").configs[component], **changes}}
    file = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))}: a single file cannot hold this model .{why}"):
        save(file, opened("base"), configs)
    assert list(tmp_path.iterdir()) == []


def test_names_that_the_layout_lacks(opened: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint, file = opened("base"), tmp_path / "model.safetensors"
    networks = entries_of_checkpoint(checkpoint, Model.from_configs(checkpoint.configs).shapes())
    guidance = Entry(np.dtype(np.float32), (4, 4), lambda: np.zeros((4, 4), np.float32))
    for component, key in (
        ("unet", "time_embedding.cond_proj.weight"),
        ("vae", "encoder.layers.0.weight"),  # of TAESD's kind
    ):
        with pytest.raises(CheckpointError, match=rf"\({component}: {key} has no name in the original layout\)"):
            save_single_file(file, checkpoint.configs, networks | {component: {**networks[component], key: guidance}})
    tiny = open_checkpoint(EMBEDDED["tiny"])
    with pytest.raises(CheckpointError, match=r"\(unet: an attention is 96 wide, .*\); write a folder instead$"):
        save(file, tiny)


def test_whole_or_not_at_all(opened: Callable[[str], Checkpoint], tmp_path: Path) -> None:
    checkpoint, file = opened("base"), tmp_path / "model.safetensors"
    networks = entries_of_checkpoint(checkpoint, Model.from_configs(checkpoint.configs).shapes())
    told: list[tuple[int, int]] = []
    first = networks["vae"]["decoder.conv_out.bias"]

    def fail() -> np.ndarray:
        raise OSError(28, "No space left on device")

    vae = {**networks["vae"], "decoder.conv_out.bias": Entry(first.dtype, first.shape, fail)}
    with pytest.raises(OutputError, match=f"^{file}: cannot be written .No space left on device.$"):
        save_single_file(file, checkpoint.configs, {**networks, "vae": vae}, tell=lambda *each: told.append(each))
    assert told[0] == (1, len(load_file(checkpoint.files()[0])))
    assert list(tmp_path.iterdir()) == []
    file.write_text("mine")
    with pytest.raises(OutputError, match=f"^{file}: exists already; choose another name, or remove it$"):
        save(file, checkpoint)
    assert file.read_text() == "mine"
