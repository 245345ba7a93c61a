"""Which replica gets a request: policies, and a simulation of the engines behind them, event by event.

A replica does what `jaxl.engine` does: one running batch for each lane, whose call costs the same however many of its
places are full, unless fewer images are said to take less; lanes that take turns by their images' urgency; images that
join and leave between calls, and are decoded behind them. What a policy knows of a replica is how many images it has in
each lane, waiting or in the making.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from jaxl.engine.forecast import Average
from jaxl.engine.turns import Claim, urgency
from jaxl.errors import InputError
from jaxl.server import routing

# the share of the time in which the replicas are emptier than they are going to be, which is not counted
WARM_UP = 0.1


@dataclass(frozen=True)
class Machine:
    """What a replica is.

    row_seconds: of one row of a whole batch, for each lane. decode_seconds: of one image, for each lane.
    places: of a batch. decodes_apart: whether the next rows need not wait for what is decoded. quantum: the engine's.
    smaller: numbers of images that take less than a whole batch, each with its share of `row_seconds`; others take as
    long as the next larger one.
    """

    row_seconds: Sequence[float]
    decode_seconds: Sequence[float]
    places: int = 4
    decodes_apart: bool = False
    quantum: float = 0.05
    smaller: Mapping[int, float] = field(default_factory=dict)

    def row(self, lane: int, images: int) -> float:
        """That a row takes with so many images."""
        return self.row_seconds[lane] * min((self.smaller[n] for n in self.smaller if n >= images), default=1.0)

    def seconds(self, lane: int, rows: int) -> float:
        """That the devices need for an image if all places are taken."""
        decoding = 0.0 if self.decodes_apart else self.decode_seconds[lane]
        return rows * self.row_seconds[lane] / self.places + decoding


@dataclass(frozen=True)
class Request:
    """Images of one lane, each of so many rows, that are asked for `at` seconds from the beginning."""

    number: int
    at: float
    lane: int
    images: int
    rows: int


@dataclass(frozen=True)
class Traffic:
    """Requests that come at random times (Poisson).

    images: the numbers of images that a request may have, with their shares of the requests. lanes: the share of each.
    rows: an image has one of these.
    """

    images: Mapping[int, float]
    lanes: Sequence[float]
    rows: Sequence[int] = (20,)

    def requests(self, count: int, load: float, machine: Machine, replicas: int, seed: int = 0) -> list[Request]:
        """In order. `load`: the part of the devices' time that they would take if all places were full.

        Raises InputError for a load that is none, or more than there is time for.
        """
        if not 0 < load < 1:
            raise InputError("load", load, "give a number between 0 and 1")
        random = np.random.default_rng(seed)
        gaps = random.exponential(size=count)
        lanes = random.choice(len(self.lanes), count, p=self.lanes)
        images = random.choice(list(self.images), count, p=list(self.images.values()))
        rows = random.choice(self.rows, count)
        each = [int(n) * machine.seconds(int(lane), int(r)) for n, lane, r in zip(images, lanes, rows, strict=True)]
        at = np.cumsum(gaps * np.mean(each) / (load * replicas))
        return [Request(i, float(at[i]), int(lanes[i]), int(images[i]), int(rows[i])) for i in range(count)]


Counts = Sequence[Sequence[int]]  # replica, lane -> images
Policy = Callable[[Request, Counts, int, np.random.Generator], int]


def at_random(request: Request, counts: Counts, places: int, random: np.random.Generator) -> int:
    return int(random.integers(len(counts)))


def round_robin(request: Request, counts: Counts, places: int, random: np.random.Generator) -> int:
    return request.number % len(counts)


def power_of_two(request: Request, counts: Counts, places: int, random: np.random.Generator) -> int:
    """Of two at random, the one with fewer images (Mitzenmacher 2001, "The Power of Two Choices")."""
    return routing.fewest(range(len(counts)), _totals(counts), random, 2)


def shortest_queue(request: Request, counts: Counts, places: int, random: np.random.Generator) -> int:
    """The one with the fewest images."""
    return routing.fewest(range(len(counts)), _totals(counts), random)


def bucket_affine(request: Request, counts: Counts, places: int, random: np.random.Generator) -> int:
    """As `jaxl.server.routing` has it, with two choices."""
    of_lane = [each[request.lane] for each in counts]
    return routing.bucket_affine(request.images, of_lane, _totals(counts), [places] * len(counts), random, 2)


POLICIES: Mapping[str, Policy] = {
    "random": at_random,
    "round-robin": round_robin,
    "power-of-two": power_of_two,
    "bucket-affine": bucket_affine,
    "shortest-queue": shortest_queue,
}


def _totals(counts: Counts) -> list[int]:
    return [sum(each) for each in counts]


@dataclass(frozen=True)
class Call:
    """So many rows of a lane with so many images, from when the devices began."""

    began: float
    lane: int
    rows: int
    images: int


@dataclass(frozen=True)
class Decode:
    """An image of a request, from when it left its batch until it was decoded."""

    number: int
    lane: int
    left: float
    done: float


@dataclass(eq=False)
class Lane:
    """`waiting` images, with their places in the order of arrival, and `running` ones, with the row that ends each."""

    key: int
    waiting: deque[tuple[int, Request]]
    running: list[tuple[int, int, Request]]
    run: int = 0


class Replica:
    """An engine, as far as time goes."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.calls: list[Call] = []
        self.decodes: list[Decode] = []
        self.idle = True
        self._counts = [0] * len(machine.row_seconds)
        self._history: deque[tuple[float, Sequence[int]]] = deque([(0.0, tuple(self._counts))])
        self._lanes: dict[int, Lane] = {}
        self._lane: Lane | None = None  # of the call under way
        self._rows = self._arrived = self._finishing = 0
        self._row_seconds = Average()  # of what lanes it ran
        self._devices_free = self._decoder_free = 0.0

    def seen(self, at: float) -> Sequence[int]:
        """The images in each lane as they were at a time that is not before that of an earlier call."""
        while len(self._history) > 1 and self._history[1][0] <= at:
            self._history.popleft()
        return self._history[0][1]

    def add(self, now: float, request: Request) -> None:
        lane = self._lanes.setdefault(request.lane, Lane(request.lane, deque(), []))
        for _ in range(request.images):
            lane.waiting.append((self._arrived, request))
            self._arrived += 1
        self._count(now, request.lane, request.images)

    def begin(self, now: float) -> float | None:
        """Begin a call, if there is something to do; when it ends."""
        lane = self._lane = self._next_lane(now)
        self.idle = lane is None
        if lane is None:
            return None
        while lane.waiting and len(lane.running) < self.machine.places and self._has_room():
            came, request = lane.waiting.popleft()
            heapq.heappush(lane.running, (lane.run + request.rows, came, request))
        row_seconds = self.machine.row(lane.key, len(lane.running))
        most = int(self.machine.quantum / row_seconds) if lane.run else 1
        self._rows = max(1, min(most, lane.running[0][0] - lane.run))
        began = max(now, self._devices_free)
        self.calls.append(Call(began, lane.key, self._rows, len(lane.running)))
        return began + self._rows * row_seconds

    def end(self, now: float) -> list[Decode]:
        """End the call; the images that are done with it."""
        lane = self._lane
        assert lane is not None
        lane.run += self._rows
        self._row_seconds.add(self.machine.row_seconds[lane.key])
        left = []
        while lane.running and lane.running[0][0] == lane.run:
            left.append(heapq.heappop(lane.running)[2])
        if not left:
            return []
        begins, seconds = max(now, self._decoder_free), self.machine.decode_seconds[lane.key]
        found = [Decode(each.number, lane.key, now, begins + (i + 1) * seconds) for i, each in enumerate(left)]
        self.decodes += found
        self._finishing += len(found)
        self._decoder_free = found[-1].done
        if not self.machine.decodes_apart:
            self._devices_free = self._decoder_free
        return found

    def finish(self, now: float, image: Decode) -> None:
        self._finishing -= 1
        self._count(now, image.lane, -1)

    def _count(self, now: float, lane: int, images: int) -> None:
        self._counts[lane] += images
        self._history.append((now, tuple(self._counts)))

    def _has_room(self) -> bool:
        return self._finishing < 2 * self.machine.places

    def _next_lane(self, now: float) -> Lane | None:
        wanted = [lane for lane in self._lanes.values() if lane.running]
        if self._has_room():
            idle = [lane for lane in self._lanes.values() if lane.waiting and not lane.running]
            wanted += sorted(idle, key=lambda lane: lane.waiting[0][0])
        return max(wanted, key=lambda lane: self.urgency(lane, now), default=None)

    def urgency(self, lane: Lane, now: float) -> float:
        """The lane with the most goes on: here that of the images that would run, as the engine has it."""
        # how long rows of a lane take is known once it has run some
        row_seconds = self.machine.row_seconds[lane.key] if lane.run else self._row_seconds.value or 1.0
        left = [(request, end - lane.run) for end, _, request in lane.running]
        if self._has_room():
            free = self.machine.places - len(left)
            left += [(request, request.rows) for _, request in islice(lane.waiting, free)]
        return urgency(
            Claim(now - request.at, request.rows * row_seconds, rows * row_seconds) for request, rows in left
        )


