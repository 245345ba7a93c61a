"""Second passes in a running batch, with others: nobody's picture changes, and nothing is compiled."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from upscaler_files import golden, saved, weights_of

import jaxl
from jaxl.backend import PipelineBackend
from jaxl.bench.measure import compilations
from jaxl.call.hires import Hires
from jaxl.engine import Engine, Request, Ticket
from jaxl.errors import InputError, NonFiniteError
from jaxl.run.bucket import Bucket

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
LANES = [Bucket(1, 64, side, guided=True) for side in (64, 96)]


@pytest.fixture(scope="module")
def backend(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PipelineBackend]:
    """Images are 64 pixels wide, and 96 of second passes alone; another device decodes and encodes."""
    pipe, params = small
    weights = saved(tmp_path_factory.mktemp("upscaler") / "x4.pth", weights_of(golden("compact_4x")[0]))
    pipe.add_upscaler("x4", weights, tile=64, mesh=jaxl.make_mesh(jax.devices()[1:2]))
    backend = PipelineBackend(pipe, params, LANES[:1], [3], decode_on=jax.devices()[1], larger=LANES[1:])
    backend.warm_up()
    yield backend
    pipe.remove_upscaler("x4")


def images(ticket: Ticket) -> list[np.ndarray]:
    return [np.asarray(image) for image in ticket.future.result(A_WHILE).images]


def kinds(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": rng.choice(["a red apple", "a green cat"]),
            "seed": rng.randrange(2**40),
            "steps": rng.randint(2, 5),
            "scheduler": rng.choice(["euler", "dpm++2m_karras", "euler_a"]),
            "noise": rng.choice(["jaxl", "nv"]),
            "num_images": rng.choice([1, 1, 2]),
            "hires": rng.choice(
                [
                    None,
                    Hires(size=(96, 64), steps=rng.randint(0, 3), upscaler=rng.choice(["latent", "lanczos"])),
                    Hires(size=(96, 64), strength=0.4, upscaler="x4", scheduler="heun", prompt="a blue star"),
                ]
            ),
        }
        for _ in range(count)
    ]


def test_an_image_does_not_depend_on_its_neighbours(backend: PipelineBackend) -> None:
    wanted = kinds(random.Random(2), 16)
    assert {getattr(kind["hires"], "upscaler", None) for kind in wanted} == {None, "latent", "lanczos", "x4"}
    with compilations() as compiled, Engine(backend, max_waiting=1000) as engine:
        tickets = [engine.submit(Request(kind, previews=i % 2)) for i, kind in enumerate(wanted)]
        tickets[3].cancel()
        together = [images(ticket) for i, ticket in enumerate(tickets) if i != 3]
        alone = [images(engine.submit(Request(kind))) for i, kind in enumerate(wanted) if i != 3]
    assert compiled == []
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_image_is_what_generate_draws(backend: PipelineBackend) -> None:
    kind: dict[str, Any] = {"prompt": "a blue star", "steps": 4, "seed": 5, "noise": "torch", "scheduler": "euler_a"}
    hires = Hires(size=(96, 64), upscaler="x4", steps=3)
    with Engine(backend) as engine:
        result = engine.submit(Request({**kind, "hires": hires})).future.result(A_WHILE)
    same = backend.pipe.generate(backend.params, **kind, hires=hires).images
    assert result.images[0].size == (96, 64)
    assert np.abs(np.asarray(result.images[0]).astype(int) - np.asarray(same[0])).max() <= 1


def test_a_size_without_lanes_is_refused(backend: PipelineBackend) -> None:
    with pytest.raises(InputError, match=r"^hires='128x128': second passes go to 96x64 here"):
        backend.read({"prompt": "a cat", "hires": Hires()})
    without = PipelineBackend(backend.pipe, backend.params, LANES, [2])
    with pytest.raises(InputError, match=r"^hires='96x64': there are none here"):
        without.read({"prompt": "a cat", "hires": Hires(size=(96, 64))})
    assert backend.defaults["sizes"] == ((64, 64),)
    assert (backend.defaults["larger_sizes"], without.defaults["larger_sizes"]) == (((96, 64),), ())


def test_what_became_infinite_is_told(backend: PipelineBackend) -> None:
    (drawing,) = backend.read({"prompt": "a cat", "hires": Hires(size=(96, 64)), "steps": 2})
    batch = backend.batch(drawing.stages[0].lane, 3)
    batch.join(0, drawing, 0, None)
    state = batch.take(0)
    broken = replace(state, latents=np.full(state.latents.shape, np.nan, np.float32))
    with pytest.raises(NonFiniteError, match="the image of seed 0"):
        backend.remake(drawing, 1, broken)()
