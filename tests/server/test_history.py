"""What the plots of a server show of requests whose times are known."""

import time

import pytest

from jaxl.engine import Request, Ticket
from jaxl.server import history
from jaxl.server.history import History

NOW = 1000.0


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> History:
    past = History()
    for submitted, started, end, images, done in (
        (NOW - 95, NOW - 65, NOW - 45, 2, True),
        (NOW - 95, NOW - 65, NOW - 41, 4, True),
        (NOW - 95, None, NOW - 15, 1, False),
    ):
        monkeypatch.setattr(time, "monotonic", lambda end=end: end)
        past.add(ticket(submitted, started, images), done=done)
    return past


def ticket(submitted: float, started: float | None, images: int = 1) -> Ticket:
    made = Ticket(Request({}), list(range(images)), "euler", 10, None, lambda _: None)
    made.submitted, made.started = submitted, started
    return made


def test_steps(ended: History) -> None:
    live = [ticket(NOW - 5, None, 3), ticket(NOW - 25, NOW - 12, 2)]
    known = ended.steps(live, NOW)
    assert known["every"] == 10
    assert known["images_per_second"][-6:] == [0, 0.6, 0, 0, 0, 0]
    assert known["latency"][-6:] == [None, 52, None, None, None, None]
    # at 90, 80, ... seconds ago
    assert known["waiting"][-10:] == [7, 7, 7, 1, 1, 1, 1, 3, 0, 3]
    assert known["running"][-10:] == [0, 0, 0, 6, 6, 0, 0, 0, 2, 2]
    assert {len(values) for name, values in known.items() if name != "every"} == {60}


def test_nothing_yet() -> None:
    known = History().steps([], NOW)
    assert known["images_per_second"] == known["waiting"] == [0] * 60
    assert known["latency"] == [None] * 60


def test_only_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose requests are forgotten would be shown as idle."""
    monkeypatch.setattr(history, "MOST", 3)
    past = History()
    for end in (NOW - 300, NOW - 55, NOW - 25, NOW - 5):
        monkeypatch.setattr(time, "monotonic", lambda end=end: end)
        past.add(ticket(end - 1, end - 1), done=True)
    assert past.steps([], NOW)["images_per_second"] == [0, 0, 0.1, 0, 0.1]
    assert past.latencies() == [1, 1, 1]
