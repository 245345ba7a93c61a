"""The simulation of replicas, against queueing theory where that is exact and against the engine itself."""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from simulation import (
    POLICIES,
    Machine,
    Request,
    Traffic,
    at_random,
    bucket_affine,
    power_of_two,
    round_robin,
    shortest_queue,
    simulate,
    summarise,
)
from turns import ORDERS, slowdowns

from jaxl.engine import Drawn, Engine, Event, Ticket
from jaxl.engine import Request as EngineRequest
from jaxl.engine.fake import FakeBackend, FakeBatch, FakeDrawing
from jaxl.errors import InputError

ALL_ROWS = 1e6  # a quantum in which every call runs until an image is done
ONE_PLACE = Machine((1.0,), (0.0,), places=1, quantum=ALL_ROWS)
SIZES = ((32, 32), (64, 32), (32, 64))
RANDOM = np.random.default_rng(0)


def test_one_place_and_one_step_is_m_d_1() -> None:
    load = 0.7
    requests = Traffic({1: 1.0}, (1.0,), (1,)).requests(30_000, load, ONE_PLACE, 1)
    latencies, fleet = simulate(requests, ONE_PLACE, 1, at_random)
    outcome = summarise(requests, latencies, fleet)
    assert outcome.mean == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)
    assert np.mean(latencies < 1 + 1e-9) == pytest.approx(1 - load, abs=0.01)  # found it idle
    assert outcome.busy == pytest.approx(load, abs=0.01)
    assert outcome.full == 1.0


def test_one_place_is_m_g_1() -> None:
    """Pollaczek and Khinchine's formula, for short and long images."""
    load, rows = 0.6, (5, 40)
    requests = Traffic({1: 1.0}, (1.0,), rows).requests(30_000, load, ONE_PLACE, 1)
    latencies, fleet = simulate(requests, ONE_PLACE, 1, at_random)
    mean, square = np.mean(rows), np.mean(np.square(rows))
    expected = mean + load * square / mean / (2 * (1 - load))
    assert summarise(requests, latencies, fleet).mean == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize(("images", "seconds"), [(1, 4.0), (2, 6.0), (3, 10.0), (4, 10.0), (5, 14.0)])
def test_fewer_images_take_less_time(images: int, seconds: float) -> None:
    """The smallest that holds the images runs; the fifth begins alone when four have ended."""
    machine = Machine((1.0,), (0.0,), smaller={1: 0.4, 2: 0.6})
    (latency,), _ = simulate([Request(0, 0.0, 0, images, 10)], machine, 1, at_random)
    assert latency == pytest.approx(seconds)


def test_a_batch_is_one_server_for_all_its_places() -> None:
    """Requests that fill a batch wait for each other, and decoding takes its turn or does not."""
    load, machine = 0.7, Machine((1.0,), (0.5,), places=4)
    requests = Traffic({4: 1.0}, (1.0,), (2,)).requests(20_000, load, machine, 1)
    latencies, fleet = simulate(requests, machine, 1, at_random)
    outcome = summarise(requests, latencies, fleet)
    assert outcome.mean == pytest.approx(4 * (1 + load / (2 * (1 - load))), rel=0.03)  # M/D/1: two rows, four decodes
    assert outcome.busy == pytest.approx(load, abs=0.01)
    apart = Machine((1.0,), (0.5,), places=4, decodes_apart=True)
    first = [Request(0, 0.0, 0, 4, 2), Request(1, 0.0, 0, 4, 2)]
    assert simulate(first, machine, 1, at_random)[0].tolist() == [4.0, 8.0]
    assert simulate(first, apart, 1, at_random)[0].tolist() == [4.0, 6.0]


def test_random_routing_splits_a_poisson_process() -> None:
    load = 0.7
    requests = Traffic({1: 1.0}, (1.0,), (1,)).requests(30_000, load, ONE_PLACE, 8)
    outcome = summarise(requests, *simulate(requests, ONE_PLACE, 8, at_random))
    assert outcome.mean == pytest.approx(1 + load / (2 * (1 - load)), rel=0.03)


def test_two_choices_are_the_supermarket_model() -> None:
    """Vvedenskaya, Dobrushin and Karpelevich 1996; Mitzenmacher 2001: for exponential times and many servers."""
    load, count, replicas, rows = 0.8, 20_000, 64, 200
    random = np.random.default_rng(1)
    at = np.cumsum(random.exponential(rows / (load * replicas), count))
    requests = [Request(i, float(at[i]), 0, 1, int(random.geometric(1 / rows))) for i in range(count)]
    outcome = summarise(requests, *simulate(requests, ONE_PLACE, replicas, power_of_two))
    expected = sum(load ** (2**i - 2) for i in range(1, 10))
    assert outcome.mean / rows == pytest.approx(expected, rel=0.03)
    blind = summarise(requests, *simulate(requests, ONE_PLACE, replicas, power_of_two, delay=1e9))
    assert blind.mean / rows == pytest.approx(1 / (1 - load), rel=0.1)  # M/M/1, as it knows nothing


