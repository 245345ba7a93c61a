"""What a plan refuses, and what it promises of segments, rounds, texts and pictures."""

import io
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import jaxl
from jaxl.call.options import LoadOptions
from jaxl.call.plan import Plan
from jaxl.call.starts import span
from jaxl.diffusion.schedule import Flow, NoiseSchedule, SchedulerConfig
from jaxl.errors import PromptWarning
from jaxl.loading import open_pipeline

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 16:48] = 255
SMALL: dict[str, Any] = {"width": 64, "height": 64}


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def animation() -> bytes:
    return encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE.rotate(90)])


def huge() -> bytes:
    """A PNG file whose header claims 100000 x 100000 pixels."""
    data = bytearray(encoded(PICTURE, "PNG"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "nothing.png"}, "image='nothing.png': No such file"),
        ({"image": 7}, "image=.*: give a path"),
        ({"image": animation()}, "image=.*more than one frame"),
        ({"image": encoded(PICTURE, "PNG")[:900]}, "image=.*damaged or cut short"),
        ({"image": huge()}, "image=.*(pixels|damaged)"),
        ({"image": [PICTURE, PICTURE]}, "image='2 pictures': give one, or one for each of the 1 prompts"),
        ({"image": np.zeros((3, 8, 8, 4), np.float32)}, "image=.*3 latents for 1 prompts"),
        ({"image": np.full((1, 8, 8, 4), np.nan)}, "image=.*NaN"),
        ({"image": np.zeros((1, 9, 8, 4), np.float32)}, "image=.*latents' shape must be"),
        ({"image": PICTURE, "strength": 1.5}, "strength=1.5: give a number from 0 to 1"),
        ({"image": PICTURE, "strength": -0.1}, "strength=-0.1"),
        ({"image": PICTURE, "strength": "half"}, "strength='half'"),
        ({"image": PICTURE, "strength": 0.01}, "strength=0.01: leaves none of the 25 steps"),
        ({"image": PICTURE, "denoising_start": 0.999}, "denoising_start=0.999: leaves none of the 25 steps"),
        ({"image": PICTURE, "strength": 0.6, "steps": 1}, "strength=0.6: leaves none of the 1 steps"),
        ({"strength": 0.5}, "strength=0.5: needs a picture"),
        ({"mask": MASK}, "mask=.*needs a picture"),
        ({"image": PICTURE, "mask": MASK[:32]}, "mask=.*the mask is 64x32 pixels, the picture 64x64"),
        ({"image": PICTURE, "mask": PICTURE}, "mask=.*no colours"),
        ({"image": PICTURE, "mask": MASK * 0}, "mask=.*nothing to repaint"),
        ({"image": np.zeros((1, 8, 8, 4), np.float32), "mask": MASK}, "mask=.*`image` is latents"),
        ({"image": PICTURE, "padding_mask_crop": 8}, "padding_mask_crop=8: needs a mask"),
        ({"image": PICTURE, "mask": MASK, "padding_mask_crop": -1}, "padding_mask_crop=-1"),
        ({"denoising_end": 0}, "denoising_start=0.0: must lie below denoising_end"),
        ({"image": PICTURE, "denoising_start": 0.8, "denoising_end": 0.3}, "denoising_start=0.8: must lie below"),
        ({"image": PICTURE, "denoising_start": 0.8, "strength": 0.3}, "strength=0.3: leave it out"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval=.*the start below the end"),
        ({"guidance_interval": (0, 2)}, "guidance_interval="),
        ({"guidance_interval": 0.5}, "guidance_interval=0.5: give two numbers"),
        ({"guidance_scale": [[1.0, 2.0]]}, r"guidance_scale=\(1, 2\): the shape must be \(1, 25\)"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5"),
        ({"pag_scale": -1}, "pag_scale=-1"),
        ({"pag_scale": 2, "seg_scale": 1}, "seg_scale=1: an image has a pag_scale too"),
        ({"seg_scale": 2, "seg_blur": 0}, "seg_blur=0: must be a number above 0"),
        ({"pag_scale": 2, "pag_layers": ("mid",)}, "pag_layers='mid': did you mean 'mid_block'"),
        ({"freeu": (1, 2)}, "freeu=.*four numbers"),
        ({"freeu": (1, 1, 1, -1)}, "freeu="),
        ({"prompt_syntax": "comfy"}, "prompt_syntax='comfy'"),
        ({"negative_prompt": "a (cat"}, "negative_prompt='a [(]cat': .*never closed at character"),
        ({"prompt_2": "[a:b:2.5]"}, "prompt_2="),
        ({"negative_prompt": "<lora:x:1>"}, "negative_prompt="),
        ({"negative_prompt": "BREAK " * 20 + "x"}, "negative_prompt=.*at most 16"),
        ({"timesteps": [1, 2, 3]}, "timesteps=.*falling"),
        ({"sigmas": [5.0, 1.0, 0.0], "steps": 9}, "steps=9: the sigmas make 2 steps"),
        ({"eta": 2.0, "scheduler": "euler_a"}, "eta=2.0"),
        ({"s_churn": 1.0, "scheduler": "unipc"}, "s_churn=1.0"),
        ({"scheduler": "ddim_inverse"}, "scheduler='ddim_inverse': leads from a picture to its noise; give `image`"),
        ({"scheduler": "ddim_inverse", "image": PICTURE, "strength": 0.5}, "scheduler='ddim_inverse'.*strength=1"),
        ({"scheduler": "DPM adaptive"}, "scheduler='DPM adaptive': jaxl has no such sampler"),
    ],
)
def test_what_cannot_work(small: Any, compilations: Any, options: dict[str, Any], message: str) -> None:
    pipe, params = small
    with compilations() as seen, pytest.raises(jaxl.InputError, match=message) as error:
        pipe.generate(params, "a cat", **{**SMALL, **options})
    assert "\n" not in str(error.value)
    assert seen == []


