"""What both trainers share: the device, the learning rate's course, AdamW."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def pick_device() -> torch.device:
    """The GPU where there is one (with TF32 products), else the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 products on a GPU; float32 as it is elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def rate_factor(progress: float, warm_up: float, floor: float = 0.01) -> float:
    """The learning rate's factor at `progress` in 0..1: a linear rise for `warm_up`, then half a cosine to `floor`."""
    if progress < warm_up:
        return max(progress / warm_up, 1e-3)
    fall = (progress - warm_up) / (1 - warm_up)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fall))


class Optimiser:
    """AdamW over a number of steps known beforehand, gradients clipped to norm 1; biases and norms do not decay."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        steps: int,
        rate: float,
        warm_up: float,
        decay: float,
    ):
        self.parameters = list(parameters)
        groups = [
            {"params": [p for p in self.parameters if p.ndim > 1], "weight_decay": decay},
            {"params": [p for p in self.parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        fused = self.parameters[0].is_cuda
        self.adam = AdamW(groups, lr=rate, betas=(0.9, 0.99), fused=fused)
        self.schedule = LambdaLR(self.adam, lambda step: rate_factor(step / steps, warm_up))

    def step(self, loss: torch.Tensor) -> None:
        """Go one step down the loss's gradient."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.schedule.step()
