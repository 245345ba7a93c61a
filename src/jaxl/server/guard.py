"""The checks that every HTTP request passes first: ids, keys, origins, content types and the size of bodies.

Web pages of strangers can make a browser call servers on its own machine and network; ComfyUI was open to that
(CVE-2024-10099 and others). So an Origin must be known, a body must be of the kind that the route reads, and a server
without keys on a loopback address must be called by a name that nobody else can point to it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxl.server import logs
from jaxl.server.errors import RETRY_ELSEWHERE, ApiError, answer, api_error, retry_after
from jaxl.server.keys import ANYBODY, Key
from jaxl.server.origins import is_address, is_own, names_itself, web_host
from jaxl.server.paths import routed
from jaxl.server.pictures import MEDIA_TYPES
from jaxl.server.service import Service

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# probes and scrapers read these without a key, and too often for the log
OPEN = ("/health/", "/metrics")
# these need no key; the names of pictures are secrets themselves
KEYLESS = (*OPEN, "/v1/images/files/")
JSON, FORM = "application/json", "multipart/form-data"
# the content types of some routes' bodies; those of all others are JSON
BODIES = {
    "/v1/images/edits": (FORM, JSON),
    "/v1/images/variations": (FORM,),
    "/v1/images/settings": (JSON, *MEDIA_TYPES.values()),
}
PREFLIGHT_SECONDS = "600"
# the headers of answers that pages of other origins may read
EXPOSED = "X-Request-Id, X-Jaxl-Drawn, X-Jaxl-Warning, Retry-After, Location, Preference-Applied"
# the longest wait for the next part of a body
BODY_SECONDS = 60.0


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app = app
        self.service = service
        self.settings = service.settings
        self.keys = service.keys
        self.hosts = {web_host(origin) for origin in service.settings.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "").lower()
        bare, scope = scope["path"], routed(scope, self.settings.root_path)
        id = scope.setdefault("state", {})["request_id"] = request_id(headers)
        began, status = time.perf_counter(), 0

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                marked = MutableHeaders(scope=message)
                mark(marked, id)
                if drawn := scope["state"].get("drawn"):
                    marked["X-Jaxl-Drawn"] = drawn
                if remarks := scope["state"].get("remarks"):
                    marked["X-Jaxl-Warning"] = remarks
                if origin in self.settings.origins:
                    marked["Access-Control-Allow-Origin"] = origin
                    marked["Access-Control-Expose-Headers"] = EXPOSED
                    marked.add_vary_header("Origin")
            await send(message)

        receive, answered = _limited(receive, self.settings.max_body), send_marked
        if scope["method"] == "HEAD":  # every route of GET answers HEAD too
            scope["method"], answered = "GET", _head_alone(send_marked)
        with logs.request(id):
            try:
                response = self._preflight(headers, scope["method"])
                if response is None:
                    if "job" not in scope["state"]:  # which was checked when it was accepted
                        self._check(scope, headers)
                    if self._is_page(scope) and bare == scope["root_path"] != "":
                        response = RedirectResponse(f"{bare}/")  # the page's own links are relative
                await (response or self.app)(scope, receive, answered)
            except Exception as error:  # the last resort: an answer without details
                known = api_error(error)
                if not status:
                    await answer(known, scope["path"])(scope, receive, answered)
            finally:
                route = getattr(scope.get("route"), "path", "other")
                self.service.metrics.observe_http(route, status)
                if not scope["path"].startswith(OPEN):
                    logs.finish(route=route, status=status, seconds=time.perf_counter() - began)

    def _preflight(self, headers: Headers, method: str) -> Response | None:
        """Return the answer to a browser that asks whether a page may call; None for other requests."""
        if method != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        if headers.get("origin", "").lower() not in self.settings.origins:
            raise _origin_refused(headers.get("origin", ""))
        allowed = {
            "Access-Control-Allow-Methods": "GET, POST, DELETE",
            "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "Content-Type"),
            "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        }
        return Response(status_code=204, headers=allowed)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raise ApiError for a request that may not pass."""
        host, origin = headers.get("host"), headers.get("origin", "").lower()
        # a stranger's name may point to a loopback address (DNS rebinding), and then be the page's own host too; every
        # browser sends the name it calls, so a request without one comes from no page
        known = host is None or names_itself(host) or host.lower() in self.hosts
        if not known and not self.keys and _is_loopback(scope):
            shown = (host or "")[:100]
            raise ApiError(403, f"{shown!r} is no name of this server; allow it with --origin http://{shown}")
        if "origin" in headers and origin not in self.settings.origins and not is_own(origin, host or ""):
            raise _origin_refused(origin)
        if scope["state"].get("crowded") and not scope["path"].startswith(OPEN):
            told = {**retry_after(RETRY_ELSEWHERE), "Connection": "close"}
            raise ApiError(503, "too many connections", type="server_error", code="overloaded", headers=told)
        key = ANYBODY if scope["path"].startswith(KEYLESS) else self._key(headers.get("authorization", ""))
        if key is None:
            raise ApiError(
                401,
                "send one of this server's keys, as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={
                    "WWW-Authenticate": 'Basic realm="jaxl", charset="UTF-8"' if self._is_page(scope) else "Bearer"
                },
            )
        scope["state"]["key"] = key
        if key.name:
            logs.note(key=key.name)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.settings.max_body:
            raise _too_large(self.settings.max_body)
        empty = length in ("", "0") and "transfer-encoding" not in headers
        if scope["method"] == "POST" and not empty and _has_route(scope):
            kind, known = media_type(headers), BODIES.get(scope["path"], (JSON,))
            if kind not in known:
                raise ApiError(415, f"Content-Type is {kind[:100]!r}; send {' or '.join(known)}", param="Content-Type")
            coding = headers.get("content-encoding", "identity")
            if coding.lower() != "identity":
                message = f"Content-Encoding is {coding[:100]!r}; send the body as it is"
                raise ApiError(415, message, param="Content-Encoding", headers={"Accept-Encoding": "identity"})

    def _is_page(self, scope: Scope) -> bool:
        """Return whether it is the web page, for which browsers ask people: any name, and a key as the password."""
        return self.settings.ui and scope["path"] == "/"

    def _key(self, authorization: str) -> Key | None:
        """Return whose key a header has; of a server without keys it is anybody's."""
        if not self.keys:
            return ANYBODY
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "basic":  # clients of A1111 can send nothing else; the key is the password
            given = _password(given)
        elif scheme.lower() != "bearer":
            return None
        return self.keys.find(given.strip())