class Clock:
    """Time that passes in the calls of a batch alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class TimedBatch(FakeBatch):
    def __init__(self, backend: "TimedBackend", lane: Any, size: int):
        super().__init__(backend, lane, size)
        self.timed, self.size_of_images = backend, lane[:2]

    def advance(self, rows: int) -> None:
        self.timed.advance(self, rows)


class TimedBackend(FakeBackend):
    """Lanes take their time by the clock; requests arrive meanwhile; calls, and images that leave, are noted."""

    def __init__(self, machine: Machine, clock: Clock, arrive: Callable[[float], None]):
        super().__init__(size=SIZES[0], places=machine.places, sizes_of_images=SIZES[1:])
        self.machine = machine
        self.clock = clock
        self.arrive = arrive
        self.calls: list[tuple[float, int, int, int]] = []
        self.left: list[tuple[float, int]] = []
        self.drawn = threading.Semaphore(0)
        self._undrawn = 0

    def batch(self, lane: Any, size: int) -> TimedBatch:
        return TimedBatch(self, lane, size)

    def advance(self, batch: TimedBatch, rows: int) -> None:
        self.settle()
        lane = SIZES.index(batch.size_of_images)
        images = sum(each is not None for each in batch.joined)
        self.calls.append((self.clock.now, lane, rows, images))
        end = self.clock.now + rows * self.machine.row_seconds[lane]
        self.arrive(end)
        self.clock.now = end

    def settle(self) -> None:
        """Wait for the pictures of those who left, so that the engine's other threads make no difference."""
        while self._undrawn:
            assert self.drawn.acquire(timeout=600)
            self._undrawn -= 1

    def finish(self, drawing: FakeDrawing, state: bytes, early: int | None = None) -> Callable[[], Image.Image]:
        self._undrawn += 1
        self.left.append((self.clock.now, drawing.seed))
        return super().finish(drawing, state)

    def heard(self, event: Event) -> None:
        if isinstance(event, Drawn):
            self.drawn.release()


