"""Prompts against an independent reading of A1111's rules, built the other way round.

Schedules: random prompts are grown from trees that know their text at every step. Weights: each character's weight is
the product over the brackets around it. Chunks: token by token, as the web UI goes. Embeddings: transformers' encoders
and tokenizers with the embedded model's weights. (Rules: modules/prompt_parser.py, sd_hijack_clip.py, sd_emphasis.py of
AUTOMATIC1111/stable-diffusion-webui 1.10.)
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from torch_weights import relative_error, tree

from jaxl.config import TextConfig
from jaxl.nn.clip import clip, emphasize
from jaxl.text import tokenizer as module
from jaxl.text.chunks import chunk, pad
from jaxl.text.prompt import Span, parse, schedule
from jaxl.text.tokenizer import Tokenizer

TINY = Path(module.__file__).parents[1] / "models" / "tiny"

# a prompt, and its text at a 1-based step of so many steps
Grown = tuple[str, Callable[[int, int], str]]


def grow(rng: random.Random, depth: int) -> Grown:
    """A random prompt of several pieces, with brackets of every kind inside each other."""
    pieces = [grow_piece(rng, depth) for _ in range(rng.randint(0, 3))]
    return "".join(text for text, _ in pieces), lambda step, n: "".join(at(step, n) for _, at in pieces)


def grow_piece(rng: random.Random, depth: int) -> Grown:
    kind = rng.choice(["text", "weight", "from to", "to", "from", "alternate"]) if depth else "text"
    if kind == "text":
        text = rng.choice(
            ["a cat", " red ", ", ", r"\(x\)", r" a\:b ", "\n", "caf\u00e9 ", " BREAK ", "BREAKFAST", "3d"]
        )
        return text, lambda step, n: text
    inside = [grow(rng, depth - 1) for _ in range(rng.randint(2, 3))]
    (a, a_at), (b, b_at) = inside[:2]
    if kind == "weight":
        opening, closing = rng.choice([("(", ")"), ("[", "]"), ("(", ":1.3)"), ("(", ": -.5 )"), ("(", ":0)")])
        return f"{opening}{a}{closing}", lambda step, n: f"{opening}{a_at(step, n)}{closing}"
    if kind == "alternate":
        return f"[{'|'.join(text for text, _ in inside)}]", lambda step, n: inside[(step - 1) % len(inside)][1](step, n)
    when = rng.choice(["0.5", ".29", "0.0", "1.0", "0", "1", "3", "40", " 0.7 "])

    def over(step: int, n: int) -> bool:
        return step > math.floor(float(when) * n if "." in when else float(when))

    if kind == "from to":
        return f"[{a}:{b}:{when}]", lambda step, n: (b_at if over(step, n) else a_at)(step, n)
    if kind == "to":
        return f"[{a}:{when}]", lambda step, n: a_at(step, n) if over(step, n) else ""
    return f"[{a}::{when}]", lambda step, n: "" if over(step, n) else a_at(step, n)


@pytest.mark.parametrize("steps", [1, 4, 7, 25])
def test_schedules(steps: int) -> None:
    rng = random.Random(steps)
    changing = 0
    for _ in range(300):
        prompt, at = grow(rng, depth=3)
        got = schedule(prompt, steps)
        firsts = [first for first, _ in got]
        texts = [text for first, text in got for _ in range(next((f for f in firsts if f > first), steps) - first)]
        assert texts == [at(step, steps) for step in range(1, steps + 1)], prompt
        changing += len(got) > 1
    assert changing > 80 or steps == 1


def character_weights(text: str) -> list[list[tuple[str, float]]]:
    """For each section, the characters that are not white space, with their weights."""
    # an escaped character cannot be syntax, so it is set aside as one of a private area
    escaped = [match[0][1] for match in re.finditer(r"\\.", text, re.DOTALL)]
    masked = re.sub(r"\\.", "\ue000", text, flags=re.DOTALL)
    factors, syntax, opened = np.ones(len(masked)), set(), []
    for i, character in enumerate(masked):
        if character in "([":
            opened.append(i)
        elif character in ")]":
            start = opened.pop()
            number = re.search(r":\s*([+-]?[.0-9]+)\s*\)$", masked[start : i + 1])
            end = start + number.start() if number and character == ")" else i
            factor = float(number[1]) if number and character == ")" else 1.1 if character == ")" else 1 / 1.1
            factors[start:end] *= factor
            syntax |= {start, *range(end, i + 1)}
    breaks = [match.span() for match in re.finditer(r"\bBREAK\b", masked)]
    originals = iter(escaped)
    sections: list[list[tuple[str, float]]] = [[]]
    for i, character in enumerate(masked):
        original = next(originals) if character == "\ue000" else character
        if any(i == start for start, _ in breaks):
            sections.append([])
        if i not in syntax and not any(start <= i < end for start, end in breaks) and not original.isspace():
            sections[-1].append((original, round(factors[i], 9)))
    return sections


def test_weights() -> None:
    rng = random.Random(0)
    compared = set()
    for _ in range(600):
        _, at = grow(rng, depth=3)
        text = at(2, 4)
        got = [
            [(c, round(span.weight, 9)) for span in section for c in span.text if not c.isspace()]
            for section in parse(text)
        ]
        assert got == character_weights(text), text
        compared |= {weight for section in got for _, weight in section}
    assert len(compared) > 10


@cache
def reference_tokenizer(folder: str) -> Any:
    return transformers.CLIPTokenizer.from_pretrained(TINY / folder)


def reference_chunks(folder: str, sections: tuple[tuple[Span, ...], ...]) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and weights of each chunk, filled one token after the other."""
    tokenizer = reference_tokenizer(folder)
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    done: list[list[tuple[int, float]]] = []
    now: list[tuple[int, float]] = []
    for n, section in enumerate(sections):
        if n > 0:
            done.append(now)
            now = []
        for span in section:
            for token in tokenizer(span.text, add_special_tokens=False).input_ids:
                if len(now) == 75:
                    last = [id for id, _ in now[55:]]
                    cut = 75 - last[::-1].index(comma) if comma in last and token != comma else 75
                    done.append(now[:cut])
                    now = now[cut:]
                now.append((token, span.weight))
    if now or not done:
        done.append(now)
    ids, weights = [], []
    for row in done:
        fill = 75 - len(row)
        ids.append([tokenizer.bos_token_id, *(id for id, _ in row), tokenizer.eos_token_id])
        ids[-1] += [tokenizer.pad_token_id] * fill
        weights.append([1.0, *(weight for _, weight in row), 1.0, *[1.0] * fill])
    return ids, weights


