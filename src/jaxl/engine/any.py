"""What a server asks of an engine, which many engines behind a router have too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jaxl.engine.engine import Stats
from jaxl.engine.request import Event, Request, Status, Ticket


class AnyEngine(Protocol):
    """Every method may be called from any thread, and is as that of `Engine`."""

    draining: bool

    @property
    def healthy(self) -> bool: ...

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> Ticket: ...

    def tickets(self) -> list[Ticket]: ...

    def status(self, ticket: Ticket) -> Status: ...

    def stats(self) -> Stats: ...

    def stalled(self, seconds: float) -> bool: ...

    def drain(self, timeout: float) -> bool: ...
