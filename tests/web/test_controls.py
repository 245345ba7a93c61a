"""The ControlNets and image prompts of the form: what is asked for, shown and kept, and where there are none."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, expect
from web_user import Quick, User, drop, png

import jaxl

SCENE = Image.fromarray(np.kron(np.array([[0, 200], [90, 255]], np.uint8), np.ones((48, 48), np.uint8))).convert("RGB")


@pytest.fixture(scope="module")
def fast() -> Iterator[Quick]:
    with Quick(controlnets=("edges", "depth"), ip_adapters=("like",)) as server:
        yield server


@pytest.fixture
def server(fast: Quick) -> Quick:
    fast.asked.clear()
    return fast


def scene() -> bytes:
    stream = io.BytesIO()
    SCENE.save(stream, "PNG")
    return stream.getvalue()


def controls_of(server: Quick) -> list[Any]:
    return [asked.get("controls") for asked in server.asked]


def test_a_picture_and_what_is_made_of_it(user: User, server: Quick) -> None:
    page = user.page
    choice = page.get_by_label("Add a ControlNet")
    assert choice.locator("option").all_inner_texts() == ["Add …", "edges", "depth"]
    choice.select_option("edges")
    drop(user, "jaxl-controls li", "scene.png", scene())
    preview = page.get_by_alt_text("What edges follows")
    expect(preview).to_be_visible()
    page.get_by_label("Preprocessor for edges").select_option("canny")
    page.get_by_label("low of canny for edges").fill("30")
    page.get_by_label("Resolution for edges").fill("64")
    page.get_by_label("Strength of edges").fill("0.7")
    page.get_by_label("End of edges").fill("0.5")
    user.wait_for("document.querySelector('jaxl-controls img').naturalWidth === 64")
    user.screenshot("controls")
    found = Axe().run(page, context="jaxl-controls", options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()
    user.generate("a cat", images=1)
    page.reload()
    expect(preview).to_be_visible()
    expect(page.get_by_label("low of canny for edges")).to_have_value("30")
    user.generate("a cat", images=1)
    page.get_by_role("button", name="Remove edges").click()
    user.generate("a cat", images=1)
    (edges,), (again,), nothing = controls_of(server)
    assert nothing is None
    assert edges.facts == again.facts
    made = {"name": "canny", "resolution": 64, "low": 30, "high": 200}
    assert edges.facts == {"name": "edges", "strength": 0.7, "start": 0, "end": 0.5, "preprocess": made}
    np.testing.assert_array_equal(edges.image, jaxl.preprocess(image=SCENE, **made))


def test_a_picture_as_it_is_beside_one_to_start_from(user: User, server: Quick) -> None:
    user.page.get_by_label("Add a ControlNet").select_option("depth")
    drop(user, "jaxl-controls li", "scene.png", scene())
    user.page.get_by_label("Kind of picture for depth").select_option("depth")
    drop(user, "jaxl-source", "white.png", png("white"))
    user.page.locator("jaxl-source canvas").wait_for()
    user.generate("a cat", images=1)
    ((depth,),) = controls_of(server)
    assert depth.mode == "depth"
    np.testing.assert_array_equal(depth.image, SCENE)


def test_settings_of_a_picture(user: User, server: Quick) -> None:
    """They come back without the picture, which has to be given again."""
    choice = user.page.get_by_label("Add a ControlNet")
    choice.select_option("edges")
    drop(user, "jaxl-controls li", "scene.png", scene())
    user.page.get_by_label("Preprocessor for edges").select_option("invert")
    (data,) = user.generate("a cat", images=1)
    user.page.locator(".jaxl-done").click()
    assert user.page.locator(".jaxl-viewer dd", has_text="edges 1 invert").count() == 1
    user.page.get_by_role("button", name="Close").click()
    user.page.get_by_role("button", name="Remove edges").click()
    drop(user, "jaxl-board", "ours.png", data)
    expect(user.page.get_by_label("Preprocessor for edges")).to_have_value("invert")
    assert user.said().startswith("Settings restored; not restored: the picture that edges followed")
    user.press_generate()
    user.wait_for("!document.querySelector('jaxl-board [role=alert]').hidden")
    assert user.alert() == "ControlNet edges: choose its picture, or remove it"


def test_image_prompts(user: User, server: Quick) -> None:
    """Two of one adapter, one of them with two pictures; they outlive a reload, and come back from a file."""
    page = user.page
    choice = page.get_by_label("Add an image prompt")
    for _ in "12":
        choice.select_option("like")
    for i, colour in ((1, "red"), (1, "blue"), (2, "lime")):
        drop(user, f"jaxl-image_prompts > ul > li:nth-child({i})", f"{colour}.png", png(colour))
    expect(page.get_by_alt_text("picture 2 of like", exact=True)).to_be_visible()
    page.get_by_label("Strength of like", exact=True).fill("0.7")
    page.get_by_label("End of like", exact=True).fill("0.5")
    page.get_by_label("Blocks that read like 2").select_option("style")
    user.screenshot("image_prompts", full_page=True)
    found = Axe().run(page, context="jaxl-image_prompts", options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()
    page.reload()
    expect(page.get_by_label("Blocks that read like 2")).to_have_value("style")
    page.get_by_role("button", name="Remove picture 1 of like", exact=True).click()
    (data,) = user.generate("a cat", images=1)
    first, second = server.asked[0]["image_prompts"]
    assert first.facts == {"name": "like", "strength": 0.7, "start": 0, "end": 0.5}
    assert second.facts == {"name": "like", "strength": 1, "start": 0, "end": 1, "blocks": "style"}
    colours = [[each.getpixel((0, 0)) for each in prompt.pictures] for prompt in (first, second)]
    assert colours == [[(0, 0, 255)], [(0, 255, 0)]]
    page.get_by_role("button", name="Remove like", exact=True).click()
    drop(user, "jaxl-board", "ours.png", data)
    expect(page.get_by_label("Strength of like", exact=True)).to_have_value("0.7")
    first, second = user.said().split(" · ")
    assert first.startswith("Settings restored; not restored: the pictures that like read")
    assert second.startswith("the pictures that like read")
    user.press_generate()
    user.wait_for("!document.querySelector('jaxl-board [role=alert]').hidden")
    assert user.alert() == "Image prompt like 2: choose its picture, or remove it"


def test_what_cannot_be_made(user: User) -> None:
    user.page.get_by_label("Add a ControlNet").select_option("edges")
    drop(user, "jaxl-controls li", "scene.png", b"no picture")
    problem = user.page.locator("jaxl-controls [role=status]")
    expect(problem).to_have_text("scene.png is no picture that can be read; choose a PNG, JPEG or WebP file")
    drop(user, "jaxl-controls li", "scene.png", scene())
    user.page.get_by_label("Preprocessor for edges").select_option("canny")
    user.page.get_by_label("low of canny for edges").fill("999")
    expect(problem).to_have_text("low=999.0: give a whole number from 0 to 255")
    user.troubles.clear()  # the browser itself notes answers of status 400


def test_not_there_without_any(browser: Browser) -> None:
    with Quick() as server:
        user = User(browser, server)
        user.wait_for("window.jaxl !== undefined")
        for adding, tag in (("Add a ControlNet", "jaxl-controls"), ("Add an image prompt", "jaxl-image_prompts")):
            assert not user.page.get_by_label(adding).is_visible()
            assert user.page.locator(f".block:has({tag})").first.evaluate("(block) => block.offsetHeight") == 0
        user.generate("a cat", images=1)
        user.context.close()
        assert user.troubles == []
