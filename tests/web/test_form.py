"""What the form asks for, with an engine that remembers what it was asked."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, expect
from web_user import Quick, User, drop, png

BOARD = "document.querySelector('jaxl-board').textContent"


@pytest.fixture(scope="module")
def fast() -> Iterator[Quick]:
    with Quick() as server:
        yield server


@pytest.fixture
def server(fast: Quick) -> Quick:
    fast.asked.clear()
    return fast


def test_samplers_and_their_schedules(user: User, server: Quick) -> None:
    sampler, schedule = user.page.get_by_label("Sampler"), user.page.get_by_label("Schedule")
    sampler.select_option("DPM++ 2M")
    schedule.select_option("Karras")
    user.generate("a castle", images=1)
    sampler.select_option("Euler")
    assert schedule.input_value() == "euler_karras", "the schedule stays where the sampler has it"
    sampler.select_option("LCM")
    user.generate("a castle", images=1)
    assert [asked["scheduler"] for asked in server.asked] == ["dpm++2m_karras", "lcm"]
    assert schedule.locator("option").count() == 1


def test_sizes_by_shape(user: User, server: Quick) -> None:
    size = user.page.get_by_label("Size", exact=True)
    names = size.locator("option").all_inner_texts()
    assert names == ["Square 64x64", "Landscape 96x64", "Portrait 64x96"]
    swap = user.page.get_by_role("button", name="Swap width and height")
    assert not swap.is_visible()
    size.select_option("96x64")
    swap.click()
    user.generate("a castle", images=1)
    assert (server.asked[0]["width"], server.asked[0]["height"]) == (64, 96)


def test_a_mask_alone_outlives_a_reload(user: User, server: Quick) -> None:
    drop(user, "jaxl-source", "white.png", png("white"))
    canvas = user.page.locator("jaxl-source canvas")
    canvas.wait_for()
    only = user.page.get_by_role("checkbox", name="Only masked")
    assert not only.is_visible(), "nothing is painted yet"
    canvas.focus()
    canvas.press("Space")
    only.check()
    user.page.get_by_label("number input for Feather").fill("9")
    user.page.keyboard.press("Tab")
    user.wait_for("JSON.parse(sessionStorage.getItem('jaxl-form')).mask_blur === 9")
    user.page.reload()
    canvas.wait_for()
    expect(user.page.get_by_label("number input for Feather")).to_have_value("9")
    assert only.is_checked()
    user.generate("a castle", images=1)
    (asked,) = server.asked
    assert (asked["padding_mask_crop"], asked["strength"]) == (32, 1)
    assert len(asked["mask"].getcolors()) > 3, "its edge is soft"
    user.page.get_by_role("button", name="Remove picture").click()
    user.page.reload()
    user.page.wait_for_selector("#jaxl-generate")
    assert not canvas.is_visible()


def test_what_was_not_understood_is_listed(user: User) -> None:
    data, info = io.BytesIO(), PngInfo()
    info.add_text("parameters", "a castle\nSteps: 9, Sampler: Euler, Seed: 5, Size: 512x512, Wibble: 3")
    Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=info)
    drop(user, "jaxl-board", "theirs.png", data.getvalue())
    user.wait_for(f"{BOARD}.includes('restored')")
    assert "Wibble" in user.said()
    assert "not offered here: size 512x512" in user.said()
    assert user.page.input_value("#jaxl-prompt textarea") == "a castle"


def test_tokens(user: User) -> None:
    user.page.fill("#jaxl-prompt textarea", "a red apple")
    user.wait_for("document.querySelector('.jaxl-tokens').textContent === '3 of 75 tokens'")
    user.page.fill("#jaxl-prompt textarea", "apple " * 100)
    user.wait_for("document.querySelector('.jaxl-tokens').textContent.startsWith('100 of 150 tokens, in 2 parts')")
    user.page.fill("#jaxl-prompt textarea", "apple " * 300)
    user.wait_for("!document.querySelector('jaxl-tokens [role=status]').hidden")


def test_plots_on_a_fresh_page(user: User) -> None:
    """They show pictures that were drawn before it was opened."""
    user.generate("a castle", images=2)
    user.page.reload()
    user.page.get_by_role("tab", name="Statistics").click()
    line = user.page.locator(".jaxl-card polyline").first
    user.wait_for("document.querySelector('.jaxl-card polyline')?.getAttribute('points')")
    points = (line.get_attribute("points") or "").split()
    assert len(points) == 60
    assert len({point.split(",")[1] for point in points}) > 1


def test_pictures_come_first_on_a_phone(browser: Browser, server: Quick) -> None:
    phone = User(browser, server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.page.fill("#jaxl-prompt textarea", "a castle")
    phone.page.tap("#jaxl-generate")
    phone.drawn(4)
    edge = "(selector, side) => document.querySelector(selector).getBoundingClientRect()[side]"
    order = (".jaxl-tile", "#jaxl-prompt", "jaxl-size", "jaxl-gallery")
    tops = [phone.page.evaluate(f"({edge})({each!r}, 'top')") for each in order]
    assert tops == sorted(tops)
    assert phone.page.evaluate(f"({edge})('#jaxl-generate', 'bottom')") <= 844, "the button is in reach"
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.troubles == []
    phone.context.close()
