"""A pipeline behind the engine: an image is the same alone and among others, whatever they are."""

import random
import time
from concurrent.futures import wait
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from upscaler_files import golden, saved, weights_of

import jaxl
from jaxl.backend import PipelineBackend
from jaxl.bench.measure import compilations
from jaxl.engine import Engine, Request, Ticket
from jaxl.errors import InputError, NonFiniteError
from jaxl.run.bucket import Bucket
from jaxl.run.sharding import make_mesh

A_WHILE = 600.0  # no measure of anything: only who fails waits so long


@pytest.fixture(scope="module")
def backend(small: Any, tmp_path_factory: pytest.TempPathFactory) -> PipelineBackend:
    mesh = make_mesh(jax.devices()[:2])
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype="float32", mesh=mesh)
    lanes = [Bucket(1, 64, width, guided=True, chunks=2) for width in (64, 96)] + [Bucket(1, 64, 64, guided=False)]
    weights = saved(tmp_path_factory.mktemp("upscaler") / "x4.pth", weights_of(golden("compact_4x")[0]))
    pipe.add_upscaler("x4", weights, tile=16, mesh=make_mesh(jax.devices()[-1:]))
    backend = PipelineBackend(pipe, params, lanes, [2])
    backend.warm_up()
    return backend


def test_pictures_are_enlarged_beside_rows(backend: PipelineBackend) -> None:
    """Nothing is compiled for it, the rows of others go on, and both are what they are alone."""
    assert backend.defaults["upscalers"] == (("x4", 4),)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    kind = {"prompt": "a red apple", "steps": 12, "width": 64, "height": 64}
    alone = jaxl.upscale(picture, backend.pipe.upscalers["x4"], 3)
    with compilations() as compiled, Engine(backend) as engine:
        ticket = engine.submit(Request(kind))
        beside = [engine.upscale("x4", picture, (90, 60)) for _ in range(3)]
        drawn, again = images(ticket), images(engine.submit(Request(kind)))
        with pytest.raises(InputError, match=r"upscaler='x5': did you mean 'x4'\?"):
            engine.upscale("x5", picture, (90, 60))
    assert compiled == []
    assert all(each == alone for each in beside)
    np.testing.assert_array_equal(drawn, again)


def images(ticket: Ticket) -> list[np.ndarray]:
    return [np.asarray(image) for image in ticket.future.result(A_WHILE).images]


