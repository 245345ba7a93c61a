"""Textual inversions in the prompts of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxl.call.lexicon import Lexicon
from jaxl.errors import CheckpointError, InputError
from jaxl.run.bucket import Branch
from jaxl.weights.store import write_safetensors

SETTINGS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "output": "latents"}


def write(file: Path, **tensors: np.ndarray) -> Path:
    write_safetensors(file, {key: (array.dtype, array.shape) for key, array in tensors.items()}, tensors.__getitem__)
    return file


def embedding(file: Path, pipe: Any, n: int, seed: int = 0) -> Path:
    rng, model = np.random.default_rng(seed), pipe.model
    widths = {"clip_l": model.text_encoder.width, "clip_g": model.text_encoder_2.width}
    return write(file, **{key: rng.standard_normal((n, width), np.float32) for key, width in widths.items()})


@pytest.fixture
def pipe(small: Any) -> Iterator[Any]:
    """The small pipeline, which forgets in the end what it was told."""
    yield small[0]
    small[0].lexicon = Lexicon.of(small[0].model, small[0].tokenizers)


def test_vectors_change_the_picture_and_compile_nothing(
    small: Any, pipe: Any, tmp_path: Path, compilations: Any
) -> None:
    def draw(prompt: str, negative: str = "", **options: Any) -> np.ndarray:
        settings = {**SETTINGS, "negative_prompt": negative, **options}
        return pipe.generate(small[1], prompt, **settings).latents

    without = draw("a cat", "easynegative")
    with compilations() as compiled:
        (added,) = pipe.add_embedding(None, embedding(tmp_path / "EasyNegative.safetensors", pipe, 3))
        assert (added.name, added.places) == ("EasyNegative", 3)
        negative, positive = draw("a cat", "easynegative"), draw("easynegative")
        np.testing.assert_array_equal(draw("a cat", "embedding:easynegative"), negative)
        for other in (draw("a cat", "(easynegative:1.3)"), draw("a cat"), without):
            assert np.abs(other - negative).max() > 1e-3
        # all of it is text
        np.testing.assert_array_equal(draw("a cat", "easynegative", prompt_syntax="literal"), without)

        # other vectors of the same name are another text
        pipe.remove_embedding("EasyNegative")
        np.testing.assert_array_equal(draw("a cat", "easynegative"), without)
        pipe.add_embedding("easyNegative", embedding(tmp_path / "other.safetensors", pipe, 3, seed=1))
        assert np.abs(draw("easynegative") - positive).max() > 1e-3
    assert compiled == []


def test_a_plan_says_which_are_in_it(pipe: Any, tmp_path: Path) -> None:
    for n, name in enumerate(("one", "two", "three", "four"), 1):
        pipe.add_embedding(name, embedding(tmp_path / f"{n}.safetensors", pipe, n))
    plan = pipe.plan(["a", "three [cat:two:0.5]"], negative_prompt="(one:0.5)", steps=2)
    assert plan.inversions == ("one", "two", "three")
    (chunk,) = plan.texts[1][1][Branch.POSITIVE]
    for encoder, (ids, weights, places, vectors) in chunk.items():
        assert ids.shape == weights.shape == places.shape == (1, 77)
        own = pipe.lexicon.inversions
        expected = [own[name].vectors[encoder] for name in ("three", "two")]
        assert np.flatnonzero(places).tolist() == [1, 2, 3, 4, 5]
        np.testing.assert_array_equal(vectors, np.concatenate(expected))
    (chunk,) = plan.texts[0][0][Branch.POSITIVE]
    assert all(not places.any() and len(vectors) == 0 for _, _, places, vectors in chunk.values())


def test_an_encoder_without_vectors_reads_on(pipe: Any, tmp_path: Path) -> None:
    width = pipe.model.text_encoder_2.width
    pipe.add_embedding("half", write(tmp_path / "x.safetensors", clip_g=np.ones((2, width), np.float32)))
    (chunk,) = pipe.plan("half a").texts[0][0][Branch.POSITIVE]
    tokenizer = pipe.tokenizers["text_encoder"]
    np.testing.assert_array_equal(chunk["text_encoder"][0], tokenizer.encode("a").ids)
    assert chunk["text_encoder_2"][2].sum() == 2


def test_a_folder(pipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"embedding=.*: there is no .safetensors file in it"):
        pipe.add_embedding(None, tmp_path)
    write(tmp_path / "old.safetensors", emb_params=np.ones((1, 768), np.float32))
    with pytest.raises(InputError, match=r"embedding=.*Stable Diffusion 1"):
        pipe.add_embedding(None, tmp_path)
    embedding(tmp_path / "new.safetensors", pipe, 2)
    found = pipe.add_embedding(None, tmp_path)
    assert re.match("not loaded: .*old.safetensors: an embedding of Stable Diffusion 1", caplog.messages[-1])
    assert [(each.name, each.places, each.problem is None) for each in found] == [("new", 2, True), ("old", 0, False)]
    assert list(pipe.lexicon.inversions) == ["new"]


def test_what_is_refused(pipe: Any, tmp_path: Path) -> None:
    file = embedding(tmp_path / "a.safetensors", pipe, 1)
    pipe.add_embedding("cat", file)
    with pytest.raises(InputError, match=r"embedding='cat': this is what .*a.safetensors is called already"):
        pipe.add_embedding("cat", file)
    with pytest.raises(InputError, match=r"embedding='CAT': to a prompt this is the same as 'cat'"):
        pipe.add_embedding("CAT", file)
    with pytest.raises(InputError, match=r"name='x': what is in .* leave it out"):
        pipe.add_embedding("x", tmp_path)
    with pytest.raises(CheckpointError, match=r"no name that a prompt can have"):
        pipe.add_embedding(" ", file)
    with pytest.raises(InputError, match=r"embedding='dog': there is no such embedding; .*cat"):
        pipe.remove_embedding("dog")
    with pytest.raises(CheckpointError, match=r"there is room for 75"):
        pipe.add_embedding(None, embedding(tmp_path / "long.safetensors", pipe, 76))
    with pytest.raises(InputError, match=r"negative_prompt='embedding:cats': .*did you mean 'cat'"):
        pipe.plan("a", negative_prompt="embedding:cats")
    assert list(pipe.lexicon.inversions) == ["cat"]
