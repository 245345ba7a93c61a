"""Requests for pictures that do not wait for them: `Prefer: respond-async` (RFC 7240), and the jobs that come of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from jaxl.errors import InputError, OutputError
from jaxl.server.errors import RESPONSES, ApiError
from jaxl.server.jobs import webhooks
from jaxl.server.jobs.runner import shown
from jaxl.server.jobs.store import Job, JobTakenError, new_job
from jaxl.server.service import CurrentService, Service
from jaxl.server.sizes import Policy

T = TypeVar("T")

PREFERENCE = "respond-async"
WEBHOOK = "x-jaxl-webhook"
# seconds after which a client may ask again
ASK_AGAIN = "1"
MOST_LISTED = 100

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=RESPONSES)


class JobRoute(APIRoute):
    """A route whose requests may become jobs: their bodies can be read after FastAPI has read their fields."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_request(http: HttpRequest) -> Response:
            if wants_job(http):
                await http.body()  # which Starlette keeps
            return await handle(http)

        return handle_request


def wants_job(http: HttpRequest) -> bool:
    """Return whether a request is to become a job: if it asks for that, is none already, and the server has jobs."""
    asked = [each.partition(";")[0].strip().lower() for each in ",".join(http.headers.getlist("prefer")).split(",")]
    return PREFERENCE in asked and not is_job(http) and http.app.state.service.jobs is not None


def is_job(http: HttpRequest) -> bool:
    """Return whether a job is being drawn, whose client is not there."""
    return hasattr(http.state, "job")


async def accept(
    http: HttpRequest,
    service: Service,
    arguments: Mapping[str, Any],
    *,
    priority: int | None,
    policy: Policy,
    deadline: float | None,
    refused: Mapping[str, Any],
) -> Response:
    """Accept a request as a job. `refused` are fields that a job does not have, and what they have been given.

    Raises InputError, and ApiError where the key may not have it, the id is in use or the disk does not take it.
    """
    assert service.jobs is not None
    for name, value in refused.items():
        if value:
            raise InputError(name, value, "a job has one answer, which is kept; leave it out")
    key, url = http.state.key, http.headers.get(WEBHOOK)
    given = await service.check(arguments, key=key, policy=policy, deadline=deadline)
    webhook = None if url is None else webhooks.check(url, service.settings.webhook_allow)
    media_type, body = http.headers["content-type"], await http.body()
    job = new_job(
        http.state.request_id,
        key.owner,
        http.scope["path"],
        media_type,
        body,
        given["seed"],
        key.priority_of(priority),
        webhook,
    )
    job = await _kept(service.jobs.store.add, job, body)
    service.jobs.changed()
    place = str(http.url_for("job", id=job.id))
    headers = {"Location": place, "Preference-Applied": PREFERENCE, "Retry-After": ASK_AGAIN}
    return JSONResponse(await _shown(http, job, service), 202, headers)


@router.get("")
async def jobs(http: HttpRequest, service: CurrentService) -> dict[str, Any]:
    """The caller's latest jobs, the latest first."""
    if service.jobs is None:
        return {"object": "list", "data": []}
    found = await _kept(service.jobs.store.of, http.state.key.owner, MOST_LISTED)
    return {"object": "list", "data": [await _shown(http, job, service) for job in found]}


@router.get("/{id}")
async def job(http: HttpRequest, id: str, service: CurrentService) -> dict[str, Any]:
    """Where a job stands; its id is the X-Request-Id that came with its request, or with the answer to that."""
    return await _shown(http, await _find(http, id, service), service)


@router.get(
    "/{id}/answer", name="job_answer", response_class=Response, responses={200: {"content": {"application/json": {}}}}
)
async def answer(http: HttpRequest, id: str, service: CurrentService) -> Response:
    """The answer that the request would have got without `Prefer`, or the job with status 202 until there is one."""
    found = await _find(http, id, service)
    if found.ended is None or service.jobs is None:
        return JSONResponse(await _shown(http, found, service), 202, {"Retry-After": ASK_AGAIN})
    data = await _kept(service.jobs.store.answer, found)
    return Response(data, found.status or 200, {"Cache-Control": "no-store"}, "application/json")


@router.delete("/{id}")
async def forget(http: HttpRequest, id: str, service: CurrentService) -> dict[str, Any]:
    """Forget a job with its answer; one that has none yet is not drawn any more."""
    found = await _find(http, id, service)
    if service.jobs is not None:
        await _kept(service.jobs.store.forget, found)
        service.jobs.cancel(id)
    return {"id": id, "object": "job", "deleted": True}


async def _kept(use: Callable[..., T], *given: Any) -> T:
    """Use the store, which waits for the disk. Raises ApiError where that does not do what is needed."""
    try:
        return await asyncio.to_thread(use, *given)
    except JobTakenError as error:
        raise ApiError(409, str(error), param="X-Request-Id") from None
    except OutputError as error:
        raise ApiError(507, str(error), type="server_error", code="jobs_full") from None


async def _find(http: HttpRequest, id: str, service: Service) -> Job:
    found = None
    if service.jobs is not None:
        found = await _kept(service.jobs.store.find, id, http.state.key.owner)
    if found is None:
        raise ApiError(404, f"no job {id[:64]!r} is here; its time may be over", code="job_not_found")
    return found


async def _shown(http: HttpRequest, job: Job, service: Service) -> dict[str, Any]:
    """Return what a client may know of a job: as `shown`, and how far it is, or where its answer is."""
    known = shown(job)
    if job.ended is not None:
        return {**known, "answer": str(http.url_for("job_answer", id=job.id))}
    assert service.jobs is not None
    if job.id in service.jobs.running:
        stream = service.live.get(job.id)
        status = None if stream is None else service.engine.status(stream.ticket)
        done, total = (0, 0) if status is None else (status.done, status.total)
        return {**known, "state": "running", "position": 0, "done": done, "total": total}
    return {**known, "position": await _kept(service.jobs.store.ahead, job)}