def random_text(rng: random.Random, words: int) -> str:
    choice = ["cat", "red", "circle,", "a", ",", "(blue:1.3)", "[small, green]", "((big) square)", "antidisestablish"]
    return " ".join(" BREAK " if rng.random() < 0.004 else rng.choice(choice) for _ in range(words))


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
def test_chunks(folder: str) -> None:
    tokenizer = Tokenizer.from_dir(TINY / folder)
    rng = random.Random(folder)
    counts = set()
    for _ in range(80):
        sections = parse(random_text(rng, rng.randint(0, 90)))
        ids, weights = reference_chunks(folder, sections)
        got = chunk(tokenizer, sections)
        np.testing.assert_array_equal(got.ids, ids)
        np.testing.assert_allclose(got.weights, weights, rtol=1e-6)
        counts.add(len(ids))
    assert {1, 2, 3} <= counts


@pytest.mark.parametrize("length", range(50, 76))
def test_a_comma_near_the_end_of_a_chunk(length: int) -> None:
    sections = parse("a " * length + ", (" + "a " * 45 + ":1.2)")
    got = chunk(Tokenizer.from_dir(TINY / "tokenizer"), sections)
    ids, weights = reference_chunks("tokenizer", sections)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_allclose(got.weights, weights, rtol=1e-6)


@cache
def encoders(name: str) -> tuple[Any, Any, TextConfig]:
    """transformers' encoder in float32, its weights as jaxl's tree, and jaxl's config."""
    kind = transformers.CLIPTextModel if name == "text_encoder" else transformers.CLIPTextModelWithProjection
    reference: Any = kind.from_pretrained(TINY / name, dtype=torch.float32).eval()
    prefix = "" if "text_model.final_layer_norm.weight" in reference.state_dict() else "text_model."
    return reference, tree(reference, prefix), TextConfig.from_json(reference.config.to_dict())


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a plain (red circle:1.4) and [a blue] square", 1),
        ("((red)) circle, " * 20 + "(a green:0.5) square", 2),
        ("a (big:1.8) circle BREAK a [[small]] square BREAK (red, green:-0.5)", 3),
    ],
)
def test_weighted_embeddings(name: str, prompt: str, count: int) -> None:
    reference, params, cfg = encoders(name)
    folder = name.replace("text_encoder", "tokenizer")
    tokenizer = Tokenizer.from_dir(TINY / folder)
    sections = parse(prompt)
    chunks = chunk(tokenizer, sections)
    assert len(chunks.ids) == count
    padded = pad(tokenizer, chunks, 4)
    hidden, _ = jax.jit(clip, static_argnums=1)(params, cfg, padded.ids)
    got = np.asarray(jax.jit(emphasize)(hidden, padded.weights))

    ids, weights = reference_chunks(folder, sections)
    with torch.no_grad():
        for n, (row, scale) in enumerate(zip(ids, weights, strict=True)):
            plain = reference(torch.tensor([row]), output_hidden_states=True).hidden_states[-2]
            weighted = plain * torch.tensor(scale)[None, :, None]
            weighted *= plain.mean() / weighted.mean()
            assert relative_error(got[n], weighted[0]) < 2e-5
            assert relative_error(got[n], plain[0]) > 1e-2
        ids, _ = reference_chunks(folder, ((),))
        empty = reference(torch.tensor(ids), output_hidden_states=True).hidden_states[-2]
        assert relative_error(got[3], empty[0]) < 2e-5
