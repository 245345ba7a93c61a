"""The same single file, opened by jaxl and by diffusers' `from_single_file` with the configs that jaxl derived."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from original_sdxl import FAMILIES, write_model

from jaxl.weights.single_file import read_single_file


@pytest.mark.parametrize("family", FAMILIES)
def test_same_tensors_as_diffusers(tmp_path: Path, family: str) -> None:
    model = write_model(tmp_path / "model.safetensors", family)
    checkpoint = read_single_file(model.file)
    for name, config in checkpoint.configs.items():
        file = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(name)
        path = tmp_path / "configs" / (file or f"{name}/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))

    pipeline_class: Any = getattr(diffusers, checkpoint.configs["model_index"]["_class_name"])
    pipeline = pipeline_class.from_single_file(
        str(model.file),
        config=str(tmp_path / "configs"),
        local_files_only=True,
        torch_dtype=torch.float16,
        **dict.fromkeys(checkpoint.tokenizers),
    )
    for component, tensors in checkpoint.tensors.items():
        state = getattr(pipeline, component).state_dict()
        # transformers has lately dropped the first name of CLIPTextModel's keys
        state = {key if key in tensors else f"text_model.{key}": value for key, value in state.items()}
        assert tensors.keys() == state.keys()
        for key, value in state.items():
            np.testing.assert_array_equal(tensors[key].read(), value.numpy(), err_msg=key)
