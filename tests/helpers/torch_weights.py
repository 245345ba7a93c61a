"""PyTorch modules with seeded random weights, and their weights as jaxl's parameter trees."""

from typing import Any

import numpy as np
import torch


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights whose norms and biases are not the neutral ones of an initialisation, so that each one matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(noise / fan_in**0.5 if parameter.ndim > 1 else parameter + 0.2 * noise)
    return module.eval()


def tree(module: torch.nn.Module, prefix: str = "") -> dict[str, Any]:
    """The module's weights as nested dicts in jaxl's layout; written out here rather than taken from jaxl.weights."""
    nested: dict[str, Any] = {}
    for key, tensor in module.state_dict().items():
        if key.endswith("position_ids"):
            continue
        value = tensor.float().numpy()
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)
        elif value.ndim == 2 and "token_embedding" not in key and "position_embedding" not in key:
            value = value.T
        *path, last = (prefix + key).split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[last] = np.ascontiguousarray(value)
    return nested


def relative_error(got: Any, wanted: Any) -> float:
    """Root-mean-square difference over root-mean-square value."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))


def shape_tree(tree: Any) -> Any:
    return {k: shape_tree(v) for k, v in tree.items()} if isinstance(tree, dict) else tuple(tree.shape)
