"""Origins as browsers send them, and hosts that are this machine."""

import pytest

from jaxl.errors import InputError
from jaxl.server.origins import is_own, names_itself, read_origin, web_host


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://Example.ORG", "https://example.org"),
        ("HTTPS://example.org:443", "https://example.org"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://example.org:80", "http://example.org"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://-", "app://-"),
        ("capacitor://localhost:443", "capacitor://localhost:443"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("moz-extension://0a1b-2c", "moz-extension://0a1b-2c"),
        ("null", "null"),
    ],
)
def test_origins(given: str, sent: str) -> None:
    assert read_origin(given) == sent


@pytest.mark.parametrize(
    "given",
    [
        "",
        "*",
        "example.org",
        "https://",
        "https://example.org/",
        "https://example.org/page",
        "https://*.example.org",
        "https://me@example.org",
        "https://a b",
        "https://example.org:port",
        f"https://{'a' * 64}.example",
        "1a://example.org",
        "file:///page.html",
    ],
)
def test_what_is_none(given: str) -> None:
    with pytest.raises(InputError, match="give scheme and host alone"):
        read_origin(given)


def test_own_host() -> None:
    assert is_own("https://example.org", "Example.org")
    assert is_own("https://example.org", "example.org:443")
    assert is_own("http://[::1]:8000", "[::1]:8000")
    assert not is_own("https://example.org", "example.org:8000")
    assert not is_own("https://example.org", "")
    assert not is_own("app://localhost:8000", "localhost:8000"), "no page that the server has sent"
    assert not is_own("null", "")
    assert web_host("app://evil.example") is None


@pytest.mark.parametrize("host", ["LOCALHOST:8000", "App.LocalHost", "127.0.0.1", "[::1]:8000", "[FE80::1]"])
def test_this_machine(host: str) -> None:
    assert names_itself(host)