@dataclass(frozen=True)
class Outcome:
    """What became of requests once the load was steady.

    mean, p50, p95, p99: seconds until the last image of a request was decoded. full: the part of the places with an
    image, over the time in calls. busy: the part of the time in which the devices had work.
    """

    mean: float
    p50: float
    p95: float
    p99: float
    full: float
    busy: float


def simulate(
    requests: Sequence[Request],
    machine: Machine,
    replicas: int,
    policy: Policy,
    *,
    delay: float = 0.0,
    together: bool = True,
    seed: int = 0,
    kind: type[Replica] = Replica,
) -> tuple[np.ndarray, list[Replica]]:
    """The latency of each request, and the replicas in the end. The requests are in order and numbered from 0.

    delay: how many seconds old is what the policy knows of the replicas. together: whether all images of a request go
    to one replica; else the policy is asked for each. seed: of what the policy draws. kind: of the replicas.
    """
    random = np.random.default_rng(seed)
    fleet = [kind(machine) for _ in range(replicas)]
    events: list[tuple[float, int, int, Decode | None]] = []  # when, in order, where: a call ends, an image is decoded
    pushed = 0

    def push(at: float, index: int, image: Decode | None) -> None:
        nonlocal pushed
        heapq.heappush(events, (at, pushed, index, image))
        pushed += 1

    def begin(now: float, index: int) -> None:
        ends = fleet[index].begin(now)
        if ends is not None:
            push(ends, index, None)

    def run(until: float) -> None:
        while events and events[0][0] <= until:
            now, _, index, image = heapq.heappop(events)
            replica = fleet[index]
            if image is not None:
                replica.finish(now, image)
                if replica.idle:
                    begin(now, index)
                continue
            for left in replica.end(now):
                push(left.done, index, left)
            begin(now, index)

    turn = 0
    for request in requests:
        run(request.at)
        for part in [request] if together else [replace(request, images=1)] * request.images:
            counts = [replica.seen(request.at - delay) for replica in fleet]
            index = policy(replace(part, number=turn), counts, machine.places, random)
            turn += 1
            fleet[index].add(request.at, part)
            if fleet[index].idle:
                begin(request.at, index)
    run(np.inf)
    done = np.zeros(len(requests))
    for replica in fleet:
        for image in replica.decodes:
            done[image.number] = max(done[image.number], image.done)
    return done - [request.at for request in requests], fleet


def summarise(requests: Sequence[Request], latencies: np.ndarray, fleet: Sequence[Replica]) -> Outcome:
    """Of what `simulate` gives, between the first tenth of the time and the last arrival."""
    machine, end = fleet[0].machine, requests[-1].at
    start = WARM_UP * end
    counted = latencies[[request.at >= start for request in requests]]
    calls = [(call.rows * machine.row(call.lane, call.images), call) for replica in fleet for call in replica.calls]
    calls = [(seconds, call) for seconds, call in calls if start <= call.began < end]
    in_calls = sum(seconds for seconds, _ in calls)
    filled = sum(seconds * call.images for seconds, call in calls)
    decoding = 0.0
    if not machine.decodes_apart:
        images = [image for replica in fleet for image in replica.decodes if start <= image.left < end]
        decoding = sum(machine.decode_seconds[image.lane] for image in images)
    return Outcome(
        float(counted.mean()),
        *(float(value) for value in np.quantile(counted, (0.5, 0.95, 0.99))),
        full=filled / (in_calls * machine.places),
        busy=(in_calls + decoding) / ((end - start) * len(fleet)),
    )
