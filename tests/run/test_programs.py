"""The compiled programs: their records, for other platforms, in a failing compiler, in the cache on disk."""

import json
import os
from dataclasses import MISSING, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import forks
import jax
import jax.numpy as jnp
import pytest
from evaluation import SMALL
from left_over import left_over

from jaxl.config import ControlNetConfig, IPAdapterConfig, VisionConfig
from jaxl.presets import SDXL_BASE
from jaxl.run.adapters import Room
from jaxl.run.bucket import Beginning, Branch, Bucket, Conditioning, Text
from jaxl.run.model import Model
from jaxl.run.programs import ADVANCE, ALL, MARK, NEUTRAL, PICTURE, PROGRAMS, AnyProgram, Programs
from jaxl.run.sharding import make_mesh, place_parameters
from jaxl.run.tiles import Tiles

FULL = Bucket(
    *(2, 64, 80),
    guided=True,
    chunks=2,
    pag_layers=("mid_block",),
    seg=True,
    perp_neg=True,
    freeu=True,
    cached=True,
    shaped=True,
    room=Room(8, 16, scaled=True),
    text_room=Room(32),
    controls=(ControlNetConfig(SMALL, 3, (8, 8, 16, 16), bgr=True, pooled=False),),
    image_prompts=(8,),
    regions=2,
    seamless="xy",
    tiles=Tiles(48, 16),
    ip_adapter=IPAdapterConfig(VisionConfig(14, 7, 16, 16, 1, 2, "gelu", 1e-5, 8), 4, SMALL.cross_attention_dim, None),
)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_depends_on_what_its_record_says(small: Any, program: AnyProgram) -> None:
    """Each can be traced, and is the same for a bucket as for the part of it that counts."""
    assert all(getattr(FULL, name) != getattr(NEUTRAL, name) for name in ALL)
    traced = small[0].programs.trace(program, FULL).lower()
    if program.key(FULL) != FULL:
        whole = replace(program, depends_on=ALL)
        assert traced.as_text() == small[0].programs.trace(whole, FULL).lower().as_text()


@pytest.mark.parametrize("inputs", [Text, Conditioning, Beginning])
def test_no_input_is_left_out_without_a_word(inputs: Any) -> None:
    """A field that is added must be given its shape, and what fills it, wherever there are inputs."""
    assert [field.name for field in fields(inputs) if field.default is not MISSING] == []


def test_branches_have_one_order() -> None:
    for guided, layers, perp_neg in product([False, True], [(), ("mid_block",)], [False, True]):
        bucket = Bucket(1, 64, 64, guided=guided, pag_layers=layers, perp_neg=perp_neg)
        assert list(bucket.order) == sorted(bucket.order)
        assert (Branch.NEGATIVE in bucket.order, Branch.PERTURBED in bucket.order) == (guided, bool(layers))
        assert (Branch.POSITIVE in bucket.order, Branch.EMPTY in bucket.order) == (True, perp_neg)
        assert bucket.branches == len(bucket.order)


def full_size(split: bool) -> Programs:
    mesh, model = make_mesh(jax.devices()), Model.from_configs(SDXL_BASE)
    return Programs(model, mesh, place_parameters(model.shapes(jnp.bfloat16), mesh, split=split))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_full_size_programs_lower_for_accelerators(platform: str) -> None:
    """Nothing in the programs is bound to the machine that traces them."""
    programs = full_size(split=False)
    bucket = Bucket(8, 1024, 1024, guided=True)
    for program in PICTURE:
        lowered = programs.trace(program, bucket).lower(lowering_platforms=(platform,))
        assert "sdy.sharding" in lowered.as_text()


def test_split_parameters_are_a_share_of_the_whole() -> None:
    whole, split = (
        sum(
            jnp.dtype(leaf.dtype).itemsize * int(jnp.prod(jnp.array(leaf.sharding.shard_shape(leaf.shape))))
            for leaf in jax.tree.leaves(full_size(split).shapes)
        )
        for split in (False, True)
    )
    assert 1 / 8 <= split / whole < 1 / 8 + 0.01


def test_programs_that_are_gone_leave_nothing(small: Any) -> None:
    """Though JAX keeps what it traced of a function as long as that lives."""

    def traced() -> None:
        pipe, _ = small
        programs = Programs(pipe.model, pipe.mesh, pipe.programs.shapes)
        programs.trace(MARK, FULL)
        programs.no_images(FULL)

    assert left_over(traced) == {}


def test_an_error_of_the_compiler_reaches_the_caller_each_time(tiny: Any) -> None:
    pipe, _ = tiny
    programs = Programs(pipe.model, pipe.mesh, {**pipe.programs.shapes, "unet": {}})
    for _ in range(2):
        with pytest.raises(KeyError, match="conv_in"):
            programs.get(ADVANCE, Bucket(1, 64, 64, guided=False))


def test_the_next_process_starts_from_the_cache(small: Any, tmp_path: Path) -> None:
    """The second process finds all programs on disk."""
    code = """
import json, sys, jax, jaxl
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
pipe, params = jaxl.from_pretrained(sys.stdin.read())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs are kept too
pipe.generate(params, "a llama", steps=1, width=64, height=64)
print(json.dumps([events.count(f"/jax/compilation_cache/cache_{kind}") for kind in ("hits", "misses")]))
"""
    environment = os.environ | {"JAXL_CACHE_DIR": str(tmp_path)}
    done = [forks.run(code, str(small[0].checkpoint.source), environment) for _ in range(2)]
    assert [each.returncode for each in done] == [0, 0], done
    (first_hits, first_misses), (hits, misses) = (json.loads(each.stdout.splitlines()[-1]) for each in done)
    assert first_hits == 0
    assert first_misses >= len(PICTURE)
    assert hits >= len(PICTURE)
    assert misses == 0
