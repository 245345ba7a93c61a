"""The engine on a backend without a model: order, cancellation, deadlines, failures, and every image its own."""

import gc
import hashlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from jaxl.call.hires import Hires
from jaxl.engine import Drawn, Engine, Event, Preview, Progress, Request, Started, Ticket
from jaxl.engine.fake import FakeBackend, FakeBatch, FakeDrawing
from jaxl.errors import (
    CancelledError,
    DeadlineError,
    DrainingError,
    EngineError,
    InputError,
    NonFiniteError,
    QueueFullError,
    UnloadedError,
)

A_WHILE = 600.0  # no measure of anything: only who fails waits so long


class Gate(FakeBackend):
    """Stops before each call until it is let through, so that tests decide on what happens when."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.open = threading.Semaphore(0)
        self.calls: list[tuple[Any, int, int]] = []  # lane, images at places, rows
        self.arrived = threading.Semaphore(0)

    def batch(self, lane: Any, size: int) -> FakeBatch:
        gate = self

        class Batch(FakeBatch):
            def advance(self, rows: int) -> None:
                gate.calls.append((lane, sum(each is not None for each in self.joined), rows))
                gate.arrived.release()
                assert gate.open.acquire(timeout=A_WHILE)
                super().advance(rows)

        return Batch(self, lane, size)

    def free(self) -> None:
        self.open.release(10**4)


class Slow(FakeBackend):
    """Makes images larger when it is let."""

    def __init__(self, **options: Any):
        super().__init__(larger=[(64, 64)], **options)
        self.may = threading.Event()
        self.fails: Exception | None = None

    def remake(self, drawing: FakeDrawing, stage: int, state: bytes) -> Callable[[], bytes]:
        make = super().remake(drawing, stage, state)

        def later() -> bytes:
            assert self.may.wait(A_WHILE)
            if self.fails is not None:
                raise self.fails
            return make()

        return later


def digest(ticket: Ticket) -> list[str]:
    return [hashlib.sha256(np.asarray(image)).hexdigest() for image in ticket.future.result(A_WHILE).images]


def asked(prompt: str = "a", **arguments: Any) -> dict[str, Any]:
    return {"prompt": prompt, **arguments}


@contextmanager
def gated(**options: Any) -> Iterator[tuple[Engine, Gate]]:
    engine_options = {name: options.pop(name) for name in ("max_waiting", "joins", "quantum") if name in options}
    gate = Gate(**options)
    with Engine(gate, **engine_options) as engine:
        try:
            yield engine, gate
        finally:
            gate.free()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + A_WHILE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_result() -> None:
    events: list[Event] = []
    with Engine(FakeBackend()) as engine:
        ticket = engine.submit(
            Request(asked(steps=7, seed=3, num_images=6, scheduler="ddim"), previews=2), events.append
        )
        result = ticket.future.result(A_WHILE)
    assert len({image.tobytes() for image in result.images}) == 6
    assert (result.seeds, result.scheduler, result.steps) == ([3, 4, 5, 6, 7, 8], "ddim", 7)
    assert 0 <= result.timings["queue"] <= result.timings["total"]
    for image in range(6):
        own = [event for event in events if event.image == image]
        assert isinstance(own[0], Started)
        assert isinstance(own[-1], Drawn)
        assert own[-1].picture is result.images[image]
        assert [event.done for event in own if isinstance(event, Progress)][-1] == 7
        shown = [event for event in own if isinstance(event, Preview)]
        assert [event.done for event in shown] == [3, 5]  # a third and two thirds of seven, rounded up
        assert all(event.pixels.shape == (8, 8, 3) for event in shown)


def test_same_request_same_image_under_random_arrivals() -> None:
    """200 requests of all kinds arrive at random and some are cancelled: each image is what it is alone."""
    rng = random.Random(0)
    kinds = [
        asked(
            rng.choice("abcdef"),
            steps=rng.randint(1, 30),
            seed=rng.randrange(2**64 - 8),
            num_images=rng.choice((1, 1, 2, 4, 7)),
            width=rng.choice((32, 48)),
            scheduler=rng.choice(("euler", "ddim", "unipc")),
            guidance_scale=rng.choice((1.0, 5.0, 7.5)),
            guidance_interval=rng.choice(((0.0, 1.0), (0.3, 0.8), (0.0, 0.5))),
            hires=rng.choice((None, None, Hires(), Hires(steps=5))),
        )
        for _ in range(200)
    ]
    options: dict[str, Any] = {"sizes_of_images": [(48, 32)], "places": (1, 2, 4), "larger": [(64, 64), (96, 64)]}
    tickets: list[Ticket] = []
    cancelled: set[int] = set()
    with Engine(FakeBackend(row_seconds=1e-4, **options), max_waiting=1000) as engine:
        for number, kind in enumerate(kinds):
            tickets.append(engine.submit(Request(kind, priority=rng.choice((0, 0, 3)), previews=rng.choice((0, 2)))))
            if rng.random() < 0.2:
                time.sleep(0.003)
            if rng.random() < 0.1:
                victim = rng.randrange(number + 1)
                tickets[victim].cancel()
                cancelled.add(victim)
        assert not wait([ticket.future for ticket in tickets], 60).not_done
        stats = engine.stats()
    lost = {i for i, ticket in enumerate(tickets) if ticket.future.exception()}
    assert lost <= cancelled
    assert all(isinstance(tickets[i].future.exception(), CancelledError) for i in lost)
    assert stats.requests_done == 200 - len(lost)
    assert stats.requests_cancelled == len(lost)
    assert (stats.waiting, stats.running) == (0, 0)
    with Engine(FakeBackend(**options)) as alone:
        for i, ticket in enumerate(tickets):
            if i not in lost:
                assert digest(ticket) == digest(alone.submit(Request(kinds[i])))


def test_requests_join_a_running_batch_and_leave_it() -> None:
    with gated(places=2) as (engine, gate):
        first = engine.submit(Request(asked(steps=3)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        second = engine.submit(Request(asked("b", steps=1)))
        gate.open.release()
        assert gate.arrived.acquire(timeout=A_WHILE)  # both are in the second call
        gate.open.release()
        second.future.result(A_WHILE)
        assert not first.future.done()
        assert [images for _, images, _ in gate.calls][:2] == [1, 2]


def test_static_batching_waits_for_the_whole_batch() -> None:
    with gated(places=2, joins=False) as (engine, gate):
        first = engine.submit(Request(asked(steps=2)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        second = engine.submit(Request(asked("b", steps=2)))
        gate.free()
        wait([first.future, second.future], A_WHILE)
        assert [images for _, images, _ in gate.calls] == [1] * len(gate.calls)


def test_cancel_frees_the_place_before_the_next_call() -> None:
    with gated(places=1) as (engine, gate):
        first = engine.submit(Request(asked(steps=1000)))
        second = engine.submit(Request(asked("b", steps=1)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        assert engine.status(second).position == 0
        assert engine.status(second).state == "queued"
        first.cancel()
        with pytest.raises(CancelledError):
            first.future.result(0)
        assert engine.status(first).state == "cancelled"
        assert first not in engine.tickets()
        gate.open.release(2)
        second.future.result(A_WHILE)
        assert len(gate.calls) == 2


def test_stop_keeps_what_has_begun() -> None:
    """As it is, which is what it would have been after as many steps; what waits is given up, others go on."""
    with gated(places=2) as (engine, gate):
        stopped = engine.submit(Request(asked(steps=1000, num_images=3, seed=5)))
        other = engine.submit(Request(asked("b", steps=1)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        gate.open.release()
        until(lambda: stopped.done > 0)
        stopped.stop()
        gate.open.release(10)
        result = stopped.future.result(A_WHILE)
        assert (result.numbers, result.seeds, stopped.state) == ([0, 1], [5, 6], "done")
        assert [image.size for image in result.images] == [(32, 32)] * 2
        assert len(other.future.result(A_WHILE).images) == 1


def test_stop_of_what_has_not_begun() -> None:
    with gated(places=1) as (engine, gate):
        first = engine.submit(Request(asked(steps=2)))
        second = engine.submit(Request(asked("b", steps=1000)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        second.stop()
        gate.open.release(10)
        with pytest.raises(CancelledError):
            second.future.result(A_WHILE)
        first.future.result(A_WHILE)


def test_two_requests_with_one_id() -> None:
    """Each is known until its own end."""
    with gated(places=1) as (engine, gate):
        first = engine.submit(Request(asked(steps=1), id="x"))
        assert gate.arrived.acquire(timeout=A_WHILE)
        second = engine.submit(Request(asked("b", steps=1000), id="x", deadline=60))
        gate.open.release()
        first.future.result(A_WHILE)
        assert engine.tickets() == [second]
        assert not engine.drain(0)
        second.submitted -= 120
        gate.free()
        with pytest.raises(DeadlineError):
            second.future.result(A_WHILE)
        assert engine.drain(A_WHILE)


def test_deadline() -> None:
    with gated(places=1) as (engine, gate):
        first = engine.submit(Request(asked(steps=1)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        second = engine.submit(Request(asked(), deadline=0.01))
        time.sleep(0.02)
        gate.free()
        with pytest.raises(DeadlineError, match="not done within"):
            second.future.result(A_WHILE)
        first.future.result(A_WHILE)


def test_priority_goes_first_and_nobody_waits_for_ever() -> None:
    begun: list[str] = []
    with gated(places=1) as (engine, gate):
        engine.submit(Request(asked(steps=1)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        tickets = [
            engine.submit(Request(asked(name, steps=1), priority=priority), lambda _, name=name: begun.append(name))
            for name, priority in (("low", -1), ("usual", 0), ("high", 1))
        ]
        tickets[0].submitted -= 60  # it has waited for a minute: more than its priority weighs
        engine._waiting.sort(key=lambda work: work.order)
        gate.free()
        wait([ticket.future for ticket in tickets], A_WHILE)
    assert list(dict.fromkeys(begun)) == ["low", "high", "usual"]


@contextmanager
def one_in_each_lane() -> Iterator[tuple[Gate, Ticket, Ticket]]:
    """A long image, which runs, and a short one of another lane, as old, which waits; the gate is closed."""
    with gated(sizes_of_images=[(48, 32)], quantum=0.0) as (engine, gate):  # a row at a time
        long = engine.submit(Request(asked(steps=100)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        short = engine.submit(Request(asked(steps=5, width=48)))
        long.submitted = short.submitted
        yield gate, long, short


def ran_first(gate: Gate, lane: int, calls: int) -> int:
    """How many of these calls, after the first, were of the lane of this width."""
    return sum(width == lane for (width, *_), _, _ in gate.calls[1 : 1 + calls])


def test_a_short_image_need_not_wait_for_a_long_one() -> None:
    with one_in_each_lane() as (gate, long, short):
        gate.free()
        wait([long.future, short.future], A_WHILE)
    assert ran_first(gate, 48, 6) == 5  # one call may have been asked for before it came


def test_who_has_waited_long_enough_goes_first() -> None:
    with one_in_each_lane() as (gate, long, short):
        long.submitted -= 3600
        gate.free()
        wait([long.future, short.future], A_WHILE)
    assert ran_first(gate, 32, 99) == 99


def test_full_queue() -> None:
    with gated(places=1, max_waiting=2) as (engine, gate):
        engine.submit(Request(asked()))
        assert gate.arrived.acquire(timeout=A_WHILE)
        engine.submit(Request(asked(num_images=2)))
        with pytest.raises(QueueFullError, match="2 images are waiting") as caught:
            engine.submit(Request(asked()))
        assert caught.value.retry_after >= 1
        assert engine.stats().requests_refused == 1


def test_bad_arguments_are_told_at_once() -> None:
    with Engine(FakeBackend()) as engine:
        with pytest.raises(InputError, match="steps=0"):
            engine.submit(Request(asked(steps=0)))
        assert engine.tickets() == []


def test_drain() -> None:
    with gated() as (engine, gate):
        ticket = engine.submit(Request(asked()))
        assert not engine.drain(0.01)
        with pytest.raises(DrainingError):
            engine.submit(Request(asked()))
        gate.free()
        assert engine.drain(A_WHILE)
        assert ticket.future.done()


def test_close_cancels() -> None:
    with gated() as (engine, gate):
        ticket = engine.submit(Request(asked(steps=1000)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        gate.free()
    with pytest.raises(CancelledError):
        ticket.future.result(0)


def test_replaced_backend() -> None:
    with gated(size=(32, 32)) as (engine, gate):
        old = engine.submit(Request(asked()))
        assert gate.arrived.acquire(timeout=A_WHILE)
        engine.replace(FakeBackend(size=(48, 48)))
        new = engine.submit(Request(asked()))
        gate.free()
        assert old.future.result(A_WHILE).images[0].size == (32, 32)
        assert new.future.result(A_WHILE).images[0].size == (48, 48)
        until(lambda: engine.stats().places == 4)  # those of the old one are given back


def test_a_lane_that_is_not_kept_is_given_up_once_it_is_empty() -> None:
    class Fleeting(Gate):
        def keeps(self, lane: Any) -> bool:
            return not lane[-1]  # those without guidance

    backend = Fleeting(places=2)
    backend.free()
    with Engine(backend) as engine:
        tickets = [engine.submit(Request(asked(guidance_scale=scale))) for scale in (5.0, 1.0, 5.0, 5.0, 5.0)]
        together = [digest(ticket) for ticket in tickets]
        until(lambda: engine.stats().places == 2)
        assert digest(engine.submit(Request(asked(guidance_scale=5.0)))) == together[0]
        until(lambda: engine.stats().places == 2)


def test_a_backend_that_is_unloaded_is_free() -> None:
    backend = FakeBackend()
    there = weakref.ref(backend)
    with Engine(backend) as engine:
        drawn = engine.submit(Request(asked())).future.result(A_WHILE)
        assert engine.unload()
        del backend
        until(lambda: gc.collect() >= 0 and there() is None)
        with pytest.raises(UnloadedError):
            engine.submit(Request(asked()))
        assert engine.unload()
        engine.replace(FakeBackend())
        again = engine.submit(Request(asked())).future.result(A_WHILE)
    assert again.images[0].tobytes() == drawn.images[0].tobytes()


def test_a_backend_that_draws_is_not_unloaded() -> None:
    with gated() as (engine, gate):
        ticket = engine.submit(Request(asked()))
        assert not engine.unload()
        gate.free()
        ticket.future.result(A_WHILE)
        assert engine.unload()


class Broken(FakeBackend):
    broken = True

    def batch(self, lane: Any, size: int) -> FakeBatch:
        backend = self

        class Batch(FakeBatch):
            def advance(self, rows: int) -> None:
                if backend.broken:
                    raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
                super().advance(rows)

        return Batch(self, lane, size)


def test_failures_are_told_and_do_not_stop_the_engine() -> None:
    backend = Broken()
    with Engine(backend) as engine:
        for _ in range(3):
            assert engine.healthy
            with pytest.raises(EngineError, match="RESOURCE_EXHAUSTED"):
                engine.submit(Request(asked())).future.result(A_WHILE)
        until(lambda: not engine.healthy)
        backend.broken = False
        engine.submit(Request(asked())).future.result(A_WHILE)
        until(lambda: engine.healthy)


def test_stalled() -> None:
    with gated() as (engine, gate):
        assert not engine.stalled(0.0)
        engine.submit(Request(asked(steps=1)))
        assert gate.arrived.acquire(timeout=A_WHILE)
        until(lambda: engine.stalled(0.01))
        assert not engine.stalled(60.0)
        gate.free()
        until(lambda: not engine.stalled(0.0))


def test_status_tells_when() -> None:
    with gated(places=1) as (engine, gate):
        engine.submit(Request(asked(steps=2)))
        gate.open.release()
        assert gate.arrived.acquire(timeout=A_WHILE)
        assert gate.arrived.acquire(timeout=A_WHILE)  # one row is done
        engine._row_seconds.value = 2.0
        engine._lanes[id(gate), (32, 32, True)].row_seconds.value = 2.0
        waiting = [engine.submit(Request(asked(steps=3, num_images=2))) for _ in range(2)]
        status = engine.status(waiting[1])
        assert (status.state, status.position, status.done, status.total) == ("queued", 2, 0, 6)
        assert status.starts_in == 2.0 * (1 + 3 + 3)


class Behind(FakeBackend):
    """The devices do what they were asked only when they are let: `asked` counts calls, `reached` those that are done.

    A call whose number is in `broken` raises where somebody waits for it.
    """

    def __init__(self, broken: Sequence[int] = (), **options: Any):
        super().__init__(**options)
        self.asked = self.reached = 0
        self.broken = broken
        self.moved = threading.Condition()

    def let(self, calls: int) -> None:
        with self.moved:
            self.reached += calls
            self.moved.notify_all()

    def batch(self, lane: Any, size: int) -> FakeBatch:
        backend = self

        class Point:
            def __init__(self) -> None:
                self.number = backend.asked

            def is_ready(self) -> bool:
                return backend.reached >= self.number

            def block_until_ready(self) -> None:
                with backend.moved:
                    assert backend.moved.wait_for(self.is_ready, A_WHILE)
                if self.number in backend.broken:
                    raise RuntimeError("INTERNAL: the chip is gone")

        class Batch(FakeBatch):
            def advance(self, rows: int) -> None:
                super().advance(rows)
                backend.asked += 1

            def mark(self) -> Any:
                return Point()

        return Batch(self, lane, size)


def test_the_next_call_is_asked_for_before_the_last_is_done() -> None:
    events: list[Event] = []
    with Engine(FakeBackend()) as engine:
        alone = digest(engine.submit(Request(asked(steps=5))))
    backend = Behind()
    with Engine(backend) as engine:
        ticket = engine.submit(Request(asked(steps=5), previews=4), events.append)
        until(lambda: backend.asked == 2)
        assert [type(event) for event in events] == [Started]  # nothing is told before it is so
        assert (engine.status(ticket).done, engine.stats().calls) == (0, 0)
        backend.let(1)
        until(lambda: engine.stats().calls == 1)
        until(lambda: backend.asked == 3)
        assert engine.status(ticket).done == 1
        backend.let(100)
        assert digest(ticket) == alone
    told = [type(event) for event in events]
    assert told == [Started, *[Progress, Preview] * 4, Progress, Drawn]
    shown = {event.pixels.tobytes() for event in events if isinstance(event, Preview)}
    assert len(shown) == 4  # each of its own row, though the batch had gone on


def test_a_call_that_fails_late_is_told_to_all_of_both_calls() -> None:
    """Whoever left in the failed call or in the next one, ran on, or had another stage before it, hears of it."""
    backend = Behind(broken=[1])
    engine = Engine(backend)
    lengths = asked(steps=1), asked(steps=2), asked(steps=9), asked(steps=8, guidance_interval=(0.0, 0.1))
    tickets = [engine.submit(Request(arguments)) for arguments in lengths]
    with engine:
        until(lambda: backend.asked == 2)
        backend.let(100)
        for ticket in tickets:
            with pytest.raises(EngineError, match="the chip is gone"):
                ticket.future.result(A_WHILE)
        assert len(digest(engine.submit(Request(asked(steps=3))))) == 1
        assert engine.healthy


def test_others_run_while_an_image_is_made_ready() -> None:
    """It is prepared in its turn, a batch's worth ahead, and joins when it is ready."""
    ready: dict[int, Callable[[], None]] = {}

    @dataclass(frozen=True)
    class Slow(FakeDrawing):
        @property
        def ready(self) -> bool:
            return self.seed < 10 or self.seed in done

        def prepare(self, tell: Callable[[], None]) -> None:
            ready.setdefault(self.seed, tell)

    class Backend(FakeBackend):
        def read(self, arguments: Any) -> Any:
            return [Slow(**vars(own)) for own in super().read(arguments)]

    done: set[int] = set()
    with Engine(Backend(places=2)) as engine:
        slow = [engine.submit(Request({"prompt": "a", "seed": 10 + i})) for i in range(4)]
        quick = [engine.submit(Request({"prompt": "a", "seed": i})) for i in range(4)]
        assert not wait([ticket.future for ticket in quick], A_WHILE).not_done
        assert [ticket.state for ticket in slow] == ["queued"] * 4
        assert [*ready] == [10, 11]
        done.add(11)
        ready[11]()
        assert slow[1].future.result(A_WHILE)
        done |= {10, 12, 13}
        ready[10]()
        assert not wait([ticket.future for ticket in slow], A_WHILE).not_done


