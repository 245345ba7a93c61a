"""The whole HTTP application around one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxl import __version__
from jaxl.server import errors, events, grids, health, huggingface, logs, loras, preprocess, restore, tokens
from jaxl.server.a1111 import controlnet, extras
from jaxl.server.a1111 import routes as a1111
from jaxl.server.errors import ApiError, answer
from jaxl.server.guard import Guard, mark, request_id
from jaxl.server.jobs import routes as jobs
from jaxl.server.openai import chat, images, responses
from jaxl.server.paths import routed
from jaxl.server.service import CurrentService, Service

MODULES = (images, chat, responses, restore, grids, a1111, huggingface)
MODULES += (tokens, loras, preprocess, events, jobs, extras, controlnet, health)
LOADING = Path(__file__).with_name("web") / "static" / "loading.html"


def create_app(service: Service, page: ASGIApp | None = None) -> FastAPI:
    """Return an app for an engine that has been started; `page` answers requests that no route does.

    Jobs are drawn between startup and shutdown of its lifespan.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if service.jobs is None:
            yield
            return
        async with service.jobs.at_work(app):
            yield

    app = FastAPI(
        title="jaxl",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    errors.install(app)
    app.add_middleware(Guard, service=service)
    # as they are: an app that includes a router makes its routes once more, at the first request
    for module in MODULES:
        app.router.routes.extend(module.router.routes)
    if page is None:
        app.add_api_route("/", index, include_in_schema=False)
    else:
        app.router.routes.append(Route("/", page, methods=["GET"]))
        app.router.default = page
    return app


async def index(service: CurrentService) -> dict[str, Any]:
    """List what is here, for people who open the address in a browser."""
    return {
        "server": f"jaxl {__version__}",
        "model": service.settings.model,
        **({"models": "/v1/models"} if service.engine.models() else {}),
        "OpenAI": "/v1/images/generations",
        "AUTOMATIC1111": "/sdapi/v1/txt2img",
        "Hugging Face": "POST to this address",
        "all routes": "/openapi.json",
        "web page": "start the server with --ui",
    }


class Front:
    """Passes requests to the app once it is open; before that, answers that the model is being loaded.

    The app's lifespan begins when it is open and the server's has begun, and ends with that.
    """

    def __init__(self, page: bool = False, root_path: str = "") -> None:
        """With `page` a page that waits is shown at / until the app has its own. `root_path` is that of Settings."""
        self.app: ASGIApp | None = None
        self.page = page
        self.root_path = root_path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._life: asyncio.Task[None] | None = None
        self._ends = asyncio.Event()

    def open(self, app: ASGIApp) -> None:
        """Have requests answered by the app from now on; any thread may call it."""
        self.app = app
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._begin, app)

    def _begin(self, app: ASGIApp) -> None:
        if self._life is None:
            self._life = asyncio.create_task(self._live(app))

    async def _live(self, app: ASGIApp) -> None:
        """Have the app live through its lifespan, as a server would."""
        news: list[Message] = [{"type": "lifespan.startup"}]

        async def receive() -> Message:
            if not news:
                await self._ends.wait()
            return news.pop() if news else {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"].endswith(".failed"):
                logs.log.error("the application does not live: %s", message.get("message"))

        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

    async def _serve(self, receive: Receive, send: Send) -> None:
        """Live through the lifespan of the server."""
        self._loop = asyncio.get_running_loop()
        await receive()
        if self.app is not None:
            self._begin(self.app)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._ends.set()
        if self._life is not None:
            await self._life
        await send({"type": "lifespan.shutdown.complete"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve(receive, send)
            return
        if self.app is not None:
            await self.app(scope, receive, send)
            return
        match routed(scope, self.root_path)["path"]:
            case "/health/live":
                response = health.state("live")
            case "/health/ready":
                response = health.state("loading", 503)
            case "/" if self.page:
                response = HTMLResponse(LOADING.read_text(), 503, {"Cache-Control": "no-store"})
            case path:
                message = "the model is being loaded; try again later"
                headers = errors.retry_after(errors.RETRY_ELSEWHERE)
                response = answer(ApiError(503, message, type="server_error", code="loading", headers=headers), path)
        mark(response.headers, request_id(Headers(scope=scope)))
        await response(scope, receive, send)
