"""What the small model is compared with."""

from typing import Any

import diffusers
import pytest
import torch


@pytest.fixture(scope="module")
def reference(small: Any) -> Any:
    """The small model in diffusers."""
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(small[0].checkpoint.source, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
