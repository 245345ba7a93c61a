"""What jaxl saves opens in diffusers, and what diffusers saves opens in jaxl, whichever way its files are cut."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxl
from jaxl.call.options import LoadOptions
from jaxl.pipeline import Pipeline
from jaxl.weights.source import EMBEDDED, open_checkpoint

PROMPT = "A red apple, on a blue background!"
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


def state(pipeline: Any, component: str) -> dict[str, np.ndarray]:
    """A network's tensors by the keys of its file."""
    tensors = getattr(pipeline, component).state_dict()
    # transformers has lately dropped the outer name of CLIPTextModel while it is in memory
    inner = component == "text_encoder" and "embeddings.token_embedding.weight" in tensors
    return {f"text_model.{key}" if inner else key: value.numpy() for key, value in tensors.items()}


@pytest.fixture(scope="module")
def reference() -> Any:
    """The embedded model in diffusers."""
    return diffusers.StableDiffusionXLPipeline.from_pretrained(EMBEDDED["tiny"], dtype=torch.float16)


def test_saved_by_jaxl(tiny: tuple[Any, Mapping[str, Any]], reference: Any, tmp_path: Path) -> None:
    pipe, params = tiny
    pipe.save_pretrained(tmp_path / "saved", params)
    opened = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    for component in COMPONENTS:
        wanted, found = state(reference, component), state(opened, component)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value.astype(np.float32), err_msg=f"{component}: {key}")
    for name in ("tokenizer", "tokenizer_2"):
        options = {"padding": "max_length", "truncation": True}
        assert getattr(opened, name)(PROMPT, **options) == getattr(reference, name)(PROMPT, **options)
    assert opened.scheduler.config == reference.scheduler.config


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("largest", ["10GB", "2MB"])
def test_saved_by_diffusers(reference: Any, tmp_path: Path, largest: str, variant: str | None) -> None:
    reference.save_pretrained(tmp_path, variant=variant, max_shard_size=largest)
    opened = open_checkpoint(tmp_path, variant=variant)
    for component in COMPONENTS:
        wanted, found = state(reference, component), opened.tensors[component]
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key].read(), value, err_msg=f"{component}: {key}")
    parts = {tensor.file for tensor in opened.tensors["unet"].values()}
    assert len(parts) == (1 if largest == "10GB" else 12)
    pipe = Pipeline(opened, LoadOptions(dtype=jnp.bfloat16, mesh=jaxl.make_mesh()))
    for name, tokenizer in pipe.tokenizers.items():
        theirs = getattr(reference, name.replace("text_encoder", "tokenizer"))
        wanted = theirs(PROMPT, padding="max_length", truncation=True).input_ids
        assert tokenizer.encode(PROMPT).ids.tolist() == [wanted]
