"""The history of a browser: tabs that share it, stars, a filter, and an archive of all."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import pytest
from PIL import Image
from web_user import Quick, User

HISTORY = ".jaxl-gallery li"


@pytest.fixture(scope="module")
def fast() -> Iterator[Quick]:
    with Quick() as server:
        yield server


@pytest.fixture
def server(fast: Quick) -> Quick:
    return fast


def shown(user: User) -> list[str]:
    titles = user.page.locator(HISTORY + " button").evaluate_all("(all) => all.map((each) => each.title)")
    return [title.split(",")[0] for title in titles]


def test_tabs_share_it(user: User, server: Quick) -> None:
    other = user.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("jaxl-gallery", state="attached")
    user.generate("a castle", images=2)
    other.wait_for_selector(f"{HISTORY}:nth-child(2)")
    other.click(f"{HISTORY} button")
    other.get_by_role("button", name="Star", exact=True).click()
    user.page.wait_for_selector(".jaxl-starred")
    other.once("dialog", lambda dialog: dialog.accept())
    other.get_by_role("button", name="Delete", exact=True).click()
    user.wait_for(f"document.querySelectorAll('{HISTORY}').length === 1")


def test_stars_words_and_an_archive(user: User) -> None:
    for i, prompt in enumerate(("a red castle", "a green castle", "a red apple")):
        user.generate(prompt, images=1, seed=str(i))
    user.page.get_by_role("searchbox").fill("RED castle")
    user.wait_for(f"document.querySelectorAll('{HISTORY}').length === 1")
    assert user.page.inner_text("jaxl-gallery h2") == "History (1 of 3)"
    user.page.click(f"{HISTORY} button")
    user.page.get_by_role("button", name="Star", exact=True).click()
    assert user.page.get_by_role("button", name="Star", exact=True).get_attribute("aria-pressed") == "true"
    user.page.get_by_role("button", name="Close").click()
    user.page.get_by_role("searchbox").fill("")
    user.page.get_by_role("checkbox", name="Starred").check()
    assert shown(user) == ["a red castle"]
    user.page.get_by_role("checkbox", name="Starred").uncheck()
    user.page.reload()
    user.page.wait_for_selector(".jaxl-starred")
    with user.page.expect_download() as coming:
        user.page.get_by_role("button", name="Download all").click()
    with zipfile.ZipFile(coming.value.path()) as archive:
        assert archive.testzip() is None
        files = {info.filename: archive.read(info) for info in archive.infolist()}
    assert sorted(files) == ["jaxl-0-1.png", "jaxl-1-2.png", "jaxl-2-3.png"]
    assert files["jaxl-2-3.png"] == user.file(f"{HISTORY} img")
    for data in files.values():
        Image.open(io.BytesIO(data)).verify()
