"""Several models behind one engine: each picture is its model's own, whoever has the room on the devices."""

from __future__ import annotations

import random
import shutil
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from left_over import left_over
from lora_files import write_lora
from safetensors.numpy import save_file
from small_model import write_copy

from jaxl.backend import PipelineBackend, open_backend
from jaxl.engine import Engine, Request, Ticket
from jaxl.errors import InputError
from jaxl.residency import catalogue
from jaxl.residency.models import Models, open_models
from jaxl.residency.policy import total
from jaxl.residency.resident import Resident

A_WHILE = 600.0  # no measure of anything: only who fails waits so long
NAMES = ("m0", "m1", "m2", "m3")
STEPS = 3


@pytest.fixture(scope="module")
def how(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Options as those of tests/server/test_lora_files.py, on one device: so programs are compiled once for both."""
    loras = tmp_path_factory.mktemp("loras")
    write_lora(loras / "pencil.safetensors", small[0].model, 1, 2)
    rng, words = np.random.default_rng(0), tmp_path_factory.mktemp("words")
    vectors = {f"clip_{name}": rng.standard_normal((2, width), np.float32) for name, width in (("l", 16), ("g", 32))}
    save_file(vectors, words / "charm.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxl.backend.make_mesh", lambda *_: small[0].mesh)
        patch.setattr("jaxl.backend.spare_device", lambda: None)
        patch.setattr(catalogue, "FRESH", 0.0)
        patch.setattr("jaxl.residency.models.FRESH", 0.0)
        known = {"lora_dir": loras, "embedding_dir": words}
        yield {**known, "lora_rank": 32, "slots": 3, "chunks": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(NAMES):
        write_copy(Path(small[0].checkpoint.source), folder / name, number)
    return folder


@pytest.fixture(scope="module")
def models(folder: Path, how: dict[str, Any]) -> Models:
    """Two are named, the others are in the folder; two of four have room on the devices, three in host memory."""
    found = open_models([(name, str(folder / name)) for name in NAMES[:2]], model_dir=folder, **how)
    unet = found.first.parts[found.first.digests["unet"]]
    found.device_memory, found.host_memory = (sum(found.first.parts.values()) + n * unet for n in (1, 2))
    return found


@pytest.fixture
def engine(models: Models) -> Iterator[Engine]:
    with Engine(models) as engine:
        yield engine


def drawn(engine: Engine, *bodies: dict[str, Any]) -> list[bytes]:
    tickets = [engine.submit(Request({"prompt": "a cat", "steps": STEPS, **body})) for body in bodies]
    return [ticket.future.result(A_WHILE).images[0].tobytes() for ticket in tickets]


def test_each_picture_is_its_models_own(
    engine: Engine, models: Models, folder: Path, how: dict[str, Any], compilations: Any
) -> None:
    rng = random.Random(0)
    bodies = [
        {"model": rng.choice(NAMES), "seed": rng.randrange(3), "loras": rng.choice([{}, {"pencil": 0.8}])}
        | {"prompt": rng.choice(["a cat", "a charm"])}
        for _ in range(16)
    ]
    with compilations() as compiled:
        together = drawn(engine, *bodies)
        assert drawn(engine, *bodies) == together
    assert compiled == []
    assert [each.place for each in models.models()].count("device") == 2
    assert models.models()[0].place == "device"  # the first stays
    assert sum(each.swaps.get("host", 0) for each in models.models()) > 0
    assert total(each.parts for each in models.models() if each.place == "device") <= models.device_memory
    for name in NAMES:
        own = [i for i, body in enumerate(bodies) if body["model"] == name]
        backend = open_backend(folder / name, load=False, **how)
        backend.take_params(backend.pipe.load_params())
        with Engine(backend) as alone:
            wanted = [{key: value for key, value in bodies[i].items() if key != "model"} for i in own]
            assert [together[i] for i in own] == drawn(alone, *wanted)


def test_equal_networks_are_held_once(engine: Engine, models: Models) -> None:
    first, other = drawn(engine, {"model": "m0"}, {"model": "m2"})
    assert first != other
    one, two = (models.open(name).backend.params for name in ("m0", "m2"))
    assert one["vae"] is two["vae"]
    assert one["unet"] is not two["unet"]


def test_a_textual_inversion_is_known_to_all(engine: Engine) -> None:
    words = ("a charm", "a cat", "a dog")
    for name in ("m1", "m2"):
        assert len(set(drawn(engine, *({"model": name, "prompt": prompt} for prompt in words)))) == len(words)


@pytest.fixture
def coming(engine: Engine, models: Models, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ticket, threading.Event]]:
    """A request whose model begins to come from disk, and what is to be set before it does."""
    monkeypatch.setattr(models, "host_memory", 0)
    drawn(engine, {"model": "m3"})
    load, comes, may_come = Resident.load, threading.Event(), threading.Event()

    def slow(resident: Resident, *given: Any) -> None:
        comes.set()
        assert may_come.wait(A_WHILE)
        load(resident, *given)

    monkeypatch.setattr(Resident, "load", slow)
    ticket = engine.submit(Request({"prompt": "a cat", "model": "m2", "steps": STEPS}))
    assert comes.wait(A_WHILE)
    yield ticket, may_come
    may_come.set()


def test_others_draw_while_a_model_comes(engine: Engine, coming: tuple[Ticket, threading.Event]) -> None:
    ticket, may_come = coming
    drawn(engine, {"model": "m0"})
    assert not ticket.future.done()
    may_come.set()
    ticket.future.result(A_WHILE)


def test_a_file_that_is_replaced_while_its_model_comes(
    engine: Engine, coming: tuple[Ticket, threading.Event], small: Any, folder: Path
) -> None:
    ticket, may_come = coming
    write_copy(Path(small[0].checkpoint.source), folder / "m2", 2)
    may_come.set()
    with pytest.raises(InputError, match="model='m2': m2: its file was replaced meanwhile; ask again"):
        ticket.future.result(A_WHILE)
    drawn(engine, {"model": "m2"})


def test_a_check_makes_nothing(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where there are several models, nor where there is one."""
    monkeypatch.setattr(PipelineBackend, "feed", None)
    for backend in (models, models.first.backend):
        backend.check({"prompt": "a cat"})
        with pytest.raises(InputError, match="steps=0"):
            backend.check({"prompt": "a cat", "steps": 0})


def test_models_in_place_of_others(models: Models, folder: Path, how: dict[str, Any]) -> None:
    """As after SIGHUP: networks of the pinned ones that have not changed are held once."""
    named = [(name, str(folder / name)) for name in NAMES[:2]]
    before, after = models.first.backend.params, open_models(named, before=models, **how).first.backend.params
    assert all(after[name] is tree for name, tree in before.items())


def test_what_left_is_free_at_once(engine: Engine, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else holds its parameters, not even until garbage is collected."""
    monkeypatch.setattr(models, "host_memory", 0)
    drawn(engine, {"model": "m1"})
    leaf = weakref.ref(models.open("m1").backend.params["unet"]["conv_in"]["bias"])
    drawn(engine, {"model": "m2"}, {"model": "m3"})
    assert leaf() is None


def test_models_that_come_and_go_leave_nothing(
    models: Models, folder: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "host_memory", 0)

    def swapped() -> None:
        with Engine(models) as engine:
            for name in ("m1", "m2"):
                drawn(engine, {"model": name})

    def loaded_anew() -> None:
        with Engine(open_models([("m0", str(folder / "m0"))], before=models, **how)) as engine:
            drawn(engine, {})

    assert left_over(swapped) == left_over(loaded_anew) == {}


def test_a_replaced_file_is_another_model(
    engine: Engine, models: Models, small: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, other = drawn(engine, {"model": "m1"}, {"model": "m3"})
    write_copy(Path(small[0].checkpoint.source), folder / "m1", 3)
    assert drawn(engine, {"model": "m1"}) == [other] != [before]
    assert "the files of m1 were replaced; new requests are drawn with the new ones" in caplog.text


def test_what_cannot_be_used_is_told_and_others_go_on(
    engine: Engine, models: Models, small: Any, folder: Path, how: dict[str, Any]
) -> None:
    (folder / "broken.safetensors").write_bytes(b"<html>not here</html>")
    shutil.copy(how["lora_dir"] / "pencil.safetensors", folder / "lora.safetensors")
    beyond = {"conv_out.bias": np.full(4, 1e300)}
    write_copy(Path(small[0].checkpoint.source), folder / "beyond", 5, **beyond)
    write_copy(Path(small[0].checkpoint.source), folder / "gone", 6)
    drawn(engine, {"model": "gone"})
    shutil.rmtree(folder / "gone")
    shutil.copytree(folder / "beyond", folder / "more" / "m3")
    for name, problem in (
        ("broken", "model='broken': broken: an HTML page, not weights"),
        ("lora", "model='lora': lora"),
        ("nothing", "model='nothing': known: beyond"),
        ("gone", "model='gone': known: beyond"),
        ("m3", "model='m3': 2 models are called so: m3, m3; rename all but one"),
    ):
        with pytest.raises(InputError, match=problem):
            engine.submit(Request({"prompt": "a cat", "model": name}))
    ticket = engine.submit(Request({"prompt": "a cat", "model": "beyond"}))
    with pytest.raises(InputError, match=r"model='beyond': .*numbers beyond the range of float32"):
        ticket.future.result(A_WHILE)
    shutil.rmtree(folder / "more")
    assert len(drawn(engine, {"model": "m3"})) == 1
    for name in ("beyond", "broken.safetensors", "lora.safetensors"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_budget_too_small_for_one(engine: Engine, models: Models, folder: Path, how: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"model='m0': its parameters take .* GB, and there are 1e-06 GB of device memory"
    ):
        open_models([("m0", str(folder / "m0"))], device_memory=1000, **how)
    with pytest.raises(InputError, match="pin='m9': did you mean"):
        open_models([("m0", str(folder / "m0"))], pin=["m9"], **how)
    with pytest.raises(InputError, match="preset='turbo': it is about one model"):
        open_models([("m0", str(folder / "m0"))], preset="turbo", **how)
