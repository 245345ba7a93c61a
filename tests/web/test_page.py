"""What people do on the page, in a real browser, with the embedded model."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser
from web_user import IDLE, SCREENSHOTS, STEPS, Server, User, drop

APPLE = "a red apple on a blue background, flat style"
ROCKET = "a rocket on a purple background, noto style"
ATTACK = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)


def test_four_pictures_with_previews_that_change(user: User) -> None:
    """And the files have their settings, and say that a machine made them."""
    steps = 25 if SCREENSHOTS else 12
    user.page.evaluate(
        """() => {
            window.seen = new Set();
            window.stepsAtFirst = null;
            new MutationObserver(() => {
                const image = document.querySelector(".jaxl-tile:not(.jaxl-done) img");
                if (!image?.src) return;
                window.seen.add(image.src);
                window.stepsAtFirst ??= document.querySelector(".jaxl-detail").textContent;
            }).observe(document.querySelector("jaxl-board"), {subtree: true, childList: true, attributes: true});
        }"""
    )
    user.ask(APPLE, seed="7", steps=steps)
    user.page.press("#jaxl-prompt textarea", "Control+Enter")
    user.wait_for("window.seen.size >= 10")
    user.screenshot("demo-drawing")
    files = user.drawn(4)
    user.screenshot("demo")
    assert user.page.evaluate("window.seen.size") >= 10
    step = int(user.page.evaluate("window.stepsAtFirst").split()[1])
    assert step <= 3
    assert user.said() == "Done"
    for i, data in enumerate(files):
        picture = Image.open(io.BytesIO(data))
        settings = json.loads(picture.info["jaxl"])
        assert (settings["prompt"], settings["seed"], settings["steps"]) == (APPLE, 7 + i, steps)
        assert "trainedAlgorithmicMedia" in picture.info["XML:com.adobe.xmp"]
        red, _, blue = pixels(data)[96:160, 96:160].mean((0, 1))
        assert red > blue + 50, "no red apple in the middle"
    assert len({bytes(data) for data in files}) == 4


def test_cancelled_by_escape_and_by_the_button(user: User, server: Server) -> None:
    """Both free the places."""
    user.ask(APPLE, steps=150)
    for press in (lambda: user.page.keyboard.press("Escape"), lambda: user.page.click("#jaxl-cancel")):
        user.press_generate()
        user.wait_for_preview()
        assert server.metric("slots_in_use") == 4
        press()
        user.wait_for(IDLE)
        assert user.said() == "Cancelled"
        user.page.wait_for_timeout(2000)
        assert server.metric("slots_in_use") == 0
    assert len(user.generate(APPLE, images=1)) == 1


def test_two_users_at_once(browser: Browser, server: Server, user: User) -> None:
    """Each gets what the API gives for the same settings to somebody alone."""
    other = User(browser, server)
    user.ask(APPLE, seed="100", images=3)
    other.ask(ROCKET, seed="200", images=3)
    user.press_generate()
    other.press_generate()
    files = {(APPLE, 100): user.drawn(3), (ROCKET, 200): other.drawn(3)}
    assert other.troubles == []
    other.context.close()
    for (prompt, seed), drawn in files.items():
        asked = {"prompt": prompt, "n": 3, "seed": seed, "num_inference_steps": STEPS}
        body = json.dumps({**asked, "size": "256x256", "guidance_scale": 5.0, "scheduler": "euler"}).encode()
        request = Request(f"{server.url}/v1/images/generations", body, {"Content-Type": "application/json"})
        with urlopen(request) as answer:
            alone = [base64.b64decode(each["b64_json"]) for each in json.load(answer)["data"]]
        assert [pixels(a).tobytes() for a in drawn] == [pixels(a).tobytes() for a in alone]


def test_queue_position(browser: Browser, server: Server, user: User) -> None:
    """Who waits is told how many are ahead, and can give up."""
    other = User(browser, server)
    other.ask(ROCKET, images=8, steps=100)
    other.press_generate()
    other.wait_for_preview()
    user.ask(APPLE, images=1)
    user.press_generate()
    user.wait_for("document.querySelector('jaxl-board [role=status]').textContent.startsWith('Waiting')")
    assert user.page.inner_text(".jaxl-detail").startswith("begins in")
    user.screenshot("demo-queue")
    other.page.keyboard.press("Escape")
    other.wait_for(IDLE)
    other.context.close()
    user.drawn(1)


def test_restored_from_its_file(user: User, browser: Browser, server: Server, tmp_path: Path) -> None:
    """A file dropped on somebody else's page gives its picture again, byte for byte."""
    user.ask(ROCKET, images=2, seed=str(2**53 + 1), steps=9)
    user.page.fill("#jaxl-negative textarea, #jaxl-negative input", "a cat, dull")
    user.press_generate()
    user.drawn(2)
    user.page.click(".jaxl-tile:nth-child(2)")
    user.screenshot("demo-picture")
    with user.page.expect_download() as download:
        user.page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"jaxl-{2**53 + 2}.png"
    download.value.save_as(tmp_path / "second.png")
    file = (tmp_path / "second.png").read_bytes()
    other = User(browser, server)
    drop(other, "jaxl-board", "second.png", file)
    other.wait_for(f"document.querySelector('#jaxl-prompt textarea').value === '{ROCKET}'")
    assert other.said() == "Settings restored"
    other.press_generate()
    assert other.drawn(1) == [file]
    assert other.troubles == []
    other.context.close()


