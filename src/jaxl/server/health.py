"""Routes for probes, which ask whether the server lives and is ready, for Prometheus, and for plots."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from jaxl.engine.engine import STALLED_SECONDS
from jaxl.server.metrics import CONTENT_TYPE
from jaxl.server.service import CurrentService

router = APIRouter(tags=["operations"])


@router.get("/health/live")
async def live(service: CurrentService) -> JSONResponse:
    """200 unless the devices are stuck, or failed several times in a row, so that a restart is due."""
    if service.engine.stalled(STALLED_SECONDS) or not service.engine.healthy:
        return state("stalled", 503)
    return state("live")


@router.get("/health/ready")
async def ready(service: CurrentService) -> JSONResponse:
    """200 while new requests are taken."""
    if service.ready:
        return state("ready")
    return state("draining" if service.engine.draining else "broken", 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: CurrentService) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/stats")
def stats(service: CurrentService) -> dict[str, Any]:
    """What the server does, for people to look at: rates are of the last minute, latencies of recent requests.

    `history` has the last ten minutes: lists of a value for each step of `every` seconds, the oldest first.
    """
    engine, past = service.engine.stats(), service.metrics.history
    recent = past.latencies()
    usd, rate = service.settings.usd_per_hour, engine.images_per_second
    p50, p95 = (float(each) for each in np.quantile(recent, (0.5, 0.95))) if recent else (None, None)
    return {
        "model": service.settings.model,
        "uptime": time.time() - service.created,
        "images": engine.images_done,
        "images_per_second": rate,
        "steps_per_second": engine.rows_per_second,
        "waiting": engine.waiting,
        "running": engine.running,
        "places": engine.places,
        "latency": {"p50": p50, "p95": p95, "requests": len(recent)},
        "history": past.steps(service.engine.tickets()),
        "usd_per_hour": usd,
        "usd_per_image": None if usd is None or not rate else usd / 3600 / rate,
    }


def state(name: str, status: int = 200) -> JSONResponse:
    return JSONResponse({"status": name}, status)
