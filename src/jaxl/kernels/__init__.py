"""The operations that cost most, each in several forms: one that XLA compiles anywhere, others for one platform.

`Kernels` says which form a program is compiled with. It is static and chosen once, for the devices a program is for
(which need not be there), so that a program never holds code of another platform.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Attention works through heads, then through parts of the queries, so that the scores it holds at a time stay under
# this many bytes. A row of the softmax never depends on another, so the result does not change. On a CPU that is
# what the caches hold (1.3 to 3.4 times faster than all at once from 1024 tokens on); elsewhere it is a bound on
# memory, which at 1024x1024 only the VAE's one layer of 16384 tokens and large batches of the U-Net come near.
CPU_SCORE_BYTES = 2**23
MAX_SCORE_BYTES = 2**30


@dataclass(frozen=True)
class Kernels:
    """`attention` and `group_norm` name a form; shapes and dtypes that it does not take are left to XLA's."""

    attention: Literal["xla"] = "xla"
    score_bytes: int = MAX_SCORE_BYTES

    @classmethod
    def of(cls, platform: str) -> Kernels:
        """The forms that are best on a platform, as `jax.Device.platform` names it."""
        if platform == "cpu":
            return cls(score_bytes=CPU_SCORE_BYTES)
        return cls()


XLA = Kernels()
