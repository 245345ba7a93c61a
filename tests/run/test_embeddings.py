"""Texts that were encoded are kept, and never for other parameters."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxl.run.bucket import Text
from jaxl.run.embeddings import MOST, Embeddings
from jaxl.run.programs import ENCODE_TEXT, AnyProgram, Programs


def text(value: float) -> Text:
    return Text(np.full((1, 2, 3), value), np.full((1, 3), value))


def fail() -> Text:
    raise AssertionError("this text was there")


def test_the_latest_texts_are_kept() -> None:
    kept = Embeddings({})
    made = [kept.get(i, lambda i=i: text(i)) for i in range(MOST)]
    assert kept.get(0, fail) is made[0]
    kept.get("new", lambda: text(-1.0))  # in place of 1, which was asked for longest ago
    assert kept.get(0, fail) is made[0]
    assert kept.get(2, fail) is made[2]
    assert kept.get(1, lambda: text(7.0)).pooled[0, 0] == 7.0


def test_parameters_are_known_by_identity_and_may_go() -> None:
    params = {"text_encoder": {"weight": jnp.ones(3)}, "text_encoder_2": {"weight": jnp.zeros(3)}}
    kept = Embeddings(params)
    assert kept.made_with(params)
    assert kept.made_with({name: dict(tree) for name, tree in params.items()})
    assert not kept.made_with({**params, "text_encoder": {"weight": jnp.ones(3)}})
    assert not kept.made_with({"text_encoder": params["text_encoder"]})
    params["text_encoder"]["weight"], old = jnp.ones(3), weakref.ref(params["text_encoder"]["weight"])
    assert not kept.made_with(params)
    gc.collect()
    assert old() is None
    changeable = {"weight": np.ones(3)}
    assert not Embeddings(changeable).made_with(changeable)


def test_no_vectors_are_on_the_devices_once_and_compile_nothing(small: Any, compilations: Any) -> None:
    target = small[0].programs.target
    programs = Programs(target.model, target.mesh, target.shapes)
    with compilations() as compiled:
        found = programs.nothing_replaced
    assert programs.nothing_replaced is found
    assert found.keys() == target.model.text_encoders.keys()
    assert all(isinstance(leaf, jax.Array) and not leaf.any() for leaf in jax.tree.leaves(found))
    assert compiled == []


def test_a_text_is_encoded_once_for_the_same_parameters(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, params = small
    get, runs = pipe.programs.get, []

    def counting(program: AnyProgram, bucket: Any = None) -> Callable[..., Any]:
        run = get(program, bucket)
        if program is not ENCODE_TEXT:
            return run
        return lambda *given: (runs.append(program), run(*given))[1]

    monkeypatch.setattr(pipe.programs, "get", counting)
    pipe.embeddings = Embeddings({})

    def draw(params: Any, prompt: str = "a llama", **options: Any) -> tuple[np.ndarray, int]:
        runs.clear()
        settings: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "output": "latents", **options}
        return pipe.generate(params, prompt, negative_prompt="", **settings).latents, len(runs)

    first, encoded = draw(params)
    assert encoded == 2
    again, encoded = draw(params)
    assert encoded == 0
    np.testing.assert_array_equal(again, first)
    assert draw(params, "a cat", steps=1)[1] == 1
    assert draw(params, "a (llama:1.2)", steps=1)[1] == 1
    assert draw(params, clip_skip=1, steps=1)[1] == 1
    other = {**params, "text_encoder": jax.tree.map(lambda leaf: leaf * 1.1, params["text_encoder"])}
    changed, encoded = draw(other)
    assert encoded == 2
    assert np.abs(changed - first).max() > 1e-3
    back, encoded = draw(params)
    assert encoded == 2
    np.testing.assert_array_equal(back, first)
