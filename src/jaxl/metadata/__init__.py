"""What programs write into the pictures that they draw, read as settings of jaxl.

    settings = jaxl.settings_of("castle.png")
    result = pipe.generate(params, **settings.arguments)
    print(*settings.lacking(), sep="\\n")

Each program has a file with one function, `read`, and a line in `programs.READERS`.
"""

from __future__ import annotations

from jaxl.metadata.programs import settings_of
from jaxl.metadata.settings import Network, Settings

__all__ = ["Network", "Settings", "settings_of"]
