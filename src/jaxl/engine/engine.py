"""The loop: requests join and leave the running batches between calls, so that the chip stays full.

One thread calls the devices. Each turn it frees the places of cancelled requests, picks the lane whose images are the
most urgent, fills its free places with those that wait, and asks for some rows of all its images. Then it waits for
the call before that one, and tells what came of it; so the devices always have one to go on with. Images that are done
are decoded beside the next calls. Nothing an image is made of depends on its neighbours.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image

from jaxl.engine import forecast, turns
from jaxl.engine.backend import Backend, Lora, Served
from jaxl.engine.forecast import Average, Window
from jaxl.engine.lane import Call, Lane, Work
from jaxl.engine.request import Drawn, Event, Preview, Progress, Request, Result, Started, Status, Ticket
from jaxl.errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    EngineError,
    JaxlError,
    QueueFullError,
    UnloadedError,
)

# after so many failed calls in a row the devices are taken to be broken
MOST_FAILURES = 3
# a call is meant to take a fraction of a second; after one that takes so long only a new process helps
STALLED_SECONDS = 300.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stats:
    """Counts since the start, and gauges: `waiting` and `running` images, `places` in open batches, recent rates."""

    images_done: int = 0
    requests_done: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    requests_refused: int = 0
    rows_done: int = 0
    calls: int = 0
    busy_seconds: float = 0.0
    waiting: int = 0
    running: int = 0
    places: int = 0
    images_per_second: float = 0.0
    rows_per_second: float = 0.0


class Engine:
    """Draws the images of many requests at once on what `backend` has loaded.

    max_waiting: images that may wait for a place; further requests are turned away.
    joins: whether requests join a batch that runs; False is static batching, for comparison.
    quantum: seconds that a call of more than one row may take; images wait as long to join, to leave or to be shown.
    """

    def __init__(self, backend: Backend, *, max_waiting: int = 64, joins: bool = True, quantum: float = 0.05):
        self.backend: Backend | None = backend
        self.max_waiting = max_waiting
        self.joins = joins
        self.quantum = quantum
        self.draining = False
        self._places = backend.sizes[-1]
        self._failures = 0
        self._closed = False
        self._waiting: list[Work] = []
        self._finishing = 0
        self._lanes: dict[tuple[int, Hashable], Lane] = {}
        self._tickets: dict[Ticket, None] = {}  # a set in order
        self._counts = {field.name: 0 for field in fields(Stats)}
        self._busy_seconds = 0.0
        self._call_began: float | None = None
        self._landed = 0.0  # when the devices were done with the call before
        self._image_rate, self._row_rate, self._row_seconds = Window(), Window(), Average()
        self._wake = threading.Condition()
        self._finisher = ThreadPoolExecutor(2, thread_name_prefix="finish image")
        self._remaker = ThreadPoolExecutor(2, thread_name_prefix="remake state")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def __enter__(self) -> Engine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Cancel all requests, and stop."""
        self.draining = True
        for ticket in self.tickets():
            ticket.cancel()
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join()
        self._finisher.shutdown()
        self._remaker.shutdown()

    def drain(self, timeout: float) -> bool:
        """Take nothing new and wait until all is done; False if that takes longer than `timeout` seconds."""
        with self._wake:
            self.draining = True
            return self._wake.wait_for(lambda: not self._tickets, timeout)

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> Ticket:
        """Check a request and put it in the queue; the engine's threads call `listener` with its events.

        Raises InputError for the arguments, QueueFullError, DrainingError and UnloadedError. The ticket's `future`
        gives the Result, or raises NonFiniteError, DeadlineError, CancelledError or EngineError.
        """
        if self.draining:
            raise DrainingError("the server is stopping; try again later")
        backend = self.backend
        if backend is None:
            raise UnloadedError("the model is unloaded; load it again")
        drawings = backend.read(request.arguments)
        rows = sum(stage.rows for drawing in drawings for stage in drawing.stages)
        seeds = [drawing.seed for drawing in drawings]
        ticket = Ticket(
            request, seeds, drawings[0].scheduler, rows, listener, self._cancel, drawings[0].facts, self._stop
        )
        with self._wake:
            if self._waiting and len(self._waiting) + len(drawings) > self.max_waiting:
                self._counts["requests_refused"] += 1
                raise QueueFullError(len(self._waiting), self._room_in(len(drawings)))
            self._tickets[ticket] = None
            for index, drawing in enumerate(drawings):
                bisect.insort(self._waiting, Work(ticket, index, drawing, backend), key=lambda work: work.order)
            self._wake.notify_all()
        return ticket

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Raise InputError for arguments that `submit` would not take, as far as that can be told now."""
        if (backend := self.backend) is not None:
            backend.check(arguments)

    def replace(self, backend: Backend) -> None:
        """Draw new requests with another backend; the requests already here stay with theirs."""
        with self._wake:
            self.backend, self._places = backend, backend.sizes[-1]
            self._wake.notify_all()  # so that the loop drops the old one's lanes

    def unload(self) -> bool:
        """Give the backend up, so that its memory is free, until `replace` gives another; False if it has requests."""
        with self._wake:
            if self._tickets:
                return False
            self.backend = None
            self._lanes.clear()
            self._wake.notify_all()
            return True

    def tickets(self) -> list[Ticket]:
        with self._wake:
            return list(self._tickets)

    def models(self) -> Sequence[Served]:
        """Return the models that requests may choose from; none where there is one, or while it is unloaded."""
        backend = self.backend
        return () if backend is None else backend.models()

    def loras(self) -> Sequence[Lora]:
        """Return the LoRAs that requests may ask for; none while the model is unloaded."""
        backend = self.backend
        return () if backend is None else backend.loras()

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Return a picture in mode RGB in another size, (width, height), by an upscaler; it runs beside the lanes.

        Raises InputError for a name that there is not, NonFiniteError, DrainingError, UnloadedError and EngineError.
        """
        if self.draining:
            raise DrainingError("the server is stopping; try again later")
        backend = self.backend
        if backend is None:
            raise UnloadedError("the model is unloaded; load it again")
        try:
            return backend.upscale(name, picture, size)
        except JaxlError:
            raise
        except Exception as error:  # whatever failed on the devices
            log.exception("a picture was not enlarged", exc_info=error)
            raise _engine_error(error) from error

    @property
    def healthy(self) -> bool:
        """False once the loop has ended or several calls in a row have failed."""
        return self._thread.is_alive() and self._failures < MOST_FAILURES

    def stalled(self, seconds: float) -> bool:
        """Return whether a call has been under way for more than `seconds`."""
        began = self._call_began
        return began is not None and time.monotonic() - began > seconds

    def stats(self) -> Stats:
        with self._wake:
            works = [work for lane in self._lanes.values() for work in lane.places]
            return Stats(
                **{
                    **self._counts,
                    "busy_seconds": self._busy_seconds,
                    "waiting": len(self._waiting),
                    "running": sum(work is not None for work in works),
                    "places": len(works),
                    "images_per_second": self._image_rate.rate(),
                    "rows_per_second": self._row_rate.rate(),
                }
            )

    def status(self, ticket: Ticket) -> Status:
        with self._wake:
            first = next((work for work in self._waiting if work.ticket is ticket), None)
            if ticket.state != "queued" or first is None:
                return ticket.status(0, 0.0)
            return ticket.status(self._waiting.index(first), self._starts(first.lane)[first])

    def _starts(self, key: Hashable) -> dict[Work, float]:
        """Return the seconds until each image that waits for a lane begins, estimated from the time of past rows."""
        waiting = [work for work in self._waiting if work.lane == key]
        lane = self._lanes.get((id(self.backend), key))
        remaining = [work.rows_left for _, work in lane.running()] if lane else []
        row_seconds = (lane.row_seconds.value if lane else None) or self._row_seconds.value or 0.0
        active = sum(lane.count > 0 for lane in self._lanes.values()) or 1
        begun = forecast.starts(remaining, self._places, [work.rows_left for work in waiting])
        return {work: rows * row_seconds * active for work, rows in zip(waiting, begun, strict=True)}

    def _room_in(self, images: int) -> float:
        """Return the seconds until that many of the waiting images have begun, at least 1."""
        seconds = sorted(at for key in {work.lane for work in self._waiting} for at in self._starts(key).values())
        return max(1.0, seconds[min(images, len(seconds)) - 1])

    def _settle(self, ticket: Ticket, outcome: Result | JaxlError) -> None:
        """Give a ticket its end, unless it has one."""
        with self._wake:
            if not ticket.settle(outcome):
                return
            self._tickets.pop(ticket, None)
            self._counts[f"requests_{ticket.state}"] += 1
            self._wake.notify_all()

    def _cancel(self, ticket: Ticket) -> None:
        self._settle(ticket, CancelledError("the request was cancelled"))

    def _stop(self, ticket: Ticket) -> None:
        with self._wake:
            ticket.stopped = True
            self._wake.notify_all()

    def _run(self) -> None:
        under_way: Call | None = None
        while True:
            if under_way is not None and under_way.mark.is_ready():
                self._land(under_way, None)
                under_way = None
            self._finish_stopped()
            with self._wake:
                self._drop_unwanted()
                self._attend(under_way)
                self._close_lanes()
                self._prepare()
                lane, joining = self._next_turn()
                if lane is None and under_way is None:
                    if self._closed:
                        return
                    self._wake.wait(self._seconds_to_deadline())
                    continue
            following = None if lane is None else self._call(lane, joining)
            if under_way is not None:
                following = self._land(under_way, following)
            under_way = following
            del lane, joining, following  # else they would hold a backend that `unload` gives up

    def _finish_stopped(self) -> None:
        """Have the images of stopped tickets that have begun finished as they are, and give up the others."""
        with self._wake:
            stopped = {ticket for ticket in self._tickets if ticket.stopped}
            works = [work for work in self._waiting if work.ticket in stopped]
            self._waiting = [work for work in self._waiting if work.ticket not in stopped]
        for lane in list(self._lanes.values()) if stopped else ():
            here = [(place, work) for place, work in lane.running() if work.ticket in stopped]
            try:
                works += [lane.leave(place) for place, _ in here]
            except Exception as error:
                self._fail(lane, [work for _, work in here], error)
        for work in works:
            if not work.rows_done:
                work.ticket.left.discard(work.index)
                continue
            try:
                picture = work.finish(early=True)
            except Exception as error:
                log.exception("an image was not finished early", exc_info=error)
                self._settle(work.ticket, _engine_error(error))
                continue
            with self._wake:
                self._finishing += 1
            self._finisher.submit(self._finish, work, picture)
        for ticket in stopped:
            ticket.stopped = False  # nothing more is to be done about it
            if not ticket.left:
                drawn = any(image is not None for image in ticket.images)
                self._settle(ticket, ticket.result() if drawn else CancelledError("the request was cancelled"))

    def _drop_unwanted(self) -> None:
        now = time.monotonic()
        for ticket in [ticket for ticket in self._tickets if ticket.expires < now]:
            seconds = ticket.request.deadline
            self._settle(ticket, DeadlineError(f"the images were not done within {seconds:g} s"))
        works = [*self._waiting, *(work for lane in self._lanes.values() for _, work in lane.running())]
        unwanted = {work.ticket for work in works if work.ticket.future.done()}
        if unwanted:
            self._waiting = [work for work in self._waiting if work.ticket not in unwanted]
            for lane in self._lanes.values():
                lane.drop(unwanted)

    def _attend(self, under_way: Call | None) -> None:
        """Tell each backend who waits for it, and which images in the making use it."""
        running = [work for lane in self._lanes.values() for _, work in lane.running()]
        running += [work for work in self._waiting if work.stage]
        running += [] if under_way is None else [work for _, work, _ in under_way.progress]
        backends = {id(work.backend): work.backend for work in (*self._waiting, *running)}
        for backend in backends.values():
            waiting = [work.drawing for work in self._waiting if not work.stage and work.backend is backend]
            used_by = [work.drawing for work in running if work.backend is backend]
            backend.attend(waiting, used_by, self._notify)

    def _close_lanes(self) -> None:
        """Give up lanes that have no images and do not stay, unless one is about to come."""
        for key, lane in list(self._lanes.items()):
            stays = lane.count or (lane.backend is self.backend and lane.backend.keeps(lane.key))
            coming = (work for work in self._waiting if work.drawing.ready)
            if not stays and all((id(work.backend), work.lane) != key for work in coming):
                del self._lanes[key]

    def _prepare(self) -> None:
        """Have the images that join next made ready, as many in each lane as have places, and tell which cannot be."""
        ahead = Counter()
        for work in self._waiting:
            if work.drawing.failed is not None:
                self._settle(work.ticket, work.drawing.failed)
            key = id(work.backend), work.lane
            if ahead[key] < work.backend.sizes[-1] and not work.drawing.ready:
                work.drawing.prepare(self._notify)
            ahead[key] += 1

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _seconds_to_deadline(self) -> float | None:
        expires = min((ticket.expires for ticket in self._tickets), default=float("inf"))
        return None if expires == float("inf") else max(expires - time.monotonic(), 0.0) + 0.001

    def _next_turn(self) -> tuple[Lane | None, list[Work]]:
        """Return the lane that goes on, if one has something to do, and the images that get a place in it, which wait
        no more.
        """
        joining: dict[Lane, list[Work]] = {lane: [] for lane in self._lanes.values() if lane.count}
        for work in self._waiting if self._has_room() else ():
            if not work.ready:
                continue
            lane = self._lanes.setdefault((id(work.backend), work.lane), Lane(work.backend, work.lane))
            if self.joins or not lane.count:
                own = joining.setdefault(lane, [])
                if lane.count + len(own) < lane.most:
                    own.append(work)
        now = time.monotonic()
        first = max(joining, key=lambda lane: self._urgency(lane, joining[lane], now), default=None)
        fitting = [] if first is None else joining[first]
        self._waiting = [work for work in self._waiting if work not in fitting]
        return first, fitting

    def _urgency(self, lane: Lane, joining: Sequence[Work], now: float) -> float:
        row_seconds = lane.row_seconds.value or self._row_seconds.value or 1.0
        works = [*joining, *(work for _, work in lane.running())]
        return turns.urgency(work.claim(now, row_seconds) for work in works)

    def _has_room(self) -> bool:
        """Return whether images may begin: not while many others wait to be decoded."""
        return self._finishing < 2 * self._places

    def _call(self, lane: Lane, joining: list[Work]) -> Call | None:
        """Ask the devices for rows of a lane; None if nobody is there, or if it failed."""
        works = [*joining, *(work for _, work in lane.running())]
        try:
            lane.fit(len(works))
            for work in joining:
                self._begin(lane, work)
            if not lane.count:
                return None
            began = time.monotonic()
            self._call_began = self._call_began or began
            call = lane.run(lane.rows_of_call(self.quantum), began)
        except Exception as error:  # whatever failed on the devices, the listeners must hear of it
            self._fail(lane, works, error)
            return None
        with self._wake:
            for work in call.onward:
                bisect.insort(self._waiting, work, key=lambda work: work.order)
        return call

    def _land(self, call: Call, following: Call | None) -> Call | None:
        """Wait for a call, and tell its tickets what came of it; return the one that follows, unless it fails too."""
        try:
            call.mark.block_until_ready()
            pictures = None if call.previews is None else call.previews()
        except Exception as error:
            lost = [call, following] if following is not None and following.lane is call.lane else [call]
            self._fail(call.lane, [work for each in lost for _, work, _ in each.progress], error)
            return None if following in lost else following
        self._failures = 0
        self._count(call)
        self._call_began = None if following is None else time.monotonic()
        for place, work, done in call.progress:
            work.ticket.tell(Progress(work.index, done, work.total))
            if pictures is not None and place in call.shown:
                work.ticket.tell(Preview(work.index, done, work.total, pictures[place]))
        with self._wake:
            self._finishing += len(call.drawn) + len(call.remade)
        for work, picture in call.drawn:
            self._finisher.submit(self._finish, work, picture)
        for work, state in call.remade:
            self._remaker.submit(self._remake, work, state)
        return following

    def _count(self, call: Call) -> None:
        now, images = time.monotonic(), len(call.progress)
        seconds = now - max(call.began, self._landed)
        with self._wake:
            self._landed = now
            call.lane.row_seconds.add(seconds / call.rows)
            self._row_seconds.add(seconds / call.rows)
            self._row_rate.add(call.rows * images)
            self._counts["rows_done"] += call.rows * images
            self._counts["calls"] += 1
            self._busy_seconds += seconds
            for _, work, _ in call.progress:
                work.ticket.done += call.rows
                work.ticket.seconds += seconds / images

    def _begin(self, lane: Lane, work: Work) -> None:
        first = work.stage == 0
        try:
            lane.join(work)
        except JaxlError as error:  # the fault of this image alone
            self._settle(work.ticket, error)
            return
        if first:
            work.ticket.start()
            work.ticket.tell(Started(work.index))

    def _remake(self, work: Work, state: Callable[[], Any]) -> None:
        """Make the state that an image's stage begins with; a thread of the remaker's runs this."""
        try:
            work.state = None if work.ticket.future.done() else state()
        except Exception as error:
            self._settle(work.ticket, error if isinstance(error, JaxlError) else _engine_error(error))
        finally:
            with self._wake:
                work.remade = False
                self._finishing -= 1
                self._wake.notify_all()

    def _finish(self, work: Work, picture: Callable[[], Image.Image]) -> None:
        """Wait for a picture and give it to its ticket; a thread of the finisher's runs this."""
        ticket = work.ticket
        try:
            drawn = picture()
        except Exception as error:
            self._settle(ticket, error if isinstance(error, JaxlError) else _engine_error(error))
            return
        finally:
            with self._wake:
                self._finishing -= 1
                self._wake.notify_all()
        with self._wake:
            ticket.images[work.index] = drawn
            ticket.left.discard(work.index)
            self._counts["images_done"] += 1
            self._image_rate.add(1)
            last = not ticket.left
        ticket.tell(Drawn(work.index, drawn))
        if last:
            self._settle(ticket, ticket.result())

    def _fail(self, lane: Lane, works: list[Work], error: Exception) -> None:
        """Tell everybody in a lane, and these works, that the devices failed, and begin with an empty one."""
        log.exception("a call failed; its images are lost", exc_info=error)
        self._call_began = None
        with self._wake:
            self._failures += 1
            self._lanes = {key: each for key, each in self._lanes.items() if each is not lane}
        for ticket in {work.ticket for work in (*works, *(work for _, work in lane.running()))}:
            self._settle(ticket, _engine_error(error))


def _engine_error(error: BaseException) -> EngineError:
    return EngineError(f"the devices failed: {' '.join(str(error).split())[:200] or type(error).__name__}")
