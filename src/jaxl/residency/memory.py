"""Memory that was freed, given back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Give freed memory back to the system, where C's library is glibc.

    It keeps what was freed for the thread that had it, and each model is loaded in a thread of its own: so a server
    would grow with each swap, up to the memory of dozens of models.
    """
    with suppress(OSError, AttributeError, TypeError):  # another library
        ctypes.CDLL(None).malloc_trim(0)
