"""Which models are on the devices: order, room, fairness, and what is held once."""

import random
from dataclasses import replace

from jaxl.residency.policy import Choice, Standing, choose, kept, total


def standing(name: str, **how: object) -> Standing[str]:
    return replace(Standing(name, {name: 10}), **how)  # pyright: ignore[reportArgumentType]


def test_nobody_waits_for_another() -> None:
    assert choose([standing("a", here=True, first=0), standing("b")], 10) == Choice()


def test_the_one_waited_for_longest_comes_into_free_room() -> None:
    models = [standing("a", here=True, busy=True, first=0), standing("b", first=2), standing("c", first=1)]
    assert choose(models, 20) == Choice("c", "c")


def test_the_longest_unused_leaves_first() -> None:
    models = [
        standing("pinned", here=True, pinned=True),
        standing("old", here=True, used=1.0),
        standing("new", here=True, used=2.0),
        standing("wanted", here=True, first=0),
        standing("b", first=1),
    ]
    assert choose(models, 40) == Choice("b", "b", ("old",))
    assert choose(models, 30) == Choice("b", "b", ("old", "new"))


def test_a_model_in_use_is_closed_but_does_not_leave() -> None:
    """Whoever is older than the one that is waited for goes on; the youngest makes room."""
    models = [
        standing("a", here=True, busy=True, first=0, stayed=9.0),
        standing("b", here=True, busy=True, first=5, stayed=9.0),
        standing("c", here=True, busy=True, first=4, stayed=9.0),
        standing("d", first=3, swap=2.0),
    ]
    assert choose(models, 30) == Choice("d", closed=frozenset({"b"}))
    drained = [replace(model, busy=False) if model.name == "b" else model for model in models]
    assert choose(drained, 30) == Choice("d", "d", ("b",))
    assert choose([replace(model, first=0) if model.name == "d" else model for model in models[1:]], 20) == Choice(
        "d", closed=frozenset({"b"})
    )


def test_a_model_stays_as_long_as_a_swap_takes() -> None:
    models = [standing("a", here=True, first=1, stayed=1.0), standing("b", first=0, swap=2.0)]
    assert choose(models, 10) == Choice("b")
    assert choose([replace(models[0], stayed=2.0), models[1]], 10) == Choice("b", "b", ("a",))
    assert choose([replace(models[0], first=None), models[1]], 10) == Choice("b", "b", ("a",))


def test_what_one_image_waits_for_comes_together() -> None:
    """Nobody knows yet what the second of them shares with the first, which does not make room for it."""
    first = standing("a", here=True, first=0)
    assert choose([first, standing("b", first=0)], 15) == Choice("b", "b")
    assert choose([first, standing("b", first=1)], 15) == Choice("b")


def test_equal_networks_are_held_once() -> None:
    assert total([{"vae": 5, "a": 10}, {"vae": 5, "b": 10}]) == 25
    here = Standing("a", {"vae": 5, "a": 10}, here=True, busy=True, first=0)
    assert choose([here, Standing("b", {"vae": 5, "b": 10}, first=1)], 25) == Choice("b", "b")


def test_host_memory_keeps_the_latest_and_what_is_nowhere_else() -> None:
    held = [standing("a", used=1.0), standing("b", used=2.0), standing("c", used=3.0, here=True), standing("d")]
    assert kept(held, 30, "d") == ["d", "b", "a"]
    assert kept(held, 5, "d") == []


def test_everybody_has_a_turn() -> None:
    """A thousand requests at random for ten models with room for three: nobody waits three times the mean."""
    rng = random.Random(0)
    for popular in (False, True):
        waits = simulated(
            [min(rng.randrange(10), rng.randrange(10)) if popular else rng.randrange(10) for _ in range(1000)]
        )
        assert max(waits) < 3 * sum(waits) / len(waits)


def simulated(asked: list[int], clients: int = 16, room: int = 3, swap: int = 3, draws: int = 2) -> list[int]:
    """The waits, in steps, of clients that each ask again when they were answered; each model draws four at once."""
    left, waits, now = iter(asked), [], 0
    queue = [(0, model) for model, _ in zip(left, range(clients), strict=False)]
    running: list[tuple[int, int, int]] = []  # until, model, since
    came = dict.fromkeys(range(room), 0)
    coming: tuple[int, int] | None = None
    while queue or running:
        if coming is not None and coming[1] <= now:
            came[coming[0]], coming = now, None
        firsts: dict[int, int] = {}
        for place, (_, model) in enumerate(queue):
            firsts.setdefault(model, place)
        here = {*came, *([coming[0]] if coming else [])}
        busy = {model for _, model, _ in running} | (here - set(came))
        choice = choose(
            [
                Standing(
                    model,
                    {str(model): 1},
                    model in here,
                    busy=model in busy,
                    first=firsts.get(model),
                    stayed=now - came.get(model, now),
                    swap=swap,
                )
                for model in range(10)
            ],
            room,
        )
        if choice.bring is not None and coming is None:
            for model in choice.leave:
                del came[model]
            coming = choice.bring, now + swap
        for since, model in list(queue):
            if model in came and model not in choice.closed and sum(own == model for _, own, _ in running) < 4:
                queue.remove((since, model))
                running.append((now + draws, model, since))
        now += 1
        for each in [each for each in running if each[0] <= now]:
            running.remove(each)
            waits.append(now - each[2])
            queue += [(now, model) for model, _ in zip(left, range(1), strict=False)]
    return waits
