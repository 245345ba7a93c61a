"""jaxl: Stable Diffusion XL in JAX, on TPU, GPU and CPU.

pipe, params = jaxl.from_pretrained("tiny")
result = pipe.generate(params, "a red apple on a blue background, flat style", seed=7, num_images=4)
"""

from jaxl.errors import CheckpointError, InputError, JaxlError, NonFiniteError, OutputError, TruncationWarning
from jaxl.pipeline import Pipeline, Result, from_pretrained
from jaxl.programs import Bucket
from jaxl.sharding import make_mesh

__version__ = "0.1.0"

__all__ = [
    "Bucket",
    "CheckpointError",
    "InputError",
    "JaxlError",
    "NonFiniteError",
    "OutputError",
    "Pipeline",
    "Result",
    "TruncationWarning",
    "__version__",
    "from_pretrained",
    "make_mesh",
]
