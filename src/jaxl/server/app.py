"""The whole HTTP application around one service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jaxl import __version__
from jaxl.server import errors, events, health, huggingface, loras, preprocess, restore, tokens
from jaxl.server.a1111 import controlnet, extras
from jaxl.server.a1111 import routes as a1111
from jaxl.server.errors import ApiError, answer
from jaxl.server.guard import Guard, mark, request_id
from jaxl.server.openai import chat, images, responses
from jaxl.server.paths import routed
from jaxl.server.service import CurrentService, Service

LOADING = Path(__file__).with_name("web") / "static" / "loading.html"


def create_app(service: Service, page: ASGIApp | None = None) -> FastAPI:
    """Return an app for an engine that has been started; `page` answers requests that no route does."""
    app = FastAPI(title="jaxl", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    errors.install(app)
    app.add_middleware(Guard, service=service)
    for module in (
        images,
        chat,
        responses,
        restore,
        tokens,
        loras,
        preprocess,
        events,
        a1111,
        extras,
        controlnet,
        huggingface,
        health,
    ):
        app.include_router(module.router)
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
    """Passes requests to the app once it is set; before that, answers that the model is being loaded."""

    def __init__(self, page: bool = False, root_path: str = "") -> None:
        """With `page` a page that waits is shown at / until the app has its own. `root_path` is that of Settings."""
        self.app: ASGIApp | None = None
        self.page = page
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                headers = {"Retry-After": str(errors.RETRY_ELSEWHERE)}
                response = answer(ApiError(503, message, type="server_error", code="loading", headers=headers), path)
        mark(response.headers, request_id(Headers(scope=scope)))
        await response(scope, receive, send)