def test_a_straight_path_begins_at_its_very_start(small: Any) -> None:
    model = replace(small[0].model, scheduler=SchedulerConfig(NoiseSchedule(prediction_type="flow", flow=Flow())))
    times = np.array([1000.0, 700.0, 300.0])
    assert span({}, model, times) == (0, 3)
    assert span({"denoising_end": 0.5}, model, times) == (0, 2)
    assert span({"denoising_start": 0.5, "image": PICTURE}, model, times) == (2, 3)


def test_a_restart_is_cut_where_it_first_comes_below(small: Any) -> None:
    assert span({"denoising_end": 0.5}, small[0].model, np.array([900.0, 400.0, 800.0, 100.0])) == (0, 1)


def test_guidance_is_paid_for_where_it_is(small: Any) -> None:
    pipe, _ = small

    def segments(**options: Any) -> list[tuple[int, bool, int]]:
        plan = pipe.plan("a cat", steps=10, **options)
        return [(each.rows, each.steered, each.version) for each in plan.segments]

    assert segments() == [(10, True, 0)]
    assert segments(guidance_scale=1.0) == [(10, False, 0)]
    # CFG++ goes along the unguided slope, also where the scale is 1 or less; only the last step has none of it
    assert segments(guidance_scale=1.0, scheduler="euler_cfg++") == [(9, True, 0), (1, False, 0)]
    assert segments(guidance_scale=0.5, scheduler="euler_cfg++") == [(10, True, 0)]
    assert segments(guidance_interval=(0.2, 0.5)) == [(2, False, 0), (3, True, 0), (5, False, 0)]
    assert segments(guidance_interval=(0.2, 0.5), scheduler="heun") == [(4, False, 0), (6, True, 0), (9, False, 0)]
    assert segments(guidance_scale=1.0, pag_scale=2.0, guidance_interval=(0, 0.5)) == [(5, True, 0), (5, False, 0)]
    assert segments(negative_prompt="[a:b:0.3]") == [(3, True, 0), (7, True, 1)]
    # a text that is not looked at has no say
    assert segments(negative_prompt="[a:b:0.3]", guidance_scale=1.0) == [(10, False, 0)]


