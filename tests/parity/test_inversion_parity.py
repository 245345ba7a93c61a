"""Textual inversions beside transformers' encoders, whose tables of tokens have the vectors as further rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from torch_weights import relative_error, tree

from jaxl.config import TextConfig
from jaxl.nn.clip import Replaced, clip
from jaxl.text import tokenizer as module
from jaxl.text.chunks import OWN, chunk
from jaxl.text.prompt import parse
from jaxl.text.tokenizer import Tokenizer
from jaxl.text.words import read_words

TINY = Path(module.__file__).parents[1] / "models" / "tiny"


@pytest.mark.parametrize("eos", [2047, None])
@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_hidden_states_and_what_is_pooled(name: str, eos: int | None) -> None:
    """Pooled is what stands at the end token, also where the config does not say which token that is."""
    kind: Any = transformers.CLIPTextModel if name == "text_encoder" else transformers.CLIPTextModelWithProjection
    reference = kind.from_pretrained(TINY / name, dtype=torch.float32).eval()
    prefix = "" if "text_model.final_layer_norm.weight" in reference.state_dict() else "text_model."
    params = tree(reference, prefix)
    own = reference.config.to_dict()
    cfg = TextConfig.from_json({**own, "eos_token_id": 2 if eos is None else eos})
    assert cfg.eos_token_id == eos
    tokenizer = Tokenizer.from_dir(TINY / name.replace("text_encoder", "tokenizer"))
    vectors = np.random.default_rng(0).standard_normal((5, cfg.width)).astype(np.float32) / 10
    words = read_words(tokenizer, {"bad hands": 3, "style": 2})
    chunks = chunk(tokenizer, parse("a castle, style, on a bad hands background"), words=words)

    places = chunks.rows != OWN
    at = np.zeros((*places.shape, cfg.width), np.float32)
    at[places] = vectors[chunks.rows[places]]
    run = jax.jit(clip, static_argnums=1)
    hidden, pooled = run(params, cfg, chunks.ids, replaced=Replaced(at, places))
    plain, _ = run(params, cfg, chunks.ids, replaced=Replaced(np.zeros_like(at), np.zeros_like(places)))
    np.testing.assert_array_equal(plain, run(params, cfg, chunks.ids)[0])

    table = reference.get_input_embeddings().weight.data
    more = torch.nn.Embedding.from_pretrained(torch.cat([table, torch.from_numpy(vectors)]))
    reference.set_input_embeddings(more)
    ids = np.where(places, len(table) + chunks.rows, chunks.ids)
    assert places.sum() == 5
    with torch.no_grad():
        outputs = reference(torch.from_numpy(ids).long(), output_hidden_states=True)
    assert relative_error(np.asarray(hidden), outputs.hidden_states[-2]) < 2e-5
    assert relative_error(np.asarray(plain), outputs.hidden_states[-2]) > 1e-2
    if pooled is not None:
        assert relative_error(np.asarray(pooled), outputs.text_embeds) < 2e-5
