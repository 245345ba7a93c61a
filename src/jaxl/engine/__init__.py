"""The engine: requests of many users in one running batch, joined and left between steps."""

from jaxl.engine.any import AnyEngine
from jaxl.engine.backend import Backend, Batch, Drawing, Lora, Stage
from jaxl.engine.channel import Channel
from jaxl.engine.engine import Engine
from jaxl.engine.request import Drawn, Event, Preview, Progress, Request, Result, Started, Status, Ticket

__all__ = [
    "AnyEngine",
    "Backend",
    "Batch",
    "Channel",
    "Drawing",
    "Drawn",
    "Engine",
    "Event",
    "Lora",
    "Preview",
    "Progress",
    "Request",
    "Result",
    "Stage",
    "Started",
    "Status",
    "Ticket",
]
