"""Refiners in a server of several models: a picture goes from lane to lane, and from model to model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_model import REFINER, write_copy, write_small_model

from jaxl.engine import Engine, Request
from jaxl.errors import InputError
from jaxl.residency.models import Models, open_models
from jaxl.residency.policy import total

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
HOW: dict[str, Any] = {"slots": 3, "chunks": 1, "dtype": "float32"}
STEPS = 4


@pytest.fixture(scope="module")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_small_model(folder / "refiner", REFINER)
    for number, name in enumerate(("base", "other", "third")):
        write_copy(Path(small[0].checkpoint.source), folder / name, number)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_device(small: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxl.backend.make_mesh", lambda *_: small[0].mesh)
        patch.setattr("jaxl.backend.spare_device", lambda: None)
        yield


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    """Two are pinned, with all their programs; of the other two one has room beside them."""
    named = [(name, str(folder / name)) for name in ("base", "refiner", "other", "third")]
    found = open_models(named, pin=["base", "refiner"], **HOW)
    unet = found.first.parts[found.first.digests["unet"]]
    found.device_memory, found.host_memory = total([found.first.parts, found.open("refiner").parts]) + unet, 10 * unet
    return found


@pytest.fixture(scope="module")
def engine(models: Models) -> Iterator[Engine]:
    with Engine(models, max_waiting=100) as engine:
        yield engine


def drawn(engine: Engine, *bodies: dict[str, Any]) -> list[np.ndarray]:
    tickets = [engine.submit(Request({"prompt": "a cat", "steps": STEPS, **body})) for body in bodies]
    return [np.asarray(ticket.future.result(A_WHILE).images[0]) for ticket in tickets]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("refiner", {"scheduler": "euler_a", "noise": "torch", "negative_prompt": "a dog"}),
        ("other", {"image": Image.new("RGB", (64, 64), "red"), "strength": 0.9, "scheduler": "dpm++2m"}),
    ],
)
def test_a_picture_is_what_generate_draws(engine: Engine, models: Models, name: str, body: dict[str, Any]) -> None:
    (got,) = drawn(engine, {**body, "seed": 3, "refiner": name, "refiner_at": 0.6})
    (pipe, params), both = ((own.backend.pipe, own.backend.params) for own in (models.open("base"), models.open(name)))
    # as many as a batch has places, for which there are programs already
    asked: dict[str, Any] = {**body, "seed": 3, "steps": STEPS, "num_images": HOW["slots"]}
    wanted = pipe.generate(params, "a cat", **asked, refiner=both, refiner_at=0.6).images[0]
    without = pipe.generate(params, "a cat", **asked).images[0]
    assert np.abs(got.astype(int) - np.asarray(wanted)).max() <= 1
    assert np.abs(got.astype(int) - np.asarray(without)).max() > 1


def test_a_picture_does_not_depend_on_its_neighbours(engine: Engine, models: Models, compilations: Any) -> None:
    """Nobody waits for ever either, though three models never have room at once beside the one that is pinned."""
    rng = random.Random(1)
    names = ("base", "refiner", "other", "third")
    bodies = [
        {
            "model": rng.choice([name for name in names if name != "refiner"]),
            "refiner": rng.choice([None, *names]),
            "refiner_at": rng.choice([0.4, 0.8]),
            "seed": rng.randrange(9),
            "scheduler": rng.choice(["euler", "heun", "euler_a"]),
        }
        for _ in range(10)
    ]
    fits = [body for body in bodies if not {"other", "third"} <= {body["model"], body["refiner"]}]
    with compilations() as compiled:
        together = drawn(engine, *fits)
        alone = [drawn(engine, body)[0] for body in fits]
    assert compiled == []
    assert models.open("refiner").swaps == {"disk": 1}
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    for body in bodies:
        if body not in fits:
            with pytest.raises(InputError, match=r"^refiner='(other|third)': its parameters take .* beside base and"):
                models.read({"prompt": "a cat", **body})


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"refiner": "reffiner"}, "refiner='reffiner': did you mean 'refiner'"),
        ({"refiner": "refiner", "refiner_at": 0.0}, "refiner_at=0.0: leaves one of the two .* raise it"),
        ({"refiner": "refiner", "refiner_at": 1.0}, "refiner_at=1.0: leaves one of the two .* lower it"),
        ({"refiner": "refiner", "mask": Image.new("L", (64, 64))}, "mask='with a refiner': it would change what"),
    ],
)
def test_what_cannot_be_refined(models: Models, body: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"^{problem}"):
        models.read({"prompt": "a cat", "steps": STEPS, **body})


def test_a_model_that_is_its_own_refiner_draws_all(engine: Engine) -> None:
    plain, refined = drawn(engine, {"model": "base"}, {"model": "base", "refiner": "base"})
    np.testing.assert_array_equal(plain, refined)
