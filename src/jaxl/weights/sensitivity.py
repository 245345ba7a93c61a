"""Which layers stay exact in a precision with a distance: the order in which they do, and the file of those chosen.

Rounding errors of layers hardly depend on each other, so what each does alone says which to leave exact; how many, only
pictures say (`call.trials`).
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.files import write_text
from jaxl.weights.layout import flatten
from jaxl.weights.quantise import REMEDY, is_positive, layers, read_measured

Group = tuple[str, ...]

ONE_INPUT = re.compile(r"(.+\.attn1\.)to_[qkv]")
# what is made once for an image, or of one vector: nothing beside what is made of each position at each step
SELDOM = re.compile(r"(time_|add_)embedding.*|.+\.(time_emb_proj|attn2\.to_[kv])")


@dataclass(frozen=True)
class Choice:
    """The layers that stay exact, and what was measured with them so: the median PSNR of pictures in dB, and the share
    of eight bits in what each step multiplies by weights. `psnr` is None where pictures are equal.
    """

    exact: tuple[str, ...]
    psnr: float | None
    share: float


def groups(paths: Sequence[str]) -> list[Group]:
    """Return layers by what they are fed: queries, keys and values of self-attention are one, others by themselves."""
    found: dict[str, list[str]] = {}
    for path in paths:
        match = ONE_INPUT.fullmatch(path)
        found.setdefault(match[1] if match else path, []).append(path)
    return [tuple(group) for group in found.values()]


def multiply_adds(tree: Mapping[str, Any]) -> dict[str, float]:
    """Return the multiply-adds of each layer of a U-Net at each step, by path, for each pixel of the latents."""
    leaves = {key.removesuffix(".weight"): leaf for key, leaf in flatten(tree).items() if key.endswith(".weight")}
    matrices = {path: leaf for path, leaf in leaves.items() if leaf.ndim > 1 and not SELDOM.fullmatch(path)}
    levels = len(tree["down_blocks"])
    return {path: leaf.size / 4 ** _level(path, levels) for path, leaf in matrices.items()}


def _level(path: str, levels: int) -> int:
    """Return how often the latents were halved where a layer's output is."""
    part, *rest = path.split(".")
    sampled = ".downsamplers." in path or -(".upsamplers." in path)
    of_part = {"down_blocks": lambda: int(rest[0]), "up_blocks": lambda: levels - 1 - int(rest[0])}
    return of_part.get(part, lambda: levels - 1 if part == "mid_block" else 0)() + sampled


def share(tree: Mapping[str, Any], rounded: Sequence[str]) -> float:
    """Return the share of some layers in what a step multiplies by weights."""
    work = multiply_adds(tree)
    return sum(work[path] for path in rounded) / sum(work.values())


def in_order(errors: Mapping[Group, float], tree: Mapping[str, Any]) -> list[Group]:
    """Return groups of layers by the error that each makes for its multiply-adds, the greatest first."""
    work = multiply_adds(tree)
    return sorted(errors, key=lambda group: -errors[group] / sum(work[path] for path in group))


def fewest(order: Sequence[Group], psnr: Callable[[frozenset[str]], float], decibels: float) -> frozenset[str]:
    """Return as few layers of the order, from its beginning, as pictures need that are to be so near.

    `psnr` measures pictures in which some layers are exact, at logarithmically many numbers of them.
    """

    def first(count: int) -> frozenset[str]:
        return frozenset(path for group in order[:count] for path in group)

    counts = range(len(order))
    return first(bisect.bisect_left(counts, True, key=lambda count: psnr(first(count)) >= decibels))


def choice_file(scales: Path, precision: str) -> Path:
    """Where the choice for a precision is kept: beside the scales of the checkpoint's inputs."""
    return scales.with_name(f"{scales.stem}-{precision}.json")


def write_choice(file: Path, choice: Choice) -> None:
    """Write a choice, whole or not at all. Raises OutputError."""
    write_text(file, json.dumps(asdict(choice), indent=1) + "\n")


def read_choice(file: Path, tree: Mapping[str, Any]) -> Choice | None:
    """Return what `write_choice` wrote for a U-Net, or None if there is no file. Raises CheckpointError if damaged."""
    found = read_measured(file, "choice of layers")
    if found is None:
        return None
    exact, psnr, part = (found.get(name) for name in ("exact", "psnr", "share"))
    known = set(layers(tree))
    if not isinstance(exact, list) or not all(isinstance(path, str) and path in known for path in exact):
        raise CheckpointError(f"{file}: damaged choice of layers (not those of this model); {REMEDY}")
    if not is_positive(part) or not (psnr is None or is_positive(psnr)):
        raise CheckpointError(f"{file}: damaged choice of layers (not what was measured); {REMEDY}")
    return Choice(tuple(exact), psnr, found["share"])