def test_every_field_of_a_plan_goes_with_its_image(small: Any) -> None:
    """Each image's plan has its own part of what has a value for each image, and all of the rest."""
    pipe, _ = small
    shared = {"bucket", "scheduler", "steps", "first", "count", "segments", "clip_skip", "time_ids", "freeu", "preset"}
    shared |= {"emphasis", "empty", "truncates", "refines"}
    of_passes = {"second", "enlarging"}  # which are taken apart before images are
    shared |= {"noise_scale", "variation_strength", "picture_scale", "inversions", "networks"}
    made = {"batch", "rounds"}
    own = {"rows", "texts", "adapters", "controls", "image_prompts", "regions", "seeds", "noise", "pictures", "pastes"}
    own |= {"variation_seeds", "row_noise", "blur"}
    assert {field.name for field in fields(Plan)} == shared | made | own | of_passes, "say here whose the new field is"
    pictures = [PICTURE.rotate(90 * i) for i in range(3)]
    plan = pipe.plan(
        ["a cat", "a dog", "a llama"],
        **SMALL,
        steps=3,
        image=pictures,
        mask=[Image.fromarray(MASK)] * 3,
        padding_mask_crop=4,
        guidance_rescale=[0.1, 0.2, 0.3],
        guidance_scale=[4.0, 5.0, 6.0],
        freeu=(0.9, 0.2, 1.1, 1.2),
        scheduler="euler_a",
        step_noise="torch",
        latents=np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 8, 8, 4), np.float32),
    )
    assert [field.name for field in fields(Plan) if getattr(plan, field.name) is None] == ["second", "enlarging"]
    for i, image in enumerate(plan.by_image()):
        for name in own - {"texts", "adapters"}:
            assert len(getattr(image, name)) == 1, name
            assert getattr(image, name)[0] is getattr(plan, name)[i] or np.array_equal(
                getattr(image, name)[0], getattr(plan, name)[i]
            ), name
        for part, every in ((image.texts, plan.texts), (image.adapters, plan.adapters)):
            assert [version[0] is whole[i] for version, whole in zip(part, every, strict=True)] == [True]
        for name in shared - {"bucket"}:
            assert getattr(image, name) is getattr(plan, name), name


def test_nothing_compiles_for_a_value(small: Any, compilations: Any) -> None:
    pipe, params = small

    def draw(scale: float, text: str, mask: np.ndarray, **options: Any) -> np.ndarray:
        start: dict[str, Any] = {"image": PICTURE, "mask": mask, "guidance_rescale": 0.1 * scale, "pag_scale": scale}
        freeu = (0.9, 0.2 * scale, 1.1, 1.2)
        settings: dict[str, Any] = {**SMALL, **start, "freeu": freeu, "guidance_interval": (0, 0.5), "steps": 4}
        settings["cache_interval"] = int(2 * scale)
        return pipe.generate(params, text, guidance_scale=4 + scale, output="latents", **settings, **options).latents

    first = draw(1.0, "a cat", MASK)
    with compilations() as seen:
        second = draw(
            2.0, "a [(cat:1.2):dog:0.5]", MASK.T[::-1], strength=0.8, scheduler="heun", timestep_spacing="trailing"
        )
    assert seen == []
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()


