"""The interface that a server uses of an engine; a router in front of many engines has it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from jaxl.engine.backend import Lora, Served
from jaxl.engine.engine import Stats
from jaxl.engine.request import Event, Request, Status, Ticket


class AnyEngine(Protocol):
    """The methods are those of `Engine`; each may be called from any thread."""

    draining: bool

    @property
    def healthy(self) -> bool: ...

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> Ticket: ...

    def check(self, arguments: Mapping[str, Any]) -> None: ...

    def tickets(self) -> list[Ticket]: ...

    def status(self, ticket: Ticket) -> Status: ...

    def stats(self) -> Stats: ...

    def models(self) -> Sequence[Served]: ...

    def loras(self) -> Sequence[Lora]: ...

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image: ...

    def stalled(self, seconds: float) -> bool: ...

    def drain(self, timeout: float) -> bool: ...
