"""What PEFT says of an adapter beside its tensors: the alphas, which its keys do not have."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxl.errors import CheckpointError
from jaxl.weights.store import read_json

METADATA = "lora_adapter_metadata"  # diffusers' key, with settings as `unet.lora_alpha`
BESIDE = "adapter_config.json"  # PEFT's own, in a folder with one file of weights
WEIGHTS_BESIDE = "adapter_model.safetensors"

# patterns of names are regular expressions; a file's are taken only where matching them cannot take long
SIMPLE = re.compile(r"(?!.*\)[*+{])[\w.*+^$|()\\-]{1,200}")


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
        for pattern, alpha in self.alphas.items():
            if re.fullmatch(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})", module):
                return alpha
        return self.alpha


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
        for component in ("unet", "text_encoder", "text_encoder_2")
        if any(key.startswith(f"{component}.") for key in flat)
    }


def _settings(file: Path, raw: Mapping[str, Any]) -> PeftSettings:
    alpha, alphas = raw.get("lora_alpha"), raw.get("alpha_pattern") or {}
    numbers = [alpha, *alphas.values()] if isinstance(alphas, dict) else [None, alphas]
    if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in numbers[alpha is None :]):
        raise CheckpointError(f"{file}: lora_alpha={alpha!r} with alpha_pattern={alphas!r} are not numbers")
    for pattern in alphas:
        if not SIMPLE.fullmatch(pattern) or not _compiles(pattern):
            raise CheckpointError(f"{file}: alpha_pattern has {pattern!r}, which jaxl does not read; give plain names")
    return PeftSettings(alpha, alphas, bool(raw.get("use_rslora")))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