def kinds(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Requests of all kinds: steps, schedulers, guidance, its intervals, sizes, long prompts, pictures, masks."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    some: list[dict[str, Any]] = []
    for _ in range(count):
        kind: dict[str, Any] = {
            "prompt": rng.choice(["a red apple", "a green cat, flat style", "a blue star " * 30, "[a cat:a dog:0.5]"]),
            "negative_prompt": rng.choice([None, "dark"]),
            "seed": rng.randrange(2**40),
            "steps": rng.randint(2, 6),
            "scheduler": rng.choice(["euler", "ddim", "dpm++2m_karras", "euler_ancestral", "heun"]),
            "guidance_scale": rng.choice([1.0, 3.0, 7.5]),
            "guidance_interval": rng.choice([None, (0.3, 0.8)]),
            "num_images": rng.choice([1, 1, 3]),
            "width": rng.choice([64, 96]),
            "height": 64,
        }
        if rng.random() < 0.3:
            kind |= {"image": picture, "strength": 0.7, "mask": rng.choice([None, mask])}
        some.append(kind)
    return some


def test_an_image_does_not_depend_on_its_neighbours(backend: PipelineBackend) -> None:
    rng = random.Random(1)
    wanted = kinds(rng, 24)
    with compilations() as compiled, Engine(backend, max_waiting=1000) as engine:
        tickets = []
        for kind in wanted:
            tickets.append(engine.submit(Request(kind, previews=rng.choice([0, 1]))))
            time.sleep(rng.choice([0.0, 0.01]))
        tickets[3].cancel()
        tickets[11].cancel()
        assert not wait([ticket.future for ticket in tickets], A_WHILE).not_done
        for number in rng.sample(range(len(wanted)), 10):
            if tickets[number].future.exception() is None:
                alone = images(engine.submit(Request(wanted[number])))
                assert all(np.array_equal(a, b) for a, b in zip(images(tickets[number]), alone, strict=True))
    assert compiled == []


@pytest.mark.parametrize(
    "more", [{}, {"image": Image.new("RGB", (64, 64), "red"), "strength": 0.7}], ids=["text", "image"]
)
def test_an_image_is_what_generate_draws(backend: PipelineBackend, more: dict[str, Any]) -> None:
    kind = {"prompt": "a blue star " * 30, "steps": 5, "seed": 5, "num_images": 2, "width": 64, "height": 64, **more}
    with Engine(backend) as engine:
        drawn = images(engine.submit(Request(kind)))
    same = backend.pipe.generate(backend.params, **kind).images
    for a, b in zip(drawn, same, strict=True):
        assert np.abs(a.astype(int) - np.asarray(b)).max() <= 1


def test_an_unguided_image_in_a_guided_lane_is_told_the_same_twice(backend: PipelineBackend) -> None:
    lane = replace(backend.lanes[0], chunks=1)
    asked: dict[str, Any] = {"width": 64, "height": 64, "negative_prompt": "dark", "negative_original_size": (32, 32)}

    def told(guidance: float) -> Any:
        (image,) = backend.read({"prompt": "a cat", "guidance_scale": guidance, **asked})
        cond = image.inputs.conditioning(image.plan.segments[0], lane)
        return jax.tree.map(lambda a: bool((a[0, 0] == a[0, 1]).all()), (cond.pooled, cond.time_ids))

    assert told(1.0) == (True, True)
    assert told(2.0) == (False, False)


def test_batches_of_several_sizes(backend: PipelineBackend) -> None:
    """An image moves from batch to batch while others come and go, and is the same to rounding."""
    several = PipelineBackend(backend.pipe, backend.params, backend.lanes[:1], [1, 2, 4])
    kind = {"prompt": "a red apple", "steps": 8, "width": 64, "height": 64, "guidance_scale": 1.0, "num_images": 4}
    with Engine(several, quantum=0.0) as engine, Engine(backend) as other:
        tickets = [engine.submit(Request({**kind, "num_images": n, "steps": n, "seed": n})) for n in (1, 3, 2, 4, 1)]
        for ticket in tickets:
            alone = images(other.submit(Request(ticket.request.arguments)))
            for a, b in zip(images(ticket), alone, strict=True):
                assert np.abs(a.astype(int) - b).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 128}, "width=128: the server draws 64x64, 96x64"),
        ({"width": 64, "height": 96}, "height=96: the server draws"),
        ({"prompt": "word " * 200}, "a prompt may have 150 tokens here"),
        ({"pag_scale": 3.0}, "pag_scale=.*: the server has no program for it"),
        ({"freeu": (0.9, 0.2, 1.2, 1.4)}, "freeu=True: the server has no program for it"),
        ({"cache_interval": 3}, "cache_interval=True: the server has no program for it"),
        ({"steps": 0}, "steps=0"),
    ],
)
def test_what_no_lane_has_is_refused(backend: PipelineBackend, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        backend.read({"prompt": "a", "width": 64, "height": 64, **arguments})


def test_a_broken_parameter_is_named(backend: PipelineBackend) -> None:
    whole = backend.params
    broken = jax.tree.map(lambda a: jax.device_put(np.full(a.shape, np.nan, a.dtype), a.sharding), whole["vae"])
    backend.take_params({**whole, "vae": broken})
    try:
        with (
            Engine(backend) as engine,
            pytest.raises(NonFiniteError, match=r"; vae: [a-z0-9_.]+ of the checkpoint is so"),
        ):
            images(engine.submit(Request({"prompt": "a", "steps": 1, "width": 64, "height": 64})))
    finally:
        backend.take_params(whole)


def test_previews_are_of_the_image(backend: PipelineBackend) -> None:
    shown: list[Any] = []
    with Engine(backend) as engine:
        request = Request({"prompt": "a red apple", "steps": 6, "width": 96, "height": 64}, previews=3)
        engine.submit(request, shown.append).future.result(A_WHILE)
    pixels = [event.pixels for event in shown if type(event).__name__ == "Preview"]
    assert len(pixels) == 3
    assert all(each.shape == (8, 12, 3) and each.dtype == np.uint8 for each in pixels)


def test_vector_loops_know_no_neighbours(small: Any, optimised: None) -> None:
    """An image is the same alone and among others in programs compiled as users have them."""
    mesh = jaxl.make_mesh(jax.devices()[3:4])  # on which nothing has programs that were compiled otherwise
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype="float32", mesh=mesh)
    wanted = [{"prompt": prompt, "steps": 3, "seed": seed} for seed, prompt in enumerate(("a red apple", "a cat", ""))]
    with Engine(PipelineBackend(pipe, params, [Bucket(1, 64, 64, guided=True)], [3])) as engine:
        together = [engine.submit(Request(kind)) for kind in wanted]
        for ticket, kind in zip(together, wanted, strict=True):
            np.testing.assert_array_equal(images(ticket), images(engine.submit(Request(kind))))
