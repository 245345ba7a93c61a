"""Requests that wait, repeat, and outlive a reload of the page, with an engine that takes its time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from web_user import Quick, User

STEP = 0.05
HISTORY = ".jaxl-gallery li"


@pytest.fixture(scope="module")
def slow() -> Iterator[Quick]:
    with Quick() as server:
        yield server


@pytest.fixture
def server(slow: Quick) -> Quick:
    slow.backend.row_seconds = STEP
    return slow


def in_history(user: User, pictures: int) -> None:
    user.wait_for(f"document.querySelectorAll('{HISTORY}').length === {pictures}")


@pytest.mark.parametrize("moment", ["drawing", "done"])
def test_reload_keeps_the_form_and_the_pictures(user: User, server: Quick, moment: str) -> None:
    user.ask("a castle", seed="11", images=3, steps=40)
    user.page.get_by_label("Size", exact=True).select_option("96x64")
    user.press_generate()
    user.wait_for_preview()
    user.page.goto("about:blank")
    if moment == "done":
        server.until_idle()
    else:
        assert server.engine.tickets(), "drawn although the page is gone"
    user.page.go_back()
    files = user.drawn(3)
    assert len(set(files)) == 3
    in_history(user, 3)
    assert user.page.input_value("#jaxl-prompt textarea") == "a castle"
    assert user.page.get_by_label("Size", exact=True).input_value() == "96x64"
    assert user.page.input_value("#jaxl-seed input, #jaxl-seed textarea") == "11"
    user.page.reload()
    in_history(user, 3)
    assert user.page.locator(".jaxl-tile").count() == 0, "nothing is left to go on with"


def test_the_next_while_one_draws(user: User, server: Quick) -> None:
    """It waits in the page, can be removed, and goes on after a reload."""
    server.backend.row_seconds = 0.5
    for prompt in ("one", "two", "three"):
        user.ask(prompt, images=1, steps=150)
        user.page.click("#jaxl-generate")
    user.wait_for("document.querySelectorAll('jaxl-waiting li').length === 2")
    assert len(server.engine.tickets()) == 1
    user.page.get_by_role("button", name="Remove: two").click()
    user.page.reload()
    user.wait_for("document.querySelector('jaxl-waiting')?.textContent.includes('three')")
    server.backend.row_seconds = 0
    in_history(user, 2)
    prompts = user.page.locator(HISTORY + " button").evaluate_all("(all) => all.map((each) => each.title)")
    assert [prompt.split(",")[0] for prompt in prompts] == ["three", "one"]


def test_again_and_again_until_stopped(user: User, server: Quick) -> None:
    user.ask("a castle", images=1, steps=10, seed="5")
    user.page.click("#jaxl-again")
    user.wait_for(f"document.querySelectorAll('{HISTORY}').length >= 3")
    user.page.get_by_role("button", name="Stop").click()
    user.wait_for("!document.body.classList.contains('jaxl-drawing')")
    seeds = user.page.evaluate(
        "import('/web/history.js').then(({pictures}) => pictures.map((each) => each.settings.seed))"
    )
    assert len(set(seeds)) == len(seeds) >= 3


def test_cancelled_on_the_server_too(user: User, server: Quick) -> None:
    user.ask("a castle", images=2, steps=150)
    user.press_generate()
    user.wait_for_preview()
    user.page.keyboard.press("Escape")
    user.wait_for("document.querySelector('jaxl-board [role=status]').textContent === 'Cancelled'")
    server.until_idle()
    assert user.page.locator(HISTORY).count() == 0
    user.page.reload()
    user.page.wait_for_selector("#jaxl-generate")
    assert user.page.locator(".jaxl-tile").count() == 0
