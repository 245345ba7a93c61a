"""Pictures that follow others and are like others: each image with its own, the same alone and among others."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import adapter
from controlnets import write_folder, write_lllite, write_t2i_adapter
from ip_adapters import write
from PIL import Image
from small_model import write_copy

from jaxl import Control, ImagePrompt
from jaxl.backend import PipelineBackend, open_backend
from jaxl.bench.measure import compilations
from jaxl.call.hires import Hires
from jaxl.call.interpolation import interpolated
from jaxl.config import UNetConfig
from jaxl.engine import Engine, Request
from jaxl.errors import InputError
from jaxl.presets import SDXL_BASE
from jaxl.residency.models import open_models

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
RNG = np.random.default_rng(5)
LINES, DEPTH, WIDE = (Image.fromarray(RNG.integers(0, 256, (64, w, 3), np.uint8)) for w in (64, 64, 96))
STEPS: dict[str, Any] = {"steps": 3, "output": "latents", "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def sources(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, pipe = tmp_path_factory.mktemp("controlnets"), small[0]
    config = dict(pipe.checkpoint.configs["unet"])
    found = {name: write_folder(folder / name, config, pipe.model, i) for i, name in enumerate(("edges", "depth"))}
    found["sketch"] = write_t2i_adapter(folder / "sketch.safetensors", pipe.model, 2)
    found["lite"] = write_lllite(folder / "lite.safetensors", pipe.model, 3)
    return {name: str(source) for name, source in found.items()}


@pytest.fixture(scope="module")
def adapters(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    files = write(tmp_path_factory.mktemp("adapters"), small[0].model.unet)
    return {name: str(file) for name, file in files.items()}


@pytest.fixture(scope="module")
def controlled(small: Any, sources: dict[str, str], adapters: dict[str, str]) -> Iterator[Any]:
    pipe, params = small
    for name, source in sources.items():
        pipe.add_control(name, source)
    for name, file in adapters.items():
        pipe.add_ip_adapter(name, file)
    yield pipe, params
    for name in sources:
        pipe.remove_control(name)
    for name in adapters:
        pipe.remove_ip_adapter(name)


LEFT = Image.new("L", (64, 64))
LEFT.paste(255, (0, 0, 32, 64))
SETS: list[tuple[list[Control], list[ImagePrompt]]] = [
    ([], []),
    ([Control("edges", LINES)], []),
    ([Control("depth", DEPTH, 0.5, start=0.3)], [ImagePrompt("plus", WIDE, 0.8)]),
    ([Control("edges", LINES, 0.7, end=0.7), Control("depth", LINES, weighting="guess")], []),
    (
        [Control("edges", DEPTH, weighting="control")],
        [ImagePrompt("plain", DEPTH), ImagePrompt("plus", LINES, end=0.7)],
    ),
    ([Control("depth", DEPTH, strength=0.0)], [ImagePrompt("plain", [LINES, DEPTH], mask=LEFT)]),
    ([Control("sketch", LINES, end=0.7), Control("edges", LINES, 0.5)], []),
    (
        [Control("edges", LINES), Control("lite", LINES, 1.5), Control("sketch", DEPTH, weighting="control")],
        [ImagePrompt("plus", DEPTH)],
    ),
]
# those of one image, for tests that draw it alone, with programs for these networks
ALONE = 7
ITS_OWN: dict[str, Any] = {"seed": ALONE, "controls": SETS[ALONE][0], "image_prompts": SETS[ALONE][1]}


def test_a_batch_of_different_ones(controlled: Any) -> None:
    """As each alone, and no other pictures, strengths or windows compile anything.

    One is drawn alone here, and all are in the engine's test. The last is as the second: half of a network, twice.
    """
    pipe, params = controlled
    sets = [*SETS, ([Control("edges", LINES, 0.5)] * 2, [])]
    seeds = [*range(len(SETS)), 1]
    own_controls, own_prompts = zip(*sets, strict=True)
    asked: dict[str, Any] = {"controls": list(own_controls), "image_prompts": list(own_prompts)}
    together = pipe.generate(params, ["a cat"] * len(sets), seed=seeds, **asked, **STEPS).latents
    alone = pipe.generate(params, "a cat", **ITS_OWN, **STEPS).latents[0]
    for got, wanted in ((together[ALONE], alone), (together[-1], together[1])):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)
    other = WIDE.resize((64, 64))
    asked = {
        "controls": [[Control(each.name, other, 1.5, 0.1, 0.9) for each in own] for own in own_controls],
        "image_prompts": [
            [ImagePrompt(each.name, [other] * len(each.pictures), 0.3, LEFT, 0.1, 0.9) for each in own]
            for own in own_prompts
        ],
    }
    with compilations() as compiled:
        others = pipe.generate(params, ["a cat"] * len(sets), seed=seeds, **asked, **STEPS).latents
    assert not compiled
    changed = np.abs(together - others).max((1, 2, 3))
    assert changed[0] == 0
    assert changed[1:].min() > 0.05


def test_a_second_pass_follows_too(controlled: Any) -> None:
    pipe, params = controlled
    how = STEPS | ITS_OWN
    larger = interpolated(pipe.generate(params, "a cat", **how).latents, "latent", 12, 12)
    again: dict[str, Any] = {"image": larger, "width": 96, "height": 96, "strength": 0.7, "strength_steps": "whole"}
    made = pipe.generate(params, "a cat", hires=Hires(scale=1.5), **how).latents
    np.testing.assert_array_equal(made, pipe.generate(params, "a cat", **again, **how).latents)


def test_with_a_lora_and_perturbed_attention(controlled: Any) -> None:
    """The U-Net has the LoRA, and the ControlNet does not, as with parameters that have it for good."""
    pipe, params = controlled
    pipe.loras.add(adapter(pipe.model, "low", 1, 4))
    how = STEPS | ITS_OWN | {"pag_scale": 2.0}
    got = pipe.generate(params, "a cat", loras={"low": 0.8}, **how).latents
    # next to nothing is added, by the same program
    want = pipe.generate(pipe.fuse(params, {"low": 0.8}), "a cat", loras={"low": 1e-12}, **how).latents
    without = pipe.generate(params, "a cat", loras={"low": 1e-12}, **how).latents
    pipe.loras.remove("low")
    np.testing.assert_allclose(got, want, rtol=5e-4, atol=5e-4)
    assert np.abs(got - without).max() > 0.05


def test_shallow_rows_have_what_is_added_first(controlled: Any) -> None:
    """The picture is nearer to the exact one than one without the control is, and not the same."""
    pipe, params = controlled
    how = STEPS | {"steps": 4}
    kept = pipe.generate(params, "a cat", **ITS_OWN, cache_interval=2, **how).latents
    exact = pipe.generate(params, "a cat", **ITS_OWN, **how).latents
    plain = pipe.generate(params, "a cat", seed=ALONE, **how).latents
    assert 0 < np.abs(kept - exact).mean() < np.abs(plain - exact).mean()


def test_the_size_is_that_of_the_first_picture(controlled: Any) -> None:
    pipe, _ = controlled
    tall = Image.new("RGB", (200, 400))
    plan = pipe.plan("a cat", controls=[Control("edges", tall)])
    assert plan.bucket.height > plan.bucket.width


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ([Control("edge", LINES)], "no ControlNet of this name is loaded; did you mean 'edges'"),
        (["edges"], "give a list of `jaxl.Control`"),
        ([[Control("edges", LINES)]] * 3, "3 lists for 2 images"),
        ([Control("edges", WIDE)], "the image is 64x64; cut the picture of 'edges' to that shape"),
        ([Control("edges", "nowhere.png")], "nowhere.png"),
        ([Control("lite", LINES, weighting="guess")], "'lite' is none of the networks .*; give balanced"),
        ([Control("sketch", LINES, weighting="guess")], "give balanced or prompt or control"),
    ],
)
def test_what_cannot_work(controlled: Any, controls: Any, message: str) -> None:
    pipe, _ = controlled
    with pytest.raises(InputError, match=message):
        pipe.plan(["a cat", "a dog"], width=64, height=64, controls=controls)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([ImagePrompt("like", LINES)], "no IP-Adapter of this name is loaded; known: plain, plus"),
        (["plus"], "give a list of `jaxl.ImagePrompt`"),
        ([ImagePrompt("plus", LINES, mask=WIDE)], "the image is 64x64; cut the mask of 'plus' to that shape"),
        ([ImagePrompt("plus", LINES, blocks="layout")], "this U-Net has no such blocks"),
        ([ImagePrompt("plus", "nowhere.png")], "nowhere.png"),
        ([ImagePrompt("plus", Image.new("RGB", (1000, 2)))], "1000x2 pixels.*cut it nearer to a square"),
    ],
)
def test_image_prompts_that_cannot_work(controlled: Any, prompts: Any, message: str) -> None:
    pipe, _ = controlled
    with pytest.raises(InputError, match=message):
        pipe.plan(["a cat", "a dog"], width=64, height=64, image_prompts=prompts)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "start=0.5: of image prompt 'plus': must lie below its end"),
        ({"strength": -1.0}, "strength=-1.0: of image prompt 'plus': give a number from 0 to 10"),
        ({"images": []}, "give at least one picture"),
        ({"blocks": "mood"}, "blocks='mood'"),
        ({"blocks": {"left": 1}}, "blocks="),
    ],
)
def test_values_of_image_prompts_that_cannot_work(how: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImagePrompt(**{"name": "plus", "images": LINES, **how})


def test_blocks_by_name() -> None:
    """InstantStyle's, in SDXL's own U-Net; all that is not named gets 0."""
    transformers = UNetConfig.from_json(SDXL_BASE["unet"]).transformers
    assert len(transformers) == 11
    assert ImagePrompt("plus", LINES, 0.5).factors(transformers) == [0.5] * 11
    found = ImagePrompt("plus", LINES, 0.5, blocks="style and layout").factors(transformers)
    named = [path for path, strength in zip(transformers, found, strict=True) if strength]
    assert named == ["down_blocks.2.attentions.1", "up_blocks.0.attentions.1"]
    assert max(found) == 0.5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"start": 0.5, "end": 0.5}, "start=0.5: of control 'edges': must lie below its end"),
        ({"strength": -1.0}, "strength=-1.0: of control 'edges': give a number from 0 to 10"),
        ({"strength": "1"}, "give a number"),
        ({"weighting": "mine"}, "weighting='mine'"),
    ],
)
def test_values_that_cannot_work(how: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Control("edges", LINES, **how)


@pytest.fixture(scope="module")
def how(small: Any, sources: dict[str, str], adapters: dict[str, str]) -> Iterator[dict[str, Any]]:
    """As `jaxl serve` opens a model, on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxl.backend.make_mesh", lambda *_: small[0].mesh)
        patch.setattr("jaxl.backend.spare_device", lambda: None)
        networks = {"controlnets": [*sources.items()], "ip_adapters": [*adapters.items()]}
        yield {**networks, "slots": 3, "chunks": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def backend(small: Any, how: dict[str, Any]) -> PipelineBackend:
    opened = open_backend(small[0].checkpoint.source, **how)
    opened.larger = opened.lanes  # so that second passes need no further programs
    return opened


def test_in_the_engine_each_is_as_alone(backend: PipelineBackend) -> None:
    rng = random.Random(0)
    kinds: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": seed, "steps": rng.randint(2, 5), "guidance_scale": scale}
        | {"controls": controls, "image_prompts": prompts}
        for seed, ((controls, prompts), scale) in enumerate((own, scale) for own in SETS for scale in (1.0, 4.0))
    ]
    kinds += [kinds[at] | {"hires": Hires(scale=1)} for at in (0, 3, 7, 15)]
    with Engine(backend) as engine:
        with compilations() as compiled:
            tickets = [engine.submit(Request(kind)) for kind in kinds]
            among = [np.asarray(ticket.future.result(A_WHILE).images[0]) for ticket in tickets]
        assert not compiled
        for kind, got in zip(kinds, among, strict=True):
            alone = engine.submit(Request(kind)).future.result(A_WHILE).images[0]
            np.testing.assert_array_equal(got, np.asarray(alone))
        for asked, message in (
            ({"controls": [Control("edges", LINES)] * 2}, "each ControlNet once"),
            ({"image_prompts": [ImagePrompt("plain", LINES)] * 3}, "an image may have 2 here, of 16 tokens each"),
            ({"image_prompts": [ImagePrompt("plus", [LINES] * 3)]}, "1, of 32 tokens"),
        ):
            with pytest.raises(InputError, match=message):
                engine.submit(Request({"prompt": "a cat", **asked})).future.result(A_WHILE)


def test_of_several_models_each_is_as_alone(
    small: Any, backend: PipelineBackend, how: dict[str, Any], tmp_path: Path
) -> None:
    """Networks are loaded once for all, and each picture is that of its own model."""
    source = Path(small[0].checkpoint.source)
    write_copy(source, tmp_path / "other", 1)
    models = open_models([("own", str(source)), ("other", str(tmp_path / "other"))], **how)
    other = models.open("other").backend
    assert all(other.pipe.controls[name] is each for name, each in models.first.backend.pipe.controls.items())
    kinds = [{"prompt": "a cat", "steps": 2, "controls": own, "image_prompts": like} for own, like in SETS[-2:]]

    def drawn(backend: Any, **more: Any) -> list[bytes]:
        with Engine(backend) as engine:
            tickets = [engine.submit(Request({**kind, **more})) for kind in kinds]
            return [ticket.future.result(A_WHILE).images[0].tobytes() for ticket in tickets]

    of_other, own = (drawn(models, model=name) for name in ("other", "own"))
    assert own == drawn(backend)
    alone = open_backend(tmp_path / "other", load=False, **how)
    alone.take_params(alone.pipe.load_params())
    assert of_other == drawn(alone)
    assert len({*own, *of_other}) == 4
