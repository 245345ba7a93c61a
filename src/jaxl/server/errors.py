"""Errors as clients get them: OpenAI's `{"error": {"message", "type", "param", "code"}}`, and A1111's under /sdapi/.

https://platform.openai.com/docs/guides/error-codes has the types and codes that OpenAI's clients know.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxl.errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    EngineError,
    InputError,
    JaxlError,
    NonFiniteError,
    QueueFullError,
    respelled,
)
from jaxl.server import logs

# seconds until another server, or this one after a restart, may be there
RETRY_ELSEWHERE = 5
# clients that are turned away together come back within this part of the time that they are told, at least in so many
SPREAD, LEAST_SPREAD = 0.5, 2.0  # seconds
# OpenAI's clients heed this; the same request would fail again
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}
# names of fields, and indices
MOST_SHOWN = 60
PLAIN = re.compile(rf"[\w\[\].-]{{1,{MOST_SHOWN}}}")


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorObject


class A1111ErrorBody(BaseModel):
    error: str
    detail: str
    body: str
    errors: str


def responses(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return the schema's responses for routes whose errors have this shape."""
    return {
        "4XX": {"description": "The request cannot be drawn.", "model": body},
        "5XX": {"description": "The server could not draw it.", "model": body},
    }


RESPONSES, A1111_RESPONSES = responses(ErrorBody), responses(A1111ErrorBody)


class ApiError(HTTPException):
    """An answer with an HTTP status and OpenAI's error object; `param` is the field, as the client calls it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.param = param
        self.code = code
        self.type = type


def fields(names: Mapping[str, str]) -> Callable[[Request], None]:
    """Return a dependency for routes whose clients have other `names` for arguments of `Pipeline.generate`."""

    def remember(http: Request) -> None:
        http.state.fields = names

    return remember


def api_error(error: BaseException, names: Mapping[str, str] | None = None) -> ApiError:
    """Return what a client is told of an error, and log an unexpected one; `names` are those of `fields`."""

    def field(name: str, value: str | None = None) -> str:
        own = (names or {}).get(name, name)
        return own if value is None else f"{own}={value}"

    message = respelled(str(error), field)
    match error:
        case ApiError():
            return error
        case InputError(argument=argument, shown=shown, remedy=remedy):
            name = field(argument)
            return ApiError(400, f"{name}={shown}: {respelled(remedy, field)}", param=name)
        case RequestValidationError():
            return _invalid(error)
        case QueueFullError():
            return limited(message, error.retry_after)
        case DrainingError():
            return ApiError(503, message, type="server_error", code="draining", headers=retry_after(RETRY_ELSEWHERE))
        case DeadlineError():
            return ApiError(504, message, type="server_error", code="deadline_exceeded", headers=NO_RETRY)
        case CancelledError():
            return ApiError(499, message, code="cancelled")
        case NonFiniteError():
            return ApiError(500, message, type="server_error", code="non_finite", headers=NO_RETRY)
        case EngineError():
            return ApiError(500, message, type="server_error", code="engine_error")
        case HTTPException(status_code=404, detail="Not Found"):
            return ApiError(404, "there is no such route; /openapi.json lists those there are")
        case HTTPException(status_code=405, headers=headers):
            allowed = (headers or {}).get("Allow", "another method")
            return ApiError(405, f"this method is not known here; send {allowed}", headers=headers)
        case HTTPException(__cause__=UnicodeDecodeError() as cause):
            place = f"byte 0x{cause.object[cause.start]:02x} at {cause.start}"
            return ApiError(400, f"the body is not UTF-8 ({place}); encode it as UTF-8")
        case HTTPException(__cause__=RecursionError()):
            return ApiError(400, "the body is nested too deeply")
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
        case _:
            logs.log.error("an error that nobody expected", exc_info=error)
            return ApiError(
                500, "something went wrong here; the log has it under the request's id", type="server_error"
            )


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that tells when to come back: then or a little later, so that not all come at once."""
    return {"Retry-After": str(math.ceil(seconds + random.uniform(0, max(SPREAD * seconds, LEAST_SPREAD))))}


def limited(message: str, seconds: float) -> ApiError:
    """Return the error of a request that may come again after so many seconds."""
    headers = retry_after(max(seconds, 1.0))
    return ApiError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)


def error_object(error: ApiError) -> dict[str, Any]:
    return {"error": {"message": error.detail, "type": error.type, "param": error.param, "code": error.code}}


def answer(error: ApiError, path: str) -> JSONResponse:
    """Return the response to a request for `path`."""
    body = error_object(error)
    if path.startswith(("/sdapi/", "/controlnet/")):  # the shape of `modules/api/api.py` in AUTOMATIC1111's web UI
        body = {"error": error.type, "detail": error.detail, "body": "", "errors": error.detail}
    return JSONResponse(body, error.status_code, error.headers)


def install(app: FastAPI) -> None:
    """Let the app answer in these shapes; unexpected errors are left to `jaxl.server.guard`."""

    def handle(http: Request, error: Exception) -> Response:
        return answer(api_error(error, getattr(http.state, "fields", None)), http.url.path)

    for kind in (HTTPException, RequestValidationError, JaxlError):
        app.add_exception_handler(kind, handle)


def _invalid(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    # the client's text may be long, so it is left out; the place of a mistake in JSON is a number
    place = [_shown(str(part)) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['ctx']['error']} at character {place[0]}")
    if not place:
        return ApiError(400, f"the body: {first['msg']}")
    param = ".".join(place)
    return ApiError(400, f"{param}: {first['msg']}", param=param)


def _shown(part: str) -> str:
    """Return a part of a mistake's place as a line has it: the client may have named it."""
    return part if PLAIN.fullmatch(part) else ascii(part[:MOST_SHOWN])
