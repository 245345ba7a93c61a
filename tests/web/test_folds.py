"""The folds of the form: second passes, refiners, grids and larger pictures, with an engine that remembers."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect
from web_user import A_WHILE, Quick, User, drop, png

from jaxl.call.hires import Hires
from jaxl.engine.backend import Served

LARGER = ((96, 96),)


@pytest.fixture(scope="module")
def fast() -> Iterator[Quick]:
    with Quick(larger_sizes=LARGER, upscalers=(("4x-Sharp", 4),)) as server:
        server.backend.larger = LARGER
        server.backend.served = (Served("tiny", "tiny"), Served("xl-refiner", "xl-refiner.safetensors"))
        yield server


@pytest.fixture
def server(fast: Quick) -> Quick:
    fast.asked.clear()
    return fast


def test_a_second_pass(user: User, server: Quick) -> None:
    page = user.page
    page.get_by_text("Hires: draw on at a larger size").click()
    page.get_by_label("Larger size").select_option("96x96")
    page.get_by_label("Enlarged by").select_option("4x-Sharp")
    page.get_by_label("Strength of the second pass").fill("0.4")
    page.get_by_label("Steps of the second pass").fill("3")
    user.screenshot("hires")
    (file,) = user.generate("a castle", images=1)
    assert server.asked[0]["hires"] == Hires(size=(96, 96), upscaler="4x-Sharp", strength=0.4, steps=3)
    assert Image.open(io.BytesIO(file)).size == (96, 96)
    page.reload()
    expect(page.get_by_label("Larger size")).to_have_value("96x96", timeout=A_WHILE)


def test_a_refiner(user: User, server: Quick) -> None:
    page = user.page
    page.get_by_text("Refiner: another model draws the last steps").click()
    refiner = page.get_by_role("combobox", name="Refiner")
    assert refiner.locator("option").all_inner_texts() == ["None", "tiny", "xl-refiner"]
    refiner.select_option("xl-refiner")
    page.get_by_label("Where the refiner takes over").fill("0.7")
    user.screenshot("refiner")
    user.generate("a castle", images=1)
    page.locator(".jaxl-gallery button").first.click()
    refiner.select_option("", force=True)
    page.get_by_role("button", name="Use these settings").click()
    expect(refiner).to_have_value("xl-refiner", timeout=A_WHILE)
    assert (server.asked[0]["refiner"], server.asked[0]["refiner_at"]) == ("xl-refiner", 0.7)


def test_a_grid(user: User, server: Quick) -> None:
    page = user.page
    page.get_by_text("Grid: a picture for each value").click()
    page.get_by_label("Columns").fill("steps=2,4,6")
    page.get_by_label("Rows").fill("sampler=euler,DPM++ 2M")
    user.ask("a castle", seed="5")
    user.press_generate()
    files = user.drawn(6)
    asked = {(each["steps"], each["scheduler"]) for each in server.asked}
    assert asked == {(steps, name) for steps in (2, 4, 6) for name in ("euler", "DPM++ 2M")}
    assert {(each["seed"], each["num_images"]) for each in server.asked} == {(5, 1)}
    assert len(set(files)) == 6
    labels = page.locator(".jaxl-tile").evaluate_all("tiles => tiles.map((tile) => tile.dataset.label)")
    assert (labels[1], labels[3]) == ("euler · Steps: 4", "DPM++ 2M · Steps: 2")
    user.screenshot("grid-page")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download the grid").click()
    sheet = Image.open(saved.value.path())
    assert sheet.width > 3 * 64
    assert sheet.height > 2 * 64
    page.get_by_label("Rows").fill("stepps=2")
    page.click("#jaxl-generate")
    user.wait_for("document.querySelector('jaxl-board [role=alert]').textContent")
    assert user.alert().startswith("y='stepps': did you mean 'steps'?")
    user.troubles.clear()  # the console tells of each answer with an error


def test_larger_pictures(user: User) -> None:
    drop(user, "jaxl-enlarge details", "red.png", png("red"))
    page = user.page
    page.get_by_label("Upscaler", exact=True).select_option("4x-Sharp")
    page.get_by_label("Times as large").fill("3")
    page.get_by_role("button", name="Enlarge", exact=True).click()
    with page.expect_download() as saved:
        page.get_by_alt_text("enlarged-red.png").click()
    assert saved.value.suggested_filename == "enlarged-red.png"
    assert Image.open(saved.value.path()).size == (192, 192)
    page.get_by_label("Times as large").fill("99")
    page.get_by_role("button", name="Enlarge", exact=True).click()
    expect(page.locator("jaxl-enlarge [role=status]")).to_contain_text("upscaling_resize=99", timeout=A_WHILE)
    user.troubles.clear()


def test_as_other_programs_draw(user: User, server: Quick) -> None:
    page = user.page
    page.get_by_text("Steps, guidance").click()
    for label, choice in (("Style:", "comfyui"), ("Noise:", "nv")):
        page.get_by_label(label).click()
        page.get_by_role("option", name=choice, exact=True).click()
    user.screenshot("style")
    user.generate("a castle", images=1)
    assert (server.asked[0]["style"], server.asked[0]["noise"]) == ("comfyui", "nv")


def test_everybody_can_use_the_folds(user: User) -> None:
    for summary in user.page.locator(".jaxl-fold summary").all():
        summary.click()
    found = Axe().run(user.page, context=".jaxl-fold", options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()