def test_use_these_settings_and_history_that_stays(user: User) -> None:
    """The pictures outlive a reload of the page."""
    (first,) = user.generate(APPLE, images=1, seed="3")
    user.generate(ROCKET, images=1, seed="4")
    user.page.reload()
    user.page.wait_for_selector(".jaxl-gallery li:nth-child(2)")
    assert user.file(".jaxl-gallery li:nth-child(2) img") == first
    user.page.click(".jaxl-gallery li:nth-child(2) button")
    user.page.get_by_role("button", name="Use these settings").click()
    user.wait_for(f"document.querySelector('#jaxl-prompt textarea').value === '{APPLE}'")
    user.press_generate()
    assert user.drawn(1) == [first]
    user.page.get_by_role("button", name="Last seed").click()
    assert user.page.input_value("#jaxl-seed input, #jaxl-seed textarea") == "3"
    user.page.get_by_role("button", name="Random seed").click()
    assert user.page.input_value("#jaxl-seed input, #jaxl-seed textarea") == ""


def test_inpainting_with_a_drawn_mask(user: User) -> None:
    """What is painted is drawn anew, and the rest stays."""
    (apple,) = user.generate(APPLE, images=1, seed="7", steps=20)
    user.page.click(".jaxl-tile")
    user.page.get_by_role("button", name="Edit").click()
    canvas = user.page.locator("jaxl-source canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    user.page.evaluate("document.querySelector('jaxl-source input[type=range]').value = 30")
    for y in (0.15, 0.3):
        user.page.mouse.move(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * y)
        user.page.mouse.down()
        user.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * y, steps=6)
        user.page.mouse.up()
    user.screenshot("demo-mask", full_page=True)
    (changed,) = user.generate("a cat on a green background, noto style", images=1, seed="9", steps=20)
    difference = np.abs(pixels(changed) - pixels(apple)).mean(-1)
    assert difference[:80].mean() > 20
    assert difference[170:].mean() < 6
    settings = json.loads(Image.open(io.BytesIO(changed)).info["jaxl"])
    assert settings["strength"] == 1


def test_mask_by_keyboard(user: User) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 64), "white").save(data, "PNG")
    drop(user, "jaxl-source", "white.png", data.getvalue())
    canvas = user.page.locator("jaxl-source canvas")
    canvas.wait_for()
    canvas.focus()
    for key in ("ArrowLeft", "ArrowUp", "Space"):
        canvas.press(key)
    assert user.page.evaluate("document.querySelector('jaxl-source').strokes.length") == 1
    user.page.get_by_role("button", name="Undo").click()
    assert user.page.evaluate("document.querySelector('jaxl-source').strokes.length") == 0
    user.page.get_by_role("button", name="Remove picture").click()
    assert not canvas.is_visible()


def test_variations_and_comparing(user: User) -> None:
    (first,) = user.generate(APPLE, images=1, seed="11", steps=20)
    user.page.fill("#jaxl-images input[type=number]", "2")
    user.page.click(".jaxl-tile")
    user.page.get_by_role("button", name="Variations").click()
    variations = user.drawn(2)
    apart = [np.abs(pixels(each) - pixels(first)).mean() for each in variations]
    assert all(1 < each < 40 for each in apart), "neither the same picture nor another one"
    user.page.click(".jaxl-tile")
    user.page.get_by_role("button", name="Compare").click()
    user.page.click(".jaxl-gallery li:nth-child(3) button")
    slider = user.page.get_by_role("slider", name="How much of the first picture is shown")
    slider.focus()
    before = user.page.locator(".jaxl-first").evaluate("(image) => getComputedStyle(image).clipPath")
    slider.press("ArrowRight")
    assert user.page.locator(".jaxl-first").evaluate("(image) => getComputedStyle(image).clipPath") != before
    user.screenshot("demo-compare")
    user.page.keyboard.press("Escape")
    assert not user.page.locator("dialog").is_visible()