def request_id(headers: Headers) -> str:
    """Return the client's own id of a request, if it is safe to print anywhere, or a new one."""
    asked = headers.get("x-request-id", "")
    return asked if ID.fullmatch(asked) else secrets.token_hex(16)


def media_type(headers: Headers) -> str:
    """Return the content type of a body, without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def mark(headers: MutableHeaders, id: str) -> None:
    """Set the headers that every answer has."""
    headers["X-Request-Id"] = id
    headers["X-Content-Type-Options"] = "nosniff"


def _limited(receive: Receive, most: int) -> Receive:
    """Return a `receive` that raises ApiError when a body gets too large, however it is sent, or does not come."""
    seen, more = 0, True

    async def receive_limited() -> Message:
        nonlocal seen, more
        try:
            async with asyncio.timeout(BODY_SECONDS if more else None):
                message = await receive()
        except TimeoutError:
            late = f"the rest of the body did not come within {BODY_SECONDS:g} s"
            raise ApiError(408, late, headers={"Connection": "close"}) from None
        seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
        if seen > most:
            raise _too_large(most)
        return message

    return receive_limited


def _head_alone(send: Send) -> Send:
    """Return a `send` that ends an answer after its head; for the app the client is gone then."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send(message)
            await send({"type": "http.response.body"})

    return send_head


def _has_route(scope: Scope) -> bool:
    """Return whether there is such a route; for others there is a 404, whatever the body is."""
    return any(route.matches(dict(scope))[0] is Match.FULL for route in scope["app"].routes)


def _is_loopback(scope: Scope) -> bool:
    return is_address(str((scope.get("server") or ("",))[0]), loopback=True)


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8", "replace").partition(":")[2]
    except binascii.Error:
        return ""


def _origin_refused(origin: str) -> ApiError:
    return ApiError(
        403, f"pages of {origin[:100]!r} may not call this server; allow them with --origin", param="Origin"
    )


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes", headers={"Connection": "close"})
