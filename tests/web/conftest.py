"""`jaxl serve --ui` with the embedded model, and a real Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from web_user import Quick, Server, User


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def server(cache: Path) -> Iterator[Server]:
    with Server("--chunks", "1", cache=cache) as server:
        server.wait()
        yield server


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    assert path, "no chromium here; make test-web installs it"
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, as which containers run
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def user(browser: Browser, server: Server | Quick) -> Iterator[User]:
    """Whose page does nothing wrong, and asks nobody but its own server."""
    user = User(browser, server)
    yield user
    user.context.close()
    assert user.troubles == []
    assert {
        request.url for request in user.requests if not request.url.startswith((server.url, "blob:", "data:"))
    } == set()
