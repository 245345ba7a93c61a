"""jaxl: Stable Diffusion XL in JAX, on TPU, GPU and CPU.

    pipe, params = jaxl.from_pretrained("tiny")
    result = pipe.generate(params, "a red apple on a blue background, flat style", seed=7, num_images=4)

docs/api.md lists the other modules that are public.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from jaxl.errors import CheckpointError, InputError, JaxlError, NonFiniteError, OutputError, TruncationWarning

if TYPE_CHECKING:
    from jaxl.call.control import Control
    from jaxl.call.hires import Hires
    from jaxl.call.image_prompt import ImagePrompt
    from jaxl.call.preprocess import preprocess
    from jaxl.call.region import Region
    from jaxl.call.upscale import upscale
    from jaxl.loading import from_pretrained
    from jaxl.metadata import settings_of
    from jaxl.pipeline import Pipeline, Result
    from jaxl.run.bucket import Bucket
    from jaxl.run.sharding import make_mesh
    from jaxl.run.upscaler import Upscaler
    from jaxl.weights.adapters.strength import Strength

__version__ = "0.2.0"

__all__ = [
    "Bucket",
    "CheckpointError",
    "Control",
    "Hires",
    "ImagePrompt",
    "InputError",
    "JaxlError",
    "NonFiniteError",
    "OutputError",
    "Pipeline",
    "Region",
    "Result",
    "Strength",
    "TruncationWarning",
    "Upscaler",
    "__version__",
    "from_pretrained",
    "make_mesh",
    "preprocess",
    "settings_of",
    "upscale",
]

_MODULES = {
    "Bucket": "run.bucket",
    "Control": "call.control",
    "Hires": "call.hires",
    "ImagePrompt": "call.image_prompt",
    "Pipeline": "pipeline",
    "Region": "call.region",
    "Result": "pipeline",
    "Strength": "weights.adapters.strength",
    "Upscaler": "run.upscaler",
    "from_pretrained": "loading",
    "make_mesh": "run.sharding",
    "preprocess": "call.preprocess",
    "settings_of": "metadata",
    "upscale": "call.upscale",
}


def __getattr__(name: str) -> Any:
    """Import what needs jax when it is asked for: the command's help, and the server's front, do without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
