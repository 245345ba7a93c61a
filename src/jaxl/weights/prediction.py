"""The prediction type that a single file names: in a tensor, its metadata, a .yaml beside it, or its name.

The weights themselves do not tell it, and a wrong guess is a picture of noise.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxl.errors import InputError, nearest
from jaxl.weights.checkpoint import Checkpoint

# diffusers' names, and those of other programs
PREDICTIONS: Mapping[str, tuple[str, ...]] = {
    "epsilon": ("eps", "noise"),
    "v_prediction": ("v", "v-prediction", "vpred", "v_pred", "velocity"),
    "sample": ("x0", "x_0"),
    "flow": ("flow_prediction", "flow_matching", "rectified_flow", "rf"),
}
# of a model that was trained on straight paths; what shifts its levels the file does not say
FLOW_SCHEDULER: Mapping[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
# Stability's model spec, as sd-scripts and ComfyUI write it
METADATA = ("modelspec.predict_key", "modelspec.prediction_type")
# a line of the original training configs, which A1111 and Forge read; jaxl reads no more of a .yaml
PARAMETERIZATION = re.compile(r"""^\s*parameterization:\s*["']?(\w+)["']?\s*(?:#.*)?$""", re.MULTILINE)
MAX_YAML_BYTES = 65536
# ByteDance's sdxl_lightning_1step_x0
X0_NAME = re.compile(r"(^|[-_. ])x0([-_. ]|$)")


def find_prediction(file: Path, keys: Collection[str], metadata: Mapping[str, str]) -> tuple[str, str]:
    """Return the prediction type of a single file, by diffusers' name, and where it was found.

    A tensor `v_pred` is ComfyUI's mark of velocities. Unknown prediction types are passed over.
    """
    if "v_pred" in keys:
        return "v_prediction", "its tensor v_pred"
    yaml = file.with_suffix(".yaml")
    said = [(f"its metadata, {name}", metadata.get(name)) for name in METADATA]
    said += [(yaml.name, match[1]) for match in PARAMETERIZATION.finditer(_beginning(yaml))]
    for where, value in said:
        known = _known(value)
        if known is not None:
            return known, where
    if X0_NAME.search(file.stem.lower()):
        return "sample", "its name"
    return "epsilon", "nothing that says otherwise"


def with_prediction(checkpoint: Checkpoint, value: str) -> Checkpoint:
    """Return the checkpoint with the caller's prediction type. Raises InputError for an unknown one."""
    known = _known(value)
    if known is None:
        raise InputError("prediction_type", value, nearest(str(value), PREDICTIONS))
    scheduler = checkpoint.configs["scheduler"]
    follows = str(scheduler.get("_class_name")).startswith("FlowMatch")
    if follows and known != "flow":
        raise InputError("prediction_type", value, "the checkpoint's scheduler is for straight paths; leave it out")
    if not follows:
        scheduler = FLOW_SCHEDULER if known == "flow" else {**scheduler, "prediction_type": known}
    return dataclasses.replace(
        checkpoint, configs={**checkpoint.configs, "scheduler": scheduler}, predicts_by="the caller"
    )


def _known(value: object) -> str | None:
    plain = value.strip().lower() if isinstance(value, str) else None
    return next((name for name, others in PREDICTIONS.items() if plain in (name, *others)), None)


def _beginning(file: Path) -> str:
    """Return the first bytes of a text file as text; "" where it cannot be read."""
    try:
        if not file.is_file():
            return ""
        with file.open("rb") as stream:
            return stream.read(MAX_YAML_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
