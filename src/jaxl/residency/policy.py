"""The choice of the model that comes onto the devices next, and of those that make room for it: pure, without a clock.

Models are served in the order of the requests that have waited longest. A model on the devices takes whatever waits
for it, so a swap serves many; but once an older request waits for a model that is not there, the one whose requests are
the youngest takes no new images, ends what it has, and goes. It may stay as long as the swap will take, at least:
so swaps take no more than about half of the time, whoever asks for what.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Standing(Generic[Name]):
    """How a model stands.

    parts: the bytes of its networks, by what is in them: equal ones are held once. here: on the devices, or on its way
    there. pinned: it stays. busy: images in the making use it. first: the position in the queue of the first image that
    waits for it. used: when it was last needed; any clock. stayed: seconds that it has been here. swap: seconds that
    bringing it takes.
    """

    name: Name
    parts: Mapping[str, int]
    here: bool = False
    pinned: bool = False
    busy: bool = False
    first: int | None = None
    used: float = 0.0
    stayed: float = 0.0
    swap: float = 0.0


@dataclass(frozen=True)
class Choice(Generic[Name]):
    """What to do: have some models leave, then `bring` one, and let no further images begin with those `closed`.

    `coming` is the model that is going to be brought, now or when there is room.
    """

    coming: Name | None = None
    bring: Name | None = None
    leave: tuple[Name, ...] = ()
    closed: frozenset[Name] = frozenset()


def choose(models: Sequence[Standing[Name]], budget: int) -> Choice[Name]:
    """Return what to do for the model that has been waited for longest of those that are not here."""
    wanted = [model for model in models if model.first is not None and not model.here]
    if not wanted:
        return Choice()
    coming = min(wanted, key=lambda model: model.first or 0)
    here = [model for model in models if model.here]
    going: list[Standing[Name]] = []
    for model in sorted((model for model in here if _may_go(model, coming)), key=_worth):
        if fits([each for each in here if each not in going] + [coming], budget):
            break
        going.append(model)
    staying = [each for each in here if each not in going]
    # of one that was never read, nobody knows what it shares; so it may come where there is no more room to be made:
    # beside those that stay whoever comes, and those that the same image waits for
    if not fits([*staying, coming], budget) and not all(each.pinned or each.first == coming.first for each in staying):
        return Choice(coming.name)  # others were asked for earlier, or came just now
    if any(model.busy for model in going):
        return Choice(coming.name, closed=frozenset(model.name for model in going))
    return Choice(coming.name, coming.name, tuple(model.name for model in going))


def _may_go(model: Standing[Name], coming: Standing[Name]) -> bool:
    if model.pinned:
        return False
    if model.first is None:
        return True
    assert coming.first is not None
    return model.first > coming.first and model.stayed >= coming.swap


def _worth(model: Standing[Name]) -> tuple[bool, bool, float]:
    """Return the key by which models leave: first those that nobody waits for, of them the longest unused."""
    if model.first is None:
        return False, model.busy, model.used
    return True, False, -model.first


def fits(models: Iterable[Standing[Name]], budget: int) -> bool:
    return total(model.parts for model in models) <= budget


def total(parts: Iterable[Mapping[str, int]]) -> int:
    """Return the bytes of parts, equal ones once."""
    every: dict[str, int] = {}
    for each in parts:
        every |= each
    return sum(every.values())


def kept(held: Sequence[Standing[Name]], budget: int, latest: Name) -> Collection[Name]:
    """Return which models stay in host memory: `latest`, then those not on the devices, those last used first."""
    staying: list[Standing[Name]] = []
    for model in sorted(held, key=lambda model: (model.name != latest, model.here, -model.used)):
        if fits([*staying, model], budget):
            staying.append(model)
    return [model.name for model in staying]
