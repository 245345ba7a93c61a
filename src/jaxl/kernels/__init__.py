"""The operations that cost most, each in several forms: one that XLA compiles anywhere, others for one platform.

`Kernels` says with which forms a program is compiled. It is static and chosen once, for the devices of the program
(which need not be there), so that a program never holds code of another platform.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxl.kernels import processor

__all__ = ["XLA", "Kernels", "Wrap"]

# Attention works through heads, then through parts of the queries, so that the scores it holds at a time stay under
# this many bytes. Rows of the softmax do not depend on each other, so the result does not change. On a CPU the limit is
# the size of the caches (1.3 to 3.4 times faster than all at once from 1024 tokens on); elsewhere it bounds memory, and
# at 1024x1024 only the VAE's one layer of 16384 tokens and large batches of the U-Net come near it.
CPU_SCORE_BYTES = 2**23
MAX_SCORE_BYTES = 2**30


# down, and across
Wrap = tuple[bool, bool]


@dataclass(frozen=True)
class Kernels:
    """The form of each operation; XLA's takes the shapes and dtypes that a form does not. Winograd's convolutions come
    with those of enlarged pictures in `kernels.upsampled_conv`.

    A `layer_norm` in one pass reads its input once: XLA makes the sums where the input is written. A `product` other
    than XLA's is one in int8. Wide `sums` are those of bfloat16, see `kernels.wide_sums`. A device works on a batch's
    `evaluations` of the network together, or in turn (`run.evaluations`). Pictures `wrap` around, down or across, where
    convolutions see the opposite edge in place of zeros.
    """

    attention: Literal["xla", "cudnn", "tpu"] = "xla"
    group_norm: Literal["xla", "triton", "tpu"] = "xla"
    conv: Literal["xla", "winograd", "tpu"] = "xla"
    layer_norm: Literal["two_pass", "one_pass"] = "two_pass"
    product: Literal["xla", "tpu"] = "xla"
    sums: Literal["narrow", "wide"] = "narrow"
    evaluations: Literal["together", "in_turn"] = "together"
    score_bytes: int = MAX_SCORE_BYTES
    wrap: Wrap = (False, False)

    @classmethod
    def of(cls, platform: str, kind: str = "") -> Kernels:
        """Return the best forms for a platform, as `jax.Device.platform` names it.

        `kind` is the compute capability of a GPU, the `device_kind` of a TPU, the `processor.features` of a CPU.
        """
        if platform == "cpu":
            sums = "wide" if kind == "bfloat16" else "narrow"
            return cls(conv="winograd", sums=sums, evaluations="in_turn", score_bytes=CPU_SCORE_BYTES)
        if platform == "tpu":
            # the convolution and the product need more memory on the chip than a v4 has
            attention = cls(attention="tpu", layer_norm="one_pass")
            small = kind.startswith(("TPU v2", "TPU v3", "TPU v4"))
            return attention if small else replace(attention, conv="tpu", group_norm="tpu", product="tpu")
        # cuDNN's attention needs bfloat16 units, which NVIDIA's GPUs have from 8.0 on. Triton's norm has yet to run on
        # a GPU, so it must be asked for.
        major = kind.split(".")[0]
        if platform == "gpu" and major.isdecimal() and int(major) >= 8:
            return cls(attention="cudnn")
        return cls()

    @classmethod
    def of_device(cls, device: Any) -> Kernels:
        """Return the best forms for a device."""
        if device.platform == "cpu":
            return cls.of("cpu", processor.features())
        kind = device.device_kind if device.platform == "tpu" else getattr(device, "compute_capability", "")
        return cls.of(device.platform, kind)

    @classmethod
    def plain(cls, platform: str) -> Kernels:
        """Return XLA's forms alone, with the platform's limit of scores."""
        return cls(score_bytes=cls.of(platform).score_bytes)


XLA = Kernels()