def test_narrow_screen(browser: Browser, server: Server) -> None:
    phone = User(browser, server, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    phone.generate(APPLE, images=4, seed="7", steps=20)
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.page.locator("jaxl-board").scroll_into_view_if_needed()
    phone.screenshot("demo-phone")
    phone.page.locator(".jaxl-tile").first.tap()
    assert phone.page.locator("dialog").is_visible()
    assert phone.troubles == []
    phone.context.close()


def test_examples_and_statistics(user: User) -> None:
    user.page.get_by_role("button", name=ROCKET).click()
    user.wait_for(f"document.querySelector('#jaxl-prompt textarea').value === '{ROCKET}'")
    user.page.get_by_role("tab", name="Statistics").click()
    user.wait_for("document.querySelector('.jaxl-number')?.textContent.match(/[0-9]/)")
    assert re.search(r"[0-9] of [48]", user.page.inner_text("jaxl-statistics"))
    user.page.wait_for_timeout(4500)  # two refreshes
    user.screenshot("demo-statistics")


def test_light_and_dark_are_accessible(user: User) -> None:
    """Labels, roles and contrast, by axe-core (https://github.com/dequelabs/axe-core)."""
    user.generate(APPLE, images=2, seed="7")
    for scheme in ("light", "dark"):
        if scheme == "dark":
            user.page.click(".jaxl-theme")
            assert user.page.evaluate("document.body.classList.contains('dark')")
        user.page.wait_for_timeout(1500)  # until the colours have changed
        user.screenshot(f"demo-{scheme}")
        found = Axe().run(user.page, options={"runOnly": ["wcag2a", "wcag2aa"]})
        assert not found.response["violations"], found.generate_report()
    user.page.reload()
    user.page.wait_for_selector("#jaxl-generate")
    assert user.page.evaluate("document.body.classList.contains('dark')")


@pytest.mark.parametrize("part", ["prompt", "file name", "PNG text"])
def test_scripts_in_what_people_give_are_texts(user: User, part: str) -> None:
    data, info = io.BytesIO(), PngInfo()
    info.add_text(
        "jaxl", json.dumps({"prompt": ATTACK, "seed": 1, "steps": STEPS, "scheduler": ATTACK, ATTACK: ATTACK})
    )
    Image.new("RGB", (8, 8)).save(data, "PNG", pnginfo=info)
    if part == "prompt":
        user.generate(ATTACK, images=1)
        user.page.click(".jaxl-tile")
        assert user.page.inner_text(".jaxl-viewer dd") == ATTACK
    elif part == "file name":
        drop(user, "jaxl-source", f"{ATTACK}.png", b"no picture")
        user.wait_for("document.querySelector('jaxl-board').textContent.includes('no picture')")
        assert ATTACK in user.said()
    else:
        drop(user, "jaxl-board", "attack.png", data.getvalue())
        user.wait_for("document.querySelector('jaxl-board').textContent.includes('restored')")
        assert user.page.input_value("#jaxl-prompt textarea") == ATTACK
        user.press_generate()
        user.drawn(1)
    user.page.wait_for_timeout(300)
    assert user.page.evaluate("window.hacked") is None


def test_readable_errors(user: User) -> None:
    user.ask(APPLE, seed="many")
    user.press_generate()
    assert user.alert() == "Seed: many is no whole number; give one, or leave it empty"
    user.ask("a cat <lora:nobody:1>", seed="")
    user.press_generate()
    user.wait_for(IDLE + " && !document.querySelector('jaxl-board [role=alert]').hidden")
    assert user.alert().startswith("prompt=")
    user.troubles.clear()  # the browser itself notes answers of status 400
    drop(user, "jaxl-board", "empty.png", b"")
    user.wait_for("document.querySelector('jaxl-board').textContent.includes('not a PNG')")
    user.troubles.clear()


def test_server_started_anew_under_an_open_page(browser: Browser, cache: Path) -> None:
    """The page says what happened, notices that the server is back, and goes on."""
    with Server(cache=cache) as server:
        server.wait()
        user = User(browser, server)
        user.ask(APPLE, steps=150)
        user.press_generate()
        user.wait_for_preview()
        server.kill()
        user.wait_for("document.querySelector('jaxl-board [role=alert]').textContent.includes('cannot be reached')")
        server.start()
        user.wait_for("document.querySelector('jaxl-board [role=status]').textContent.includes('is back')")
        assert len(user.generate(APPLE, images=1)) == 1
        user.context.close()


def test_page_while_the_model_is_loaded(browser: Browser, cache: Path) -> None:
    """It goes on by itself; with a key, the browser asks for it, and all that the page does has it."""
    with Server("--api-key", "secret", cache=cache) as server:
        context = browser.new_context(http_credentials={"username": "anybody", "password": "secret"})
        page = context.new_page()
        page.goto(server.url)
        assert "being loaded" in page.inner_text("main")
        page.wait_for_selector("#jaxl-generate", timeout=120_000)
        page.fill("#jaxl-prompt textarea", APPLE)
        page.click("#jaxl-generate")
        page.wait_for_selector(".jaxl-done", timeout=120_000)
        with pytest.raises(HTTPError) as refused:
            urlopen(server.url)
        assert (refused.value.code, refused.value.headers["WWW-Authenticate"][:5]) == (401, "Basic")
