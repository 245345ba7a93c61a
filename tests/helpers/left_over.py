"""What calls leave in memory, however often they are made."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable


def left_over(call: Callable[[], object]) -> Counter[str]:
    """Return how many objects of jax's there are after the second call that there were not after the first, by type.

    A model that is not gone has some too: its shapes.
    """
    call()
    before = _objects()
    call()
    return _objects() - before


def _objects() -> Counter[str]:
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    return Counter(repr(kind) for kind in kinds if kind.__module__.split(".")[0] in ("jax", "jaxlib"))
