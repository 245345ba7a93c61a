"""The engine of a server with replicas: each draws a whole request, or as large a part as it has places for.

Ray sees each part as a request of its own, for which `jaxl.server.ray.router` chooses the replica. No image depends on
its neighbours, so if a replica is gone, another one draws its images again, and they are the same.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from jaxl.call.seeds import counts_up, of_image
from jaxl.engine import Drawn, Event, Preview, Progress, Request, Result, Started, Status, Ticket
from jaxl.engine.backend import Lora, Served
from jaxl.engine.engine import Stats
from jaxl.engine.forecast import Window
from jaxl.engine.request import new_id
from jaxl.errors import CancelledError, DeadlineError, DrainingError, EngineError, JaxlError, QueueFullError
from jaxl.server.ray.replica import Accepted, Description, Message, Spent
from jaxl.server.settings import EngineOptions

# after so many replicas died while they drew an image, the image is taken to be the reason
MOST_DEATHS = 3
# seconds
WATCH_EVERY, WATCH_SECONDS = 1.0, 10.0
CLOSE_SECONDS = 5.0
RETRY_WITHOUT_REPLICA = 10.0

log = logging.getLogger(__name__)


@dataclass
class Wait:
    """A part of a request that waits for its replica: `timeout` moves it elsewhere, `said` is its last status."""

    timeout: asyncio.Timeout
    images: int
    said: Status | None = None
    said_at: float = 0.0


class Order:
    """A request on its way, and how far each of its images is."""

    def __init__(self, ticket: Ticket):
        images = len(ticket.images)
        self.ticket = ticket
        self.accepted: Future[None] = Future()  # done when every image is in a replica's queue
        self.unaccepted = set(range(images))
        self.unstarted = set(range(images))
        self.done = [0] * images  # rows
        self.shown = [0] * images  # the row of the last preview
        self.waits: dict[int, Wait] = {}  # by the first image of the part
        self.task: asyncio.Task[None] | None = None


class Fleet:
    """Has the methods of `Engine` that the server uses, and may be called from any thread.

    handle: Ray's, of the deployment of replicas. max_waiting: images that may wait while there is no replica; in the
    queue of a replica its engine limits them.
    """

    def __init__(self, handle: DeploymentHandle[Any], max_waiting: int = EngineOptions.max_waiting):
        self.handle = handle
        self._draws = handle.options(method_name="draw", stream=True)
        self.max_waiting = max_waiting
        self.draining = False
        self.places = 1  # of one replica
        self._orders: dict[Ticket, Order] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # of the orders
        self._sending: dict[asyncio.Future[Message | None], int] = {}  # calls without an answer: their images
        self._counts: dict[str, int] = dict.fromkeys(("images", "done", "failed", "cancelled", "refused", "rows"), 0)
        self._image_rate, self._row_rate = Window(), Window()
        self._replicas: set[str] = set()  # the ids of the live ones
        self._models: Sequence[Served] = ()
        self._said: dict[str, Stats] = {}  # the last counts of each, also of those that are gone
        self._served_at = time.monotonic()
        self._wake = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fleet", daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def close(self) -> None:
        """Cancel all requests, and stop."""
        self.draining = True
        for ticket in self.tickets():
            ticket.cancel()

        async def stop() -> None:
            for tasks in (self._tasks, self._sending):
                if tasks:
                    await asyncio.wait(list(tasks), timeout=CLOSE_SECONDS)
            if rest := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in rest:
                    task.cancel()
                await asyncio.wait(rest, timeout=CLOSE_SECONDS)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def describe(self) -> Description:
        """Return the description of a replica, and wait until there is one."""
        description = self.handle.describe.remote().result()
        self.places, self._models = description.places, description.models
        return description

    def drain(self, timeout: float) -> bool:
        """Take nothing new and wait until all is done; False if that takes longer than `timeout` seconds."""
        with self._wake:
            self.draining = True
            return self._wake.wait_for(lambda: not self._orders, timeout)

    def submit(self, request: Request, listener: Callable[[Event], None] | None = None) -> Ticket:
        """Have a request drawn as `Engine.submit` does; return when each image is in the queue of a replica.

        Its arguments must have a `seed`, that of the first image.
        """
        if self.draining:
            raise DrainingError("the server is stopping; try again later")
        images, seed = request.arguments.get("num_images", 1), request.arguments["seed"]
        counts = counts_up(request.arguments)
        seeds = [seed + i * counts for i in range(images)]
        ticket = Ticket(
            request, seeds, "", 0, listener, lambda _: self._cancel(order), stop=lambda _: self._stop(order)
        )
        order = Order(ticket)
        with self._wake:
            waiting = sum(len(each.unaccepted) for each in self._orders.values())
            waiting = max(waiting, sum(self._sending.values()))  # cancelled calls without an answer count too
            if waiting and waiting + images > self.max_waiting:
                self._counts["refused"] += 1
                raise QueueFullError(waiting, RETRY_WITHOUT_REPLICA)
            self._orders[ticket] = order
        asyncio.run_coroutine_threadsafe(self._draw_all(order), self._loop)
        order.accepted.result()
        return ticket

    def models(self) -> Sequence[Served]:
        """Return the models, as each replica has all; they are where the replica has them that told of them first."""
        return self._models

    def check(self, arguments: Mapping[str, Any]) -> None:
        """Pass everything: only a replica knows what it draws."""

    def loras(self) -> Sequence[Lora]:
        """Return the LoRAs that a replica finds, as each has the same folder; none if no replica answers in time."""
        try:
            return self.handle.loras.remote().result(timeout_s=WATCH_SECONDS)
        except (RayError, DeploymentUnavailableError, TimeoutError):
            log.warning("no replica tells its LoRAs")
            return ()

    def upscale(self, name: str, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """Have a replica do what `Engine.upscale` does."""
        if self.draining:
            raise DrainingError("the server is stopping; try again later")
        try:
            made = self.handle.upscale.remote(name, picture, size).result()
        except (RayError, DeploymentUnavailableError) as error:
            raise EngineError(f"a replica failed: {' '.join(str(error).split())[-200:]}") from error
        if isinstance(made, JaxlError):
            raise made
        return made

    def tickets(self) -> list[Ticket]:
        with self._wake:
            return list(self._orders)

    @property
    def healthy(self) -> bool:
        return self._thread.is_alive()

    def stalled(self, seconds: float) -> bool:
        """Return whether images wait, and there has been no replica for more than `seconds`."""
        return bool(self._orders) and time.monotonic() - self._served_at > seconds

    def stats(self) -> Stats:
        """Return the sums over all replicas. `calls` and `busy_seconds` may be a second old."""
        with self._wake:
            orders, counts = list(self._orders.values()), self._counts
            waiting = sum(len(order.unstarted) for order in orders)
            undrawn = sum(image is None for order in orders for image in order.ticket.images)
            said = self._said.values()
            return Stats(
                images_done=counts["images"],
                requests_done=counts["done"],
                requests_failed=counts["failed"],
                requests_cancelled=counts["cancelled"],
                requests_refused=counts["refused"],
                rows_done=counts["rows"],
                calls=sum(each.calls for each in said),
                busy_seconds=sum(each.busy_seconds for each in said),
                waiting=waiting,
                running=undrawn - waiting,
                places=self.places * len(self._replicas),
                images_per_second=self._image_rate.rate(),
                rows_per_second=self._row_rate.rate(),
            )

    def status(self, ticket: Ticket) -> Status:
        with self._wake:
            order = self._orders.get(ticket)
            said = [(each.said, each.said_at) for each in order.waits.values() if each.said] if order else []
            if ticket.state != "queued" or not said:
                return ticket.status(0, 0.0)
            first, at = min(said, key=lambda each: each[0].starts_in)
            return ticket.status(first.position, max(first.starts_in - (time.monotonic() - at), 0.0))

    async def _draw_all(self, order: Order) -> None:
        ticket = order.ticket
        if ticket.future.done():
            return
        order.task = asyncio.current_task()
        assert order.task is not None
        self._tasks.add(order.task)
        order.task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(ticket.request.deadline):
                await self._draw_parts(order, range(len(ticket.images)))
        except TimeoutError:
            self._end(order, DeadlineError(f"the images were not done within {ticket.request.deadline:g} s"))
        except JaxlError as error:
            self._end(order, error)
        except Exception as error:
            log.exception("a replica failed", exc_info=error)
            self._end(order, EngineError(f"a replica failed: {' '.join(str(error).split())[-200:]}"))
        else:
            self._end(order, ticket.result())

    async def _draw_parts(self, order: Order, images: Sequence[int], deaths: int = 0) -> None:
        """Have images drawn, each part by one replica."""
        tasks = [asyncio.create_task(self._draw(order, part, deaths)) for part in parts(images, self.places)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _draw(self, order: Order, part: range, deaths: int) -> None:
        """Have a part drawn by one replica, and the rest of it by others if that one dies."""
        ticket = order.ticket
        own = of_image(ticket.request.arguments, ticket.seeds[part[0]], part[0])
        arguments = {**ticket.request.arguments, **own, "num_images": len(part)}
        left = None if ticket.expires == float("inf") else max(ticket.expires - time.monotonic(), 0.0)
        call: Any = self._draws.remote(replace(ticket.request, arguments=arguments, id=new_id(), deadline=left))
        messages = aiter(call)
        first = self._first(messages, len(part))
        try:
            async with asyncio.timeout(None) as timeout:
                with self._wake:
                    order.waits[part[0]] = Wait(timeout, len(part))
                message = await asyncio.shield(first)
                while message is not None:
                    self._hear(order, part, message)
                    message = await anext(messages, None)
        except asyncio.CancelledError:
            first.add_done_callback(lambda _: call.cancel())
            raise
        except TimeoutError:  # `_move` made it
            call.cancel()
            deaths -= 1
        except (RayTaskError, TaskCancelledError):
            raise
        except RayError:
            log.warning("a replica is gone; others draw what it had")
        undrawn = [index for index in part if ticket.images[index] is None]
        if undrawn:
            with self._wake:
                order.waits.pop(part[0], None)
            if deaths + 1 == MOST_DEATHS:
                raise EngineError(f"{MOST_DEATHS} replicas ended while they drew an image of this request")
            await self._draw_parts(order, undrawn, deaths + 1)

    def _first(self, messages: AsyncIterator[Message], images: int) -> asyncio.Future[Message | None]:
        """Return the first message's future. A call is cancelled only after it: Ray may lose earlier cancels."""

        def answered(first: asyncio.Future[Message | None]) -> None:
            with self._wake:
                del self._sending[first]
            if not first.cancelled():
                first.exception()  # retrieved, so that asyncio does not complain of it

        async def wait() -> Message | None:
            return await anext(messages, None)

        first = asyncio.ensure_future(wait())
        with self._wake:
            self._sending[first] = images
        first.add_done_callback(answered)
        return first

    def _hear(self, order: Order, part: range, message: Message) -> None:
        """Take in a replica's message about a part; news of an image that an earlier replica told is not told again."""
        ticket = order.ticket
        with self._wake:
            if isinstance(message, JaxlError):
                raise message
            if isinstance(message, Status):
                if wait := order.waits.get(part[0]):
                    wait.said, wait.said_at = message, time.monotonic()
                return
            if isinstance(message, Accepted):
                if part[0] in order.unaccepted:
                    order.unaccepted.difference_update(part)
                    ticket.scheduler = message.scheduler
                    ticket.facts = message.facts
                    ticket.total += message.rows
                    if not order.unaccepted and not order.accepted.done():
                        order.accepted.set_result(None)
                return
            if isinstance(message, Spent):
                ticket.seconds += message.seconds
                return
            if isinstance(message, Started):
                order.waits.pop(part[0], None)
            index = part[message.image]
            match message:
                case Started() if index in order.unstarted:
                    order.unstarted.discard(index)
                    ticket.start()
                case Progress() if message.done > order.done[index]:
                    more, order.done[index] = message.done - order.done[index], message.done
                    ticket.done += more
                    self._counts["rows"] += more
                    self._row_rate.add(more)
                case Preview() if message.done > order.shown[index]:
                    order.shown[index] = message.done
                case Drawn():
                    ticket.images[index] = message.picture
                    self._counts["images"] += 1
                    self._image_rate.add(1)
                case _:
                    return
        ticket.tell(replace(message, image=index))

    def _move(self, room: int) -> None:
        """Move the parts that have waited longest to other replicas, as far as `room` holds all images of a part."""
        orders = sorted(self._orders.values(), key=lambda order: order.ticket.submitted)
        waits = [order.waits[first] for order in orders for first in sorted(order.waits)]
        room -= sum(wait.images for wait in waits if wait.said is None)  # they may be on their way to that room
        for wait in waits:
            if wait.said is not None and wait.images <= room:
                room -= wait.images
                wait.timeout.reschedule(self._loop.time())

    def _end(self, order: Order, outcome: Result | JaxlError) -> None:
        """Give a request its end, unless it has one; from any thread."""
        ticket = order.ticket
        with self._wake:
            if not ticket.settle(outcome):
                return
            self._orders.pop(ticket, None)
            if not order.accepted.done() and isinstance(outcome, JaxlError):  # `submit` raises it
                self._counts["refused"] += isinstance(outcome, QueueFullError)
                order.accepted.set_exception(outcome)
            else:
                self._counts[ticket.state] += 1
            self._wake.notify_all()
        if order.task is not None and (isinstance(outcome, CancelledError) or None in ticket.images):
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(order.task.cancel)

    def _stop(self, order: Order) -> None:
        """End with the images that are done: replicas do not finish others early."""
        if any(image is not None for image in order.ticket.images):
            self._end(order, order.ticket.result())
        self._cancel(order)

    def _cancel(self, order: Order) -> None:
        self._end(order, CancelledError("the request was cancelled"))

    async def _watch(self) -> None:
        """Ask the replicas for their counts, again and again; idle ones, such as new ones, take over work."""
        while True:
            answers: list[Any] = []
            with suppress(RayError, DeploymentUnavailableError, TimeoutError):
                asked = self.handle.broadcast("stats")
                answers = await asked.results_async(timeout_s=WATCH_SECONDS, return_exceptions=True)
            told = [answer for answer in answers if isinstance(answer, tuple)]
            found = {replica: stats for replica, stats, _ in told}
            with self._wake:
                self._models = told[0][2] if told else self._models
                self._replicas = set(found)
                self._said |= found
                if found or not self._orders:
                    self._served_at = time.monotonic()
                idle = sum(stats.running + stats.waiting == 0 for stats in found.values())
                self._move(idle * self.places)
            await asyncio.sleep(WATCH_EVERY)


def parts(images: Sequence[int], most: int) -> list[range]:
    """Split ordered images into runs without a gap, of at most `most`, so that the seeds of a run are consecutive."""
    found: list[range] = []
    for index in images:
        if found and index == found[-1].stop and len(found[-1]) < most:
            found[-1] = range(found[-1].start, index + 1)
        else:
            found.append(range(index, index + 1))
    return found
