"""Pictures with adapters: what they are with the adapters in the weights, each image with its own."""

import random
import re
import weakref
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from adapters import adapter, dora, full

import jaxl
from jaxl.backend import PipelineBackend
from jaxl.engine import Engine, Request
from jaxl.errors import InputError
from jaxl.run.adapted import MAX_SETS, AdaptedNetworks
from jaxl.run.adapters import NO_ROOM, Room
from jaxl.run.bucket import Bucket
from jaxl.weights.layout import flatten, unflatten

A_WHILE = 600.0
STEPS: dict[str, Any] = {"steps": 3, "output": "latents", "guidance_scale": 4.0}


@pytest.fixture(scope="module")
def worn(small: Any) -> Any:
    """The small model with some adapters."""
    pipe, params = small
    for each in (
        adapter(pipe.model, "low", 1, 10),
        adapter(pipe.model, "high", 2, 10, within="attentions", components=("unet",)),
        adapter(pipe.model, "dora", 3, 12, kind=dora),
        adapter(pipe.model, "full", 4, 0, kind=full, within="conv1"),
    ):
        pipe.loras.add(each)
    yield pipe, params
    for name in ("low", "high", "dora", "full"):
        pipe.loras.remove(name)


def test_as_with_the_weights_merged(worn: Any) -> None:
    pipe, params = worn
    loras = {"low": -0.5, "dora": 0.8, "high": jaxl.Strength(2.0, 0.0), "full": 0.5}
    plain = pipe.generate(params, "a cat", **STEPS).latents
    got = pipe.generate(params, "a cat", loras=loras, **STEPS).latents
    want = pipe.generate(pipe.fuse(params, loras), "a cat", **STEPS).latents
    assert np.abs(want - plain).max() > 0.05
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


def test_a_replaced_file_of_the_same_tensors(small: Any) -> None:
    """A file's metadata may scale its tensors, of whose bytes alone the digest is."""
    pipe, params = small
    texts = ("text_encoder", "text_encoder_2")
    first = adapter(pipe.model, "some", 1, 10, components=texts)
    second = replace(adapter(pipe.model, "some", 2, 10, components=texts), digest=first.digest, metadata={"scale": "2"})
    drawn = []
    for each in (first, second):
        pipe.loras.add(each)
        drawn.append(pipe.generate(params, "a cat", loras={"some": 1.0}, **STEPS).latents)
        pipe.loras.remove("some")
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01


SETS: list[dict[str, Any]] = [
    {},
    {"low": 0.8},
    {"low": -1.0, "dora": 0.5, "high": 1.0},
    {"high": 1.5},
    {"dora": 1.0},
    {"low": jaxl.Strength(0.0, 1.0)},
    {"low": jaxl.Strength(1.0, 0.0, start=0.34)},
    {"low": jaxl.Strength(blocks={"up": 0.0})},
]


def test_each_image_of_a_batch_has_its_own(worn: Any, compilations: Any) -> None:
    """Images with other adapters beside it change no bit of an image, and other adapters compile nothing."""
    one, its_params = worn
    mesh = jaxl.make_mesh(jax.devices()[:2])
    pipe, params = jaxl.from_pretrained(one.checkpoint.source, dtype=np.float32, mesh=mesh)
    for each in one.loras.values():
        pipe.loras.add(each)
    prompts, seeds, scales = (
        [f"a cat {i}" for i in range(len(SETS))],
        list(range(8)),
        [4.0, 1.0, 5.0, 2.0, 7.0, 3.0, 4.0, 4.0],
    )

    def drawn(loras: Any, step: int = 1) -> np.ndarray:
        own = STEPS | {"seed": seeds[::step], "guidance_scale": scales[::step], "loras": loras}
        return pipe.generate(params, prompts[::step], **own).latents

    together = drawn(SETS)
    with compilations() as compiled:
        again = drawn(SETS[::-1], -1)
    assert compiled == []
    assert (together[::-1] == again).all()
    for own, other in zip(together, drawn([*SETS[1:], SETS[0]]), strict=True):
        assert not np.allclose(own, other, rtol=1e-4, atol=1e-4)
    # where there is room for adapters, XLA may round otherwise
    without = one.generate(its_params, prompts[0], seed=seeds[0], **STEPS).latents[0]
    np.testing.assert_allclose(together[0], without, rtol=1e-4, atol=1e-4)


