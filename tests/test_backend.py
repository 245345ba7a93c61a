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
from xla_flags import as_users_compile

import jaxl
from jaxl.backend import PipelineBackend
from jaxl.bench.measure import compilations
from jaxl.call.hires import Hires
from jaxl.call.options import LoadOptions
from jaxl.engine import Engine, Request, Ticket
from jaxl.errors import InputError, NonFiniteError
from jaxl.run.bucket import Bucket
from jaxl.run.programs import ADVANCE, JOIN, TAKE
from jaxl.run.sharding import make_mesh

A_WHILE = 600.0  # no measure of anything: only who fails waits so long


@pytest.fixture(scope="module")
def backend(small: Any, tmp_path_factory: pytest.TempPathFactory) -> PipelineBackend:
    """Two devices draw, at 96x64 second passes too; another one decodes and encodes, and yet another one enlarges."""
    mesh = make_mesh(jax.devices()[:2])
    pipe, params = jaxl.from_pretrained(small[0].checkpoint.source, dtype="float32", mesh=mesh)
    lanes = [Bucket(1, 64, width, guided=True, chunks=2) for width in (64, 96)] + [Bucket(1, 64, 64, guided=False)]
    weights = saved(tmp_path_factory.mktemp("upscaler") / "x4.pth", weights_of(golden("compact_4x")[0]))
    pipe.add_upscaler("x4", weights, tile=16, mesh=make_mesh(jax.devices()[-1:]))
    backend = PipelineBackend(pipe, params, lanes, [2], decode_on=jax.devices()[2], larger=lanes[1:2])
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


# noise of many programs
NOISES: list[dict[str, Any]] = [
    {"scheduler": "euler_a", "steps": 9},
    {"scheduler": "euler_a", "noise": "torch", "steps": 9, "eta_noise_seed_delta": 31337},
    {"scheduler": "dpm2_a", "noise": "nv", "steps": 4},
    {"scheduler": "dpm++sde_karras", "noise": "cuda:t4", "steps": 5},
    {"scheduler": "dpm++2m_sde", "noise": "torch", "step_noise": "nv", "variation_seed": 4, "variation_strength": 0.5},
]
WIDER = Hires(size=(96, 64), steps=3)
SECOND_PASSES = [
    replace(WIDER, upscaler="latent"),
    replace(WIDER, upscaler="lanczos", steps=0),
    replace(WIDER, upscaler="x4", strength=0.4, scheduler="heun", prompt="a blue star"),
]


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
    """Whatever noise they are drawn with, and whether they are enlarged in a second pass."""
    rng = random.Random(1)
    plain: dict[str, Any] = {"prompt": "a cat", "steps": 7, "width": 64, "height": 64}
    special = [plain | {"seed": i, "guidance_scale": 1.0} | noise for i, noise in enumerate(NOISES)]
    special += [plain | {"steps": rng.randint(2, 5), "noise": "nv", "hires": hires} for hires in SECOND_PASSES]
    wanted = [*kinds(rng, 16), *special]
    rng.shuffle(wanted)
    given_up = [i for i, kind in enumerate(wanted) if kind not in special][:2]
    with compilations() as compiled, Engine(backend, max_waiting=1000) as engine:
        tickets = []
        for kind in wanted:
            tickets.append(engine.submit(Request(kind, previews=rng.choice([0, 1]))))
            time.sleep(rng.choice([0.0, 0.01]))
        for number in given_up:
            tickets[number].cancel()
        assert not wait([ticket.future for ticket in tickets], A_WHILE).not_done
        pictures = {number: images(ticket) for number, ticket in enumerate(tickets) if not ticket.future.exception()}
        others = rng.sample([number for number in pictures if wanted[number] not in special], 8)
        for number in [*others, *(number for number in pictures if wanted[number] in special)]:
            alone = images(engine.submit(Request(wanted[number])))
            assert all(np.array_equal(a, b) for a, b in zip(pictures[number], alone, strict=True))
    assert compiled == []
    noises = {pictures[wanted.index(kind)][0].tobytes() for kind in special[: len(NOISES)]}
    assert len(noises) == len(NOISES)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"image": Image.new("RGB", (64, 64), "red"), "strength": 0.7},
        {"scheduler": "euler_a", "noise": "torch", "guidance_scale": 1.0},
        {"scheduler": "euler_a", "noise": "torch", "hires": replace(WIDER, upscaler="x4")},
    ],
    ids=["text", "image", "noise", "second pass"],
)
def test_an_image_is_what_generate_draws(backend: PipelineBackend, more: dict[str, Any]) -> None:
    kind = {"prompt": "a blue star " * 30, "steps": 5, "seed": 5, "num_images": 2, "width": 64, "height": 64, **more}
    with Engine(backend) as engine:
        drawn = images(engine.submit(Request(kind)))
    same = backend.pipe.generate(backend.params, **kind).images
    for a, b in zip(drawn, same, strict=True):
        assert a.shape == (64, 96 if "hires" in more else 64, 3)
        assert np.abs(a.astype(int) - np.asarray(b)).max() <= 1


def test_a_size_without_lanes_is_refused(backend: PipelineBackend) -> None:
    with pytest.raises(InputError, match=r"^hires='128x128': second passes go to 96x64 here"):
        backend.read({"prompt": "a cat", "hires": Hires()})
    without = PipelineBackend(backend.pipe, backend.params, backend.lanes, [2])
    with pytest.raises(InputError, match=r"^hires='96x64': there are none here"):
        without.read({"prompt": "a cat", "hires": WIDER})
    assert backend.defaults["sizes"] == without.defaults["sizes"] == ((64, 64), (96, 64))
    assert (backend.defaults["larger_sizes"], without.defaults["larger_sizes"]) == (((96, 64),), ())


def test_what_became_infinite_is_told(backend: PipelineBackend) -> None:
    (drawing,) = backend.read({"prompt": "a cat", "hires": WIDER, "steps": 2})
    batch = backend.batch(drawing.stages[0].lane, 2)
    batch.join(0, drawing, 0, None)
    state = batch.take(0)
    broken = replace(state, latents=np.full(state.latents.shape, np.nan, np.float32))
    with pytest.raises(NonFiniteError, match="the image of seed 0"):
        backend.remake(drawing, 1, broken)()


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
    several = PipelineBackend(backend.pipe, backend.params, backend.lanes[:1], [1, 2])
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


def test_vector_loops_know_no_neighbours(small: Any) -> None:
    """An image is the same alone and among others where what runs for all of them is compiled as users have it."""
    one, params = small
    # programs are shared among pipelines that split pictures alike, and those of others were compiled otherwise
    pipe = jaxl.Pipeline(one.checkpoint, LoadOptions(dtype="float32", mesh=one.mesh, split="images"))
    lane = Bucket(1, 64, 64, guided=True)
    with as_users_compile():
        for program in (ADVANCE, JOIN, TAKE):
            pipe.programs.begin(program, replace(lane, batch=3)).result()
    wanted = [{"prompt": prompt, "steps": 3, "seed": seed} for seed, prompt in enumerate(("a red apple", "a cat", ""))]
    with Engine(PipelineBackend(pipe, params, [lane], [3])) as engine:
        together = [engine.submit(Request(kind)) for kind in wanted]
        for ticket, kind in zip(together, wanted, strict=True):
            np.testing.assert_array_equal(images(ticket), images(engine.submit(Request(kind))))
