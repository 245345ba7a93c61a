"""The picker of LoRAs: what it asks for, what it keeps, and that it is not there where there are none."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import expect
from web_user import Quick, User, drop, png

from jaxl.engine import Lora

PENCIL = Lora("pencil", "pencil.safetensors", "sdxl_base_v1-0", ("pencil drawing", "cat (animal)"))
INK = Lora("my ink, v2", "my ink, v2.safetensors")


@pytest.fixture(scope="module")
def fast() -> Iterator[Quick]:
    with Quick(known=[PENCIL, INK]) as server:
        yield server


@pytest.fixture
def server(fast: Quick) -> Quick:
    fast.asked.clear()
    fast.backend.known = [PENCIL, INK]
    return fast


def kept(user: User, loras: str) -> None:
    """Wait until the form has these."""
    user.wait_for(f"JSON.stringify(JSON.parse(sessionStorage.getItem('jaxl-form'))?.loras) === {loras!r}")


def drawn_with(server: Quick) -> list[Mapping[str, Any] | None]:
    return [asked.get("loras") for asked in server.asked]


def test_strengths(user: User, server: Quick) -> None:
    page = user.page
    choice = page.get_by_label("Add a LoRA")
    assert choice.locator("option").all_inner_texts() == ["Add …", "pencil", "my ink, v2"]
    choice.select_option("pencil")
    choice.select_option("my ink, v2")
    assert choice.locator("option").all_inner_texts() == ["No more"]
    page.get_by_label("Strength of pencil", exact=True).fill("0.65")
    page.get_by_label("Strength of my ink, v2, as a number").fill("-4")
    user.screenshot("loras")
    found = Axe().run(page, context="jaxl-loras", options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()
    user.generate("a cat", images=1)
    page.reload()
    expect(page.get_by_label("Strength of pencil, as a number")).to_have_value("0.65")
    expect(page.get_by_label("Strength of my ink, v2, as a number")).to_have_value("-4")
    page.get_by_role("button", name="Remove pencil").click()
    drop(user, "jaxl-source", "white.png", png("white"))
    page.locator("jaxl-source canvas").wait_for()
    user.generate("a cat", images=1)
    page.get_by_role("button", name="Remove my ink, v2").click()
    user.generate("a cat", images=1)
    assert drawn_with(server) == [{"pencil": 0.65, "my ink, v2": -4}, {"my ink, v2": -4}, None]


def test_words_go_into_the_prompt(user: User, server: Quick) -> None:
    user.page.fill("#jaxl-prompt textarea", "a cat ")
    user.page.get_by_label("Add a LoRA").select_option("pencil")
    kept(user, '{"pencil":1}')
    for word, prompt in (
        ("pencil drawing", "a cat, pencil drawing"),
        ("cat (animal)", r"a cat, pencil drawing, cat \(animal\)"),
    ):
        user.page.get_by_role("button", name=f"Put {word} into the prompt").click()
        expect(user.page.locator("#jaxl-prompt textarea")).to_have_value(prompt)
        user.wait_for("JSON.parse(sessionStorage.getItem('jaxl-form')).prompt === " + repr(prompt))


def test_settings_of_a_picture(user: User, server: Quick) -> None:
    user.page.get_by_label("Add a LoRA").select_option("pencil")
    (data,) = user.generate("a cat", images=1)
    assert "<lora:pencil:1>" in Image.open(io.BytesIO(data)).info["parameters"]
    user.page.locator(".jaxl-done").click()
    assert user.page.locator(".jaxl-viewer dd", has_text="pencil 1").count() == 1
    user.page.get_by_role("button", name="Close").click()

    user.page.get_by_role("button", name="Remove pencil").click()
    user.page.get_by_label("Add a LoRA").select_option("my ink, v2")
    drop(user, "jaxl-board", "ours.png", data)
    kept(user, '{"pencil":1}')
    assert user.said() == "Settings restored"
    user.generate("a cat", images=1)
    assert drawn_with(server) == [{"pencil": 1}] * 2

    info, stream = PngInfo(), io.BytesIO()
    info.add_text("jaxl", '{"prompt": "a dog", "loras": {"pencil": 0.5, "gone": 1, "my ink, v2": "much"}}')
    Image.new("RGB", (8, 8)).save(stream, "PNG", pnginfo=info)
    drop(user, "jaxl-board", "theirs.png", stream.getvalue())
    kept(user, '{"pencil":0.5}')
    lost = "not offered here: LoRA gone, LoRA my ink, v2"
    gone = "the LoRA gone; load it, as one of loras, or take it out of prompt"
    assert user.said() == f"Settings restored; {lost}; not restored: {gone}"


def test_files_come_and_go(user: User, server: Quick) -> None:
    choice = user.page.get_by_label("Add a LoRA")
    server.backend.known = [INK]
    choice.focus()
    user.wait_for("document.querySelectorAll('jaxl-loras option').length === 2")
    server.backend.known = []
    user.page.reload()
    user.page.wait_for_selector("#jaxl-generate")
    user.wait_for("document.querySelector('jaxl-loras')?.looked")
    user.page.wait_for_timeout(200)
    assert not choice.is_visible()
    assert user.page.locator(".block:has(jaxl-loras)").first.evaluate("(block) => block.offsetHeight") == 0


@pytest.mark.parametrize(
    ("strength", "message"),
    [("21", "loras.pencil: Input should be less than"), ("", "loras.pencil: Input should be")],
)
def test_a_strength_that_cannot_work(user: User, strength: str, message: str) -> None:
    user.page.get_by_label("Add a LoRA").select_option("pencil")
    user.page.get_by_label("Strength of pencil, as a number").fill(strength)
    user.ask("a cat", images=1)
    user.press_generate()
    user.wait_for("!document.querySelector('jaxl-board [role=alert]').hidden")
    assert user.alert().startswith(message)
    user.troubles.clear()  # the browser itself notes answers of status 400


def test_a_file_that_is_gone(user: User, server: Quick) -> None:
    user.page.get_by_label("Add a LoRA").select_option("pencil")
    server.backend.known = [INK]
    user.ask("a cat", images=1)
    user.press_generate()
    user.wait_for("!document.querySelector('jaxl-board [role=alert]').hidden")
    assert user.alert().startswith("loras='pencil': ")
    user.troubles.clear()
