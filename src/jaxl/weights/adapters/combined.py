"""Several adapters on one model: what they add to each layer together, one after another, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np

from jaxl.weights.adapters.adapter import Adapter
from jaxl.weights.adapters.changes import TEXT_ENCODERS, Change
from jaxl.weights.adapters.form import Form
from jaxl.weights.adapters.strength import Strength

# the adapters of an image, in their order
AdapterSet = tuple[tuple[Adapter, Strength], ...]
Weights = Callable[[str], np.ndarray]  # float32, in torch's layout, by a checkpoint's key

T = TypeVar("T")

WEIGHT = ".weight"
THREADS = 2  # NumPy's work holds no lock; more would wait for memory


def changes(adapters: AdapterSet, component: str) -> dict[str, list[tuple[Change, float]]]:
    """Return the changes of each leaf of a component that have an effect, with their strengths, in order."""
    found: dict[str, list[tuple[Change, float]]] = {}
    for adapter, strength in adapters:
        for key, change in adapter.changes.get(component, {}).items():
            path = key.rpartition(".")[0]
            if (factor := strength.at(component, path)) != 0:
                found.setdefault(key, []).append((change, factor))
    return found


def run_time(adapters: AdapterSet, component: str) -> dict[str, list[tuple[Change, float]]]:
    """Return those of `changes` that are made while programs run, by the path of the layer."""
    return {
        key.removesuffix(WEIGHT): each
        for key, each in changes(adapters, component).items()
        if not any(change.dense for change, _ in each)
    }


def forms(
    adapters: AdapterSet, component: str, shapes: Mapping[str, tuple[int, ...]], weights: Weights
) -> dict[str, Form]:
    """Return what is added to each layer while programs run, by its path; `shapes` are those of the weights."""

    def made(path: str, each: Sequence[tuple[Change, float]]) -> Form:
        form = Form.none(shapes[path])
        for change, strength in each:
            after = change.onto(form, partial(weights, path + WEIGHT), strength)
            assert after is not None  # none of them is dense
            form = after
        return form

    return in_threads(made, run_time(adapters, component))


def in_threads(make: Callable[[str, Any], T], items: Mapping[str, Any]) -> dict[str, T]:
    """Return what `make` makes of each key and value, by key."""
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(items, pool.map(make, items, items.values()), strict=True))


def merging(adapters: AdapterSet, component: str) -> AdapterSet:
    """Return the adapters that change a leaf of a component which programs cannot change while they run."""
    each = changes(adapters, component).values()
    together = {id(change) for all_of in each if any(change.dense for change, _ in all_of) for change, _ in all_of}
    return tuple(
        (adapter, strength)
        for adapter, strength in adapters
        if any(id(change) in together for change in adapter.changes.get(component, {}).values())
    )


def merged(
    adapters: AdapterSet, component: str, weights: Weights, *, all_kinds: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the leaves, by key, that change for good: those that programs cannot change while they run, or all.

    float32, in torch's layout.
    """
    for key, each in changes(adapters, component).items():
        if all_kinds or any(change.dense for change, _ in each):
            yield key, applied(each, weights(key))


def applied(each: Iterable[tuple[Change, float]], weight: np.ndarray) -> np.ndarray:
    """Return a float32 weight with changes in it, one after another."""
    for change, strength in each:
        weight = change.merged(weight, strength)
    return weight


def of_text(adapters: AdapterSet) -> AdapterSet:
    """Return the part that is for the text encoders, with strengths for these alone."""
    return tuple(
        (adapter, strength.of_text)
        for adapter, strength in adapters
        if any(adapter.changes.get(name) and strength.of_text.at(name, "") for name in TEXT_ENCODERS)
    )


def during(adapters: AdapterSet, done: float) -> AdapterSet:
    """Return the adapters as they are where a share of the steps is done."""
    return tuple((adapter, strength.during(done)) for adapter, strength in adapters)
