"""Paths below a root, and with slashes that are too many."""

import pytest

from jaxl.errors import InputError
from jaxl.server.paths import read_root, routed


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/", "/"),
        ("//", "/"),
        ("", "/"),
        ("/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("//v1/models", "/v1/models"),
        ("/a/b", "/"),
        ("/a/b/", "/"),
        ("/a/b/v1/models/", "/v1/models"),
        ("/a/bc", "/a/bc"),
    ],
)
def test_below_a_root(path: str, below: str) -> None:
    scope = routed({"path": path}, "/a/b")
    assert (scope["path"], scope["root_path"]) == (below, "/a/b")
    assert routed(scope, "/a/b") == scope


def test_root_of_the_server_before() -> None:
    """Ray has one, and leaves it in the path."""
    scope = {"path": "/ray/v1/models", "root_path": "/ray"}
    assert routed(scope, "") == {"path": "/v1/models", "root_path": "/ray"}
    assert routed(scope, "/outside") == {"path": "/v1/models", "root_path": "/outside"}
    assert routed({"path": "/v1", "root_path": "/"}, "") == {"path": "/v1", "root_path": ""}


def test_roots() -> None:
    assert [read_root(text) for text in ("/jaxl", "/a/b-c/", "/", "")] == ["/jaxl", "/a/b-c", "", ""]
    for text in ("jaxl", "//jaxl", "/a b", "https://example.org/jaxl", "/a?b"):
        with pytest.raises(InputError, match="give a path alone"):
            read_root(text)