def test_images_with_weights_of_their_own_are_drawn_in_rounds(worn: Any) -> None:
    pipe, params = worn
    others = {"low": 0.5, "dora": 0.5, "high": 1.0}
    loras = [others, {"full": 1.0}, {"full": 1.0, **others}, {"full": -1.0}]
    assert pipe.plan("a cat", num_images=4, loras=loras, steps=2).rounds == [1, 1, 1, 1]
    together = pipe.generate(params, "a cat", num_images=4, loras=loras, **STEPS).latents
    for i, own in enumerate(loras):
        alone = pipe.generate(params, "a cat", seed=i, loras=own, **STEPS).latents
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-4)


def test_in_a_running_batch(worn: Any, compilations: Any) -> None:
    """Requests with all kinds of adapters come and go, and each image is what it is alone, bit for bit."""
    pipe, params = worn
    rooms = (NO_ROOM, NO_ROOM), (Room(32), Room(32, 32, True)), (Room(32, 32, True), Room(32, 32, True))
    lanes = [Bucket(1, 64, 64, guided=True, room=room, text_room=text) for room, text in rooms]
    backend = PipelineBackend(pipe, params, lanes, [3])
    backend.warm_up()
    rng = random.Random(0)
    sets = [*SETS, {"full": 1.0}, {"full": 1.0, "low": 0.4}, {"low": jaxl.Strength(1.0, 0.0, end=0.5)}]
    asked: list[dict[str, Any]] = [
        {
            "prompt": rng.choice(["a cat", "a dog"]),
            "seed": rng.randrange(2**32),
            "steps": rng.randint(2, 5),
            "scheduler": rng.choice(["euler", "heun", "euler_a"]),
            "loras": own,
        }
        for own in rng.sample(sets * 2, 2 * len(sets))
    ]
    with compilations() as compiled, Engine(backend, max_waiting=1000) as engine:
        tickets = [engine.submit(Request(each)) for each in asked]
        together = [np.asarray(ticket.future.result(A_WHILE).images[0]) for ticket in tickets]
        for i in rng.sample(range(len(asked)), 8):
            alone = engine.submit(Request(asked[i])).future.result(A_WHILE).images[0]
            assert (together[i] == np.asarray(alone)).all(), asked[i]
    assert compiled == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loras": {"lwo": 1.0}}, "loras='lwo': no LoRA of this name is loaded; did you mean 'low'?"),
        ({"prompt": "a cat <lora:lwo:1>"}, "prompt='lwo': no LoRA of this name"),
        ({"prompt": "a cat <lora:low:x>"}, "'<lora:low:x>' has 'x' where a number belongs"),
        ({"prompt": "a cat <lora:low:1> <lora:low:2>"}, "'low': it is asked for twice"),
        ({"loras": {"../low": 1.0}}, "no LoRA of this name"),
        ({"loras": {"low": "strong"}}, "loras='strong': give a finite number"),
        ({"loras": {"low": float("nan")}}, "loras=nan: give a finite number"),
        ({"loras": "low"}, "loras='low': give names with strengths"),
        ({"loras": [{"low": 1.0}] * 3}, "3 mappings for 1 images"),
    ],
)
def test_what_is_refused(worn: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        worn[0].plan(**{"prompt": "a cat", **arguments})


def test_tags_are_no_part_of_the_prompt(worn: Any) -> None:
    pipe, _ = worn
    tagged = pipe.plan("a cat <lora:low:0.5:0.8> at night", steps=10)
    named = pipe.plan("a cat  at night", steps=10, loras={"low": jaxl.Strength(0.8, 0.5)})
    assert tagged.adapters == named.adapters
    ids = [next(iter(plan.texts[0][0].values()))[0]["text_encoder"][0].tolist() for plan in (tagged, named)]
    assert ids[0] == ids[1]
    parts = pipe.plan("a cat <lora:low:1:lbw=0,0,0,1,1,1,1,1,1,1,1,1:start=2:stop=0.5>", steps=10)
    ((_, strength),) = parts.adapters[1][0]
    assert [segment.rows for segment in parts.segments] == [2, 3, 5]
    assert (strength.at("unet", "down_blocks.1.attentions.0.proj_in"), strength.of_text.at("text_encoder", "")) == (
        0,
        0,
    )
    assert strength.at("unet", "mid_block.attentions.0.proj_in") == 1


@pytest.mark.parametrize("name", ["", " low", "a:b", "a<b", "low>"])
def test_names_that_no_prompt_can_have(worn: Any, name: str) -> None:
    with pytest.raises(InputError, match=r"name=.*: give a name without colons"):
        worn[0].add_lora(name, "some.safetensors")


@pytest.mark.parametrize(
    ("source", "steps", "scheduler"),
    [
        ("sdxl_lightning_8step_lora.safetensors", 8, "euler"),
        ("Hyper-SDXL-4steps-lora.safetensors", 4, "ddim"),
        ("Hyper-SDXL-1step-lora.safetensors", 1, "tcd"),
        ("latent-consistency/lcm-lora-sdxl", 4, "lcm"),
        ("pencil.safetensors", 25, "euler"),
    ],
)
def test_distilled_ones_bring_their_settings(worn: Any, source: str, steps: int, scheduler: str) -> None:
    pipe, _ = worn
    few = replace(adapter(pipe.model, "few", 5, 1, components=("unet",)), source=source)
    pipe.loras.add(few)
    try:
        plan = pipe.plan("a cat", loras={"few": 1.0})
        assert (plan.steps, plan.scheduler, plan.bucket.guided) == (steps, scheduler, steps == 25)
        own = pipe.plan("a cat <lora:few:1>", steps=7, guidance_scale=3.0, scheduler="heun")
        assert (own.steps, own.scheduler, own.bucket.guided) == (7, "heun", True)
        assert pipe.plan("a cat", num_images=2, loras=[{"few": 1.0}, {}]).preset == pipe.preset
    finally:
        pipe.loras.remove("few")


def test_what_is_known_of_parameters_is_not_taken_for_fused_ones(worn: Any) -> None:
    """Which have most of their arrays: a LoRA that changes weights would have been added to those without the first."""
    pipe, params = worn
    (adapters,) = pipe.plan("a cat", loras={"full": 1.0}).adapters[0]
    known, path = pipe.networks(params), "mid_block.resnets.0.conv1.weight"
    alone = flatten(known.network(params, adapters, "unet"))[path]
    assert pipe.networks(dict(params)) is known
    fused = pipe.fuse(params, {"low": 1.0})
    both = flatten(pipe.networks(fused).network(fused, adapters, "unet"))[path]
    first, second = (np.asarray(flatten(tree["unet"])[path]) for tree in (params, fused))
    np.testing.assert_allclose(np.asarray(both) - second, np.asarray(alone) - first, atol=1e-5)


def test_adapters_that_nobody_asks_for_any_more_are_forgotten(worn: Any) -> None:
    """Those without a form too, whose sets take no memory of their own."""
    pipe, params = worn
    networks = AdaptedNetworks(pipe.programs.target, params)
    there = []
    for seed in range(MAX_SETS + 1):
        one = adapter(pipe.model, "one", seed, 0, kind=full, within="mid_block.resnets.0.conv1", components=("unet",))
        assert networks.forms(params, ((one, jaxl.Strength()),), "unet") == {}
        there.append(weakref.ref(one))
    del one
    assert [known() is None for known in there] == [True] + [False] * MAX_SETS


def test_eight_bit_weights_are_not_changed_for_good(worn: Any) -> None:
    pipe, params = worn
    (adapters,) = pipe.plan("a cat", loras={"full": 1.0}).adapters[0]
    leaves = flatten(params["unet"])
    leaves["down_blocks.0.resnets.0.conv1.scale"] = np.ones((), np.float32)
    with pytest.raises(
        InputError, match=r"loras='full': of a kind that changes weights, and those of .* have eight bits"
    ):
        pipe.networks(params).merged({**params, "unet": unflatten(leaves)}, adapters, "unet")
