"""What PEFT says of an adapter beside its tensors: the alphas, which its keys do not have."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.adapters.changes import NETWORKS
from jaxl.weights.store import read_json

METADATA = "lora_adapter_metadata"  # diffusers' key, with settings as `unet.lora_alpha`
BESIDE = "adapter_config.json"  # PEFT's own, in a folder with one file of weights
WEIGHTS_BESIDE = "adapter_model.safetensors"

# Patterns of names are regular expressions. A file's are taken where matching them cannot take long: as plain names, of
# which there may be one for each layer, or a few with at most one repetition.
PLAIN = re.compile(r"[\w.]+")
SIMPLE = re.compile(r"[\w.^$|()\\-]*[*+]?[\w.^$|()\\-]*")
MAX_LENGTH, MAX_EXPRESSIONS = 200, 16


@dataclass(frozen=True)
class PeftSettings:
    """The settings of one network: alpha for all layers, those of some by patterns of their names, and rsLoRA's mark.

    With rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) alpha is divided by the root of the rank.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = field(default_factory=dict)
    rooted: bool = False

    def alpha_of(self, module: str) -> float | None:
        """Return a layer's alpha, None where nothing is said. The first pattern that fits the name's end decides."""
        names = module.split(".")
        fitting = {".".join(names[i:]) for i in range(len(names))} & self.alphas.keys()
        fitting |= {pattern for pattern in self.expressions if _fits(pattern, module)}
        return next((alpha for pattern, alpha in self.alphas.items() if pattern in fitting), self.alpha)

    @cached_property
    def expressions(self) -> list[str]:
        """The patterns that are more than plain names."""
        return [pattern for pattern in self.alphas if not PLAIN.fullmatch(pattern)]


def read_peft(file: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Return PEFT's settings by network, from a file's metadata or from the `adapter_config.json` beside it.

    Raises CheckpointError for settings that cannot be read: without them an adapter would be too strong or too weak.
    """
    if METADATA in metadata:
        return _of_metadata(file, metadata[METADATA])
    beside = file.with_name(BESIDE)
    if file.name == WEIGHTS_BESIDE and beside.exists():
        return {"unet": _settings(beside, read_json(beside))}
    return {}


def _of_metadata(file: Path, text: str) -> dict[str, PeftSettings]:
    try:
        flat = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its metadata {METADATA} is not JSON ({error})") from error
    if not isinstance(flat, dict):
        raise CheckpointError(f"{file}: its metadata {METADATA} is not a table")
    return {
        component: _settings(file, {key.removeprefix(f"{component}."): value for key, value in flat.items()})
        for component in NETWORKS
        if any(key.startswith(f"{component}.") for key in flat)
    }


def _settings(file: Path, raw: Mapping[str, Any]) -> PeftSettings:
    alpha, alphas = raw.get("lora_alpha"), raw.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise CheckpointError(f"{file}: alpha_pattern is not a table of names and numbers")
    for name, value in {"lora_alpha": 1 if alpha is None else alpha, **alphas}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{file}: PEFT's settings have no number as alpha but {name}={str(value)[:40]!r}")
    settings = PeftSettings(alpha, alphas, bool(raw.get("use_rslora")))
    unread = [pattern for pattern in settings.expressions if not _is_simple(pattern)]
    unread += settings.expressions[MAX_EXPRESSIONS:]
    if unread:
        raise CheckpointError(
            f"{file}: alpha_pattern has {unread[0][:80]!r}, which jaxl does not read; give plain names"
        )
    return settings


def _is_simple(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return len(pattern) <= MAX_LENGTH and SIMPLE.fullmatch(pattern) is not None


def _fits(pattern: str, module: str) -> bool:
    return re.fullmatch(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})", module) is not None
