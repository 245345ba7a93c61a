"""Connections of the HTTP server: their number, and the time that one may keep it waiting for a request, are limited.

With uvicorn's own a client that never ends its headers holds a connection for ever (Slowloris). The guard limits bodies
(`jaxl.server.guard`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# the time for the headers of a request, from their first byte on
HEADER_SECONDS = 20.0
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

log = logging.getLogger("jaxl.server")


class Connection(H11Protocol):
    """A connection that is closed after `timeout_keep_alive` seconds without a request, also without a first one.

    Beyond `limit_concurrency` connections, new ones mark their requests as `crowded` in the state. The guard refuses
    these, except for probes, which uvicorn would turn away too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.most, self.limit_concurrency = self.limit_concurrency, None
        self.headers_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride], as uvicorn's
        super().connection_made(transport)
        if self.most is not None and len(self.connections) > self.most:
            log.warning("more than %d connections: another one from %s", self.most, self._peer())
            self.app_state = {**self.app_state, "crowded": True}
        self.timeout_keep_alive_task = self.loop.call_later(
            self.config.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers_came()
        elif self.headers_due is None:
            self.headers_due = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_came()
        super().connection_lost(exc)

    def _headers_came(self) -> None:
        if self.headers_due is not None:
            self.headers_due.cancel()
            self.headers_due = None

    def _give_up(self) -> None:
        log.warning("headers that did not end within %g s from %s", HEADER_SECONDS, self._peer())
        self.transport.write(LATE)
        self.timeout_keep_alive_handler()

    def _peer(self) -> str:
        return self.client[0] if self.client else "an unknown address"