def run_engine(
    requests: Sequence[Request], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[tuple[float, int, int, int]], list[tuple[float, int]]]:
    """The calls of the engine and when its images left, if these requests come, by a clock that its calls move."""
    clock, coming = Clock(), deque(requests)
    for module in ("engine", "request"):
        monkeypatch.setattr(f"jaxl.engine.{module}.time", SimpleNamespace(monotonic=clock.monotonic))
    tickets: deque[Ticket] = deque()

    def submit() -> None:
        request = coming.popleft()
        clock.now = request.at
        width, height = SIZES[request.lane]
        arguments = {"prompt": "a", "seed": 1000 * request.number, "num_images": request.images}
        arguments |= {"steps": request.rows, "width": width, "height": height}
        tickets.append(engine.submit(EngineRequest(arguments), backend.heard))

    def arrive(until: float) -> None:
        while coming and coming[0].at <= until:
            submit()

    backend = TimedBackend(machine, clock, arrive)
    with Engine(backend, max_waiting=10_000, quantum=machine.quantum) as engine:
        while coming:
            submit()  # as nothing runs that would move the clock
            while tickets:
                tickets.popleft().future.result(600)
    return backend.calls, [(at, seed // 1000) for at, seed in backend.left]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_replica_does_what_the_engine_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls, of the same rows and images, and the same images at the same times."""
    machine = Machine((0.03, 0.011, 0.02), (0.0, 0.0, 0.0))
    traffic = Traffic({1: 0.3, 2: 0.2, 3: 0.1, 4: 0.3, 6: 0.1}, (0.5, 0.3, 0.2), (3, 8, 13))
    requests = traffic.requests(150, 0.7, machine, 1, seed)
    calls, left = run_engine(requests, machine, monkeypatch)
    _, (replica,) = simulate(requests, machine, 1, at_random)
    simulated = [(call.lane, call.rows, call.images) for call in replica.calls]
    assert simulated == [call[1:] for call in calls]
    assert {lane for lane, *_ in simulated} == {0, 1, 2}
    assert max(images for *_, images in simulated) == 4
    assert max(rows for _, rows, _ in simulated) > 1
    assert [call.began for call in replica.calls] == pytest.approx([call[0] for call in calls])
    assert sorted((round(each.left, 6), each.number) for each in replica.decodes) == sorted(
        (round(at, 6), number) for at, number in left
    )


def test_policies_choose() -> None:
    """Replicas and lanes are small enough to see what is right."""
    asked = Request(7, 0.0, 1, 1, 20)
    counts = [(4, 0), (3, 1), (0, 5), (0, 2)]
    assert {at_random(asked, counts, 4, RANDOM) for _ in range(100)} == {0, 1, 2, 3}
    assert round_robin(asked, counts, 4, RANDOM) == 3
    assert shortest_queue(asked, counts, 4, RANDOM) == 3
    assert {power_of_two(asked, counts, 4, RANDOM) for _ in range(100)} == {0, 1, 3}  # 2 is the longest
    assert bucket_affine(asked, counts, 4, RANDOM) == 3  # of 1 and 3, which have the lane open and a place free
    assert bucket_affine(Request(7, 0.0, 1, 3, 20), counts, 4, RANDOM) == 1
    assert bucket_affine(Request(7, 0.0, 1, 4, 20), counts, 4, RANDOM) == 3  # nobody has room: the emptiest
    assert {shortest_queue(asked, [(0, 0)] * 3, 4, RANDOM) for _ in range(100)} == {0, 1, 2}


def test_what_a_policy_knows_is_as_old_as_it_is_said_to_be() -> None:
    seen = []

    def watch(request: Request, counts: Sequence[Sequence[int]], places: int, random: np.random.Generator) -> int:
        seen.append([tuple(each) for each in counts])
        return 0

    machine = Machine((1.0, 1.0), (0.0, 0.0))
    requests = [Request(0, 0.0, 0, 2, 3), Request(1, 1.5, 1, 1, 1), Request(2, 2.0, 0, 1, 1)]
    simulate(requests, machine, 2, watch)
    assert seen == [[(0, 0), (0, 0)], [(2, 0), (0, 0)], [(2, 1), (0, 0)]]
    seen.clear()
    simulate(requests, machine, 2, watch, delay=1.0)
    assert seen == [[(0, 0), (0, 0)], [(2, 0), (0, 0)], [(2, 0), (0, 0)]]
    seen.clear()
    simulate(requests, machine, 2, watch, together=False)
    assert seen[1] == [(1, 0), (0, 0)]
    assert len(seen) == 4


def test_images_of_one_request_may_be_drawn_apart() -> None:
    machine = Machine((1.0,), (0.0,))
    latencies, fleet = simulate([Request(0, 0.0, 0, 4, 5)], machine, 4, round_robin, together=False)
    assert [[image.number for image in replica.decodes] for replica in fleet] == [[0]] * 4
    assert latencies.tolist() == [5.0]


def test_policies_differ_as_theory_says() -> None:
    machine = Machine((1.0,), (0.0,), places=1, quantum=ALL_ROWS)
    requests = Traffic({1: 1.0}, (1.0,), (1, 9)).requests(4_000, 0.85, machine, 8)
    mean = {name: summarise(requests, *simulate(requests, machine, 8, each)).mean for name, each in POLICIES.items()}
    assert mean["random"] > mean["round-robin"] > mean["power-of-two"] > mean["shortest-queue"]


@pytest.mark.parametrize("load", [0.0, 1.0, -0.5, math.nan])
def test_a_load_that_is_none(load: float) -> None:
    with pytest.raises(InputError, match=r"^load="):
        Traffic({1: 1.0}, (1.0,)).requests(10, load, ONE_PLACE, 1)


def test_requests_are_what_was_asked_for() -> None:
    machine, traffic = Machine((1.0, 3.0), (0.5, 0.5)), Traffic({1: 0.5, 4: 0.5}, (0.75, 0.25), (10, 30))
    requests = traffic.requests(20_000, 0.6, machine, 5)
    assert requests == traffic.requests(20_000, 0.6, machine, 5)
    assert requests != traffic.requests(20_000, 0.6, machine, 5, seed=1)
    assert np.mean([request.images for request in requests]) == pytest.approx(2.5, abs=0.05)
    assert np.mean([request.lane for request in requests]) == pytest.approx(0.25, abs=0.015)
    assert {request.rows for request in requests} == {10, 30}
    work = sum(request.images * machine.seconds(request.lane, request.rows) for request in requests)
    assert work / requests[-1].at / 5 == pytest.approx(0.6, rel=0.04)


def test_urgency_is_the_best_order_of_turns() -> None:
    mean = {way: slowdowns("three models", order, 0.6, 800).mean() for way, order in ORDERS.items()}
    assert mean["urgency"] < mean["oldest first"] < mean["in turn"]
    assert slowdowns("two sizes", ORDERS["urgency"], 0.6, 800).mean() < 2
