"""What is kept for a while: by age, and by size."""

from jaxl.server.kept import Shelf, new_name


def test_shelf() -> None:
    now = 0.0
    shelf: Shelf[str] = Shelf(most=10, seconds=60, clock=lambda: now)
    shelf.put("a", "first", 4)
    now = 30.0
    shelf.put("b", "second", 4)
    assert (shelf.get("a"), shelf.get("b"), shelf.get("c")) == ("first", "second", None)
    shelf.put("c", "third", 4)
    assert (shelf.get("a"), shelf.size) == (None, 8), "the oldest goes when there is no room"
    now = 89.0
    assert shelf.get("b") == "second"
    now = 90.0
    assert (shelf.get("b"), shelf.size) == (None, 0)


def test_shelf_replaces_and_gives_back() -> None:
    shelf: Shelf[str] = Shelf(most=10)
    shelf.put("a", "old", 6)
    shelf.put("a", "new", 6)
    assert (shelf.get("a"), shelf.size) == ("new", 6)
    assert (shelf.take("a"), shelf.take("a"), shelf.size) == ("new", None, 0)
    shelf.put("large", "value", 11)
    assert (shelf.get("large"), shelf.size) == (None, 0), "what is larger than all there is"


def test_names_are_not_guessed() -> None:
    names = {new_name("png") for _ in range(1000)}
    assert len(names) == 1000
    assert all(len(name) == 36 and name.endswith(".png") for name in names)