def test_texts_of_different_lengths_share_a_batch(small: Any) -> None:
    pipe, params = small
    prompts = ["a cat BREAK a dog BREAK " + "a tree, " * 40, "a (red:1.4) llama"]
    settings: dict[str, Any] = {**SMALL, "steps": 3, "output": "latents"}
    together = pipe.generate(params, prompts, seed=[0, 1], **settings).latents
    both_long = pipe.generate(params, prompts[:1] * 2, seed=[0, 1], **settings).latents
    short = pipe.generate(params, prompts[1], seed=1, **settings).latents
    for got, wanted in zip(together, (both_long[0], short[0]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_text_that_changes_is_two_runs(small: Any) -> None:
    pipe, params = small
    settings: dict[str, Any] = {**SMALL, "steps": 10, "output": "latents"}
    got = pipe.generate(params, "a [cat:llama:0.5]", **settings).latents
    half = pipe.generate(params, "a cat", **settings, denoising_end=0.5)
    assert half.steps == 5
    wanted = pipe.generate(params, "a llama", **settings, image=half.latents, denoising_start=0.5).latents
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert np.abs(got - pipe.generate(params, "a cat", **settings).latents).max() > 1e-3


@pytest.mark.parametrize("syntax", ["plain", "literal", "lenient"])
def test_text_that_is_no_syntax(small: Any, syntax: Any) -> None:
    pipe, _ = small
    prompt = "a red cat :)" if syntax == "lenient" else "a (red) cat :)"
    escaped = prompt.replace("(", r"\(").replace(")", r"\)")
    told = [pipe.plan(text, prompt_syntax=how).texts for text, how in ((prompt, syntax), (escaped, "a1111"))]
    jax.tree.map(np.testing.assert_array_equal, *told)


def test_literal_prompts_have_any_length(small: Any) -> None:
    pipe, _ = small
    assert pipe.plan("apple " * 160, prompt_syntax="literal").bucket.chunks == 3
    with pytest.raises(jaxl.InputError, match=r"prompt=.*at most 16"):
        pipe.plan("apple " * 2000, prompt_syntax="literal")


def test_a_prompt_that_is_not_composed_is_told(small: Any) -> None:
    pipe, _ = small
    with pytest.warns(PromptWarning, match="negative_prompt is not composed: AND is read as a word") as caught:
        pipe.plan("a cat", negative_prompt="dogs AND cows", prompt_syntax="lenient")
    assert caught[0].filename == __file__


def test_batches_in_rounds(small: Any) -> None:
    pipe, params = small
    in_rounds = jaxl.Pipeline(pipe.checkpoint, LoadOptions(dtype="float32", mesh=pipe.mesh, batch_sizes=(1, 2)))
    alone = [pipe.generate(params, "a cat", **SMALL, steps=2, seed=seed).latents[0] for seed in range(3, 8)]
    settings: dict[str, Any] = {**SMALL, "steps": 2, "num_images": 5, "seed": 3}
    steps: list[tuple[int, int]] = []
    hear: Callable[..., None] = lambda done, total, latents: steps.append((done, total))  # noqa: E731
    got = in_rounds.generate(params, "a cat", callback=hear, **settings)
    assert in_rounds.plan("a cat", **settings).rounds == [2, 2, 1]
    assert steps == [(i, 6) for i in range(1, 7)]
    assert got.seeds == [3, 4, 5, 6, 7]
    assert len(got.images) == 5
    np.testing.assert_allclose(got.latents, alone, atol=1e-4)
    stopped = in_rounds.generate(params, "a cat", callback=lambda done, *_: done < 3, **settings)
    assert (len(stopped.images), stopped.seeds, stopped.steps) == (4, [3, 4, 5, 6], 1)


def test_the_size_follows_the_picture() -> None:
    pipe = open_pipeline("tiny", LoadOptions())
    wide = PICTURE.resize((320, 180))
    plan = pipe.plan("a cat", image=wide)
    assert (plan.bucket.width, plan.bucket.height) == (336, 192)
    assert (plan.count, plan.bucket.batch) == (15, 1)
    assert pipe.plan("a cat", image=wide, mask=np.full((180, 320), 255, np.uint8)).count == 25


def test_models_with_edm_noise_have_no_place_to_hand_over(small: Any) -> None:
    from dataclasses import replace

    from jaxl.call.starts import span
    from jaxl.diffusion.schedule import EDM

    model = small[0].model
    noise = replace(model.scheduler.noise, edm=EDM())
    model = replace(model, scheduler=replace(model.scheduler, noise=noise))
    times = np.array([1.0, 0.0, -1.5])
    assert span({}, model, times) == (0, 3)
    for name in ("denoising_start", "denoising_end"):
        with pytest.raises(jaxl.InputError, match=f"{name}=0.5: this model's noise"):
            span({name: 0.5}, model, times)  # pyright: ignore[reportArgumentType]


def test_a_picture_without_a_strength_is_drawn_upon_in_one_step(small: Any) -> None:
    pipe, _ = small
    plan = pipe.plan("a cat", image=PICTURE, steps=1)
    assert (plan.steps, plan.count) == (1, 1)


def test_presets(small: Any, tmp_path: Path) -> None:
    pipe, _ = small
    assert pipe.preset.name == "sdxl"

    def planned(preset: str, **options: Any) -> tuple[int, str, bool]:
        other = jaxl.Pipeline(pipe.checkpoint, LoadOptions(dtype="float32", mesh=pipe.mesh, preset=preset))
        plan = other.plan("a cat", **options)
        return plan.steps, plan.scheduler, plan.bucket.guided

    assert planned("turbo") == (1, "euler_a", False)
    assert planned("lightning") == (4, "euler", False)
    assert planned("hyper") == (4, "tcd", False)
    assert planned("lightning", steps=8, guidance_scale=2.0, scheduler="dpm++2m_sgm_uniform") == (
        8,
        "dpm++2m_sgm_uniform",
        True,
    )
    with pytest.raises(jaxl.InputError, match="preset='lightening': did you mean 'lightning'"):
        planned("lightening")