def test_others_run_while_an_image_is_made_larger() -> None:
    """It holds no place meanwhile, and goes on in the lane of its new size."""
    twice = asked(steps=3, hires=Hires(steps=2))
    with Engine(backend := Slow(places=1)) as engine:
        ticket = engine.submit(Request(twice))
        until(lambda: ticket.done == 3)
        assert all(len(digest(engine.submit(Request(asked(seed=i))))) == 1 for i in range(3))
        assert (ticket.state, engine.stats().waiting, engine.stats().running) == ("running", 1, 0)
        backend.may.set()
        (image,) = ticket.future.result(A_WHILE).images
        assert (image.size, ticket.done) == ((64, 64), 5)
        assert digest(ticket) == digest(engine.submit(Request(twice)))


def test_an_image_that_is_made_larger_may_be_cancelled_and_may_fail() -> None:
    twice = asked(steps=3, hires=Hires())
    with Engine(backend := Slow(places=2)) as engine:
        cancelled, failed = (engine.submit(Request(twice)) for _ in range(2))
        until(lambda: cancelled.done == failed.done == 3)
        cancelled.cancel()
        until(lambda: engine.stats().waiting == 1)
        backend.fails = NonFiniteError("NaN")
        backend.may.set()
        with pytest.raises(NonFiniteError):
            failed.future.result(A_WHILE)
        backend.fails = None
        assert len(digest(engine.submit(Request(twice)))) == 1
        assert engine.healthy


@pytest.mark.parametrize("hires", [Hires(scale=4), Hires(size=(64, 32))])
def test_second_passes_have_their_sizes(hires: Hires) -> None:
    with Engine(Slow()) as engine, pytest.raises(InputError, match=r"^hires="):
        engine.submit(Request(asked(hires=hires)))
